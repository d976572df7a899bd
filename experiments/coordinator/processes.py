"""Child processes that are kept running: each in its own group, with a log that is rotated, restarted with a back-off."""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

FIRST_WAIT, LONGEST_WAIT, STEADY_SECONDS = 0.5, 30.0, 60.0
LOG_BYTES, LOGS_KEPT = 10 * 2**20, 5
PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class Child:
    """One process that should always run. `poll()` starts it again once its time has come."""

    def __init__(
        self, name: str, command: Sequence[str], *, log: Path, cwd: Path, environment: Mapping[str, str]
    ) -> None:
        self.name, self.command, self.log = name, list(command), log
        self._cwd, self._environment = cwd, dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._started, self._wait, self._due = 0.0, FIRST_WAIT, 0.0
        self.restarts = -1

    @property
    def pid(self) -> int | None:
        """Its process id, while it runs."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def start(self) -> None:
        """Start the process, in a group of its own."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=self._cwd,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        self._started = time.monotonic()
        self.restarts += 1

    def poll(self, tell: Callable[[str], None]) -> None:
        """Notice an end, and start again after the back-off; `tell` is told of both."""
        now = time.monotonic()
        if self.pid is not None:
            return
        if self._process is not None:
            steady = now - self._started > STEADY_SECONDS
            self._wait = FIRST_WAIT if steady else min(2 * self._wait, LONGEST_WAIT)
            self._due = now + self._wait
            tell(f"{self.name} ended ({self._how()}); it is started again in {self._wait:.0f} s: {self.log}")
            _signal_group(self._process.pid, signal.SIGTERM)  # what it has left behind
            self._process = None
        elif now >= self._due:
            self.start()
            tell(f"{self.name} was started again (process {self.pid})")

    def last_words(self) -> str:
        """The last line of its log that says something."""
        with contextlib.suppress(OSError):
            lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
            return lines[-1].strip() if lines else ""
        return ""

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process alone."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def end(self, seconds: float) -> None:
        """SIGTERM for the whole group, then SIGKILL for what is left after `seconds`."""
        process, self._process = self._process, None
        if process is None:
            return
        _signal_group(process.pid, signal.SIGTERM)
        end = time.monotonic() + seconds
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        while _group_lives(process.pid) and time.monotonic() < end:
            time.sleep(0.05)
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()

    def rotate(self) -> None:
        """Rotate its log, if it has grown large."""
        rotate(self.log)

    def _how(self) -> str:
        code = None if self._process is None else self._process.returncode
        return "cause unknown" if code is None else f"signal {-code}" if code < 0 else f"exit code {code}"


def no_proxy(environment: Mapping[str, str]) -> str:
    """The `NO_PROXY` under which this machine itself is never reached through a web proxy."""
    listed = environment.get("NO_PROXY", "").split(",")
    return ",".join(dict.fromkeys(filter(None, [*listed, "127.0.0.1", "localhost", "::1"])))


def rotate(path: Path, *, largest: int = LOG_BYTES, keep: int = LOGS_KEPT) -> None:
    """Copy a log that is larger than `largest` to `.1` (and `.1` to `.2` ...), and empty it: who writes goes on."""
    if not path.exists() or path.stat().st_size <= largest:
        return
    for number in range(keep - 1, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        if older.exists():
            older.replace(path.with_name(f"{path.name}.{number + 1}"))
    shutil.copy2(path, path.with_name(f"{path.name}.1"))
    os.truncate(path, 0)


def _end_with_parent() -> None:
    """In the child: the kernel ends it when its supervisor is killed and can stop nothing any more."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
