"""Gaps: Fairlearn on pooled rows without noise, honest intervals with it."""

import numpy as np
import pytest
from fairlearn.metrics import (
    MetricFrame,
    demographic_parity_difference,
    equal_opportunity_difference,
    equalized_odds_difference,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_score

from models.disclosure import custom
from models.fairness import (
    demographic_parity,
    equal_opportunity,
    equalized_odds,
    gaps,
    predictive_parity,
    worst_gap,
)
from models.scores import NOTHING, Estimate, ScoreTable, default_edges, tally

EDGES = default_edges(20, (0.4,))
CUTOFF = 0.4
GAPS = {
    "demographic_parity": demographic_parity,
    "equal_opportunity": equal_opportunity,
    "equalized_odds": equalized_odds,
    "predictive_parity": predictive_parity,
}
# Four groups: two attributes of two levels each.
SEX, RACE = {"female": (0, 1), "male": (2, 3)}, {"a": (0, 2), "b": (1, 3)}


def sample(
    rng: np.random.Generator, n: int, base: tuple[float, ...], shift: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """People: a group of even size, a score that is off by `shift` in each group, an outcome."""
    group = rng.integers(0, len(base), n)
    z = rng.normal(np.array(base)[group], 1.5)
    y = (rng.random(n) < 1 / (1 + np.exp(-z))).astype(int)
    return group, 1 / (1 + np.exp(-z - np.array(shift)[group])), y


def shares(base: tuple[float, ...], shift: tuple[float, ...]) -> np.ndarray:
    """Share of people by (group, bin, outcome)."""
    group, score, y = sample(np.random.default_rng(1), 400_000, base, shift)
    return tally(EDGES, group, score, y, len(base)).counts / 400_000


def noised(rng: np.random.Generator, share: np.ndarray, n: int, sigma: float) -> ScoreTable:
    counts = rng.multinomial(n, share.ravel()).reshape(share.shape)
    return ScoreTable(EDGES, counts + rng.normal(0, sigma, share.shape), sigma**2)


def alone(n_groups: int) -> dict[str, tuple[int, ...]]:
    return {str(g): (g,) for g in range(n_groups)}


SHARES_OF_FOUR = shares((-1.0, -0.5, -0.2, -0.8), (0.0, 0.2, 0.4, 0.0))


# Laws


@given(st.permutations(range(4)), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_names_and_order_of_groups_change_nothing(order: list[int], seed: int) -> None:
    table = noised(np.random.default_rng(seed), SHARES_OF_FOUR, 2000, 3.0)
    shuffled = ScoreTable(EDGES, table.counts[order], table.variance[order])
    for gap in GAPS.values():
        before, after = gap(table, alone(4), CUTOFF), gap(shuffled, alone(4), CUTOFF)
        assert before.publishable == after.publishable
        for end in ("value", "low", "high"):
            assert getattr(before, end) == pytest.approx(getattr(after, end))


def test_splitting_people_over_agencies_changes_no_gap() -> None:
    rng = np.random.default_rng(0)
    group, score, y = sample(rng, 3000, (-1, -0.5, 0, 0.2), (0, 0, 0.4, 0))
    parts = np.array_split(rng.permutation(3000), 5)
    table = sum((tally(EDGES, group[i], score[i], y[i], 4) for i in parts), start=ScoreTable.zeros(EDGES, 4))
    assert gaps(table, SEX, CUTOFF) == gaps(tally(EDGES, group, score, y, 4), SEX, CUTOFF)


def test_the_interval_holds_the_value_and_stays_in_range() -> None:
    rng = np.random.default_rng(0)
    for n in (50, 200, 1000, 5000):
        for _ in range(30):
            for gap in gaps(noised(rng, SHARES_OF_FOUR, n, 5.0), alone(4), CUTOFF).values():
                if gap != NOTHING:
                    assert gap.low is not None
                    assert gap.value is not None
                    assert gap.high is not None
                    assert 0 <= gap.low <= gap.value <= gap.high <= 1


# Oracles


@pytest.mark.parametrize("seed", range(5))
def test_gaps_without_noise_are_fairlearns_on_the_pooled_rows(seed: int) -> None:
    group, score, y = sample(np.random.default_rng(seed), 3000, (-1, -0.5, 0, 0.2), (0, 0, 0.4, 0))
    chosen, table = (score >= CUTOFF).astype(int), tally(EDGES, group, score, y, 4)
    for levels in (alone(4), SEX, RACE):
        level = np.select([np.isin(group, index) for index in levels.values()], list(range(len(levels))))
        oracle = {
            "demographic_parity": demographic_parity_difference(y, chosen, sensitive_features=level),
            "equal_opportunity": equal_opportunity_difference(y, chosen, sensitive_features=level),
            "equalized_odds": equalized_odds_difference(y, chosen, sensitive_features=level),
            "predictive_parity": MetricFrame(
                metrics=precision_score, y_true=y, y_pred=chosen, sensitive_features=level
            ).difference(),
        }
        found = gaps(table, levels, CUTOFF)
        assert list(found) == list(oracle)
        for name, gap in found.items():
            assert gap.value == pytest.approx(oracle[name], abs=1e-12), name
            assert gap.publishable


def test_the_interval_of_two_groups_is_newcombes() -> None:
    # 56 of 70 against 48 of 80: Newcombe (1998), table II, example (a), method 10: 0.0524 to 0.3339
    table = tally(
        [0, 0.5, 1], [0] * 70 + [1] * 80, [0.9] * 56 + [0.1] * 14 + [0.9] * 48 + [0.1] * 32, [0] * 150, 2
    )
    gap = demographic_parity(table, alone(2), 0.5)
    assert gap.value == pytest.approx(0.2)
    assert gap.low == pytest.approx(0.0524, abs=5e-5)
    assert gap.high == pytest.approx(0.3339, abs=5e-5)


# Odd cases


def test_one_publishable_group_has_no_gap() -> None:
    group = np.array([0] * 500 + [1] * 9)
    table = tally(EDGES, group, np.full(509, 0.7), np.arange(509) % 2, 2)
    assert all(gap == NOTHING for gap in gaps(table, alone(2), CUTOFF).values())
    assert demographic_parity(table, alone(2), CUTOFF, disclosure=custom(9)) != NOTHING
    assert demographic_parity(table, {"only": (0, 1)}, CUTOFF) == NOTHING
    assert demographic_parity(table, {}, CUTOFF) == NOTHING


def test_a_small_group_takes_no_part() -> None:
    rng = np.random.default_rng(0)
    group, score, y = sample(rng, 3000, (-1, -0.5), (0, 0))
    few = np.full(9, 2)
    table = tally(EDGES, np.r_[group, few], np.r_[score, np.full(9, 0.99)], np.r_[y, np.ones(9)], 3)
    assert gaps(table, alone(3), CUTOFF) == gaps(table, alone(2), CUTOFF)


def test_equalized_odds_needs_both_of_its_gaps() -> None:
    """Nobody in group 1 has y = 1: there is a false positive rate's gap and no true positive rate's."""
    rng = np.random.default_rng(0)
    group, score, y = sample(rng, 2000, (-1, -0.5), (0, 0))
    table = tally(EDGES, group, score, np.where(group == 1, 0, y), 2)
    assert demographic_parity(table, alone(2), CUTOFF).publishable
    assert equal_opportunity(table, alone(2), CUTOFF) == equalized_odds(table, alone(2), CUTOFF) == NOTHING


def test_pure_noise_has_no_publishable_gap() -> None:
    rng = np.random.default_rng(0)
    shown = [
        gap.publishable
        for _ in range(200)
        for gap in gaps(ScoreTable(EDGES, rng.normal(0, 5, (4, 20, 2)), 25), alone(4), CUTOFF).values()
    ]
    assert np.mean(shown) <= 0.01


# The worst gap


def test_the_worst_gap_is_the_largest_and_its_interval_is_no_narrower() -> None:
    table = noised(np.random.default_rng(0), shares((-1, -0.9, 0, 0.1), (0, 0, 0.4, 0.4)), 6000, 3.0)
    attribute, worst = worst_gap(table, {"race": RACE, "sex": SEX}, CUTOFF)
    own = equalized_odds(table, SEX, CUTOFF)
    assert attribute == "sex"
    assert worst.value == own.value
    assert worst.publishable
    assert worst.low is not None
    assert worst.high is not None
    assert own.low is not None
    assert own.high is not None
    assert worst.low < own.low < own.high < worst.high


def test_the_worst_of_one_attribute_is_its_own() -> None:
    table = noised(np.random.default_rng(0), SHARES_OF_FOUR, 3000, 3.0)
    assert worst_gap(table, {"sex": SEX}, CUTOFF) == ("sex", equalized_odds(table, SEX, CUTOFF))


def test_without_a_publishable_gap_there_is_no_worst() -> None:
    assert worst_gap(ScoreTable.zeros(EDGES, 4), {"sex": SEX}, CUTOFF) == (None, NOTHING)
    assert worst_gap(ScoreTable.zeros(EDGES, 4), {}, CUTOFF) == (None, NOTHING)


# Numbers


@pytest.mark.parametrize(
    ("base", "shift"),
    [((-0.85,) * 3, (0.0,) * 3), ((-0.85, -0.4), (0.0, 0.5)), ((-1.4, -0.85, -0.4), (0.0, 0.2, 0.5))],
    ids=["three equal groups", "two unequal groups", "three unequal groups"],
)
@pytest.mark.parametrize("n", [900, 2000])
def test_95_percent_intervals_cover_with_noise(
    base: tuple[float, ...], shift: tuple[float, ...], n: int
) -> None:
    """sigma = 5. Equal groups are the hard case for max - min: its mean is far above the truth."""
    rng, share, levels = np.random.default_rng(n), shares(base, shift), alone(len(base))
    tables = [noised(rng, share, n, 5.0) for _ in range(250)]
    exact = ScoreTable(EDGES, share * 1e9)
    for name, gap in GAPS.items():
        truth = gap(exact, levels, CUTOFF).value
        found = [gap(table, levels, CUTOFF) for table in tables]
        assert truth is not None
        assert np.mean([covers(e, truth) for e in found]) >= 0.93, name


def covers(e: Estimate, truth: float) -> bool:
    return e.low is None or e.high is None or e.low <= truth <= e.high


def test_equal_groups_seldom_look_unequal_although_the_value_is_lifted() -> None:
    rng, share = np.random.default_rng(0), shares((-0.85,) * 6, (0.0,) * 6)
    found = [demographic_parity(noised(rng, share, 3000, 5.0), alone(6), CUTOFF) for _ in range(250)]
    assert np.mean([e.value for e in found if e.value is not None]) > 0.05
    assert np.mean([e.low is not None and e.low > 0 for e in found]) <= 0.05
