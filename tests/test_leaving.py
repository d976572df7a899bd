"""Leaving: who, when and why is signed, keys can be destroyed, and the coordinator keeps the statement as evidence."""

import json
import stat
from pathlib import Path

import pytest
import tomli_w

from clients import service
from clients.desk import leaving
from clients.desk.leaving import How
from clients.folder import NodeError
from clients.journal import read
from clients.keys import make_node_key, node_key, signing_key
from experiments.coordinator import statements
from experiments.coordinator.folder import CoordinatorError, Enrolled, Folder
from experiments.coordinator.registry import fingerprint
from federation.server.joining import Departures

LEAVES = How(leave=True, by="A. Khan", why="the project ended")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The folder of a node that is not at work."""
    home = tmp_path / "police"
    home.mkdir()
    facts = {"name": "police", "table": "people.csv", "contract": "contract.yaml", "public_size": 300}
    (home / "node.toml").write_text(tomli_w.dumps(facts))
    make_node_key(home)
    signing_key(home)
    return home


def enrolled(home: Path, name: str = "police") -> Enrolled:
    key = fingerprint(node_key(home).public_key())
    return Enrolled(name=name, node_id=1, fingerprint=key, enrolled="2026-11-25T10:00:00+00:00")


@pytest.mark.parametrize(
    "how", [How(leave=True), How(leave=True, by="A. Khan"), How(destroy_keys=True, why="x")]
)
def test_who_leaves_says_who_and_why_or_nothing_happens(home: Path, how: How) -> None:
    with pytest.raises(NodeError, match='say who decides and why: --by "NAME" --why "REASON"'):
        leaving.stop(home, how, 1.0)
    assert leaving.has_left(home) is None
    assert (home / "node.key").exists()


def test_a_statement_is_signed_kept_once_and_checked(home: Path, tmp_path: Path) -> None:
    said = leaving.stop(home, LEAVES, 1.0)
    assert "police: was not at work" in said
    path = home / leaving.LEFT
    first = path.read_text()
    leaving.stop(home, How(leave=True, by="B. Jones", why="again"), 1.0)
    assert path.read_text() == first, "a second leave changes neither who left nor when"
    assert [(r.kind, r.facts.get("by")) for r in read(home)] == [("left", "A. Khan")]
    statement = statements.read(path, enrolled(home))
    folder = Folder(tmp_path)
    kept = statements.keep(folder, enrolled(home), statement)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert [(e["agency"], e["back"]) for e in Departures(tmp_path / "outputs").read()] == [("police", None)]


@pytest.mark.parametrize("change", ["why", "at", "agency", "signature", "key", "another agency", "no JSON"])
def test_a_statement_that_was_changed_or_is_anothers_is_refused(
    home: Path, tmp_path: Path, change: str
) -> None:
    leaving.stop(home, LEAVES, 1.0)
    path, agency = home / leaving.LEFT, enrolled(home)
    statement = json.loads(path.read_text())
    if change == "another agency":
        agency = enrolled(home, "health")
    elif change == "key":
        other = tmp_path / "other"
        other.mkdir()
        make_node_key(other)
        statement["key"] = (other / "node.pub").read_text().strip()
    elif change != "no JSON":
        statement[change] = f"{statement[change]}x" if change != "signature" else statement["signature"][::-1]
    path.write_text("{" if change == "no JSON" else json.dumps(statement))
    with pytest.raises(CoordinatorError, match=r"is not signed by|is no statement"):
        statements.read(path, agency)


def test_destroyed_keys_are_gone_and_the_evidence_stays(home: Path) -> None:
    (home / "draws").mkdir()
    (home / "draws" / "ab.key").write_bytes(b"secret")
    (home / "cohorts").mkdir()
    (home / "cohorts" / "run-1.json").write_bytes(b"half of a secret")
    (home / "ledger.db").write_bytes(b"evidence")
    said = leaving.stop(home, How(destroy_keys=True, by="A. Khan", why="the project ended"), 1.0)
    assert "destroyed: node.key, signing.key, cohorts/run-1.json, draws/ab.key" in said
    assert not [*home.rglob("*.key"), *home.rglob("run-1.json")]
    assert (home / "ledger.db").exists()
    assert json.loads((home / leaving.LEFT).read_text())["signature"], "it was signed before the key went"


class Line:
    """A line to a SuperLink that has one order for the node, and says when the reply came."""

    def __init__(self, host: service.Service) -> None:
        self.host, self.orders, self.pushed = host, ["an order"], list[str]()

    def pull(self) -> str | None:
        return self.orders.pop() if self.orders else None

    def push(self, answer: str) -> None:
        self.pushed.append(answer)


@pytest.mark.parametrize("says", ["leave", "stop"])
def test_the_line_stays_open_until_the_last_reply_can_have_been_fetched(
    home: Path, monkeypatch: pytest.MonkeyPatch, says: str
) -> None:
    """A SuperLink gives no reply of a node that is gone, not even one that it has: LEFT would never be heard."""
    facts = tomli_w.dumps({"superlink": {"address": "127.0.0.1:1", "insecure": True}})
    (home / "node.toml").write_text((home / "node.toml").read_text() + facts)
    host = service.Service(home, 0, lambda _: None)
    line, slept = Line(host), list[float]()

    def answer(task: str) -> str:
        if says == "stop":  # told to while it has the order in hand
            host._stopping.set()
        return f"the answer to {task}"

    monkeypatch.setattr(host.worker, "ask", answer)
    monkeypatch.setattr(service.time, "sleep", slept.append)
    if says == "leave":
        host._leaves_at = service.time.monotonic()
    host._work(line)  # type: ignore[arg-type]
    assert line.pushed == ["the answer to an order"]
    assert slept[-1] == pytest.approx(service.UNTIL_FETCHED, abs=1.0)
