"""`fedrisk-node start`: the process that keeps the line to the SuperLink, and a worker that holds the records.

Two processes, one folder. This one has the network and the node's key, and never opens a record; the worker
(`clients.worker`) has the records and the ledger, and no network. Only the bytes of orders and replies pass between
them. The worker is started again when it dies, when a file that it has read was changed, and after some orders; the
line is opened again whenever it breaks. An order whose worker died is given to a new one, whose noise is the same
(`clients.draws`); after the second time it is answered with UNAVAILABLE.
"""

import contextlib
import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Literal

from clients.flower import frames
from clients.flower.envelope import Answer, Task
from clients.flower.link import Link, LinkError, RunIsOver
from clients.folder import NodeError, NodeFile, WorkerRules, file_log, read_node_file
from clients.journal import Journal
from clients.journal_lines import Started, Stopped
from clients.keys import node_key
from federation import installed

LOCK = "node.lock"
# Seconds between looks for an order, while orders come and else; how long "while" is. A look costs the SuperLink about
# 8 ms of its one core, so looking more often makes rounds longer.
QUICK, SLOW, LIVELY = 0.2, 1.0, 60.0
FIRST_WAIT, LONGEST_WAIT = 1.0, 10.0  # seconds before the line is tried again; a lease lasts 66 at most
ATTEMPTS = 2  # workers that may die of one order
GOODBYE = 30.0  # seconds in which somebody may ask a node that leaves, and is answered
# Seconds that the line stays open after a reply: a SuperLink gives no reply of a node that is gone, not even one that it
# has, so whoever asked must have fetched it first.
UNTIL_FETCHED = 3.0
Say = Callable[[str], None]
Signal = Literal["soon", "now", "leave"]
SIGNALS: dict[Signal, signal.Signals] = {
    "soon": signal.SIGTERM,
    "now": signal.SIGQUIT,
    "leave": signal.SIGUSR1,
}
ENVIRONMENT = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1"}


class StopNow(BaseException):
    """Stop without finishing the order in hand."""


class WorkerEnded(Exception):
    """The worker is gone, or does not want to go on."""


class Worker:
    """The other process, started when it is needed."""

    def __init__(self, folder: Path, rules: WorkerRules, log: logging.Logger, lock: int) -> None:
        self._folder, self._rules, self._log, self._lock = folder, rules, log, lock
        self._process: subprocess.Popen[bytes] | None = None
        self._orders = 0

    def start(self) -> None:
        """Start the process if there is none, and wait until it is ready; `NodeError` says why it cannot work."""
        if self._process is not None and self._process.poll() is None:
            return
        self.stop()
        with (self._folder / "log" / "worker.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "clients.worker", str(self._folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **ENVIRONMENT},
                pass_fds=(self._lock,),  # a worker that outlives this process still holds the folder
                start_new_session=True,  # Ctrl-C is for the service, which lets the worker finish
            )
        self._orders = 0
        try:
            facts, _ = frames.read(self._pipe("stdout"))
        except frames.PipeEnded:
            raise NodeError("the worker ended while it started: log/worker.log says more") from None
        if "cannot" in facts:
            raise NodeError(str(facts["cannot"]))

    def ask(self, task: Task) -> Answer | None:
        """The answer to `task`, from as many workers as it takes; None where the task is no order at all."""
        deaths = 0
        while True:
            try:
                return self._ask(task, refuse="UNAVAILABLE" if deaths >= ATTEMPTS else None)
            except frames.PipeEnded:
                deaths += 1
                self._log.error("the worker ended (%s) while it had an order", self._how_it_ended())
            except WorkerEnded as error:
                self._log.info("a new worker: %s", error)
            if deaths > ATTEMPTS:
                return None

    def _ask(self, task: Task, *, refuse: str | None) -> Answer | None:
        if self._orders >= self._rules.orders or self._too_large():
            self._log.info("a new worker after %s orders", self._orders)
            self.stop()
        self.start()
        self._orders += 1
        facts, blobs = frames.of_task(task)
        frames.write(self._pipe("stdin"), facts | {"refuse": refuse}, blobs)
        facts, blobs = frames.read(self._pipe("stdout"))
        if "restart" in facts:
            self.stop()
            raise WorkerEnded(str(facts["restart"]))
        return None if facts.get("nothing") else frames.answer_of(facts, blobs)

    def stop(self, *, now: bool = False) -> None:
        """End the process: by closing its input, or at once."""
        process, self._process = self._process, None
        if process is None:
            return
        if now:
            process.kill()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _pipe(self, which: str) -> IO[bytes]:
        pipe: IO[bytes] = getattr(self._process, which)
        return pipe

    def _how_it_ended(self) -> str:
        process = self._process
        code = None if process is None else process.poll()
        if process is not None and code is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout=5)
        return "cause unknown" if code is None else f"signal {-code}" if code < 0 else f"exit code {code}"

    def _too_large(self) -> bool:
        """Whether the process has grown beyond its share of memory."""
        if self._process is None:
            return False
        try:
            pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        except (OSError, ValueError, IndexError):
            return False
        return pages * os.sysconf("SC_PAGE_SIZE") > self._rules.memory_mb * 2**20


