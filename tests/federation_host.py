"""A real coordinator on this machine's loopback, as `fedrisk coordinator` makes it, for the length of a block.

    with coordinator(tmp_path / "coordinator") as host:
        host.enrol("police", tmp_path / "police" / "node.pub")
        ...  a node with host.address and host.ca
        number = host.submit("experiment=own", ...)

Tests that need nginx skip where there is none, unless FEDRISK_REQUIRE_SERVERS=1 is set: then they fail.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from deployment import alive, descendants, environment, free_ports
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from experiments.coordinator.proxy import NO_NGINX, find_nginx

START_SECONDS, COMMAND_SECONDS, STOP_SECONDS = 120.0, 120.0, 40.0


def require_nginx() -> None:
    """Skip the test where nginx is not installed; fail it where servers are required."""
    if find_nginx() is None:
        (pytest.fail if os.environ.get("FEDRISK_REQUIRE_SERVERS") == "1" else pytest.skip)(NO_NGINX)


@dataclass
class Host:
    """A running coordinator: the address and CA that agencies are given, its folder and its process."""

    folder: Path
    address: str
    ca: Path | None
    process: subprocess.Popen[bytes]

    @property
    def superlink(self) -> str:
        """The SuperLink's own address on the loopback, which no agency knows."""
        found = tomllib.loads((self.folder / "flower" / "config.toml").read_text())
        return str(found["superlink"]["coordinator"]["address"])

    def command(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """`python -m ...` as somebody on the coordinator's host, outside the repository."""
        return subprocess.run(
            [sys.executable, "-P", "-m", *arguments],
            cwd=cwd or self.folder.parent,
            env=environment(self.folder.parent / "submitter"),
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS,
        )

    def fedrisk(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """`fedrisk ...`."""
        return self.command("experiments.cli", *arguments, cwd=cwd)

    def enrol(self, name: str, public_key: Path) -> str:
        """Let an agency connect; what was printed."""
        done = self.fedrisk("coordinator", "enrol", f"{name}={public_key}", "--folder", str(self.folder))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def revoke(self, name: str) -> None:
        """Refuse it from now on."""
        done = self.fedrisk("coordinator", "revoke", name, "--folder", str(self.folder))
        assert done.returncode == 0, done.stderr

    def agencies(self) -> dict[str, dict[str, str]]:
        """`agencies --json` by name."""
        done = self.fedrisk("coordinator", "agencies", str(self.folder), "--json")
        assert done.returncode == 0, done.stderr
        return {row["name"]: row for row in json.loads(done.stdout)}

    def submit(self, *overrides: str, cwd: Path | None = None) -> tuple[str, Path]:
        """`fedrisk submit` to this coordinator: Flower's number of the run, and the run's folder."""
        done = self.fedrisk("submit", str(self.folder), *overrides, cwd=cwd)
        assert done.returncode == 0, done.stderr
        number = re.search(r"which Flower calls (\d+)$", done.stdout, re.MULTILINE)
        result = re.search(r"^result +(\S+)/result.json", done.stdout, re.MULTILINE)
        assert number is not None, done.stdout
        assert result is not None, done.stdout
        return number[1], Path(result[1])

    def flwr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Flower's own command, with the coordinator's connection."""
        return subprocess.run(
            [sys.executable, "-P", "-m", "flwr.cli.app", *arguments],
            cwd=self.folder.parent,
            env=environment(self.folder / "flower"),
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS,
        )

    def status(self, number: str) -> str:
        """Flower's word for a run, such as `running` or `finished:completed`."""
        done = self.flwr("ls", "coordinator", "--run-id", number, "--format", "json")
        answer = json.loads(done.stdout)
        assert answer["success"], answer
        return str(answer["runs"][0]["status"])

    def log(self, number: str) -> str:
        """What the ServerApp logged."""
        done = self.flwr("log", number, "coordinator", "--show")
        return done.stdout + done.stderr

    def child(self, name: str) -> int | None:
        """The process id of `superlink`, `superexec` or `nginx`, while it runs."""
        words = {
            "superlink": b"flower-superlink",
            "superexec": b"flower-superexec",
            "nginx": b"nginx: master",
        }
        for pid in descendants(self.process.pid):
            with contextlib.suppress(OSError):
                if words[name] in Path(f"/proc/{pid}/cmdline").read_bytes() and alive(pid):
                    return pid
        return None

    def wait(self, until: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until `until()`; an end of the coordinator, or the time, is an error with the logs."""
        end = time.monotonic() + seconds
        while not until():
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"{what}: not within {seconds:.0f} seconds\n{self.logs()}")
            time.sleep(0.1)

    def logs(self) -> str:
        """The end of every log, for a person who reads a failed test."""
        files = [*sorted((self.folder / "log").glob("*.log")), self.folder.parent / "coordinator.out"]
        return "\n".join(f"--- {file}\n{file.read_text()[-3000:]}" for file in files if file.exists())

    def end(self) -> int:
        """SIGTERM, and the exit code; every process that it had must be gone."""
        family = descendants(self.process.pid)
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(STOP_SECONDS)
        assert not [pid for pid in family if alive(pid)], "a process outlived its coordinator"
        return code


@contextlib.contextmanager
def coordinator(folder: Path, *options: str, host: str = "127.0.0.1") -> Iterator[Host]:
    """`init` (with `options`, such as --insecure), if there is no such folder yet, and `start`."""
    insecure = "--insecure" in options
    if not insecure:
        require_nginx()
    if not (folder / "coordinator.toml").exists():
        made = ["init", str(folder), "--host", host, "--port", str(free_ports(1)[0]), *options]
        done = subprocess.run(
            [sys.executable, "-P", "-m", "experiments.cli", "coordinator", *made],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    started = starting(folder)
    try:
        started.wait(
            started.folder.joinpath("flower/config.toml").exists, START_SECONDS, "the coordinator's start"
        )
        yield started
    finally:
        family = descendants(started.process.pid)
        started.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.process.wait(STOP_SECONDS)
        for pid in [started.process.pid, *family]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        started.process.wait()


def starting(folder: Path) -> Host:
    """`fedrisk coordinator start`, without waiting for it."""
    settings = tomllib.loads((folder / "coordinator.toml").read_text())
    with (folder.parent / "coordinator.out").open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "experiments.cli", "coordinator", "start", str(folder)],
            cwd=folder.parent,
            env=environment(folder.parent / "operator"),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"{settings['host']}:{settings['port']}"
    return Host(folder, address, None if settings["insecure"] else folder / "tls" / "ca.crt", process)


def new_key(path: Path | None = None) -> ec.EllipticCurvePrivateKey:
    """A node's key; with `path`, its public half is written there."""
    key = ec.generate_private_key(ec.SECP384R1())
    if path is not None:
        path.write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n")
    return key


def fleet(host: Host, key: ec.EllipticCurvePrivateKey) -> FleetHttpClient:
    """Flower's own client of the fleet API, signing with `key`."""
    assert host.ca is not None
    sign = NodeAuthHttpInterceptor(key, key.public_key())
    version = RuntimeVersionHttpInterceptor(component_name="SuperNode")
    return FleetHttpClient.from_server_address(
        host.address, False, host.ca.read_bytes(), interceptors=[version, sign]
    )


def activate(client: FleetHttpClient, key: ec.EllipticCurvePrivateKey) -> int:
    public = public_key_to_bytes(key.public_key())
    request = ActivateNodeRequest(public_key=public, heartbeat_interval=float(HEARTBEAT_DEFAULT_INTERVAL))
    return int(client.ActivateNode(request).node_id)
