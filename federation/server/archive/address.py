"""Can an MLflow be used at this address? Answered within seconds; MLflow itself would try for minutes.

A name and a password come from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN), never from the
address: an address is written down in a run's files.
"""

import base64
import contextlib
import json
import os
import socket
import sqlite3
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

CHECK_SECONDS = 4.0  # how long an address may take to show that someone is there
WAKE_SECONDS = 20.0  # how long an MLflow server that is there may take over its first request
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_TRUNCATE_LONG_VALUES": "false",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}


class TrackerError(RuntimeError):
    """A tracker that cannot be used: one sentence that names the setting and what to do."""


def check_address(uri: str, key: str = "tracking.uri") -> str:
    """The scheme of `uri`; `TrackerError`, which begins with `key`, where no MLflow can be used there.

    It takes seconds: MLflow itself would try for minutes.
    """
    scheme = uri.partition(":")[0].partition("+")[0].lower() if "://" in uri else "file"
    try:
        check_no_secret(uri)
        if scheme == "sqlite":
            _check_sqlite(sqlite_file(uri))
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


def check_no_secret(uri: str) -> None:
    """`TrackerError` where `uri` holds a password, or an MLflow server's name of a person; it repeats neither.

    An address is kept in a run's files and rides in a submitted run; the environment of who runs it does not.
    """
    try:
        parts = urlsplit(uri)
        inside = parts.password is not None or "password" in parse_qs(parts.query)
    except ValueError:
        raise TrackerError("tracking.uri is no address: write it as https://HOST:PORT") from None
    if uri.lower().startswith("http") and (inside or parts.username is not None):
        raise TrackerError(
            "tracking.uri must hold no name and no password, for a run keeps its address: set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    if inside:
        raise TrackerError(
            "tracking.uri must hold no password, for a run keeps its address: give a PostgreSQL password in "
            "PGPASSWORD or ~/.pgpass, or track to an MLflow server in front of the database"
        )


def sqlite_file(uri: str) -> Path:
    """The file of a `sqlite:///` address, as a whole path."""
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
    address = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    request = urllib.request.Request(address + path)  # noqa: S310 - http or https, the caller has looked
    name, word = known.get("MLFLOW_TRACKING_USERNAME"), known.get("MLFLOW_TRACKING_PASSWORD", "")
    if token := known.get("MLFLOW_TRACKING_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    elif name:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{name}:{word}".encode()).decode())
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
