"""Net benefit: its laws, the formula on people's rows, and how often the intervals hold the truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.benefit import net_benefit, net_benefit_all, net_benefit_gain
from models.disclosure import custom
from models.scores import NOTHING, Estimate, ScoreTable, default_edges, tally

EDGES = default_edges(20, (0.05, 0.3, 0.5))
MEASURES = (net_benefit, net_benefit_all, net_benefit_gain)


def of(score: object, y: object) -> ScoreTable:
    """The table of people who are all in one group."""
    return tally(EDGES, np.zeros(len(np.asarray(y)), int), score, y, 1)  # type: ignore[arg-type]


def people(seed: int, n: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    score = 1 / (1 + np.exp(-rng.normal(-0.8, 1.5, n)))
    return score, (rng.random(n) < score).astype(int)


def ends(estimate: Estimate) -> tuple[float, float, float]:
    assert estimate.low is not None
    assert estimate.value is not None
    assert estimate.high is not None
    return estimate.low, estimate.value, estimate.high


# Laws


@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([0.05, 0.3, 0.5]))
@settings(max_examples=50, deadline=None)
def test_a_perfect_model_gains_all_that_there_is(positives: int, negatives: int, cutoff: float) -> None:
    y = np.array([1] * positives + [0] * negatives)
    table, n, w = of(y * 0.9, y), positives + negatives, cutoff / (1 - cutoff)
    assert net_benefit(table, cutoff).value == pytest.approx(positives / n)
    best = min(positives / n, w * negatives / n)  # less than that of nobody, or of everybody
    assert net_benefit_gain(table, cutoff).value == pytest.approx(best)


@given(st.integers(0, 1000), st.integers(1, 300), st.sampled_from([0.05, 0.3, 0.5]))
@settings(max_examples=50, deadline=None)
def test_flagging_everybody_is_treat_all_and_gains_nothing(seed: int, n: int, cutoff: float) -> None:
    y = np.random.default_rng(seed).integers(0, 2, n)
    table = of(np.full(n, 0.6), y)
    assert net_benefit(table, cutoff) == net_benefit_all(table, cutoff)
    gain = net_benefit_gain(table, cutoff)
    assert ends(gain)[0] <= 0
    assert ends(gain)[1] <= 0
    assert ends(gain)[1] == pytest.approx(min(0.0, ends(net_benefit(table, cutoff))[1]))


@given(st.integers(0, 1000), st.integers(1, 300), st.sampled_from([0.05, 0.3, 0.5]))
@settings(max_examples=50, deadline=None)
def test_flagging_nobody_is_0_and_gains_nothing(seed: int, n: int, cutoff: float) -> None:
    y = np.random.default_rng(seed).integers(0, 2, n)
    table = of(np.full(n, 0.01), y)
    assert net_benefit(table, cutoff).value == 0
    low, value, _ = ends(net_benefit_gain(table, cutoff))
    assert low <= value <= 0
    assert value == pytest.approx(min(0.0, -ends(net_benefit_all(table, cutoff))[1]))


def test_at_a_cutoff_of_0_everybody_is_flagged_with_noise_too() -> None:
    rng = np.random.default_rng(0)
    exact = of(*people(0))
    table = ScoreTable(EDGES, exact.counts + rng.normal(0, 5, exact.counts.shape), 25)
    assert net_benefit(table, 0.0) == net_benefit_all(table, 0.0)
    assert net_benefit(table, 0.0).value == pytest.approx(table.counts[..., 1].sum() / table.counts.sum())


tables = st.builds(
    lambda seed, scale, sigma: ScoreTable(
        EDGES, np.random.default_rng(seed).normal(scale, 9, (1, 20, 2)), sigma**2
    ),
    st.integers(0, 10_000),
    st.floats(-3, 300),
    st.floats(0, 40),
)


@given(tables, st.sampled_from([0.05, 0.3, 0.5]), st.floats(0.5, 0.999))
@settings(max_examples=200, deadline=None)
def test_any_noised_counts_give_an_interval_within_the_range_or_nothing(
    table: ScoreTable, cutoff: float, level: float
) -> None:
    w = cutoff / (1 - cutoff)
    for measure in MEASURES:
        found = measure(table, cutoff, level=level)
        if table.counts.sum() <= 0:
            assert found == NOTHING
            continue
        low, value, high = ends(found)
        assert -max(w, 1) <= low <= value <= high <= 1
        assert not found.publishable or high - low < 1 + w


def test_too_few_people_or_too_much_noise_is_not_published() -> None:
    few = of([0.9] * 10 + [0.1] * 10, [1] * 10 + [0] * 10)
    assert not any(measure(few, 0.5, disclosure=custom(21)).publishable for measure in MEASURES)
    assert all(measure(few, 0.5, disclosure=custom(20)).publishable for measure in MEASURES)
    noise = ScoreTable(EDGES, few.counts + 2, 400)
    assert not any(measure(noise, 0.5).publishable for measure in MEASURES)


def test_a_higher_level_is_wider_and_a_cutoff_must_be_an_edge() -> None:
    table = of(*people(0))
    for measure in MEASURES:
        narrow, wide = ends(measure(table, 0.3, level=0.8)), ends(measure(table, 0.3, level=0.99))
        assert wide[0] < narrow[0] < narrow[2] < wide[2]
        with pytest.raises(ValueError, match="nearest edge"):
            measure(table, 0.31)


# Oracle


@pytest.mark.parametrize("cutoff", [0.05, 0.3, 0.5])
def test_without_noise_it_is_the_formula_on_the_rows(cutoff: float) -> None:
    """Vickers and Elkin's formula, person by person; the differences written out for each choice."""
    score, y = people(1)
    flagged, w, table = score >= cutoff, cutoff / (1 - cutoff), of(score, y)
    worth = np.where(y == 1, 1.0, -w)
    model, everybody = (worth * flagged).mean(), worth.mean()
    assert net_benefit(table, cutoff).value == pytest.approx(model, abs=1e-12)
    assert net_benefit_all(table, cutoff).value == pytest.approx(everybody, abs=1e-12)
    gain = model - max(everybody, 0.0)
    assert net_benefit_gain(table, cutoff).value == pytest.approx(gain, abs=1e-12)


