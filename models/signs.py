"""Early-warning signs: which counts, by area and month, go ahead of which others, from noised series alone.

x goes ahead of y by l months if x_{t-l} tells something about y_t that y's own past does not (Granger, Econometrica
1969). It is measured, after what areas and months have in common is taken out, by the partial correlation of y_t and
x_{t-l} given z = (y_{t-1}, .., y_{t-p}, x_{t-l-1}, .., x_{t-l-p}): what was new in x, with what is new in y. Two series
that drift each by itself seem to go together; their news does not (Haugh, JASA 1976). It is no cause, and says nothing about a person.

The counts carry noise of known variance. It makes plain correlations too small and lets the past explain less than it
should, so its covariance N is subtracted from that of the series, S (errors in variables: Fuller, Measurement Error
Models, 1987). What is left is about the counts as they were:

    C = S - N,   B = C_zz^-1 C_z(y,x),   (e, u) = (y, x) - B' z,   Theta = (C of (e, u)),   r = Theta_eu / sqrt(Theta_ee Theta_uu)

To first order a change of C changes Theta as the mean of the products e e, e u, u u does. So the error of r is a mean
of known numbers, one for each area and month. Its standard error is made from their sums over blocks of months within an
area (Künsch, Annals of Statistics 1989). The critical value is that of the largest of all pairs and lags when whole
blocks change their signs at random (Wu, Annals of Statistics 1986; Westfall and Young, Resampling-Based Multiple
Testing, 1993; Romano and Wolf, Econometrica 2005), so all intervals hold together.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.scores import LEVEL

FloatArray = NDArray[np.float64]
Verdict = Literal["leads", "no sign", "cannot be told"]

MAX_LAG = 6
PAST = 2  # months of its own past that each series is given
MARGIN = 0.2  # a partial correlation closer to 0 than this is of no use to anybody
BLOCK = 3  # months whose errors may go together
FLIPS = 999
CLEAR = 3.0  # standard errors by which what is left without the noise must be above 0
TINY = 1e-12
ALIKE = 0.3  # of a variance of 1, what a direction has that the others of the past have not
MANY_AREAS = 3  # from here on a month's effect can be told from an area's
MONTHS = 24  # least, with many areas
YEARS = 4  # to take an area's own season out; without many areas there is no other way


class SignsError(ValueError):
    """Series from which no sign can be read: what is missing, in one sentence."""


@final
@dataclass(frozen=True)
class Series:
    """Noised counts of one query at one agency.

    counts: (areas, months), NaN where there is none;  sd: of each count's noise, 0 without noise
    The noise of different cells must be independent.
    """

    name: str
    agency: str
    query: str
    areas: tuple[str, ...]
    months: tuple[str, ...]
    counts: FloatArray
    sd: FloatArray

    def __init__(
        self,
        name: str,
        agency: str,
        query: str,
        areas: Sequence[str],
        months: Sequence[str],
        counts: ArrayLike,
        sd: ArrayLike,
    ) -> None:
        values, noise = np.array(counts, np.float64), np.array(sd, np.float64)
        if values.shape != (len(areas), len(months)):
            raise ValueError(f"counts must have shape ({len(areas)}, {len(months)}), got {values.shape}")
        noise = np.broadcast_to(noise, values.shape)
        known = np.isfinite(values)
        if np.isinf(values).any() or not (np.isfinite(noise[known]) & (noise[known] >= 0)).all():
            raise ValueError("counts must be finite or missing, and sd finite and not negative")
        each = (name, agency, query, tuple(areas), tuple(months), values, noise)
        for field, value in zip(self.__dataclass_fields__, each, strict=True):
            object.__setattr__(self, field, value)

    def within(self, areas: Sequence[str], months: Sequence[str]) -> "Series":
        """The same series in these areas and months, which it must have."""
        rows = [self.areas.index(area) for area in areas]
        columns = [self.months.index(month) for month in months]
        place = np.ix_(rows, columns)
        return Series(self.name, self.agency, self.query, areas, months, self.counts[place], self.sd[place])

    def called(self, name: str) -> "Series":
        """The same series under another name."""
        return Series(name, self.agency, self.query, self.areas, self.months, self.counts, self.sd)

    def without_gaps(self) -> "Series":
        """In the areas that have a count in every month."""
        whole = np.flatnonzero(np.isfinite(self.counts).all(1))
        return self.within([self.areas[i] for i in whole], self.months)

    def total(self) -> "Series":
        """Over all areas: one area."""
        counts, sd = self.counts.sum(0, keepdims=True), np.sqrt((self.sd**2).sum(0, keepdims=True))
        return Series(self.name, self.agency, self.query, ("all",), self.months, counts, sd)


@final
@dataclass(frozen=True)
class Lag:
    """The partial correlation at a lag, in months, with its simultaneous interval."""

    lag: int
    value: float
    low: float
    high: float


@final
@dataclass(frozen=True)
class Sign:
    """Whether `leads` goes ahead of `follows`.

    lags: those of 1..max_lag that can be told.  best: the clearest of them, None where there is none
    why: what stands in the way where the verdict is that it cannot be told, else None
    """

    leads: str
    follows: str
    verdict: Verdict
    best: Lag | None
    lags: tuple[Lag, ...]
    why: str | None


@final
@dataclass(frozen=True)
class Signs:
    """All pairs that are `compared`, and which share of each series' variation is noise, None where it has no variation."""

    signs: tuple[Sign, ...]
    noise_share: Mapping[str, float | None]


