"""What a ledger's people may lose: limits, and the filter that admits a plan or refuses it.

A limit holds for a span (all of life, any 365 days, one purpose, one experiment) and for each viewer that
it names. Its filter (Feldman & Zrnic 2021, arXiv:2008.11193, Thm. 3.1; `federation.renyi`) composes Rényi
divergence at ONE order and stops before the sum passes what (ε, δ) allows at that order. The theorem lets
everything be chosen after seeing earlier outputs (the next plan, its noise, its rate, its steps), except
the order. So the order is chosen when a ledger first meets the limit's key (its span and name) and
viewer, from ε and δ alone, is written into the ledger, and stays there whatever ε a policy states later.
The best order afterwards, which is what an ε is usually computed at, may have been picked by the outputs
themselves, and bounds nothing that was admitted by it. A limit that is added later counts all that the
ledger holds, at an order from its own numbers; that its agency did not add it because of an output is the
agency's word.

Per person: people are split by a hash of their own id, so a person meets one part of a split. A release
over other parts does not depend on that person and costs nothing; the filter holds for each assignment of
parts, and the largest of them is compared with the budget.

A year is a window of 365 days that ends now, in whole days of UTC, and counts what is stamped later than
now too. So whichever way a clock jumps, no window of 365 days of the ledger's own stamps ever holds more
than the limit: the charge of it that was written last was admitted with all the others counted.

Sums are exact: divergences are rounded up to whole units of 2^-64, so taking an open reservation or an old
day out again leaves nothing behind, and every process computes the same from the same ledger.
"""

import functools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal, NoReturn, get_args

from federation import renyi
from federation.privacy import draw_of
from federation.release import VIEWERS, Event, Part, Viewer

Span = Literal["life", "year", "purpose", "experiment"]
Cell = tuple[str, Part]  # split id, part

YEAR = timedelta(days=365)
UNITS = 2**64  # to a divergence of 1
UNBOUNDED = UNITS**2  # stands for a divergence that has no bound; more than any that has one


@dataclass(frozen=True)
class PlanFacts:
    """What a ledger keeps of a plan: `sha256` of the whole, and what limits group by."""

    sha256: str
    run_id: str
    experiment: str
    purpose: str


@dataclass(frozen=True)
class Limit:
    """The most that all releases of a span may cost one person: `epsilon` at `delta`, to each viewer in it.

    `name` is the purpose or experiment that is limited; None limits each of them separately (as it does
    where a named limit stands beside it: both hold). A viewer that is not named is not limited.
    """

    span: Span
    name: str | None
    delta: float
    epsilon: Mapping[Viewer, float]

    def __post_init__(self) -> None:
        _require(self.span in get_args(Span), "span", f"one of {get_args(Span)}", self.span)
        named = self.name is None or self.span in ("purpose", "experiment")
        _require(named, "name", f"left out for the span {self.span!r}", self.name)
        _require(self.name != "", "name", "left out, or not empty", self.name)
        _require(0 < self.delta < 1, "delta", "in (0, 1)", self.delta)
        known = bool(self.epsilon) and set(self.epsilon) <= set(VIEWERS)
        _require(known, "epsilon", f"for some of {VIEWERS}", sorted(self.epsilon))
        for epsilon in self.epsilon.values():
            _require(0 < epsilon < math.inf, "epsilon", "above 0 and finite", epsilon)

    def key(self, plan: PlanFacts) -> str | None:
        """What of the ledger this limit counts for `plan`; None where it does not apply to it."""
        key = key_of(self.span, plan)
        return key if self.name is None or key == f"{self.span} {self.name}" else None


Budget = tuple[Limit, ...]


@dataclass(frozen=True)
class FilterOrder:
    """The order at which the limit `key` is accounted against `viewer`, for good."""

    key: str
    viewer: Viewer
    order: int


@dataclass(frozen=True)
class Line:
    """One limit against one viewer: ε at `delta` and the filter's `order`.

    `name` is the purpose or experiment. `spent` is charged, `claimed` is charged or reserved, `allowed` is
    the limit. 0 where nothing was drawn.
    """

    span: Span
    name: str | None
    viewer: Viewer
    delta: float
    order: int
    spent: float
    claimed: float
    allowed: float


def key_of(span: Span, plan: PlanFacts) -> str:
    """The text that names, in the ledger, what a limit of `span` counts for `plan`."""
    if span == "purpose":
        return f"purpose {plan.purpose}"
    return f"experiment {plan.experiment}" if span == "experiment" else span


