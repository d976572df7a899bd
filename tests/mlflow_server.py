"""A real `mlflow server` of a test's own, with basic auth and NO_PERMISSIONS, on PostgreSQL: gone at the end whatever happened."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from postgres import OWNER, OWNERS_SECRET, Server, _free_port

ADMIN, ADMINS_SECRET = "admin", "the admin's own 12"
START_SECONDS = 200.0  # on two cores that do much else


@dataclass(frozen=True)
class MlflowServer:
    """A running server. `who` is a name and a password, or None for nobody."""

    uri: str
    log: Path
    process: subprocess.Popen[bytes]

    def ask(
        self, who: tuple[str, str] | None, path: str, body: Mapping[str, Any] | None = None, method: str = ""
    ) -> tuple[int, Any]:
        """The status and, where it is one, the JSON that `path` answers."""
        verb = method or ("GET" if body is None else "POST")
        request = urllib.request.Request(self.uri + path, method=verb)  # noqa: S310 - a server of our own
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        if who is not None:
            request.add_header("Authorization", "Basic " + base64.b64encode(":".join(who).encode()).decode())
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
                status, content = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                status, content = error.code, error.read()
        try:
            return status, json.loads(content)
        except ValueError:
            return status, content

    def add_user(self, name: str, secret: str) -> None:
        """A person who may do nothing yet but make experiments and models of their own."""
        body = {"username": name, "password": secret}
        status, said = self.ask((ADMIN, ADMINS_SECRET), "/api/2.0/mlflow/users/create", body)
        assert status == 200, said

    def stop(self) -> None:
        """End the server and its workers."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


@contextmanager
def mlflow_server(base: Server, folder: Path) -> Iterator[MlflowServer]:
    """`mlflow server --app-name basic-auth` whose runs, files' places and users are all in databases of `base`.

    PostgreSQL's password comes from PGPASSWORD: no address holds one.
    """
    for name in ("mlflow", "users"):
        base.run(f"CREATE DATABASE {name}")
    at = f"postgresql+psycopg://{OWNER}@127.0.0.1:{base.port}"
    settings = folder / "basic_auth.ini"
    settings.write_text(
        f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = {at}/users\nadmin_username = {ADMIN}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 60\n"
    )
    port = _free_port()
    words = ["server", "--app-name", "basic-auth", "--backend-store-uri", f"{at}/mlflow", "--workers", "1"]
    words += [
        "--artifacts-destination",
        str(folder / "artifacts"),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    environment = os.environ | {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMINS_SECRET,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a key of this test alone",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PGPASSWORD": OWNERS_SECRET,
    }
    log = folder / "server.log"
    with log.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words],
            stdout=said,
            stderr=said,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
    server = MlflowServer(f"http://127.0.0.1:{port}", log, process)
    try:
        _wait(server)
        yield server
    finally:
        server.stop()


def _wait(server: MlflowServer) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        assert server.process.poll() is None, server.log.read_text()
        try:
            if server.ask(None, "/health")[0] == 200:
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"no answer within {START_SECONDS} s: {server.log.read_text()}")
