"""Early-warning signs: what is independent is not said to lead, what leads is found at its lag, and intervals hold the truth."""

import functools

import numpy as np
import pytest

from models import signs
from models.signs import PAST, Series, SignsError, find_signs, months_needed

FloatArray = np.ndarray
KINDS = ("white", "season", "common trend", "random walk", "autocorrelated")
LONG = pytest.mark.long


def series(name: str, counts: FloatArray, sd: float = 0.0) -> Series:
    areas = [f"area {i}" for i in range(len(counts))]
    months = [f"{2020 + t // 12}-{t % 12 + 1:02d}" for t in range(counts.shape[1])]
    return Series(name, f"agency of {name}", f"query {name}", areas, months, counts, sd)


def steps(rng: np.random.Generator, shape: tuple[int, int], memory: float) -> FloatArray:
    """Gaussian series of variance 1 whose months remember the last one."""
    found, past = np.empty(shape), rng.normal(size=shape[0])
    for t in range(shape[1]):
        past = memory * past + np.sqrt(1 - memory**2) * rng.normal(size=shape[0])
        found[:, t] = past
    return found


def independent(rng: np.random.Generator, kind: str, shape: tuple[int, int], sd: float) -> list[Series]:
    """Three series of Poisson counts in areas of unequal sizes, which the three share; then noise."""
    months = np.arange(shape[1])
    sizes = 100 * rng.lognormal(0, 0.5, (shape[0], 1))
    season = np.sin(2 * np.pi * months / 12 + rng.uniform(0, 6))
    found = []
    for name in "abc":
        rate = {
            "white": lambda: np.ones(shape),
            "season": lambda: (1 + 0.3 * season) * np.ones(shape),
            "common trend": lambda: (1 + 0.5 * months / shape[1] + 0.2 * season) * np.ones(shape),
            "random walk": lambda: np.exp(0.05 * np.cumsum(rng.normal(size=shape), 1)),
            "autocorrelated": lambda: np.exp(0.15 * steps(rng, shape, 0.8)),
        }[kind]()
        found.append(series(name, rng.poisson(sizes * rate) + rng.normal(0, sd, shape), sd))
    return found


def planted(
    rng: np.random.Generator,
    shape: tuple[int, int],
    sd: float,
    *,
    mean: float = 120.0,
    share: float = 0.6,
    lag: int = 3,
) -> list[Series]:
    """`first` goes ahead of `second` by `lag` months: `share` is their correlation at that lag, before chance and noise."""
    z = steps(rng, (shape[0], shape[1] + lag), 0.5)
    other = steps(rng, shape, 0.5)
    sizes = (
        mean * rng.lognormal(0, 0.4, (shape[0], 1)) * (1 + 0.2 * np.sin(2 * np.pi * np.arange(shape[1]) / 12))
    )
    rates = {
        "first": np.exp(0.15 * z[:, lag:]),
        "second": np.exp(0.15 * (share * z[:, : shape[1]] + np.sqrt(1 - share**2) * other)),
    }
    return [
        series(name, rng.poisson(sizes * rate) + rng.normal(0, sd, shape), sd) for name, rate in rates.items()
    ]


def false_signs(kind: str, shape: tuple[int, int], sd: float, times: int) -> float:
    """How often any of six pairs at six lags is said to lead where none does."""
    wrong = 0
    for seed in range(times):
        found = find_signs(independent(np.random.default_rng(seed), kind, shape, sd))
        wrong += any(sign.verdict == "leads" for sign in found.signs)
    return wrong / times


def recovered(shape: tuple[int, int], sd: float, times: int, **how: float) -> tuple[float, float]:
    """How often the planted lead is found at its lag, and how often the other way round is said to lead."""
    right = wrong = 0
    for seed in range(times):
        there, back = find_signs(planted(np.random.default_rng(seed), shape, sd, **how)).signs  # type: ignore[arg-type]
        right += (
            there.verdict == "leads"
            and there.best is not None
            and there.best.lag == 3
            and there.best.value > 0
        )
        wrong += back.verdict == "leads"
    return right / times, wrong / times


