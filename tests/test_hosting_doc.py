"""docs/hosting-a-node.md is followed to the letter by a coordinator and two agencies, until one leaves."""

import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import CONTRACT, people, write_table
from deployment import environment, free_ports
from federation_host import require_nginx

DOC = (Path(__file__).resolve().parent.parent / "docs" / "hosting-a-node.md").read_text()
COMMANDS = [
    line[2:] for block in re.findall(r"```console\n(.*?)```", DOC, re.S) for line in block.splitlines()
]
FILES = {
    name: re.search(rf"\*\*`police/{name}`\*\*.*?```toml\n(.*?)```", DOC, re.S)[1]  # type: ignore[index]
    for name in ("data.toml", "policy.toml")
}
MODULES = {"fedrisk": "experiments.cli", "fedrisk-node": "clients.cli"}
AGENCIES = ("police", "health")
STAYS = ("start",)  # runs in a terminal of its own


class Reader:
    """Somebody who types what the page says, in one folder, with a port that is free here."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, str(free_ports(1)[0])
        self.running: list[subprocess.Popen[bytes]] = []

    def type(self, command: str, agency: str = "police") -> str:
        """Run one line of the page, as `agency` would; what it prints."""
        words = [self._own(word, agency) for word in shlex.split(command)]
        call = [sys.executable, "-P", "-m", MODULES[words[0]], *words[1:]]
        if words[1] in STAYS or words[2] in STAYS:
            with (self.folder / f"{words[0]}-{agency}.out").open("wb") as out:
                self.running.append(
                    subprocess.Popen(call, cwd=self.folder, env=self._home(agency), stdout=out, stderr=out)
                )
            return ""
        done = subprocess.run(
            call,
            cwd=self.folder,
            env=self._home(agency),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def _own(self, word: str, agency: str) -> str:
        word = word.replace("9092", self.port)
        return word if "=" in word or "/" in word else word.replace("police", agency)

    def _home(self, who: str) -> dict[str, str]:
        return environment(self.folder / f"home-{who}") | {"COLUMNS": "200"}


def wait(until: Callable[[], bool], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, what
        time.sleep(0.2)


def of(program: str, *begins: str) -> str:
    """The page's one command that begins so."""
    (found,) = [line for line in COMMANDS if shlex.split(line)[: 1 + len(begins)] == [program, *begins]]
    return found


def test_the_page_needs_no_more_commands_than_were_promised() -> None:
    """To the first finished round: at most 6 for each agency, 3 for the coordinator."""
    before = COMMANDS[: COMMANDS.index(of("fedrisk", "submit"))]
    words = [shlex.split(line) for line in before]
    assert 1 <= len([each for each in words if each[:2] == ["fedrisk", "coordinator"]]) <= 3
    assert 1 <= len([each for each in words if each[0] == "fedrisk-node"]) <= 6


@pytest.mark.deployed
@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_page_is_true(tmp_path: Path) -> None:
    require_nginx()
    reader = Reader(tmp_path)
    (tmp_path / "contract.yaml").write_text(yaml.safe_dump(CONTRACT, sort_keys=False))
    listing = [{"name": name, "kind": name, "public_size": 300} for name in AGENCIES]
    (tmp_path / "agencies.yaml").write_text(
        yaml.safe_dump({"contract": "contract.yaml", "agencies": listing})
    )
    try:
        follow(reader)
    finally:
        for process in reversed(reader.running):
            process.send_signal(signal.SIGTERM)
        for process in reader.running:
            process.wait(60)


def follow(reader: Reader) -> None:
    folder = reader.folder
    reader.type(of("fedrisk", "coordinator", "init"))
    reader.type(of("fedrisk", "coordinator", "start"), "hub")
    wait(lambda: "ready" in (folder / "fedrisk-hub.out").read_text(), 60, "the coordinator")
    for seed, name in enumerate(AGENCIES):
        said = reader.type(of("fedrisk-node", "init"), name)
        assert "SHA256:" in said
        write_table(folder / name / "people.csv", people(seed), () if name == "health" else ("visits",))
    reader.type(of("fedrisk", "coordinator", "enrol"))
    for name in AGENCIES:
        shown = reader.type(of("fedrisk-node", "policy", "show"), name)
        (contract,) = re.findall(r'"([0-9a-f]{64})"', shown)
        for file, text in FILES.items():
            (folder / name / file).write_text(text.replace("CONTRACT", contract))
        assert "early-warning" in reader.type(of("fedrisk-node", "policy", "show"), name)
        assert "✗" not in reader.type(of("fedrisk-node", "doctor"), name)
        reader.type(of("fedrisk-node", "start"), name)
    for name in AGENCIES:
        log = folder / name / "log" / "node.log"
        wait(lambda log=log: log.exists() and "connected to" in log.read_text(), 60, f"{name} connects")  # type: ignore[misc]
    said = reader.type(of("fedrisk", "submit"))
    result = Path(re.search(r"result +(\S+result.json)", said)[1])  # type: ignore[index]
    wait(result.exists, 240, "the first run")
    for name in AGENCIES:
        spent = reader.type(of("fedrisk-node", "ledger"), name)
        assert "3 " in spent
        assert "released" in reader.type(of("fedrisk-node", "log"), name)
    assert "has left the federation" in reader.type(of("fedrisk-node", "stop"))
    assert (folder / "police" / "left.json").exists()
