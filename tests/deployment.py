"""Processes of a stock Flower deployment on this machine's loopback, for tests that play an attacker with one.

Every process has its own Flower home under the folder given, binds to 127.0.0.1, logs to a file, fetches
nothing, and is gone when the block ends, whatever happened in it.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

BIN = Path(sys.executable).parent
START_SECONDS = 90.0
COMMAND_SECONDS = 90.0
STOP_SECONDS = 10.0
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1
NAME = "loopback"  # the SuperLink in the submitter's Flower configuration


@dataclass
class Deployment:
    """What runs: the SuperLink's `address`, each agency's node folder, and the processes by name."""

    folder: Path
    address: str
    nodes: Mapping[str, Path]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a Python module's command line as the data scientist would, outside the repository."""
        return subprocess.run(
            [sys.executable, "-P", "-m", *arguments],
            cwd=self.folder,
            env=environment(self.folder / "submitter"),
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS,
        )

    def status(self, number: str) -> str:
        """Flower's word for the run, such as `running` or `finished:failed`."""
        done = self.command("flwr.cli.app", "ls", NAME, "--run-id", number, "--format", "json")
        answer = json.loads(done.stdout)
        assert answer["success"], answer
        return str(answer["runs"][0]["status"])

    def log(self, number: str) -> str:
        """What the ServerApp logged."""
        done = self.command("flwr.cli.app", "log", number, NAME, "--show")
        return done.stdout + done.stderr

    def wait(self, until: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until `until()`; a process that ends meanwhile, or the time, is an error with the logs."""
        end = time.monotonic() + seconds
        while not until():
            ended = [name for name, process in self.processes.items() if process.poll() is not None]
            if ended or time.monotonic() > end:
                why = f"{', '.join(ended)} ended" if ended else f"not within {seconds:.0f} seconds"
                raise AssertionError(f"{what}: {why}\n{self.logs()}")
            time.sleep(0.1)

    def logs(self) -> str:
        """The end of every log, for a person who reads a failed test."""
        files = [
            *sorted(self.folder.glob("*.log")),
            *(node / "log" / "node.log" for node in self.nodes.values()),
        ]
        return "\n".join(f"--- {file}\n{file.read_text()[-3000:]}" for file in files if file.exists())


def start(deployment: Deployment, name: str, command: Sequence[str]) -> None:
    """Start one process in a process group of its own."""
    with (deployment.folder / f"{name}.log").open("wb") as log:
        deployment.processes[name] = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            cwd=deployment.folder,
            env=environment(deployment.folder / name),
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )


def _end_with_parent() -> None:
    """In the child: ask the kernel to end it when this process is killed and can stop nothing any more."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def environment(home: Path) -> dict[str, str]:
    """This process's environment with another home, and a Flower that neither phones home nor installs."""
    home.mkdir(parents=True, exist_ok=True)
    return os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
        "HOME": str(home),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }


def know_superlink(home: Path, name: str, address: str) -> None:
    """Flower's configuration in `home`, with one SuperLink in it."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.toml").write_text(f'[superlink.{name}]\naddress = "{address}"\ninsecure = true\n')


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def healthy(address: str) -> bool:
    """True once the SuperLink at `address` answers."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{address}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def stop(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Ask each process group to end, then kill what is left: children that began another session too."""
    processes = list(processes)
    family = [pid for process in processes for pid in descendants(process.pid)]
    for process in processes:
        _signal_group(process.pid, signal.SIGTERM)
    end = time.monotonic() + STOP_SECONDS
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, end - time.monotonic()))
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()
    while any(alive(pid) for pid in family) and time.monotonic() < end:
        time.sleep(0.05)
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def alive(pid: int) -> bool:
    """True while process `pid` runs; one that has ended and was not yet waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return _stat(pid)[:1] != ["Z"]


def descendants(pid: int) -> list[int]:
    """All children of `pid` and theirs, as the kernel lists them now; none where there is no /proc."""
    parents = {int(path.name): _stat(int(path.name))[1:2] for path in Path("/proc").glob("[0-9]*")}
    found = [pid]
    for parent in found:
        found += [child for child, of in parents.items() if of == [str(parent)]]
    return found[1:]


def _stat(pid: int) -> list[str]:
    """State, parent, group ... of a process; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
