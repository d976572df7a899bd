"""Statistics: quantiles from noised tables, what a person can change in one, what it is charged, what may leave."""

import json
import logging
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tomli_w
import yaml
from command import fedrisk, files_under
from conftest import CONTRACT, MakeStudy, people, permits, write_table
from flwr.app import Message
from flwr.common.serde import message_to_proto, recorddict_to_proto

from clients import node as nodes
from clients.app import make_app, node_from_config
from clients.node import open_node
from clients.records.data import load_values
from experiments import engines
from experiments.engines import LocalGrid, make_node_folders
from experiments.stats import number, stats_plan
from federation import installed, wire
from federation.privacy import epsilon
from federation.protocol import Ready, Reason, Refusal, StatsOrder, StatsPlan, StatsReply
from federation.release import Release
from federation.server.app import job_from_config, run_stats_job
from federation.server.result import RunFacts
from federation.server.rounds import RunError
from federation.server.stats import StatsJob, run_stats
from federation.stats import StatsRequest
from models import quantiles
from models.contract import Contract
from models.quantiles import BINS, CELLS, EDGES, STEPS, ValueTable

CANARY, DEBT = "CANARY9C4E", 7643.2187109  # a text, and a number that nothing else computes
SHARES = (0.01, 0.25, 0.5, 0.75, 0.99)


def table_of(values: np.ndarray, sigma: float = 0.0, seed: int = 0) -> ValueTable:
    noise = np.random.default_rng(seed).normal(0, sigma, CELLS)
    return ValueTable(quantiles.weighted(quantiles.tally(values)) + noise, sigma**2)


def columns(n: int = 5000) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "ages": rng.integers(0, 100, n).astype(float),
        "incomes": rng.lognormal(10, 1, n),
        "around 0": rng.normal(0, 1, n),
        "counts": rng.poisson(0.5, n).astype(float),
        "two values": rng.choice([1.0, 1000.0], n),
        "debts": -rng.lognormal(3, 2, n),
    }


# --- laws -----------------------------------------------------------------------------------------------


def test_the_totals_of_what_leaves_are_those_of_the_histogram() -> None:
    values = columns()["incomes"]
    counts = quantiles.tally(values)
    np.testing.assert_allclose(table_of(values).totals, np.cumsum(counts[:BINS]), atol=1e-8)
    assert counts.sum() == len(values)


def test_agencies_tables_add_up_to_the_pooled_table() -> None:
    values = np.append(columns()["incomes"], [np.nan] * 30)
    parts = [table_of(part, 0.0) for part in np.array_split(np.random.default_rng(2).permutation(values), 5)]
    added = sum(parts[1:], start=parts[0])
    np.testing.assert_allclose(added.sums, table_of(values).sums, atol=1e-9)
    assert (table_of(values, 3.0) + table_of(values, 4.0)).variance == pytest.approx(25.0)
    assert quantiles.missing(added).value == pytest.approx(30 / len(values))
    assert quantiles.people(added).value == pytest.approx(len(values))


@pytest.mark.parametrize("name", list(columns()))
def test_quantiles_and_their_intervals_increase(name: str) -> None:
    table = table_of(columns()[name], 20.0)
    found = [quantiles.quantile(table, share) for share in np.linspace(0.05, 0.95, 37)]
    for key in ("value", "low", "high"):
        ends = [getattr(estimate, key) for estimate in found]
        assert None not in ends
        assert ends == sorted(ends), key
    assert all(e.low <= e.value <= e.high for e in found)  # type: ignore[operator]


@pytest.mark.parametrize("name", list(columns()))
def test_four_times_the_values_are_four_times_the_quantiles(name: str) -> None:
    once, scaled = (table_of(factor * columns()[name], 0.0) for factor in (1, 4))
    for share in SHARES[1:-1]:
        assert quantiles.quantile(scaled, share).value == pytest.approx(
            4 * quantiles.quantile(once, share).value, rel=1e-9, abs=1e-9
        )


def test_the_mirrored_values_have_the_mirrored_quantiles() -> None:
    values = columns()["incomes"]
    for share in SHARES:
        there, back = (
            quantiles.quantile(table_of(v), s).value for v, s in ((values, share), (-values, 1 - share))
        )
        assert there == pytest.approx(-back, rel=0.02)


@pytest.mark.parametrize("name", list(columns()))
def test_without_noise_a_quantile_is_numpys_to_within_a_bin(name: str) -> None:
    values = columns(40_000)[name]
    for share in SHARES:
        exact = np.quantile(values, share, method="inverted_cdf")
        found = quantiles.quantile(table_of(values, 1e-6), share)
        assert found.publishable
        assert found.value is not None
        assert abs(bin_of(found.value) - bin_of(exact)) <= 1
        assert found.low is not None
        assert found.high is not None
        assert bin_of(found.high) - bin_of(found.low) <= 2, (
            "the bin, or two where the share is reached exactly"
        )


