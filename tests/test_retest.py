"""A model measured again: one charged table, nothing that trains, of exactly the model that was agreed."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from command import Done, fedrisk, small_run
from conftest import CONTRACT, MakeStudy, people, permits, write_agencies, write_table
from fake_result import SECRET
from panels import Signatories
from test_policy import ask, deployed, untouched, zero_weights
from test_registration import PINNED, registered, with_registration

from clients import journal, rules
from clients.ledger import Ledger
from clients.node import open_node
from clients.policy import Policy
from clients.rules import Situation
from experiments.retest import as_agreed
from federation import wire
from federation.decision import Registration
from federation.experiment import Experiment, SettingsError, unlike_registered
from federation.panel.retested import render_retest
from federation.panel.runs import read_run
from federation.plan import Retest
from federation.protocol import Reason, Refusal, Refused, RoundOrder, RoundReply, TrainPlan, weights_digest
from federation.release import Release, SharedRelease
from models.contract import Contract

KINDS = {"north": "police", "clinic": "health", "south": "police"}
RETEST = Retest(of="small-1", weights=weights_digest(zero_weights()))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of three agencies, with privacy; beside it a folder `drifted`, where outcomes are turned round."""
    folder = tmp_path_factory.mktemp("retest")
    return run(folder, "privacy.epsilon=8")


def run(folder: Path, *overrides: str, kinds: dict[str, str] = KINDS, n: int = 900) -> Path:
    write_agencies(folder, kinds, n)
    drifted = folder / "drifted"
    drifted.mkdir()
    write_agencies(drifted, kinds, n)
    for seed, (name, kind) in enumerate(kinds.items()):
        rows = [row | {"outcome": 1 - int(str(row["outcome"]))} for row in people(seed, n)]
        write_table(drifted / f"{name}.csv", rows, () if kind == "health" else ("visits",))
    done = fedrisk(*small_run(folder, "local.learning_rate=2", *overrides), "-q")
    assert done.code == 0, done.err
    (place,) = (folder / "outputs").glob("small-*")
    return place


def retest(place: Path, *more: str) -> tuple[Done, dict[str, Any]]:
    """The command, and what retest.json holds."""
    before = set(place.parent.iterdir())
    done = fedrisk("retest", str(place), *more)
    made = set(place.parent.iterdir()) - before - {place.parent / "data"}
    if done.code not in (0, 3):
        assert not made, "what did not run leaves no folder"
        return done, {}
    (folder,) = made
    found: dict[str, Any] = json.loads((folder / "retest.json").read_text())
    assert found["run_id"] == folder.name
    assert (folder / "retest.html").read_text() == render_retest(found)
    return done, found | {"folder": folder}


def result_of(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / "result.json").read_text())
    return found


# --- what it measures ---------------------------------------------------------------------------------------


def test_without_noise_the_same_records_give_the_same_numbers(tmp_path: Path) -> None:
    place = run(tmp_path, "privacy=none", "rounds=2", n=200)
    _, found = retest(place)
    before, now = (each["final"]["metrics"] for each in (result_of(place), found))
    capacity = now.pop("capacity")
    assert (before.pop("capacity")["chosen_on"], capacity["chosen_on"]) == ("tune", "test")
    assert now == before
    assert found["privacy"]["epsilon_busiest"] is None
    assert (found["due"], found["thresholds"], found["decision"]) == (None, [], None)


def test_the_same_records_give_numbers_within_the_noise_for_one_table_more(finished: Path) -> None:
    done, found = retest(finished, "--threshold", "AUC below 0.6", "--threshold", "a new law")
    assert done.code == 0
    before, now = (each["final"]["metrics"]["overall"] for each in (result_of(finished), found))
    for name in ("auc", "base_rate", "selection_rate", "tpr"):
        assert now[name] != before[name], "the noise is drawn anew"
        assert now[name]["low"] <= before[name]["value"] <= now[name]["high"]
    first, second = found["thresholds"]
    assert (first["verdict"], second["verdict"]) == ("not due", "judged by people")
    assert not first["decided"]
    assert first["then"] == {end: before["auc"][end] for end in ("value", "low", "high")}
    assert found["due"] is False
    assert "Still for people to judge: a new law." in done.out.splitlines()[-1]
    planned = result_of(finished)["privacy"]["test_sigma"]
    one = Release(kind="evaluate", part="test", noise_multiplier=planned, sample_rate=1.0, steps=1)
    for name in KINDS:
        node = found["folder"] / "nodes" / name
        with Ledger(
            node / "ledger.db", budget=None, scope="this run alone", people=f"{name}/people"
        ) as ledger:
            entries = [(entry.action, entry.releases) for entry in ledger.entries() if entry.releases]
        assert [action for action, _ in entries] == ["reserve", "charge"], "no training is reserved"
        assert {replace(release, split_id="") for _, (release,) in entries} == {one}
        lines = journal.read(node)
        ordered = [line.facts for line in lines if line.kind == "ordered"]
        assert {facts["retest_of"] for facts in ordered} == {finished.name}
        assert [line.facts["released"] for line in lines if line.kind == "released"] == [["test table"]]
        assert found["agencies"][name]["status"] == "counted"
        assert found["agencies"][name]["epsilon"]["train"] == 0
        assert found["agencies"][name]["epsilon"]["evaluate"] == pytest.approx(8, rel=0.01)


