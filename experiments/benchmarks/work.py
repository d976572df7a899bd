"""The work that every side does: made-up agencies of 2,000 training people with 60 features each.

One round is one local epoch at each agency: people / batch steps of about `batch` people, then one average.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch.nn.functional import binary_cross_entropy_with_logits as logistic_loss

from clients.app import make_app, node_from_config
from experiments import engines
from experiments.config import Study, compose, read
from experiments.run import log_to_file
from federation.server.result import RunFacts
from federation.server.rounds import Watcher, run_federation

TUNE, TEST = 0.1, 0.1  # declared; the tables name each person's part, so that exactly `people` train
LEARNING_RATE = 0.1
NOISE, CLIP, DELTA = 1.0, 1.0, 1e-5


@dataclass(frozen=True)
class Work:
    """`agencies` x `people` x `features`, expected batch `batch`; an epoch is `steps` steps."""

    agencies: int = 10
    people: int = 2000
    features: int = 60
    batch: int = 64
    hidden: tuple[int, ...] = ()

    @property
    def steps(self) -> int:
        return self.people // self.batch

    @property
    def sample_rate(self) -> float:
        return self.batch / self.people

    @property
    def public_size(self) -> int:
        """Of each agency, as it is declared."""
        return round(self.people / (1 - TUNE - TEST))

    def records(self, agency: int) -> tuple[np.ndarray, np.ndarray]:
        """(x, y) of one agency's training people, float32: x (people, features) in [-1, 1], y 0 or 1."""
        x, y, _ = self.everyone(agency)
        return x[: self.people], y[: self.people]

    def everyone(self, agency: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """(x, y, part) of all people of one agency, those to train on first."""
        rng = np.random.default_rng([agency, self.people, self.features])
        tune = round(self.people * TUNE / (1 - TUNE - TEST))
        part = ["train"] * self.people + ["tune"] * tune + ["test"] * tune
        x = rng.uniform(-1, 1, (len(part), self.features)).astype(np.float32)
        logit = x @ np.random.default_rng(0).normal(size=self.features)
        return x, (rng.random(len(part)) < 1 / (1 + np.exp(-logit))).astype(np.float32), part

    def write(self, folder: Path) -> Path:
        """The agencies' tables, their contract and agencies.yaml, as a person would lay them out."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "contract.yaml").write_text(yaml.safe_dump(self._contract(), sort_keys=False))
        listing = []
        for agency in range(self.agencies):
            name = f"agency-{agency:03d}"
            self._write_table(agency, folder / f"{name}.parquet")
            listing.append({"name": name, "table": f"{name}.parquet", "public_size": self.public_size})
        path = folder / "agencies.yaml"
        path.write_text(yaml.safe_dump({"contract": "contract.yaml", "agencies": listing}))
        return path

    def _write_table(self, agency: int, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        x, y, part = self.everyone(agency)
        sex = ["fm"[row % 2] for row in range(len(part))]
        table = dict(zip(self._columns(), x.T, strict=True)) | {"sex": sex, "outcome": y, "part": part}
        pq.write_table(pa.table(table), path)

    def _columns(self) -> list[str]:
        return [f"x{column}" for column in range(self.features)]

    def _contract(self) -> dict[str, Any]:
        return {
            "name": "benchmark",
            "version": 1,
            "description": "Made-up numbers for timing.",
            "purpose": "benchmark",
            "unit": {"kind": "row"},
            "columns": {
                name: {"type": "number", "min": -1, "max": 1, "unit": "none"} for name in self._columns()
            },
            "groups": {"sex": {"column": "sex", "levels": {"female": ["f"], "male": ["m"]}, "other": False}},
            "label": {
                "column": "outcome",
                "positive": ["1"],
                "horizon": "none",
                "description": "A made-up outcome.",
            },
            "split": {"column": "part"},
        }

    def overrides(self, agencies: Path, rounds: int) -> list[str]:
        """What makes `fedrisk run` do this work: DP-SGD, Poisson batches of `batch` expected."""
        model = ["model=mlp", f"model.hidden={list(self.hidden)}"] if self.hidden else ["model=logistic"]
        return [
            "experiment=own",
            f"data.agencies={agencies}",
            "name=benchmark",
            f"rounds={rounds}",
            *model,
            "privacy.epsilon=null",
            f"privacy.noise_multiplier={NOISE}",
            "privacy.evaluate_epsilon=1",
            f"privacy.delta={DELTA}",
            f"privacy.max_grad_norm={CLIP}",
            f"privacy.sample_rate={self.sample_rate}",
            f"local.steps={self.steps}",
            f"local.learning_rate={LEARNING_RATE}",
            f"split.tune={TUNE}",
            f"split.test={TEST}",
        ]


@dataclass
class Clock:
    """Watches a run and does `between` after each round; `seconds` has each round's time without it.

    A round is all of it: orders, training, ledgers, the average, the checkpoint on the disk.
    """

    between: Callable[[], object] = lambda: None
    seconds: list[float] = field(default_factory=list)
    began: float = 0.0

    def start(self, header: Mapping[str, Any]) -> None:
        self.began = time.perf_counter()

    def round(self, record: Mapping[str, Any]) -> None:
        self.seconds.append(time.perf_counter() - self.began)
        self.between()
        self.began = time.perf_counter()

    def checkpoint(self, record: Mapping[str, Any]) -> None: ...


def study(agencies: Path, work: Work, rounds: int, *more: str) -> Study:
    """The study that `fedrisk run` would read from the command line."""
    return read(compose([*work.overrides(agencies, rounds), "tracking=none", *more]))


def local_grid(study: Study, folder: Path) -> tuple[engines.LocalGrid, RunFacts]:
    """The local engine over node folders under `folder`: ledgers on its disk, log lines in its files."""
    experiment = study.experiment
    nodes = engines.make_node_folders(
        study.agencies, experiment.contract, folder / "nodes", seed=experiment.settings.seed, min_people=1
    )
    log_to_file(folder)
    grid = engines.LocalGrid(make_app(node_from_config), [{"node-dir": str(node)} for node in nodes])
    return grid, RunFacts(folder.name, "local", simulation=True)


def run(study: Study, folder: Path, watchers: Sequence[Watcher]) -> dict[str, Any]:
    """`study` on the local engine in `folder`, which is new."""
    folder.mkdir(parents=True)
    grid, facts = local_grid(study, folder)
    return run_federation(grid, study.experiment, facts, folder, watchers)


@dataclass
class Block:
    """Seconds of rounds that took turns."""

    ours: list[float]
    bare: list[float]
    optimizer: list[float]


class Turns:
    """fedrisk and the bare loops on the same work, a round of each in turn."""

    def __init__(self, work: Work, folder: Path) -> None:
        self.work, self.folder = work, folder
        self.agencies = work.write(folder / "data")
        self.runs = itertools.count(1)

    def block(self, rounds: int) -> Block:
        """A run of `rounds` rounds with ledgers and checkpoints of its own."""
        bare, optimizer = bare_rounds(self.work), bare_rounds(self.work, by_hand=False)
        block = Block([], [], [])

        def between() -> None:
            for loop, seconds in ((bare, block.bare), (optimizer, block.optimizer)):
                began = time.perf_counter()
                next(loop)
                seconds.append(time.perf_counter() - began)

        clock = Clock(between, block.ours)
        plan = study(self.agencies, self.work, rounds)
        run(plan, self.folder / f"run-{next(self.runs)}", [clock])
        return block


def bare_rounds(work: Work, *, by_hand: bool = True) -> Iterator[None]:
    """Each `next` is one round without privacy: as many steps as the private side takes, on shuffled batches of
    the same size from resident tensors; then the average of the weights.

    `by_hand` is as short as PyTorch allows: gradients, and one multiplication for each parameter. Otherwise
    `backward` and torch.optim.SGD, as a person would write it.
    """
    epoch = _epoch_by_hand if by_hand else _epoch_with_optimizer
    data = [resident(work, agency) for agency in range(work.agencies)]
    module = plain_module(work)
    parameters = list(module.parameters())
    shared = [p.detach().clone() for p in parameters]
    while True:
        total = [torch.zeros_like(value) for value in shared]
        for x, y in data:
            for p, value in zip(parameters, shared, strict=True):
                p.data.copy_(value)
            batches = torch.split(torch.randperm(len(x)), work.batch)[: work.steps]
            epoch(module, ((x[batch], y[batch]) for batch in batches))
            for sum_, p in zip(total, parameters, strict=True):
                sum_.add_(p.data)
        shared = [value / work.agencies for value in total]
        yield


Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


def _epoch_by_hand(module: torch.nn.Module, batches: Batches) -> None:
    parameters = list(module.parameters())
    for x, y in batches:
        gradients = torch.autograd.grad(logistic_loss(module(x).squeeze(-1), y), parameters)
        for p, gradient in zip(parameters, gradients, strict=True):
            p.data.add_(gradient, alpha=-LEARNING_RATE)


def _epoch_with_optimizer(module: torch.nn.Module, batches: Batches) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)
    for x, y in batches:
        optimizer.zero_grad()
        torch.autograd.backward(logistic_loss(module(x).squeeze(-1), y))
        optimizer.step()


def resident(work: Work, agency: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One agency's training people as tensors."""
    x, y = work.records(agency)
    return torch.from_numpy(x), torch.from_numpy(y)


def plain_module(work: Work) -> torch.nn.Module:
    """Logistic regression or an MLP in plain PyTorch: (batch, features) -> (batch, 1)."""
    layers: list[torch.nn.Module] = []
    for fan_in, fan_out in itertools.pairwise([work.features, *work.hidden]):
        layers += [torch.nn.Linear(fan_in, fan_out), torch.nn.ReLU()]
    head = torch.nn.Linear([work.features, *work.hidden][-1], 1)
    return torch.nn.Sequential(*layers, head) if layers else head


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, mean and quartiles of `seconds`, and how many there are."""
    low, _, high = statistics.quantiles([*seconds, *seconds], n=4)
    return {
        "median": statistics.median(seconds),
        "mean": statistics.fmean(seconds),
        "low": low,
        "high": high,
        "count": len(seconds),
    }
