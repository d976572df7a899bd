"""What privacy costs in a step: plain SGD, Opacus as it comes, and `clients.train`, side by side.

    python -m experiments.benchmarks.dp_step --out outputs/dp_step.json

One thread; contenders take turns, so that a busy machine slows them all; medians over the turns.
"""

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from opacus import PrivacyEngine
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as logistic_loss
from torch.utils.data import DataLoader, TensorDataset

from clients.randomness import Stream, gaussian
from clients.train import Noise, dp_fit, simulated_noise, simulated_sampling
from federation.protocol import LocalPlan, PrivacyPlan
from models.risk import build
from models.spec import ModelSpec

FEATURES = 60
LEARNING_RATE = 0.1
PLAIN = "plain SGD, resident tensors"


@dataclass(frozen=True)
class Case:
    """`steps` steps of expected batch `batch` over `people` people are timed as one turn."""

    name: str
    model: ModelSpec
    people: int
    batch: int
    steps: int


CASES = (
    Case("logistic, batch 512", ModelSpec("logistic"), 20_000, 512, 40),
    Case("MLP 2x128, batch 512", ModelSpec("mlp", (128, 128)), 20_000, 512, 20),
    Case("logistic, batch 64, one epoch of 2,000", ModelSpec("logistic"), 2_000, 64, 32),
)
Turn = Callable[[], None]


@dataclass(frozen=True)
class Row:
    """One contender: median seconds per step, and how many times the plain step that is."""

    name: str
    seconds_per_step: float
    ratio: float


def made_up_people(n: int) -> tuple[Tensor, Tensor]:
    """x (n, 60) in [-1, 1] and y (n,) that depends on it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, FEATURES, generator=generator) * 2 - 1
    return x, (torch.rand(n, generator=generator) < torch.sigmoid(x.sum(1))).float()


def sgd_step(module: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    torch.autograd.backward(logistic_loss(module(x), y))
    optimizer.step()


def plain_resident(case: Case, x: Tensor, y: Tensor) -> Turn:
    """Shuffled batches by index: the least that a non-private step costs."""
    module = build(case.model, FEATURES)
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)

    def turn() -> None:
        done = 0
        while done < case.steps:
            for batch in torch.split(torch.randperm(len(x)), case.batch)[: case.steps - done]:
                sgd_step(module, optimizer, x[batch], y[batch])
                done += 1

    return turn


def plain_loader(case: Case, x: Tensor, y: Tensor) -> Turn:
    """The same through a DataLoader."""
    module = build(case.model, FEATURES)
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)
    return _turn(case, module, optimizer, DataLoader(TensorDataset(x, y), case.batch, shuffle=True))


def opacus_default(case: Case, x: Tensor, y: Tensor) -> Turn:
    """Opacus as its tutorials use it: make_private, hooks, its own Poisson DataLoader."""
    module = build(case.model, FEATURES)
    module, optimizer, loader = PrivacyEngine().make_private(
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=LEARNING_RATE),
        data_loader=DataLoader(TensorDataset(x, y), case.batch),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    return _turn(case, module, optimizer, loader)


def ours(case: Case, x: Tensor, y: Tensor, noise: Noise) -> Turn:
    """`dp_fit`: Poisson batches by index, book-keeping, Opacus' optimizer. Set-up and all."""
    module, sampling = build(case.model, FEATURES), simulated_sampling(0)
    privacy = PrivacyPlan(
        mechanism="local",
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        sample_rate=case.batch / case.people,
        delta=1e-5,
        tune_sigma=1.0,
        test_sigma=1.0,
    )
    local = LocalPlan(steps=case.steps, learning_rate=LEARNING_RATE)

    def turn() -> None:
        dp_fit(
            module,
            x,
            y,
            None,
            privacy=privacy,
            local=local,
            expected_batch=case.batch,
            sampling=sampling,
            noise=noise,
        )

    return turn


def _turn(
    case: Case,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: "DataLoader[tuple[Tensor, ...]]",
) -> Turn:
    """`case.steps` steps over a loader, over and over."""

    def turn() -> None:
        done = 0
        while done < case.steps:
            for x, y in loader:
                sgd_step(module, optimizer, x, y)
                done += 1
                if done == case.steps:
                    return

    return turn


def measure(case: Case, turns: int) -> list[Row]:
    """Every contender on one case."""
    x, y = made_up_people(case.people)
    contenders = {
        PLAIN: plain_resident(case, x, y),
        "plain SGD, DataLoader": plain_loader(case, x, y),
        "Opacus make_private, default hooks": opacus_default(case, x, y),
        "clients.train, simulated noise": ours(case, x, y, simulated_noise(0)),
        "clients.train, noise from the system": ours(case, x, y, gaussian(Stream.fresh())),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(turns + 1):
        for name, turn in contenders.items():
            start = time.perf_counter()
            turn()
            seconds[name].append((time.perf_counter() - start) / case.steps)
    medians = {name: statistics.median(of[1:]) for name, of in seconds.items()}  # the first turn warms up
    return [Row(name, median, median / medians[PLAIN]) for name, median in medians.items()]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--turns", type=int, default=15, help="how often each contender runs (default 15)")
    options = parser.parse_args(arguments)
    if options.turns < 1:
        parser.error(f"--turns must be at least 1, got {options.turns}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)  # Opacus about its own defaults
    results = []
    for case in CASES:
        rows = measure(case, options.turns)
        results.append({**asdict(case), "rows": [asdict(row) for row in rows]})
        print(f"\n{case.name}")
        for row in rows:
            print(f"  {row.name:<38}{row.seconds_per_step * 1e6:>10.0f} µs{row.ratio:>8.2f} x")
    if options.out:
        facts = {"benchmark": "dp_step", "torch": torch.__version__, "python": platform.python_version()}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(
            json.dumps({**facts, "threads": 1, "turns": options.turns, "cases": results}, indent=1)
        )


if __name__ == "__main__":
    main()