def check_budget(budget: Budget) -> None:
    """ValueError where two limits are for the same span and name."""
    for (span, name), count in Counter((limit.span, limit.name) for limit in budget).items():
        found = f"{count} for {span}" + ("" if name is None else f" {name}")
        _require(count == 1, "budget", "one limit for each span and name", found)


def steps_of(events: Iterable[Event]) -> Counter[Event]:
    """Steps by one-step event."""
    steps: Counter[Event] = Counter()
    for event in events:
        steps[_one_step(event)] += event.steps
    return steps


def merged(steps: Mapping[Event, int]) -> tuple[Event, ...]:
    """The inverse of `steps_of`, equal events merged where one event can have several steps."""
    return tuple(each for event, count in steps.items() if count for each in event.repeated(count))


class Tally:
    """Composed divergence of the person who lost most, in units: exact, in any order, also backwards."""

    def __init__(self) -> None:
        self.total = 0
        self._splits: dict[str, dict[Part, int]] = {}

    def add(self, cell: Cell, units: int) -> None:
        """`units` more at `cell`; fewer where it is negative."""
        split, part = cell
        parts = self._splits.setdefault(split, {})
        before = _worst(parts)
        parts[part] = parts.get(part, 0) + units
        self.total += _worst(parts) - before

    def total_with(self, extra: Mapping[Cell, int]) -> int:
        """The total if `extra` were added."""
        total = self.total
        for split in {split for split, _ in extra}:
            parts = self._splits.get(split, {})
            after = Counter(parts) + Counter({part: n for (name, part), n in extra.items() if name == split})
            total += _worst(after) - _worst(parts)
        return total


class Meter:
    """What counts under one key against one viewer, at one order."""

    def __init__(self, fixed: FilterOrder) -> None:
        self.fixed = fixed
        self.spent = Tally()
        self.claimed = Tally()
        self._days: dict[str, Counter[Cell]] | None = defaultdict(Counter) if fixed.key == "year" else None
        self._since = ""

    def charge(self, event: Event, day: str) -> None:
        """Count `event`, which was charged on `day` (ISO 8601)."""
        units = event.steps * self._units(_one_step(event))
        cell = (event.split_id, event.part)
        if self._days is not None:
            self._days[day][cell] += units
        if day >= self._since:
            self.spent.add(cell, units)
            self.claimed.add(cell, units)

    def reserve(self, steps: Mapping[Event, int], sign: Literal[1, -1]) -> None:
        """Count (1) or no longer count (-1) what is reserved."""
        for cell, units in self.cells(steps).items():
            self.claimed.add(cell, sign * units)

    def cells(self, steps: Mapping[Event, int]) -> Counter[Cell]:
        """Units of `steps` by cell."""
        cells: Counter[Cell] = Counter()
        for event, count in steps.items():
            cells[event.split_id, event.part] += count * self._units(event)
        return cells

    def move(self, today: date) -> None:
        """Let a year end `today`; a day that left it and a day that came back are counted anew."""
        since = (today - YEAR).isoformat()
        if self._days is None or since == self._since:
            return
        for day, cells in self._days.items():
            sign = (day >= since) - (day >= self._since)
            for cell, units in cells.items() if sign else ():
                self.spent.add(cell, sign * units)
                self.claimed.add(cell, sign * units)
        self._since = since

    def epsilon(self, units: int, delta: float) -> float:
        """ε at `delta` of `units` at this meter's order."""
        divergence = math.inf if units >= UNBOUNDED else units / UNITS
        return renyi.epsilon_at(divergence, delta, self.fixed.order) if units else 0.0

    def _units(self, event: Event) -> int:
        return _units(event, self.fixed.viewer, self.fixed.order)


@dataclass
class Reservation:
    """Steps that a plan may still take. `plan` None: of a version 1 ledger, it counts everywhere."""

    plan: PlanFacts | None
    steps: Counter[Event]


@dataclass(frozen=True)
class Charge:
    """One charged event. `plan` None: of a version 1 ledger, it counts everywhere."""

    plan: PlanFacts | None
    event: Event
    day: str


