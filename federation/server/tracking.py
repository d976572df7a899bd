"""What a federation leaves in MLflow.

One experiment per use case, one parent run per federation, one child run per agency. The run never waits
for MLflow: importing it and creating its first SQLite database take seconds, so one writer process does that
while the rounds go on, and the run only hands it records. If the writer fails, the run warns once and goes
on: `result.json` is the evidence and MLflow a view of it. If the run is killed, the writer marks its MLflow
runs as killed. This file is the writer's program too, hence only the standard library on top.

Names, with step = round. A checkpoint on `tune` writes `overall/auc`, `agencies/NAME/auc`,
`groups/sex/female/tpr`, `gaps/sex/equalized_odds`, `privacy/epsilon_busiest`; the end, on `test`, writes the
same behind `test/`. Intervals are `..._low` and `..._high`. What may not be published is never sent:
`..._suppressed` = 1 stands in its place. Combinations of groups, gaps within agencies and what else there are many of
are in result.json alone. A round writes `time/round_seconds` and `rounds/late`. An agency's
run has its own `overall/...` and `privacy/epsilon_total`, so that one MLflow table compares them all.
"""

import base64
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import logging
import math
import os
import platform
import queue
import re
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, Protocol, cast, final
from urllib.parse import urlsplit

FINISH_SECONDS = 120.0  # how long a finished run waits for the writer
CHECK_SECONDS = 4.0  # how long an address may take to show that someone is there
WAKE_SECONDS = 20.0  # how long an MLflow server that is there may take over its first request
LONGEST_PARAM = 6000  # characters; MLflow's own limit
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_TRUNCATE_LONG_VALUES": "false",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}


class TrackerError(RuntimeError):
    """A tracker that cannot be used: one sentence that names the setting and what to do."""


class Tracker(Protocol):
    """Where the evidence of a run is mirrored. Nothing that fails after `open_tracker` stops a run."""

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
        """Write what is missing, final metrics, result.json and report.html of `folder`; close the runs."""

    def fail(self, reason: str) -> None:
        """Close the runs as failed, with one sentence or an exception's name (an interrupt: as killed)."""


@final
class NoTracker:
    """tracking=none."""

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
        database = _sqlite_file(where)
        where, artifacts = f"sqlite:///{database}", artifacts or database.parent / "mlartifacts"
    elif scheme in PORTS:
        artifacts = artifacts or Path("outputs/mlartifacts")
    return MlflowTracker(where, experiment, folder, artifacts=artifacts, warn=warn)


def check_address(uri: str, key: str = "tracking.uri") -> str:
    """The scheme of `uri`; `TrackerError`, which begins with `key`, where no MLflow can be used there.

    It takes seconds: MLflow itself would try for minutes.
    """
    scheme = uri.partition(":")[0].partition("+")[0].lower() if "://" in uri else "file"
    try:
        if scheme == "sqlite":
            _check_sqlite(_sqlite_file(uri))
        elif scheme in ("http", "https"):
            _check_http(uri)
        elif scheme in PORTS:
            _check_port(uri, PORTS[scheme])
        elif scheme == "file":
            raise TrackerError(
                "tracking.uri is a plain folder, which MLflow no longer writes: use sqlite:///outputs/mlflow.db"
            )
        else:
            known = ", ".join(["sqlite", "http", "https", *PORTS])
            raise TrackerError(f"tracking.uri must be none or start with one of {known}, got {scheme}")
    except TrackerError as error:
        raise TrackerError(str(error).replace("tracking.uri", key)) from None
    return scheme


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
            self._warn(
                f"MLflow is incomplete ({self.trouble}); the evidence is whole in {folder / 'result.json'}"
            )

    def fail(self, reason: str) -> None:
        self._send("fail", reason=reason)
        self._close()
        self._mention()

    def _send(self, action: str, **content: Any) -> None:
        message = {"do": action, "at": int(time.time() * 1000), **content}
        self._messages.put(json.dumps(message, default=_plain).encode() + b"\n")

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
                self.trouble = json.loads(self._answers.readline())["trouble"]
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
    with open(os.devnull if folder is None else folder / "tracking.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=SETTINGS | os.environ,
            start_new_session=True,
        )


