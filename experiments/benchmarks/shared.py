"""What shared noise behind masks is worth: one made-up risk task, every way to be private at ε = 1.

    python -m experiments.benchmarks.shared --seeds 5 --out outputs/bench/shared.json

Ten agencies; for each line the ways to train in `LINES`, each with settings of its own that were chosen on the tune
part, judged without noise on the held-out people of all agencies; mean ± sd over seeds that draw other people. Prints
the table of RESULTS.md and whether each target is met; exit code 1 if one is not.
"""

import functools
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clients.records.data import PartName
from experiments.benchmarks.utility import Target, parser, shown, verdict
from experiments.benchmarks.work import Work
from experiments.compare import Entry, open_bench, summary
from experiments.config import compose, read
from experiments.run import log_to_file
from federation.experiment import Experiment
from federation.privacy import epsilon
from federation.release import VIEWERS, Viewer

SCORES, FLAGS, FACTORS, PAIRS = 36, 24, 8, 12
COLUMNS = SCORES + FLAGS
INTERCEPT = -1.3  # log-odds


@dataclass(frozen=True)
class Truth:
    """How columns come from hidden factors, and risk from columns. The same for every seed."""

    loadings: np.ndarray  # (FACTORS, COLUMNS)
    thresholds: np.ndarray  # (FLAGS,): above it a flag is 1, else 0
    effects: np.ndarray  # (COLUMNS,) log-odds; half of them 0
    pairs: np.ndarray  # (2, PAIRS) columns whose product has an effect too
    pair_effects: np.ndarray  # (PAIRS,)

    def log_odds(self, x: np.ndarray) -> np.ndarray:
        """Of the outcome, (n,), without what differs between agencies."""
        one, other = self.pairs
        return np.asarray(x @ self.effects + (x[:, one] * x[:, other]) @ self.pair_effects)


@functools.cache
def truth() -> Truth:
    """The one truth of this task."""
    rng = np.random.default_rng(0)
    return Truth(
        loadings=rng.normal(size=(FACTORS, COLUMNS)) / np.sqrt(FACTORS),
        thresholds=rng.uniform(0.3, 1.2, FLAGS),
        effects=0.66 * rng.normal(size=COLUMNS) * (rng.random(COLUMNS) < 0.5),
        pairs=rng.integers(COLUMNS, size=(2, PAIRS)),
        pair_effects=0.4 * rng.normal(size=PAIRS),
    )