class Service:
    """The loop of a hosted node. `run` returns when it was told to stop."""

    def __init__(self, folder: Path, lock: int, say: Say = print) -> None:
        self.folder = folder
        self.facts: NodeFile = read_node_file(folder / "node.toml")
        if self.facts.superlink is None:
            raise NodeError(
                'node.toml has no [superlink]: write address = "host:port" and certificate = "ca.crt", as the '
                "coordinator sent them"
            )
        self.log = file_log(folder, self.facts.name)
        self.worker = Worker(folder, self.facts.worker, self.log, lock)
        self._key = node_key(folder)
        self._say = say
        self._stopping = threading.Event()
        self._unsent: Answer | None = None
        self._sent_at = -UNTIL_FETCHED
        self._leaves_at: float | None = None
        self.was_told_now = False
        self._last_trouble = ""

    def run(self) -> None:
        """Work until told to stop. `NodeError` where the folder cannot be used."""
        signal.signal(signal.SIGTERM, self._stop_soon)
        signal.signal(signal.SIGINT, self._stop_soon)
        signal.signal(signal.SIGQUIT, _stop_now)
        signal.signal(signal.SIGUSR1, self._leave)
        now = True
        try:
            self.worker.start()
            self._keep_the_line()
            now = False
        except StopNow:
            self.was_told_now = True
            self._tell("stopped at once: an order in hand is left, and what it was charged stays charged")
        finally:
            self.worker.stop(now=now)

    def _keep_the_line(self) -> None:
        wait = FIRST_WAIT
        while not self._is_over():
            link = self._link()
            try:
                with link.connected():
                    self._tell(f"connected to {link.address}; waiting for orders")
                    self._last_trouble, wait = "", FIRST_WAIT
                    self._work(link)
            except LinkError as error:
                self._trouble(str(error))
                self._stopping.wait(wait)
                wait = min(2 * wait, LONGEST_WAIT)
            finally:
                link.close()
        self._tell("stopped")

    def _work(self, link: Link) -> None:
        """Answer orders until it is over. A line that breaks is used again: the SuperLink still knows this node."""
        idle, wait = 0.0, FIRST_WAIT
        while not self._is_over() or self._unsent is not None:
            try:
                idle = self._step(link, idle)
                wait = FIRST_WAIT
                self._mended()
            except LinkError as error:
                if not error.is_open or self._is_over():
                    raise
                self._trouble(str(error))
                self._stopping.wait(wait)
                wait = min(2 * wait, LONGEST_WAIT)
        time.sleep(max(0.0, self._sent_at + UNTIL_FETCHED - time.monotonic()))

    def _step(self, link: Link, idle: float) -> float:
        """Send what is to be sent, and look for an order; how long there was none."""
        if self._unsent is not None:
            self._send(link, self._unsent)
        task = link.pull()
        if task is None:
            pause = QUICK if idle < LIVELY else SLOW
            self._stopping.wait(pause)
            return idle + pause
        says_goodbye = self._leaves_at is not None  # an order that was in hand before is answered as it was
        self._unsent = self.worker.ask(task)
        if says_goodbye:
            self._stopping.set()
        return 0.0

    def _send(self, link: Link, answer: Answer) -> None:
        """Until it has arrived, or nobody wants it any more."""
        try:
            link.push(answer)
            self._sent_at = time.monotonic()
        except RunIsOver:
            self.log.info("a reply came too late for its run")
        self._unsent = None

    def _link(self) -> Link:
        superlink = self.facts.superlink
        assert superlink is not None  # noqa: S101 - __init__ asks for it
        certificate = None if superlink.certificate is None else self.folder / superlink.certificate
        return Link(superlink.address, self._key, certificate=certificate, insecure=superlink.insecure)

    def _is_over(self) -> bool:
        waited = self._leaves_at is not None and time.monotonic() > self._leaves_at + GOODBYE
        return self._stopping.is_set() or waited

    def _leave(self, _: int, __: FrameType | None) -> None:
        self._leaves_at = time.monotonic()

    def _stop_soon(self, _: int, __: FrameType | None) -> None:
        self._stopping.set()

    def _tell(self, sentence: str) -> None:
        self.log.info(sentence)
        self._say(f"{self.facts.name}: {sentence}")

    def _mended(self) -> None:
        if self._last_trouble:
            self._tell("the line is back")
        self._last_trouble = ""

    def _trouble(self, sentence: str) -> None:
        """Say what is wrong once, not at each try."""
        if sentence != self._last_trouble:
            self.log.warning(sentence)
            self._say(f"{self.facts.name}: {sentence} (it keeps trying)")
        self._last_trouble = sentence


