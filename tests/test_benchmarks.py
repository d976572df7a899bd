"""A tiny run of every piece of `make bench`, and that all sides do the same work. Nothing here asserts a time."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federation_host import require_nginx
from flwr.app import Context, Message, RecordDict
from sklearn.metrics import roc_auc_score

import experiments.benchmarks.__main__ as bench
from clients.node import open_node
from experiments import run as run_module
from experiments.benchmarks import (
    deployed,
    empty_work,
    hosting,
    matching,
    peers,
    rounds,
    scaling,
    shared,
    startup,
    tracking,
    work,
)
from experiments.benchmarks.work import Work, local_grid, plain_module, resident, study
from experiments.engines import LocalGrid
from experiments.names import Errors, population
from federation.server.tracking import NoTracker
from models.matchkey import MISSED

TINY = Work(agencies=2, people=128, features=3, batch=64)


def tiny_round(folder: Path) -> dict[str, Any]:
    return rounds.measure(TINY, folder, rounds=2, blocks=1, flower=0, pfl_python=None)


def test_an_epoch_is_as_many_batches_as_fill_the_people() -> None:
    assert (Work().steps, Work().sample_rate) == (31, 0.032)
    assert (TINY.steps, TINY.sample_rate) == (2, 0.5)


def test_fedrisk_trains_on_the_people_that_the_bare_loop_has(tmp_path: Path) -> None:
    plan = study(TINY.write(tmp_path / "data"), TINY, 4)
    local_grid(plan, tmp_path)
    for agency in range(TINY.agencies):
        node = open_node(tmp_path / "nodes" / f"agency-{agency:03d}")
        x, y, present, _ = node._dataset(work.TUNE, work.TEST).part("train")
        theirs = resident(TINY, agency)
        np.testing.assert_array_equal(x, theirs[0])
        np.testing.assert_array_equal(y, theirs[1])
        assert present is None
    local = plan.experiment.plan("run", simulation=True)
    assert local.privacy.sample_rate * local.participants[0].public_size * local.train_fraction == TINY.batch


def test_the_bare_loop_by_hand_takes_the_steps_of_the_one_with_an_optimizer() -> None:
    x, y = resident(TINY, 0)
    batches = [(x[:64], y[:64]), (x[64:], y[64:])]
    by_hand, with_optimizer = plain_module(TINY), plain_module(TINY)
    with_optimizer.load_state_dict(by_hand.state_dict())
    work._epoch_by_hand(by_hand, batches)
    work._epoch_with_optimizer(with_optimizer, batches)
    for one, other in zip(by_hand.parameters(), with_optimizer.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_round_is_measured_beside_the_bare_loop(tmp_path: Path) -> None:
    found = tiny_round(tmp_path)
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == [rounds.BARE, rounds.OPTIMIZER, rounds.OURS]
    assert all(row["count"] == 2 and row["low"] <= row["median"] <= row["high"] for row in rows.values())
    assert rows[rounds.BARE]["ratio"] == 1
    assert found["missing"] == {rounds.PFL: "not installed"}
    (target,) = found["targets"]
    assert target["value"] == rows[rounds.OURS]["median"] / rows[rounds.BARE]["median"]


@pytest.mark.parametrize("epsilon", [True, False])
def test_the_plain_flower_client_trains_with_opacus(epsilon: bool) -> None:
    app = peers.plain_client(TINY, epsilon=epsilon)
    grid = LocalGrid(app, [{"partition-id": agency} for agency in range(TINY.agencies)])
    seconds: list[float] = []
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    peers.plain_server(TINY, 2, seconds)(grid, context)
    assert len(seconds) == 2


def test_a_client_that_fails_stops_the_plain_server() -> None:
    app = peers.plain_client(TINY, epsilon=False)
    grid = LocalGrid(app, [{"partition-id": "none"}] * TINY.agencies)
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    with pytest.raises(ValueError, match="invalid literal"):
        peers.plain_server(TINY, 1, [])(grid, context)


@pytest.mark.parametrize("messages", [1, 2])
def test_the_stock_bundle_is_fedavg_of_empty_work(tmp_path: Path, messages: int) -> None:
    sent: list[str] = []

    class Counting(LocalGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            sent.extend(message.metadata.message_type for message in messages)
            return super().push_messages(messages)

    config = {"rounds": 3, "agencies": 2, "columns": 5, "out": str(tmp_path / "seconds.json")}
    context = Context(
        run_id=1,
        node_id=0,
        node_config={},
        state=RecordDict(),
        run_config={**config, "evaluate": messages == 2},
    )
    empty_work.server(Counting(empty_work.client, [{}, {}]), context)
    seconds = json.loads((tmp_path / "seconds.json").read_text())
    assert len(seconds) == 3
    assert all(each > 0 for each in seconds)
    assert (sent.count("train"), sent.count("evaluate")) == (6, 6 * (messages - 1))


LOG = """\
2026-11-25 14:35:08,100 INFO flwr aggregate_train: Received 3 results and 0 failures
2026-11-25 14:35:10,600 INFO flwr aggregate_train: Received 3 results and 0 failures
2026-11-25 14:35:11,700 INFO flwr aggregate_train: Received 3 results and 0 failures
"""


def test_a_hosted_round_is_timed_from_the_end_of_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "run.log").write_text(LOG)
    run = hosting.HostedRun(tmp_path, [])
    for void, records in ((None, 3), (None, 4), ("too few", 3)):
        found = json.dumps({"rounds": [{"void": void}] * records})
        (tmp_path / "result.json").write_text(found)
        if void is None and records == 3:
            assert run.seconds == [2.5, 1.1]
        else:
            with pytest.raises(hosting.Failed, match=r"a round of .* was void"):
                _ = run.seconds


def test_without_nginx_stock_flower_alone_is_timed_and_one_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stock:
        def rounds(self, rounds: int, *, columns: int, evaluate: bool) -> list[float]:
            assert columns > 20
            return [99.0] * deployed.WARM_UP + [2.0 if evaluate else 1.0] * (rounds - deployed.WARM_UP)

    monkeypatch.setattr(hosting, "stock", lambda *_: contextlib.nullcontext(Stock()))
    monkeypatch.setattr(deployed, "find_nginx", lambda: None)
    found = deployed.measure(tmp_path, **deployed.options(quick=False))
    assert {row["name"]: row["median"] for row in found["rows"]} == {deployed.TWO: 2.0, deployed.ONE: 1.0}
    assert found["targets"] == []
    assert "nginx is not installed: `apt install nginx-light`" in deployed.shown(found)[-1]


@pytest.mark.deployed
@pytest.mark.long
@pytest.mark.timeout(900)
def test_deployed_rounds_are_timed_beside_stock_flower(tmp_path: Path) -> None:
    require_nginx()
    rounds = {deployed.TWO: 3, deployed.ONE: 3, deployed.OURS: 3, deployed.MASKED: 3}
    found = deployed.measure(tmp_path, rounds=rounds, blocks=1)
    assert {row["name"]: row["count"] for row in found["rows"]} == dict.fromkeys(rounds, 1)
    assert all(row["median"] > 0 for row in found["rows"])
    assert found["set_up"] > 0
    (target,) = found["targets"]
    assert target["value"] == {row["name"]: row["median"] for row in found["rows"]}[deployed.OURS]


def test_a_python_without_pfl_says_so() -> None:
    found = peers.pfl_rounds(TINY, 1, "/bin/false")
    assert found == "failed: no reason given"


def test_scaling_compares_an_agency_round_at_two_sizes(tmp_path: Path) -> None:
    found = scaling.measure(TINY, tmp_path, few=1, many=2, rounds=1, blocks=1)
    few, many = found["rows"]
    assert (few["agencies"], many["agencies"], few["count"]) == (1, 2, 1)
    assert found["targets"][0]["value"] == many["median"] / few["median"]


def test_a_run_that_ends_before_its_first_round_is_no_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="no round was finished"):
        startup.first_round(tmp_path)


def test_the_time_that_a_run_waits_in_its_tracker_is_added_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "open_tracker", run_module.open_tracker)  # it is put back afterwards
    overrides = TINY.overrides(TINY.write(tmp_path / "data"), 2)
    arguments = [
        "run",
        *overrides,
        "evaluation.checkpoints=1",
        "tracking=none",
        f"output={tmp_path}",
        "--quiet",
    ]
    with pytest.raises(SystemExit, match="0"):
        tracking.main(tmp_path / "seconds.json", arguments)
    inside = json.loads((tmp_path / "seconds.json").read_text())
    assert set(inside) == {"open", "start", "round", "checkpoint", "finish"}
    timed = tracking.Timed(NoTracker())
    timed.round({})
    once = timed.seconds["round"]
    timed.round({})
    assert timed.seconds["round"] > once > 0


def test_the_command_prints_a_table_and_writes_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: Mapping[str, Any] = {**bench.LINES, "round": lambda options, folder: tiny_round(folder)}
    monkeypatch.setattr(bench, "LINES", lines)
    bench.main(["--out", str(tmp_path), "--only", "round"])
    shown = capsys.readouterr().out
    assert re.search(r"fedrisk, local engine.*\d ms .*\d x", shown)
    assert re.search(r"(met|MISSED) +at most 3 bare loops: \d", shown)
    assert re.search(r"pfl.*not installed", shown)
    written = json.loads((tmp_path / "bench.json").read_text())
    assert set(written) == {"machine", "round"}
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]
    with pytest.raises(SystemExit, match="2"):
        bench.main(["--only", "rounds"])


@pytest.mark.parametrize(
    ("bound", "expected"), [({"most": 2.0}, True), ({"most": 0.5}, False), ({"least": 2.0}, False)]
)
def test_a_target_is_met_within_its_bound(bound: dict[str, float], expected: bool) -> None:
    assert bench.met({"value": 1.0, **bound}) is expected


def test_people_of_the_shared_task_are_others_for_each_seed_under_one_truth() -> None:
    one, other = shared.Task(seed=0, people=50), shared.Task(seed=1, people=50)
    x, y, part = one.everyone(3)
    assert x.shape == (one.public_size, shared.COLUMNS)
    assert abs(x).max() <= 1
    assert set(y) == {0, 1}
    assert [part.count(name) for name in ("train", "tune", "test")] == [50, one.tune, one.test]
    assert (one.everyone(3)[0] == x).all()
    assert not (other.everyone(3)[0] == x).all()
    everybody = [one.everyone(agency) for agency in range(one.agencies)]
    best = roc_auc_score(
        np.concatenate([y for _, y, _ in everybody]),
        np.concatenate([shared.truth().log_odds(x) for x, _, _ in everybody]),
    )
    assert 0.8 < best < 0.9


def test_every_way_to_train_is_measured_with_what_it_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {
        name: (*settings, "rounds=2", "local.steps=1")
        for name, settings in shared.LINES["small"].ways.items()
    }
    tiny = shared.Line(people=60, model=("model=logistic",), ways=few)
    monkeypatch.setattr(shared, "LINES", {"small": tiny})
    beyond = dataclasses.replace(shared.TARGETS[1], within=-0.5)  # nobody can be better by so much
    monkeypatch.setattr(shared, "TARGETS", (shared.TARGETS[1], beyond))
    with pytest.raises(SystemExit, match="1"):
        shared.main(["--seeds", "1", "--out", str(tmp_path / "shared.json")])
    written = json.loads((tmp_path / "shared.json").read_text())
    rows = {row["name"]: row for row in written["lines"]["small"]}
    assert list(rows) == [shared.PLAIN, shared.OTHERS, shared.OWN, shared.SHARED, shared.CENTRAL]
    assert rows[shared.PLAIN]["epsilon"] is None
    assert all(0.99 < rows[name]["epsilon"] <= 1 for name in list(rows)[1:])
    assert all(row["auc"]["mean"] > 0.5 for row in rows.values())
    spent = written["epsilon"]["small"][shared.SHARED]
    assert spent["public"] < spent["coordinator"] < spent["everybody"]
    target, missed = written["targets"]
    assert target["bound"] == rows[shared.PLAIN]["auc"]["mean"] - 0.025
    assert target["met"] == (rows[shared.SHARED]["auc"]["mean"] >= target["bound"])
    assert not missed["met"]
    assert "MISSED: small" in capsys.readouterr().out


def test_match_keys_miss_about_as_many_as_is_told() -> None:
    """Of people who are at both agencies; the rule of a contract tells it to whoever reads a cohort's size."""
    people = population(20_000, np.random.default_rng(0))
    missed = {row.rule: row.missed for row in matching.rows(people, 4_000, Errors(dates="uk"), "all", [0])}
    for rule, told in MISSED.items():
        assert missed[rule] == pytest.approx(told, abs=0.05)  # 3 standard deviations of 800 people
    assert missed[matching.SOUNDEX] < missed["initial-surname-born"]


def test_the_slips_of_match_keys_are_told_together_and_each_alone(tmp_path: Path) -> None:
    found = matching.measure(tmp_path, people=1_000, sizes=(200,), seeds=1)
    slips = len(dataclasses.fields(Errors)) - 1
    assert (len(found["rows"]), len(found["alone"])) == (4, 4 * slips)
    assert len(matching.shown(found)) == 1 + 4 + 2 + slips
    assert {
        row["missed"]
        for row in found["alone"]
        if row["errors"] == "moved 0.08" and row["rule"] == "identifier"
    } == {0}