def find_signs(
    series: Sequence[Series],
    *,
    max_lag: int = MAX_LAG,
    margin: float = MARGIN,
    level: float = LEVEL,
    seed: int = 0,
) -> Signs:
    """Every ordered pair at every lag, with intervals that hold together at `level`.

    A pair leads where the interval at its best lag is on one side of 0, above or below; there is no sign where the
    intervals of all lags are within `margin` of 0. Series have names of their own and the same months in a row. A pair is
    taken in the areas that both have without a gap, and as totals where there are none.
    `SignsError`: no two series to compare, or too few months. `seed` is that of the flips.
    """
    _check(series, max_lag)
    cut = {each.name: each.without_gaps() for each in series}
    pairs = [_pair(cut[x.name], cut[y.name], max_lag) for x, y in compared(series)]
    if not pairs:
        raise SignsError("no two series can be compared: one is by area and month, the other by month alone")
    critical = _critical(pairs, level, seed)
    back = max_lag + PAST
    shares = {name: _panel(each, back).noise_share for name, each in cut.items()}
    return Signs(tuple(_judged(pair, critical, margin) for pair in pairs), shares)


def compared(series: Sequence[Series]) -> list[tuple[Series, Series]]:
    """Ordered pairs of series of different agencies; of one agency where there is no other.

    A series by area is not compared with one that has a single area: it would be asked twice what its areas tell.
    """
    alone = len({each.agency for each in series}) == 1
    return [
        (x, y)
        for x, y in permutations(series, 2)
        if (alone or x.agency != y.agency) and (len(x.areas) == 1) == (len(y.areas) == 1)
    ]


def months_needed(areas: int, max_lag: int = MAX_LAG) -> int:
    """How many months in a row signs in so many areas need."""
    return max(MONTHS if areas >= MANY_AREAS else 12 * YEARS, 3 * (max_lag + PAST))


def _check(series: Sequence[Series], max_lag: int) -> None:
    if max_lag < 1:
        raise SignsError(f"the longest lag must be 1 month at least, got {max_lag}")
    if len({each.name for each in series}) < len(series) or len({each.months for each in series}) > 1:
        raise ValueError("series must have names of their own and the same months")
    if len(series) < 2:
        raise SignsError(
            f"signs are between two series at least, got {len(series)}: add a map of another agency"
        )
    months, least = len(series[0].months), months_needed(MANY_AREAS, max_lag)
    if months < least:
        raise SignsError(
            f"signs with lags up to {max_lag} need at least {least} months in {MANY_AREAS} areas or more, "
            f"and {months_needed(1, max_lag)} in fewer; these series have {months}: "
            "ask for shorter lags, or draw a map of more months"
        )


# --- one series, without what its areas and months have in common --------------------------------------


@final
@dataclass(frozen=True)
class _Panel:
    """z: (areas, months), what is left.  noise: (back + 1, back + 1), mean covariance of its noise at t - j and t - k."""

    z: FloatArray
    noise: FloatArray

    @property
    def noise_share(self) -> float | None:
        """Of the variance of z; a z of rounding errors has none."""
        variance = float((self.z**2).mean()) if self.z.size else 0.0
        return min(float(self.noise[0, 0]) / variance, 1.0) if variance > TINY else None


def _panel(series: Series, back: int) -> _Panel:
    """z = L Y R, from linear maps so that the noise in z is known.

    With many areas L takes each month's effect out of every area in proportion to the area's size (its mean
    count), and it scales areas to about one variance: that of chance, which is as the size, and of noise. R takes out
    each area's own mean, trend and, where there are years enough, season.
    """
    areas, months = series.counts.shape
    size = np.maximum(series.counts.mean(1), 0.0)
    left = np.eye(areas)
    if areas >= MANY_AREAS and size.sum() > 0:
        left -= np.outer(size / size.sum(), np.ones(areas))
    left /= np.sqrt(np.maximum(size, 1.0) + (series.sd**2).mean(1))[:, None]
    right = _within(months)
    each = ((left**2) @ series.sd**2).mean(0) if areas else np.zeros(months)  # noise of a month after L
    rows = np.stack([right[back - k : months - k] for k in range(back + 1)])  # of R, at t - k for each t
    noise = np.einsum("jtm,ktm,m->jk", rows, rows, each, optimize=True) / (months - back)
    return _Panel(left @ series.counts @ right, noise)