class Account:
    """Everything that a ledger has charged or keeps reserved, and what it costs under each limit.

    A meter is made when a limit first asks for it, from all that counts, and kept up from then on.
    """

    def __init__(self) -> None:
        self.charges: list[Charge] = []
        self.open: dict[str, Reservation] = {}
        self.plans: dict[str, PlanFacts] = {}
        self.orders: dict[tuple[str, Viewer], FilterOrder] = {}
        self._grouped: dict[str, list[Charge]] = defaultdict(list)  # by key; "" for those without a plan
        self._meters: dict[tuple[str, Viewer], Meter] = {}

    # --- what happened ------------------------------------------------------------------------------

    def meet(self, plan: PlanFacts) -> None:
        """The plan is known from now on; its first facts stay."""
        self.plans.setdefault(plan.sha256, plan)

    def fix(self, fixed: FilterOrder) -> None:
        """The order is fixed from now on; the first one stays."""
        self.orders.setdefault((fixed.key, fixed.viewer), fixed)

    def reserve(self, sha256: str, events: Iterable[Event]) -> None:
        """The plan may take `events`."""
        self.open[sha256] = Reservation(self.plans.get(sha256), steps_of(events))
        self._count_open(self.open[sha256], self.open[sha256].steps, 1)

    def give_back(self, sha256: str) -> None:
        """What the plan reserved and did not take counts no longer."""
        if sha256 in self.open:
            kept = self.open.pop(sha256)
            self._count_open(kept, kept.steps, -1)

    def charge(self, sha256: str, event: Event, at: str) -> None:
        """`event` was charged at the time `at`; what the plan had reserved of it is used up."""
        charge = Charge(self.plans.get(sha256), event, at[:10])
        self.charges.append(charge)
        for key in _groups(charge.plan):
            self._grouped[key].append(charge)
        kept = self.open.get(sha256)
        covered = self.covered(sha256, steps_of([event]))
        if kept is not None and covered:
            kept.steps -= covered
            self._count_open(kept, covered, -1)
        for meter in self._meters_of(charge.plan):
            meter.charge(event, charge.day)

    def covered(self, sha256: str, steps: Counter[Event]) -> Counter[Event]:
        """What of `steps` the plan has reserved."""
        kept = self.open.get(sha256)
        return Counter() if kept is None else steps & kept.steps

    # --- what may happen ----------------------------------------------------------------------------

    def admit(
        self, plan: PlanFacts, extra: Mapping[Event, int], budget: Budget, today: date
    ) -> list[FilterOrder]:
        """The orders that are fixed by admitting `extra`; `Refused(BUDGET)` where it does not fit a limit."""
        known = self.plans.get(plan.sha256, plan)
        rules = [(limit, key) for limit in budget if (key := limit.key(known)) is not None]
        orders = {}
        for limit, key in rules:
            for viewer in limit.epsilon:
                meter = self._meter(self._order(key, viewer, rules), today)
                orders[key, viewer] = meter.fixed
                after = meter.claimed.total_with(meter.cells(extra))
                if after > _most(limit, meter.fixed):
                    _refuse(limit, meter, after)
        return [fixed for where, fixed in orders.items() if where not in self.orders]

    def lines(self, budget: Budget, today: date) -> Iterator[Line]:
        """Each limit against each viewer, for each purpose or experiment that the ledger knows."""
        for limit in budget:
            for key in self._known_keys(limit):
                _, _, name = key.partition(" ")
                rules = [(other, key) for other in budget if _may_count(other, key)]
                for viewer, allowed in limit.epsilon.items():
                    meter = self._meter(self._order(key, viewer, rules), today)
                    spent, claimed = (
                        meter.epsilon(tally.total, limit.delta) for tally in (meter.spent, meter.claimed)
                    )
                    yield Line(
                        limit.span,
                        name or None,
                        viewer,
                        limit.delta,
                        meter.fixed.order,
                        spent,
                        claimed,
                        allowed,
                    )

    def _known_keys(self, limit: Limit) -> list[str]:
        if limit.name is not None:
            return [f"{limit.span} {limit.name}"]
        if limit.span in ("life", "year"):
            return [limit.span]
        return list(dict.fromkeys(key_of(limit.span, plan) for plan in self.plans.values()))

    def _order(self, key: str, viewer: Viewer, rules: Sequence[tuple[Limit, str]]) -> FilterOrder:
        """The order of `key` and `viewer`: the fixed one, else the one that its tightest limit would fix."""
        fixed = self.orders.get((key, viewer))
        if fixed is not None:
            return fixed
        limits = [limit for limit, other in rules if other == key and viewer in limit.epsilon]
        order = max(renyi.filter_order(limit.epsilon[viewer], limit.delta) for limit in limits)
        return FilterOrder(key, viewer, order)

    # --- meters -------------------------------------------------------------------------------------

    def _meter(self, fixed: FilterOrder, today: date) -> Meter:
        where = (fixed.key, fixed.viewer)
        meter = self._meters.get(where)
        if meter is None or meter.fixed != fixed:
            meter = self._meters[where] = self._composed(fixed)
        meter.move(today)
        return meter

    def _composed(self, fixed: FilterOrder) -> Meter:
        meter = Meter(fixed)
        grouped = fixed.key not in ("life", "year")
        for charge in self._grouped[""] + self._grouped[fixed.key] if grouped else self.charges:
            meter.charge(charge.event, charge.day)
        for kept in self.open.values():
            if kept.plan is None or fixed.key in _keys(kept.plan):
                meter.reserve(kept.steps, 1)
        return meter

    def _count_open(self, kept: Reservation, steps: Mapping[Event, int], sign: Literal[1, -1]) -> None:
        for meter in self._meters_of(kept.plan):
            meter.reserve(steps, sign)

    def _meters_of(self, plan: PlanFacts | None) -> list[Meter]:
        """The meters that count what `plan` does."""
        if plan is None:
            return list(self._meters.values())
        wheres = ((key, viewer) for key in _keys(plan) for viewer in VIEWERS)
        return [meter for where in wheres if (meter := self._meters.get(where)) is not None]


