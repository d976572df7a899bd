"""The whole job on three agencies with real tables, nodes and ledgers, in this process and under Ray."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeStudy
from safetensors.numpy import load_file

from clients.app import make_app, node_from_config
from clients.ledger import Ledger
from clients.node import open_node
from experiments import engines
from experiments.config import Study
from federation.privacy import epsilon
from federation.protocol import Weights
from federation.server import checkpoint, rounds
from federation.server.result import RunFacts
from models.features import layout

ROOT = Path(__file__).resolve().parent.parent


def federate(study: Study, folder: Path, grid: type[engines.LocalGrid] = engines.LocalGrid) -> dict[str, Any]:
    """Run `study` in this process without report or tracking."""
    settings = study.experiment.settings
    nodes = engines.make_node_folders(
        study.agencies, study.experiment.contract, folder / "nodes", seed=settings.seed, min_people=20
    )
    network = grid(make_app(node_from_config), [{"node-dir": str(node)} for node in nodes])
    return rounds.run_federation(network, study.experiment, RunFacts("run-1", "local", True), folder)


def ledger_of(folder: Path, name: str) -> Ledger:
    path = folder / "nodes" / name / "ledger.db"
    return Ledger(path, budget=None, scope="this run alone", people=f"{name}/people")


def last(folder: Path) -> Weights:
    found = checkpoint.read_last(folder / "checkpoints")
    assert found is not None
    return found.weights


def same(one: Weights, other: Weights) -> None:
    assert set(one) == set(other)
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name])


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    first = federate(make_study("privacy.sample_rate=0.5"), tmp_path / "a")
    second = federate(make_study("privacy.sample_rate=0.5"), tmp_path / "b")
    same(last(tmp_path / "a"), last(tmp_path / "b"))
    assert first["final"] == second["final"]
    federate(make_study("privacy.sample_rate=0.5", "seed=1"), tmp_path / "c")
    assert any((last(tmp_path / "a")[n] != last(tmp_path / "c")[n]).any() for n in last(tmp_path / "a"))


def test_the_order_of_agencies_does_not_matter(make_study: MakeStudy, folder: Path, tmp_path: Path) -> None:
    federate(make_study(), tmp_path / "a")
    study = make_study()
    backwards = Study(study.experiment, study.data, study.agencies[::-1], study.compare)
    federate(backwards, tmp_path / "b")
    same(last(tmp_path / "a"), last(tmp_path / "b"))


class Stops(engines.LocalGrid):
    """A coordinator that dies when it asks for the third round's replies."""

    def push_messages(self, messages: Any) -> Any:
        messages = list(messages)
        if messages and messages[0].metadata.group_id == "3":
            raise KeyboardInterrupt
        return super().push_messages(messages)


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedprox", "fedadam", "fedyogi"])
def test_a_run_that_was_stopped_resumes_to_the_same_weights(
    make_study: MakeStudy, tmp_path: Path, strategy: str
) -> None:
    study = make_study(f"strategy={strategy}", "model=mlp", "model.hidden=[4]")
    whole = federate(study, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        federate(study, tmp_path / "stopped", Stops)
    resumed = federate(study, tmp_path / "stopped")
    same(last(tmp_path / "whole"), last(tmp_path / "stopped"))
    assert resumed["final"]["metrics"] == whole["final"]["metrics"]
    assert [record["round"] for record in resumed["rounds"]] == [1, 2, 3, 4]


class DiesAfterSending(engines.LocalGrid):
    """A coordinator that dies when the agencies have done the order of round `dies_at`, and charged it."""

    dies_at = "3"

    def pull_messages(self, message_ids: Any) -> Any:
        found = super().pull_messages(message_ids)
        if found and found[0].metadata.group_id == self.dies_at:
            raise KeyboardInterrupt
        return found


class DiesAtTheEnd(DiesAfterSending):
    dies_at = "5"


@pytest.mark.parametrize("dies", [DiesAfterSending, DiesAtTheEnd, Stops])
def test_a_round_that_was_lost_was_charged_and_the_result_says_so(
    make_study: MakeStudy, tmp_path: Path, dies: type[engines.LocalGrid]
) -> None:
    """ε of the result is the ledger's, or more where an order was noted and never arrived; never less."""
    study = make_study()
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            federate(study, tmp_path, dies)
    result = federate(study, tmp_path)
    for name in ("north", "clinic", "south"):
        with ledger_of(tmp_path, name) as ledger:
            spent = ledger.epsilon(1e-5)
        said = result["agencies"][name]["epsilon"]["total"]
        assert said > 3.0 or dies is DiesAtTheEnd
        assert said >= spent - 1e-9
        if dies is not Stops:
            assert said == pytest.approx(spent)


def test_every_release_is_in_the_agencys_ledger_and_epsilon_is_composed_over_rounds(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    study = make_study()
    result = federate(study, tmp_path)
    plan = study.experiment.plan("run-1", simulation=True)
    for name in ("north", "clinic", "south"):
        with ledger_of(tmp_path, name) as ledger:
            spent = ledger.epsilon(plan.privacy.delta)
            kinds = [(release.kind, release.part) for release in ledger.releases()]
        assert kinds.count(("train", "train")) == plan.rounds
        assert kinds.count(("evaluate", "tune")) == 2
        assert kinds.count(("evaluate", "test")) == 1
        facts = result["agencies"][name]
        assert facts["epsilon"]["total"] == pytest.approx(spent)
        train = [plan.train_release()] * plan.rounds
        assert facts["epsilon"]["train"] == pytest.approx(epsilon(train, plan.privacy.delta))
        assert facts["epsilon"]["train"] <= 3.0
        assert facts["epsilon"]["train"] > epsilon(train[:1], plan.privacy.delta)


def test_a_non_holder_never_moves_a_block(make_study: MakeStudy, tmp_path: Path) -> None:
    """Only the police take part, who hold no health block: noise and decay leave its weights at zero."""
    study = make_study("local.weight_decay=0.1", "strategy=fedprox")
    police = tuple(agency for agency in study.agencies if agency.kind == "police")
    experiment = study.experiment.but(
        participants=tuple(p for p in study.experiment.participants if p.kind == "police")
    )
    federate(Study(experiment, study.data, police, study.compare), tmp_path)
    features = layout(experiment.data_contract)
    held_elsewhere = [i for i, block in enumerate(features.block) if block == "care"]
    (weight,) = (value for name, value in last(tmp_path).items() if name.endswith("weight"))
    assert held_elsewhere
    assert (weight[..., held_elsewhere] == 0).all()
    rest = [i for i in range(weight.shape[-1]) if i not in held_elsewhere]
    assert (weight[..., rest] != 0).all()


def test_an_agency_without_the_label_does_not_train(
    make_study: MakeStudy, folder: Path, tmp_path: Path
) -> None:
    listing = (
        (folder / "agencies.yaml")
        .read_text()
        .replace("name: north\n  kind: police", "name: north\n  kind: charity")
    )
    listing = listing.replace("kind: police\n  name: north", "kind: charity\n  name: north")
    (folder / "agencies.yaml").write_text(listing)
    result = federate(make_study(), tmp_path)
    assert result["agencies"]["north"]["status"] == "no label"
    assert result["agencies"]["north"]["releases"] == []
    assert result["rounds"][0]["replied"] == ["clinic", "south"]


def test_privacy_none_says_so_everywhere(make_study: MakeStudy, tmp_path: Path) -> None:
    result = federate(make_study("privacy=none"), tmp_path)
    assert result["privacy"]["mechanism"] == "none"
    assert result["privacy"]["epsilon_busiest"] is None
    assert result["final"]["epsilon_busiest"] is None
    assert all(agency["epsilon"]["total"] is None for agency in result["agencies"].values())


def test_without_noise_the_tables_are_the_pooled_truth(make_study: MakeStudy, tmp_path: Path) -> None:
    """Oracle: scikit-learn on the pooled test people, scored with the final weights."""
    from sklearn.metrics import brier_score_loss, roc_auc_score

    study = make_study("privacy=none", "evaluation.bins=50", "evaluation.disclosure=none")
    result = federate(study, tmp_path)
    weights = last(tmp_path)
    score, truth = [], []
    for node in sorted((tmp_path / "nodes").iterdir()):
        x, y, _, _ = open_node(node)._dataset(0.2, 0.2).part("test")
        (w,), (b,) = ([v for n, v in weights.items() if n.endswith(end)] for end in ("weight", "bias"))
        score.append(1 / (1 + np.exp(-(x.numpy() @ w[0] + b[0]))))
        truth.append(y.numpy())
    overall = result["final"]["metrics"]["overall"]
    auc = roc_auc_score(np.concatenate(truth), np.concatenate(score))
    assert abs(overall["auc"]["value"] - auc) <= overall["auc_bound"]["value"] + 1e-9
    assert overall["brier"]["value"] == pytest.approx(
        brier_score_loss(np.concatenate(truth), np.concatenate(score)), abs=0.01
    )
    assert overall["people"]["value"] == len(np.concatenate(truth))
    assert result["disclosure"] == {"profile": "none", "minimum": 1, "rounding": 1}
    assert result["tables"] == "per_agency"


def test_a_result_says_by_which_rule_and_on_whose_tables(make_study: MakeStudy, tmp_path: Path) -> None:
    """The profile of the settings; a capacity's cutoff chosen on tune people; an analysis that is fitted on them."""
    rule = "evaluation.disclosure={minimum: 4, rounding: 2}"
    result = federate(make_study("privacy=none", rule, "evaluation.capacity=0.3"), tmp_path)
    metrics = result["final"]["metrics"]
    assert result["disclosure"] == {"profile": "custom", "minimum": 4, "rounding": 2}
    assert metrics["overall"]["people"]["value"] % 2 == 0
    assert metrics["capacity"]["share"] == 0.3
    assert metrics["capacity"]["chosen_on"] == "tune"
    assert metrics["capacity"]["cutoff"] == result["checkpoints"][-1]["metrics"]["capacity"]["cutoff"]
    trained = {name for name, facts in result["agencies"].items() if facts["status"] == "trained"}
    assert set(result["analysis"]["recalibration"]) == trained == set(metrics["agencies"])
    assert set(result["analysis"]["group_thresholds"]) == set(metrics["groups"])


def test_without_tune_tables_the_cutoff_is_chosen_on_test_and_says_so(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    result = federate(make_study("privacy=none", "evaluation.checkpoints=0", "rounds=1"), tmp_path)
    assert result["final"]["metrics"]["capacity"]["chosen_on"] == "test"
    assert result["analysis"] is None


def fedrisk(folder: Path, *arguments: str) -> list[str]:
    common = ["experiment=own", f"data.agencies={folder}/agencies.yaml", "name=small", "tracking=none"]
    common += [f"output={folder}/outputs", "evaluation.checkpoints=1"]
    return [sys.executable, "-m", "experiments.cli", arguments[0], *common, *arguments[1:]]


@pytest.mark.long
def test_ray_gives_the_same_weights_as_local(folder: Path) -> None:
    """In processes of their own: Ray leaves things open that would be warnings here."""
    weights = []
    for engine in ("local", "ray"):
        command = fedrisk(
            folder, "run", f"engine={engine}", "privacy.sample_rate=0.5", "rounds=2", f"name={engine}"
        )
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
        assert done.returncode == 0, done.stderr
        (home,) = folder.glob(f"outputs/{engine}-*")
        assert json.loads((home / "result.json").read_text())["engine"] == engine
        weights.append(load_file(home / "model" / "model.safetensors"))
    same(*weights)


def heeds_ctrl_c() -> None:
    """A shell starts what is in its background deaf to it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "ctrl-c"])
def test_a_process_that_was_stopped_leaves_a_run_that_resumes(folder: Path, how: signal.Signals) -> None:
    run = subprocess.Popen(
        fedrisk(folder, "run", "--quiet", "rounds=3000"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=heeds_ctrl_c,
    )
    until = time.monotonic() + 120
    while not list(folder.glob("outputs/small-*/checkpoints/round-0002*.safetensors")):
        assert time.monotonic() < until
        assert run.poll() is None, run.communicate()
        time.sleep(0.05)
    run.send_signal(how)
    _, errors = run.communicate(timeout=60)
    (home,) = folder.glob("outputs/small-*")
    if how is signal.SIGINT:
        assert run.returncode == 1
        assert f"fedrisk resume {home.name}" in errors.decode()
        assert "Traceback" not in errors.decode()
    reached = checkpoint.read_last(home / "checkpoints")
    assert reached is not None
    shorten(home, reached.round + 2)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "experiments.cli",
            "resume",
            home.name,
            "--output",
            str(folder / "outputs"),
            "--quiet",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((home / "result.json").read_text())
    assert [record["round"] for record in result["rounds"]] == list(range(1, reached.round + 3))


def shorten(home: Path, total: int) -> None:
    """End the run after `total` rounds: what a test has to wait for is the going on, not the 3,000."""
    experiment = json.loads((home / "experiment.json").read_text())
    experiment["settings"]["rounds"] = total
    from federation.experiment import Experiment, checked

    changed = checked(Experiment, experiment)
    (home / "experiment.json").write_text(changed.canonical)
    found = checkpoint.read_last(home / "checkpoints")
    assert found is not None
    checkpoint.write(
        checkpoint.Checkpoint(
            found.round, changed.sha256, found.weights, found.optimiser, found.tables, found.history
        ),
        home / "checkpoints",
    )
