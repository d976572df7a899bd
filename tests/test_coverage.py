"""95% intervals hold the truth in at least 93 of 100 draws and are not much wider than they must be, for every kind.

`python -m experiments.benchmarks --only coverage` prints the whole table, from 2,000 draws of each case; its figures
are in docs/fairness-statistics.md.
"""

from collections import defaultdict

import numpy as np
import pytest

from experiments.benchmarks.coverage import (
    AGE,
    CASES,
    CUTOFF,
    EDGES,
    NONE,
    UK,
    Row,
    estimates,
    population,
    rows,
)
from models.scores import ScoreTable, selection_rate
from models.thresholds import decided, group_thresholds

QUICK = ((1000, 0.0, UK), (3000, 2.5, UK), (10_000, 5.0, UK))
WIDEST = 1.35  # times the interval that knows the estimate's spread
WIDEST_GAP = 3.2  # of all pairs at once, and of a largest difference, whose own spread is small


@pytest.fixture(scope="module")
def by_kind() -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for case in QUICK:
        for row in rows(*case, draws=200, seed=3):
            found[row.kind].append(row)
    return found


def test_every_kind_of_interval_covers(by_kind: dict[str, list[Row]]) -> None:
    """Pooled over the cases: 600 draws."""
    assert len(by_kind) == len(estimates([ScoreTable(EDGES, c * 1e9) for c in population()], NONE))
    low = {kind: np.mean([row.covered for row in each]) for kind, each in by_kind.items()}
    assert {kind: round(covered, 3) for kind, covered in low.items() if covered < 0.93} == {}


def test_no_kind_of_interval_is_much_wider_than_it_must_be(by_kind: dict[str, list[Row]]) -> None:
    for kind, each in by_kind.items():
        if kind == "all: people":  # 0 wide without noise, but for the rounding
            continue
        most = WIDEST_GAP if "gap" in kind else 2.6 if kind in ("all: ece",) else WIDEST
        for row in each:
            assert row.width <= most * row.ideal, (kind, row.width, row.ideal)


def test_an_interval_says_something_at_the_sizes_it_is_meant_for(by_kind: dict[str, list[Row]]) -> None:
    """10,000 held-out people and an ε of about 1 for each agency: rates to a few points, gaps to 20."""
    for kind in ("all: auc", "all: tpr", "all: selection_rate", "all: net_benefit_gain"):
        assert by_kind[kind][-1].width < 0.1, kind
    assert all(row[-1].width < 0.2 for kind, row in by_kind.items() if "gap of" in kind)
    assert all(row[-1].published > 0.8 for row in by_kind.values())


@pytest.mark.long
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_kind_of_interval_covers_in_each_case(case: tuple[int, float, object]) -> None:
    n, sigma, rule = case
    low = {row.kind: row.covered for row in rows(n, sigma, rule, draws=2000)}  # type: ignore[arg-type]
    assert {kind: covered for kind, covered in low.items() if covered < 0.93} == {}


def test_gaps_with_a_cutoff_for_each_group_cover() -> None:
    """The cutoffs are chosen on other people, so they are what they are when the test people come."""
    rng, share = np.random.default_rng(0), population().sum(0)
    sigma, n = 5.0, 6000

    def draw() -> ScoreTable:
        counts = rng.multinomial(n, share.ravel()).reshape(share.shape)
        return ScoreTable(EDGES, counts + rng.normal(0, sigma, share.shape), sigma**2)

    covered = []
    for _ in range(150):
        found = group_thresholds(draw(), draw(), AGE, CUTOFF, disclosure=UK)
        own = decided(ScoreTable(EDGES, share * 1e9), AGE, found.cutoffs)
        rates = [selection_rate(own.pick([place]), 0.5).value or 0.0 for place in range(3)]
        gap = found.after["demographic_parity"]
        assert gap.low is not None
        assert gap.high is not None
        covered.append(gap.low <= max(rates) - min(rates) <= gap.high)
    assert np.mean(covered) >= 0.93
