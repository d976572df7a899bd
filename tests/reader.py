"""Somebody who follows a page of docs/ to the letter: its console lines and its files, in one folder on this machine.

page = Page("hosting-a-node.md")
with reading(tmp_path) as reader:
    reader.type(page.line("fedrisk", "coordinator", "init"))
    reader.until_ready()
"""

import contextlib
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from deployment import environment, free_ports

DOCS = Path(__file__).resolve().parent.parent / "docs"
MODULES = {"fedrisk": "experiments.cli", "fedrisk-node": "clients.cli"}
STAYS = ("start",)  # runs in a terminal of its own
COMMAND_SECONDS = 120


class Page:
    """A page of docs/. `lines`: what it has one type, without the prompt, in order."""

    def __init__(self, name: str) -> None:
        self.text = (DOCS / name).read_text()
        blocks: list[str] = re.findall(r"```console\n(.*?)```", self.text, re.S)
        self.lines = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]

    def line(self, *begins: str) -> str:
        """The one line that begins with these words."""
        (found,) = [each for each in self.lines if shlex.split(each)[: len(begins)] == [*begins]]
        return found

    def file(self, name: str) -> str:
        """The text of the file that the page shows below **`name`**."""
        found = re.search(rf"\*\*`{re.escape(name)}`\*\*.*?```\w+\n(.*?)```", self.text, re.S)
        assert found is not None, name
        return str(found[1])


class Reader:
    """Who types the lines in `folder`; where the page says port 9092 it is one that is free here."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, str(free_ports(1)[0])
        self.running: list[subprocess.Popen[bytes]] = []

    def type(self, line: str, who: str = "police", words: Mapping[str, str] | None = None) -> str:
        """Run a line, as `who` would: what it prints. `words`: what stands for a word in capitals, as PLAN."""
        for name, value in {"9092": self.port, **(words or {})}.items():
            line = re.sub(rf"\b{name}\b", value, line)
        typed = shlex.split(line)
        call = [sys.executable, "-P", "-m", MODULES[typed[0]], *typed[1:]]
        home = environment(self.folder / f"home-{who}") | {"COLUMNS": "200"}
        if {typed[1], typed[2]} & set(STAYS):
            with (self.folder / f"{typed[0]}-{who}.out").open("wb") as out:
                self.running.append(subprocess.Popen(call, cwd=self.folder, env=home, stdout=out, stderr=out))
            return ""
        done = subprocess.run(
            call,
            cwd=self.folder,
            env=home,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS,
        )
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        return done.stdout

    def until_ready(self) -> None:
        """Until the coordinator that was started says that agencies may connect."""
        out = self.folder / "fedrisk-hub.out"
        wait(lambda: "ready" in out.read_text(), 60, "the coordinator")

    def until_connected(self, names: Sequence[str]) -> None:
        """Until the nodes in the folders `names` have reached the coordinator."""
        for name in names:
            log = self.folder / name / "log" / "node.log"
            wait(
                lambda log=log: log.exists() and "connected to" in log.read_text(),  # type: ignore[misc]
                60,
                f"{name} connects",
            )


def for_agency(line: str, name: str) -> str:
    """A line that the page writes for the police, as agency `name` types it: its own name and folder, the hub's files."""
    words = [
        word if "=" in word or "/" in word else word.replace("police", name) for word in shlex.split(line)
    ]
    return shlex.join(words)


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[Reader]:
    """A reader whose processes are gone when the block ends."""
    reader = Reader(folder)
    try:
        yield reader
    finally:
        for process in reversed(reader.running):
            process.send_signal(signal.SIGTERM)
        for process in reader.running:
            process.wait(60)


def wait(until: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until `until()`, and no longer than `seconds`."""
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, what
        time.sleep(0.2)