@dataclass(frozen=True)
class Task(Work):
    """Agencies whose people have COLUMNS columns in [-1, 1] and an outcome; `seed` draws other people.

    Agencies differ in who their people are (factors shifted by 0.4 sd) and in how often the outcome comes (log-odds
    shifted by 0.5), both the same for every seed.
    """

    seed: int = 0
    features: int = COLUMNS
    tune: int = 1000
    test: int = 1500

    @property
    def public_size(self) -> int:
        return self.people + self.tune + self.test

    def everyone(self, agency: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """(x (n, COLUMNS) in [-1, 1], y 0 or 1, part) of one agency."""
        place, rng = np.random.default_rng([1, agency]), np.random.default_rng([2, self.seed, agency])
        shift, base = place.normal(scale=0.4, size=FACTORS), place.normal(scale=0.5)
        factors = shift + rng.normal(size=(self.public_size, FACTORS))
        hidden = factors @ truth().loadings + 0.7 * rng.normal(size=(self.public_size, COLUMNS))
        flags = hidden[:, SCORES:] > truth().thresholds
        x = np.hstack([np.tanh(hidden[:, :SCORES]), flags]).astype(np.float32)
        risk = 1 / (1 + np.exp(-(INTERCEPT + base + truth().log_odds(x))))
        part = ["test"] * self.test + ["tune"] * self.tune + ["train"] * self.people
        return x, (rng.random(self.public_size) < risk).astype(np.float32), part

    def settings(self, agencies: Path, folder: Path) -> list[str]:
        """What every way to train has in common."""
        return [
            "experiment=own",
            f"data.agencies={agencies}",
            "name=shared",
            f"output={folder}",
            "tracking=none",
            f"seed={self.seed}",
            f"split.tune={self.tune / self.public_size}",
            f"split.test={self.test / self.public_size}",
            "evaluation.checkpoints=0",
        ]


@dataclass(frozen=True)
class Line:
    """A model at agencies of one size, and the settings of each way to train it (name -> overrides)."""

    people: int
    model: tuple[str, ...]
    ways: Mapping[str, tuple[str, ...]]


PLAIN = "no privacy"
OTHERS = "FedAvg, local DP-SGD"
OWN = "DP-FedSGD, own noise"
SHARED = "DP-FedSGD, shared noise, c = 1, d = 1"
CENTRAL = "DP-FedSGD, shared noise, c = 0, d = 0"


def ways(
    plain: str, others: str, own: str, shared: str, *, epsilon: float = 1.0
) -> dict[str, tuple[str, ...]]:
    """The five ways from the settings in which they differ, as words of a command line."""
    private = ("privacy=local", f"privacy.epsilon={epsilon:g}")
    behind_masks = ("strategy=dp_fedsgd", "privacy=shared", f"privacy.epsilon={epsilon:g}")
    return {
        PLAIN: ("strategy=fedavgm", "privacy=none", *plain.split()),
        OTHERS: ("strategy=fedavg", *private, *others.split()),
        OWN: ("strategy=dp_fedsgd", *private, *own.split()),
        SHARED: (*behind_masks, *shared.split()),
        CENTRAL: (*behind_masks, "privacy.colluders=0", "privacy.dropouts=0", *shared.split()),
    }


LINES: Mapping[str, Line] = {
    "logistic": Line(
        people=2000,
        model=("model=logistic",),
        ways=ways(
            plain="rounds=100 local.learning_rate=0.8 strategy.server_momentum=0.9",
            others="rounds=10 local.steps=10 privacy.max_grad_norm=1 local.learning_rate=4",
            own="rounds=100 privacy.max_grad_norm=0.5 local.learning_rate=1.6 strategy.server_momentum=0.9",
            shared="rounds=150 privacy.max_grad_norm=2 local.learning_rate=0.267 strategy.server_momentum=0.9",
        ),
    ),
    "small": Line(
        people=300,
        model=("model=logistic",),
        ways=ways(
            plain="rounds=100 local.learning_rate=0.8 strategy.server_momentum=0.9 local.weight_decay=0.001",
            others="rounds=10 local.steps=10 privacy.max_grad_norm=1 local.learning_rate=1",
            own="rounds=25 privacy.max_grad_norm=2 local.learning_rate=1 strategy.server_momentum=0",
            shared="rounds=200 privacy.max_grad_norm=1.5 local.learning_rate=0.075 strategy.server_momentum=0.9",
        ),
    ),
    "mlp": Line(
        people=2000,
        model=("model=mlp", "model.hidden=[128,128]"),
        ways=ways(
            plain="rounds=100 local.learning_rate=0.2 strategy.server_momentum=0.9 local.weight_decay=0.001",
            others="rounds=10 local.steps=3 privacy.max_grad_norm=1 local.learning_rate=3.33",
            own="rounds=100 privacy.max_grad_norm=2 local.learning_rate=1 strategy.server_momentum=0",
            shared="rounds=100 privacy.max_grad_norm=2 local.learning_rate=0.2 strategy.server_momentum=0.9",
        ),
    ),
}
TARGETS = (
    Target("logistic", SHARED, "auc", within=0.003, reference=PLAIN),
    Target("small", SHARED, "auc", within=0.025, reference=PLAIN),
    Target("mlp", SHARED, "auc", within=0.012, reference=PLAIN),
)


def trial(line: Line, seed: int, folder: Path, part: PartName = "test") -> list[Entry]:
    """Every way to train on the people that `seed` draws, judged on `part`."""
    task = Task(people=line.people, seed=seed)
    common = [*task.settings(task.write(folder / "data"), folder), *line.model]
    plans = {way: read(compose([*common, *settings])) for way, settings in line.ways.items()}
    first = plans[PLAIN]
    with open_bench(first.experiment, first.data, first.agencies, folder, part=part) as bench:
        entries = []
        for way, study in plans.items():
            here = replace(bench, experiment=study.experiment)
            weights = here.federate(study.experiment, "way")
            entries.append(here.entry(way, "way", cost(study.experiment), here.model(weights)))
    return entries


def cost(experiment: Experiment, viewer: Viewer = "coordinator") -> float | None:
    """ε of one agency's training to `viewer`; None without privacy."""
    if experiment.settings.privacy.mechanism == "none":
        return None
    plan = experiment.plan("cost", simulation=True)
    return epsilon([plan.train_release()] * plan.rounds, plan.privacy.delta, viewer=viewer)


def costs(line: Line) -> dict[str, dict[str, float | None]]:
    """ε of each way to each viewer (public, coordinator, everybody)."""
    with tempfile.TemporaryDirectory(prefix="fedrisk-shared-") as folder:
        task = Task(people=line.people)
        common = [*task.settings(task.write(Path(folder)), Path(folder)), *line.model]
        plans = {way: read(compose([*common, *settings])).experiment for way, settings in line.ways.items()}
    return {way: {viewer: cost(plan, viewer) for viewer in VIEWERS} for way, plan in plans.items()}


def measure(name: str, seeds: Sequence[int], part: PartName = "test") -> list[dict[str, Any]]:
    """The rows of one line."""
    found = []
    for seed in seeds:
        with tempfile.TemporaryDirectory(prefix="fedrisk-shared-") as folder:
            log_to_file(Path(folder))
            found.append(trial(LINES[name], seed, Path(folder), part))
        print(f"{name}: seed {seed} done", file=sys.stderr)
    return summary(found, ("auc", "brier"))


def table(
    name: str, rows: Sequence[Mapping[str, Any]], spent: Mapping[str, Mapping[str, float | None]]
) -> str:
    """One line as Markdown."""
    head = f"| {name} | ε to the coordinator | public | everybody else | AUC | Brier |\n|---|---|---|---|---|---|"
    order: tuple[Viewer, ...] = ("coordinator", "public", "everybody")
    lines = [
        " | ".join(
            [
                f"| {row['name']}",
                *(
                    "–" if (found := spent[row["name"]][viewer]) is None else f"{found:.2f}"
                    for viewer in order
                ),
                *(shown(row[key], 4) for key in ("auc", "brier")),
            ]
        )
        + " |"
        for row in rows
    ]
    return "\n".join([head, *lines])


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    options = parser("What shared noise is worth: see RESULTS.md", LINES, "outputs/bench/shared.json")
    arguments = options.parse_args(words)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    names = arguments.only or list(LINES)
    found = {name: measure(name, seeds, arguments.part) for name in names}
    spent = {name: costs(LINES[name]) for name in names}
    by_name = {name: {row["name"]: row for row in rows} for name, rows in found.items()}
    targets = [target.judge(by_name[target.line]) for target in TARGETS if target.line in found]
    result = {
        "seeds": list(seeds),
        "part": arguments.part,
        "lines": found,
        "epsilon": spent,
        "targets": targets,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1))
    for name, rows in found.items():
        print(table(name, rows, spent[name]), end="\n\n")
    print("\n".join(map(verdict, targets)))
    print(f"written to {arguments.out}")
    if not all(target["met"] for target in targets):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
