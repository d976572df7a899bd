"""What releases cost a person: events go in, ε comes out.

Unit: one person at one agency, whose rows are bounded before anything is computed (one row, where the
contract's unit is `row`). Adjacency: add-or-remove. Against whom: everybody who sees the agency's
releases, which is the coordinator, the other agencies, the panel and whoever they show them to.

A ledger stores `Release`s, never ε, so a better accountant can re-read an old ledger. An event is
`steps` draws of the Poisson-subsampled Gaussian mechanism; Rényi divergences and privacy loss
distributions are dp-accounting's (Mironov, Talwar, Zhang 2019, arXiv:1908.10530; conversion to ε by
Canonne, Kamath, Steinke 2020, arXiv:2004.00010, Prop. 12).

People are split by a hash of their own id, so within one split id a person is in one part only and
loses what that part and the releases over `all` cost: the largest over the parts, not the sum. Another
split id deals the parts anew, so across split ids the losses compose, each at its worst part.
"""

import contextlib
import functools
import itertools
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

Kind = Literal["train", "evaluate", "stats"]
Part = Literal["train", "tune", "test", "all"]
Accountant = Literal["rdp", "pld"]
Curve = NDArray[np.float64]  # Rényi divergence at each of dp-accounting's default orders, shape (orders,)

MECHANISM = "poisson-gaussian"
NOISE_RANGE = (0.3, 10_000.0)  # where `noise_for` looks
_GRID = 10_000  # noise multipliers are rounded up to 1 / _GRID
_MOST_CURVES = 32  # more undominated curves than this are replaced by their upper envelope
_MOST_ASSIGNMENTS = 81  # of parts, for the accountant "pld"


@dataclass(frozen=True)
class Release:
    """`steps` draws of the Poisson-subsampled Gaussian mechanism over the people of `part`.

    `noise_multiplier` is noise std / sensitivity (the clipping norm), dimensionless, at least 0.001;
    0 says that there was no noise, and costs an infinite ε. `sample_rate` is the chance that a person
    is in a step, (0, 1]. `split_id` names the split that `part` belongs to (a name, never its secret).
    A wrong value is a ValueError that says which, the rule and what was found.
    """

    kind: Kind
    part: Part
    noise_multiplier: float
    sample_rate: float
    steps: int
    split_id: str = ""

    def __post_init__(self) -> None:
        _require(self.kind in get_args(Kind), "kind", f"one of {get_args(Kind)}", self.kind)
        _require(self.part in get_args(Part), "part", f"one of {get_args(Part)}", self.part)
        noise = self.noise_multiplier
        _require(
            noise == 0 or 0.001 <= noise < math.inf,
            "noise_multiplier",
            "0 (no noise) or at least 0.001",
            noise,
        )
        _require(0 < self.sample_rate <= 1, "sample_rate", "in (0, 1]", self.sample_rate)
        _require(type(self.steps) is int and self.steps >= 1, "steps", "a whole number from 1", self.steps)
        _require(type(self.split_id) is str, "split_id", "text", self.split_id)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `mechanism` names the type of event, so that a later type cannot be mistaken for it."""
        return {"mechanism": MECHANISM, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. ValueError for another mechanism, a missing, unknown or wrong value."""
        rest = dict(values)
        mechanism = rest.pop("mechanism", None)
        _require(mechanism == MECHANISM, "mechanism", f"{MECHANISM!r}", mechanism)
        try:
            return cls(**rest)
        except TypeError:
            raise ValueError(f"a release has other values than {sorted(cls.__dataclass_fields__)}") from None


@dataclass(frozen=True)
class Spending:
    """What people have lost so far, kept so that one more release costs microseconds.

    `curves` holds the composed Rényi divergences of each (split id, part). RDP adds up over releases.
    """

    curves: Mapping[tuple[str, Part], Curve] = field(default_factory=dict)

    def plus(self, releases: Iterable[Release]) -> "Spending":
        """This and `releases`, composed."""
        curves = dict(self.curves)
        for where, events in _by_part(releases).items():
            for (noise_multiplier, sample_rate), steps in sorted(events.items()):
                curves[where] = curves.get(where, 0.0) + steps * _curve(noise_multiplier, sample_rate)
        return Spending(curves)

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
        return max(_epsilon_of(curve, delta) for curve in self.people())


def epsilon(releases: Sequence[Release], delta: float, accountant: Accountant = "rdp") -> float:
    """ε at `delta`, (0, 1), of the person who lost most to `releases` (see the top of this file for who).

    0 for no releases, inf if any was without noise. Order does not matter, nor does splitting the steps
    of a release over several.

    What is claimed, for both accountants: (ε, δ)-DP when the *parameters* of all releases (noise, rate,
    number) were fixed in advance; the queries themselves may depend on earlier outputs, as training
    steps do. Where later parameters are chosen after seeing earlier outputs, neither number may decide
    what is still admitted: that takes a privacy filter, RDP at one order fixed together with the budget
    (Feldman & Zrnic 2021, arXiv:2008.11193). "rdp" takes the best order afterwards, so it is not that
    filter. "pld" is 5-10% tighter and slower; use it for one experiment that was committed to beforehand.

    At orders that are not whole, dp-accounting bounds the divergence from above, and leaves out low orders
    that do not converge: "rdp" is then up to 1% above the exact value at ε = 14 and 2% at 29, never below.
    Beyond ε of about 30 it stays an upper bound but is no longer monotone in the noise.
    """
    _check_delta(delta)
    if any(release.noise_multiplier == 0 for release in releases):
        return math.inf
    if accountant == "pld":
        return _pld_epsilon(releases, delta)
    _require(accountant == "rdp", "accountant", "'rdp' or 'pld'", accountant)
    return Spending().plus(releases).epsilon(delta)