def bin_of(value: float) -> int:
    return int(np.searchsorted(EDGES, value, side="right"))


@pytest.mark.parametrize("sigma", [7.4, 30.0])
@pytest.mark.parametrize("name", ["ages", "incomes", "around 0", "debts"])
def test_intervals_cover_the_truth_about_as_often_as_they_say(name: str, sigma: float) -> None:
    """Measured 0.96 to 1: bins round the ends outward. The truth is the quantile of the people in the table."""
    values, covered, shown = columns()[name], [], 0
    for share in (0.1, 0.5, 0.9):
        truth = np.quantile(values, share, method="inverted_cdf")
        for seed in range(100):
            found = quantiles.quantile(table_of(values, sigma, seed), share)
            covered.append((found.low or -np.inf) <= truth <= (np.inf if found.high is None else found.high))
            shown += found.publishable
    assert np.mean(covered) >= 0.95
    assert shown >= 280, "the control: these are no empty claims"


def test_the_noise_of_the_totals_is_what_it_is_said_to_be_and_little() -> None:
    empty = np.zeros(0)
    totals = np.array([table_of(empty, 1.0, seed).totals for seed in range(400)])
    said = table_of(empty, 1.0).std(quantiles._root())
    np.testing.assert_allclose(totals.std(axis=0), said, rtol=0.25)
    assert said.max() == pytest.approx(3.25, abs=0.01)
    assert said.max() < np.sqrt(BINS) / 9, "a histogram's totals would have the noise of all bins"


def test_increasing_is_the_least_squares_fit() -> None:
    from sklearn.isotonic import IsotonicRegression

    values = np.random.default_rng(3).normal(0, 1, 200).cumsum()
    expected = IsotonicRegression().fit_transform(np.arange(200), values)
    np.testing.assert_allclose(quantiles.increasing(values), expected)


# --- what one person can change -------------------------------------------------------------------------

ODD = [np.nan, np.inf, -np.inf, 0.0, -0.0, 5e-324, -1e-9, 1.0, -1.0, 2.0**40, -(2.0**40), 1e300, -1.7e308]


def test_one_person_moves_the_table_by_at_most_1_whatever_the_value() -> None:
    everybody = np.append(columns()["incomes"], ODD)
    with_all = quantiles.weighted(quantiles.tally(everybody))
    for i in [*range(3), *range(len(everybody) - len(ODD), len(everybody))]:
        without = quantiles.weighted(quantiles.tally(np.delete(everybody, i)))
        assert 0 < np.linalg.norm(with_all - without) <= 1 + 1e-9
    moved = np.array([quantiles.weighted(cell) for cell in np.eye(CELLS)])
    assert np.linalg.norm(moved, axis=1).max() == pytest.approx(1.0, abs=1e-12)


def test_what_is_beyond_the_grid_has_no_bound() -> None:
    table = table_of(np.array([np.inf] * 90 + [-np.inf] * 10), 0.1)
    estimate = quantiles.quantile(table, 0.5)
    assert (estimate.value, estimate.high, estimate.publishable) == (None, None, False)
    assert quantiles.bounds(table) is None


def test_a_person_counts_once_by_the_most_recent_row(tmp_path: Path) -> None:
    contract = Contract.from_dict(
        CONTRACT | {"unit": {"kind": "person", "column": "person", "rows": 3, "order_by": "when"}}
    )
    rows = [{"person": f"p{i}", "when": 1, "debt": 10.0 * (i + 1)} for i in range(60)]
    write_table(tmp_path / "few.csv", rows)
    more = [{"person": "new", "when": when, "debt": when * 1e6} for when in (5, 9, 7)]
    write_table(tmp_path / "more.csv", [*more, *rows])
    few, many = (
        load_values(contract, tmp_path / f"{name}.csv", "debt", "police", min_people=50)
        for name in ("few", "more")
    )
    assert (len(few), len(many)) == (60, 61)
    assert 9e6 in many
    moved = quantiles.weighted(quantiles.tally(many)) - quantiles.weighted(quantiles.tally(few))
    assert np.linalg.norm(moved) <= 1 + 1e-9


# --- a suggestion for the contract ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "down", "up"),
    [
        (97.3, 97, 98),
        (-97.3, -98, -97),
        (0.0, 0, 0),
        (0.00123, 0.0012, 0.0013),
        (123456.0, 120000, 130000),
        (99.5, 99, 100),
    ],
)
def test_bounds_are_rounded_outward(value: float, down: float, up: float) -> None:
    assert (quantiles.outward(value, up=False), quantiles.outward(value, up=True)) == (down, up)