def test_a_model_that_no_longer_fits_goes_back_to_its_panel(finished: Path) -> None:
    drifted = f"data.agencies={finished.parent.parent}/drifted/agencies.yaml"
    asked = [
        *("--threshold", "AUC below 0.7", "--threshold", "tpr of sex=female below 50%"),
        *(
            "--threshold",
            "selection_rate at agency north below 0.01",
            "--threshold",
            "tpr of sex=other below 0.5",
        ),
    ]
    done, found = retest(finished, drifted, *asked, "--exit-code")
    assert done.code == 3
    assert [each["verdict"] for each in found["thresholds"]] == ["due", "due", "not due", "cannot be told"]
    assert found["due"] is True
    assert found["conclusion"] in done.out
    assert found["conclusion"].startswith("Re-referral is due because the ranking (AUC) is 0.1")
    page = (found["folder"] / "retest.html").read_text()
    assert "Re-referral is due because" in page
    assert "<script" not in page
    assert "http" not in page


def test_behind_masks_one_sum_is_all_that_is_known(tmp_path: Path) -> None:
    kinds = KINDS | {"east": "police"}
    shared = ["strategy=dp_fedsgd", "privacy=shared", "privacy.colluders=1", "privacy.dropouts=1", "rounds=1"]
    place = run(tmp_path, *shared, "evaluation.checkpoints=1", "data.min_people=20", kinds=kinds, n=200)
    _, found = retest(place, "--threshold", "people below 50", "--threshold", "auc at agency north below 0.5")
    assert [each["verdict"] for each in found["thresholds"]] == ["not due", "cannot be told"]
    assert found["final"]["metrics"]["agencies"] == {}
    then, now = (each["final"]["metrics"]["overall"]["people"] for each in (result_of(place), found))
    assert now["low"] <= then["value"] <= now["high"]
    for name in kinds:
        node = found["folder"] / "nodes" / name
        with Ledger(
            node / "ledger.db", budget=None, scope="this run alone", people=f"{name}/people"
        ) as ledger:
            charged = [entry.releases for entry in ledger.entries() if entry.action == "charge"]
        assert [(type(release), release.part) for (release,) in charged] == [(SharedRelease, "test")]
        assert not list((node / "masks").iterdir()), "the secrets went with the one draw"


def test_what_may_not_be_published_is_on_no_page(finished: Path) -> None:
    _, found = retest(finished, "--threshold", "auc below 0.5")
    hidden = dict(zip(("value", "low", "high"), SECRET, strict=True)) | {"publishable": False}
    metrics = found["final"]["metrics"]
    metrics["overall"] = dict.fromkeys(metrics["overall"], hidden)
    page = render_retest(found | {"thresholds": [found["thresholds"][0] | {"found": hidden}]})
    assert not any(f"{number:.3f}" in page for number in SECRET)


# --- whose model, and whose thresholds ------------------------------------------------------------------------


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / finished.name, ignore=shutil.ignore_patterns("nodes")))


def turned(name: str) -> Callable[[Path], None]:
    def turn(place: Path) -> None:
        content = bytearray((place / name).read_bytes())
        content[-1] ^= 1
        (place / name).write_bytes(bytes(content))

    return turn


def other_settings(place: Path) -> None:
    path = place / "experiment.json"
    path.write_text(path.read_text().replace('"seed":0', '"seed":1'))


