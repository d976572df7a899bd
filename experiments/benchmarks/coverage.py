"""How often 95% intervals hold the truth, and how wide they are: every kind that a result publishes, by simulation.

People of three agencies and of six groups (two attributes) are drawn from a known population that a slightly
miscalibrated model scores, counted, noised and judged as a run does it. `covered` is about published intervals alone.
`ideal` is the width of the interval that knows the estimate's own spread, 2 x 1.96 standard deviations over the draws:
an interval is honest if it covers, and useful if it is not much wider than that.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np

from models import calibration, fairness
from models.constant import constant
from models.disclosure import Disclosure, profile
from models.metrics import describe
from models.scores import Estimate, ScoreTable, default_edges, tally

CUTOFF = 0.4
EDGES = default_edges(20, (CUTOFF,))
AGE = {"young": (0, 3), "middle": (1, 4), "old": (2, 5)}
SEX = {"female": (0, 1, 2), "male": (3, 4, 5)}
NONE, UK = profile("none"), profile("uk-default")
CASES = (
    (1000, 0.0, NONE),
    (1000, 0.0, UK),
    (3000, 0.0, UK),
    (3000, 2.5, UK),
    (3000, 5.0, UK),
    (10_000, 5.0, UK),
    (10_000, 15.0, UK),
)


@dataclass(frozen=True)
class Row:
    """One kind of interval for n people, noise of `sigma` in each cell of each agency's table, and a disclosure profile.

    published, covered: shares of the draws, and of the published ones.  width, ideal: means over the published ones.
    """

    kind: str
    n: int
    sigma: float
    profile: str
    published: float
    covered: float
    width: float
    ideal: float


@cache
def population() -> np.ndarray:
    """Share of people by (agency, group, bin, outcome), shape (3, 6, 20, 2)."""
    rng, n = np.random.default_rng(1), 400_000
    agency, group = rng.choice(3, n, p=[0.3, 0.3, 0.4]), rng.integers(0, 6, n)
    z = rng.normal(-0.6 + 0.25 * (agency - 1) + 0.3 * (group % 3 - 1), 1.4)
    y = rng.random(n) < 1 / (1 + np.exp(-z))
    said = 1 / (1 + np.exp(-0.3 - 0.2 * (group > 2) - 0.9 * z))
    return tally(EDGES, agency * 6 + group, said, y, 18).counts.reshape(3, 6, 20, 2) / n


def estimates(agencies: Sequence[ScoreTable], rule: Disclosure) -> dict[str, Estimate]:
    """Every kind of interval, from the agencies' tables."""
    everyone = reduce(add, agencies)
    found = {
        f"all: {name}": one for name, one in describe(everyone, CUTOFF, rule).items() if name != "auc_bound"
    }
    gaps = fairness.gaps(everyone, AGE, CUTOFF, disclosure=rule)
    apart = fairness.between(agencies, CUTOFF, disclosure=rule)
    found |= {f"gap of 3 groups: {name}": one for name, one in gaps.items()}
    found |= {f"gap of 3 agencies: {name}": one for name, one in apart.items()}
    found["gap of 3 groups: base_rate"] = fairness.conflict(everyone, AGE, disclosure=rule).base_rate_gap
    found["worst gap of 2 attributes"] = fairness.worst_gap(
        everyone, {"age": AGE, "sex": SEX}, CUTOFF, disclosure=rule
    )[1]
    found["constant: brier"] = constant(everyone, CUTOFF, disclosure=rule)["base_rate"]["brier"]
    found["one bin: observed"] = calibration.reliability(everyone, disclosure=rule)[9][3]
    return found


def rows(n: int, sigma: float, rule: Disclosure, draws: int, seed: int = 0) -> Iterator[Row]:
    """Each kind over `draws` sets of n people."""
    share, rng = population(), np.random.default_rng((seed, n, int(10 * sigma), rule.rounding))
    truth = estimates([ScoreTable(EDGES, each * 1e9) for each in share], NONE)
    counts = rng.multinomial(n, share.ravel(), draws).reshape(draws, *share.shape)
    noisy = counts + rng.normal(0, sigma, counts.shape)
    drawn = [estimates([ScoreTable(EDGES, c, sigma**2) for c in agencies], rule) for agencies in noisy]
    for kind, true in truth.items():
        exact = n if kind == "all: people" else true.value
        shown = [one[kind] for one in drawn if one[kind].publishable]
        ends = np.array([(e.value, e.low, e.high) for e in shown], float).reshape(-1, 3)
        if exact is not None and len(ends) > 1:
            covered = (ends[:, 1] <= exact + 1e-12) & (exact - 1e-12 <= ends[:, 2])
            width, ideal = (ends[:, 2] - ends[:, 1]).mean(), 2 * 1.96 * ends[:, 0].std()
            numbers = (len(ends) / draws, float(covered.mean()), float(width), float(ideal))
            yield Row(kind, n, sigma, rule.profile, *numbers)


def measure(folder: Path, *, draws: int = 2000) -> dict[str, Any]:
    """All rows, and the lowest coverage with its target."""
    found = [row for case in CASES for row in rows(*case, draws)]
    worst = min(found, key=lambda row: row.covered)
    return {
        "draws": draws,
        "rows": [asdict(row) for row in found],
        "targets": [
            {
                "target": f"95% intervals cover at least 0.93 ({worst.kind}, n = {worst.n}, sigma = {worst.sigma:g})",
                "value": worst.covered,
                "least": 0.93,
            }
        ],
    }


def shown(result: Mapping[str, Any]) -> list[str]:
    """For each kind the lowest coverage of all cases, and its mean width in three of them."""
    cases = ((3000, 0.0), (3000, 5.0), (10_000, 5.0))
    heads = "".join(f"{f'n={n}, sigma={sigma:g}':>20}" for n, sigma in cases)
    lines = [f"  {'':<40}{'covered, lowest':>16}{'mean':>8}{heads}  (mean width)"]
    for kind in dict.fromkeys(row["kind"] for row in result["rows"]):
        own = [row for row in result["rows"] if row["kind"] == kind]
        covered = [row["covered"] for row in own]
        known = {(row["n"], row["sigma"]): f"{row['width']:.3f}" for row in own}
        widths = "".join(f"{known.get(case, '-'):>20}" for case in cases)
        lines.append(f"  {kind:<40}{min(covered):>16.3f}{np.mean(covered):>8.3f}{widths}")
    return lines