def test_a_large_sample_has_the_delta_methods_variance() -> None:
    score, y = people(2, 200_000)
    worth = np.where(y == 1, 1.0, -3 / 7) * (score >= 0.3)
    low, _, high = ends(net_benefit(of(score, y), 0.3))
    assert high - low == pytest.approx(2 * 1.959964 * worth.std() / np.sqrt(worth.size), rel=1e-3)


# Coverage


def shares(shift: float, slope: float, off: float) -> np.ndarray:
    """Share of people by (bin, outcome), shape (1, 20, 2): logits N(shift, slope), scores too high by `off`."""
    rng = np.random.default_rng(1)
    z = rng.normal(shift, slope, 200_000)
    y = rng.random(z.size) < 1 / (1 + np.exp(-z))
    return of(1 / (1 + np.exp(-z - off)), y).counts / z.size


POPULATIONS = {
    "useful": shares(-0.85, 1.5, 0.3),
    "outcome is rare": shares(-3.5, 1.0, 0.0),
    "as good as flagging all": shares(-0.85, 1.5, 2.0),
    "says the same of all": shares(-0.85, 0.02, 0.0),
}


@pytest.mark.parametrize("sigma", [0.0, 5.0, 20.0])
@pytest.mark.parametrize("name", POPULATIONS)
def test_95_percent_intervals_cover(name: str, sigma: float) -> None:
    """sigma = 5: one release at epsilon = 1, delta = 1e-5. Over 4,000 draws .942-1.00, and low ends are too high in at most .028."""
    population = POPULATIONS[name]
    for n in (300, 2000):
        rng = np.random.default_rng(n)
        drawn = [
            ScoreTable(EDGES, counts + rng.normal(0, sigma, counts.shape), sigma**2)
            for counts in (
                rng.multinomial(n, population.ravel()).reshape(population.shape) for _ in range(1000)
            )
        ]
        for measure in MEASURES:
            for cutoff in (0.05, 0.3, 0.5):
                truth = ends(measure(ScoreTable(EDGES, population * 1e9), cutoff))[1]
                found = [measure(table, cutoff) for table in drawn]
                covered = np.mean([e.low is None or ends(e)[0] <= truth <= ends(e)[2] for e in found])
                above = np.mean([e.low is not None and ends(e)[0] > truth for e in found])
                assert covered >= 0.93, (measure.__name__, cutoff, n, covered)
                assert above <= 0.04, "the end that gates are judged on: .025 and what 1,000 draws allow"