def other_run(place: Path) -> None:
    path = place / "result.json"
    path.write_text(path.read_text().replace(place.name, "small-2"))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            turned("model/model.safetensors"),
            "model/model.safetensors is not the model that card.json is about",
        ),
        (
            lambda place: (place / "model/model.safetensors").unlink(),
            "model/model.safetensors is missing: name the whole folder",
        ),
        (
            lambda place: (place / "result.json").unlink(),
            "result.json is missing: name the whole folder of a finished run",
        ),
        (lambda place: (place / "model/card.json").write_text("{}"), "card.json: "),
        (lambda place: (place / "experiment.json").unlink(), "experiment.json is missing"),
        (other_settings, "are not of one run: get the run's folder again"),
        (other_run, "are not of one run: get the run's folder again"),
    ],
)
def test_a_folder_that_was_changed_is_refused_by_name(
    copy: Path, spoil: Callable[[Path], None], says: str
) -> None:
    spoil(copy)
    done, _ = retest(copy)
    assert done.code == 1
    assert says in done.problems[0]


def test_the_thresholds_are_those_of_the_decision_on_exactly_this_model(copy: Path) -> None:
    panel = Signatories.of("alice", "bob", quorum=1)
    hashes = read_run(copy).hashes
    approval = panel.approval(
        subject={"run_id": copy.name, **hashes}, rereferral=("AUC below 0.5", "a complaint")
    )
    (copy / "model" / "approval.json").write_text(approval.canonical)
    done, found = retest(copy)
    assert [each["text"] for each in found["thresholds"]] == ["AUC below 0.5", "a complaint"]
    assert {each["decided"] for each in found["thresholds"]} == {True}
    decision = found["decision"]
    assert (decision["decision_sha256"], decision["verified"]) == (approval.decision.digest, False)
    assert "signatures not checked" in done.out
    assert "The signatures were not checked here." in (found["folder"] / "retest.html").read_text()

    other = panel.approval(subject={"run_id": copy.name, **hashes, "weights_sha256": "0" * 64})
    (copy / "model" / "approval.json").write_text(other.canonical)
    done, _ = retest(copy)
    assert done.code == 1
    assert "model.safetensors is not what decision" in done.problems[0]
    done, _ = retest(copy, "--decision", f"{copy}/none.json")
    assert done.problems == [
        f"decision: {copy}/none.json cannot be read: name an approval.json or a panel's folder"
    ]


@pytest.mark.parametrize(
    "override", ["rounds=5", "privacy.epsilon=9", "evaluation.cutoff=0.4", "seed=3", "x"]
)
def test_nothing_that_was_agreed_can_be_changed(finished: Path, override: str) -> None:
    done, _ = retest(finished, override)
    assert done.code == 1
    assert done.problems[0].startswith(
        f"{override!r} cannot be used: a retest measures the model as it was agreed"
    )


def test_only_the_agencies_that_agreed_are_asked(finished: Path, make_study: MakeStudy) -> None:
    experiment = Experiment.model_validate_json((finished / "experiment.json").read_text())
    agencies = make_study("rounds=2").agencies
    agreed = as_agreed(agencies, experiment)
    assert {agency.public_size for agency in agreed} == {900}, "what they declared then"
    with pytest.raises(SettingsError, match="data: the agencies are not those of the run, north differ"):
        as_agreed([agency for agency in agencies if agency.name != "north"], experiment)


def test_a_simulation_and_a_deployed_run_are_told_apart(copy: Path) -> None:
    done = fedrisk("retest", str(copy), "--superlink", str(copy))
    assert done.problems == [f"{copy} is a simulation: leave out --superlink"]
    (copy / "data.json").unlink()
    assert fedrisk("retest", str(copy)).problems == [
        f"{copy} was deployed: name its coordinator with --superlink"
    ]


# --- what an agency agrees to -----------------------------------------------------------------------------------


@pytest.fixture
def plan(make_study: MakeStudy) -> TrainPlan:
    """What deployed nodes are asked."""
    return make_study("rounds=2", "evaluation.checkpoints=1").experiment.retest_plan(
        "run-1", RETEST, simulation=False
    )


def test_a_plan_that_trains_reads_as_before_there_were_retests(make_study: MakeStudy) -> None:
    plan = make_study("rounds=2").experiment.plan("run-1", simulation=False)
    assert "retest" not in json.loads(plan.canonical)
    assert TrainPlan.model_validate_json(plan.canonical) == plan


def test_a_retest_takes_one_table_and_no_more(plan: TrainPlan) -> None:
    assert plan.releases() == (plan.table_release("test"),)
    assert TrainPlan.model_validate_json(plan.canonical) == plan
    for changes in ({"rounds": 1}, {"retest": None}, {"checkpoints": (0,)}):
        with pytest.raises(ValueError, match=r"rounds must be 1 or more|checkpoints must be empty"):
            plan.but(**changes)