def _stop_now(_: int, __: FrameType | None) -> None:
    raise StopNow


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[int]:
    """Hold the folder's lock, which a worker inherits; `NodeError` where another node has it."""
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise NodeError(
                f"a node is at work in {folder} already (process {_holder(folder)}): stop it with `fedrisk-node stop`"
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield handle
    finally:
        os.close(handle)


def _holder(folder: Path) -> str:
    try:
        return (folder / LOCK).read_text().strip() or "unknown"
    except OSError:
        return "unknown"


def start(folder: Path, say: Say = print) -> None:
    """Host the node in `folder` until SIGTERM, Ctrl-C or `stop`. `NodeError` says why it cannot be."""
    os.environ.update(ENVIRONMENT)
    facts = read_node_file(folder / "node.toml")
    left = (folder / "left.json").exists()
    if left:
        raise NodeError(
            f"{facts.name} has left the federation (left.json says when and why): to come back, agree it with the "
            "coordinator and remove left.json"
        )
    (folder / "log").mkdir(mode=0o700, exist_ok=True)
    with only_one(folder) as lock:
        service = Service(folder, lock, say)
        Journal(folder).write(Started(version=installed.version(), code_sha256=installed.code_sha256()))
        try:
            service.run()
        finally:
            Journal(folder).write(Stopped(how="now" if service.was_told_now else "asked"))


def stop(folder: Path, how: Signal, seconds: float) -> bool:
    """Ask the node in `folder` to stop, and wait; False where none is at work. `NodeError` if it goes on.

    `soon`: after the order in hand. `now`: at once. `leave`: once the federation has heard LEFT, or soon.
    """
    if not at_work(folder):
        return False
    os.kill(int(_holder(folder)), SIGNALS[how])
    waited = threading.Event()
    for _ in range(int(seconds * 10)):
        if not at_work(folder):
            return True
        waited.wait(0.1)
    raise NodeError(
        f"the node in {folder} still works on an order after {seconds:.0f} s: wait, or `stop --now`"
    )


def at_work(folder: Path) -> bool:
    """Whether a node (or its worker) holds the folder."""
    try:
        handle = os.open(folder / LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False