@pytest.mark.parametrize("sigma", [0.01, 7.4])
@pytest.mark.parametrize("name", ["ages", "incomes", "around 0", "counts", "two values", "debts"])
def test_suggested_bounds_clip_about_as_many_as_they_say(name: str, sigma: float) -> None:
    values = columns()[name]
    found = [quantiles.bounds(table_of(values, sigma, seed)) for seed in range(20)]
    outside = [b and float(((values < b.min) | (values > b.max)).mean()) for b in found]
    assert None not in outside
    assert max(outside) <= 0.05  # type: ignore[type-var]
    assert np.mean([o <= b.clipped_at_most for o, b in zip(outside, found, strict=True)]) >= 0.9  # type: ignore[operator, union-attr]
    assert all(b.max - b.min <= 3 * np.ptp(values) for b in found if b)


def test_nothing_is_suggested_of_noise_or_of_one_value() -> None:
    assert quantiles.bounds(table_of(np.arange(60.0), 40.0)) is None
    assert quantiles.quantile(table_of(np.arange(60.0), 40.0), 0.5) == quantiles.NOTHING
    assert quantiles.bounds(table_of(np.zeros(5000), 2.0)) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0"), (1.0443, "1.04"), (15049.7, "15,000"), (3.2e12, "3.2e+12"), (-140.2, "-140")],
)
def test_numbers_are_shown_with_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


# --- the node -------------------------------------------------------------------------------------------

POLICY = permits(
    stats_columns=["debt", "age", "person", "sex", "visits", "note"],
    budget={"life": 3.0, "delta": 1e-5},
)
NODE = {
    "name": "north",
    "kind": "police",
    "table": "north.csv",
    "contract": "contract.yaml",
    "public_size": 300,
}


@pytest.fixture
def plan(make_study: MakeStudy) -> StatsPlan:
    """A deployed order for a column that the contract does not know."""
    return stats_plan(make_study().experiment, "run-1", "debt", 0.5, simulation=False)


def rows_with_debt(seed: int = 0, n: int = 300) -> list[dict[str, object]]:
    rng = np.random.default_rng(seed)
    extra = {"debt": rng.lognormal(6, 1, n).round(2), "note": [f"n{i}" for i in range(n)]}
    return [row | {k: v[i] for k, v in extra.items()} for i, row in enumerate(people(seed, n))]


def deployed(folder: Path, policy: dict[str, Any] = POLICY, rows: Sequence[dict[str, object]] = ()) -> Path:
    """A node's folder; without `rows` it has no table, and a node that looks for it says so."""
    folder.mkdir(parents=True)
    (folder / "policy.toml").write_text(tomli_w.dumps(policy))
    (folder / "node.toml").write_text(tomli_w.dumps(NODE))
    (folder / "contract.yaml").write_text(yaml.safe_dump(CONTRACT, sort_keys=False))
    if rows:
        write_table(folder / "north.csv", list(rows))
    return folder


def ask(folder: Path, plan: StatsPlan) -> Any:
    grid = LocalGrid(make_app(node_from_config), [{"node-dir": str(folder)}])
    (reply,) = grid.pull_messages(grid.push_messages([wire.pack_stats_order(StatsOrder(plan), 1)]))
    return wire.read_reply(reply)


def charged(folder: Path) -> list[Release]:
    entries = open_node(folder).ledger.entries()
    return [entry.releases[0] for entry in entries if entry.action == "charge"]  # type: ignore[misc]


def test_an_order_and_a_reply_survive_the_trip(plan: StatsPlan) -> None:
    message = wire.pack_stats_order(StatsOrder(plan, {}), 7)
    assert wire.read_stats_order(message) == StatsOrder(plan, {})
    sent = StatsReply("north", np.arange(CELLS, dtype=np.float64), (plan.release(),))
    got = wire.read_reply(wire.pack_reply(sent, message))
    assert isinstance(got, StatsReply)
    np.testing.assert_array_equal(got.sums, sent.sums)
    assert (got.agency, got.releases, got.head) == ("north", sent.releases, None)


def test_a_table_is_charged_once_as_one_release_over_all(tmp_path: Path, plan: StatsPlan) -> None:
    folder = deployed(tmp_path / "node", rows=rows_with_debt())
    reply = ask(folder, plan)
    assert isinstance(reply, StatsReply)
    node = open_node(folder)
    (release,) = charged(folder)
    assert (release.kind, release.part, release.noise_multiplier) == ("stats", "all", plan.sigma)
    assert release.split_id == node._split_id(plan)
    (order_id,) = {entry.order_id for entry in node.ledger.entries() if entry.action == "charge"}
    assert order_id == f"run-1/stats/debt#{plan.sha256}"
    assert node.ledger.epsilon(plan.delta) == pytest.approx(0.5, abs=0.001)
    assert reply.releases == (plan.release(),)
    assert reply.head == node.head


