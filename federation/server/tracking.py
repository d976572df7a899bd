"""MLflow as the archive of a run. `result.json` is the evidence and MLflow a view of it (docs/tracking.md).

The run never waits for MLflow: importing it and creating its first SQLite database take seconds, so one writer process
(`archive/process.py`) does that while the rounds go on, and the run only hands it records. If the writer fails, the run warns once and
goes on. If the run is killed, the writer marks its MLflow runs as killed.
"""

import contextlib
import importlib.util
import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol, cast, final

from federation.server.archive.address import PORTS, SETTINGS, TrackerError, check_address, sqlite_file
from federation.server.archive.demand import header_of, is_demand
from federation.server.archive.texts import plain

__all__ = [
    "MlflowTracker",
    "NoTracker",
    "Tracker",
    "TrackerError",
    "check_address",
    "finish_demand",
    "open_tracker",
]

FINISH_SECONDS = 120.0  # how long a finished run waits for the writer


class Tracker(Protocol):
    """Where the evidence of a run is mirrored. Nothing that fails after `open_tracker` stops a run."""

    @property
    def page(self) -> str | None:
        """Where the experiment's charts are, behind MLflow's address and a slash; None where nobody has said so yet."""

    def start(self, header: Mapping[str, Any]) -> None:
        """Open the MLflow runs.

        header: config, contract, plan (mappings, or objects with `to_dict`), agencies (name -> public facts),
        and any scalars, which become tags: run_id, purpose, engine, config_sha256, code_sha256 and so on.
        """

    def round(self, record: Mapping[str, Any]) -> None:
        """Take one entry of result["rounds"]; it is written with the next checkpoint."""

    def checkpoint(self, record: Mapping[str, Any]) -> None:
        """Take one entry of result["checkpoints"], or result["final"] early.

        `record["epsilon"]`, where given, is agency -> {"train", "evaluate", "total"} so far.
        """

    def finish(self, result: Mapping[str, Any], folder: Path) -> None:
        """Write what is missing, final metrics, result.json, report and cards of `folder`; close the runs."""

    def fail(self, reason: str) -> None:
        """Close the runs as failed, with one sentence or an exception's name (an interrupt: as killed)."""


@final
class NoTracker:
    """tracking=none."""

    page: str | None = None

    def start(self, header: Mapping[str, Any]) -> None: ...
    def round(self, record: Mapping[str, Any]) -> None: ...
    def checkpoint(self, record: Mapping[str, Any]) -> None: ...
    def finish(self, result: Mapping[str, Any], folder: Path) -> None: ...
    def fail(self, reason: str) -> None: ...


def open_tracker(
    uri: str | None,
    experiment: str,
    folder: Path | None = None,
    *,
    artifacts: Path | None = None,
    warn: Callable[[str], None] | None = None,
) -> Tracker:
    """The tracker at `uri`, checked within about five seconds, before any agency is asked.

    uri:       None or "none" tracks nothing; sqlite:///FILE, http(s)://HOST, postgresql://... as in MLflow
    folder:    the run's folder; its tracking.json lets a resumed run continue the same MLflow runs, and its
               tracking.log takes whatever MLflow prints
    artifacts: where a database keeps files: default `mlartifacts` beside the SQLite file, or in outputs/
    warn:      hears, once, that tracking fails; default: a log warning
    Raises TrackerError if the address is unreachable, not writable, not MLflow's, or a plain folder.
    """
    where = (uri or "none").strip()
    if where.lower() == "none":
        return NoTracker()
    if importlib.util.find_spec("mlflow") is None:
        raise TrackerError("tracking.uri needs MLflow: install fedrisk[server], or use tracking=none")
    scheme = check_address(where)
    if scheme == "sqlite":
        database = sqlite_file(where)
        where, artifacts = f"sqlite:///{database}", artifacts or database.parent / "mlartifacts"
    elif scheme in PORTS:
        artifacts = artifacts or Path("outputs/mlartifacts")
    return MlflowTracker(where, experiment, folder, artifacts=artifacts, warn=warn)


