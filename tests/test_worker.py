"""The two processes of a node: frames between them, what restarts the worker, and orders that are none."""

import hashlib
import io
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import tomli_w
import yaml
from conftest import CONTRACT, MakeStudy, people, permits, write_table
from flwr.app import Message, RecordDict
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from clients import service
from clients.app import make_app
from clients.flower import frames
from clients.flower.envelope import Answer, BadEnvelope, Task, open_task, seal
from clients.flower.link import FLOWER
from clients.folder import NodeError, SuperLinkFile, WorkerRules, file_log
from clients.journal import read
from clients.node import open_node
from clients.worker import Worker
from federation import installed, wire
from federation.plan import TrainPlan
from federation.protocol import READY, Ready, Reason, Refusal, Reply

CANARY = "canary-person"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A node that guards records."""
    home = tmp_path / "north"
    (home / "log").mkdir(parents=True)
    write_table(
        home / "people.csv", [row | {"person": f"{CANARY}-{row['person']}"} for row in people(0, 300)]
    )
    facts = {"name": "north", "kind": "police", "table": "people.csv", "contract": "contract.yaml"}
    (home / "node.toml").write_text(tomli_w.dumps(facts | {"public_size": 300}))
    policy = permits(min_people=100, budget={"life": 50.0, "delta": 1e-5})
    (home / "policy.toml").write_text(tomli_w.dumps(policy))
    (home / "contract.yaml").write_text(yaml.safe_dump(CONTRACT, sort_keys=False))
    return home


@pytest.fixture
def plan(make_study: MakeStudy) -> TrainPlan:
    return make_study().experiment.plan("run-1", simulation=False)


def task_of(message: Message, fab_hash: str | None = None) -> Task:
    """`message` as the line would bring it."""
    message.metadata.__dict__["_message_id"] = message.object_id
    with no_object_id_recompute():
        objects = {name: value.deflate() for name, value in get_all_nested_objects(message).items()}
        identifier = message.object_id
    return Task(1, 1, identifier, fab_hash or installed.fab_hash(), installed.version(), objects)


def reply_of(answer: Answer | None) -> Reply:
    """What an answer says."""
    assert answer is not None
    identifier = MessageProto.FromString(answer.message).metadata.message_id
    message = inflate_object_from_contents(identifier, dict(answer.objects))
    assert isinstance(message, Message)
    return wire.read_reply(message)


def ready(plan: TrainPlan) -> Task:
    return task_of(wire.pack_ready_order(plan, 1))


def test_flowers_private_apis_are_those_of_one_release() -> None:
    """Another release of Flower needs clients/flower/ and federation/server/waiting.py to be read again."""
    assert version("flwr") == FLOWER
    from flwr.supercore.inflatable.inflatable_utils import pull_objects

    from federation.server import waiting

    waiting.wait_briefly()
    assert pull_objects.__kwdefaults__["initial_backoff"] == waiting.FIRST_WAIT


# --- frames ---------------------------------------------------------------------------------------------


def test_a_frame_survives_the_pipe() -> None:
    pipe = io.BytesIO()
    frames.write(pipe, {"a": 1, "b": None}, {"x": b"\0\1", "y": b""})
    frames.write(pipe, {})
    pipe.seek(0)
    assert frames.read(pipe) == ({"a": 1, "b": None}, {"x": b"\0\1", "y": b""})
    assert frames.read(pipe) == ({}, {})


@pytest.mark.parametrize("length", [0, 1, 8, 20, -1])
def test_half_a_frame_is_the_end_of_the_pipe(length: int) -> None:
    pipe = io.BytesIO()
    frames.write(pipe, {"a": 1}, {"x": b"0123456789"})
    with pytest.raises(frames.PipeEnded):
        frames.read(io.BytesIO(pipe.getvalue()[:length]))


def test_a_task_and_an_answer_survive_the_pipe(plan: TrainPlan) -> None:
    task = ready(plan)
    assert frames.task_of(*frames.of_task(task)) == task
    answer = Answer(7, b"message", b"tree", {"ab": b"1", "cd": b"22"})
    assert frames.answer_of(*frames.of_answer(answer)) == answer


# --- envelopes ------------------------------------------------------------------------------------------


def test_a_message_and_its_reply_survive_as_bytes(plan: TrainPlan) -> None:
    message = open_task(ready(plan))
    assert wire.read_ready_order(message) == (plan, {})
    answer = seal(wire.pack_reply(Refusal("north", Reason.MODEL), message), 1)
    assert reply_of(answer) == Refusal("north", Reason.MODEL)


@pytest.mark.parametrize("damage", ["a byte", "a missing part", "nothing at all", "no message"])
def test_bytes_that_are_not_what_they_say_are_no_message(plan: TrainPlan, damage: str) -> None:
    task = ready(plan)
    objects = dict(task.objects)
    name = next(iter(set(objects) - {task.message_id}))
    if damage == "a byte":
        objects[name] = objects[name][:-1] + bytes([objects[name][-1] ^ 1])
    elif damage == "a missing part":
        del objects[name]
    elif damage == "nothing at all":
        objects = {}
    task = replace(task, objects=objects, message_id=name if damage == "no message" else task.message_id)
    with pytest.raises(BadEnvelope):
        open_task(task)


# --- the worker, in this process -------------------------------------------------------------------------


@pytest.fixture
def worker(home: Path) -> Iterator[Worker]:
    open_node.cache_clear()
    found = Worker(home)
    yield found
    found.node.close()


def test_a_worker_answers_what_the_app_answers(worker: Worker, plan: TrainPlan) -> None:
    reply = reply_of(worker.answer(ready(plan)))
    assert isinstance(reply, Ready)
    assert reply.agency == "north"
    assert callable(make_app(lambda _: worker.node))


def test_an_order_of_another_release_is_refused_before_it_is_read(worker: Worker, plan: TrainPlan) -> None:
    reply = reply_of(worker.answer(task_of(wire.pack_ready_order(plan, 1), fab_hash="ab" * 32)))
    assert reply == Refusal("north", Reason.VERSION)
    assert worker.node.ledger.head[0] == 1, "nothing but its birth is in the ledger"
    assert "release: the run names bundle abababababababab" in (worker.folder / "log/node.log").read_text()


def test_a_node_that_has_left_answers_so_to_everything(worker: Worker, plan: TrainPlan) -> None:
    (worker.folder / "left.json").write_text("{}")
    assert reply_of(worker.answer(ready(plan))) == Refusal("north", Reason.LEFT)


@pytest.mark.parametrize("content", [{}, {"fedrisk": {"json": "["}}, {"fedrisk": {"json": "[]"}}])
def test_an_order_that_does_not_decode_is_malformed(
    worker: Worker, content: dict[str, dict[str, str]]
) -> None:
    from flwr.app import ConfigRecord

    record = RecordDict({key: ConfigRecord(value) for key, value in content.items()})  # type: ignore[arg-type]
    for kind in (READY, "train.round", "query.stats", "query.keys"):
        reply = reply_of(worker.answer(task_of(Message(record, dst_node_id=1, message_type=kind))))
        assert reply == Refusal("north", Reason.MALFORMED), kind


def test_an_order_that_nobody_knows_does_not_end_the_worker(worker: Worker) -> None:
    message = Message(RecordDict(), dst_node_id=1, message_type="train.anything")
    reply = reply_of(worker.answer(task_of(message)))
    assert reply == Refusal("north", Reason.MALFORMED)


@pytest.mark.parametrize("name", ["node.toml", "policy.toml", "contract.yaml", "people.csv", "left.json"])
def test_a_file_that_was_changed_is_noticed(worker: Worker, name: str) -> None:
    assert worker.changed() is None
    path = worker.folder / name
    path.write_text((path.read_text() if path.exists() else "") + "\n")
    assert worker.changed() is not None


# --- the worker, as a process ----------------------------------------------------------------------------


class Said:
    """A service's worker, and what its log says."""

    def __init__(self, home: Path, **rules: int) -> None:
        self.home = home
        self.lock = os.open(home / service.LOCK, os.O_RDWR | os.O_CREAT)
        self.worker = service.Worker(home, WorkerRules(**rules), file_log(home, "north"), self.lock)

    @property
    def log(self) -> str:
        return (self.home / "log" / "node.log").read_text()

    @property
    def pid(self) -> int:
        assert self.worker._process is not None
        return self.worker._process.pid