def _taken_out(months: int) -> int:
    """How many numbers of each area are mean, trend and season."""
    return 2 + (11 if months >= 12 * YEARS else 0)


def _within(months: int) -> FloatArray:
    """The projection that takes out mean, linear trend and season, (months, months)."""
    at = np.arange(months)
    season = [at % 12 == month for month in range(_taken_out(months) - 2)]
    q, _ = np.linalg.qr(np.stack([np.ones(months), at - at.mean(), *season], 1).astype(np.float64))
    return np.asarray(np.eye(months) - q @ q.T)


# --- one pair -------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class _Found:
    """r at one lag.  units: (areas, blocks), sums of what makes it err, whose squares add up to its variance."""

    r: float
    units: FloatArray


@final
@dataclass(frozen=True)
class _Pair:
    """lags: what was found at each, or why nothing was.  left: the share of the numbers that were not fitted."""

    x: str
    y: str
    areas: tuple[str, ...]
    left: float
    lags: tuple[_Found | str, ...]

    @property
    def inflation(self) -> float:
        """Of a standard error: what was fitted makes residuals smaller than errors. The root of all numbers over those
        left, and the whole of it in few areas (HC1 and HC3: MacKinnon and White, Journal of Econometrics 1985)."""
        return 1 / math.sqrt(self.left) if len(self.areas) >= MANY_AREAS else 1 / self.left


def _pair(x: Series, y: Series, max_lag: int) -> _Pair:
    areas, months = tuple(sorted({*x.areas} & {*y.areas})), x.months
    if areas:
        x, y = x.within(areas, months), y.within(areas, months)
    else:
        x, y, areas = x.total(), y.total(), ("all",)
    least = months_needed(len(areas), max_lag)
    if len(months) < least:
        why = f"needs at least {least} months in fewer than {MANY_AREAS} areas"
        return _Pair(x.name, y.name, areas, 1.0, (why,) * max_lag)
    back = max_lag + PAST
    ahead, behind = _panel(x, back), _panel(y, back)
    for each, panel in ((x, ahead), (y, behind)):
        if panel.noise_share is None:
            return _Pair(x.name, y.name, areas, 1.0, (f"{each.name} does not vary",) * max_lag)
    lags = tuple(_at(x.name, y.name, ahead, behind, lag, back) for lag in range(1, max_lag + 1))
    return _Pair(x.name, y.name, areas, _left(len(areas), len(months), len(months) - back), lags)


def _left(areas: int, months: int, used: int) -> float:
    """Of the numbers in `used` of the months, which share was not fitted: months, trends, seasons and pasts were."""
    return (1 - (_taken_out(months) + 2 * PAST) / used) * (1 - 1 / areas if areas >= MANY_AREAS else 1)


def _at(x: str, y: str, ahead: _Panel, behind: _Panel, lag: int, back: int) -> _Found | str:
    """The box at the head of this module, at one lag, for y behind x."""
    of_y, of_x = list(range(PAST + 1)), list(range(lag, lag + PAST + 1))  # months ago
    observed = np.stack([_ago(behind.z, k, back) for k in of_y] + [_ago(ahead.z, k, back) for k in of_x], -1)
    c = np.einsum("atj,atk->jk", observed, observed) / observed[..., 0].size
    cut = PAST + 1
    c[:cut, :cut] -= behind.noise[np.ix_(of_y, of_y)]
    c[cut:, cut:] -= ahead.noise[np.ix_(of_x, of_x)]
    new = [0, cut]
    past = [k for k in range(2 * cut) if k not in new]
    directions = _told_apart(c[np.ix_(past, past)], observed[..., past])
    if directions is None:
        return "too much noise in one of the two to tell its own past"
    news = np.zeros((2 * cut, 2))
    news[new, [0, 1]] = 1
    along = directions.T @ c[np.ix_(past, past)] @ directions
    news[past] = -directions @ np.linalg.solve(along, directions.T @ c[np.ix_(past, new)])
    theta, left = news.T @ c @ news, observed @ news
    for name, clear in zip((y, x), _clear(np.diag(theta), left**2).tolist(), strict=True):
        if not clear:
            return f"too much noise in {name}"
    scaled = left / np.sqrt(np.diag(theta))
    r = float(theta[0, 1] / math.sqrt(theta[0, 0] * theta[1, 1]))
    if not abs(r) < 1:
        return f"too much noise in {x} and {y}"
    errors = scaled.prod(-1, keepdims=True) - r / 2 * (scaled**2).sum(-1, keepdims=True)
    return _Found(r, _blocks(errors)[..., 0])


