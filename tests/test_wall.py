"""Nothing of a record leaves an agency: canaries in every cell, and a search of everything that was sent or written.

The privacy of what does leave (clipping, noise, what is charged) is in test_train.py, test_privacy.py and
test_federation.py. Here is the rest: texts, names, paths, counts, and what errors say.
"""

import base64
import json
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import fedrisk, files_under, small_run
from conftest import CONTRACT, MakeStudy, people, write_table
from flwr.app import Message, RecordDict
from flwr.common.serde import message_to_proto, recorddict_to_proto

from clients.app import Clock, make_app, node_from_config
from clients.approvals import Approvals
from clients.node import open_node
from experiments import engines
from experiments.config import Study
from federation import wire
from federation.plan import Refused, TrainPlan
from federation.protocol import AgreeOrder, KeysOrder, MaskedReply, Reason, Refusal, RoundOrder, RoundReply
from federation.secagg import Secrets
from federation.server.result import RunFacts
from federation.server.rounds import RunError, run_federation

CANARY = "CANARY9C4E"  # in texts, names and paths
AGE, VISITS, DAYS = 61.0312571, 7.7182843, 83.1928374  # numbers that nothing else computes
WIRE: list[bytes] = []  # everything that was sent, both ways
REPLIES: list[Message] = []
SECRETS: dict[str, bytes] = {}  # what masks grow from, as it was on the agencies' disks during a run
SHARED = ("strategy=dp_fedsgd", "privacy=shared", "privacy.dropouts=0")  # three agencies: all must stay


class Wiretap(engines.LocalGrid):
    """Keeps every message as the bytes that Flower would send."""

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        WIRE.extend(message_to_proto(message).SerializeToString() for message in messages)
        sent = list(super().push_messages(messages))
        for context in self._contexts.values():
            SECRETS.update(secrets_in(Path(str(context.node_config["node-dir"]))))
        return sent

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        found = list(super().pull_messages(message_ids))
        WIRE.extend(message_to_proto(message).SerializeToString() for message in found)
        REPLIES.extend(found)
        return found


def secrets_in(node: Path) -> dict[str, bytes]:
    """A node's signing key, and of each set-up of keys the root and all that is dealt in shares."""
    found = {f"signing key of {path}": path.read_bytes() for path in node.glob("signing.key")}
    for path in node.glob("masks/*.keys"):
        own = Secrets.from_dict(json.loads(path.read_text())["secrets"])
        found[f"root of {path} {own.root.hex()[:8]}"] = own.root
        for draw in range(own.draws):
            found[f"mask seed {draw} of {path} {own.root.hex()[:8]}"] = own.mask_seed(draw)
            found[f"self seed {draw} of {path} {own.root.hex()[:8]}"] = own.self_seed(draw)
            found[f"mask key {draw} of {path} {own.root.hex()[:8]}"] = own.mask_key(draw).private_bytes_raw()
        found[f"share key of {path} {own.root.hex()[:8]}"] = own.share_key().private_bytes_raw()
    return found


@pytest.fixture(autouse=True)
def _silence() -> None:
    WIRE.clear()
    REPLIES.clear()
    SECRETS.clear()


@pytest.fixture
def planted(folder: Path) -> Path:
    """Three agencies whose every column holds a canary, in a folder whose name is one."""
    contract = CONTRACT | {
        "columns": CONTRACT["columns"] | {"borough": {"type": "category", "levels": ["east", "west"]}},
        "groups": {"sex": {"column": "sex", "levels": {"female": ["f"], "male": ["m"]}}},
        "intensity": {"column": "contacts", "levels": {"seldom": ["0"], "often": ["1", "2"]}},
        "lead_time": {"column": "days", "edges": [30, 90], "unit": "days"},
        "practice": {"column": "listed", "positive": ["yes"]},
    }
    (folder / "contract.yaml").write_text(yaml.safe_dump(contract, sort_keys=False))
    listing = yaml.safe_load((folder / "agencies.yaml").read_text())
    (folder / CANARY).mkdir()
    for seed, agency in enumerate(listing["agencies"]):
        write_table(folder / CANARY / f"{agency['name']}.csv", planted_rows(seed))
        agency["table"] = f"{CANARY}/{agency['name']}.csv"
    (folder / "agencies.yaml").write_text(yaml.safe_dump(listing))
    return folder


