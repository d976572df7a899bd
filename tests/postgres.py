"""A PostgreSQL server of a test's own: a folder, a port of loopback, gone at the end whatever happened."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

OWNER, OWNERS_SECRET = "owner", "the owner's own"
MISSING = "PostgreSQL is not installed: apt-get install postgresql (initdb and pg_ctl are looked for)"


@dataclass(frozen=True)
class Server:
    """A running server, with the superuser `OWNER`; every login needs a password."""

    port: int

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        """Let the owner run some statements; all rows that they give."""
        where = {"host": "127.0.0.1", "port": self.port, "user": OWNER, "dbname": "postgres"}
        with psycopg.connect(**where, password=OWNERS_SECRET, autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            rows = []
            while True:
                rows += cursor.fetchall() if cursor.description else []
                if not cursor.nextset():
                    return rows


def programs() -> Path:
    """The folder of initdb. Where there is none the test is skipped, or fails with FEDRISK_REQUIRE_SERVERS=1."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    places = ([Path(on_path)] if on_path else []) + found[::-1]
    if not places:
        if os.environ.get("FEDRISK_REQUIRE_SERVERS") == "1":
            pytest.fail(MISSING, pytrace=False)
        pytest.skip(MISSING)
    return places[0].resolve().parent


@contextmanager
def postgres() -> Iterator[Server]:
    """A running server, as an unprivileged user: initdb refuses root."""
    where = programs()
    folder = Path(tempfile.mkdtemp(prefix="fedrisk-pg-"))
    become = _unprivileged(folder)
    data, log = folder / "data", folder / "log"
    (folder / "secret").write_text(OWNERS_SECRET)
    (folder / "secret").chmod(0o644)
    port = _free_port()
    settings = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c fsync=off"
    try:
        words = ["-D", data, "-U", OWNER, "-A", "scram-sha-256", "--pwfile", folder / "secret", "-N"]
        _done([str(where / "initdb"), *map(str, words), "-E", "UTF8", "--locale=C"], become)
        start = ["-D", str(data), "-l", str(log), "-w", "-o", settings, "start"]
        _done([str(where / "pg_ctl"), *start], become)
        yield Server(port)
    finally:
        if data.exists():
            stop = [str(where / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop"]
            subprocess.run(stop, capture_output=True, check=False, preexec_fn=become, cwd="/")
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged(folder: Path) -> Callable[[], None] | None:
    """What a child does first to be another user, who gets the folder; None where this user will do."""
    if os.geteuid() != 0:
        return None
    names = {user.pw_name: user for user in pwd.getpwall()}
    user = names.get("postgres") or names["nobody"]
    os.chown(folder, user.pw_uid, user.pw_gid)
    folder.chmod(0o755)

    def become() -> None:
        os.setgroups([])
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)

    return become


def _done(words: list[str], become: Callable[[], None] | None) -> None:
    """Run to a good end. What is said goes to a file: a server that is started keeps its parent's output open."""
    with tempfile.TemporaryFile() as said:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            check=False,
            preexec_fn=become,
            cwd="/",
            timeout=120,
        )
        said.seek(0)
        assert done.returncode == 0, f"{words[0]}: {said.read().decode()}"


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