def epsilon_by_kind(releases: Sequence[Release], delta: float) -> dict[str, float]:
    """ε of the training alone, of everything else alone ("evaluate": tables and statistics), and of all."""
    return {
        "train": epsilon([release for release in releases if release.kind == "train"], delta),
        "evaluate": epsilon([release for release in releases if release.kind != "train"], delta),
        "total": epsilon(releases, delta),
    }


def epsilon_at_several(releases_per_agency: Sequence[Sequence[Release]], delta: float, m: int) -> float:
    """ε of a person known to `m` agencies, each adding its own noise: the worst `m` agencies, composed.

    Each agency has its own split, so the worst part at each. With fewer than `m` agencies, all of them.
    """
    _check_delta(delta)
    _require(type(m) is int and m >= 1, "m", "a whole number from 1", m)
    if any(release.noise_multiplier == 0 for releases in releases_per_agency for release in releases):
        return math.inf
    # worst[j]: undominated curves of a person at j of the agencies seen so far
    worst: list[list[Curve]] = [[np.zeros(())]] + [[] for _ in range(min(m, len(releases_per_agency)))]
    for releases in releases_per_agency:
        here = Spending().plus(releases).people()
        for j in range(len(worst) - 1, 0, -1):
            worst[j] = _undominated([*worst[j], *(past + now for past in worst[j - 1] for now in here)])
    return max(_epsilon_of(curve, delta) for curve in worst[-1])


def noise_for(epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """The smallest noise multiplier, rounded up at 4 decimals, whose `steps` draws cost at most `epsilon`.

    Bisection on RDP, helped by interpolation, between 0.3 and 10,000 (`NOISE_RANGE`): 0.3 where even that
    is enough, ValueError where 10,000 is not. The result never costs more than `epsilon`; above ε of about
    30 it may not be the very smallest (see `epsilon`).
    """
    _check_delta(delta)
    _require(0 < epsilon < math.inf, "epsilon", "above 0 and finite", epsilon)
    Release("train", "all", 1.0, sample_rate, steps)  # the same rules for sample_rate and steps
    orders = _orders_that_reach(epsilon, delta)

    @functools.cache
    def excess(point: int) -> float:
        """log(cost / epsilon) at noise multiplier point / _GRID: at most 0 where there is enough noise."""
        cost = _epsilon_of(steps * _curve(point / _GRID, sample_rate, orders), delta, orders)
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


def _by_part(releases: Iterable[Release]) -> dict[tuple[str, Part], Counter[tuple[float, float]]]:
    """Steps by (noise_multiplier, sample_rate), by (split id, part)."""
    merged: dict[tuple[str, Part], Counter[tuple[float, float]]] = defaultdict(Counter)
    for release in releases:
        merged[release.split_id, release.part][release.noise_multiplier, release.sample_rate] += release.steps
    return merged


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
def _curve(noise_multiplier: float, sample_rate: float, orders: tuple[float, ...] | None = None) -> Curve:
    """RDP of one step at `orders` (dp-accounting's if None); read-only.

    inf where the library has no bound, never below 0 by rounding.
    """
    dp = _dp_accounting()
    accountant = dp.rdp.RdpAccountant(orders, dp.NeighboringRelation.ADD_OR_REMOVE_ONE)
    with _without_warnings():
        accountant.compose(_event(noise_multiplier, sample_rate))
    curve: Curve = np.maximum(accountant.rdp, 0.0)
    curve.flags.writeable = False
    return curve


def _epsilon_of(curve: Curve, delta: float, orders: tuple[float, ...] | None = None) -> float:
    if not curve.any():
        return 0.0
    compute = _dp_accounting().rdp.rdp_privacy_accountant.compute_epsilon
    return float(compute(orders or _orders(), curve.tolist(), delta)[0])


def _pld_epsilon(releases: Sequence[Release], delta: float) -> float:
    """Largest over the assignments of parts; ValueError where the split ids make too many of them."""
    spent = _by_part(releases)
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


def _pld_epsilon_of(events: Counter[tuple[float, float]], delta: float) -> float:
    dp = _dp_accounting()
    accountant = dp.pld.PLDAccountant(neighboring_relation=dp.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for (noise_multiplier, sample_rate), steps in sorted(events.items()):
        accountant.compose(_event(noise_multiplier, sample_rate), steps)
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
    _require(0 < delta < 1, "delta", "in (0, 1)", delta)


def _require(holds: bool, name: str, rule: str, found: object) -> None:
    if not holds:
        raise ValueError(f"{name} must be {rule}, got {found!r}")