# ---- before the run: can the tracker be used? ----


def _sqlite_file(uri: str) -> Path:
    parts = urlsplit(uri)
    if parts.netloc or parts.path.strip("/") in ("", ":memory:"):
        raise TrackerError("tracking.uri must name a file, as in sqlite:///outputs/mlflow.db")
    return Path(parts.path[1:]).resolve()


def _check_sqlite(file: Path) -> None:
    """Write and roll back. A database that exists must be MLflow's: it has a table `alembic_version`."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        base = sqlite3.connect(file, timeout=CHECK_SECONDS, isolation_level=None)
        try:
            base.execute("BEGIN IMMEDIATE")
            tables = {name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            base.execute("CREATE TABLE fedrisk_may_write (x)")
            base.execute("ROLLBACK")
        finally:
            base.close()
    except (OSError, sqlite3.Error) as error:
        cause = error.strerror if isinstance(error, OSError) else str(error)
        raise TrackerError(
            f"tracking.uri: {file.name} cannot be written ({cause}): name a file in a folder where you may "
            "write, or use tracking=none"
        ) from error
    if tables and "alembic_version" not in tables:
        raise TrackerError(
            f"tracking.uri: {file.name} is a database, but not one of MLflow's: name another file"
        )


def _check_http(uri: str) -> None:
    host = urlsplit(uri).hostname
    try:
        with contextlib.suppress(urllib.error.HTTPError):
            _within(CHECK_SECONDS, lambda: _ask(uri, "/health", CHECK_SECONDS))
        json.loads(_ask(uri, "/api/2.0/mlflow/experiments/search?max_results=1", WAKE_SECONDS))
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise TrackerError(
                f"tracking.uri: the MLflow server at {host} asks for a name and password: set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            ) from error
        raise TrackerError(
            f"tracking.uri: {host} answers with status {error.code}, as no MLflow server does"
        ) from error
    except (OSError, ValueError) as error:
        raise TrackerError(
            f"tracking.uri: no MLflow server answers at {host} within {CHECK_SECONDS:.0f} s: start it, "
            "correct the address, or use tracking=none"
        ) from error


def _ask(uri: str, path: str, seconds: float) -> bytes:
    """What the server at `uri` says, with the credentials that MLflow itself would use."""
    parts, known = urlsplit(uri), os.environ
    address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    request = urllib.request.Request(address + path)  # noqa: S310 - http or https, the caller has looked
    name = known.get("MLFLOW_TRACKING_USERNAME", parts.username)
    word = known.get("MLFLOW_TRACKING_PASSWORD", parts.password)
    if token := known.get("MLFLOW_TRACKING_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    elif name:
        request.add_header(
            "Authorization", "Basic " + base64.b64encode(f"{name}:{word or ''}".encode()).decode()
        )
    trust = ssl.create_default_context(cafile=known.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
    if known.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() == "true":
        trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    try:
        with urllib.request.urlopen(request, timeout=seconds, context=trust) as answer:  # noqa: S310
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        error.close()
        raise


def _check_port(uri: str, usual: int) -> None:
    parts = urlsplit(uri)
    host, port = parts.hostname or "localhost", parts.port or usual
    try:
        _within(CHECK_SECONDS, lambda: socket.create_connection((host, port), CHECK_SECONDS).close())
    except OSError as error:
        raise TrackerError(
            f"tracking.uri: no database answers at {host}:{port} within {CHECK_SECONDS:.0f} s: start it, "
            "correct the address, or use tracking=none"
        ) from error


def _within(seconds: float, work: Callable[[], object]) -> None:
    """Run `work`; TimeoutError if it takes longer, as a name server may in spite of a socket's timeout."""
    raised: list[Exception] = []

    def guarded() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - raised again below
            raised.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    thread.join(seconds + 0.5)
    if thread.is_alive():
        raise TimeoutError("no answer")
    if raised:
        raise raised[0]