def _told_apart(c: FloatArray, observed: FloatArray) -> FloatArray | None:
    """Along which directions of the past there is more than noise, (numbers, directions); None where that cannot be told.

    c: covariance without the noise.  observed: (areas, months, numbers). Principal directions of the correlations:
    one in which nothing is clear may be left out where the others say nearly all of it (`ALIKE`), as of two pasts that
    go together.
    """
    if not _clear(np.diag(c), observed**2).all():
        return None
    scale = 1 / np.sqrt(np.diag(c))
    values, vectors = np.linalg.eigh(c * np.outer(scale, scale))
    vectors *= scale[:, None]
    clear = _clear(values, (observed @ vectors) ** 2)
    return None if (~clear & (values > ALIKE)).any() else np.asarray(vectors[:, clear])


def _ago(z: FloatArray, k: int, back: int) -> FloatArray:
    """z at t - k, for each t that has `back` months before it; (areas, months - back)."""
    return z[:, back - k : z.shape[1] - k]


def _blocks(values: FloatArray) -> FloatArray:
    """Each area's sums over blocks of months, of what differs from the mean, as parts of a mean.

    values: (areas, months, numbers); (areas, blocks, numbers)
    """
    areas, months, _ = values.shape
    starts = np.arange(0, months, BLOCK)
    return np.asarray(np.add.reduceat(values - values.mean((0, 1)), starts, axis=1) / (areas * months))


def _clear(variances: FloatArray, products: FloatArray) -> NDArray[np.bool_]:
    """Whether what is left of each variance without its noise is clearly above 0; products: (areas, months, numbers)."""
    return np.asarray(variances > CLEAR * np.sqrt((_blocks(products) ** 2).sum((0, 1))))


# --- all pairs together ---------------------------------------------------------------------------------


def _critical(pairs: Sequence[_Pair], level: float, seed: int) -> float:
    """The quantile of max |t| over all pairs and lags, when each block's sign in each area is drawn anew.

    A flipped sum over the root of its squares, s, is Student's t in disguise: t = s sqrt((m - 1) / (m - s^2)) with m
    blocks, of which what was fitted has taken its share.
    """
    told = [(pair, found.units) for pair in pairs for found in pair.lags if isinstance(found, _Found)]
    if not told:
        return math.inf
    rng, blocks = np.random.default_rng(seed), told[0][1].shape[1]
    names = sorted({area for pair, _ in told for area in pair.areas})
    flips = dict(zip(names, rng.choice([-1.0, 1.0], (len(names), FLIPS, blocks)), strict=True))
    largest = np.zeros(FLIPS)
    for pair, units in told:
        sums = np.sum([flips[area] @ unit for area, unit in zip(pair.areas, units, strict=True)], axis=0)
        m = max(units.size * pair.left, 2.0)
        s2 = np.minimum(sums**2 / (units**2).sum(), m - 1 / FLIPS)
        largest = np.maximum(largest, s2 * (m - 1) / (m - s2))
    return math.sqrt(float(np.quantile(largest, level, method="higher")))


def _judged(pair: _Pair, critical: float, margin: float) -> Sign:
    lags = tuple(
        _interval(lag, found, critical * pair.inflation)
        for lag, found in enumerate(pair.lags, 1)
        if isinstance(found, _Found)
    )
    why = next((found for found in pair.lags if isinstance(found, str)), None)
    best = max(lags, key=_beyond, default=None)
    verdict: Verdict = "cannot be told"
    if best is not None and _beyond(best) > 0:
        verdict = "leads"
    elif why is None and all(-margin <= lag.low and lag.high <= margin for lag in lags):
        verdict = "no sign"
    elif why is None:
        why = f"the interval reaches 0 and beyond {margin:g}: more months, more areas or less noise"
    return Sign(pair.x, pair.y, verdict, best, lags, why if verdict == "cannot be told" else None)


def _interval(lag: int, found: _Found, errors: float) -> Lag:
    """r with so many standard errors on both sides, on Fisher's scale atanh(r), whose error is se / (1 - r^2)."""
    se = math.sqrt(float((found.units**2).sum())) / (1 - found.r**2)
    middle = math.atanh(found.r)
    return Lag(lag, found.r, math.tanh(middle - errors * se), math.tanh(middle + errors * se))


def _beyond(lag: Lag) -> float:
    """How far the interval keeps away from 0; negative where it holds 0."""
    return max(lag.low, -lag.high)
