"""What a panel registered is what runs: an edit voids it, it rides in every order, and each agency writes it down first."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import yaml
from conftest import CONTRACT, MakeStudy, people, permits, write_table
from panels import Signatories
from test_policy import NODE, POLICY, ask, deployed, orders, untouched
from typer.testing import CliRunner

from clients import journal
from clients.desk import decisions
from clients.node import open_node
from experiments.cli import app
from experiments.config import Study, compose, read
from experiments.drafting import QUESTIONS, draft
from experiments.run import run_study
from federation.decision import Answers, Registration, Signed
from federation.experiment import Experiment, SettingsError
from federation.plan import Reason
from federation.protocol import Ready, Refusal, RoundReply

PANEL = Signatories.of("alice", "bob", "chris", quorum=2)
PINNED = json.loads(PANEL.panel.canonical)
QUICK = ("rounds=2", "evaluation.checkpoints=1")


def registered(study: Study, **changes: Any) -> Signed:
    """As the panel makes it of the data scientist's draft."""
    drafted = yaml.safe_load(draft(study.experiment, {}))
    given = drafted | {"panel": PANEL.panel.name, "registered": datetime.now(UTC).isoformat()} | changes
    return PANEL.signed(Registration.model_validate(given))


def with_registration(study: Study, signed: Signed, **changes: Any) -> Experiment:
    values = json.loads(study.experiment.canonical) | changes
    return Experiment.model_validate(values | {"registration": json.loads(signed.canonical)})


# --- what voids it ----------------------------------------------------------------------------------------------------


def test_a_plan_carries_the_registration_of_exactly_its_run(make_study: MakeStudy) -> None:
    study = make_study(*QUICK)
    signed = registered(study)
    plan = with_registration(study, signed).plan("run-1", simulation=False)
    assert plan.registration is not None
    assert plan.registration.digest == signed.digest
    assert plan.sha256 != study.experiment.plan("run-1", simulation=False).sha256


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        ("rounds=3", "rounds"),
        ("seed=1", "seed"),
        ("privacy.epsilon=2.5", "privacy.epsilon"),
        ("local.learning_rate=0.3", "local.learning_rate"),
        ("evaluation.cutoff=0.4", "evaluation.cutoff"),
        ("split.test=0.3", "split.test"),
        ("strategy.server_momentum=0.5", "strategy.server_momentum"),
        ("purpose=ranking", "purpose"),
        ("name=other", "name"),
    ],
)
def test_an_edit_after_the_registration_voids_it(make_study: MakeStudy, edit: str, named: str) -> None:
    signed = registered(make_study(*QUICK))
    with pytest.raises(ValueError, match=rf"registered another run, .*{named}.* differ: an edit after"):
        with_registration(make_study(*QUICK, edit), signed)


@pytest.mark.parametrize("edit", ["round_timeout=9", "patience=3", "tracking.uri=none", "engine=ray"])
def test_how_a_run_is_done_is_not_registered(make_study: MakeStudy, edit: str) -> None:
    signed = registered(make_study(*QUICK))
    assert with_registration(make_study(*QUICK, edit), signed)


def test_agencies_their_weights_groups_and_the_contract_are_registered(make_study: MakeStudy) -> None:
    study = make_study(*QUICK)
    signed = registered(study)
    participants = json.loads(study.experiment.canonical)["participants"]
    lighter = [participants[0] | {"weight": 1.0}, *participants[1:]]
    for changes, named in [
        ({"participants": participants[1:]}, "agencies"),
        ({"participants": lighter}, rf"participants.{participants[0]['name']}.weight"),
        ({"contract": study.experiment.contract | {"version": 2}}, "contract"),
    ]:
        with pytest.raises(ValueError, match=named):
            with_registration(study, signed, **changes)
    with pytest.raises(ValueError, match="groups"):
        with_registration(study, registered(study, groups=["age"]))