# ---- from evidence to names, numbers and texts ----


def published_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """METRICS of result.json as MLflow names and finite numbers; what may not be published is a flag of 1."""
    out = _estimates("overall", metrics.get("overall"))
    for agency, table in (metrics.get("agencies") or {}).items():
        out |= _estimates(f"agencies/{_part(agency)}", table)
    for attribute, levels in (metrics.get("groups") or {}).items():
        for level, table in levels.items():
            out |= _estimates(f"groups/{_part(attribute)}/{_part(level)}", table)
    for attribute, table in (metrics.get("gaps") or {}).items():
        out |= _estimates(f"gaps/{_part(attribute)}", table)
    out |= _estimates("between_agencies", metrics.get("between_agencies"))
    if worst := metrics.get("worst_gap"):
        out |= _estimates("overall", {"worst_gap": worst})
    return out | _finite({"overall/cutoff": metrics.get("cutoff")})


def _estimates(prefix: str, table: Mapping[str, Any] | None) -> dict[str, float]:
    out: dict[str, float] = {}
    for name, estimate in (table or {}).items():
        key = f"{prefix}/{_part(name)}"
        if isinstance(estimate, Mapping) and estimate.get("publishable") is True:
            ends = {f"{key}_low": estimate.get("low"), f"{key}_high": estimate.get("high")}
            out |= _finite({key: estimate.get("value"), **ends})
        else:
            out[f"{key}_suppressed"] = 1.0
    return out


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    """The real, finite ones: MLflow would keep NaN, and an infinity ruins its charts."""
    real = {k: v for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return {name: float(value) for name, value in real.items() if math.isfinite(value)}


def _part(name: str) -> str:
    """`name` as one part of a metric's name; if it had to change it ends in a hash: "<25" is not ">25"."""
    clean = re.sub(r"[^A-Za-z0-9_. -]", "_", name).strip()[:60]
    if clean == name and clean.strip("."):
        return name
    return f"{clean.strip('.')}_{hashlib.blake2b(name.encode(), digest_size=2).hexdigest()}"


def published(value: Any) -> Any:
    """A copy of result.json in which estimates that may not be published are empty; their flag stays."""
    if isinstance(value, Mapping):
        hidden = ("value", "low", "high", "attribute") if value.get("publishable") is False else ()
        return {key: None if key in hidden else published(entry) for key, entry in value.items()}
    return [published(entry) for entry in value] if isinstance(value, list | tuple) else value


def flat_params(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A config as MLflow params, `privacy.noise_multiplier` -> "1.1"; a text too long for it by its hash."""
    out: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            out |= flat_params(value, f"{prefix}{key}.")
            continue
        text = value if isinstance(value, str) else json.dumps(value, default=_plain)
        if len(text) > LONGEST_PARAM:
            text = f"in config.json, SHA-256 {hashlib.sha256(text.encode()).hexdigest()}"
        out[re.sub(r"[^A-Za-z0-9_. -]", "_", f"{prefix}{key}")[:240]] = text
    return out


def environment() -> dict[str, Any]:
    """Python and package versions; nothing that names a machine or a person."""
    packages = {
        d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]
    }
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.machine()}",
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


def neutral(value: Any) -> Any:
    """A copy in which absolute paths and addresses keep their last part: no user, no host, no password."""
    if isinstance(value, Mapping):
        return {key: neutral(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [neutral(entry) for entry in value]
    if not isinstance(value, str):
        return value
    scheme, is_address, rest = value.partition("://")
    if is_address and " " not in scheme:
        return f"{scheme}://.../{rest.rpartition('/')[2]}" if "/" in rest else f"{scheme}://..."
    if PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute() or value.startswith("~"):
        return f".../{PureWindowsPath(value).name}"
    return value


def _plain(value: Any) -> Any:
    """JSON for what a record may hold: numpy, agreed values, paths."""
    for name in ("to_dict", "model_dump", "tolist"):
        if hasattr(value, name):
            return getattr(value, name)()
    return dict(value) if isinstance(value, Mapping) else str(value)


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _tags(facts: Mapping[str, Any]) -> dict[str, str]:
    plain = {key: value for key, value in facts.items() if isinstance(value, str | int | float)}
    return {f"fedrisk.{_part(key)}": str(neutral(value))[:1000] for key, value in plain.items()}


# ---- the writer ----


@final
class Writer:
    """All of MLflow. Records wait here until they are known to be written: a later call repairs a failed one.

    Everything is stamped with the time at which it happened, and MLflow keeps equal metrics once.
    """

    def __init__(
        self, uri: str, experiment: str, *, artifacts: str | None = None, state: Path | None = None
    ) -> None:
        self._uri, self._experiment, self._artifacts, self._state = uri, experiment, artifacts, state
        self._client: Any = None
        self._header: Mapping[str, Any] | None = None
        self._described = False
        self._runs: dict[str, str] = {}  # "" is the federation, the other keys are agencies
        self._waiting: list[tuple[str, Mapping[str, Any], int]] = []
        self._seen = {"round": -1, "tune": -1, "test": -1}

    def connect(self) -> None:
        """Import MLflow, let it create or check its tables, find the experiment."""
        if self._client is None:
            os.environ.update(SETTINGS | os.environ)
            from mlflow import MlflowClient

            client = MlflowClient(tracking_uri=self._uri)
            self._experiment_id = self._find_experiment(client)
            self._client = client

    def start(self, header: Mapping[str, Any]) -> None:
        """Open the federation's run and one per agency; after a resume, open them again."""
        self._header = header
        self._open()

    def round(self, record: Mapping[str, Any], at: int) -> None:
        """Keep a round for the next batch. at: milliseconds since 1970."""
        self._waiting.append(("round", record, at))

    def checkpoint(self, record: Mapping[str, Any], at: int) -> None:
        """Write all that waits, this included, as one batch per run."""
        self._waiting.append((str(record.get("part", "tune")), record, at))
        self._flush()

    def finish(self, result: Mapping[str, Any], folder: Path, at: int) -> None:
        """Write what is missing, then facts, files and the end of each run."""
        known = {(kind, record["round"]) for kind, record, _ in self._waiting}
        final = result.get("final")
        whole = {"round": result.get("rounds"), "tune": result.get("checkpoints"), "test": final and [final]}
        for kind, records in whole.items():
            self._waiting += [
                (kind, record, at) for record in records or () if (kind, record["round"]) not in known
            ]
        self._flush()
        self._facts(result, at)
        self._files(result, folder)
        finished = result.get("status", "finished") == "finished"
        for agency, run in self._runs.items():
            status = (result.get("agencies") or {}).get(agency, {}).get("status", "trained")
            inside = status in ("trained", "no label")
            self._client.set_terminated(run, "KILLED" if not finished else "FINISHED" if inside else "FAILED")

    def fail(self, reason: str, status: str = "FAILED") -> None:
        """Close the runs with one sentence. A run that never started leaves nothing."""
        if self._header is None:
            return
        self._flush()
        self._client.set_tag(self._runs[""], "fedrisk.reason", reason[:500])
        if reason in ("KeyboardInterrupt", "SystemExit"):
            status = "KILLED"
        for run in self._runs.values():
            self._client.set_terminated(run, status)

    def _find_experiment(self, client: Any) -> str:
        found = client.get_experiment_by_name(self._experiment)
        if found is None:
            try:
                return str(client.create_experiment(self._experiment, artifact_location=self._artifacts))
            except Exception:  # unless another run has just made it
                found = client.get_experiment_by_name(self._experiment)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            raise TrackerError(
                f"the experiment {self._experiment} is deleted in MLflow: restore it or rename yours"
            )
        return str(found.experiment_id)

    def _open(self) -> None:
        if self._described:
            return
        if self._header is None:
            raise TrackerError("a record came before the run's header")
        self.connect()
        resumed = self._recall()
        self._run_of("", self._header)
        for agency, facts in (self._header.get("agencies") or {}).items():
            self._run_of(agency, facts)
        if not resumed:
            self._describe(self._header)
        self._described = True

    def _recall(self) -> bool:
        """Take up the runs of an interrupted federation, if this store has them."""
        if self._runs or self._state is None or not self._state.exists():
            return False
        from mlflow.exceptions import MlflowException

        try:
            runs = json.loads(self._state.read_text())
            tags = self._client.get_run(runs[""]).data.tags
        except (MlflowException, ValueError, KeyError):
            return False
        self._runs = runs
        self._seen = {kind: int(tags.get(f"fedrisk.last_{kind}", -1)) for kind in self._seen}
        for run in runs.values():
            self._client.update_run(run, status="RUNNING")
        self._client.set_tag(runs[""], "fedrisk.resumed", "yes")
        return True

    def _run_of(self, agency: str, facts: Mapping[str, Any]) -> str:
        """The MLflow run of `agency`, made when first asked for; it names no person and no machine."""
        if agency not in self._runs:
            tags = {"mlflow.user": "fedrisk", "mlflow.source.name": "fedrisk", "mlflow.source.type": "LOCAL"}
            if agency:
                tags |= {"mlflow.parentRunId": self._runs[""], "fedrisk.agency": agency}
            name = agency or str(facts.get("run_id", "federation"))
            run = self._client.create_run(self._experiment_id, tags={**_tags(facts), **tags}, run_name=name)
            self._runs[agency] = run.info.run_id
            if self._state is not None:
                self._state.write_text(_json(self._runs))
        return self._runs[agency]

    def _describe(self, header: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        run, params = self._runs[""], flat_params(neutral(header.get("config") or {}))
        self._client.log_batch(run, params=[Param(name, value) for name, value in params.items()])
        for part in ("config", "contract", "plan"):
            if isinstance(header.get(part), Mapping):
                self._client.log_text(run, _json(neutral(header[part])), f"{part}.json")
        code = {key: header[key] for key in ("code_sha256", "fedrisk_version") if key in header}
        self._client.log_text(run, _json(code | environment()), "environment.json")

    def _flush(self) -> None:
        """One batch per run. Its tags say how far MLflow knows the story: a resumed run starts from there."""
        from mlflow.entities import RunTag

        self._open()
        seen, batch = dict(self._seen), _Batch()
        for kind, record, at in self._waiting:
            if record["round"] > self._seen[kind]:
                seen[kind] = max(seen[kind], record["round"])
                batch.round(record, at) if kind == "round" else batch.checkpoint(kind, record, at)
        for agency, metrics in batch.by_run.items():
            tags = [] if agency else [RunTag(f"fedrisk.last_{kind}", str(n)) for kind, n in seen.items()]
            self._client.log_batch(self._run_of(agency, {}), metrics=metrics, tags=tags)
        self._seen = seen
        self._waiting.clear()

    def _facts(self, result: Mapping[str, Any], at: int) -> None:
        """Tags of each run, and what each agency spent, at the last round."""
        from mlflow.entities import RunTag

        step, batch = max(0, *self._seen.values()), _Batch()
        several = (result.get("privacy") or {}).get("epsilon_at_several_agencies") or {}
        spent = {f"privacy/epsilon_at_{count}_agencies": value for count, value in several.items()}
        batch.add("", spent, step, at)
        for agency, facts in {"": result, **(result.get("agencies") or {})}.items():
            own = _epsilons(facts.get("epsilon"))
            if agency:
                own |= {"rounds/trained": facts.get("rounds")}
                own |= {f"rounds/{kind}": facts.get(kind) for kind in ("rejected", "bounded")}
            batch.add(agency, own, step, at)
            tags = [RunTag(key, value) for key, value in _tags(facts).items()]
            self._client.log_batch(self._run_of(agency, facts), metrics=batch.by_run[agency], tags=tags)

    def _files(self, result: Mapping[str, Any], folder: Path) -> None:
        """result.json, byte for byte where it holds nothing that may not be published, and the report."""
        run, stored, clean = self._runs[""], folder / "result.json", published(result)
        if stored.exists() and json.loads(stored.read_text()) == clean:
            self._client.log_artifact(run, str(stored))
        else:
            self._client.log_text(run, _json(clean), "result.json")
        report = folder / str((result.get("files") or {}).get("report", "report.html"))
        if report.exists():
            self._client.log_artifact(run, str(report))


@final
class _Batch:
    """Metrics by run ("" is the federation's)."""

    def __init__(self) -> None:
        self.by_run: dict[str, list[Any]] = {"": []}

    def add(self, agency: str, values: Mapping[str, Any], step: int, at: int) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(name, value, at, step) for name, value in _finite(values).items()]
        self.by_run.setdefault(agency, []).extend(metrics)

    def round(self, record: Mapping[str, Any], at: int) -> None:
        kinds = ("replied", "late", "refused", "rejected", "bounded")
        counts = {f"rounds/{kind}": len(record.get(kind) or ()) for kind in kinds}
        self.add("", {"time/round_seconds": record.get("seconds"), **counts}, record["round"], at)

    def checkpoint(self, part: str, record: Mapping[str, Any], at: int) -> None:
        metrics, spent = record.get("metrics") or {}, record.get("epsilon") or {}
        test = "test/" if part == "test" else ""
        own = {f"{test}{name}": value for name, value in published_metrics(metrics).items()}
        own |= _finite({"privacy/epsilon_busiest": record.get("epsilon_busiest")})
        self.add("", own, record["round"], at)
        for agency, table in (metrics.get("agencies") or {}).items():
            self.add(agency, _estimates(f"{test}overall", table), record["round"], at)
        for agency, epsilon in spent.items():
            self.add(agency, _epsilons(epsilon), record["round"], at)


def _epsilons(spent: Mapping[str, Any] | None) -> dict[str, Any]:
    return {f"privacy/epsilon_{kind}": value for kind, value in (spent or {}).items()}


def serve(lines: Iterable[bytes], answer: Callable[[str | None], None]) -> None:
    """The writer's loop: a JSON line in, None or a sentence out. No more lines: the run was killed."""
    messages = map(json.loads, lines)
    opening = next(messages, None)
    if opening is None:
        return
    state = None if opening["state"] is None else Path(opening["state"])
    writer = Writer(opening["uri"], opening["experiment"], artifacts=opening["artifacts"], state=state)
    ended = False
    for message in itertools.chain([opening], messages):
        ended = message["do"] in ("finish", "fail")
        try:
            _act(writer, message)
            answer(None)
        except Exception as error:
            logging.getLogger("fedrisk.tracking").exception("%s failed", message["do"])
            answer(f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}")
    if not ended:
        writer.fail("the run was killed; fedrisk resume continues it", status="KILLED")


def _act(writer: Writer, message: Mapping[str, Any]) -> None:
    match message["do"]:
        case "open":
            writer.connect()
        case "start":
            writer.start(message["header"])
        case "round":
            writer.round(message["record"], message["at"])
        case "checkpoint":
            writer.checkpoint(message["record"], message["at"])
        case "finish":
            writer.finish(message["result"], Path(message["folder"]), message["at"])
        case "fail":
            writer.fail(message["reason"])


def _main() -> None:
    """The writer process. Answers go to the real stdout; whatever MLflow prints goes to stderr."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        serve(
            sys.stdin.buffer,
            lambda trouble: print(json.dumps({"trouble": trouble}), file=answers, flush=True),
        )
    sys.stderr.flush()
    os._exit(0)  # all is committed, and taking MLflow's modules down takes longer than the last batch


if __name__ == "__main__":
    _main()
