"""Federations of real processes on this machine's loopback, with TLS and node authentication, for the benchmarks.

`stock` is Flower as it comes; `hosted` is `fedrisk coordinator` and a `fedrisk-node` for each agency. Every process
has its own home under the folder given and is gone when the block ends.
"""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import tomli_w
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.cli.typing import SuperLinkConnection
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from clients import journal
from clients.keys import make_node_key, public_text
from experiments.agencies import Agency
from experiments.coordinator import control
from experiments.coordinator.folder import Folder
from experiments.coordinator.processes import Child
from experiments.coordinator.service import child_environment, free
from models.contract import Contract

START_SECONDS, RUN_SECONDS, END_SECONDS = 180.0, 900.0, 20.0
QUIET = {"OMP_NUM_THREADS": "1"}
BUNDLE = """\
[project]
name = "empty-work"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedrisk"

[tool.flwr.app.components]
serverapp = "empty_work:server"
clientapp = "empty_work:client"

[tool.flwr.app.config]
rounds = 1
agencies = 1
columns = 1
evaluate = true
out = ""
"""


class Failed(RuntimeError):
    """A process did not do its part: one sentence, and the end of its log."""


@dataclass
class Processes:
    """What runs in `folder`, and is ended, last first, when the block ends."""

    folder: Path
    children: list[Child] = field(default_factory=list)

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start one process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / f"{name}.out"
        child = Child(name, command, log=log, cwd=self.folder, environment=self.environment(name))
        child.start()
        self.children.append(child)

    def environment(self, name: str) -> dict[str, str]:
        """A process's environment: nothing of Flower but quiet, and a home of its own."""
        home = self.folder / f"home-{name}"
        home.mkdir(parents=True, exist_ok=True)
        return child_environment(Folder(self.folder)) | QUIET | {"FLWR_HOME": str(home), "HOME": str(home)}

    def command(self, *arguments: str, name: str = "submitter") -> str:
        """Run a module's command to its end; what it printed."""
        done = subprocess.run(
            [sys.executable, "-P", "-m", *arguments],
            cwd=self.folder,
            env=self.environment(name),
            capture_output=True,
            text=True,
            check=False,
            timeout=START_SECONDS,
        )
        if done.returncode:
            raise Failed(f"{' '.join(arguments[:3])}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def wait(self, until: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until `until()`; `Failed` when a process ends or the time is over."""
        end = time.monotonic() + seconds
        while not until():
            for child in self.children:
                if child.pid is None:
                    raise Failed(f"{what}: {child.name} ended: {child.last_words()}")
            if time.monotonic() > end:
                raise Failed(f"{what}: not within {seconds:.0f} s; the logs are in {self.folder}")
            time.sleep(0.2)


@contextlib.contextmanager
def processes(folder: Path) -> Iterator[Processes]:
    """None at first."""
    running = Processes(folder)
    try:
        yield running
    finally:
        for child in reversed(running.children):
            child.end(END_SECONDS)


# --- Flower as it comes ---------------------------------------------------------------------------------------


@dataclass
class Stock:
    """A SuperLink, a SuperNode for each agency, and a bundle of empty work."""

    running: Processes
    app: Path
    agencies: int

    def rounds(self, rounds: int, *, columns: int, evaluate: bool) -> list[float]:
        """Seconds of each round of Flower's FedAvg; with `evaluate` two messages a round, else one."""
        out = self.running.folder / f"seconds-{time.monotonic_ns()}.json"
        config = f'rounds={rounds} agencies={self.agencies} columns={columns} out="{out}"'
        config += f" evaluate={str(evaluate).lower()}"
        self.running.command("flwr.cli.app", "run", str(self.app), "stock", "--run-config", config)
        self.running.wait(out.exists, RUN_SECONDS, "Flower's run")
        seconds: list[float] = json.loads(out.read_text())
        return seconds


@contextlib.contextmanager
def stock(folder: Path, agencies: int) -> Iterator[Stock]:
    """Flower's own processes with their defaults, but for what is on in a guarded federation: TLS, authentication."""
    from experiments.coordinator import tls

    made = Folder(folder)
    (folder / "tls").mkdir(parents=True)
    tls.make_all(made, "127.0.0.1", server=True)
    with processes(folder) as running:
        port = free("127.0.0.1", 0, "port")
        command = ["flower-superlink", "--host", "127.0.0.1", "--port", str(port), "--enable-supernode-auth"]
        command += ["--disable-runtime-dependency-installation"]
        for option, name in {
            "certfile": "server.crt",
            "keyfile": "server.key",
            "ca-certfile": "ca.crt",
        }.items():
            command += [f"--ssl-{option}", str(folder / "tls" / name)]
        running.start("superlink", [_beside(command[0]), *command[1:]])
        _know(folder / "home-submitter", port, folder / "tls" / "ca.crt")
        connection = SuperLinkConnection(
            "stock", address=f"127.0.0.1:{port}", root_certificates=str(folder / "tls" / "ca.crt")
        )
        running.wait(lambda: _answers(connection), START_SECONDS, "the SuperLink's start")
        for number in range(agencies):
            _start_node(running, connection, number)
        running.wait(lambda: _online(connection) == agencies, START_SECONDS, "the SuperNodes' start")
        app = folder / "app"
        app.mkdir()
        (app / "pyproject.toml").write_text(BUNDLE)
        shutil.copy(Path(__file__).with_name("empty_work.py"), app)
        yield Stock(running, app, agencies)


def _start_node(running: Processes, connection: SuperLinkConnection, number: int) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    path = running.folder / f"node-{number}.key"
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    with control.control(connection) as client:
        control.register(client, public_key_to_bytes(key.public_key()), f"agency-{number}")
    command = [_beside("flower-supernode"), "--superlink", str(connection.address)]
    command += ["--root-certificates", str(running.folder / "tls" / "ca.crt")]
    command += ["--auth-supernode-private-key", str(path), "--host", "127.0.0.1"]
    running.start(f"agency-{number}", [*command, "--port", str(free("127.0.0.1", 0, "port"))])


def _know(home: Path, port: int, ca: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    entry = f'[superlink.stock]\naddress = "127.0.0.1:{port}"\nroot-certificates = "{ca}"\n'
    (home / "config.toml").write_text(entry)


def _answers(connection: SuperLinkConnection) -> bool:
    try:
        return _online(connection) == 0
    except control.ControlError:
        return False


def _online(connection: SuperLinkConnection) -> int:
    with control.control(connection) as client:
        return [node.status for node in control.nodes(client)].count("online")


def _beside(command: str) -> str:
    return str(Path(sys.executable).with_name(command))


# --- fedrisk --------------------------------------------------------------------------------------------------


@dataclass
class Hosted:
    """A coordinator behind its proxy, and a node for each agency."""

    running: Processes
    nodes: Sequence[Path]

    def rounds(self, rounds: int, *overrides: str) -> "HostedRun":
        """A run of so many rounds."""
        arguments = [*overrides, f"rounds={rounds}", f"data.agencies={self.running.folder}/agencies.yaml"]
        coordinator = self.running.folder / "coordinator"
        said = self.running.command(
            "experiments.cli", "submit", str(coordinator), "experiment=own", *arguments
        )
        found = re.search(r"^result +(\S+)/result.json", said, re.MULTILINE)
        if found is None:
            raise Failed(f"fedrisk submit named no result: {said}")
        folder, log = Path(found[1]), Path(found[1]) / "run.log"

        def over() -> bool:
            if log.exists() and " ERROR " in log.read_text():
                raise Failed(f"the run failed: {log.read_text().splitlines()[-1]}")
            return (folder / "result.json").exists()

        self.running.wait(over, RUN_SECONDS, "the run")
        return HostedRun(folder, self.nodes)


@dataclass(frozen=True)
class HostedRun:
    """A run that is over."""

    folder: Path
    nodes: Sequence[Path]

    @property
    def seconds(self) -> list[float]:
        """From each round's end to the next one's, all that a round takes; the first round's is not known."""
        log = (self.folder / "run.log").read_text()
        ends = re.findall(r"^(\S+ \S+) \w+ flwr aggregate_train: Received", log, re.MULTILINE)
        result = json.loads((self.folder / "result.json").read_text())
        if len(ends) != len(result["rounds"]) or any(record["void"] for record in result["rounds"]):
            raise Failed(f"a round of {self.folder.name} was void: result.json says why")
        moments = [datetime.strptime(end, "%Y-%m-%d %H:%M:%S,%f") for end in ends]
        return [(end - start).total_seconds() for start, end in pairwise(moments)]

    @property
    def set_up(self) -> float:
        """Seconds from the first order for mask keys to the first round's order, as the first agency got them."""
        at: dict[str, datetime] = {}
        for record in journal.read(self.nodes[0]):
            if record.kind == "ordered" and record.facts.get("run_id") == self.folder.name:
                at.setdefault(record.facts["order"], datetime.fromisoformat(record.at))
        return (at["round"] - at["keys"]).total_seconds()


@contextlib.contextmanager
def hosted(folder: Path, agencies: Sequence[Agency], contract: Path) -> Iterator[Hosted]:
    """`fedrisk coordinator` and `fedrisk-node`, as agencies host them, on tables of made-up people."""
    home = folder / "coordinator"
    with processes(folder) as running:
        folder.mkdir(parents=True, exist_ok=True)
        port = str(free("127.0.0.1", 0, "port"))
        running.command(
            "experiments.cli", "coordinator", "init", str(home), "--host", "127.0.0.1", "--port", port
        )
        running.start("coordinator", [*_module("experiments.cli"), "coordinator", "start", str(home)])
        running.wait((home / "flower" / "config.toml").exists, START_SECONDS, "the coordinator's start")
        nodes = _lay_out(folder, agencies, contract, f"127.0.0.1:{port}")
        keys = [f"{node.name}={node / 'node.pub'}" for node in nodes]
        running.command("experiments.cli", "coordinator", "enrol", *keys, "--folder", str(home))
        for node in nodes:
            running.start(node.name, [*_module("clients.cli"), "start", str(node)])
        for node in nodes:
            log = node / "log" / "node.log"
            running.wait(
                lambda log=log: log.exists() and "connected to" in log.read_text(),  # type: ignore[misc]
                START_SECONDS,
                f"{node.name}'s start",
            )
        yield Hosted(running, nodes)


def _lay_out(folder: Path, agencies: Sequence[Agency], contract: Path, superlink: str) -> list[Path]:
    """Each agency's folder, and what the data scientist has: a contract, and a list without tables."""
    values = yaml.safe_load(contract.read_text())
    nodes = [folder / "nodes" / agency.name for agency in agencies]
    for node in nodes:
        node.mkdir(parents=True)
        make_node_key(node)
    public = {node.name: public_text(node) for node in nodes}
    listing = []
    for node, agency in zip(nodes, agencies, strict=True):
        facts: dict[str, Any] = {"name": agency.name, "public_size": agency.public_size}
        facts |= {} if agency.kind is None else {"kind": agency.kind}
        listing.append(dict(facts))
        facts |= {"table": str(agency.table.resolve()), "contract": "contract.yaml"}
        facts |= {"superlink": {"address": superlink, "certificate": "ca.crt"}}
        facts |= {"peers": {name: key for name, key in public.items() if name != agency.name}}
        (node / "node.toml").write_text(tomli_w.dumps(facts))
        (node / "policy.toml").write_text(tomli_w.dumps(_policy(values)))
        shutil.copy(contract, node / "contract.yaml")
        shutil.copy(folder / "coordinator" / "tls" / "ca.crt", node / "ca.crt")
    shutil.copy(contract, folder / "contract.yaml")
    (folder / "agencies.yaml").write_text(yaml.safe_dump({"contract": "contract.yaml", "agencies": listing}))
    return nodes


def _policy(contract: dict[str, Any]) -> dict[str, Any]:
    """What these agencies permit: runs of this benchmark on made-up people."""
    return {
        "purposes": {contract["purpose"]: {"legal_basis": "made-up people"}},
        "contracts": [Contract.from_dict(contract).sha256],
        "models": ["logistic"],
        "strategies": ["fedavgm", "dp_fedsgd"],
        "releases": ["train", "evaluate", "users"],
        "min_people": 50,
        "max_honest": 2,
        "budget": {"life": 1000.0, "delta": 1e-5},
    }


def _module(name: str) -> list[str]:
    return [sys.executable, "-P", "-m", name]
