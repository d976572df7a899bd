"""A federation as agencies host it: a coordinator behind its proxy, and a `fedrisk-node` process for each agency.

    with hosted(tmp_path, ["clinic", "north", "south"]) as federation:
        run = federation.submit("rounds=3")
        assert federation.until_it_ends(run) == "finished:completed"

Every process runs on the loopback, and is gone when the block ends.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tomli_w
import yaml
from conftest import CONTRACT, people, permits, write_table
from deployment import alive, descendants, environment
from federation_host import Host, coordinator

from clients.keys import make_node_key, public_text
from clients.ledger import Ledger
from federation.release import Event

KINDS = {"clinic": "health", "north": "police", "south": "police", "east": "police", "ward": "health"}
CANARY = "canary-person"
RUN_SECONDS, START_SECONDS = 300.0, 60.0
SETTINGS = ["experiment=own", "name=hosted", "tracking=none", "evaluation.checkpoints=1"]
SETTINGS += ["join_timeout=60", "data.agencies=agencies.yaml"]


@dataclass
class Agency:
    """One agency's node: its folder, and the process while it runs."""

    name: str
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    family: list[int] = field(default_factory=list)

    def start(self) -> None:
        """`fedrisk-node start`, without waiting for it."""
        with (self.folder.parent / f"{self.name}.out").open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "clients.cli", "start", str(self.folder)],
                cwd=self.folder.parent,
                env=environment(self.folder.parent / f"home-{self.name}"),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`fedrisk-node ...`."""
        return subprocess.run(
            [sys.executable, "-P", "-m", "clients.cli", *arguments],
            cwd=self.folder.parent,
            env=environment(self.folder.parent / f"home-{self.name}"),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    @property
    def worker(self) -> int | None:
        """The process id of the worker, while there is one."""
        assert self.process is not None
        found = [pid for pid in descendants(self.process.pid) if alive(pid)]
        return found[0] if found else None

    def kill(self) -> None:
        """SIGKILL the service; its worker must not outlive it for long."""
        assert self.process is not None
        self.family += descendants(self.process.pid)
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        assert self.process is not None
        self.family += descendants(self.process.pid)
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def end(self) -> None:
        """Whatever is left, at once."""
        if self.process is not None:
            self.family += [self.process.pid, *descendants(self.process.pid)]
            for pid in self.family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()

    def log(self) -> str:
        """What the node wrote for its own people."""
        path = self.folder / "log" / "node.log"
        return path.read_text() if path.exists() else ""

    def charges(self) -> list[tuple[str, Event]]:
        """(order, release) of every charge in the ledger, without the split id."""
        whose = f"{self.name}/people"
        with Ledger(self.folder / "ledger.db", budget=None, scope="lifetime", people=whose) as ledger:
            return [
                (entry.order_id, replace(entry.releases[0], split_id=""))
                for entry in ledger.entries()
                if entry.action == "charge"
            ]


@dataclass(frozen=True)
class Run:
    """A submitted run: Flower's number for it, and where the coordinator keeps it."""

    number: str
    folder: Path

    @property
    def result(self) -> dict[str, Any]:
        """result.json."""
        found: dict[str, Any] = json.loads((self.folder / "result.json").read_text())
        return found

    def rounds(self) -> int:
        """How many rounds are over."""
        kept = [
            int(path.stem.rpartition("-")[2]) for path in (self.folder / "checkpoints").glob("*.safetensors")
        ]
        return max(kept, default=0)