# --- laws ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_independent_series_are_not_said_to_lead(kind: str) -> None:
    """At most 5 of 100 are: three of eight would be an accident of less than 1 in 100."""
    assert false_signs(kind, (6, 36), 5.0, 8) <= 2 / 8


@LONG
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "sd"), [((8, 48), 5.0), ((5, 36), 0.0), ((1, 96), 0.0)], ids=str)
def test_false_signs_over_many_simulations(kind: str, shape: tuple[int, int], sd: float) -> None:
    """5 of 100 at most, within what 200 simulations can tell."""
    assert false_signs(kind, shape, sd, 200) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)


def test_a_planted_lead_is_found_at_its_lag() -> None:
    right, wrong = recovered((8, 48), 5.0, 10)
    assert right >= 0.9
    assert wrong <= 0.1


@LONG
def test_a_planted_lead_over_many_simulations() -> None:
    for shape, sd, how in (
        ((8, 48), 5.0, {}),
        ((20, 60), 10.0, {}),
        ((1, 96), 10.0, {"mean": 1_000.0, "share": 0.8}),
    ):
        right, wrong = recovered(shape, sd, 200, **how)
        assert right >= 0.9
        assert wrong <= 0.08


def test_a_lead_that_lowers_is_a_lead() -> None:
    first, second = planted(np.random.default_rng(1), (8, 48), 5.0)
    mirrored = series("second", 2 * second.counts.mean(1, keepdims=True) - second.counts, 5.0)
    up, down = find_signs([first, second]).signs[0], find_signs([first, mirrored]).signs[0]
    assert down.verdict == "leads"
    assert up.best is not None
    assert down.best is not None
    assert down.best.lag == up.best.lag == 3
    assert down.best.high < 0 < up.best.low


# --- oracles --------------------------------------------------------------------------------------------

KEPT = 12  # months of a vector autoregression that its state holds


@functools.cache
def autoregression() -> tuple[FloatArray, FloatArray]:
    """x_t = 0.5 x_{t-1} + e,  y_t = 0.4 y_{t-1} + 0.4 x_{t-3} + f: its matrix, and the covariance of its state.

    The state is (x_t, .., x_{t-11}, y_t, .., y_{t-11}); the covariance solves P = A P A' + Q (Hamilton 1994, 10.2).
    """
    a = np.zeros((2 * KEPT, 2 * KEPT))
    a[0, 0], a[KEPT, KEPT], a[KEPT, 2] = 0.5, 0.4, 0.4
    for start in (0, KEPT):
        a[start + 1 : start + KEPT, start : start + KEPT - 1] = np.eye(KEPT - 1)
    p = q = np.diag([1.0 if k in (0, KEPT) else 0.0 for k in range(2 * KEPT)])
    for _ in range(200):
        p = a @ p @ a.T + q
    return a, p


def truth(lag: int, ahead: int = 0, behind: int = KEPT) -> float:
    """The partial correlation that a sign is about, of the series as they were, from the precision matrix."""
    _, p = autoregression()
    of_y, of_x = range(behind, behind + PAST + 1), range(ahead + lag, ahead + lag + PAST + 1)
    among = [behind, ahead + lag, *of_y[1:], *of_x[1:]]
    precision = np.linalg.inv(p[np.ix_(among, among)])
    return float(-precision[0, 1] / np.sqrt(precision[0, 0] * precision[1, 1]))


def drawn(rng: np.random.Generator, shape: tuple[int, int], sd: float) -> list[Series]:
    """That autoregression times 40 around 1,000, with noise."""
    a, p = autoregression()
    state = rng.multivariate_normal(np.zeros(len(p)), p, shape[0])
    x, y = np.empty(shape), np.empty(shape)
    for t in range(shape[1]):
        state = state @ a.T
        state[:, [0, KEPT]] += rng.normal(size=(shape[0], 2))
        x[:, t], y[:, t] = state[:, 0], state[:, KEPT]
    return [series(name, 1_000 + 40 * z + rng.normal(0, sd, shape), sd) for name, z in (("x", x), ("y", y))]


