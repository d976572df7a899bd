"""The process that holds the records: no network, one order after another, its data encoded once.

`clients.service` starts it and passes it the bytes of each order over a pipe; what comes back are the bytes of the
reply. It runs the fedrisk that IT installed. Which bundle a run names is compared with the one that this release
makes; a bundle itself never reaches this machine.

    python -m clients.worker FOLDER        (started by `fedrisk-node start`, of no use by hand)
"""

import hashlib
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp

from clients.app import make_app
from clients.flower import frames
from clients.flower.envelope import Answer, BadEnvelope, Task, open_task, seal
from clients.folder import NodeError, read_node_file
from clients.journal_lines import Rules
from clients.ledger import LedgerError
from clients.node import open_node
from clients.recorder import Recorder
from clients.records.data import DataError
from clients.records.sources import find_source, fingerprint
from federation import installed, wire
from federation.protocol import ORDERS, Reason, Refusal


class Worker:
    """Answers tasks for the node in `folder`, until what it was started with has changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.node = open_node(folder)
        self._app: ClientApp = make_app(lambda _: self.node)
        self._stamps = stamps(folder)
        policy = hashlib.sha256((folder / "policy.toml").read_bytes()).hexdigest()
        rules = Rules(policy_sha256=policy, contract_sha256=self.node.contract.sha256)
        self.node.journal.write(rules)
        self._read_at = time.monotonic()

    def changed(self) -> str | None:
        """What is not as it was when this process started, if anything is not: the process must begin anew."""
        try:
            minutes = find_source(self.folder, self.node.facts.table).reload_minutes
            now = stamps(self.folder)
        except (DataError, NodeError):
            return "a file of the folder"  # and a new process says what is wrong with it
        if minutes is not None and time.monotonic() - self._read_at > 60 * minutes:
            return "the database may have"
        different = sorted(
            name for name in now.keys() | self._stamps if now.get(name) != self._stamps.get(name)
        )
        return different[0] if different else None

    def answer(self, task: Task, *, refuse: Reason | None = None) -> Answer:
        """The reply to one task; `refuse` answers with that reason and does nothing else."""
        message = open_task(task)
        kind = message.metadata.message_type
        reason, why = (refuse, "worker: two workers died of it") if refuse else self._why_not(task, kind)
        if reason is None:
            return seal(self._app(message, self._context(task)), task.run_id)
        self.node.log.warning("refused, %s: %s", reason, why)
        Recorder(self.node.journal, kind).refused(reason, why)
        return seal(wire.pack_reply(Refusal(self.node.facts.name, reason), message), task.run_id)

    def _why_not(self, task: Task, kind: str) -> tuple[Reason | None, str]:
        """Why an order is not even looked at, if it is not."""
        if (self.folder / "left.json").exists():
            return Reason.LEFT, "left: this agency has left the federation"
        if task.fab_hash != installed.fab_hash():
            return Reason.VERSION, (
                f"release: the run names bundle {task.fab_hash[:16]} of version {task.fab_version[:32]}; this node runs "
                f"fedrisk {installed.version()}, whose bundle is {installed.fab_hash()[:16]}. Nothing of the other was "
                "fetched"
            )
        if kind not in ORDERS:
            return Reason.MALFORMED, "order: no order of this kind is known"
        return None, ""

    def _context(self, task: Task) -> Context:
        config: dict[str, Any] = {}
        return Context(task.run_id, task.node_id, node_config=config, state=RecordDict(), run_config=config)


def stamps(folder: Path) -> dict[str, object]:
    """What tells that a file which this process has read is another now: rules, contract, and the data's own stamp."""
    facts = read_node_file(folder / "node.toml")
    names = ("node.toml", "policy.toml", "data.toml", "left.json", facts.contract)
    files: dict[str, object] = {name: _stamp(folder / name) for name in names}
    return files | {"the data": fingerprint(find_source(folder, facts.table))}


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def serve(worker: Worker, inbox: IO[bytes], outbox: IO[bytes]) -> None:
    """Answer frames until the other end closes."""
    frames.write(outbox, {"ready": True})
    while True:
        facts, blobs = frames.read(inbox)
        changed = worker.changed()
        if changed is not None:
            frames.write(outbox, {"restart": f"{changed} changed"})
            return
        refuse = Reason(facts["refuse"]) if facts.get("refuse") else None
        try:
            answer = worker.answer(frames.task_of(facts, blobs), refuse=refuse)
        except BadEnvelope as error:
            worker.node.log.warning("an order was left unread: %s", error)
            frames.write(outbox, {"nothing": True})
            continue
        frames.write(outbox, *frames.of_answer(answer))


def quiet_excepthook(log: Callable[..., None]) -> Callable[..., None]:
    """An excepthook that says where, and not what: an error's text may quote a record."""

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        where = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(trace)]
        log("the worker ends with %s at %s", kind.__name__, " < ".join(reversed(where)))

    return hook


def main() -> None:
    """Serve over this process's standard input and output, which nothing else may write to."""
    inbox, outbox = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(1)
    log = logging.getLogger("fedrisk.node")
    try:
        worker = Worker(Path(sys.argv[1]))
    except Exception as error:  # noqa: BLE001 - said to the person who started the node
        said = str(error) if isinstance(error, ValueError | LedgerError) else type(error).__name__
        frames.write(outbox, {"cannot": said})
        raise SystemExit(1) from None
    log = worker.node.log
    sys.excepthook = quiet_excepthook(log.error)
    from clients import train  # noqa: F401 - Opacus takes seconds, and the first order should not pay for it

    try:
        serve(worker, inbox, outbox)
    except frames.PipeEnded:
        pass
    finally:
        worker.node.close()


if __name__ == "__main__":
    main()
