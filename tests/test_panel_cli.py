"""`fedrisk-panel` as members type it: two people sign on two calls, and nothing is promoted that is not approved whole."""

import hashlib
import json
import re
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fake_result import GROUPS as ATTRIBUTES
from fake_result import KINDS, fake_result
from safetensors.numpy import save
from typer.testing import CliRunner

from clients.folder import NodeFile
from experiments.cli import app as fedrisk
from experiments.config import compose
from experiments.config import read as read_study
from experiments.run import run_study
from federation import installed
from federation.decision import Decision, Panel, Registration, Signed, permitted, read_approval, read_signed
from federation.panel import cli
from federation.panel.cli import app
from federation.panel.drafting import keep_gates, read_registration
from federation.panel.files import read_panel
from federation.panel.history import opened, read
from federation.panel.keys import read_key
from federation.panel.papers import write_papers
from federation.panel.runs import judged, read_run, subject_of
from federation.panel.screen import show_gates
from federation.scorecard import read_card
from federation.server.card import score_card
from federation.server.gates import GateReport
from models import risk
from models.spec import ModelSpec

GATES_FOLDER = Path(__file__).resolve().parent.parent / "conf" / "gates"
MEMBERS = ("alice", "bob", "chris")
SLUGS = {name: name.replace("'", "").replace(" ", "-") for name in KINDS}
GATES = {"auc": 0.5, "net_benefit_gain": None, "agencies_as_registered": False, "simulation_allowed": True}
SAYS = ("--rationale", "it finds people early", "--dissent", "none", "--owner", "head of safeguarding")
APPROVE = ("--verdict", "approve", "--rereferral", "AUC below 0.70", *SAYS)
CONDITIONAL = ("--verdict", "approve_with_conditions", "--condition", "dpia=DPIA signed", *APPROVE[2:])
BOUND = ("report.html", "result.json", "model/card.json", "model/model.safetensors", "gates.json")


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def panel(*arguments: str | Path, typed: str | None = None) -> Done:
    """Run `fedrisk-panel ARGUMENTS`; an error that the command does not know is the test's."""
    result = CliRunner().invoke(
        app, [str(each) for each in arguments], input=typed, env={"COLUMNS": "200", "TERM": "dumb"}
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


def slugged(result: dict[str, Any]) -> dict[str, Any]:
    """The made-up result, with agencies named as nodes are."""
    text = json.dumps(result)
    for name in KINDS:
        text = text.replace(json.dumps(name), json.dumps(SLUGS[name]))
    found: dict[str, Any] = json.loads(text)
    return found


def write_run(folder: Path, registration: Mapping[str, Any] | None, **changes: Any) -> Path:
    """The folder of a finished run, as `federation.server.app` leaves it; `changes` are of its result."""
    spec = ModelSpec("logistic", ())
    result = slugged(fake_result()) | {
        "run_id": folder.name,
        "code_sha256": installed.code_sha256(),
        "created": datetime.now(UTC).isoformat(),
        "registration": registration,
        "scoring": {
            "outcome": "a crisis",
            "tune_fraction": 0.2,
            "test_fraction": 0.2,
            "bands": [],
            "recalibration": None,
        },
    }
    result |= changes
    (folder / "model").mkdir(parents=True)
    weights = save(risk.weights_of(risk.build(spec, result["model"]["features"])))
    card = score_card(result, hashlib.sha256(weights).hexdigest())
    (folder / "model" / "model.safetensors").write_bytes(weights)
    (folder / "model" / "card.json").write_text(json.dumps(json.loads(card.canonical), indent=1))
    (folder / "result.json").write_text(json.dumps(result, indent=1))
    write_papers(result, folder)
    return folder


def draft(**changes: Any) -> dict[str, Any]:
    """What `fedrisk draft` writes of the run above."""
    result = fake_result()
    return {
        "answers": {"intended_use": "to offer help", "who_acts": None},
        "gates": GATES,
        "experiment": result["experiment"],
        "purpose": result["purpose"],
        "outcome": "a crisis",
        "horizon": "12 months",
        "contract_sha256": result["contract"]["sha256"],
        "agencies": sorted(SLUGS.values()),
        "groups": list(ATTRIBUTES),
        "terms": {"rounds": 20, "privacy": {"epsilon": 3.0}},
    } | changes


@dataclass
class Desk:
    """A panel of three of whom two decide, its keys, and a registered run."""

    home: Path

    @property
    def folder(self) -> Path:
        return self.home / "panel"

    @property
    def run(self) -> Path:
        return self.home / "early-help-1"

    @property
    def both(self) -> tuple[str, ...]:
        return (*self.key("alice"), *self.key("bob"), "--yes")

    def key(self, name: str) -> tuple[str, str]:
        return "--key", f"{name}={self.home / name}.key"

    def does(self, *arguments: str | Path, typed: str | None = None) -> Done:
        return panel(*arguments, "--folder", self.folder, typed=typed)

    def must(self, *arguments: str | Path) -> Done:
        done = self.does(*arguments)
        assert done.code == 0, done.err
        return done

    def register(self, name: str = "registration", **changes: Any) -> dict[str, Any]:
        """Signed by both; as it stands in a result."""
        (self.home / f"{name}.yaml").write_text(yaml.safe_dump(draft(**changes)))
        self.must("register", self.home / f"{name}.yaml", *self.both, "--out", self.home / f"{name}.json")
        signed = read_signed((self.home / f"{name}.json").read_text())
        return {"sha256": signed.digest, "signed": json.loads(signed.canonical)}

    def decide(self, *says: str) -> str:
        """A decision on the run, signed by both: its SHA-256."""
        self.must("decide", self.run, *says, *self.both)
        return str(self.must("list", "--json").json["decisions"][-1]["decision_sha256"])

    def approved(self, *says: str) -> str:
        """The same, and said to be in force."""
        decision = self.decide(*(says or APPROVE))
        self.must("status", decision, *self.key("alice"), "--yes")
        return decision


def make_desk(home: Path) -> Desk:
    """Keys, a panel's folder, and the run."""
    found = Desk(home)
    members: list[str] = []
    for name in MEMBERS:
        done = panel("key", name, "--out", home / f"{name}.key")
        members += ["--member", done.out.strip().replace(" = ", "=").replace('"', "")]
    done = panel("init", found.folder, "--name", "Panel of the North", "--quorum", "2", *members)
    assert done.code == 0, done.err
    write_run(found.run, found.register())
    return found


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return make_desk(tmp_path)


def later(monkeypatch: pytest.MonkeyPatch, **by: float) -> None:
    monkeypatch.setattr(cli, "now", lambda: datetime.now(UTC) + timedelta(**by))


def flip(path: Path, at: int | None = None) -> None:
    """Change one byte, in the middle if nothing else is said."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 1
    path.write_bytes(content)


# --- keys and the folder ------------------------------------------------------------------------------


def test_a_key_is_its_owners_alone_and_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "alice.key"
    done = panel("key", "alice", "--out", file)
    assert re.fullmatch(r'alice = "[A-Za-z0-9+/]{43}="\n', done.out)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_bytes()
    again = panel("key", "alice", "--out", file)
    assert (again.code, file.read_bytes()) == (1, before)
    assert "exists and stays as it is" in again.err
    assert sorted(tmp_path.iterdir()) == [file]


def test_init_prints_what_an_agency_pins_and_a_fingerprint_to_read_out(desk: Desk) -> None:
    found = read_panel(desk.folder)
    done = desk.must("fingerprint")
    section = done.out[done.out.index("[panel]") : done.out.index("Read to each")]
    node = {"name": "north", "contract": "c.yaml", "public_size": 5} | tomllib.loads(section)
    assert NodeFile.model_validate(node).panel == found
    digits = done.out.strip().splitlines()[-1].strip()
    assert digits.replace(" ", "") == found.sha256[:32]
    again = panel(
        "init", desk.folder, "--name", "x", "--quorum", "1", "--member", f"a={found.members['bob']}"
    )
    assert again.code == 1
    assert read_panel(desk.folder) == found


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--quorum", "3", "--member", "alice=KEY"), "must be at most the 1 members"),
        (("--quorum", "1", "--member", "alice=abc"), "must be an Ed25519 public key"),
        (("--quorum", "1", "--member", "alice"), "--member must be NAME=VALUE"),
        (("--quorum", "1", "--member", "Alice=KEY"), "must be small letters"),
        (("--quorum", "1", "--member", "alice=KEY", "--member", "bob=KEY"), "nobody counts twice"),
    ],
)
def test_a_panel_that_cannot_decide_is_not_made(
    tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    public = panel("key", "alice", "--out", tmp_path / "k").out.split('"')[1]
    given = [each.replace("KEY", public) for each in arguments]
    done = panel("init", tmp_path / "panel", "--name", "x", *given)
    assert done.code == 1
    assert says in done.err
    assert not (tmp_path / "panel").exists()


def test_a_passphrase_opens_a_key_and_no_other_does(desk: Desk) -> None:
    file = desk.home / "dora.key"
    public = panel("key", "dora", "--out", file, "--passphrase", typed="sesame\nsesame\n").out.split('"')[1]
    other = desk.home / "other"
    panel("init", other, "--name", "x", "--quorum", "1", "--member", f"dora={public}")
    for word, code in (("wrong", 1), ("sesame", 0)):
        given = (
            "register",
            desk.home / "registration.yaml",
            "--key",
            f"dora={file}",
            "--yes",
            "--folder",
            other,
        )
        done = panel(*given, typed=f"{word}\n")
        assert done.code == code, done.err
    assert b"ENCRYPTED" in file.read_bytes()
    assert len(read(other)) == 1


def test_only_a_members_own_key_signs(desk: Desk) -> None:
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    (desk.home / "ec.key").write_bytes(pem)
    for given, says in [
        (f"alice={desk.home}/bob.key", "is not alice's key"),
        (f"eve={desk.home}/bob.key", "'eve' is not a member"),
        (f"alice={desk.home}/none.key", "cannot be read"),
        (f"alice={desk.home}/registration.yaml", "no private key in PEM"),
        (f"alice={desk.home}/ec.key", "another kind of key"),
        ("alice", "--key must be NAME=VALUE"),
    ]:
        done = desk.does("decide", desk.run, *APPROVE, "--key", given, "--yes")
        assert done.code == 1
        assert says in done.err
    assert len(read(desk.folder)) == 1
    assert not list((desk.folder / "drafts").iterdir())


def test_without_a_panels_folder_it_says_what_to_do(tmp_path: Path) -> None:
    done = panel("list", "--folder", tmp_path)
    assert done.code == 1
    assert "fedrisk-panel init" in done.err


# --- a registration -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["yaml", "json", "toml"])
def test_two_people_register_on_two_calls_and_the_run_gets_the_file(desk: Desk, suffix: str) -> None:
    file, out = desk.home / f"second.{suffix}", desk.home / "second-signed.json"
    given = draft(horizon="6 months", answers={"intended_use": "to offer help"})
    given["gates"] = {"auc": 0.6}
    text = {"yaml": yaml.safe_dump, "json": json.dumps, "toml": tomli_w.dumps}[suffix](given)  # type: ignore[operator]
    file.write_text(text)
    first = desk.does("register", file, *desk.key("alice"), "--out", out, typed="y\n")
    assert first.code == 0, first.err
    for words in (
        "What is being signed",
        "6 months",
        "gate auc",
        "0.6",
        "setting privacy.epsilon",
        "NOT GIVEN",
    ):
        assert words in first.out
    (waiting,) = (desk.folder / "drafts").iterdir()
    assert re.fullmatch(r"registration-[0-9a-f]{12}\.json", waiting.name)
    assert "1 of 2 have signed" in first.out
    assert not out.exists()
    assert len(read(desk.folder)) == 1
    twice = desk.must("sign", waiting, *desk.key("alice"), "--yes")
    assert "1 of 2 have signed" in twice.out

    second = desk.must("sign", waiting.stem.partition("-")[2], *desk.key("bob"), "--out", out, "--yes")
    assert re.search(r"head    2:[0-9a-f]{64} \(write it into the minutes\)", second.out)
    signed = read_signed(out.read_text())
    found = signed.verify(Registration, read_panel(desk.folder))
    assert (found.horizon, found.panel, set(signed.signatures)) == (
        "6 months",
        "Panel of the North",
        {"alice", "bob"},
    )
    assert datetime.now(UTC) - found.registered < timedelta(minutes=1)
    assert not list((desk.folder / "drafts").iterdir())
    assert read(desk.folder)[-1].entry == signed


def test_who_does_not_confirm_signs_nothing(desk: Desk) -> None:
    done = desk.does("decide", desk.run, *APPROVE, *desk.key("alice"), typed="n\n")
    assert done.code == 1
    assert "DECISION: APPROVED" in done.out
    assert "nothing was signed" in done.err
    assert not list((desk.folder / "drafts").iterdir())
    assert not (desk.run / "gates.json").exists()


def test_nothing_in_a_text_hides_what_else_is_signed(desk: Desk) -> None:
    trick = "fine\x1b[2J\x1b[1A\u202egnihton [bold]red[/]"
    says = [trick if each == "it finds people early" else each for each in APPROVE]
    done = desk.must("decide", desk.run, *says, *desk.both)
    assert "fine�[2J�[1A�gnihton [bold]red[/]" in done.out
    assert not {"\x1b", "\u202e"} & set(done.out + desk.must("history").out)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"panel": "another"}, "panel must not be there"),
        ({"gates": {"auk": 0.5}}, "gates.auk is not a known setting"),
        ({"terms": "many"}, "terms"),
        ({"extra": 1}, "extra is not a known setting"),
        ({"contract_sha256": "abc"}, "must be a SHA-256"),
    ],
)
def test_a_draft_that_is_none_is_a_sentence(desk: Desk, changes: dict[str, Any], says: str) -> None:
    (desk.home / "bad.yaml").write_text(yaml.safe_dump(draft(**changes)))
    done = desk.does("register", desk.home / "bad.yaml", *desk.both)
    assert done.code == 1
    assert says in done.err
    assert len(read(desk.folder)) == 1


def test_a_file_that_is_no_draft_is_a_sentence(desk: Desk) -> None:
    for content in ("[1]", "a: [", "\x00"):
        (desk.home / "bad.yaml").write_text(content)
        done = desk.does("register", desk.home / "bad.yaml", *desk.both)
        assert done.code == 1
        assert "bad.yaml" in done.err
    for command in (("register", "none.yaml", *desk.both), ("sign", "12345678", *desk.key("bob"))):
        assert desk.does(*command).code == 1


# --- a decision -----------------------------------------------------------------------------------------


def test_two_people_decide_on_two_calls_and_every_file_is_bound(desk: Desk) -> None:
    given = (
        "--limit-capacity",
        "20",
        "--limit-agency",
        "northgate-police",
        "--local-recalibration",
        "--expires",
        "30",
    )
    (desk.home / "why.txt").write_text("because\n")
    says = [*APPROVE, *given]
    says[says.index("--rationale") + 1] = f"@{desk.home}/why.txt"
    first = desk.must("decide", desk.run, *says, *desk.key("alice"), "--yes")
    for words in ("The ranking (AUC)", "passed", "because", "20 people a run", "DECISION: APPROVED"):
        assert words in first.out
    (waiting,) = (desk.folder / "drafts").iterdir()
    digest = waiting.stem.removeprefix("decision-")
    assert (
        f"next    another member: fedrisk-panel sign {digest} --key NAME=FILE --run RUN_FOLDER" in first.out
    )
    done = desk.must("sign", waiting, *desk.key("bob"), "--run", desk.run, "--yes")
    assert "every file is what is being signed" in done.out
    assert f"next    each week: fedrisk-panel status {digest} --key NAME=FILE" in done.out
    (row,) = desk.must("list", "--json").json["decisions"]
    assert (row["verdict"], row["state"]) == ("approve", "nobody has said that it is in force")
    decision = json.loads(read(desk.folder)[-1].entry.statement)
    for field, name in zip(("report", "result", "card", "weights", "gates"), BOUND, strict=True):
        assert (
            decision["subject"][f"{field}_sha256"]
            == hashlib.sha256((desk.run / name).read_bytes()).hexdigest()
        )
    assert decision["limits"] == {
        "capacity": 20,
        "agencies": ["northgate-police"],
        "local_recalibration": True,
    }
    lasts = datetime.fromisoformat(decision["expires"]) - datetime.fromisoformat(decision["decided"])
    assert lasts == timedelta(days=30)
    assert GateReport.model_validate_json((desk.run / "gates.json").read_text()).passed


def test_the_second_member_can_compare_what_is_signed_with_the_run(desk: Desk) -> None:
    desk.must("decide", desk.run, *APPROVE, *desk.key("alice"), "--yes")
    flip(desk.run / "report.html")
    (waiting,) = (desk.folder / "drafts").iterdir()
    done = desk.does("sign", waiting, *desk.key("bob"), "--run", desk.run, "--yes")
    assert done.code == 1
    assert "report.html is not what" in done.err
    assert len(read(desk.folder)) == 1


def refused(desk: Desk, run: Path, says: str, *given: str) -> None:
    before = read(desk.folder)
    done = desk.does("decide", run, *(given or APPROVE), *desk.both)
    assert done.code == 1
    assert says in done.err
    assert read(desk.folder) == before
    assert not list((desk.folder / "drafts").iterdir())
    assert not (run / "gates.json").exists()


def test_no_decision_without_a_registration(desk: Desk) -> None:
    refused(desk, write_run(desk.home / "b", None), "without a registration: it is for research only")


def test_no_decision_where_the_registration_is_later_than_the_run(desk: Desk) -> None:
    registration = json.loads((desk.run / "result.json").read_text())["registration"]
    created = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    run = write_run(desk.home / "b", registration, created=created)
    refused(desk, run, "registered before it began")


def test_no_decision_on_what_is_not_one_registered_run(desk: Desk) -> None:
    registration = json.loads((desk.run / "result.json").read_text())["registration"]
    refused(
        desk, write_run(desk.home / "a", registration, purpose="ranking"), "'early-warning' was registered"
    )
    signed = registration["signed"]
    few = signed | {"signatures": {"alice": signed["signatures"]["alice"]}}
    run = write_run(desk.home / "b", registration | {"signed": few})
    refused(desk, run, "needs the signatures of 2 members")
    changed = signed | {"statement": signed["statement"].replace("12 months", "24 months")}
    refused(
        desk, write_run(desk.home / "c", registration | {"signed": changed}), "not in this panel's history"
    )
    run = write_run(desk.home / "d", registration)
    flip(run / "model" / "model.safetensors")
    refused(desk, run, "is not the file that card.json is about")
    (run / "report.html").unlink()
    refused(desk, run, "report.html is missing")
    refused(desk, write_run(desk.home / "e", {"signed": 3}), "cannot be read")


def test_a_report_that_is_not_that_of_the_result_is_noticed(desk: Desk) -> None:
    """Where the same code made both; people read the report and never the result."""
    registration = json.loads((desk.run / "result.json").read_text())["registration"]
    run = write_run(desk.home / "b", registration, code_sha256=installed.code_sha256())
    (run / "report.html").write_text((run / "report.html").read_text().replace("76 of 100", "96 of 100"))
    refused(desk, run, "report.html is not the report of result.json")


@pytest.mark.parametrize("name", ["evidence.json", "model-card.json", "atrs.json"])
def test_a_byte_changed_in_a_paper_is_noticed(desk: Desk, name: str) -> None:
    """Before a decision, which is then not made, and after it, by `verify`; a paper that is gone was never bound."""
    registration = json.loads((desk.run / "result.json").read_text())["registration"]
    run = write_run(desk.home / "b", registration)
    whole = (run / name).read_bytes()
    flip(run / name)
    refused(desk, run, f"{name} is not what result.json says")
    (run / name).write_bytes(whole)
    desk.must("decide", run, *APPROVE, *desk.both)
    desk.must("verify", run)
    flip(run / name)
    done = desk.does("verify", run)
    assert done.code == 1
    assert f"{name} is not what result.json says" in done.out + done.err
    (run / name).unlink()
    desk.must("verify", run)


def test_a_model_that_failed_a_gate_can_be_rejected_and_not_approved(desk: Desk) -> None:
    registration = desk.register("strict", gates=GATES | {"auc": 0.99})
    run = write_run(desk.home / "b", registration)
    refused(desk, run, "gate auc: The ranking (AUC) is")
    refused(desk, run, "a model that failed a gate cannot be approved")
    desk.must("decide", run, "--verdict", "reject", *SAYS, *desk.both)
    assert not GateReport.model_validate_json((run / "gates.json").read_text()).passed
    (row,) = desk.must("list", "--json").json["decisions"]
    assert (row["verdict"], row["state"], row["until"]) == ("reject", "may not be used", None)


def test_a_required_audit_is_held_against_its_gate(desk: Desk) -> None:
    registration = desk.register("audited", gates=GATES | {"audit_required": True})
    run = write_run(desk.home / "b", registration)
    refused(desk, run, "gate audit: ")
    done = desk.does("decide", run, *APPROVE, *desk.both, "--audit", desk.home / "none.json")
    assert "is not what `fedrisk audit` wrote" in done.err


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("--verdict", "perhaps", *SAYS), "verdict"),
        (("--verdict", "approve", *SAYS), "give rereferral"),
        ((*APPROVE, "--condition", "dpia=x"), "conditions belong to approve_with_conditions"),
        ((*APPROVE, "--condition", "dpia"), "--condition must be NAME=VALUE"),
        ((*APPROVE, "--expires", "91"), "from 1 to the 90 days"),
        ((*APPROVE, "--limit-capacity", "0"), "limits.capacity"),
        ((*CONDITIONAL[:2], *APPROVE[2:]), "it needs one at least"),
    ],
)
def test_what_no_panel_may_decide_is_a_sentence(desk: Desk, given: tuple[str, ...], says: str) -> None:
    refused(desk, desk.run, says, *given)


# --- conditions, status, suspension, delivery ------------------------------------------------------------


def test_what_is_delivered_is_what_a_node_believes(desk: Desk) -> None:
    decision = desk.approved(*CONDITIONAL)
    done = desk.must("deliver", decision, desk.run)
    assert "score nobody with it: the panel has not signed that these conditions are met: dpia" in done.out
    first = desk.must("met", decision[:8], "dpia", "--evidence", "reference 7", *desk.key("alice"), "--yes")
    assert "1 of 2 have signed" in first.out
    second = desk.must("sign", next((desk.folder / "drafts").iterdir()), *desk.key("chris"), "--yes")
    assert f"next    fedrisk-panel deliver {decision[:12]} RUN_FOLDER, and send" in second.out
    assert "may score with it until" in desk.must("deliver", decision, desk.run).out
    approval = read_approval((desk.run / "model" / "approval.json").read_text())
    content = (desk.run / "model" / "card.json").read_bytes()
    found = permitted(
        approval,
        read_panel(desk.folder),
        read_card(content.decode()),
        hashlib.sha256(content).hexdigest(),
        now=datetime.now(UTC),
    )
    assert found.decision_sha256 == decision
    for given, says in [
        (("met", decision, "dpia"), "has said before"),
        (("met", decision, "x"), "no condition 'x'"),
    ]:
        done = desk.does(*given, "--evidence", "e", *desk.both)
        assert done.code == 1
        assert says in done.err


def test_a_suspension_ends_a_decision_and_is_delivered(desk: Desk) -> None:
    decision = desk.approved()
    done = desk.must("suspend", decision, "--reason", "drift at the council", *desk.key("bob"), "--yes")
    assert f"next    fedrisk-panel deliver {decision[:12]} RUN_FOLDER, and send" in done.out
    done = desk.does("status", decision, *desk.key("alice"), "--yes")
    assert done.code == 1
    assert "was suspended (drift at the council): no status brings it back" in done.err
    assert "drift at the council" in desk.must("deliver", decision, desk.run).out
    assert desk.must("list", "--json").json["decisions"][0]["state"] == "suspended"
    again = desk.approved()
    assert again != decision
    assert "may score" in desk.must("deliver", again, desk.run).out


def test_a_status_that_was_drafted_before_the_suspension_is_not_completed_after_it(
    tmp_path: Path, desk: Desk
) -> None:
    text = (desk.folder / "panel.toml").read_text().replace("status_quorum = 1", "status_quorum = 2")
    (desk.folder / "panel.toml").write_text(text)
    decision = desk.decide(*APPROVE)
    desk.must("status", decision, *desk.key("alice"), "--yes")
    (waiting,) = (desk.folder / "drafts").iterdir()
    desk.must("suspend", decision, "--reason", "harm", *desk.both)
    done = desk.does("sign", waiting, *desk.key("bob"), "--yes")
    assert done.code == 1
    assert "was suspended (harm)" in done.err
    assert read(desk.folder)[-1].entry.kind == "status"
    assert desk.must("list", "--json").json["decisions"][0]["state"] == "suspended"


def test_only_the_newest_decision_on_a_run_is_renewed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    old = desk.approved()
    new = desk.decide("--verdict", "reject", *SAYS)
    assert "is not the newest on its run" in desk.does("status", old, *desk.both).err
    assert "decided on this run anew" in desk.does("deliver", old, desk.run).err
    assert "the model may not be used" in desk.does("status", new, *desk.both).err
    later(monkeypatch, days=100)
    assert [row["state"] for row in desk.must("list", "--json").json["decisions"]] == [
        "decided anew since",
        "may not be used",
    ]


def test_a_draft_is_named_by_its_first_digits(desk: Desk) -> None:
    desk.must("decide", desk.run, *APPROVE, *desk.key("alice"), "--yes")
    (waiting,) = (desk.folder / "drafts").iterdir()
    digest = waiting.stem.removeprefix("decision-")
    done = desk.does("sign", digest[:7], *desk.key("bob"), "--run", desk.run, "--yes")
    assert done.code == 1
    assert "give the first 8 digits or more" in done.err
    assert f"waiting for signatures: {waiting.name}" in done.err
    desk.must("sign", digest[:8], *desk.key("bob"), "--run", desk.run, "--yes")
    done = desk.does("sign", digest, *desk.key("bob"), "--run", desk.run, "--yes")
    assert "whether it is complete already" in done.err


def test_a_decision_is_named_by_its_first_digits(desk: Desk) -> None:
    decision = desk.decide(*APPROVE)
    for begins in (decision[:7], "0" * 12):
        done = desk.does("status", begins, *desk.both)
        assert done.code == 1
        assert (
            f"names 0 decisions: give the first 8 digits or more of its SHA-256; known: {decision[:12]}"
            in done.err
        )
    assert "nobody has said yet" in desk.does("deliver", decision, desk.run).err


def test_another_runs_folder_gets_no_approval(desk: Desk) -> None:
    decision = desk.approved()
    other = write_run(desk.home / "b", None)
    assert "is not the run of decision" in desk.does("deliver", decision, other).err
    assert not (other / "model" / "approval.json").exists()


# --- what can be checked ----------------------------------------------------------------------------------


def test_history_and_list_say_everything_in_words(desk: Desk) -> None:
    decision = desk.approved(*CONDITIONAL)
    desk.must("met", decision, "dpia", "--evidence", "reference 7", *desk.both)
    desk.must("suspend", decision, "--reason", "drift", *desk.key("chris"), "--yes")
    words = desk.must("history").out
    for said in (
        "registered early-help for early-warning",
        "the panel approved it with conditions",
        "condition dpia",
        "reference 7",
        "is in force",
        "is SUSPENDED (drift)",
        "signed by chris",
        "write it into the minutes",
    ):
        assert said in " ".join(words.split()), said
    kinds = [entry["kind"] for entry in desk.must("history", "--json").json]
    assert kinds == ["registration", "decision", "status", "condition_met", "status"]
    assert "approved with conditions" in desk.must("list").out
    desk.must("decide", desk.run, *APPROVE, *desk.key("alice"), "--yes")
    assert "waits for signatures: drafts/decision-" in desk.must("list").out


def test_verify_says_that_all_holds(desk: Desk) -> None:
    decision = desk.approved()
    desk.must("deliver", decision, desk.run)
    head = read(desk.folder)[-1].head
    done = desk.must("verify", desk.run, "--head", head)
    assert "every file is what decision" in done.out
    assert "3 entries, the chain and every quorum hold" in done.out
    found = desk.must("verify", desk.run, "--json").json
    assert found == {
        "ok": True,
        "entries": 3,
        "head": head,
        "matching": {str(desk.run): decision},
        "problems": [],
    }


@pytest.mark.parametrize("name", BOUND)
def test_verify_names_the_file_that_was_changed(desk: Desk, name: str) -> None:
    decision = desk.approved()
    flip(desk.run / name)
    done = desk.does("verify", desk.run)
    assert done.code == 1
    assert f"{desk.run / name} is not what decision {decision[:12]} is about" in done.err
    (desk.run / name).unlink()
    done = desk.does("verify", desk.run)
    assert f"{desk.run / name} is not what" in done.err
    assert "it is missing" in done.err


def test_verify_names_an_approval_that_the_panel_never_made(desk: Desk) -> None:
    desk.must("deliver", desk.approved(), desk.run)
    path = desk.run / "model" / "approval.json"
    approval = read_approval(path.read_text())
    path.write_text(approval.but(decision=approval.decision.but(signatures={})).canonical)
    assert "its decision is not in this panel's history" in desk.does("verify", desk.run).err
    path.write_text("{}")
    assert "approval.json" in desk.does("verify", desk.run).err


def test_verify_names_a_registration_file_that_was_changed(desk: Desk) -> None:
    (desk.home / "more.yaml").write_text(yaml.safe_dump(draft(horizon="6 months")))
    desk.must("register", desk.home / "more.yaml", *desk.both)
    digest = read(desk.folder)[-1].entry.digest
    file = desk.folder / f"registration-{digest[:12]}.json"
    desk.must("verify")
    file.write_text(file.read_text().replace("6 months", "9 months"))
    done = desk.does("verify")
    assert done.code == 1
    assert f"{file} is not a registration as this panel's history has it" in done.err


def test_verify_names_an_entry_that_too_few_of_the_pinned_members_signed(desk: Desk) -> None:
    desk.approved()
    panel_file = desk.folder / "panel.toml"
    pinned = read_panel(desk.folder)
    stranger = panel("key", "bob", "--out", desk.home / "stranger.key").out.split('"')[1]
    panel_file.write_text(panel_file.read_text().replace(pinned.members["bob"], stranger))
    done = desk.does("verify")
    assert done.code == 1
    assert "entry 1: the registration needs the signatures of 2 members" in done.err
    assert "entry 2: the decision needs" in done.err
    assert isinstance(pinned, Panel)


# --- who trusts nobody's draft, file or clock -------------------------------------------------------------


def hand_made(desk: Desk, run: Path, **changes: Any) -> str:
    """A decision that alice wrote and signed with no command, with gates.json beside it, all of them passed."""
    found = read_run(run)
    said = json.loads((desk.run / "result.json").read_text())["registration"]
    signed = Signed.model_validate((found.result["registration"] or said)["signed"])
    report = judged(signed, found.result, None)
    passed = [
        gate.but(passed=True, sentence=gate.sentence.replace("failed", "passed")) for gate in report.gates
    ]
    forged = report.but(gates=tuple(passed))
    keep_gates(run, forged)
    at = datetime.now(UTC)
    facts = {
        "panel": "Panel of the North",
        "verdict": "approve",
        "decided": at,
        "expires": at + timedelta(days=30),
        "subject": subject_of(found, signed, forged),
        "gates_passed": True,
        "rationale": "fine",
        "dissent": "none",
        "owner": "head",
        "rereferral": ("AUC",),
    }
    alice = read_key(desk.home / "alice.key", lambda _: "")
    decision = Signed.of(Decision(**(facts | changes)), {"alice": alice})
    (desk.folder / "drafts" / f"decision-{decision.digest[:12]}.json").write_text(decision.canonical)
    return decision.digest


def put_entry(desk: Desk, signed: Signed) -> None:
    """Into the history, whoever signed it, with every hash right."""
    with opened(desk.folder) as book:
        book.append(signed, datetime.now(UTC))


def test_who_signs_a_decision_has_its_gates_judged_again(desk: Desk) -> None:
    run = write_run(desk.home / "b", desk.register("strict", gates=GATES | {"auc": 0.99}))
    before = read(desk.folder)
    digest = hand_made(desk, run)
    done = desk.does("sign", digest[:12], *desk.key("bob"), "--yes")
    assert done.code == 1
    assert "name the run's folder with --run, so that what you sign is compared with it" in done.err
    done = desk.does("sign", digest[:12], "--run", run, *desk.key("bob"), "--yes")
    assert done.code == 1
    assert "judged again, do not say what gates.json says" in done.err
    assert "gate auc: " in done.err
    assert read(desk.folder) == before


def test_who_signs_a_decision_on_an_unregistered_run_is_told(desk: Desk) -> None:
    run = write_run(desk.home / "b", None)
    done = desk.does("sign", hand_made(desk, run)[:12], "--run", run, *desk.key("bob"), "--yes")
    assert done.code == 1
    assert "without a registration" in done.err


def test_who_signs_a_decision_of_another_registration_is_told(desk: Desk) -> None:
    other = desk.register("other", horizon="6 months")
    subject = subject_of(
        read_run(desk.run),
        Signed.model_validate(other["signed"]),
        judged(Signed.model_validate(other["signed"]), read_run(desk.run).result, None),
    )
    digest = hand_made(desk, desk.run, subject=subject)
    keep_gates(desk.run, judged(Signed.model_validate(other["signed"]), read_run(desk.run).result, None))
    done = desk.does("sign", digest[:12], "--run", desk.run, *desk.key("bob"), "--yes")
    assert done.code == 1
    assert "the registration_sha256 of the run is" in done.err


def test_gates_that_a_quorum_forged_are_found_by_verify_and_promote(desk: Desk) -> None:
    run = write_run(desk.home / "b", desk.register("strict", gates=GATES | {"auc": 0.99}))
    digest = hand_made(desk, run)
    file = desk.folder / "drafts" / f"decision-{digest[:12]}.json"
    put_entry(desk, read_signed(file.read_text()).sign("bob", read_key(desk.home / "bob.key", lambda _: "")))
    for command in (("verify", run), ("promote", run, "--uri", "sqlite:///none.db", "--name", "x")):
        done = desk.does(*command)
        assert done.code == 1
        assert "gates.json is not what the registered gates say of result.json" in done.err


@pytest.mark.parametrize("name", BOUND)
def test_a_changed_folder_gets_no_approval_and_always_a_suspension(desk: Desk, name: str) -> None:
    decision = desk.approved()
    flip(desk.run / name)
    done = desk.does("deliver", decision, desk.run)
    assert done.code == 1
    assert f"{desk.run / name} is not what decision" in done.err
    assert not (desk.run / "model" / "approval.json").exists()
    desk.must("suspend", decision, "--reason", "harm", *desk.key("bob"), "--yes")
    assert "nobody" in desk.must("deliver", decision, desk.run).out
    assert (desk.run / "model" / "approval.json").exists()


def test_gates_that_are_switched_off_are_said_to_be(desk: Desk) -> None:
    off = {"net_benefit_gain": None, "registered": False, "agencies_as_registered": False}
    (desk.home / "off.yaml").write_text(yaml.safe_dump(draft(gates=off | {"simulation_allowed": True})))
    lines = [
        " ".join(line.split())
        for line in desk.must(
            "register", desk.home / "off.yaml", *desk.key("alice"), "--yes"
        ).out.splitlines()
    ]
    for name in (*off, "simulation_allowed"):
        assert any(line.startswith(f"gate {name} NOT ASKED: ") for line in lines), name
    assert any(line.startswith("no gate for auc, ") for line in lines)
    (desk.home / "on.yaml").write_text(yaml.safe_dump(draft(gates={"auc": 0.5})))
    done = desk.must("register", desk.home / "on.yaml", *desk.key("alice"), "--yes")
    assert "NOT ASKED" not in done.out
    assert re.search(r"gate net_benefit_gain +0\.0 *\n", done.out)
    assert re.search(r"gate registered +true *\n", done.out)


def test_a_run_of_another_release_is_not_approved_and_warned_of(desk: Desk) -> None:
    registration = json.loads((desk.run / "result.json").read_text())["registration"]
    run = write_run(desk.home / "b", registration, code_sha256="0" * 64)
    (run / "report.html").write_text("<h1>Perfectly fair.</h1>")
    refused(desk, run, "decide with the release that made the run")
    forged = hand_made(desk, run)
    done = desk.does("sign", forged[:12], "--run", run, *desk.key("bob"), "--yes")
    assert done.code == 1
    assert "decide with the release that made the run" in done.err
    (desk.folder / "drafts" / f"decision-{forged[:12]}.json").unlink()
    done = desk.must("decide", run, "--verdict", "reject", *SAYS, *desk.key("alice"), "--yes")
    assert "take care: " in done.err
    assert "was not checked" in done.err
    (waiting,) = (desk.folder / "drafts").iterdir()
    assert "take care: " in desk.must("sign", waiting, "--run", run, *desk.key("bob"), "--yes").err


def backdated(desk: Desk, days: int) -> Signed:
    (desk.home / "b.yaml").write_text(yaml.safe_dump(draft(outcome="backdated")))
    at = datetime.now(UTC) - timedelta(days=days)
    found = read_registration(desk.home / "b.yaml", read_panel(desk.folder), at)
    return Signed.of(found, {"alice": read_key(desk.home / "alice.key", lambda _: "")})


def test_a_registration_is_as_old_as_its_quorum(desk: Desk) -> None:
    """Dated five days ago, signed by the quorum now; the run's result, of three days ago, was known by then."""
    signed = backdated(desk, 5)
    (desk.home / "b.json").write_text(signed.canonical)
    done = desk.must(
        "sign", desk.home / "b.json", *desk.key("bob"), "--yes", "--out", desk.home / "full.json"
    )
    assert ", 5 days ago" in done.out
    full = read_signed((desk.home / "full.json").read_text())
    as_said = {"sha256": full.digest, "signed": json.loads(full.canonical)}
    created = (datetime.now(UTC) - timedelta(days=3)).isoformat()
    refused(desk, write_run(desk.home / "b", as_said, created=created), "the quorum had signed")


@pytest.mark.parametrize("days", [60, -60])
def test_a_registration_of_another_time_is_not_signed(desk: Desk, days: int) -> None:
    (desk.home / "b.json").write_text(backdated(desk, days).canonical)
    done = desk.does("sign", desk.home / "b.json", *desk.key("bob"), "--yes")
    assert done.code == 1
    assert "more than 7 days from now" in done.err
    assert len(read(desk.folder)) == 1


def test_each_registered_term_that_the_result_shows_otherwise_is_named(desk: Desk) -> None:
    terms = {
        "rounds": 21,
        "seed": 8,
        "model": {"name": "mlp", "hidden": [4]},
        "privacy": {"mechanism": "shared", "delta": 1e-6},
        "strategy": {"name": "krum"},
    }
    agencies = [*SLUGS.values(), "extra"]
    run = write_run(desk.home / "b", desk.register("b", terms=terms, agencies=agencies, groups=["sex"]))
    done = desk.does("decide", run, *APPROVE, *desk.both)
    assert done.code == 1
    named = ("number of rounds", "seed", "model", "hidden layers", "privacy mechanism", "delta", "strategy")
    for what in (*named, "agencies", "groups"):
        assert f"the {what} of the result is " in done.err


def test_an_entry_without_right_signatures_counts_for_nothing(desk: Desk) -> None:
    decision = read_signed(
        (desk.folder / "drafts" / f"decision-{hand_made(desk, desk.run)[:12]}.json").read_text()
    )
    put_entry(desk, decision.but(signatures={"alice": "x", "bob": "x"}))
    for command in (
        ("list",),
        ("history",),
        ("status", decision.digest, *desk.both),
        ("suspend", decision.digest, "--reason", "r", *desk.both),
        ("met", decision.digest, "c", "--evidence", "e", *desk.both),
        ("deliver", decision.digest, desk.run),
        ("decide", desk.run, *APPROVE, *desk.both),
    ):
        done = desk.does(*command)
        assert done.code == 1, command
        assert "entry 2: the decision needs the signatures of 2 members" in done.err


def test_only_right_signatures_are_shown_as_signers(desk: Desk) -> None:
    desk.register("second", horizon="6 months")
    history = desk.folder / "history.jsonl"
    entry = read(desk.folder)[-1].entry
    history.write_bytes(history.read_bytes().splitlines(keepends=True)[0])
    put_entry(desk, entry.but(signatures=entry.signatures | {"chris": "x"}))
    assert "chris" not in desk.must("history").out


def test_a_complete_registration_is_never_lost(desk: Desk) -> None:
    (desk.home / "c.yaml").write_text(yaml.safe_dump(draft(outcome="kept")))
    done = desk.does("register", desk.home / "c.yaml", *desk.both, "--out", desk.home / "nodir" / "r.json")
    assert done.code == 1
    assert "nodir is no folder" in done.err
    assert len(read(desk.folder)) == 1
    desk.must("register", desk.home / "c.yaml", *desk.both, "--out", desk.home / "c.json")
    signed = read(desk.folder)[-1].entry
    kept = desk.folder / f"registration-{signed.digest[:12]}.json"
    assert kept.read_text() == (desk.home / "c.json").read_text() == signed.canonical
    kept.unlink()
    done = desk.must("sign", signed.digest[:12], "--out", desk.home / "again.json")
    assert kept.read_text() == (desk.home / "again.json").read_text() == signed.canonical
    assert len(read(desk.folder)) == 2


def test_a_wrong_signature_does_not_wipe_out_a_right_one(desk: Desk) -> None:
    (desk.home / "c.yaml").write_text(yaml.safe_dump(draft(outcome="merged")))
    desk.must("register", desk.home / "c.yaml", *desk.key("alice"), "--yes")
    (waiting,) = (desk.folder / "drafts").iterdir()
    copy = read_signed(waiting.read_text()).but(signatures={"alice": "AAAA"})
    (desk.home / "copy.json").write_text(copy.canonical)
    desk.must("sign", desk.home / "copy.json", *desk.key("bob"), "--yes")
    assert set(read(desk.folder)[-1].entry.signatures) == {"alice", "bob"}


def test_a_file_that_is_no_draft_is_passed_over_by_name(desk: Desk) -> None:
    desk.must("decide", desk.run, *APPROVE, *desk.key("alice"), "--yes")
    (waiting,) = (desk.folder / "drafts").iterdir()
    for name, content in (("a.json", "x"), ("b.json", "[" * 200_000)):
        (desk.folder / "drafts" / name).write_text(content)
    done = desk.must("list", "--json")
    assert done.json["waiting"] == [str(waiting)]
    for name in ("a.json", "b.json"):
        assert f"passed over: {desk.folder / 'drafts' / name}" in done.err
    digits = waiting.stem.rpartition("-")[2]
    done = desk.must("sign", digits, *desk.key("bob"), "--run", desk.run, "--yes")
    assert "a.json" in done.err
    assert len(read(desk.folder)) == 2


RESULTS: dict[str, Callable[[str], str | bytes]] = {
    "nested": lambda text: "[" * 200_000,
    "contract": lambda text: json.dumps(json.loads(text) | {"contract": "x"}),
    "no text": lambda text: b"\xff\xfe{}",
    "first year": lambda text: json.dumps(json.loads(text) | {"created": "0001-01-01T00:00:00+10:00"}),
    "final": lambda text: json.dumps(json.loads(text) | {"final": 7}),
    "agencies": lambda text: json.dumps(json.loads(text) | {"agencies": 7}),
    "privacy": lambda text: json.dumps(json.loads(text) | {"privacy": None}),
    "NaN": lambda text: text.replace('"seed": 7', '"seed": NaN'),
    "surrogate": lambda text: json.dumps(json.loads(text) | {"run_id": "\ud800"}),
    "digits": lambda text: text.replace('"seed": 7', f'"seed": {"1" * 5000}'),
    "registration": lambda text: json.dumps(json.loads(text) | {"registration": "x"}),
}


@pytest.mark.parametrize("what", RESULTS)
def test_a_result_that_is_none_is_a_sentence(desk: Desk, what: str) -> None:
    file = desk.run / "result.json"
    content = RESULTS[what](file.read_text())
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    for command in (("decide", desk.run, *APPROVE, *desk.both), ("verify", desk.run)):
        done = desk.does(*command)
        assert done.code == 1
        assert done.err.startswith("fedrisk-panel: ")


DRAFTS: dict[str, str] = {
    "nested": "a: " + "[" * 20_000,
    "date": "terms: {a: 2020-01-01}",
    "no date": "terms: {a: 2020-99-99}",
    "NaN": "terms: {a: .nan}",
    "number as a name": "1: 2",
    "set": "terms: {a: !!set {x}}",
    "binary": "terms: {a: !!binary /////w==}",
    "surrogate": 'outcome: "\\ud800"',
    "itself": "terms: &a {x: *a}",
}


@pytest.mark.parametrize("what", DRAFTS)
def test_yaml_that_json_has_not_is_a_sentence(desk: Desk, what: str) -> None:
    known = {key: value for key, value in draft().items() if key not in ("terms", "outcome")}
    rest = "" if "outcome" in DRAFTS[what] else "\noutcome: x"
    (desk.home / "bad.yaml").write_text(f"{yaml.safe_dump(known)}\n{DRAFTS[what]}{rest}\n")
    done = desk.does("register", desk.home / "bad.yaml", *desk.key("alice"), "--yes")
    assert done.code == 1
    assert done.err.startswith("fedrisk-panel: ")
    assert "bad.yaml" in done.err
    assert not list((desk.folder / "drafts").iterdir())


def test_other_files_that_are_nested_too_deeply_are_a_sentence(desk: Desk) -> None:
    deep = desk.home / "deep.json"
    deep.write_text("[" * 200_000)
    history = desk.folder / "history.jsonl"
    before = history.read_bytes()
    for command in (
        ("decide", desk.run, *APPROVE, *desk.both, "--audit", deep),
        ("sign", deep, *desk.key("alice"), "--yes"),
        ("decide", desk.run, *APPROVE, *desk.both, "--expires", "9" * 12),
    ):
        done = desk.does(*command)
        assert (done.code, done.err[:15]) == (1, "fedrisk-panel: ")
    history.write_bytes(before + b"[" * 200_000 + b"\n")
    assert "entry 2 is not as it was written" in desk.does("verify").err
    history.write_bytes(before)
    (desk.run / "model" / "card.json").write_text("[" * 200_000)
    assert desk.does("decide", desk.run, *APPROVE, *desk.both).code == 1
    (desk.folder / "panel.toml").write_text("a = " + "[" * 50_000)
    assert desk.does("list").code == 1


def test_an_approval_that_was_withdrawn_by_another_verdict_can_be_taken_back(desk: Desk) -> None:
    old = desk.approved()
    desk.must("deliver", old, desk.run)
    done = desk.must("decide", desk.run, "--verdict", "reject", *SAYS, *desk.both)
    commands = re.findall(r"fedrisk-panel (suspend|deliver) ([0-9a-f]{12}) ?(\S*)", done.out)
    assert commands[0][:2] == ("suspend", old[:12])
    assert commands[-1] == ("deliver", old[:12], str(desk.run))
    new = desk.must("list", "--json").json["decisions"][-1]["decision_sha256"]
    assert f"suspend {old[:12]}" in desk.does("deliver", new, desk.run).err
    assert f"suspend {old[:12]}" in desk.does("verify", desk.run).err
    desk.must("suspend", old[:12], "--reason", "rejected", *desk.key("alice"), "--yes")
    assert "nobody" in desk.must("deliver", old[:12], desk.run).out
    desk.must("verify", desk.run)
    assert "nothing is to be delivered" in desk.does("deliver", new, desk.run).err


def test_verify_names_an_approval_of_before_the_suspension(desk: Desk) -> None:
    decision = desk.approved()
    desk.must("deliver", decision, desk.run)
    file = desk.run / "model" / "approval.json"
    before = file.read_bytes()
    desk.must("suspend", decision, "--reason", "harm", *desk.key("bob"), "--yes")
    desk.must("deliver", decision, desk.run)
    desk.must("verify", desk.run)
    file.write_bytes(before)
    done = desk.does("verify", desk.run)
    assert done.code == 1
    assert "the panel has said more of decision" in done.err


def test_nothing_in_a_result_moves_the_terminal(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    registration = desk.register("named", gates=GATES | {"agencies_as_registered": True})
    result = json.loads((desk.run / "result.json").read_text())
    agencies = result["agencies"]
    agencies["x\x1b[8m\x1b]0;pwn\x07"] = dict(next(iter(agencies.values())), status="trained")
    run = write_run(desk.home / "b", registration, agencies=agencies)
    done = desk.does("decide", run, *APPROVE, *desk.both)
    assert done.code == 1
    assert "pwn" in done.err
    assert not {"\x1b", "\x07"} & set(done.out + done.err)
    report = judged(Signed.model_validate(registration["signed"]), read_run(run).result, None)
    show_gates(report)
    shown = capsys.readouterr().out
    assert "pwn" in shown
    assert not {"\x1b", "\x07"} & set(shown)


def test_a_real_run_from_its_draft_to_its_approval(desk: Desk, folder: Path) -> None:
    overrides = ["experiment=own", f"data.agencies={folder}/agencies.yaml", "name=small", "tracking=none"]
    overrides += [f"output={folder}/outputs", "rounds=2", "evaluation.checkpoints=1"]
    file, signed = folder / "small.yaml", folder / "small.json"
    done = CliRunner().invoke(fedrisk, ["draft", *overrides, "--out", str(file)])
    assert done.exit_code == 0, done.output
    drafted = yaml.safe_load(file.read_text())
    asked = yaml.safe_load((GATES_FOLDER / "none.yaml").read_text())
    file.write_text(yaml.safe_dump(drafted | {"gates": asked | {"min_agencies": 2, "registered": True}}))
    desk.must("register", file, *desk.both, "--out", signed)
    run_study(read_study(compose([*overrides, f"registration={signed}"])))
    (run,) = (folder / "outputs").glob("small-*")
    assert json.loads((run / "result.json").read_text())["code_sha256"] == installed.code_sha256()

    desk.must("decide", run, *APPROVE, *desk.both)
    decision = desk.must("list", "--json").json["decisions"][-1]["decision_sha256"]
    desk.must("status", decision, *desk.key("alice"), "--yes")
    assert "may score with it until" in desk.must("deliver", decision, run).out
    desk.must("verify", run)


def test_every_command_has_help_with_an_example() -> None:
    names = [command.name or command.callback.__name__ for command in app.registered_commands]  # type: ignore[union-attr]
    assert len(names) > 12
    for name in names:
        done = panel(name, "--help")
        assert done.code == 0
        assert "Example: fedrisk-panel" in done.out, name
