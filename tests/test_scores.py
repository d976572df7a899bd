"""Score tables: laws of addition, rates against Fairlearn and scikit-learn, coverage of the intervals."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
from fairlearn.metrics import false_positive_rate as fairlearn_fpr
from fairlearn.metrics import selection_rate as fairlearn_selection
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, precision_score, recall_score, roc_auc_score

from models.disclosure import custom
from models.scores import (
    NOTHING,
    Estimate,
    Noised,
    ScoreTable,
    accuracy,
    auc,
    auc_bound,
    base_rate,
    default_edges,
    false_positive_rate,
    people,
    positive_predictive_value,
    proportion,
    selection_rate,
    tally,
    true_positive_rate,
)

EDGES = default_edges(20, (0.3, 0.5))
RATES: dict[str, Callable[[ScoreTable], Estimate]] = {
    "selection_rate": lambda t: selection_rate(t, 0.3),
    "tpr": lambda t: true_positive_rate(t, 0.3),
    "fpr": lambda t: false_positive_rate(t, 0.3),
    "ppv": lambda t: positive_predictive_value(t, 0.3),
    "accuracy": lambda t: accuracy(t, 0.3),
    "base_rate": base_rate,
    "auc": auc,
}


def sample(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """People: group 0..3, calibrated score, outcome; a few scores sit exactly on edges."""
    group, score = rng.integers(0, 4, n), 1 / (1 + np.exp(-rng.normal(-0.8, 1.5, n)))
    score[: n // 20] = rng.choice(EDGES, n // 20)
    return group, score, (rng.random(n) < score).astype(int)


def population() -> np.ndarray:
    """Share of people by (bin, outcome), shape (1, 20, 2), of a slightly miscalibrated model; AUC 0.81."""
    rng = np.random.default_rng(1)
    z = rng.normal(-0.85, 1.5, 400_000)
    y = rng.random(z.size) < 1 / (1 + np.exp(-z))
    return tally(EDGES, np.zeros(z.size, int), 1 / (1 + np.exp(-z - 0.3)), y, 1).counts / z.size


def noised(rng: np.random.Generator, shares: np.ndarray, n: int, sigma: float) -> ScoreTable:
    counts = rng.multinomial(n, shares.ravel()).reshape(shares.shape)
    return ScoreTable(EDGES, counts + rng.normal(0, sigma, shares.shape), sigma**2)


def same(a: ScoreTable, b: ScoreTable) -> bool:
    return (
        np.array_equal(a.edges, b.edges)
        and np.allclose(a.counts, b.counts)
        and np.allclose(a.variance, b.variance)
    )


# Laws

tables = st.builds(
    lambda seed, sigma: ScoreTable(
        EDGES, np.random.default_rng(seed).normal(5, 9, (3, 20, 2)).round(3), sigma**2
    ),
    st.integers(0, 10_000),
    st.floats(0, 20),
)


@given(tables, tables, tables)
@settings(max_examples=40, deadline=None)
def test_addition_is_associative_and_commutative_and_has_a_zero(
    a: ScoreTable, b: ScoreTable, c: ScoreTable
) -> None:
    assert same((a + b) + c, a + (b + c))
    assert same(a + b, b + a)
    assert same(a + ScoreTable.zeros(EDGES, 3), a)
    assert not same(a + b, a) or not b.counts.any()


@given(st.integers(0, 10_000), st.lists(st.integers(0, 4), min_size=200, max_size=200))
@settings(max_examples=40, deadline=None)
def test_splitting_people_over_agencies_and_their_order_change_nothing(seed: int, agency: list[int]) -> None:
    rng = np.random.default_rng(seed)
    group, score, y = sample(rng, 200)
    where = np.array(agency)
    parts = [rng.permutation(np.flatnonzero(where == a)) for a in range(5)]
    table = sum((tally(EDGES, group[i], score[i], y[i], 4) for i in parts), start=ScoreTable.zeros(EDGES, 4))
    assert np.array_equal(table.counts, tally(EDGES, group, score, y, 4).counts)


def test_everyone_is_in_exactly_one_cell_and_edges_belong_to_the_bin_above() -> None:
    table = tally(
        [0, 0.3, 0.5, 1], [0, 0, 0, 1, 1], [0.0, 0.3, 0.5, 1.0, np.nextafter(0.3, 0)], [0, 1, 1, 1, 0], 3
    )
    assert table.counts.tolist() == [
        [[1, 0], [0, 1], [0, 1]],
        [[1, 0], [0, 0], [0, 1]],
        [[0, 0], [0, 0], [0, 0]],
    ]
    assert (table.variance == 0).all()


def test_pick_and_total_add_groups_and_their_noise() -> None:
    table = ScoreTable(EDGES, np.arange(160.0).reshape(4, 20, 2), np.array([1.0, 2, 3, 4])[:, None, None])
    picked = table.pick([3, 1])
    assert np.array_equal(picked.counts[0], table.counts[1] + table.counts[3])
    assert (picked.variance == 6).all()
    assert picked.counts.shape == (1, 20, 2)
    assert same(table.total(), table.pick([0, 2]) + table.pick([1, 3]))
    assert not table.pick([]).counts.any()


def test_a_table_cannot_be_changed() -> None:
    mine = np.ones((1, 20, 2))
    noise = np.ones((1, 20, 2))
    table = ScoreTable(EDGES, mine, noise)
    mine[:], noise[:] = 7, 7
    assert (table.counts == 1).all()
    assert (table.variance == 1).all()
    for array in (table.edges, table.counts, table.variance):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        table.counts = mine  # type: ignore[misc]


@pytest.mark.parametrize(
    ("bins", "cutoffs"),
    [(20, (0.5,)), (20, (0.3, 0.301, 0.9)), (2, (0.07,)), (50, ()), (4, (0.5, 0.51, 0.52))],
)
def test_default_edges_hold_every_cutoff(bins: int, cutoffs: tuple[float, ...]) -> None:
    edges = default_edges(bins, cutoffs)
    assert len(edges) == bins + 1
    assert edges[0] == 0
    assert edges[-1] == 1
    assert (np.diff(edges) > 0).all()
    assert set(cutoffs) <= set(edges.tolist())


def test_default_edges_are_logit_spaced() -> None:
    inner = default_edges()[1:-1]
    steps = np.diff(np.log(inner / (1 - inner)))
    assert np.allclose(steps, steps[0])
    assert inner[0] == pytest.approx(0.02)
    assert inner[-1] == pytest.approx(0.98)


# Refusals


@pytest.mark.parametrize(
    ("group", "score", "y", "message"),
    [
        ([0], [math.nan], [1], "NaN"),
        ([0], [1.1], [1], "between 0 and 1"),
        ([0], [-0.1], [1], "between 0 and 1"),
        ([0], [0.5], [2], "0 or 1"),
        ([0], [0.5], [math.nan], "0 or 1"),
        ([2], [0.5], [1], "group"),
        ([-1], [0.5], [1], "group"),
        ([0.0], [0.5], [1], "whole numbers"),
        ([0, 0], [0.5], [1], "same shape"),
    ],
)
def test_tally_refuses_and_quotes_no_record(
    group: list[int], score: list[float], y: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        tally(EDGES, group, score, y, 2)
    assert "1.1" not in str(refusal.value)
    assert "0.5" not in str(refusal.value)


def test_tally_of_nobody_is_the_zero() -> None:
    assert same(tally(EDGES, [], [], [], 2), ScoreTable.zeros(EDGES, 2))


@pytest.mark.parametrize(
    ("edges", "counts", "variance", "message"),
    [
        ([0, 0.5], np.zeros((1, 1, 2)), 0, "from 0 to 1"),
        ([0, 0.5, 0.5, 1], np.zeros((1, 3, 2)), 0, "increase"),
        ([0, math.nan, 1], np.zeros((1, 2, 2)), 0, "increase"),
        ([0], np.zeros((1, 0, 2)), 0, "at least two"),
        ([0, 1], np.zeros((1, 2, 2)), 0, "shape"),
        ([0, 1], np.zeros((1, 2)), 0, "shape"),
        ([0, 1], np.full((1, 1, 2), np.nan), 0, "finite"),
        ([0, 1], np.zeros((1, 1, 2)), -1, "not negative"),
        ([0, 1], np.zeros((1, 1, 2)), math.inf, "finite"),
        ([0, 1], np.zeros((1, 1, 2)), [1, 2, 3], "broadcast"),
    ],
)
def test_a_malformed_table_is_refused(
    edges: list[float], counts: np.ndarray, variance: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ScoreTable(edges, counts, variance)  # type: ignore[arg-type]


def test_unlike_tables_are_not_added_and_absent_groups_not_picked() -> None:
    table = ScoreTable.zeros(EDGES, 2)
    with pytest.raises(ValueError, match="edges"):
        table + ScoreTable.zeros(default_edges(10), 2)
    with pytest.raises(ValueError, match="groups"):
        table + ScoreTable.zeros(EDGES, 1)
    for groups in ([2], [-1], [1, 1]):
        with pytest.raises(ValueError, match="group"):
            table.pick(groups)


def test_a_cutoff_that_is_no_edge_names_the_nearest() -> None:
    table = ScoreTable.zeros(EDGES, 1)
    with pytest.raises(ValueError, match=r"cutoff 0\.49 is not a bin edge; the nearest edge is 0\.5"):
        selection_rate(table, 0.49)
    with pytest.raises(ValueError, match=r"nearest edge is 0\.98"):
        selection_rate(table, 1.0)
    with pytest.raises(ValueError, match="nearest edge"):
        selection_rate(table, math.nan)


def test_default_edges_refuse_cutoffs_that_cannot_be_edges() -> None:
    with pytest.raises(ValueError, match="need at least 4 bins"):
        default_edges(3, (0.1, 0.2, 0.3))
    with pytest.raises(ValueError, match="between 0 and 1"):
        default_edges(20, (0.0, 0.5))


# Oracles


@pytest.mark.parametrize("cutoff", [0.3, 0.5])
def test_rates_without_noise_are_those_of_the_pooled_rows(cutoff: float) -> None:
    rng = np.random.default_rng(0)
    group, score, y = sample(rng, 3000)
    table = tally(EDGES, group, score, y, 4)
    for g, one in [(None, table), *((g, table.pick([g])) for g in range(4))]:
        who = np.full(len(y), True) if g is None else group == g
        truth, chosen = y[who], (score[who] >= cutoff).astype(int)
        expected = {
            selection_rate: fairlearn_selection(truth, chosen),
            true_positive_rate: recall_score(truth, chosen),
            false_positive_rate: fairlearn_fpr(truth, chosen),
            positive_predictive_value: precision_score(truth, chosen),
            accuracy: accuracy_score(truth, chosen),
        }
        for rate, value in expected.items():
            assert rate(one, cutoff).value == pytest.approx(value, abs=1e-12), rate.__name__
        assert base_rate(one).value == pytest.approx(truth.mean())
        assert people(one) == Estimate(len(truth), len(truth), len(truth), True)


@pytest.mark.parametrize("bins", [2, 5, 20, 50])
def test_auc_is_within_its_bound_of_scikit_learns(bins: int) -> None:
    edges = default_edges(bins)
    for seed in range(20):
        group, score, y = sample(np.random.default_rng(seed), 400)
        table = tally(edges, group, score, y, 4)
        binned, bound = auc(table).value, auc_bound(table).value
        assert binned is not None
        assert bound is not None
        assert 0 <= bound <= 0.5
        assert abs(binned - roc_auc_score(y, score)) <= bound
        place = np.digitize(score, edges[1:-1])
        assert binned == pytest.approx(roc_auc_score(y, place))


def test_the_auc_bound_is_reached() -> None:
    edges = [0, 0.5, 1]
    table = tally(edges, [0] * 4, [0.1, 0.2, 0.7, 0.8], [0, 1, 0, 1], 1)
    binned, bound = auc(table).value, auc_bound(table).value
    assert (binned, bound) == (0.5, 0.25)
    assert roc_auc_score([0, 1, 0, 1], [0.1, 0.2, 0.7, 0.8]) == 0.75


def test_proportion_without_noise_is_wilsons_interval() -> None:
    e = proportion(Noised(7, 0), Noised(93, 0))
    p, n, z2 = 0.07, 100, 3.841458821  # the 95% point of chi-square with one degree of freedom
    centre, half = p + z2 / (2 * n), math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n)))
    assert e.low == pytest.approx((centre - half) / (1 + z2 / n))
    assert e.high == pytest.approx((centre + half) / (1 + z2 / n))


def test_a_large_proportion_has_the_delta_methods_variance() -> None:
    p, n, v_hits, v_misses = 0.2, 1e6, 250_000.0, 90_000.0
    e = proportion(Noised(p * n, v_hits), Noised((1 - p) * n, v_misses))
    sd = math.sqrt(p * (1 - p) / n + ((1 - p) ** 2 * v_hits + p**2 * v_misses) / n**2)
    assert e.low is not None
    assert e.high is not None
    assert e.high - e.low == pytest.approx(2 * 1.959964 * sd, rel=1e-3)


# Odd cases


@given(
    st.floats(-1e3, 1e4), st.floats(-1e3, 1e4), st.floats(0, 1e5), st.floats(0, 1e5), st.floats(0.5, 0.999)
)
@settings(max_examples=300, deadline=None)
def test_any_noised_counts_give_a_probability_or_nothing(
    hits: float, misses: float, v_hits: float, v_misses: float, level: float
) -> None:
    e = proportion(Noised(hits, v_hits), Noised(misses, v_misses), level=level)
    if hits + misses <= 0:
        assert e == NOTHING
    else:
        assert e.low is not None
        assert e.value is not None
        assert e.high is not None
        assert 0 <= e.low <= e.value <= e.high <= 1
        assert not e.publishable or e.high - e.low < 1
        assert not e.publishable or hits + misses >= max(10, 3 * math.sqrt(v_hits + v_misses))


def test_nobody_has_no_rates() -> None:
    table = ScoreTable.zeros(EDGES, 1)
    assert all(rate(table) == NOTHING for rate in RATES.values())
    assert auc_bound(table) == NOTHING
    assert people(table) == Estimate(0, 0, 0, False)
    one_class = tally(EDGES, [0] * 50, np.full(50, 0.4), np.ones(50), 1)
    assert auc(one_class) == NOTHING
    assert false_positive_rate(one_class, 0.5) == NOTHING


def test_a_perfect_ranking_of_few_people_is_not_certain() -> None:
    e = auc(tally(EDGES, [0] * 24, [0.1] * 12 + [0.9] * 12, [0] * 12 + [1] * 12, 1))
    assert e.value == 1
    assert e.high == 1
    assert e.low is not None
    assert 0.5 < e.low < 0.9


def test_the_minimum_is_of_the_count_behind_the_rate() -> None:
    table = tally(EDGES, [0] * 100, [0.9] * 9 + [0.1] * 91, [1] * 9 + [0] * 91, 1)
    assert selection_rate(table, 0.5).publishable
    assert not true_positive_rate(table, 0.5).publishable
    assert not positive_predictive_value(table, 0.5).publishable
    assert true_positive_rate(table, 0.5, disclosure=custom(9)).publishable
    assert not auc(table).publishable
    assert auc(table, disclosure=custom(9)).publishable


def test_a_small_noisy_group_is_not_publishable() -> None:
    rng, shares = np.random.default_rng(0), population()
    shown = [
        [rate(t).publishable for rate in (people, *RATES.values())]
        for t in (noised(rng, shares, 4, 5.0) for _ in range(500))
    ]
    assert np.mean(shown, axis=0).max() <= 0.01


def test_a_large_noisy_group_is_publishable() -> None:
    table = noised(np.random.default_rng(0), population(), 2000, 5.0)
    assert all(rate(table).publishable for rate in (people, *RATES.values()))


# Numbers


@pytest.mark.parametrize("n", [300, 600, 2000])
def test_95_percent_intervals_cover_with_noise(n: int) -> None:
    """sigma = 5: one release at epsilon = 1, delta = 1e-5. Over 1,500 draws: .94-.96, auc .98, .97, .95."""
    rng, shares = np.random.default_rng(n), population()
    drawn = [noised(rng, shares, n, 5.0) for _ in range(800)]
    for name, rate in RATES.items():
        truth = rate(ScoreTable(EDGES, shares * 1e9)).value
        assert truth is not None
        covered = np.mean(
            [e.low is None or e.high is None or e.low <= truth <= e.high for e in map(rate, drawn)]
        )
        assert covered >= 0.93, (name, covered)


def test_95_percent_intervals_cover_without_noise() -> None:
    rng, shares = np.random.default_rng(3), population()
    drawn = [noised(rng, shares, 300, 0.0) for _ in range(800)]
    for name, rate in RATES.items():
        truth = rate(ScoreTable(EDGES, shares * 1e9)).value
        assert truth is not None
        covered = np.mean(
            [e.low is not None and e.high is not None and e.low <= truth <= e.high for e in map(rate, drawn)]
        )
        assert 0.93 <= covered <= 0.98, (name, covered)


def test_a_higher_level_is_wider() -> None:
    table = noised(np.random.default_rng(0), population(), 1000, 5.0)
    for rate in (base_rate, auc):
        narrow, wide = rate(table, level=0.8), rate(table, level=0.99)
        assert None not in (wide.low, narrow.low, narrow.high, wide.high)
        assert wide.low < narrow.low < narrow.high < wide.high  # type: ignore[operator]
    with pytest.raises(ValueError, match="level must be in"):
        base_rate(table, level=1.0)


def test_people_cover_their_count_with_noise() -> None:
    rng, shares = np.random.default_rng(0), population()
    found = [people(noised(rng, shares, 300, 5.0)) for _ in range(1000)]
    assert (
        0.93
        <= np.mean([e.low <= 300 <= e.high for e in found if e.low is not None and e.high is not None])
        <= 0.97
    )
