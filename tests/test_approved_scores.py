"""A node scores with what its panel approved, within what the panel allows, and with nothing else."""

import csv
import hashlib
import json
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import panels
import pytest
import tomli_w
import typer
from click.testing import Result
from panels import Signatories
from scoring_node import AS_OF, CONTRACT, POLICY, to_score, write_model, write_node
from typer.testing import CliRunner

from clients.desk.doctor import examine
from clients.scoring import command
from clients.scoring.access import AccessLog
from clients.scoring.run import SENTENCES, open_approved
from federation.decision import Approval, Signed

app = typer.Typer(pretty_exceptions_enable=False)
for name in ("score", "approval"):
    app.command(name)(getattr(command, name))
CONDITIONS = (
    {"id": "training", "text": "every case worker is trained"},
    {"id": "dpia", "text": "DPIA <signed>"},
)
WITH_CONDITIONS = {"verdict": "approve_with_conditions", "conditions": CONDITIONS}


@dataclass
class Place:
    """A node that pins a panel, a model, people to score, and what the panel said of the model."""

    folder: Path
    panel: Signatories

    @property
    def node(self) -> Path:
        return self.folder / "node"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def approval(self, by: Signatories | None = None, **changes: Any) -> Approval:
        """Right for this model, but for `changes`."""
        about = {
            "run_id": "run-7",
            "card_sha256": hashlib.sha256((self.model / "card.json").read_bytes()).hexdigest(),
            "weights_sha256": hashlib.sha256((self.model / "model.safetensors").read_bytes()).hexdigest(),
        }
        subject, registration = changes.pop("subject", {}), changes.pop("registration", {})
        return (by or self.panel).approval(
            subject=about | subject,
            registration={"contract_sha256": CONTRACT.sha256} | registration,
            **changes,
        )

    def put(self, approval: Approval) -> None:
        (self.model / "approval.json").write_text(approval.canonical)

    def give(self, **changes: Any) -> Approval:
        """Put `approval(**changes)` beside the model."""
        self.put(found := self.approval(**changes))
        return found

    def pin(self, panel: Signatories) -> None:
        path = self.node / "node.toml"
        facts = path.read_text().partition("[panel]")[0]
        path.write_text(facts + tomli_w.dumps({"panel": panel.panel.model_dump()}))

    def say(self, approval: Approval, **status: Any) -> None:
        """The same decision with a newer or older word of the panel."""
        self.put(
            approval.but(status=self.panel.signed(self.panel.status(approval.decision.digest, **status)))
        )

    def score(self, *more: str, output: str = "out", capacity: int = 5) -> Result:
        arguments = [str(self.folder / "people.csv"), str(self.folder / output), "--model", str(self.model)]
        arguments += ["--capacity", str(capacity), "--folder", str(self.node), "--as-of", AS_OF]
        if "--purpose" not in more:
            arguments += ["--purpose", "early-warning"]
        return CliRunner().invoke(app, ["score", *arguments, *more])

    def scores(self, *more: str, **given: Any) -> Result:
        """`score`, which must succeed."""
        done = self.score(*more, **given)
        assert done.exit_code == 0, done.output
        return done

    def refuses(self, because: str, *more: str, **given: Any) -> None:
        """`score`, which must say why in one sentence, and score nobody."""
        done = self.score(*more, **given)
        assert done.exit_code == 1, done.output
        assert done.stdout == ""
        assert because in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert not self.out.exists()
        assert not (self.node / "access.db").exists()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Everything as it should be, with a panel of three of whom two decide; nothing is approved yet."""
    monkeypatch.setattr(panels, "NOW", datetime.now(UTC))
    write_model(tmp_path / "model")
    write_node(tmp_path / "node")
    to_score(30).to_csv(tmp_path / "people.csv", index=False)
    found = Place(tmp_path, Signatories.of("alice", "bob", "chris", quorum=2))
    found.pin(found.panel)
    return found


def ago(**time: float) -> datetime:
    return panels.NOW - timedelta(**time)


def pages(folder: Path) -> Iterator[str]:
    for path in (folder / "list.html", *(folder / "cases").iterdir()):
        yield path.read_text()


# --- what an approval allows ---------------------------------------------------------------------------


def test_an_approved_model_scores_and_everything_says_who_approved_it(place: Place) -> None:
    approval = place.give()
    done = place.scores()
    until = (panels.NOW + timedelta(days=6)).strftime(
        "%d %B %Y %H:%M UTC"
    )  # the status ends before the decision
    brief = f"approved by the panel Test panel until {until}, decision {approval.decision.digest[:12]}"
    owner = "owner: head of safeguarding"
    assert f"{brief}; {owner}" in done.stdout
    found = list(pages(place.out))
    assert len(found) == 6
    for page in found:
        assert "<b>Approved by the panel Test panel</b>" in page
        for said in (brief, until, owner):
            assert said in page
    with (place.out / "scores.csv").open(newline="") as file:
        assert {row["approval"] for row in csv.DictReader(file)} == {brief}
    with AccessLog(place.node / "access.db") as log:
        first = next(log.rows())
    assert first.note == f"30 scored, 5 listed, capacity 5; {brief}; {owner}"
    written = done.stdout + "".join(found) + (place.out / "scores.csv").read_text() + first.note
    assert not re.search("not approved|rehears", written, re.IGNORECASE)


def test_conditions_are_on_every_page(place: Place) -> None:
    place.give(**WITH_CONDITIONS, met=("training", "dpia"))
    done = place.scores()
    assert "conditions: every case worker is trained; DPIA <signed>" in done.stdout
    for page in pages(place.out):
        assert "<b>Approved with conditions by the panel Test panel</b>" in page
        assert "<li>every case worker is trained</li><li>DPIA &lt;signed&gt;</li>" in page
    with AccessLog(place.node / "access.db") as log:
        assert "conditions: every case worker is trained; DPIA <signed>" in next(log.rows()).note


def test_json_has_the_decision(place: Place) -> None:
    approval = place.give(**WITH_CONDITIONS, met=("training", "dpia"))
    said = json.loads(place.scores("--json").stdout)
    assert said["approval"] == "approved with conditions"
    assert said["decision"] == {
        "panel": "Test panel",
        "verdict": "approve_with_conditions",
        "until": said["decision"]["until"],
        "owner": "head of safeguarding",
        "conditions": ["every case worker is trained", "DPIA <signed>"],
        "limits": {"capacity": None, "agencies": None, "local_recalibration": False},
        "decision_sha256": approval.decision.digest,
    }
    assert json.loads(place.scores("--json", "--rehearsal", output="two").stdout)["decision"] is None


def test_a_rehearsal_is_never_approved(place: Place) -> None:
    place.give()
    assert "NOT APPROVED" in place.scores("--rehearsal").stdout
    for page in pages(place.out):
        assert "NOT APPROVED — rehearsal. Do not act on this." in page
        assert "Test panel" not in page
    with AccessLog(place.node / "access.db") as log:
        assert next(log.rows()).note == "rehearsal, 30 scored, 5 listed, capacity 5"
    assert not (place.node / "panel-status.json").exists()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser that prints")
def test_a_case_with_conditions_fits_on_one_sheet_of_a4(place: Place) -> None:
    place.give(**WITH_CONDITIONS, met=("training", "dpia"))
    place.scores(capacity=1)
    (case,) = (place.out / "cases").iterdir()
    printed = place.folder / "case.pdf"
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer"]
    home = f"--user-data-dir={place.folder / 'browser'}"
    call = [*browser, home, f"--print-to-pdf={printed}", case.as_uri()]
    subprocess.run(call, check=True, capture_output=True, timeout=60)
    assert len(re.findall(rb"/Type\s*/Page\b", printed.read_bytes())) == 1


# --- what stops ----------------------------------------------------------------------------------------


def another_panel_is_pinned(place: Place) -> None:
    place.give()
    place.pin(Signatories.of("alice", "bob", "chris", quorum=2))


def no_panel_is_pinned(place: Place) -> None:
    place.give()
    path = place.node / "node.toml"
    path.write_text(path.read_text().partition("[panel]")[0])


def a_card_that_was_edited(place: Place) -> None:
    place.give()
    path = place.model / "card.json"
    path.write_text(path.read_text().replace('"value": 0.76', '"value": 0.78'))


def weights_and_their_hash_in_the_card_that_were_edited(place: Place) -> None:
    place.give()
    flip(place.model / "model.safetensors", -1)
    now = hashlib.sha256((place.model / "model.safetensors").read_bytes()).hexdigest()
    path = place.model / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weights_sha256": now}))


def a_purpose_of_another_registration(place: Place) -> None:
    place.give(registration={"purpose": "rent-arrears"}, subject={"purpose": "rent-arrears"})


def an_approval_that_is_a_folder(place: Place) -> None:
    (place.model / "approval.json").mkdir()


def a_damaged_memory(place: Place) -> None:
    place.give()
    (place.node / "panel-status.json").write_text('{"half": "of')


def a_memory_that_cannot_be_written(place: Place) -> None:
    place.give()
    (place.node / "panel-status.json.writing").mkdir()


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


STOPS: dict[str, tuple[Callable[[Place], object], str]] = {
    "no decision": (lambda p: None, "approval.json is not there: the panel 'Test panel' decided nothing"),
    "no panel": (no_panel_is_pinned, "node.toml pins no ethics panel"),
    "rejected": (lambda p: p.give(verdict="reject"), "rejected it on"),
    "more information": (lambda p: p.give(verdict="more_information"), "asked for more information"),
    "a decision to suspend": (lambda p: p.give(verdict="suspend"), "the model may not be used"),
    "expired": (lambda p: p.give(decided=ago(days=2), expires=ago(days=1)), "the approval expired on"),
    "for too long": (lambda p: p.give(expires=ago(days=-120)), "longer than the 90 days"),
    "suspended": (lambda p: p.give(state="suspended", reason="drift"), "suspended the model on"),
    "a condition that is not met": (lambda p: p.give(**WITH_CONDITIONS, met=("dpia",)), "are met: training: every"),
    "another panel": (another_panel_is_pinned, "the pinned keys are not the panel's"),
    "too few signatures": (lambda p: p.give(signers=("chris",)), "needs the signatures of 2 members of the panel, and chris"),
    "a stale status": (lambda p: p.give(decided=ago(days=20), status={"issued": ago(days=8), "expires": ago(days=1)}), "get the newest approval.json, so that a suspension cannot be missed"),
    "a clock that is behind": (lambda p: p.give(status={"issued": ago(days=-1)}), "check the clock of this machine"),
    "another agency": (lambda p: p.give(limits={"agencies": ["police", "health"]}), "approved the model for police, health and not for 'north'"),
    "no agency": (lambda p: p.give(limits={"agencies": []}), "approved the model for nobody"),
    "capacity": (lambda p: p.give(limits={"capacity": 4}), "--capacity 5 is more than the 4 people"),
    "an edited card": (a_card_that_was_edited, "the decision is about another model"),
    "edited weights": (weights_and_their_hash_in_the_card_that_were_edited, "the decision is about another model"),
    "another run": (lambda p: p.give(subject={"run_id": "run-8"}), "is not the one that was registered"),
    "another contract": (lambda p: p.give(registration={"contract_sha256": "0" * 64}), "is not the one that was registered"),
    "another registration": (lambda p: p.give(subject={"registration_sha256": "0" * 64}), "of another registration"),
    "another purpose": (a_purpose_of_another_registration, "is not the one that was registered"),
    "no JSON": (lambda p: (p.model / "approval.json").write_text("{"), "approval.json: "),
    "no text": (lambda p: (p.model / "approval.json").write_bytes(b"\xff"), "cannot be read: get it from the panel"),
    "no file": (an_approval_that_is_a_folder, "cannot be read: get it from the panel"),
    "a damaged memory": (a_damaged_memory, "panel-status.json is damaged"),
    "no memory": (a_memory_that_cannot_be_written, "panel-status.json cannot be used"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(STOPS))
def test_what_stops_is_a_sentence_and_nobody_is_scored(case: str, place: Place) -> None:
    spoil, because = STOPS[case]
    spoil(place)
    place.refuses(because)


@pytest.mark.parametrize(
    ("more", "because"),
    [
        (("--recalibrate", "local"), "did not allow --recalibrate local"),
        (("--recalibrate", "both"), "--recalibrate must be local or federation"),
        (("--purpose", "curiosity"), "policy.toml does not list the purpose 'curiosity'"),
        (("--purpose", "rent-arrears"), "trained for 'early-warning' and may not be used for 'rent-arrears'"),
    ],
)
def test_what_is_asked_beyond_the_approval_is_refused(
    place: Place, more: tuple[str, ...], because: str
) -> None:
    (place.node / "policy.toml").write_text(POLICY + '[purposes.rent-arrears]\nlegal_basis = "none"\n')
    place.give()
    place.refuses(because, *more)


@pytest.mark.parametrize(
    ("file", "letter", "because"),
    [
        ("model.safetensors", b"", "is not the file that card.json is about"),
        ("card.json", b"0.76", "the decision is about another model"),
        ("approval.json", b"head of safeguarding", "signed exactly this"),
    ],
)
def test_one_changed_byte_stops(place: Place, file: str, letter: bytes, because: str) -> None:
    place.panel = Signatories.of("alice", "bob", quorum=2, status_quorum=2)  # every signature is needed
    place.pin(place.panel)
    place.give(**WITH_CONDITIONS, met=("training", "dpia"))
    path = place.model / file
    whole = path.read_bytes()
    for at in range(3, len(whole), max(1, len(whole) // 80)):
        if whole[at + 1 : at + 3] == b"==":
            continue  # the last letter of a signature's base64 has bits that mean nothing
        flip(path, at)
        with pytest.raises(SENTENCES):
            open_approved(place.node, place.model, panels.NOW)
        path.write_bytes(whole)
    flip(path, whole.index(letter))
    place.refuses(because)
    path.write_bytes(whole)
    place.scores()


def test_a_condition_that_the_panel_signs_later_opens_the_way(place: Place) -> None:
    approval = place.give(**WITH_CONDITIONS)
    place.refuses("training: every case worker is trained; dpia: DPIA <signed>")
    met = tuple(
        place.panel.signed(place.panel.met(approval.decision.digest, each)) for each in ("dpia", "training")
    )
    place.put(approval.but(met=met[:1]))
    place.refuses("are met: training: every case worker is trained.")
    place.put(approval.but(met=met))
    place.scores()


def test_limits_that_are_kept_are_no_hindrance(place: Place) -> None:
    place.give(limits={"capacity": 5, "agencies": ["north", "south"]})
    place.scores()


# --- the newest word of the panel ----------------------------------------------------------------------


def test_an_older_status_is_refused_once_a_newer_one_was_seen(place: Place) -> None:
    approval = place.give()
    place.say(approval, issued=ago(hours=5))
    place.scores(output="one")
    memory = place.node / "panel-status.json"
    assert json.loads(memory.read_text()).keys() == {approval.decision.digest}
    assert stat.S_IMODE(memory.stat().st_mode) == 0o600
    place.put(approval)  # of yesterday, and still within its week
    done = place.score()
    assert (done.exit_code, "has seen a newer one" in done.stderr, place.out.exists()) == (1, True, False)
    place.say(approval, issued=ago(hours=1))
    place.scores()


def test_a_suspension_that_was_seen_is_not_forgotten(place: Place) -> None:
    approval = place.give()
    before = approval.status
    place.say(approval, issued=ago(hours=1), state="suspended", reason="drift at the council")
    place.refuses("Its reason: drift at the council")
    place.put(approval.but(status=before))
    place.refuses("no later word lifts a suspension")
    place.say(approval, issued=panels.NOW)  # as one member could sign
    place.refuses("no later word lifts a suspension")
    place.give(rationale="decided again")
    place.scores()


def test_a_suspension_is_heard_whatever_else_is_wrong(place: Place) -> None:
    approval = place.give(**WITH_CONDITIONS)
    place.say(approval, issued=ago(hours=1), state="suspended", reason="drift")
    place.refuses("has not signed that these conditions are met")
    met = tuple(
        place.panel.signed(place.panel.met(approval.decision.digest, each)) for each in ("dpia", "training")
    )
    place.put(approval.but(met=met))
    place.refuses("no later word lifts a suspension")


def test_a_status_of_another_decision_or_of_nobody_is_not_kept_in_mind(place: Place) -> None:
    approval = place.give()
    nobody = Signed.of(place.panel.status(approval.decision.digest, issued=panels.NOW))
    place.put(approval.but(status=nobody))
    place.refuses("nobody of those pinned")
    assert not (place.node / "panel-status.json").exists()
    other = place.panel.signed(place.panel.status("0" * 64, issued=panels.NOW))
    place.put(approval.but(status=other))
    place.refuses("the status is about another decision")
    place.put(approval)
    place.scores()


def test_a_date_in_the_future_does_not_lock_the_model_for_good(place: Place) -> None:
    approval = place.give()
    place.say(approval, issued=ago(days=-300), expires=ago(days=-305))
    place.refuses("check the clock")
    place.put(approval)
    place.scores()


# --- which correction of the score ---------------------------------------------------------------------


def test_the_correction_is_the_one_that_the_panel_saw_unless_it_allowed_an_own_one(place: Place) -> None:
    shutil.rmtree(place.node)
    write_node(place.node, n=6000)
    place.pin(place.panel)

    def used(*more: str) -> str:
        done = place.scores("--json", *more, output=f"out-{len(list(place.folder.iterdir()))}")
        return str(json.loads(done.stdout)["calibration"])

    place.give()
    assert (used(), used("--recalibrate", "federation"), used("--rehearsal")) == (
        "federation",
        "federation",
        "local",
    )
    place.give(limits={"local_recalibration": True})
    assert (used(), used("--recalibrate", "local")) == ("federation", "local")


# --- looking without scoring ---------------------------------------------------------------------------


def look(place: Place, *more: str) -> Result:
    return CliRunner().invoke(app, ["approval", str(place.model), "--folder", str(place.node), *more])


def test_approval_says_what_the_panel_allows_or_why_not(place: Place) -> None:
    done = look(place)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "decided nothing on this model" in done.stderr
    limits = {"capacity": 20, "agencies": ["north"], "local_recalibration": True}
    approval = place.give(**WITH_CONDITIONS, met=("training", "dpia"), limits=limits)
    said = look(place).stdout
    for part in ("approved with conditions", "head of safeguarding", "every case worker is trained", "20 people", "north", "--recalibrate local is allowed", approval.decision.digest):  # fmt: skip
        assert part in said
    found = json.loads(look(place, "--json").stdout)
    assert (found["purpose"], found["limits"]) == ("early-warning", limits)
    assert not (place.node / "access.db").exists()


def test_doctor_says_which_panel_is_pinned_and_what_follows_without_one(place: Place) -> None:
    def says() -> tuple[str, str]:
        (found,) = [each for each in examine(place.node, offline=True) if each.check == "panel"]
        return found.state, found.sentence

    digits = place.panel.panel.fingerprint
    assert says() == ("ok", f"Test panel: 2 of 3 members decide; read out to them: {digits}")
    (place.node / "panel-status.json").write_text("[]")
    assert says()[0] == "fail"
    no_panel_is_pinned(place)
    assert says() == (
        "warn",
        "node.toml pins no ethics panel: no approval can be verified, and `score` only rehearses",
    )


@pytest.mark.parametrize(
    ("change", "because"),
    [
        ({"quorum": 4}, "quorum and status_quorum must be at most the 3 members"),
        ({"members": {"alice": "short"}}, "must be an Ed25519 public key"),
        ({"colour": "red"}, "panel.colour is not a known setting"),
    ],
)
def test_a_panel_that_cannot_be_is_a_sentence(place: Place, change: dict[str, Any], because: str) -> None:
    place.give()
    path = place.node / "node.toml"
    values = place.panel.panel.model_dump() | change
    path.write_text(path.read_text().partition("[panel]")[0] + tomli_w.dumps({"panel": values}))
    place.refuses(because)