def planted_rows(seed: int, n: int = 300) -> list[dict[str, Any]]:
    found = people(seed, n)
    for i, row in enumerate(found):
        row |= {
            "person": f"{CANARY}-person-{seed}-{i}",
            "borough": f"{CANARY}-borough",
            f"{CANARY}-column": 1,
        }
        row |= {"outcome": row["outcome"] or f"{CANARY}-no"}
        row |= {"contacts": i % 3, "days": i, "listed": "yes" if i % 4 == 0 else f"{CANARY}-list"}
        row |= {"age": AGE, "visits": VISITS, "sex": f"{CANARY}-sex"} if i % 10 == 0 else {}
        row |= {"contacts": f"{CANARY}-contacts", "days": DAYS} if i % 5 == 0 else {}
    return found


def canaries(folder: Path) -> dict[str, bytes]:
    """What to search for: texts, numbers as text and as they lie in memory, and each node's split key."""
    found = {"a cell, a name or a path": CANARY.encode()}
    for value in (AGE, VISITS, DAYS, (AGE - 50) / 50, (VISITS - 5) / 5):
        found |= {f"{value}": f"{value}"[:7].encode(), f"{value} f8": struct.pack("<d", value)}
        found[f"{value} f4"] = struct.pack("<f", value)
    keys = {str(path): path.read_bytes() for path in folder.rglob("split.key")}
    for name, key in (keys | SECRETS).items():
        found |= {f"key {name}": key, f"hex {name}": key.hex().encode()}
        found[f"base64 {name}"] = base64.b64encode(key)[:-4]
    return found


def leaks(sent: Iterable[tuple[object, bytes]], folder: Path) -> list[str]:
    """Which canaries are in what was sent, printed or written."""
    wanted = canaries(folder)
    return [
        f"{name} in {where}" for where, content in sent for name, value in wanted.items() if value in content
    ]


def outside(home: Path) -> dict[Path, bytes]:
    """Every file of a run but those of the agencies' own folders."""
    return files_under(home, *home.rglob("nodes"))