def coverage(shape: tuple[int, int], sd: float, times: int) -> tuple[float, float, float]:
    """How often all intervals hold the truth together; their mean bias at the planted lag, and their width there."""
    held, errors, widths = 0, [], []
    for seed in range(times):
        there, back = find_signs(drawn(np.random.default_rng(seed), shape, sd)).signs
        inside = [lag.low <= truth(lag.lag) <= lag.high for lag in there.lags]
        inside += [lag.low <= truth(lag.lag, KEPT, 0) <= lag.high for lag in back.lags]
        held += all(inside)
        at = [lag for lag in there.lags if lag.lag == 3]
        errors += [lag.value - truth(3) for lag in at]
        widths += [lag.high - lag.low for lag in at]
    return held / times, float(np.mean(errors)), float(np.mean(widths))


def test_the_truth_of_an_autoregression_is_in_the_intervals() -> None:
    held, bias, width = coverage((8, 48), 15.0, 20)
    assert held >= 19 / 20
    assert abs(bias) < 0.06
    assert width < 0.6


def test_without_the_correction_a_noised_lead_looks_weaker_than_it_is() -> None:
    """Noise of 40 is as large as what is new in both series: half of what is seen is noise."""
    plain, corrected = [], []
    for seed in range(8):
        noised = drawn(np.random.default_rng(seed), (20, 60), 40.0)
        for found, sd in ((corrected, 40.0), (plain, 0.0)):
            lags = find_signs([series(each.name, each.counts, sd) for each in noised]).signs[0].lags
            found += [lag.value for lag in lags if lag.lag == 3]
    assert len(plain) == len(corrected) == 8
    assert np.mean(plain) < 0.7 * truth(3)
    assert np.mean(corrected) == pytest.approx(truth(3), abs=0.08)


def test_without_noise_one_area_is_plain_least_squares() -> None:
    """The partial correlation of what months, trend and the two pasts leave, by another road."""
    x, y = planted(np.random.default_rng(4), (1, 72), 0.0)
    at = np.arange(72)
    known = np.stack([at, *(at % 12 == month for month in range(12))], 1).astype(float)

    def left(values: FloatArray, given: FloatArray) -> FloatArray:
        return np.asarray(values - given @ np.linalg.lstsq(given, values, rcond=None)[0])

    zx, zy = left(x.counts[0], known), left(y.counts[0], known)
    for lag in find_signs([x, y]).signs[0].lags:
        now = range(8, 72)
        past = [[zy[t - 1], zy[t - 2], zx[t - lag.lag - 1], zx[t - lag.lag - 2]] for t in now]
        e = left(zy[8:], np.array(past))
        u = left(np.array([zx[t - lag.lag] for t in now]), np.array(past))
        assert lag.value == pytest.approx(e @ u / np.sqrt((e @ e) * (u @ u)), abs=1e-9)


@pytest.mark.parametrize("shape", [(5, 30), (1, 60)])
def test_the_noise_that_is_subtracted_is_the_noise_that_is_there(shape: tuple[int, int]) -> None:
    """Noise of unequal size through the same maps, many times."""
    rng = np.random.default_rng(6)
    sd = rng.uniform(1, 9, shape)
    size = 100.0 * np.arange(1, shape[0] + 1)[:, None]
    expected = signs._panel(series("a", np.broadcast_to(size, shape), sd), 4).noise
    found = np.zeros((5, 5))
    for _ in range(400):
        noise = rng.normal(0, sd)
        noise += size - noise.mean(1, keepdims=True)  # the mean goes out again, and sizes are as they were
        z = signs._panel(series("a", noise, sd), 4).z
        past = np.stack([z[:, 4 - k : shape[1] - k] for k in range(5)])
        found += np.einsum("jat,kat->jk", past, past) / past[0].size / 400
    np.testing.assert_allclose(found, expected, atol=0.06 * expected[0, 0])


@LONG
@pytest.mark.parametrize(
    ("shape", "sd"), [((8, 48), 0.0), ((8, 48), 30.0), ((20, 60), 30.0), ((1, 120), 15.0)]
)
def test_coverage_over_many_simulations(shape: tuple[int, int], sd: float) -> None:
    held, bias, _ = coverage(shape, sd, 200)
    assert held >= 0.93
    assert abs(bias) < 0.05