def test_the_split_is_that_of_a_training_with_the_same_fractions(
    tmp_path: Path, plan: StatsPlan, make_study: MakeStudy
) -> None:
    """So the ledger knows that both are about the same people: all, and the worst part."""
    training = make_study().experiment.plan("run-2", simulation=False)
    node = open_node(deployed(tmp_path / "node"))
    assert node._split_id(plan) == node._split_id(training)
    assert node._split_id(plan) != node._split_id(plan.but(tune_fraction=0.1))
    together = epsilon([plan.release(), *training.releases()], plan.delta)
    assert (
        epsilon(training.releases(), plan.delta) < together < 0.5 + epsilon(training.releases(), plan.delta)
    )


def test_it_is_charged_before_the_noise_is_drawn(
    tmp_path: Path, plan: StatsPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = deployed(tmp_path / "node", rows=rows_with_debt())
    seen: list[int] = []

    def watched(stream: object, n: int, variance: int) -> np.ndarray:
        seen.append(len(charged(folder)))
        raise OSError("the power fails here")

    monkeypatch.setattr(nodes.randomness, "discrete_gaussian", watched)
    assert ask(folder, plan) == Refusal("north", Reason.UNAVAILABLE)
    assert seen == [1]
    assert len(charged(folder)) == 1, "a crash wastes budget and never hides spending"


def test_deployed_noise_differs_each_time_and_has_the_size_it_says(tmp_path: Path, plan: StatsPlan) -> None:
    folder = deployed(tmp_path / "node", POLICY | {"budget": {"life": 50.0, "delta": 1e-5}}, rows_with_debt())
    first, second = (ask(folder, plan.but(run_id=run)).sums for run in ("run-1", "run-2"))
    assert np.std(first - second) == pytest.approx(plan.sigma * 2**0.5, rel=0.1)
    assert len(charged(folder)) == 2


def test_what_a_node_sends_is_whole_steps_repeats_with_a_seed_and_is_its_own(
    make_study: MakeStudy, folder: Path
) -> None:
    """Before the noise the sums are no whole steps: their low bits are the histogram."""
    plant(folder)
    _, plan, homes = simulated(make_study, folder)
    exact = [quantiles.weighted(quantiles.tally(open_node(home)._values("debt"))) for home in homes[:2]]
    assert not any(np.array_equal(np.rint(sums * STEPS), sums * STEPS) for sums in exact)
    other = [plan.but(seed=plan.seed + 1), plan.but(seed=None), plan.but(seed=None)]  # type: ignore[operator]
    asked = [(homes[0], plan), (homes[1], plan), *((homes[0], each) for each in other)]
    sent = [ask(home, each).sums for home, each in asked]
    for sums in sent:
        np.testing.assert_array_equal(sums * STEPS, np.rint(sums * STEPS))
    np.testing.assert_array_equal(ask(homes[0], plan).sums, sent[0])
    grids = [np.rint(exact[home == homes[1]] * STEPS) for home, _ in asked]
    noises = [sums * STEPS - grid for sums, grid in zip(sent, grids, strict=True)]
    for i, one in enumerate(noises):
        assert np.std(one) == pytest.approx(plan.sigma * STEPS, rel=0.15)
        assert all(np.mean(one == before) < 0.01 for before in noises[:i])


Change = Callable[[StatsPlan], StatsPlan]
REFUSALS: dict[str, tuple[dict[str, Any], Change, Reason, str]] = {
    "another purpose": ({}, lambda p: p.but(purpose="ranking"), Reason.PURPOSE, "purposes"),
    "a column that is not listed": ({}, lambda p: p.but(column="rent"), Reason.CONTRACT, "stats_columns"),
    "no column listed": ({"stats_columns": []}, lambda p: p, Reason.CONTRACT, "stats_columns"),
    "the id": ({}, lambda p: p.but(column="person"), Reason.CONTRACT, "the id of a person"),
    "a group": ({}, lambda p: p.but(column="sex"), Reason.CONTRACT, "the group sex"),
    "the label": (
        {"stats_columns": ["outcome"]},
        lambda p: p.but(column="outcome"),
        Reason.CONTRACT,
        "the label",
    ),
    "another's block": ({}, lambda p: p.but(column="visits"), Reason.CONTRACT, "does not hold"),
    "too few agencies": ({"min_agencies": 4}, lambda p: p, Reason.CONTRACT, "min_agencies"),
    "a seed": ({}, lambda p: p.but(seed=0), Reason.PRIVACY, "simulation"),
    "little noise": ({"min_table_sigma": 9.0}, lambda p: p, Reason.PRIVACY, "min_table_sigma"),
    "more noise than can be drawn": ({}, lambda p: p.but(sigma=2100.0), Reason.MALFORMED, "can be drawn"),
    "a large delta": ({"max_delta": 1e-6}, lambda p: p, Reason.PRIVACY, "max_delta"),
    "no budget": ({"budget": None}, lambda p: p, Reason.BUDGET, "budget"),
    "another contract": ({}, lambda p: p.but(contract_sha256="0" * 64), Reason.CONTRACT, "contract"),
    "another size": (
        {},
        lambda p: p.but(participants=[q.but(public_size=301) for q in p.participants]),
        Reason.CONTRACT,
        "public_size",
    ),
    "not listed": (
        {},
        lambda p: p.but(participants=[q for q in p.participants if q.name != "north"]),
        Reason.CONTRACT,
        "does not list",
    ),
    "another version": ({}, lambda p: p.but(version="99"), Reason.VERSION, "protocol '99'"),
}


@pytest.mark.parametrize("case", list(REFUSALS))
def test_a_rule_refuses_with_its_reason_before_a_record_is_read(
    case: str, tmp_path: Path, plan: StatsPlan
) -> None:
    """There is no table in the folder: a node that looked for one would be UNAVAILABLE."""
    changes, change, reason, deciding = REFUSALS[case]
    policy = {key: value for key, value in (POLICY | changes).items() if value is not None}
    folder = deployed(tmp_path / "node", policy)
    assert ask(folder, change(plan)) == Refusal("north", reason)
    assert [entry.action for entry in open_node(folder).ledger.entries()] == ["people"]
    assert not (folder / "split.key").exists()
    (line,) = (folder / "log" / "node.log").read_text().splitlines()
    assert f"refused, {reason}" in line
    assert deciding in line


def test_a_budget_that_would_be_exceeded_is_refused_and_nothing_is_charged(
    tmp_path: Path, plan: StatsPlan
) -> None:
    folder = deployed(tmp_path / "node", POLICY | {"budget": {"life": 0.4, "delta": 1e-5}}, rows_with_debt())
    assert ask(folder, plan) == Refusal("north", Reason.BUDGET)
    assert [entry.action for entry in open_node(folder).ledger.entries()] == ["people"]


def test_training_that_fits_by_itself_is_refused_after_a_statistic(
    tmp_path: Path, make_study: MakeStudy
) -> None:
    experiment = make_study("privacy.epsilon=2.5").experiment
    training = wire.pack_ready_order(experiment.plan("run-2", simulation=False), 1)
    for name, before, kind in (("alone", 0, Ready), ("after", 1, Refusal)):
        folder = deployed(tmp_path / name, POLICY | {"models": ["logistic"]}, rows_with_debt())
        for _ in range(before):
            order = stats_plan(experiment, "run-1", "debt", 2.0, simulation=False)
            assert isinstance(ask(folder, order), StatsReply)
        grid = LocalGrid(make_app(node_from_config), [{"node-dir": str(folder)}])
        (reply,) = grid.pull_messages(grid.push_messages([training]))
        assert isinstance(wire.read_reply(reply), kind)
    assert wire.read_reply(reply) == Refusal("north", Reason.BUDGET)


def no_table(folder: Path) -> None:
    (folder / "north.csv").unlink()


def without_debt(folder: Path) -> None:
    write_table(folder / "north.csv", rows_with_debt(), ("debt",))


def text_debt(folder: Path) -> None:
    write_table(folder / "north.csv", [row | {"debt": CANARY} for row in rows_with_debt()])


def few_people(folder: Path) -> None:
    write_table(folder / "north.csv", rows_with_debt(0, 49))


def no_ids(folder: Path) -> None:
    write_table(folder / "north.csv", [row | {"person": ""} for row in rows_with_debt()])


@pytest.mark.parametrize("spoil", [no_table, without_debt, text_debt, few_people, no_ids])
def test_what_depends_on_the_table_is_unavailable_and_costs_nothing(
    spoil: Callable[[Path], None], tmp_path: Path, plan: StatsPlan
) -> None:
    folder = deployed(tmp_path / "node", rows=rows_with_debt())
    spoil(folder)
    assert ask(folder, plan) == Refusal("north", Reason.UNAVAILABLE)
    assert charged(folder) == []
    assert CANARY not in (folder / "log" / "node.log").read_text()


@pytest.mark.parametrize(
    "spoil", [lambda text: text[:-1], lambda text: text.replace('"sigma"', '"sgima"'), lambda text: None]
)
def test_an_order_that_does_not_decode_is_malformed(
    tmp_path: Path, plan: StatsPlan, spoil: Callable[[str], str | None]
) -> None:
    from flwr.app import ConfigRecord

    message = wire.pack_stats_order(StatsOrder(plan), 1)
    message.content["fedrisk"] = ConfigRecord(
        {"json": json.dumps({"plan": spoil(plan.canonical), "heads": {}})}
    )
    grid = LocalGrid(make_app(node_from_config), [{"node-dir": str(deployed(tmp_path / "node"))}])
    (reply,) = grid.pull_messages(grid.push_messages([message]))
    assert wire.read_reply(reply) == Refusal("north", Reason.MALFORMED)


# --- what leaves ----------------------------------------------------------------------------------------

SENT: list[bytes] = []


class Wiretap(LocalGrid):
    """Keeps every message as the bytes that Flower would send."""

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        SENT.extend(message_to_proto(message).SerializeToString() for message in messages)
        return list(super().push_messages(messages))

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        found = list(super().pull_messages(message_ids))
        SENT.extend(message_to_proto(message).SerializeToString() for message in found)
        return found


def plant(folder: Path, n: int = 300) -> None:
    """Debts, of which every tenth is the canary number, and canary texts around them."""
    for seed, name in enumerate(("north", "clinic", "south")):
        rows = rows_with_debt(seed, n)
        for i, row in enumerate(rows):
            row |= {"note": CANARY, "person": f"{CANARY}-{seed}-{i}"} | (
                {"debt": DEBT} if i % 10 == 0 else {}
            )
        write_table(folder / f"{name}.csv", rows)


def words(folder: Path, *more: str) -> list[str]:
    own = [
        "experiment=own",
        f"data.agencies={folder}/agencies.yaml",
        "name=small",
        f"output={folder}/outputs",
    ]
    return ["stats", "debt", *own, *more]


def test_no_canary_leaves_is_logged_printed_or_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SENT.clear()
    plant(folder)
    monkeypatch.setattr(engines, "LocalGrid", Wiretap)
    done = fedrisk(*words(folder, "--epsilon", "3"))
    assert (done.code, done.err) == (0, "")
    assert len(SENT) == 6
    marks = [CANARY.encode(), b"7643.21", struct.pack("<d", DEBT), struct.pack("<f", DEBT)]
    logs = {path: path.read_bytes() for path in folder.rglob("node.log")}
    assert len(logs) == 3
    written = files_under(folder / "outputs")
    for content in [*SENT, done.out.encode(), *logs.values(), *written.values()]:
        assert [mark for mark in marks if mark in content] == []
    assert all(mark in (folder / "north.csv").read_bytes() for mark in marks[:2]), "the control"


def test_a_reply_is_as_long_whatever_the_table_holds(tmp_path: Path, plan: StatsPlan) -> None:
    sizes = set()
    for name, rows in {
        "few": rows_with_debt(0, 60),
        "many": rows_with_debt(0, 700),
        "none": [row | {"debt": "" if i else 1} for i, row in enumerate(rows_with_debt())],
        "huge": [row | {"debt": "1e300"} for row in rows_with_debt()],
    }.items():
        SENT.clear()
        grid = Wiretap(make_app(node_from_config), [{"node-dir": str(deployed(tmp_path / name, rows=rows))}])
        grid.pull_messages(grid.push_messages([wire.pack_stats_order(StatsOrder(plan), 1)]))
        reply = grid.pull_messages(grid.push_messages([wire.pack_stats_order(StatsOrder(plan), 1)]))[0]
        read = wire.read_reply(reply)
        assert isinstance(read, StatsReply)
        assert (read.sums.shape, read.sums.dtype) == ((CELLS,), "float64")
        sizes.add(len(recorddict_to_proto(reply.content).SerializeToString()))
    assert len(sizes) == 1


# --- the coordinator ------------------------------------------------------------------------------------


def simulated(make_study: MakeStudy, folder: Path, *overrides: str) -> tuple[Any, StatsPlan, list[Path]]:
    study = make_study("join_timeout=0.1", "round_timeout=0.2", *overrides)
    homes = make_node_folders(
        study.agencies,
        study.experiment.contract,
        folder / "run" / "nodes",
        seed=0,
        min_people=50,
        stats_columns=["debt"],
    )
    return study.experiment, stats_plan(study.experiment, "run-1", "debt", 0.5, simulation=True), homes


def run(experiment: Any, plan: StatsPlan, homes: Sequence[Path], folder: Path) -> dict[str, Any]:
    grid = LocalGrid(make_app(node_from_config), [{"node-dir": str(home)} for home in homes])
    request = StatsRequest(plan=plan, shares=SHARES)
    return run_stats(grid, StatsJob(experiment, RunFacts("run-1", "local", True), folder / "run", request))


def test_an_agency_that_is_absent_or_refuses_is_named_and_the_others_count(
    make_study: MakeStudy, folder: Path
) -> None:
    plant(folder)
    experiment, plan, homes = simulated(make_study, folder)
    (homes[1] / "policy.toml").write_text(tomli_w.dumps({"simulation": True, "purposes": ["early-warning"]}))
    found = run(experiment, plan, homes[:2], folder)
    status = {name: (facts["status"], facts["epsilon"] > 0) for name, facts in found["agencies"].items()}
    assert status == {"north": ("counted", True), "clinic": ("refused", False), "south": ("late", True)}
    assert found["people"]["value"] == pytest.approx(300, abs=100)
    assert found["table"]["variance"] == pytest.approx(quantiles.variance_of(plan.sigma))
    assert set(found["privacy"]["epsilon_at_several_agencies"]) == {"1", "2"}


def test_too_few_agencies_are_one_sentence(make_study: MakeStudy, folder: Path) -> None:
    plant(folder)
    experiment, plan, homes = simulated(make_study, folder, "min_agencies=3")
    with pytest.raises(RunError) as stopped:
        run(experiment, plan, homes[:2], folder)
    assert str(stopped.value) == (
        "fewer agencies sent a table of 'debt' than the 3 that min_agencies asks for; not in: south (late: did not "
        "answer). Each agency's own log says why"
    )


WRONG: dict[str, Callable[[StatsReply], StatsReply]] = {
    "sums must have shape": lambda r: StatsReply(r.agency, r.sums[:-1], r.releases),
    "sums has NaN": lambda r: StatsReply(r.agency, r.sums * np.nan, r.releases),
    "charged as something else": lambda r: StatsReply(r.agency, r.sums, ()),
}


@pytest.mark.parametrize("rule", list(WRONG))
def test_a_reply_that_is_not_as_agreed_is_rejected_and_named(
    rule: str, make_study: MakeStudy, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(folder)
    experiment, plan, homes = simulated(make_study, folder)
    honest = nodes.Node.stats

    def lying(self: nodes.Node, order: StatsOrder) -> StatsReply:
        reply = honest(self, order)
        return WRONG[rule](reply) if reply.agency == "south" else reply

    monkeypatch.setattr(nodes.Node, "stats", lying)
    found = run(experiment, plan, homes, folder)
    assert found["agencies"]["south"]["status"] == "rejected"
    assert rule in found["agencies"]["south"]["reason"]
    assert found["people"]["value"] == pytest.approx(600, abs=150)


# --- the command ----------------------------------------------------------------------------------------


def test_the_command_suggests_bounds_for_a_column_that_is_not_in_the_contract(folder: Path) -> None:
    plant(folder, 2000)
    done = fedrisk(*words(folder, "--epsilon", "2", "seed=3"))
    assert (done.code, done.err) == (0, "")
    (home,) = (folder / "outputs").iterdir()
    assert f"result  {home}/stats.json" in done.out
    assert "for the contract  min: " in done.out
    assert "of people, at most" in done.out
    line = next(line for line in done.out.splitlines() if line.startswith("privacy "))
    for said in (
        "ε = 2.00 at most for one person at one agency",
        "add-or-remove",
        "δ = 1e-05",
        "RDP",
        "adds to",
    ):
        assert said in line
    found = json.loads((home / "stats.json").read_text())
    values = np.concatenate([[float(str(row["debt"])) for row in rows_with_debt(s, 2000)] for s in range(3)])
    values = np.where(np.arange(6000) % 2000 % 10 == 0, DEBT, values)
    for row in found["quantiles"]:
        exact = np.quantile(values, row["share"], method="inverted_cdf")
        assert (row["low"] or -np.inf) <= exact <= (row["high"] or np.inf)
    bounds = found["suggestion"]
    assert ((values < bounds["min"]) | (values > bounds["max"])).mean() <= bounds["clipped_at_most"] <= 0.2
    assert {facts["status"] for facts in found["agencies"].values()} == {"counted"}
    restored = ValueTable(np.array(found["table"]["sums"]), found["table"]["variance"])
    assert quantiles.quantile(restored, 0.5).value == found["quantiles"][2]["value"]


def test_json_is_one_object_and_repeats_with_its_seed(folder: Path) -> None:
    plant(folder)
    once, again = (json.loads(fedrisk(*words(folder, "--json")).out) for _ in range(2))
    assert once["table"] == again["table"]
    other = json.loads(fedrisk(*words(folder, "--json", "seed=1", "--quantiles", "0.5")).out)
    assert other["table"] != once["table"]
    assert [row["share"] for row in other["quantiles"]] == [0.5]


def test_a_contract_of_rows_is_never_said_to_be_about_persons(folder: Path) -> None:
    plant(folder)
    contract = yaml.safe_load((folder / "contract.yaml").read_text()) | {"unit": {"kind": "row"}}
    (folder / "contract.yaml").write_text(yaml.safe_dump(contract, sort_keys=False))
    done = fedrisk(*words(folder))
    assert (done.code, done.err) == (0, "")
    assert "one row at one agency" in done.out
    assert "person" not in done.out
    assert "people" not in done.out


def test_a_block_is_asked_of_its_holders_alone(folder: Path) -> None:
    done = fedrisk("stats", "visits", *words(folder)[2:], "--json", "--epsilon", "2")
    found = json.loads(done.out)
    status = {name: facts["status"] for name, facts in found["agencies"].items()}
    assert status == {"north": "not held", "clinic": "counted", "south": "not held"}
    assert found["agencies"]["north"]["epsilon"] == 0


def test_an_agency_without_the_column_is_left_out_and_said_so(folder: Path) -> None:
    write_table(folder / "north.csv", rows_with_debt(0))
    done = fedrisk(*words(folder, "--json"))
    assert done.code == 0
    assert done.problems == [
        f"{name} is left out: column 'debt' is not in the table" for name in ("clinic", "south")
    ]
    assert json.loads(done.out)["agencies"]["south"]["status"] == "unavailable"


def test_a_superlink_is_handed_the_whole_order_and_its_server_takes_the_statistic(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `fedrisk stats --superlink` writes, read as the deployed ServerApp reads it, over deployed nodes."""
    handed: dict[str, Any] = {}

    def start_run(superlink: str, config: Mapping[str, str]) -> int:
        handed.update(config)
        return 7

    monkeypatch.setattr(engines, "_start_run", start_run)
    more = ["--superlink", "ours", "--epsilon", "2", "tracking=none", "min_agencies=1", "join_timeout=0.1"]
    done = fedrisk(*words(folder, *more))
    assert (done.code, done.err) == (0, "")
    assert set(handed) <= set(installed.bundle()["tool"]["flwr"]["app"]["config"])
    job = job_from_config(SimpleNamespace(run_config=handed))  # type: ignore[arg-type]
    assert isinstance(job, StatsJob)
    assert job.request.plan.seed is None
    home = deployed(tmp_path / "node", rows=rows_with_debt())
    found = run_stats_job(LocalGrid(make_app(node_from_config), [{"node-dir": str(home)}]), job)
    assert found == json.loads((job.folder / "stats.json").read_text())
    assert f"result  {job.folder}/stats.json" in done.out
    assert {name: facts["status"] for name, facts in found["agencies"].items()} == {
        "north": "counted",
        "clinic": "late",
        "south": "late",
    }
    assert found["privacy"]["ledger"] == "lifetime"
    assert open_node(home).ledger.epsilon(1e-5) == pytest.approx(2.0, abs=0.001)


BAD: dict[str, tuple[list[str], str]] = {
    "absent": (["det"], "no agency's table can be used: column 'det' is not in the table"),
    "text": (["note"], "no agency's table can be used: column 'note' must be a number"),
    "id": (
        ["person"],
        "column 'person' is the id of a person in the contract: statistics are of other columns only",
    ),
    "no share": (
        ["debt", "--quantiles", "0.5,2"],
        "--quantiles must be numbers between 0 and 1, as in 0.01,0.25,0.5,0.75,0.99, got '0.5,2'",
    ),
    "no epsilon": (["debt", "--epsilon", "0"], "--epsilon must be above 0, got 0.0"),
    "little epsilon": (["debt", "--epsilon", "1e-9"], "--epsilon: "),
    "a typo": (
        ["debt", "sed=1"],
        "sed is not a setting: did you mean seed? `fedrisk run --cfg job` shows every setting",
    ),
}


@pytest.mark.parametrize("case", list(BAD))
def test_what_cannot_be_asked_is_one_sentence_and_leaves_nothing(case: str, folder: Path) -> None:
    plant(folder)
    (column, *more), sentence = BAD[case]
    done = fedrisk("stats", column, *words(folder)[2:], *more)
    assert (done.code, done.out) == (1, "")
    (problem,) = done.problems
    assert problem.startswith(sentence)
    assert not list((folder / "outputs").glob("*"))
    logging.getLogger("fedrisk").handlers.clear()