@pytest.mark.parametrize("overrides", [(), SHARED], ids=["local", "shared"])
def test_a_whole_run_lets_no_canary_out(
    planted: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    monkeypatch.setattr(engines, "LocalGrid", Wiretap)
    words = small_run(planted, f"tracking.uri=sqlite:///{planted}/outputs/mlflow.db", "reference=true")
    words += overrides
    done = fedrisk(*words, "rounds=2", "evaluation.checkpoints=1")
    assert done.code == 0, done.err
    written = outside(planted / "outputs")
    names = {path.name for path in written}
    assert {"result.json", "report.html", "model.safetensors", "experiment.json", "mlflow.db"} <= names
    assert {"evidence.json", "model-card.json", "atrs.json"} <= names
    assert any(path.is_relative_to(planted / "outputs" / "mlartifacts") for path in written)
    asked = 3 + 2 * 3 + 3 if not overrides else 3 + 2 * 3 + 3 * 3 * 3
    assert len(WIRE) >= 2 * asked, "ready, (keys, dealt,) two rounds and the last tables, there and back"
    assert sum(name.startswith("signing key") for name in SECRETS) >= 3
    of_masks = [
        n for n in SECRETS if not n.startswith("signing key") and "/inner-" not in n
    ]  # of the run itself
    assert len(of_masks) == (3 * (1 + 3 * 3 + 1) if overrides else 0), "a root, three draws, a share key"
    assert leaks(enumerate(WIRE), planted) == []
    assert leaks([("stdout", done.out.encode()), ("stderr", done.err.encode())], planted) == []
    assert leaks(written.items(), planted) == []
    logs = {path: path.read_bytes() for path in (planted / "outputs").rglob("log/*")}
    assert sorted({path.name for path in logs}) == ["journal.head", "journal.jsonl", "node.log"]
    assert len(logs) == 3 * 3
    assert leaks(logs.items(), planted) == [], "an agency's own log holds no cell either"


def test_the_search_finds_what_is_there(planted: Path, make_study: MakeStudy) -> None:
    """A control: every canary is in the tables, and in memory as the search expects it."""
    study = make_study()
    (node, *_) = make_nodes(study, planted / "run")
    own = files_under(planted / CANARY) | files_under(planted / "run")
    found = "\n".join(leaks(own.items(), planted))
    assert all(
        f"{what} in " in found for what in ("a cell, a name or a path", f"{AGE}", f"{VISITS}", f"{DAYS}")
    )
    assert f"key {node}/split.key in " in found
    SECRETS.update(secrets_in(node))
    own = [(path, content) for path, content in files_under(node).items() if path.name == "signing.key"]
    assert f"key signing key of {node}/signing.key in {node}/signing.key" in leaks(own, planted)
    x = open_node(node)._dataset(0.2, 0.2).part("train")[0].numpy()
    assert leaks([("x", x.tobytes())], planted) == [f"{(AGE - 50) / 50} f4 in x"]


def make_nodes(study: Study, folder: Path) -> list[Path]:
    return engines.make_node_folders(
        study.agencies, study.experiment.contract, folder / "nodes", seed=0, min_people=50
    )


# --- errors -------------------------------------------------------------------------------------------


def quoting(*_: object, **__: object) -> Any:
    """Fails as data libraries do: with a cell in the text, in the arguments and in the cause."""
    try:
        raise ValueError(f"could not convert string to float: '{CANARY}'")
    except ValueError as error:
        raise KeyError(f"{CANARY} {AGE}", error) from error


def only_for_round_replies(reply: object, message: Message) -> Message:
    return quoting() if isinstance(reply, RoundReply | MaskedReply) else PACK(reply, message)  # type: ignore[arg-type]


PACK = wire.pack_reply
STEPS: dict[str, tuple[str, Callable[..., Any]]] = {
    "find": ("clients.app.open_node", quoting),
    "probing": ("clients.probing.Probing.check", quoting),
    "approvals": ("clients.approvals.Approvals.standing", quoting),
    "review": ("clients.rules.review", quoting),
    "hours": ("clients.rules.review_now", quoting),
    "accepted": ("clients.probing.Probing.accepted", quoting),
    "read": ("clients.records.data.gather", quoting),
    "validate": ("clients.records.data.validate", quoting),
    "encode": ("clients.records.data.encode", quoting),
    "split": ("clients.records.data.split", quoting),
    "reserve": ("clients.ledger.Ledger.reserve", quoting),
    "model": ("clients.node.Node._module", quoting),
    "charge": ("clients.ledger.Ledger.charge", quoting),
    "noise": ("clients.train.simulated_noise", quoting),
    "sample": ("clients.train.simulated_sampling", quoting),
    "train": ("clients.train.dp_fit", quoting),
    "evaluate": ("clients.node.noised_table", quoting),
    "pack": ("clients.app.wire.pack_reply", only_for_round_replies),
}
ONLY_LOCAL = ("noise", "train", "evaluate")
MASKED_STEPS = {step: STEPS[step] for step in STEPS if step not in ONLY_LOCAL} | {
    "sum": ("clients.train.dp_sum", quoting),
    "count": ("clients.node.table_counts", quoting),
    "share": ("clients.randomness.discrete_gaussian", quoting),
    "grid": ("clients.node.masks.to_grid", quoting),
    "wrap": ("clients.node.masks.wrap", quoting),
    "advert": ("clients.masking.secagg.advert", quoting),
    "bind": ("clients.masking.secagg.bind", quoting),
    "deal": ("clients.masking.secagg.deal", quoting),
    "mask": ("clients.masking.secagg.mask", quoting),
    "sign": ("clients.masking.secagg.sign_survivors", quoting),
    "open": ("clients.masking.secagg.open_shares", quoting),
    "keep": ("clients.masking.Masks._did", quoting),
}
EVERY_STEP = [(step, False) for step in STEPS] + [(step, True) for step in MASKED_STEPS]
LATER = ("evaluate", "count", "sign", "open")  # some replies of rounds were sent before


@pytest.mark.parametrize(("step", "masked"), EVERY_STEP)
def test_an_error_at_any_step_is_unavailable_and_says_nothing(
    planted: Path, make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch, step: str, masked: bool
) -> None:
    overrides = SHARED if masked else ()
    study = make_study("rounds=2", "join_timeout=0.1", "round_timeout=0.2", *overrides)
    nodes = make_nodes(study, planted / "run")
    grid = Wiretap(make_app(node_from_config), [{"node-dir": str(node)} for node in nodes])
    target, fail = (MASKED_STEPS if masked else STEPS)[step]
    monkeypatch.setattr(target, fail)
    with pytest.raises(RunError) as stopped:
        run_federation(grid, study.experiment, RunFacts("run-1", "local", True), planted / "run")
    replies = [wire.read_reply(message) for message in REPLIES]
    refusals = [reply for reply in replies if isinstance(reply, Refusal)]
    assert len(refusals) == 3
    assert {reply.reason for reply in refusals} == {Reason.UNAVAILABLE}
    assert any(isinstance(reply, RoundReply | MaskedReply) for reply in replies) == (step in LATER)
    assert not any(message.has_error() for message in REPLIES)
    said = [("the coordinator's error", str(stopped.value).encode())]
    logs = [(path, path.read_bytes()) for path in planted.rglob("log/*")]
    assert leaks([*enumerate(WIRE), *said, *logs, *outside(planted / "run").items()], planted) == []


@pytest.mark.parametrize(
    ("step", "overrides"), [("noised_users", ()), ("user_counts", SHARED)], ids=["local", "shared"]
)
def test_an_error_in_the_table_of_users_is_unavailable_and_says_nothing(
    planted: Path,
    make_study: MakeStudy,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    overrides: tuple[str, ...],
) -> None:
    """It comes last, so the run ends with a result that has no such table."""
    study = make_study("rounds=2", "join_timeout=0.1", "round_timeout=0.2", *overrides)
    nodes = make_nodes(study, planted / "run")
    grid = Wiretap(make_app(node_from_config), [{"node-dir": str(node)} for node in nodes])
    monkeypatch.setattr(f"clients.node.{step}", quoting)
    result = run_federation(grid, study.experiment, RunFacts("run-1", "local", True), planted / "run")
    refusals = [reply for message in REPLIES if isinstance(reply := wire.read_reply(message), Refusal)]
    assert [reply.reason for reply in refusals] == [Reason.UNAVAILABLE] * 3
    assert result["users"]["sigma"] is None
    said = [("result", json.dumps(result).encode())]
    logs = [(path, path.read_bytes()) for path in planted.rglob("log/*")]
    assert leaks([*enumerate(WIRE), *said, *logs, *outside(planted / "run").items()], planted) == []


# --- what a reply may hold ----------------------------------------------------------------------------


def replies_of(study: Study, folder: Path, n: int) -> list[tuple[str, bytes]]:
    """What north sends (its JSON, and everything) when its table has n people."""
    write_table(folder / CANARY / "north.csv", planted_rows(0, n))
    REPLIES.clear()
    nodes = make_nodes(study, folder / f"run-{n}")
    grid = Wiretap(make_app(node_from_config), [{"node-dir": str(node)} for node in nodes])
    run_federation(grid, study.experiment, RunFacts("run-1", "local", True), folder / f"run-{n}")
    mine = [message for message in REPLIES if json.loads(small(message))["agency"] == "north"]
    return [(small(message), recorddict_to_proto(message.content).SerializeToString()) for message in mine]


def small(message: Message) -> str:
    return str(message.content["fedrisk"]["json"])


def without_chance(value: Any) -> Any:
    """What a reply says, but for what is random whoever the people are: a ledger's hashes, keys, shares."""
    if isinstance(value, dict):
        return {key: without_chance(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_chance(item) for item in value]
    if isinstance(value, str) and RANDOM.fullmatch(value):
        return f"{len(value)} characters"
    return value


RANDOM = re.compile(r"[0-9a-f]{64}|[A-Za-z0-9+/]{22,}={0,2}")  # a hash in hex; 16 bytes or more in base64


@pytest.mark.parametrize(
    ("overrides", "replies", "keys"),
    [
        ((), 1 + 3 + 1, {"kind", "agency", "releases", "trained", "head", "keeps"}),
        (
            SHARED,
            1 + 2 + 3 * (3 + 1),
            {"kind", "agency", "releases", "head", "keeps", "advert", "sealed", "signature", "shares"},
        ),
    ],
    ids=["local", "shared"],
)
def test_no_count_leaves_and_a_reply_has_the_same_size_for_any_number_of_people(
    planted: Path, make_study: MakeStudy, overrides: tuple[str, ...], replies: int, keys: set[str]
) -> None:
    study = make_study("rounds=3", "evaluation.checkpoints=2", *overrides)
    many, fewer = replies_of(study, planted, 1237), replies_of(study, planted, 411)
    assert len(many) == len(fewer) == replies
    said = [[without_chance(json.loads(text)) for text, _ in each] for each in (many, fewer)]
    assert said[0] == said[1]
    assert [len(content) for _, content in many] == [len(content) for _, content in fewer]
    assert set().union(*(json.loads(text) for text, _ in many)) == keys
    counts = counts_of(planted / "run-1237" / "nodes" / "north")
    assert 1237 in counts
    assert not counts & {value for text, _ in many for value in numbers(json.loads(text))}


# --- how long a reply takes ---------------------------------------------------------------------------

FLOOR = 7.0


class Time:
    """A clock that a test moves: each look at it is a moment later."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        self.seconds += 0.001
        return self.seconds

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.seconds += seconds


def asked(plan: TrainPlan, weights: Any) -> dict[str, tuple[Callable[[int], Message], str]]:
    """Orders, and what each is answered with."""
    other = plan.but(purpose="ranking")
    masked = RoundOrder(plan, 1, weights, True, draw=0, transcript="00")
    wrong = Message(RecordDict(), dst_node_id=1, message_type="train.round")
    return {
        "ready": (lambda node: wire.pack_ready_order(plan, node), "Ready"),
        "keys": (lambda node: wire.pack_keys_order(KeysOrder(plan, 2), node), "Keys"),
        "another purpose": (lambda node: wire.pack_ready_order(other, node), "PURPOSE"),
        "no masks": (lambda node: wire.pack_round_order(masked, node), "MASKS"),
        "no list": (lambda node: wire.pack_agree_order(AgreeOrder("run-1", "", 0, ()), node), "MASKS"),
        "malformed": (lambda node: wrong, "MALFORMED"),
        "an error": (lambda node: wire.pack_ready_order(plan, node), "UNAVAILABLE"),
        "a person": (lambda node: wire.pack_ready_order(plan, node), "NOT_YET"),
        "at night": (lambda node: wire.pack_ready_order(plan, node), "CLOSED"),
        "withdrawn": (lambda node: wire.pack_ready_order(plan, node), "WITHDRAWN"),
        "probed": (lambda node: wire.pack_ready_order(plan, node), "BUSY"),
    }


NEVER = 'hours = {timezone = "UTC", from = "08:00", to = "08:01", days = ["mon"]}\n'  # but on Monday mornings
MORE_RULES = {"a person": "ask = true\n", "at night": NEVER}


def probed(*_: object) -> None:
    raise Refused(Reason.BUSY, "probing.refusals: too many")


@pytest.mark.parametrize(
    "case",
    [
        *("ready", "keys", "another purpose", "no masks", "no list", "malformed", "an error"),
        *("a person", "at night", "withdrawn", "probed"),
    ],
)
def test_every_reply_takes_at_least_as_long_as_the_policy_says(
    planted: Path, make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    study = make_study("rounds=1", "evaluation.checkpoints=1", *SHARED)
    (node, *_) = make_nodes(study, planted / "run")
    policy = node / "policy.toml"
    policy.write_text(f"min_reply_seconds = {FLOOR}\n" + MORE_RULES.get(case, "") + policy.read_text())
    plan, time = study.experiment.plan("run-1", simulation=True), Time()
    order, answer = asked(plan, {})[case]
    if case == "an error":
        monkeypatch.setattr("clients.ledger.Ledger.reserve", quoting)
    if case == "withdrawn":
        Approvals(node).withdraw(plan.sha256, "A. Jones", "for a test", datetime.now(UTC))
    if case == "probed":
        monkeypatch.setattr("clients.probing.Probing.check", probed)
    open_node(node).now = lambda: datetime(2026, 1, 4, 12, tzinfo=UTC)  # a Sunday
    grid = engines.LocalGrid(
        make_app(node_from_config, Clock(time.now, time.sleep)), [{"node-dir": str(node)}]
    )

    def reply_after(work: float) -> float:
        started = time.seconds
        real = type(open_node(node))._review
        with monkeypatch.context() as patched:
            patched.setattr(
                type(open_node(node)), "_review", lambda *what: (time.sleep(work), real(*what))[1]
            )
            (message,) = grid.pull_messages(grid.push_messages([order(1)]))
        reply = wire.read_reply(message)
        assert (reply.reason if isinstance(reply, Refusal) else type(reply).__name__) == answer
        return time.seconds - started

    takes = [reply_after(work) for work in (0.0, 0.3, FLOOR - 0.1)]
    assert min(takes) >= FLOOR
    assert max(takes) < FLOOR + 0.01, "and no longer: what it did does not show"
    if case in ("ready", "keys"):
        assert reply_after(2 * FLOOR) >= 2 * FLOOR, "who takes longer waits no more"


def counts_of(node: Path) -> set[float]:
    """People of the agency: all, in each part, and with the outcome."""
    parts = [open_node(node)._dataset(0.2, 0.2).part(name)[1] for name in ("train", "tune", "test")]
    sizes = [len(y) for y in parts if y is not None]
    return {float(n) for n in [sum(sizes), *sizes, *(int(y.sum()) for y in parts if y is not None)]}


def numbers(value: object) -> Iterator[float]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def test_a_node_shows_no_record_when_it_is_printed(planted: Path, make_study: MakeStudy) -> None:
    """A debugger, a log or a crash report may print what is in memory; its cells are not among it."""
    node = open_node(make_nodes(make_study(), planted / "run")[0])
    assert CANARY not in f"{node!r} {node._dataset(0.2, 0.2)!r}"
