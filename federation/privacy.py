"""What releases cost a person: events go in, ε comes out.

Unit: one person at one agency, whose rows are bounded before anything is computed (one row, where the
contract's unit is `row`). Adjacency: add-or-remove. Against whom: a `Viewer`. "public" sees every sum and
every result; "coordinator" is also told everything by up to c agencies; "everybody" is all other
agencies and the coordinator together. An agency's own noise (`Release`) costs the same to all three.
Noise that agencies share (`SharedRelease`) costs more the more of it a viewer knows. A histogram with discrete
Laplace noise (`LaplaceRelease`) is the agency's own and costs the same to all; alone it needs no δ (`pure_epsilon`).

A ledger stores events, never ε, so a better accountant can re-read an old ledger. For `Release`s, Rényi
divergences at all orders and privacy loss distributions are dp-accounting's (Mironov, Talwar, Zhang 2019,
arXiv:1908.10530); for `SharedRelease`s divergences are `federation.renyi`'s, at whole orders, and for
`LaplaceRelease`s too, exact at all orders. Conversion to ε by Canonne, Kamath, Steinke 2020, arXiv:2004.00010, Prop. 12.

People are split by a hash of their own id, or by a column whose assignment the split id names, so within
one split id a person is in one part only and loses what that part and the releases over `all` cost: the largest over the parts, not the sum. Another
split id deals the parts anew, so across split ids the losses compose, each at its worst part.
"""

import contextlib
import functools
import itertools
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from federation import renyi
from federation.release import (
    VIEWERS,
    Event,
    Kind,
    LaplaceRelease,
    Part,
    Release,
    SharedRelease,
    Viewer,
    event_from_dict,
    require,
)

Accountant = Literal["rdp", "pld"]
Curve = NDArray[np.float64]  # Rényi divergence at each order, shape (orders,)

NOISE_RANGE = (0.3, 10_000.0)  # where `noise_for` looks
_GRID = 10_000  # noise multipliers are rounded up to 1 / _GRID
_MOST_CURVES = 32  # more undominated curves than this are replaced by their upper envelope
_MOST_ASSIGNMENTS = 81  # of parts, for the accountant "pld"


class Draw(NamedTuple):
    """One step of Gaussian noise as one viewer meets it: all that its Rényi divergence depends on.

    `closure` is how far the noise is from a discrete Gaussian (`renyi.closure`); None where it is an
    agency's own continuous Gaussian.
    """

    noise_multiplier: float
    sample_rate: float
    closure: float | None = None

    def divergence(self, order: int) -> float:
        """Rényi divergence at whole `order` (`renyi.rdp`)."""
        return renyi.rdp(self.noise_multiplier, self.sample_rate, order, self.closure or 0.0)


class LaplaceDraw(NamedTuple):
    """One histogram with discrete Laplace noise: the same to every viewer."""

    epsilon: float

    def divergence(self, order: float) -> float:
        """Rényi divergence at any `order` above 1 (`renyi.laplace`)."""
        return renyi.laplace(self.epsilon, order)


AnyDraw = Draw | LaplaceDraw