@dataclass
class Federation:
    """What runs."""

    root: Path
    host: Host
    agencies: dict[str, Agency]

    def submit(self, *overrides: str) -> Run:
        """`fedrisk submit`."""
        arguments = [*SETTINGS, f"min_agencies={len(self.agencies)}", *overrides]
        return Run(*self.host.submit(*arguments, cwd=self.root))

    def status(self, run: Run) -> str:
        """Flower's word for the run."""
        return self.host.status(run.number)

    def until_it_ends(self, run: Run, seconds: float = RUN_SECONDS) -> str:
        """Flower's word for the run once there is a result, or an error in its log."""

        def over() -> bool:
            log = run.folder / "run.log"
            return (run.folder / "result.json").exists() or (log.exists() and " ERROR " in log.read_text())

        self.wait(over, seconds, "the run's end")
        self.wait(lambda: self.status(run).startswith("finished"), 60, "Flower's word")
        return self.status(run)

    def until_round(self, run: Run, number: int, seconds: float = RUN_SECONDS) -> None:
        """Wait until round `number` is over."""
        self.wait(lambda: run.rounds() >= number, seconds, f"round {number}")

    def until_online(self, names: Iterable[str], seconds: float = START_SECONDS) -> None:
        """Wait until the agencies' nodes say that they are connected."""
        for name in names:
            agency = self.agencies[name]
            self.wait(lambda agency=agency: "connected to" in agency.log(), seconds, f"{name}'s start")  # type: ignore[misc]

    def wait(self, until: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until `until()`; the time is an error with the logs."""
        end = time.monotonic() + seconds
        while not until():
            if time.monotonic() > end:
                raise AssertionError(f"{what}: not within {seconds:.0f} seconds\n{self.logs()}")
            time.sleep(0.1)

    def logs(self) -> str:
        """The end of every log, for a person who reads a failed test."""
        said = [f"--- {each.name}\n{each.log()[-3000:]}" for each in self.agencies.values()]
        said += [f"--- {path}\n{path.read_text()[-2000:]}" for path in self.root.glob("nodes/*.out")]
        return "\n".join([*said, self.host.logs()])

    def must_have_charged_what_left(self, run: Run, *, lost: int = 0) -> None:
        """Each agency's ledger has each reply that the run used, once; `lost`: draws whose reply nobody received."""
        rounds = run.result["rounds"]
        last = len(rounds) + 1  # the round of the last tables
        never = []
        for name, agency in self.agencies.items():
            draws = [
                (int(order.rpartition("/")[2].partition("#")[0]), order, event)
                for order, event in agency.charges()
                if order.startswith(f"{run.folder.name}/")
            ]
            used = {record["round"] for record in rounds if name in record["replied"]}
            charged = Counter(number for number, _, event in draws if event.kind == "train")
            assert used <= set(charged), (name, used - set(charged))
            assert len({(order, event) for _, order, event in draws}) == len(draws), (
                f"{name}: a draw was charged twice"
            )
            never += [order for number, order, _ in draws if number not in {*used, last}]
        assert len(never) <= lost, f"charged and never used: {never}"


def lay_out(root: Path, names: Iterable[str], address: str, ca: Path | None) -> dict[str, Agency]:
    """A node folder for each agency, and what the data scientist has: a contract and a list without tables."""
    agencies, listing = {name: Agency(name, root / "nodes" / name) for name in names}, []
    for agency in agencies.values():
        agency.folder.mkdir(parents=True)
        make_node_key(agency.folder)
    public = {name: public_text(agency.folder) for name, agency in agencies.items()}
    for seed, (name, agency) in enumerate(agencies.items()):
        kind, home = KINDS[name], agency.folder
        rows = [row | {"person": f"{CANARY}-{row['person']}"} for row in people(seed)]
        write_table(home / "people.csv", rows, () if kind == "health" else ("visits",))
        facts = {"name": name, "kind": kind, "public_size": 300}
        node: dict[str, Any] = facts | {"table": "people.csv", "contract": "contract.yaml"}
        node |= {"peers": {peer: key for peer, key in public.items() if peer != name}}
        superlink: dict[str, Any] = {"address": address}
        superlink |= {"insecure": True} if ca is None else {"certificate": "ca.crt"}
        (home / "node.toml").write_text(tomli_w.dumps(node | {"superlink": superlink}))
        if ca is not None:
            (home / "ca.crt").write_bytes(ca.read_bytes())
        (home / "policy.toml").write_text(tomli_w.dumps(policy()))
        (home / "contract.yaml").write_text(yaml.safe_dump(CONTRACT, sort_keys=False))
        listing.append(facts)
    (root / "contract.yaml").write_text(yaml.safe_dump(CONTRACT, sort_keys=False))
    (root / "agencies.yaml").write_text(yaml.safe_dump({"contract": "contract.yaml", "agencies": listing}))
    return agencies


def policy() -> dict[str, Any]:
    """What these agencies permit."""
    budget = {"life": 100.0, "delta": 1e-5}
    releases = ["train", "evaluate", "stats", "map"]
    columns = {"stats_columns": ["age"], "map_columns": ["known", "sex"]}
    return permits(min_people=100, max_honest=2, releases=releases, budget=budget, **columns)


def change(path: Path, **values: Any) -> None:
    """Write `values` into a TOML file."""
    path.write_text(tomli_w.dumps(tomllib.loads(path.read_text()) | values))


@contextlib.contextmanager
def hosted(root: Path, names: Iterable[str], *, start: bool = True) -> Iterator[Federation]:
    """A coordinator and a node for each agency, enrolled and (unless `start` is False) started."""
    with coordinator(root / "coordinator") as host:
        agencies = lay_out(root, names, host.address, host.ca)
        federation = Federation(root, host, agencies)
        try:
            for agency in agencies.values():
                host.enrol(agency.name, agency.folder / "node.pub")
                if start:
                    agency.start()
            if start:
                federation.until_online(agencies)
            yield federation
        finally:
            for agency in agencies.values():
                agency.end()
            if federation.host is not host:  # a test has killed the first one and started another
                federation.host.end()