@pytest.mark.parametrize(
    ("field", "value"),
    [("outcome", "nothing about crime"), ("horizon", "5 years"), ("purpose", "ranking"), ("experiment", "x")],
)
def test_what_members_read_is_what_the_contract_says(make_study: MakeStudy, field: str, value: str) -> None:
    study = make_study(*QUICK)
    with pytest.raises(ValueError, match=f"registered another run, {field} differ"):
        with_registration(study, registered(study, **{field: value}))


def test_what_nobody_signed_is_no_registration(make_study: MakeStudy) -> None:
    study = make_study(*QUICK)
    with pytest.raises(ValueError, match="nobody has signed it"):
        with_registration(study, registered(study).but(signatures={}))


def test_something_else_that_the_panel_signed_is_no_registration(make_study: MakeStudy) -> None:
    with pytest.raises(ValueError, match="a registration is needed here, this is a status"):
        with_registration(make_study(*QUICK), PANEL.signed(PANEL.status("0" * 64)))


def test_a_file_that_is_none_is_one_sentence(make_study: MakeStudy, tmp_path: Path) -> None:
    common = ["experiment=own", f"data.agencies={tmp_path}/agencies.yaml", "name=small"]
    with pytest.raises(SettingsError, match=r"cannot be read: name the registration\.json"):
        read(compose([*common, f"registration={tmp_path}/none.json"]))
    (tmp_path / "half.json").write_text("{")
    with pytest.raises(SettingsError, match=r"half\.json: this is not a signed statement"):
        read(compose([*common, f"registration={tmp_path}/half.json"]))


# --- the journey --------------------------------------------------------------------------------------------------------


def test_draft_sign_run_and_every_node_has_it_in_its_journal_before_it_trained(folder: Path) -> None:
    overrides = ["experiment=own", f"data.agencies={folder}/agencies.yaml", "name=small", "tracking=none"]
    overrides += [f"output={folder}/outputs", *QUICK]
    file = folder / "registration.yaml"
    done = CliRunner().invoke(app, ["draft", *overrides, "--out", str(file)])
    assert done.exit_code == 0, done.output
    drafted = yaml.safe_load(file.read_text())
    assert set(drafted["answers"]) == set(QUESTIONS) == set(Answers.model_fields)
    given = drafted | {"panel": PANEL.panel.name, "registered": datetime.now(UTC).isoformat()}
    signed = PANEL.signed(Registration.model_validate(given))
    (folder / "registration.json").write_text(signed.canonical)

    study = read(compose([*overrides, f"registration={folder}/registration.json"]))
    result = run_study(study)
    assert result["registration"] == {"sha256": signed.digest, "signed": json.loads(signed.canonical)}
    (run,) = (folder / "outputs").glob("small-*")
    for name in ("north", "clinic", "south"):
        lines = journal.read(run / "nodes" / name)
        ordered = [line for line in lines if line.kind == "ordered"]
        assert ordered
        assert {line.facts["registration"] for line in ordered} == {signed.digest}

    again = CliRunner().invoke(app, ["draft", *overrides, "--out", str(file)])
    assert again.exit_code == 1
    assert "exists: name another file" in again.stderr


def test_a_run_without_one_says_so(make_study: MakeStudy) -> None:
    assert run_study(make_study(*QUICK))["registration"] is None


def test_gates_that_are_none_are_not_drafted(make_study: MakeStudy) -> None:
    with pytest.raises(SettingsError, match="gates: "):
        draft(make_study(*QUICK).experiment, {"no such gate": 1})


# --- at the node --------------------------------------------------------------------------------------------------------


def answers(tmp_path: Path, study: Study, signed: Signed | None, **policy: Any) -> list[Any]:
    experiment = study.experiment if signed is None else with_registration(study, signed)
    plan = experiment.plan("run-1", simulation=False)
    pinned = {} if policy.pop("unpinned", False) else {"panel": PINNED}
    folder = deployed(
        tmp_path / "node", permits(budget={"life": 20.0, "delta": 1e-5}) | policy, NODE | pinned
    )
    write_table(folder / "north.csv", people(0), ("visits",))
    found = [ask(folder, order) for order in orders(plan)]
    if isinstance(found[0], Refusal):
        assert untouched(open_node(folder))
    return found