def draw_of(event: Event, viewer: Viewer = "coordinator", agencies: int = 1) -> AnyDraw:
    """What one step at one of `agencies` agencies is to `viewer`, where a person is at all of them.

    A person at m agencies moves a shared sum by up to m sensitivities, and each agency tosses its own
    coin. The noise, of s shares to `viewer`, is cut into m equal parts and each agency's contribution
    given one: to see m contributions, each with its part, is to see more than their sum, and costs as m
    releases compose, with noise multiplier z / sqrt(m). That is exact at q = 1, and close to the mixture
    of Binomial(m, q) sensitivities where z is large beside sqrt(m). It holds whichever of the m agencies
    is in a sum, and whichever part the person is in at each: fewer contributions leave larger parts. No part
    need be less than one share, which each of the m adds itself. (The noise is within `closure` of one
    discrete Gaussian, and that within `closure` of the sum of m.) An agency's own noise stays its own.
    """
    if isinstance(event, LaplaceRelease):
        return LaplaceDraw(event.epsilon)
    if isinstance(event, Release):
        return Draw(event.noise_multiplier, event.sample_rate)
    shares = event.shares(viewer)
    if agencies >= shares:
        return Draw(event.noise_multiplier_to("everybody"), event.sample_rate, 0.0)
    noise_multiplier = event.noise_multiplier_to(viewer) / math.sqrt(agencies)
    apart = renyi.closure(event.share_variance, shares, event.dimension)
    apart += renyi.closure(event.share_variance * shares // agencies, agencies, event.dimension)
    return Draw(noise_multiplier, event.sample_rate, apart)


@dataclass(frozen=True)
class Spending:
    """What people have lost so far to `viewer`, kept so that one more release costs microseconds.

    `curves` holds the composed Rényi divergences of each (split id, part), at `orders` (None: those of
    dp-accounting). RDP adds up over releases; at order inf it is the ε of pure DP, inf with Gaussian noise.
    """

    viewer: Viewer = "coordinator"
    orders: tuple[float, ...] | None = None
    curves: Mapping[tuple[str, Part], Curve] = field(default_factory=dict)

    def plus(self, releases: Iterable[Event], agencies: int = 1) -> "Spending":
        """This and one agency's `releases`, composed, for a person at `agencies` agencies (`draw_of`)."""
        curves = dict(self.curves)
        for where, draws in _by_part(releases, self.viewer, agencies).items():
            for draw, steps in draws.items():
                curves[where] = curves.get(where, 0.0) + steps * _curve(draw, self.orders)
        return Spending(self.viewer, self.orders, curves)

    def people(self) -> list[Curve]:
        """The worst that can have happened to one person, over every assignment of parts.

        Several curves where none is above the other at all orders; never more than `_MOST_CURVES`,
        beyond which their upper envelope stands for them (an upper bound still).
        """
        worst: list[Curve] = [np.zeros(())]
        for split in sorted({split for split, _ in self.curves}):
            everybody = self.curves.get((split, "all"), np.zeros(()))
            own = [curve for (name, part), curve in self.curves.items() if name == split and part != "all"]
            options = [everybody + curve for curve in own] or [everybody]
            worst = _undominated(past + option for past in worst for option in options)
        return worst

    def epsilon(self, delta: float) -> float:
        """ε at `delta`, (0, 1), of the person who lost most."""
        _check_delta(delta)
        return max(_epsilon_of(curve, delta, self.orders) for curve in self.people())


def epsilon(
    releases: Sequence[Event],
    delta: float,
    accountant: Accountant = "rdp",
    viewer: Viewer = "coordinator",
) -> float:
    """ε at `delta`, (0, 1), to `viewer`, of the person who lost most to `releases`.

    0 for no releases, inf if any was without noise. Order does not matter, nor does splitting the steps
    of a release over several.

    What is claimed, for both accountants: (ε, δ)-DP when the *parameters* of all releases (noise, rate,
    number) were fixed in advance; the queries themselves may depend on earlier outputs, as training
    steps do. Where later parameters are chosen after seeing earlier outputs, neither number may decide
    what is still admitted: that takes a privacy filter, RDP at one order fixed together with the budget
    (`renyi`; the ledger has it). "rdp" takes the best order afterwards, so it is not that filter. "pld" is
    5-10% tighter and slower; use it for one experiment that was committed to beforehand. It does not know
    shared noise.

    Where there are Laplace releases, the ε at `delta` of the others and the sum of the Laplace ε together are a
    bound too, and the smaller of both is given; Laplace releases alone never cost more than their sum. (Take away the
    person from the others' records first, then from the histograms': the first change is (ε, δ), the second pure.
    It holds however the releases take turns, and whatever their queries learn from each other.)

    At orders that are not whole, dp-accounting bounds the divergence from above, and leaves out low orders
    that do not converge: "rdp" is then up to 1% above the exact value at ε = 14 and 2% at 29, never below.
    Beyond ε of about 30 it stays an upper bound but is no longer monotone in the noise.
    """
    _check_delta(delta)
    require(accountant in ("rdp", "pld"), "accountant", "'rdp' or 'pld'", accountant)
    if _without_noise(releases):
        return math.inf

    def composed(events: Sequence[Event]) -> float:
        if accountant == "pld":
            return _pld_epsilon(events, delta)
        return Spending(viewer).plus(events).epsilon(delta)

    laplace, others = _apart(releases)
    if not laplace:
        return composed(others)
    return min(composed(releases), composed(others) + pure_epsilon(laplace))


def pure_epsilon(releases: Sequence[Event]) -> float:
    """ε at δ = 0, to every viewer, of the person who lost most: the sum over their Laplace releases.

    0 for no releases, inf where any has Gaussian noise or none.
    """
    spent = Spending(orders=(math.inf,)).plus(releases)
    return max(float(curve.max()) for curve in spent.people())


def pure_epsilon_at_several(releases_per_agency: Sequence[Sequence[Event]], m: int) -> float:
    """ε at δ = 0 of a person known to `m` agencies: the worst `m` (with fewer agencies, all of them) add up."""
    _check_m(m)
    return math.fsum(sorted(map(pure_epsilon, releases_per_agency), reverse=True)[:m])


def epsilon_by_kind(
    releases: Sequence[Event], delta: float, viewer: Viewer = "coordinator"
) -> dict[str, float]:
    """ε of the training alone, of everything else alone ("evaluate": tables, statistics, maps, cohorts), and of all."""
    return {
        "train": epsilon([release for release in releases if release.kind == "train"], delta, viewer=viewer),
        "evaluate": epsilon(
            [release for release in releases if release.kind != "train"], delta, viewer=viewer
        ),
        "total": epsilon(releases, delta, viewer=viewer),
    }


def epsilon_at_several(
    releases_per_agency: Sequence[Sequence[Event]], delta: float, m: int, viewer: Viewer = "coordinator"
) -> float:
    """ε to `viewer` of a person known to `m` agencies: the worst `m`. With fewer agencies, all of them.

    The agencies' releases compose, the worst part at each (each has its own split). Sensitivities add in a
    shared sum before its noise, which the agencies' contributions are therefore given a part each of (`draw_of`).
    Laplace releases cost no more than the sum of their ε, as in `epsilon`.
    """
    _check_delta(delta)
    _check_m(m)
    if any(_without_noise(releases) for releases in releases_per_agency):
        return math.inf
    together = _composed_at_several(releases_per_agency, delta, m, viewer)
    apart = [_apart(releases) for releases in releases_per_agency]
    if not any(laplace for laplace, _ in apart):
        return together
    pure = pure_epsilon_at_several([laplace for laplace, _ in apart], m)
    return min(together, _composed_at_several([others for _, others in apart], delta, m, viewer) + pure)


def _composed_at_several(
    releases_per_agency: Sequence[Sequence[Event]], delta: float, m: int, viewer: Viewer
) -> float:
    """By RDP of all releases together."""
    known = min(m, len(releases_per_agency))
    # worst[j]: undominated curves of a person at j of the agencies seen so far
    worst: list[list[Curve]] = [[np.zeros(())]] + [[] for _ in range(known)]
    for releases in releases_per_agency:
        here = Spending(viewer).plus(releases, agencies=known).people()
        for j in range(len(worst) - 1, 0, -1):
            worst[j] = _undominated([*worst[j], *(past + now for past in worst[j - 1] for now in here)])
    return max(_epsilon_of(curve, delta) for curve in worst[-1])


def noise_for(epsilon: float, delta: float, sample_rate: float, steps: int, *, shared: bool = False) -> float:
    """The smallest noise multiplier, rounded up at 4 decimals, whose `steps` draws cost at most `epsilon`.

    Bisection on RDP, helped by interpolation, between 0.3 and 10,000 (`NOISE_RANGE`): 0.3 where even that
    is enough, ValueError where 10,000 is not. The result never costs more than `epsilon`; above ε of about
    30 it may not be the very smallest (see `epsilon`). `shared`: at whole orders alone, as shared noise is
    accounted (without its closure term, which is below 1e-50 on the grids that a plan may have).
    """
    _check_delta(delta)
    require(0 < epsilon < math.inf, "epsilon", "above 0 and finite", epsilon)
    Release("train", "all", 1.0, sample_rate, steps)  # the same rules for sample_rate and steps
    orders = _orders_that_reach(epsilon, delta)
    closure = None
    if shared:
        orders, closure = tuple(order for order in orders if order == int(order)), 0.0

    @functools.cache
    def excess(point: int) -> float:
        """log(cost / epsilon) at noise multiplier point / _GRID: at most 0 where there is enough noise."""
        cost = _epsilon_of(steps * _curve(Draw(point / _GRID, sample_rate, closure), orders), delta, orders)
        return math.log(max(cost, 1e-300) / epsilon)

    least, most = (round(bound * _GRID) for bound in NOISE_RANGE)
    high = 2 * _GRID
    while excess(high) > 0:
        if high == most:
            raise ValueError(
                f"no noise_multiplier up to {NOISE_RANGE[1]:g} keeps {steps} steps at sample_rate"
                f" {sample_rate:g} within epsilon {epsilon:g} at delta {delta:g}: ask for fewer steps or more epsilon"
            )
        high = min(2 * high, most)
    low = max(high // 2, least)
    while excess(low) <= 0:
        if low == least:
            return least / _GRID
        low, high = max(low // 2, least), low
    return _first_enough(excess, low, high) / _GRID


def _first_enough(excess: Callable[[int], float], low: int, high: int) -> int:
    """The point in (low, high] where `excess` first is at most 0; it falls, excess(low) > 0 >= excess(high).

    Log cost is nearly a straight line in log noise: two probes of three go where the line crosses 0, the
    third halves what is left, so that it ends soon on any curve.
    """
    probe = 0
    while high - low > 1:
        share = excess(low) / (excess(low) - excess(high)) if probe % 3 else 0.5
        middle = min(max(math.ceil(low * (high / low) ** share), low + 1), high - 1)
        low, high = (low, middle) if excess(middle) <= 0 else (middle, high)
        probe += 1
    return high


def _without_noise(releases: Iterable[Event]) -> bool:
    return any(isinstance(release, Release) and release.noise_multiplier == 0 for release in releases)


def _apart(releases: Iterable[Event]) -> tuple[list[Event], list[Event]]:
    """(Laplace releases, the others), each in their order."""
    laplace, others = list[Event](), list[Event]()
    for release in releases:
        (laplace if isinstance(release, LaplaceRelease) else others).append(release)
    return laplace, others


def _by_part(
    releases: Iterable[Event], viewer: Viewer, agencies: int = 1
) -> dict[tuple[str, Part], Counter[AnyDraw]]:
    """How often each draw was made, by (split id, part), in the order of first appearance."""
    merged: dict[tuple[str, Part], Counter[AnyDraw]] = defaultdict(Counter)
    for release in releases:
        merged[release.split_id, release.part][_draw(release, viewer, agencies)] += release.steps
    return merged


@functools.lru_cache(maxsize=65_536)
def _draw(event: Event, viewer: Viewer, agencies: int) -> AnyDraw:
    return draw_of(event, viewer, agencies)


def _undominated(curves: Iterable[Curve]) -> list[Curve]:
    """`curves` without those that lie below another everywhere (to 1e-12: sums in another order are equal)."""
    kept: list[Curve] = []
    for curve in curves:
        if not any((curve <= other * (1 + 1e-12)).all() for other in kept):
            kept = [other for other in kept if not (other <= curve).all()] + [curve]
    return kept if len(kept) <= _MOST_CURVES else [np.maximum.reduce(kept)]


def _orders() -> tuple[float, ...]:
    return tuple(_dp_accounting().rdp.rdp_privacy_accountant.DEFAULT_RDP_ORDERS)


def _orders_that_reach(epsilon: float, delta: float) -> tuple[float, ...]:
    """The orders that can show a cost of at most `epsilon`: at the others, even a divergence of 0 costs more.

    The low orders are by far the slowest to compute, and a small ε never needs them.
    """
    able = (a for a in _orders() if math.log1p(-1 / a) - math.log(delta * a) / (a - 1) <= epsilon)
    return tuple(able) or _orders()


@functools.lru_cache(maxsize=16_384)
def _curve(draw: AnyDraw, orders: tuple[float, ...] | None = None) -> Curve:
    """RDP of one draw at `orders` (dp-accounting's if None); read-only.

    Ours for Laplace and shared noise and where all orders are whole, else dp-accounting's, for whom fractions are
    upper bounds. inf where there is no bound, never below 0 by rounding.
    """
    whole = orders is not None and all(order == int(order) for order in orders if order < math.inf)
    if isinstance(draw, LaplaceDraw):
        curve = np.array([draw.divergence(order) for order in orders or _orders()])
    elif draw.closure is None and not whole:
        curve = _dp_accounting_curve(draw.noise_multiplier, draw.sample_rate, orders)
    else:
        curve = np.array(
            [
                draw.divergence(int(order)) if order < math.inf and order == int(order) else math.inf
                for order in orders or _orders()
            ]
        )
    curve.flags.writeable = False
    return curve


def _dp_accounting_curve(
    noise_multiplier: float, sample_rate: float, orders: tuple[float, ...] | None
) -> Curve:
    dp = _dp_accounting()
    accountant = dp.rdp.RdpAccountant(orders, dp.NeighboringRelation.ADD_OR_REMOVE_ONE)
    with _without_warnings():
        accountant.compose(_event(min(noise_multiplier, 1e100), sample_rate))  # it squares: 1e154 overflows
    curve: Curve = np.maximum(accountant.rdp, 0.0)
    return curve


def _epsilon_of(curve: Curve, delta: float, orders: tuple[float, ...] | None = None) -> float:
    if not curve.any():
        return 0.0
    compute = _dp_accounting().rdp.rdp_privacy_accountant.compute_epsilon
    return float(compute(orders or _orders(), curve.tolist(), delta)[0])


def _pld_epsilon(releases: Sequence[Event], delta: float) -> float:
    """Largest over the assignments of parts; ValueError where the split ids make too many of them."""
    require(
        not any(isinstance(release, SharedRelease) for release in releases),
        "accountant",
        "'rdp' where noise is shared between agencies",
        "pld",
    )
    spent = _by_part(releases, "coordinator")
    options = []
    for split in sorted({split for split, _ in spent}):
        own = [events for (name, part), events in spent.items() if name == split and part != "all"]
        options.append([spent.get((split, "all"), Counter()) + events for events in own or [Counter()]])
    if math.prod(len(option) for option in options) > _MOST_ASSIGNMENTS:
        raise ValueError(
            f"accountant 'pld' is for one experiment; {len(options)} split ids need accountant 'rdp'"
        )
    assignments = (sum(chosen, Counter()) for chosen in itertools.product(*options))
    return max(_pld_epsilon_of(events, delta) for events in assignments)


def _pld_epsilon_of(events: Counter[AnyDraw], delta: float) -> float:
    dp = _dp_accounting()
    accountant = dp.pld.PLDAccountant(neighboring_relation=dp.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for draw, steps in sorted(events.items()):
        if isinstance(draw, LaplaceDraw):
            accountant.compose(dp.dp_event.DiscreteLaplaceDpEvent(draw.epsilon, sensitivity=1), steps)
        else:
            accountant.compose(_event(draw.noise_multiplier, draw.sample_rate), steps)
    return float(accountant.get_epsilon(delta))


def _event(noise_multiplier: float, sample_rate: float) -> Any:
    """One step as dp-accounting's event."""
    dp = _dp_accounting()
    gaussian = dp.GaussianDpEvent(noise_multiplier)
    return gaussian if sample_rate == 1 else dp.PoissonSampledDpEvent(sample_rate, gaussian)


def _dp_accounting() -> Any:
    """The library, imported when the first ε is asked for: it takes a second."""
    import dp_accounting  # type: ignore[import-untyped, unused-ignore]

    return dp_accounting


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Leaving out an order that does not converge only loosens the bound: nothing to tell a user."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _check_delta(delta: float) -> None:
    require(0 < delta < 1, "delta", "in (0, 1)", delta)


def _check_m(m: int) -> None:
    require(type(m) is int and m >= 1, "m", "a whole number from 1", m)


__all__ = [
    "VIEWERS",
    "Accountant",
    "AnyDraw",
    "Curve",
    "Draw",
    "Event",
    "Kind",
    "LaplaceDraw",
    "LaplaceRelease",
    "Part",
    "Release",
    "SharedRelease",
    "Spending",
    "Viewer",
    "draw_of",
    "epsilon",
    "epsilon_at_several",
    "epsilon_by_kind",
    "event_from_dict",
    "noise_for",
    "pure_epsilon",
    "pure_epsilon_at_several",
]