# --- the same, whatever it is called or wherever it stands ------------------------------------------------


def test_the_order_of_series_and_of_areas_says_nothing() -> None:
    one, other = planted(np.random.default_rng(2), (8, 48), 5.0)
    turned = other.within(other.areas[::-1], other.months)
    found = {(sign.leads, sign.follows): sign for sign in find_signs([one, other]).signs}
    again = {(sign.leads, sign.follows): sign for sign in find_signs([turned, one]).signs}
    assert found.keys() == again.keys()
    for pair, sign in found.items():
        assert again[pair].verdict == sign.verdict
        for lag, same in zip(sign.lags, again[pair].lags, strict=True):
            assert (lag.value, lag.low) == pytest.approx((same.value, same.low), abs=1e-9)


def test_more_pairs_make_no_interval_narrower() -> None:
    """They hold together: what is asked beside has its price."""
    three = independent(np.random.default_rng(3), "white", (8, 48), 5.0)
    alone, together = find_signs(three[:2]).signs[0], find_signs(three).signs[0]
    assert [lag.value for lag in alone.lags] == [lag.value for lag in together.lags]
    assert all(few.high <= many.high for few, many in zip(alone.lags, together.lags, strict=True))


def test_areas_with_a_gap_are_left_out_of_their_pair() -> None:
    one, other = planted(np.random.default_rng(2), (8, 48), 5.0)
    counts = other.counts.copy()
    counts[5, 7] = np.nan
    gap = series("second", counts, 5.0)
    kept = [area for area in one.areas if area != "area 5"]
    whole = [each.within(kept, each.months) for each in (one, other)]
    assert find_signs([one, gap]).signs == find_signs(whole).signs


def test_areas_that_differ_are_compared_as_totals() -> None:
    one, other = planted(np.random.default_rng(2), (3, 60), 5.0)
    elsewhere = Series(
        other.name, other.agency, other.query, ["x", "y", "z"], other.months, other.counts, other.sd
    )
    assert find_signs([one, elsewhere]).signs == find_signs([one.total(), other.total()]).signs


# --- what cannot be told ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "sd"), [(0.0, 0.0), (7.0, 0.0), (0.0, 3.0)], ids=["zero", "constant", "noise"]
)
def test_a_series_that_does_not_vary_tells_nothing(level: float, sd: float) -> None:
    rng = np.random.default_rng(8)
    flat = series("flat", level + rng.normal(0, sd, (8, 48)), sd)
    one, _ = planted(rng, (8, 48), 2.0)
    found = find_signs([one, flat])
    assert {sign.verdict for sign in found.signs} == {"cannot be told"}
    assert all(sign.why is not None and sign.best is None and not sign.lags for sign in found.signs)
    share = found.noise_share["flat"]
    assert share is None if sd == 0 else share is not None and share > 0.85


def test_a_long_and_quiet_look_finds_no_sign() -> None:
    found = find_signs(independent(np.random.default_rng(1), "white", (60, 120), 0.0)[:2], margin=0.1)
    assert {sign.verdict for sign in found.signs} == {"no sign"}
    assert {sign.why for sign in found.signs} == {None}


def test_few_months_are_refused_and_few_months_of_one_area_cannot_be_told() -> None:
    rng = np.random.default_rng(1)
    with pytest.raises(SignsError, match=r"need at least 24 months .* these series have 20"):
        find_signs(planted(rng, (8, 20), 0.0))
    found = find_signs(planted(rng, (2, 40), 0.0))
    assert {sign.why for sign in found.signs} == {"needs at least 48 months in fewer than 3 areas"}
    assert months_needed(1) == 48
    assert months_needed(8, max_lag=12) == 42


@pytest.mark.parametrize("counts", [[[1.0, np.inf]], [[1.0], [2.0]]])
def test_counts_that_are_no_table_of_areas_and_months(counts: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="counts must"):
        Series("a", "b", "c", ["here"], ["2024-01", "2024-02"], counts, 0.0)


def test_one_series_alone_has_nobody_to_lead() -> None:
    with pytest.raises(SignsError, match="two series"):
        find_signs(planted(np.random.default_rng(1), (8, 48), 0.0)[:1])