@pytest.fixture
def said(home: Path, request: pytest.FixtureRequest) -> Iterator[Said]:
    found = Said(home, **getattr(request, "param", {}))
    yield found
    found.worker.stop(now=True)
    os.close(found.lock)


@pytest.mark.parametrize("said", [{"orders": 2}], indirect=True)
def test_a_worker_ends_after_its_orders_and_when_it_is_killed_and_when_a_file_changes(
    said: Said, plan: TrainPlan
) -> None:
    """One test for the three, because each start takes seconds."""
    assert isinstance(reply_of(said.worker.ask(ready(plan))), Ready)
    first = said.pid
    assert isinstance(reply_of(said.worker.ask(ready(plan))), Ready)
    assert said.pid == first, "it stays warm"
    assert isinstance(reply_of(said.worker.ask(ready(plan))), Ready)
    assert said.pid != first
    assert "a new worker after 2 orders" in said.log
    os.kill(said.pid, signal.SIGKILL)
    assert isinstance(reply_of(said.worker.ask(ready(plan))), Ready)
    change = tomli_w.dumps(permits(min_people=100, models=[], budget={"life": 50.0, "delta": 1e-5}))
    (said.home / "policy.toml").write_text(change)
    assert reply_of(said.worker.ask(ready(plan))) == Refusal("north", Reason.MODEL)
    assert "a new worker: policy.toml changed" in said.log
    rules = [record.facts["policy_sha256"] for record in read(said.home) if record.kind == "rules"]
    assert len(rules) == 4
    assert len(set(rules)) == 2, "which rules were in force when is in the log"
    assert rules[-1] == hashlib.sha256((said.home / "policy.toml").read_bytes()).hexdigest()
    assert CANARY not in said.log + (said.home / "log" / "worker.log").read_text()