REFUSED = Refusal("north", Reason.REGISTRATION)


@pytest.mark.parametrize("required", [True, False])
def test_what_the_pinned_panel_registered_is_permitted(
    tmp_path: Path, make_study: MakeStudy, required: bool
) -> None:
    study = make_study(*QUICK)
    ready, trained = answers(tmp_path, study, registered(study), registration_required=required)
    assert isinstance(ready, Ready)
    assert isinstance(trained, RoundReply)


def test_an_unregistered_plan_is_refused_where_a_registration_is_required(
    tmp_path: Path, make_study: MakeStudy
) -> None:
    study = make_study(*QUICK)
    assert answers(tmp_path, study, None, registration_required=True) == [REFUSED, REFUSED]
    log = (tmp_path / "node" / "log" / "node.log").read_text()
    assert "registration_required: no ethics panel registered the plan" in log


def test_a_signature_that_does_not_check_is_refused_even_where_none_is_required(
    tmp_path: Path, make_study: MakeStudy
) -> None:
    study = make_study(*QUICK)
    signed = registered(study)
    for case, false in enumerate(
        [
            signed.but(signatures={"alice": signed.signatures["alice"]}),
            Signatories.of("alice", "bob", quorum=2).signed(signed.read(Registration)),
        ]
    ):
        (tmp_path / str(case)).mkdir()
        assert answers(tmp_path / str(case), study, false) == [REFUSED, REFUSED]


@pytest.mark.parametrize("unpinned", [True, False])
@pytest.mark.parametrize(
    ("edit", "named"),
    [
        ("rounds=9", "rounds"),
        ("local.learning_rate=0.3", "local.learning_rate"),
        ("privacy.epsilon=2.9", "privacy.noise_multiplier"),
        ("evaluation.cutoff=0.1", "edges"),
        ("split.test=0.3", "test_fraction"),
        ("model=mlp", "model.hidden"),
    ],
)
def test_a_registration_cannot_be_put_on_another_plan(
    tmp_path: Path, make_study: MakeStudy, edit: str, named: str, unpinned: bool
) -> None:
    """A coordinator that replays a right registration: the node makes the plan again from what was signed."""
    signed = registered(make_study(*QUICK))
    plan = make_study(*QUICK, edit).experiment.plan("run-1", simulation=False)
    plan = plan.but(registration=signed.registered)
    pinned = {} if unpinned else {"panel": PINNED}
    folder = deployed(tmp_path / "node", permits(budget={"life": 20.0, "delta": 1e-5}), NODE | pinned)
    assert [ask(folder, order) for order in orders(plan)] == [REFUSED, REFUSED]
    log = (folder / "log" / "node.log").read_text()
    assert f"{named}" in log
    assert "differ: an edit after the registration voids it" in log


def test_a_node_that_pins_no_panel_can_require_none(tmp_path: Path, make_study: MakeStudy) -> None:
    study = make_study(*QUICK)
    found = answers(tmp_path, study, registered(study), registration_required=True, unpinned=True)
    assert found == [REFUSED, REFUSED]


def test_policy_check_says_it_before_anybody_is_asked(tmp_path: Path, make_study: MakeStudy) -> None:
    study = make_study(*QUICK)
    plan = study.experiment.plan("run-1", simulation=False)
    folder = deployed(tmp_path / "node", POLICY | {"registration_required": True}, NODE | {"panel": PINNED})
    (tmp_path / "plan.json").write_text(plan.canonical)
    verdicts = {
        verdict.rule: verdict for verdict in decisions.check(folder, str(tmp_path / "plan.json")).verdicts
    }
    assert verdicts["registration_required"].reason is Reason.REGISTRATION
    assert tomli_w.dumps(PINNED)
    assert CONTRACT["name"]