def node_of(tmp_path: Path, **policy: Any) -> Path:
    node = {
        "name": "north",
        "kind": "police",
        "table": "north.csv",
        "contract": "contract.yaml",
        "public_size": 300,
    }
    pinned = {"panel": PINNED} if policy.get("registration_required") else {}
    given = permits(**({"budget": {"life": 20.0, "delta": 1e-5}} | policy))
    folder = deployed(tmp_path / "node", given, node | pinned)
    write_table(folder / "north.csv", people(1), ("visits",))
    return folder


@pytest.mark.parametrize(
    "change",
    [
        {"train": True, "evaluate": ()},
        {"train": True, "evaluate": ("test",)},
        {"evaluate": ("tune",)},
        {"evaluate": ("tune", "test")},
        {"evaluate": ()},
        {"round": 2},
        {"weights": {name: values + 1 for name, values in zero_weights().items()}},
    ],
)
def test_a_node_answers_no_other_order_of_a_retest(
    tmp_path: Path, plan: TrainPlan, change: dict[str, Any]
) -> None:
    folder = node_of(tmp_path)
    order = {
        "plan": plan,
        "round": 1,
        "weights": zero_weights(),
        "train": False,
        "evaluate": ("test",),
    } | change
    reply = ask(folder, lambda node: wire.pack_round_order(RoundOrder(**order), node))
    assert isinstance(reply, Refusal)
    assert reply.reason is Reason.MALFORMED
    assert untouched(open_node(folder))


def test_a_node_charges_one_table_however_often_it_is_asked(tmp_path: Path, plan: TrainPlan) -> None:
    folder = node_of(tmp_path)
    order = RoundOrder(plan, 1, zero_weights(), False, ("test",))
    first, again = (ask(folder, lambda node: wire.pack_round_order(order, node)) for _ in range(2))
    assert isinstance(first, RoundReply)
    assert isinstance(again, RoundReply)
    assert (first.tables["test"] == again.tables["test"]).all()
    assert [entry.action for entry in open_node(folder).ledger.entries()].count("charge") == 1


def test_a_budget_that_is_spent_refuses_the_next_retest(tmp_path: Path, make_study: MakeStudy) -> None:
    experiment = make_study("rounds=2", "privacy.epsilon=1").experiment
    folder = node_of(tmp_path, budget={"life": 1.2, "delta": 1e-5})
    replies = []
    for number in (1, 2):
        plan = experiment.retest_plan(f"run-{number}", RETEST, simulation=False)
        order = RoundOrder(plan, 1, zero_weights(), False, ("test",))
        replies.append(ask(folder, lambda node, order=order: wire.pack_round_order(order, node)))
    assert isinstance(replies[0], RoundReply)
    assert isinstance(replies[1], Refusal)
    assert replies[1].reason is Reason.BUDGET


def test_a_policy_may_permit_retests_and_no_training(plan: TrainPlan, make_study: MakeStudy) -> None:
    at = Situation(datetime.now(UTC), Contract.from_dict(CONTRACT))
    training = make_study("rounds=2").experiment.plan("run-1", simulation=False)
    budget = {"life": 20.0, "delta": 1e-5}
    measuring = Policy.model_validate(permits(budget=budget, releases=["evaluate"]))
    rules.review(measuring, plan, at)
    with pytest.raises(Refused, match="releases: the plan takes 'train'"):
        rules.review(measuring, training, at)
    with pytest.raises(Refused, match="releases: the plan takes 'evaluate'"):
        rules.review(Policy.model_validate(permits(budget=budget, releases=["train"])), plan, at)


def test_a_retest_of_a_registered_run_rests_on_its_registration(
    tmp_path: Path, make_study: MakeStudy
) -> None:
    study = make_study("rounds=2", "evaluation.checkpoints=1")
    signed = registered(study)
    plan = with_registration(study, signed).retest_plan("run-1", RETEST, simulation=False)
    folder = node_of(tmp_path, registration_required=True)
    order = RoundOrder(plan, 1, zero_weights(), False, ("test",))
    assert isinstance(ask(folder, lambda node: wire.pack_round_order(order, node)), RoundReply)

    said, contract = signed.read(Registration), study.experiment.data_contract
    assert unlike_registered(plan, said, contract) == []
    louder = plan.but(privacy=plan.privacy.but(test_sigma=plan.privacy.test_sigma / 2))
    assert unlike_registered(louder, said, contract) == ["privacy.test_sigma"]
    assert "purpose" in unlike_registered(plan.but(purpose="ranking"), said, contract)
    unregistered = RoundOrder(plan.but(registration=None), 1, zero_weights(), False, ("test",))
    reply = ask(folder, lambda node: wire.pack_round_order(unregistered, node))
    assert isinstance(reply, Refusal)
    assert reply.reason is Reason.REGISTRATION