def test_an_order_that_kills_every_worker_is_answered_with_unavailable(
    said: Said, plan: TrainPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = service.Worker._ask

    def deadly(self: service.Worker, task: Task, *, refuse: str | None) -> Answer | None:
        if refuse is None:
            self.start()
            os.kill(said.pid, signal.SIGKILL)
        return real(self, task, refuse=refuse)

    monkeypatch.setattr(service.Worker, "_ask", deadly)
    monkeypatch.setattr(service.Worker, "start", _started_once_more(said))
    assert reply_of(said.worker.ask(ready(plan))) == Refusal("north", Reason.UNAVAILABLE)
    assert said.log.count("the worker ended (signal 9) while it had an order") == service.ATTEMPTS


def _started_once_more(said: Said) -> object:
    """`start` that does not bring back a worker which was just killed before it is asked."""
    real, killed = service.Worker.start, set[int]()

    def start(self: service.Worker) -> None:
        if self._process is not None and self._process.pid not in killed and self._process.returncode is None:
            killed.add(self._process.pid)
            return
        real(self)

    return start


def test_a_worker_that_cannot_start_says_why_in_one_sentence(said: Said) -> None:
    (said.home / "policy.toml").write_text("budget = 1\n")
    with pytest.raises(NodeError, match=r"policy\.toml: budget"):
        said.worker.start()


# --- the folder -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["10.0.0.1:9092", "fedrisk.example.org:443", "[2001:db8::1]:443"])
def test_nothing_in_the_clear_outside_the_loopback(address: str) -> None:
    assert not SuperLinkFile(address=address).insecure
    with pytest.raises(ValueError, match="nothing crosses a network in the clear"):
        SuperLinkFile(address=address, insecure=True)


@pytest.mark.parametrize("address", ["127.0.0.1:9092", "localhost:1", "[::1]:443", "127.3.2.1:443"])
def test_the_loopback_may_be_in_the_clear(address: str) -> None:
    assert SuperLinkFile(address=address, insecure=True).insecure


@pytest.mark.parametrize("address", ["", "host", "host:", "https://host:1", "host:port", "host:1/path"])
def test_an_address_is_a_host_and_a_port(address: str) -> None:
    with pytest.raises(ValueError, match="address"):
        SuperLinkFile(address=address)