def finish_demand(tracker: Tracker, found: Mapping[str, Any], folder: Path) -> None:
    """Write a map, a cohort or early signs (map.json and its like, as it stands in `folder`) and close its runs.

    Call it when the page and the tables are in `folder` and `found["files"]` names them.
    """
    tracker.start(header_of(found, folder))
    tracker.finish(found, folder)


@final
class MlflowTracker:
    """Hands records to the writer process, in order. Made by `open_tracker`, which checks the address."""

    def __init__(
        self,
        uri: str,
        experiment: str,
        folder: Path | None = None,
        *,
        artifacts: Path | None = None,
        warn: Callable[[str], None] | None = None,
        finish_seconds: float = FINISH_SECONDS,
    ) -> None:
        self.trouble: str | None = None
        self.page: str | None = None
        self._folder = folder
        self._warn = warn or logging.getLogger("fedrisk.tracking").warning
        self._warned = False
        self._finish_seconds = finish_seconds
        self._messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._writer = _spawn(folder)
        self._to, self._answers = cast(IO[bytes], self._writer.stdin), cast(IO[bytes], self._writer.stdout)
        self._talk = threading.Thread(target=self._converse, name="tracking", daemon=True)
        self._talk.start()
        state = None if folder is None else str((folder / "tracking.json").resolve())
        place = None if artifacts is None else artifacts.resolve().as_uri()
        self._send("open", uri=uri, experiment=experiment, artifacts=place, state=state)

    def start(self, header: Mapping[str, Any]) -> None:
        named = {} if self._folder is None else {"run_id": self._folder.name}
        self._send("start", header={**named, **header})

    def round(self, record: Mapping[str, Any]) -> None:
        self._send("round", record=record)
        self._mention()

    def checkpoint(self, record: Mapping[str, Any]) -> None:
        self._send("checkpoint", record=record)
        self._mention()

    def finish(self, result: Mapping[str, Any], folder: Path) -> None:
        self._send("finish", result=result, folder=str(folder.resolve()))
        self._close()
        if self.trouble is not None:
            kept = f"{result['kind']}.json" if is_demand(result) else "result.json"
            self._warn(
                f"MLflow is incomplete ({self.trouble}); the evidence is whole in {folder / kept}, and "
                f"goes to MLflow later with: fedrisk track {folder}"
            )

    def fail(self, reason: str) -> None:
        self._send("fail", reason=reason)
        self._close()
        self._mention()

    def _send(self, action: str, **content: Any) -> None:
        message = {"do": action, "at": int(time.time() * 1000), **content}
        self._messages.put(json.dumps(message, default=plain).encode() + b"\n")

    def _mention(self) -> None:
        if self.trouble is not None and not self._warned:
            self._warned = True
            self._warn(
                f"MLflow tracking fails ({self.trouble}); the run goes on and result.json keeps everything"
            )

    def _converse(self) -> None:
        """One message, one answer. `trouble` is the latest answer's: a tracker that recovers ends without."""
        for message in iter(self._messages.get, None):
            try:
                self._to.write(message)
                self._to.flush()
                answer = json.loads(self._answers.readline())
                self.trouble, self.page = answer["trouble"], answer["page"]
            except (OSError, ValueError):
                self.trouble = "its writer process stopped"

    def _close(self) -> None:
        self._messages.put(None)
        self._talk.join(self._finish_seconds)
        if self._talk.is_alive():
            self._writer.kill()
            self._talk.join()
            self.trouble = f"no answer within {self._finish_seconds:.0f} s"
        for pipe in (self._to, self._answers):
            with contextlib.suppress(OSError):
                pipe.close()
        self._writer.wait()


def _spawn(folder: Path | None) -> subprocess.Popen[bytes]:
    """The writer, out of reach of the terminal's Ctrl-C: it ends when told to, or when this process does."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); from federation.server.archive.process import main; main()"
    with open(os.devnull if folder is None else folder / "tracking.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", code, str(Path(__file__).resolve().parents[2])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=SETTINGS | os.environ,
            start_new_session=True,
        )