def _keys(plan: PlanFacts) -> tuple[str, ...]:
    return tuple(key_of(span, plan) for span in get_args(Span))


def _groups(plan: PlanFacts | None) -> tuple[str, ...]:
    return ("",) if plan is None else (key_of("purpose", plan), key_of("experiment", plan))


def _may_count(limit: Limit, key: str) -> bool:
    span, _, name = key.partition(" ")
    return limit.span == span and limit.name in (None, name)


def _worst(parts: Mapping[Part, int]) -> int:
    """A person is in one part, and in what is released over all of them."""
    own = max((units for part, units in parts.items() if part != "all"), default=0)
    return parts.get("all", 0) + own


@functools.lru_cache(maxsize=65_536)
def _one_step(event: Event) -> Event:
    return event.one_step()


@functools.lru_cache(maxsize=65_536)
def _units(event: Event, viewer: Viewer, order: int) -> int:
    """Divergence at `order` of one step of `event`, in units, rounded up."""
    try:
        divergence = draw_of(event, viewer).divergence(order)
    except ArithmeticError:  # a number beyond floats: no bound can be computed
        return UNBOUNDED
    return math.ceil(divergence * UNITS) if divergence < UNITS else UNBOUNDED


def _most(limit: Limit, fixed: FilterOrder) -> int:
    """The most units that `limit` allows; below 0 where its order cannot show so small an ε."""
    return math.floor(renyi.rdp_budget(limit.epsilon[fixed.viewer], limit.delta, fixed.order) * UNITS)


def _require(holds: bool, name: str, rule: str, found: object) -> None:
    if not holds:
        raise ValueError(f"limit.{name} must be {rule}, got {found!r}")


def _refuse(limit: Limit, meter: Meter, after: int) -> NoReturn:
    from federation.plan import Reason, Refused  # here: it takes seconds and is rarely needed

    fixed = meter.fixed
    where = f"the limit {fixed.key!r} against {fixed.viewer!r}, at order {fixed.order}"
    allowed = f"the budget is {limit.epsilon[fixed.viewer]:g}"
    if _most(limit, fixed) < 0:
        least = renyi.epsilon_at(0.0, limit.delta, fixed.order)
        raise Refused(
            Reason.BUDGET,
            f"budget: {allowed} at delta {limit.delta:g}, and nothing below {least:.4g} can be shown under"
            f" {where}, which never changes: state a larger epsilon",
        )
    would, now = (meter.epsilon(units, limit.delta) for units in (after, meter.claimed.total))
    wait = ", or wait until a release is older than 365 days" if limit.span == "year" else ""
    raise Refused(
        Reason.BUDGET,
        f"budget: epsilon would be {would:.4g} at delta {limit.delta:g}, {allowed} and {now:.4g} of it is"
        f" charged or reserved, under {where}: ask for fewer steps or more noise, or give back the"
        f" reservation of a plan that has ended{wait}",
    )
