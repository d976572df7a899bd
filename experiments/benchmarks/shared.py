"""What shared noise behind masks is worth: one made-up risk task, every way to be private at ε = 1.

python -m experiments.benchmarks.shared                                   about 20 minutes
python -m experiments.benchmarks.shared --seeds 2 --only logistic,small   some lines
python -m experiments.benchmarks.shared --quick                           two rounds, to see that all of it runs
"""

import functools
from dataclasses import dataclass

import numpy as np

SCORES, FLAGS, FACTORS, PAIRS = 36, 24, 8, 12
COLUMNS = SCORES + FLAGS


@dataclass(frozen=True)
class Truth:
    """How columns come from hidden factors, and risk from columns. The same for every seed."""

    loadings: np.ndarray  # (FACTORS, COLUMNS)
    thresholds: np.ndarray  # (FLAGS,): above it a flag is 1, else -1
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
class Task:
    """`agencies` whose people have COLUMNS columns in [-1, 1] and an outcome; `seed` draws other people.

    Agencies differ in who their people are (factors shifted by 0.4 sd) and in how often the outcome comes (log-odds
    shifted by 0.5), both the same for every seed.
    """

    seed: int
    people: int = 2000  # to train on, at each agency
    agencies: int = 10
    tune: int = 1000
    test: int = 1500

    @property
    def size(self) -> int:
        return self.people + self.tune + self.test

    def everyone(self, agency: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """(x (n, COLUMNS) in [-1, 1], y 0 or 1, part) of one agency."""
        place, rng = np.random.default_rng([1, agency]), np.random.default_rng([2, self.seed, agency])
        shift, base = place.normal(scale=0.4, size=FACTORS), place.normal(scale=0.5)
        factors = shift + rng.normal(size=(self.size, FACTORS))
        hidden = factors @ truth().loadings + 0.7 * rng.normal(size=(self.size, COLUMNS))
        flags = hidden[:, SCORES:] > truth().thresholds
        x = np.hstack([np.tanh(hidden[:, :SCORES]), flags]).astype(np.float32)
        risk = 1 / (1 + np.exp(-(INTERCEPT + base + truth().log_odds(x))))
        part = ["test"] * self.test + ["tune"] * self.tune + ["train"] * self.people
        return x, (rng.random(self.size) < risk).astype(np.float32), part


INTERCEPT = -1.3
