"""What was known before a run goes into its registration: an audit, and the model that stands until now."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import fedrisk, small_run
from conftest import write_agencies
from panels import Signatories
from test_gates import asking, audit, good, only

from federation.decision import DecisionError, Evidence, Registration, Replaced, Signed
from federation.panel.drafting import read_registration
from federation.panel.runs import read_run
from federation.panel.words import lines_of
from federation.server.gates import Audited, audited, judge

PANEL = Signatories.of("alice", "bob", quorum=2)
AUDIT: Audited = audited(audit(), "a" * 64)


# --- old registrations ------------------------------------------------------------------------------------


def test_a_registration_without_evidence_is_the_text_that_it_was_before() -> None:
    signed = PANEL.signed(PANEL.registration())
    assert "evidence" not in json.loads(signed.statement)
    assert signed.verify(Registration, PANEL.panel).evidence == Evidence()
    told = json.loads(signed.statement) | {"evidence": {"audit": None, "replaces": None}}
    other = signed.but(statement=json.dumps(told, sort_keys=True, separators=(",", ":")))
    with pytest.raises(DecisionError, match="not in its canonical form"):
        other.read(Registration)


def test_evidence_is_signed_with_the_rest() -> None:
    signed = PANEL.signed(PANEL.registration(evidence=Evidence(audit=AUDIT)))
    assert signed.verify(Registration, PANEL.panel).evidence.audit == AUDIT
    better = signed.but(statement=signed.statement.replace('"lower_bound":3.2', '"lower_bound":0.2'))
    assert better.statement != signed.statement
    with pytest.raises(DecisionError, match="signed exactly this"):
        better.verify(Registration, PANEL.panel)


# --- the gate ---------------------------------------------------------------------------------------------


def with_audit(found: Audited) -> dict[str, Any]:
    signed = PANEL.signed(PANEL.registration(evidence=Evidence(audit=found)))
    return good() | {"registration": {"sha256": signed.digest, "signed": json.loads(signed.canonical)}}


@pytest.mark.parametrize(
    "given",
    [
        audit(),
        audit(level=4.5),
        audit(check_ok=False),
        audit(name="shared"),
        audit() | {"ok": False},
        audit() | {"membership": [{"group": "everyone", "ok": False}]},
    ],
)
def test_a_registered_audit_is_judged_as_the_audit_itself(given: dict[str, Any]) -> None:
    gates = asking({"audit_required": True})
    registered = judge(gates, with_audit(audited(given, "a" * 64)))
    assert only(registered) == only(judge(gates, good(), audit=given))
    assert registered.audit_sha256 is None, "all that was judged is in the result"
    assert only(judge(gates, with_audit(AUDIT), audit=given)) == only(judge(gates, good(), audit=given))


def test_a_registered_audit_is_judged_though_none_is_required() -> None:
    failing = with_audit(audited(audit(level=4.5), "a" * 64))
    assert not only(judge(asking({}), failing)).passed


def test_another_audit_does_not_hide_a_registered_one_that_fails() -> None:
    """Whoever decides may give a newer audit, but not so that what the panel signed before the run is lost."""
    gates = asking({"audit_required": True})
    failing = with_audit(audited(audit(level=4.5), "a" * 64))
    report = judge(gates, failing, audit=audit())
    assert [gate.passed for gate in report.gates] == [True, False]
    assert not report.passed
    assert report.gates[1] == only(judge(gates, failing))
    assert judge(gates, with_audit(AUDIT), audit=audit()).passed  # the control


# --- from the files to the signature ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replaced")
    write_agencies(folder, {"north": "police", "clinic": "health", "south": "police"}, 300)
    done = fedrisk(*small_run(folder, "rounds=1", "evaluation.checkpoints=1"), "-q")
    assert done.code == 0, done.err
    (place,) = (folder / "outputs").glob("small-*")
    return place


def drafted(place: Path, *more: str) -> Any:
    """`fedrisk draft` of the same study with other rounds, or the problems."""
    home = place.parent.parent
    out = home / f"draft-{len(list(home.iterdir()))}.yaml"
    done = fedrisk(
        "draft", *small_run(home, "rounds=3", "evaluation.checkpoints=1")[1:], "--out", str(out), *more
    )
    return out if done.code == 0 else done.problems


def test_draft_takes_the_audit_and_the_model_before(finished: Path) -> None:
    audits = finished.parent / "audit.json"
    audits.write_text(json.dumps(audit() | {"confidence": 0.95, "data": "made-up people"}))
    out = drafted(finished, "--audit", str(audits), "--replaces", str(finished))
    registration = read_registration(out, PANEL.panel, datetime.now(UTC))
    found, old = registration.evidence.audit, registration.evidence.replaces
    assert found is not None
    assert old is not None
    assert (found.claimed_epsilon, found.lower_bound, found.confidence) == (4.0, 3.2, 0.95)
    assert found.attack == "local, logistic, q = 0.1: Gaussian pair"
    run = read_run(finished)
    assert old.weights_sha256 == run.hashes["weights_sha256"]
    assert (old.run_id, old.decision_sha256, old.terms) == (finished.name, None, {})
    overall = run.result["final"]["metrics"]["overall"]
    assert set(old.measures) == {name for name, each in overall.items() if each["publishable"]}
    assert {name: each.value for name, each in old.measures.items()} == {
        name: overall[name]["value"] for name in old.measures
    }
    signed = PANEL.signed(registration)
    assert len(signed.statement) < 20_000, "it rides in every order"
    said = dict(lines_of(signed))
    assert said["privacy audit"] == (
        "an attack shows an ε of at least 3.20 (95.0% confidence), 4 is claimed: local, logistic, q = 0.1: Gaussian pair; it holds"
    )
    assert finished.name in said["model it may replace"]
    assert said["its decision"].startswith("NONE")
    assert "it had auc" in said or "it had people" in said
    assert "not registered" in said["changed since"]


def test_a_member_sees_what_changes_against_the_model_before() -> None:
    old = Replaced(
        run_id="demo-0",
        decision_sha256="d" * 64,
        weights_sha256="e" * 64,
        contract_sha256="0" * 64,
        terms={"rounds": 4, "privacy": {"epsilon": 1.0}},
        measures={},
    )
    said = dict(lines_of(Signed.of(PANEL.registration(evidence=Evidence(replaces=old)))))
    assert said["changed since: rounds"] == "4 -> 5"
    assert said["changed since: privacy.epsilon"] == "1.0 -> not there"
    assert said["changed since"] == f"the contract, which was {'0' * 64}"
    assert said["privacy audit"] == "NOT GIVEN"


def test_the_approval_beside_the_model_before_must_be_of_it(finished: Path) -> None:
    path, run = finished / "model" / "approval.json", read_run(finished)
    subject = {"run_id": finished.name, "weights_sha256": run.hashes["weights_sha256"]}
    try:
        approval = PANEL.approval(subject=subject, decided=datetime.now(UTC) - timedelta(days=1))
        path.write_text(approval.canonical)
        values = yaml.safe_load(drafted(finished, "--replaces", str(finished)).read_text())
        assert values["evidence"]["replaces"]["decision_sha256"] == approval.decision.digest
        path.write_text(PANEL.approval(subject={"run_id": finished.name}).canonical)
        (problem,) = drafted(finished, "--replaces", str(finished))
        assert "approves another model than this one" in problem
    finally:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("option", "content", "says"),
    [
        ("--audit", None, "is no audit that can be read: name the JSON file that `fedrisk audit` wrote"),
        ("--audit", "{", "is no audit that can be read"),
        ("--audit", "[1]", "is no audit that can be read"),
        ("--audit", '{"schema": 1, "settings": []}', "is no audit that can be read"),
        ("--replaces", None, "is no folder: name the folder of a finished run"),
    ],
)
def test_bad_evidence_is_one_sentence(
    finished: Path, tmp_path: Path, option: str, content: str | None, says: str
) -> None:
    path = tmp_path / "given"
    if content is not None:
        path.write_text(content)
    (problem,) = drafted(finished, option, str(path))
    assert problem.startswith(f"{option}: {path} ")
    assert says in problem


def test_a_run_that_is_not_finished_replaces_nothing(finished: Path, tmp_path: Path) -> None:
    (problem,) = drafted(finished, "--replaces", str(tmp_path))
    assert problem == f"--replaces: {tmp_path}/result.json is missing: name the folder of a finished run"
