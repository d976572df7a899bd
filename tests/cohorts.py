"""Agencies whose lists overlap by a known number, as simulated tables or as nodes that guard records, and their wire."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
import yaml
from conftest import CONTRACT, permits, write_table
from flwr.app import Message

from clients.app import make_app, node_from_config
from clients.keys import public_text
from clients.node import open_node
from experiments.cohort import cohort_plan
from experiments.config import compose, read
from experiments.engines import LocalGrid
from federation import wire
from federation.cohort import CohortPlan, CohortRequest
from federation.experiment import Experiment
from federation.protocol import Reply
from federation.server.cohort import CohortJob, run_cohort
from federation.server.result import RunFacts
from federation.server.tracking import NoTracker

KINDS = {"health": "health", "housing": "charity", "police": "police"}
OF = CONTRACT | {
    "blocks": {},
    "columns": {"age": CONTRACT["columns"]["age"]},
    "match": {"identifier": "nhs"},
}
SETTINGS = ("experiment=own", "name=small", "tracking=none", "evaluation.disclosure=none")
QUICK = ("round_timeout=2", "join_timeout=2", "patience=0", "engine.poll_seconds=0.01")


def rows(name: str, n: int, shared: int) -> list[dict[str, object]]:
    """People of whom the first `shared` are in every agency's list; every second is female."""
    first = {"health": 1, "housing": 2, "police": 3}[name] * 10_000_000
    numbers = [i if i < shared else first + i for i in range(n)]
    return [
        {
            "person": f"{name}-{i}",
            "nhs": f"NHS {4_000_000_000 + number}",
            "age": i % 90,
            "sex": "f" if number % 2 else "m",
            "outcome": i % 2,
        }
        for i, number in enumerate(numbers)
    ]


def write_agencies(
    folder: Path, n: int = 300, shared: int = 100, names: Sequence[str] = tuple(KINDS)
) -> Path:
    """agencies.yaml with its contract and tables."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "contract.yaml").write_text(yaml.safe_dump(OF, sort_keys=False))
    listing = []
    for name in names:
        write_table(folder / f"{name}.csv", rows(name, n, shared))
        listing.append({"name": name, "kind": KINDS[name], "table": f"{name}.csv", "public_size": n})
    (folder / "agencies.yaml").write_text(yaml.safe_dump({"contract": "contract.yaml", "agencies": listing}))
    return folder


def experiment_of(folder: Path, *overrides: str) -> Experiment:
    """The settings of the agencies in `folder`."""
    words = [*SETTINGS, *QUICK, f"data.agencies={folder}/agencies.yaml", f"output={folder}/outputs"]
    return read(compose([*words, *overrides])).experiment


def plan_of(
    experiment: Experiment, names: Sequence[str] = ("health", "police"), epsilon: float = 2.0, **more: Any
) -> CohortPlan:
    """What deployed agencies are asked."""
    by = more.pop("by", None)
    plan = cohort_plan(experiment, more.pop("run_id", "run-1"), names, epsilon, by, simulation=False)
    return plan.but(**more)


POLICY = permits(
    OF,
    releases=["cohort"],
    map_columns=["nhs", "sex"],
    min_people=50,
    min_table_sigma=0.1,
    budget={"life": 20.0, "delta": 1e-5},
)


SIMULATED = {name: {"simulation": True} for name in KINDS}


def deployed(
    folder: Path, at: Path, policies: Mapping[str, Mapping[str, Any]] | None = None, n: int = 300
) -> dict[str, Path]:
    """Nodes below `at` that guard the tables of `write_agencies` in `folder`, each with the others' keys pinned.

    `policies`: other keys of some policies; None: left out.
    """
    homes = {name: at / "nodes" / name for name in KINDS if (folder / f"{name}.csv").exists()}
    for home in homes.values():
        home.mkdir(parents=True)
    public = {name: public_text(home) for name, home in homes.items()}
    for name, home in homes.items():
        peers = {other: key for other, key in public.items() if other != name}
        facts = {"name": name, "kind": KINDS[name], "table": str(folder / f"{name}.csv")}
        facts |= {"contract": "contract.yaml", "public_size": n, "peers": peers}  # type: ignore[dict-item]
        policy = POLICY | {"cohort_peers": sorted(peers)} | dict((policies or {}).get(name, {}))
        (home / "contract.yaml").write_text(yaml.safe_dump(OF, sort_keys=False))
        (home / "node.toml").write_text(tomli_w.dumps(facts))
        kept = {key: value for key, value in policy.items() if value is not None}
        (home / "policy.toml").write_text(tomli_w.dumps(kept))
    return homes


class Wire(LocalGrid):
    """A grid that keeps every reply and lets `change` say what comes of each order: None, as if it were lost."""

    def __init__(
        self, homes: Iterable[Path], change: Callable[[Message], Message | None] | None = None
    ) -> None:
        configs = [{"node-dir": str(home)} for home in homes]
        super().__init__(make_app(node_from_config), configs)
        self.change = change or (lambda message: message)
        self.orders: list[Message] = []
        self.replies: list[Reply] = []

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        changed = [(message, self.change(message)) for message in messages]
        self.orders += [message for _, message in changed if message is not None]
        sent = iter(super().push_messages([message for _, message in changed if message is not None]))
        return [next(sent) if message is not None else f"lost {i}" for i, (_, message) in enumerate(changed)]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        found = list(super().pull_messages(message_ids))
        self.replies += [wire.read_reply(message) for message in found]
        return found

    def ask(self, message: Message) -> Reply:
        """The answer to one order."""
        (reply,) = self.pull_messages(self.push_messages([message]))
        return wire.read_reply(reply)


def run(grid: LocalGrid, experiment: Experiment, plan: CohortPlan, folder: Path) -> dict[str, Any]:
    """What cohort.json would hold."""
    facts = RunFacts(plan.run_id, "superlink", simulation=False)
    home = folder / "outputs" / plan.run_id
    home.mkdir(parents=True, exist_ok=True)
    return run_cohort(grid, CohortJob(experiment, facts, home, CohortRequest(plan=plan), NoTracker()))


def charged(home: Path) -> list[dict[str, Any]]:
    """What the ledger of a node has, without the name of the split."""
    entries = open_node(home).ledger.entries()
    events = [event for entry in entries if entry.action == "charge" for event in entry.releases]
    return [dataclasses.replace(event, split_id="").to_dict() for event in events]


def reserved(home: Path) -> list[Any]:
    """What plans may still take at a node."""
    return [events for events in open_node(home).ledger.reservations().values() if events]
