"""Limits and their filter: whatever is asked in whatever order, no limit is ever exceeded.

`check_laws` computes every divergence anew, from what the file says and with `federation.privacy.Spending`.
"""

import contextlib
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clients import budget as budgets
from clients.budget import (
    Budget,
    FilterOrder,
    Limit,
    Line,
    Meter,
    PlanFacts,
    Span,
    Tally,
    check_budget,
    merged,
)
from clients.ledger import Entry, Ledger
from federation import renyi
from federation.plan import Reason, Refused
from federation.privacy import Event, LaplaceRelease, Release, SharedRelease, Spending, epsilon
from federation.release import VIEWERS, Part, Viewer

DELTA = 1e-5
TRAIN = Release("train", "train", 2.0, 0.1, 50)
TABLE = Release("evaluate", "tune", 8.0, 1.0, 1)
SHARED = SharedRelease("train", "train", 1000.0, 2_000_000, 64, 5, 1, 1, 0.1, 50)
COHORT = LaplaceRelease("cohort", "all", 0.1)
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
CARE, COURT = PlanFacts("a" * 64, "run-a", "heart", "care"), PlanFacts("b" * 64, "run-b", "jail", "court")


@dataclass
class Clock:
    """A clock that stands until it is told to jump."""

    at: datetime = START

    def __call__(self) -> datetime:
        return self.at

    def jump(self, days: float) -> None:
        self.at += timedelta(days=days)


@dataclass
class Desk:
    """Opens one ledger again and again: another process, another budget, another day."""

    path: Path
    clock: Clock = field(default_factory=Clock)

    def open(self, *limits: Limit, **other: Any) -> Ledger:
        given = {"budget": limits or None, "scope": "lifetime", "people": "p", "split_id": "s", **other}
        return Ledger(self.path, now=self.clock, **given)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "ledger.db")


def everyone(epsilon: float) -> dict[Viewer, float]:
    return dict.fromkeys(VIEWERS, epsilon)


def life(epsilon: float, delta: float = DELTA) -> Limit:
    return Limit("life", None, delta, everyone(epsilon))


def steps(event: Event, count: int) -> Event:
    """`count` steps of `event`; a histogram is always one."""
    return event if isinstance(event, LaplaceRelease) else replace(event, steps=count)


def plan(name: str, experiment: str = "heart", purpose: str = "care") -> PlanFacts:
    return PlanFacts(name, f"run of {name}", experiment, purpose)


def loss(events: Iterable[Event], viewer: Viewer, order: int) -> float:
    """Divergence at `order` of the person who lost most."""
    return max(float(curve[0]) for curve in Spending(viewer, (order,)).plus(events).people() if curve.shape)


def room(event: Event, limit: float, delta: float = DELTA, viewer: Viewer = "coordinator") -> int:
    """How many steps of `event` a filter for ε = `limit` admits."""
    order = renyi.filter_order(limit, delta)
    return math.floor(renyi.rdp_budget(limit, delta, order) / loss([steps(event, 1)], viewer, order))


# --- the laws, computed anew ------------------------------------------------------------------------


def check_laws(entries: Sequence[Entry], budget: Budget) -> int:
    """No limit exceeded at any time, at orders that never moved. How many (entry, limit, viewer) were seen.

    After each reservation and charge, all that was charged and all that was reserved, of what the limit
    counts, is composed at the order that the file states. A year counts what is stamped less than 365
    days before the entry, or after it.
    """
    orders: dict[tuple[str, Viewer], int] = {}
    plans: dict[str, PlanFacts] = {}
    charged: list[tuple[PlanFacts, Event, datetime]] = []
    kept: dict[str, Counter[Event]] = {}
    seen = 0
    for entry in entries:
        at = datetime.fromisoformat(entry.at)
        if entry.plan is not None:
            plans[entry.plan.sha256] = entry.plan
        elif entry.fixed is not None:
            assert (entry.fixed.key, entry.fixed.viewer) not in orders
            orders[entry.fixed.key, entry.fixed.viewer] = entry.fixed.order
        elif entry.action == "reserve":
            kept[entry.plan_sha256] = one_step_each(entry.releases)
        elif entry.action == "return":
            kept.pop(entry.plan_sha256, None)
        elif entry.action == "charge":
            (event,) = entry.releases
            charged.append((plans[entry.plan_sha256], event, at))
            if entry.plan_sha256 in kept:
                kept[entry.plan_sha256] -= one_step_each([event])
        if entry.action not in ("reserve", "charge"):
            continue
        mine = plans[entry.plan_sha256]
        for limit in budget:
            key = budgets.key_of(limit.span, mine)
            if limit.name is not None and key != f"{limit.span} {limit.name}":
                continue
            since = at - timedelta(days=365) if limit.span == "year" else datetime.min.replace(tzinfo=UTC)
            counted = [e for p, e, t in charged if budgets.key_of(limit.span, p) == key and t > since]
            for sha256, rest in kept.items():
                if budgets.key_of(limit.span, plans[sha256]) == key:
                    counted += merged(rest)
            for viewer, allowed in limit.epsilon.items():
                order = orders[key, viewer]
                most = renyi.rdp_budget(allowed, limit.delta, order)
                assert loss(counted, viewer, order) <= most * (1 + 1e-9), (entry, limit, viewer)
                seen += 1
    return seen


def one_step_each(events: Iterable[Event]) -> Counter[Event]:
    count: Counter[Event] = Counter()
    for event in events:
        count[steps(event, 1)] += event.steps
    return count


MIXED: Budget = (
    Limit("life", None, DELTA, everyone(6.0)),
    Limit("year", None, DELTA, {"public": 3.0, "coordinator": 4.0}),
    Limit("purpose", None, 1e-6, everyone(4.0)),
    Limit("purpose", "care", DELTA, {"everybody": 2.5}),
    Limit("experiment", None, DELTA, everyone(2.0)),
)
PLANS = [
    plan(f"{n}", experiment, purpose)
    for n, (experiment, purpose) in enumerate(
        [("heart", "care"), ("heart", "court"), ("jail", "care"), ("jail", "court"), ("heart", "care")]
    )
]
EVENTS: list[Event] = [
    TRAIN,
    SHARED,
    TABLE,
    replace(TRAIN, noise_multiplier=0.9, sample_rate=0.02),
    Release("evaluate", "test", 6.0, 1.0, 2),
    Release("stats", "all", 10.0, 1.0, 1),
    replace(SHARED, part="tune", split_id="another", sensitivity=700.0),
    COHORT,
    LaplaceRelease("map", "all", 0.5),
    LaplaceRelease("cohort", "test", 1.0, "another"),
]
events = st.builds(steps, st.sampled_from(EVENTS), st.integers(1, 120))
moves = st.one_of(
    st.tuples(st.just("reserve"), st.sampled_from(PLANS), st.lists(events, min_size=1, max_size=4)),
    st.tuples(st.just("charge"), st.sampled_from(PLANS), st.lists(events, min_size=1, max_size=3)),
    st.tuples(st.just("use"), st.sampled_from(PLANS), st.integers(1, 60)),
    st.tuples(st.just("return"), st.sampled_from(PLANS), st.none()),
    st.tuples(st.just("jump"), st.integers(-400, 400), st.none()),
    st.tuples(st.just("reopen"), st.none(), st.none()),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(moves, max_size=20), st.booleans())
def test_whatever_happens_no_limit_is_exceeded_and_the_file_tells_the_same(
    tmp_path_factory: pytest.TempPathFactory, story: list[tuple[str, Any, Any]], two: bool
) -> None:
    desk = Desk(tmp_path_factory.mktemp("ledger") / "ledger.db")
    ledger = desk.open(*MIXED)
    other = desk.open(*MIXED) if two else ledger  # two processes that take turns
    charged = 0
    reasons = set()
    for action, what, how in story:
        before = ledger.head, ledger.releases(), ledger.reservations()
        ledger, other = other, ledger
        try:
            if action == "reserve":
                ledger.reserve(what, how)
            elif action == "charge":
                ledger.charge(what, "order", how)
                charged += sum(event.steps for event in how)
            elif action == "use":  # what was reserved, in pieces
                for event in ledger.reservations().get(what.sha256, ())[:1]:
                    taken = min(how, event.steps)
                    ledger.charge(what, "order", [steps(event, taken)])
                    charged += taken
            elif action == "return":
                ledger.release_reservation(what)
                assert ledger.releases() == before[1]  # what is charged never comes back
            elif action == "jump":
                desk.clock.jump(what)
            else:
                ledger.close()
                ledger = desk.open(*MIXED)
                other = ledger if not two else other
        except Refused as refused:
            reasons.add(refused.reason)
            assert (ledger.head, ledger.releases(), ledger.reservations()) == before
    assert reasons <= {Reason.BUDGET}
    ledger.verify()
    check_laws(ledger.entries(), MIXED)
    assert sum(event.steps for event in ledger.releases()) == charged
    with desk.open(*MIXED) as again:
        assert (again.spent(), again.head) == (ledger.spent(), ledger.head)
        assert again.releases() == other.releases() == ledger.releases()
        assert again.reservations() == other.reservations() == ledger.reservations()
    ledger.close()
    other.close()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("xyz"), st.sampled_from(("train", "tune", "test", "all")), st.integers(0, 99)
        ),
        max_size=30,
    ),
    st.data(),
)
def test_a_tally_is_exact_and_goes_back_exactly(
    moves: list[tuple[str, Part, int]], data: st.DataObject
) -> None:
    def worst(cells: Counter[tuple[str, Part]]) -> int:
        """The definition: over all dealings of the splits into parts."""
        return sum(
            cells[split, "all"] + max(cells[split, part] for part in ("train", "tune", "test"))
            for split in "xyz"
        )

    tally, cells = Tally(), Counter[tuple[str, Part]]()
    for split, part, units in moves:
        extra = {(split, part): units}
        expected = worst(cells + Counter(extra))
        assert tally.total_with(extra) == expected
        tally.add((split, part), units)
        cells[split, part] += units
        assert tally.total == expected
    for split, part, units in data.draw(st.permutations(moves)):
        tally.add((split, part), -units)
        cells[split, part] -= units
        assert tally.total == worst(cells)
    assert tally.total == 0


@pytest.mark.parametrize("event", EVENTS, ids=str)
@pytest.mark.parametrize("viewer", VIEWERS)
def test_a_meter_counts_what_the_accountant_does(event: Event, viewer: Viewer) -> None:
    for order in (2, 5, 32, 300):
        meter = Meter(FilterOrder("life", viewer, order))
        meter.charge(event, "2026-01-01")
        assert meter.spent.total / budgets.UNITS == pytest.approx(loss([event], viewer, order), rel=1e-12)
        exact = event.steps * Fraction(loss([steps(event, 1)], viewer, order)) * budgets.UNITS
        assert exact <= meter.spent.total <= exact + event.steps  # rounded up, a unit for each step at most


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 1000), st.integers(1, 3)), max_size=25))
def test_a_year_counts_what_is_in_it_however_the_days_come(moves: list[tuple[bool, int, int]]) -> None:
    """Charges are stamped on any day (other processes have other clocks), and the year ends on any day."""
    meter = Meter(FilterOrder("year", "public", 8))
    one = Meter(FilterOrder("life", "public", 8))
    one.charge(steps(TABLE, 1), "2026-01-01")
    charged: list[tuple[date, int]] = []
    today = START.date()
    meter.move(today)
    for moves_clock, days, count in moves:
        day = START.date() + timedelta(days)
        if moves_clock:
            today = day
            meter.move(today)
        else:
            meter.charge(steps(TABLE, count), day.isoformat())
            charged.append((day, count))
        inside = sum(count for day, count in charged if day >= today - timedelta(days=365))
        assert meter.spent.total == meter.claimed.total == inside * one.spent.total


# --- adversaries ------------------------------------------------------------------------------------


def most_that_fits(charge: Callable[[int], None]) -> int:
    """The adversary's squeeze: the largest count that is not refused, by bisection, then it is charged."""
    low, high = 0, 100_000
    while high - low > 0:
        middle = (low + high + 1) // 2
        try:
            charge(middle)
            return middle
        except Refused:
            high = middle - 1
    return low


@pytest.mark.parametrize("seed", range(4))
def test_an_adversary_who_chooses_each_plan_after_each_answer_cannot_exceed(desk: Desk, seed: int) -> None:
    """Chooses noise, rate, steps, part, split, purpose, time; reserves and returns; squeezes what is left."""
    chance = random.Random(seed)
    answers = 0
    ledger = desk.open(*MIXED)
    for move in range(60):
        event: Event = replace(
            TRAIN,
            part=chance.choice(["train", "tune", "test", "all"]),
            noise_multiplier=chance.uniform(0.5, 20) * (1 + answers % 3),
            sample_rate=chance.choice([1.0, 0.3, 0.05, 0.001]),
            split_id=chance.choice(["s", f"new {move}"]),
        )
        if chance.random() < 0.3:
            event = replace(SHARED, sensitivity=chance.uniform(50, 3000), split_id=event.split_id)
        mine = plan(f"{move % 9}", chance.choice(["heart", "jail"]), chance.choice(["care", "court"]))
        with contextlib.suppress(Refused):
            if chance.random() < 0.3:
                ledger.reserve(mine, [event, TABLE])
        if chance.random() < 0.3:
            ledger.release_reservation(mine)
        answers += most_that_fits(lambda count: ledger.charge(mine, "o", [steps(event, count)]))  # noqa: B023
        desk.clock.jump(chance.choice([0, 0, 1, 200, 366, -500]))
        if chance.random() < 0.2:
            ledger.close()
            ledger = desk.open(*MIXED)
    with ledger:
        assert check_laws(ledger.entries(), MIXED) > 100
        lines = ledger.spent()
    assert all(line.spent <= line.claimed <= line.allowed * (1 + 1e-9) for line in lines)
    assert max(line.spent / line.allowed for line in lines) > 0.99  # it did squeeze


def test_the_last_step_that_fits_is_the_last(desk: Desk) -> None:
    with desk.open(life(2.0)) as ledger:
        fits = room(TRAIN, 2.0)
        for _ in range(fits):
            ledger.charge(CARE, "o", [steps(TRAIN, 1)])
        with pytest.raises(Refused):
            ledger.charge(CARE, "o", [steps(TRAIN, 1)])
        assert len(ledger.releases()) == fits


@pytest.mark.parametrize("epsilon", [0.1, 0.5])
def test_the_filter_admits_histograms_at_its_fixed_order_alone(desk: Desk, epsilon: float) -> None:
    """Neither the sum of ε nor the best order admits anything: both would be chosen after the outputs."""
    cohort, limit = replace(COHORT, epsilon=epsilon), 2.0
    fits = room(cohort, limit)
    order = renyi.filter_order(limit, DELTA)
    with desk.open(life(limit)) as ledger:
        ledger.reserve(CARE, [cohort] * (fits // 2))
        ledger.charge(CARE, "1", [cohort] * (fits // 2))
        with pytest.raises(Refused, match="epsilon would be"):
            ledger.reserve(COURT, [cohort] * (fits - fits // 2 + 1))
        for _ in range(fits - fits // 2):
            ledger.charge(COURT, "2", [cohort])
        head = ledger.head
        for again in (cohort, replace(cohort, part="test"), replace(cohort, epsilon=2 * epsilon)):
            with pytest.raises(Refused):
                ledger.charge(COURT, "3", [again])
        assert ledger.head == head
        assert check_laws(ledger.entries(), (life(limit),)) > fits - fits // 2
        (line,) = {replace(each, viewer="public") for each in ledger.spent()}
        spent = fits * renyi.laplace(epsilon, order)
        assert line.spent == pytest.approx(renyi.epsilon_at(spent, DELTA, order)) != fits * epsilon
        assert ledger.epsilon(DELTA) <= min(line.spent, fits * epsilon) * (1 + 1e-9)


def random_plan(chance: random.Random, name: str) -> list[Event]:
    """A training, with its agency's own or shared noise, and 5 to 25 score tables, on new people each."""
    rate, count = chance.uniform(0.01, 0.1), chance.randrange(50, 600)
    train: Event = Release("train", "train", chance.uniform(1.0, 3.0), rate, count)
    if chance.random() < 0.4:
        train = replace(SHARED, sensitivity=chance.uniform(700, 1500), sample_rate=rate, steps=count)
    tables = chance.randrange(5, 26)
    return [train, Release("evaluate", "train", chance.uniform(8, 20), 1.0, tables)]


def test_the_filter_admits_more_mixed_plans_than_basic_composition(desk: Desk) -> None:
    """120 plans come one by one, each is admitted whole or refused. Counts are of this mix and seed.

    Basic composition, told in advance that there are 120 plans: each at delta / 120, ε adds up.
    """
    chance = random.Random(7)
    plans = [random_plan(chance, str(number)) for number in range(120)]
    limit = Limit("life", None, DELTA, {"coordinator": 8.0})
    admitted = 0
    with desk.open(limit) as ledger:
        for number, wanted in enumerate(plans):
            with contextlib.suppress(Refused):
                ledger.charge(plan(str(number)), "o", wanted)
                admitted += 1
        check_laws(ledger.entries(), (limit,))
    spent, basic = 0.0, 0
    for wanted in plans:
        own = epsilon(wanted, DELTA / 120)
        if spent + own <= 8:
            spent, basic = spent + own, basic + 1
    print(f"of 120 mixed plans at ε = 8: filter {admitted}, basic composition {basic}")
    assert (admitted, basic) == (10, 4)


# --- the order --------------------------------------------------------------------------------------


def orders_of(ledger: Ledger) -> list[FilterOrder]:
    return [entry.fixed for entry in ledger.entries() if entry.fixed is not None]


def test_the_order_is_fixed_once_whatever_the_policy_says_later(desk: Desk) -> None:
    first = renyi.filter_order(8.0, DELTA)
    with desk.open(life(8.0)) as ledger:
        ledger.charge(CARE, "1", [TRAIN])
        fixed = orders_of(ledger)
        assert fixed == [FilterOrder("life", viewer, first) for viewer in VIEWERS]
    for other, delta in ((5.0, DELTA), (20.0, DELTA), (20.0, 1e-7)):
        assert renyi.filter_order(other, delta) != first
        with desk.open(life(other, delta)) as ledger:
            ledger.charge(COURT, "2", [steps(TRAIN, 1)])
            assert orders_of(ledger) == fixed
            assert {line.order for line in ledger.spent()} == {first}
            assert [line.allowed for line in ledger.spent()] == [other] * 3


def test_what_fits_afterwards_is_counted_at_the_first_order(desk: Desk) -> None:
    with desk.open(life(1.0)) as ledger:
        ledger.charge(CARE, "1", [steps(TRAIN, 1)])
    order = renyi.filter_order(1.0, DELTA)
    assert order != renyi.filter_order(8.0, DELTA)
    fits = math.floor(renyi.rdp_budget(8.0, DELTA, order) / loss([steps(TRAIN, 1)], "public", order))
    with desk.open(life(8.0)) as ledger:
        with pytest.raises(Refused):
            ledger.charge(CARE, "2", [steps(TRAIN, fits)])
        ledger.charge(CARE, "2", [steps(TRAIN, fits - 1)])


def test_a_refusal_fixes_no_order(desk: Desk) -> None:
    with desk.open(life(1.0)) as ledger:
        head = ledger.head
        with pytest.raises(Refused):
            ledger.reserve(CARE, [steps(TRAIN, 10_000)])
        assert ledger.head == head
    with desk.open(life(8.0)) as ledger:
        ledger.reserve(CARE, [TRAIN])
        assert {fixed.order for fixed in orders_of(ledger)} == {renyi.filter_order(8.0, DELTA)}


def test_each_purpose_and_viewer_has_its_own_order(desk: Desk) -> None:
    limit = Limit("purpose", None, DELTA, {"public": 1.0, "everybody": 8.0})
    public_and_everybody: tuple[tuple[Viewer, int], ...] = (
        ("public", renyi.filter_order(1.0, DELTA)),
        ("everybody", renyi.filter_order(8.0, DELTA)),
    )
    with desk.open(limit) as ledger:
        for facts in (CARE, COURT, CARE):
            ledger.charge(facts, "o", [steps(TRAIN, 1)])
        assert orders_of(ledger) == [
            FilterOrder(f"purpose {purpose}", viewer, order)
            for purpose in ("care", "court")
            for viewer, order in public_and_everybody
        ]


def test_a_named_limit_holds_beside_the_one_for_each(desk: Desk) -> None:
    both = (Limit("purpose", None, DELTA, everyone(8.0)), Limit("purpose", "care", DELTA, everyone(1.0)))
    with desk.open(*both) as ledger:
        with pytest.raises(Refused, match="the budget is 1 and"):
            ledger.charge(CARE, "o", [steps(TRAIN, room(TRAIN, 1.0) + 1)])
        ledger.charge(CARE, "o", [steps(TRAIN, room(TRAIN, 1.0))])
        ledger.charge(COURT, "o", [steps(TRAIN, room(TRAIN, 8.0))])
        check_laws(ledger.entries(), both)


def test_a_limit_that_is_added_later_counts_what_was_charged_before(desk: Desk) -> None:
    with desk.open() as ledger:
        ledger.charge(CARE, "1", [TRAIN])
        ledger.reserve(CARE, [TRAIN])
    left = room(TRAIN, 3.0) - 100
    for span, facts in (("life", COURT), ("purpose", replace(CARE, sha256="c"))):
        with desk.open(Limit(span, None, DELTA, everyone(3.0))) as ledger:  # type: ignore[arg-type]
            with pytest.raises(Refused):
                ledger.reserve(facts, [steps(TRAIN, left + 1)])
            ledger.reserve(facts, [steps(TRAIN, left)])
            ledger.release_reservation(facts)


# --- what counts under a limit ----------------------------------------------------------------------


@pytest.mark.parametrize("span", ["purpose", "experiment"])
def test_purposes_and_experiments_do_not_share_a_budget(desk: Desk, span: Span) -> None:
    fits = room(TRAIN, 2.0)
    with desk.open(Limit(span, None, DELTA, everyone(2.0))) as ledger:
        for facts in (CARE, COURT):
            ledger.charge(facts, "o", [steps(TRAIN, fits)])
            with pytest.raises(Refused):
                ledger.charge(facts, "o", [steps(TRAIN, 1)])
    with desk.open(life(2.0)) as ledger, pytest.raises(Refused):
        ledger.charge(COURT, "o", [steps(TRAIN, 1)])


def test_a_year_comes_back_and_a_life_does_not(desk: Desk) -> None:
    fits = room(TRAIN, 2.0)
    year, whole = Limit("year", None, DELTA, everyone(2.0)), life(2.5)
    with desk.open(year) as ledger:
        ledger.charge(CARE, "1", [steps(TRAIN, fits)])
        desk.clock.jump(364)
        with pytest.raises(Refused, match="or wait until a release is older than 365 days"):
            ledger.charge(CARE, "2", [steps(TRAIN, 1)])
        assert ledger.spent()[0].spent == pytest.approx(2.0, rel=0.02)
        desk.clock.jump(2)
        assert ledger.spent()[0].spent == 0
        ledger.charge(CARE, "2", [steps(TRAIN, fits)])
        with pytest.raises(Refused):
            ledger.charge(CARE, "3", [steps(TRAIN, 1)])
    with desk.open(whole) as ledger, pytest.raises(Refused):
        ledger.charge(CARE, "3", [steps(TRAIN, 1)])


def test_a_reservation_counts_in_the_year_that_ends_now(desk: Desk) -> None:
    fits = room(TRAIN, 2.0)
    with desk.open(Limit("year", None, DELTA, everyone(2.0))) as ledger:
        ledger.reserve(CARE, [steps(TRAIN, fits)])
        desk.clock.jump(800)
        with pytest.raises(Refused):
            ledger.reserve(COURT, [steps(TRAIN, 1)])
        ledger.charge(CARE, "1", [steps(TRAIN, fits)])
        desk.clock.jump(366)
        ledger.reserve(COURT, [steps(TRAIN, fits)])


def test_a_clock_that_is_set_back_brings_back_what_it_had_freed(desk: Desk) -> None:
    fits = room(TRAIN, 2.0)
    budget = (Limit("year", None, DELTA, everyone(2.0)),)
    with desk.open(*budget) as ledger:
        ledger.charge(CARE, "1", [steps(TRAIN, fits)])
        desk.clock.jump(4000)
        ledger.charge(CARE, "2", [steps(TRAIN, fits // 2)])
        desk.clock.jump(-4000)
        assert ledger.spent()[0].spent > 2.0  # both: one in the year, one stamped later than now
        for back in (0, 100, 200):
            desk.clock.jump(back)
            with pytest.raises(Refused):
                ledger.charge(CARE, "3", [steps(TRAIN, 1)])
        check_laws(ledger.entries(), budget)


def test_shared_noise_is_charged_to_each_viewer_by_what_it_faces(desk: Desk) -> None:
    with desk.open(life(8.0)) as ledger:
        ledger.charge(CARE, "1", [SHARED])
        lines = {line.viewer: line for line in ledger.spent()}
    order = renyi.filter_order(8.0, DELTA)
    for viewer, shares in (("public", 4), ("coordinator", 3), ("everybody", 1)):
        z = math.sqrt(shares * SHARED.share_variance) / SHARED.sensitivity  # the Gaussian with that variance
        alike = Spending(orders=(order,)).plus([Release("train", "train", z, 0.1, 50)]).people()[0][0]
        found = lines[viewer]  # type: ignore[index]
        assert found.spent == pytest.approx(renyi.epsilon_at(float(alike), DELTA, order), rel=1e-9)
    assert lines["public"].spent < lines["coordinator"].spent < lines["everybody"].spent


@pytest.mark.parametrize("viewer", VIEWERS)
def test_the_limit_of_any_viewer_refuses_on_its_own(desk: Desk, viewer: Viewer) -> None:
    fits = room(SHARED, 2.0, viewer=viewer)
    with desk.open(Limit("life", None, DELTA, everyone(1000.0) | {viewer: 2.0})) as ledger:
        with pytest.raises(Refused, match=f"against '{viewer}'"):
            ledger.charge(CARE, "1", [steps(SHARED, fits + 1)])
        ledger.charge(CARE, "1", [steps(SHARED, fits)])


def test_own_noise_costs_every_viewer_the_same(desk: Desk) -> None:
    with desk.open(life(8.0)) as ledger:
        ledger.charge(CARE, "1", [TRAIN, TABLE])
        assert len({line.spent for line in ledger.spent()}) == 1


def test_no_budget_refuses_nothing_and_fixes_nothing(desk: Desk) -> None:
    with desk.open() as ledger:
        ledger.reserve(CARE, [steps(TRAIN, 10**6)])
        ledger.charge(CARE, "1", [steps(replace(TRAIN, noise_multiplier=0.0), 10**6), SHARED])
        assert orders_of(ledger) == []
        assert ledger.spent() == []


# --- refusals ---------------------------------------------------------------------------------------


def test_a_refusal_names_the_limit_the_viewer_and_what_to_do(desk: Desk) -> None:
    with desk.open(Limit("purpose", "care", DELTA, everyone(2.0))) as ledger:
        ledger.reserve(CARE, [TRAIN])
        with pytest.raises(Refused) as refused:
            ledger.charge(plan("c"), "1", [steps(TRAIN, 1000)])
    order = renyi.filter_order(2.0, DELTA)
    would, now = (
        renyi.epsilon_at(loss([steps(TRAIN, count)], "public", order), DELTA, order) for count in (1050, 50)
    )
    assert refused.value.reason is Reason.BUDGET
    assert refused.value.sentence == (
        f"budget: epsilon would be {would:.4g} at delta 1e-05, the budget is 2 and {now:.4g} of it is charged or"
        f" reserved, under the limit 'purpose care' against 'public', at order {order}: ask for fewer steps or more"
        " noise, or give back the reservation of a plan that has ended"
    )


@pytest.mark.parametrize("act", ["reserve", "charge"])
def test_a_budget_that_no_order_can_show_says_so(desk: Desk, act: str) -> None:
    tiny = 1e-4
    least = renyi.epsilon_at(0.0, 1e-12, renyi.filter_order(tiny, 1e-12))
    with desk.open(life(tiny, 1e-12)) as ledger:
        head = ledger.head
        with pytest.raises(Refused, match=f"nothing below {least:.4g} can be shown") as refused:
            ledger.reserve(CARE, [TRAIN]) if act == "reserve" else ledger.charge(CARE, "1", [TRAIN])
        assert refused.value.reason is Reason.BUDGET
        assert ledger.head == head
        assert [(line.spent, line.allowed) for line in ledger.spent()] == [(0, tiny)] * 3


def test_a_budget_that_is_lowered_below_what_its_order_shows_says_so(desk: Desk) -> None:
    with desk.open(life(8.0)) as ledger:
        ledger.charge(CARE, "1", [TRAIN])
    with desk.open(life(0.5)) as ledger, pytest.raises(Refused, match=r"can be shown under .*at order 4"):
        ledger.charge(CARE, "2", [TRAIN])


@pytest.mark.parametrize(
    "event",
    [
        replace(TRAIN, noise_multiplier=0.0),
        replace(TRAIN, noise_multiplier=0.001, sample_rate=1.0),
        replace(SHARED, sensitivity=1e300),
        replace(SHARED, share_variance=1, dimension=10**400),
        replace(SHARED, steps=10**40),
        replace(COHORT, epsilon=1e30),
    ],
    ids=[
        "no noise",
        "hardly any",
        "no noise to speak of",
        "not a sum of Gaussians",
        "for ever",
        "no Laplace noise",
    ],
)
def test_what_has_no_bound_fits_no_budget_and_stays_refused(desk: Desk, event: Event) -> None:
    with desk.open(life(100.0)) as ledger:
        head = ledger.head
        for _ in range(2):
            with pytest.raises(Refused, match="epsilon would be"):
                ledger.charge(CARE, "1", [event])
        assert ledger.head == head
        ledger.charge(CARE, "1", [TRAIN])
    with desk.open() as ledger:
        ledger.charge(CARE, "2", [event])
    with desk.open(life(100.0)) as ledger:
        with pytest.raises(Refused):
            ledger.charge(CARE, "3", [steps(TRAIN, 1)])
        assert ledger.spent()[0].spent > 1e4


def test_a_vanishing_loss_is_not_taken_for_none(desk: Desk) -> None:
    with desk.open(life(1.0)) as ledger:
        ledger.charge(CARE, "1", [replace(TRAIN, noise_multiplier=1e200, steps=10**6)])
        assert ledger.spent()[0].spent > 0


# --- limits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("span", "name", "delta", "limits", "wrong"),
    [
        ("decade", None, DELTA, everyone(1.0), "span"),
        ("life", "x", DELTA, everyone(1.0), "name"),
        ("year", "x", DELTA, everyone(1.0), "name"),
        ("purpose", "", DELTA, everyone(1.0), "name"),
        ("life", None, 0.0, everyone(1.0), "delta"),
        ("life", None, 1.0, everyone(1.0), "delta"),
        ("life", None, math.nan, everyone(1.0), "delta"),
        ("life", None, DELTA, {}, "epsilon"),
        ("life", None, DELTA, {"everyone": 1.0}, "epsilon"),
        ("life", None, DELTA, everyone(0.0), "epsilon"),
        ("life", None, DELTA, everyone(-1.0), "epsilon"),
        ("life", None, DELTA, everyone(math.inf), "epsilon"),
        ("life", None, DELTA, everyone(math.nan), "epsilon"),
    ],
)
def test_a_limit_is_checked(span: Any, name: Any, delta: float, limits: Any, wrong: str) -> None:
    with pytest.raises(ValueError, match=rf"limit\.{wrong} must be"):
        Limit(span, name, delta, limits)


def test_a_budget_has_one_limit_for_each_thing(desk: Desk) -> None:
    twice = (life(1.0), life(2.0))
    with pytest.raises(ValueError, match="one limit for each span and name, got '2 for life'"):
        check_budget(twice)
    with pytest.raises(ValueError, match="one limit"):
        desk.open(*twice)
    assert not desk.path.exists()
    check_budget(MIXED)


# --- what people are shown --------------------------------------------------------------------------


def test_a_summary_has_a_line_for_each_limit_and_viewer(desk: Desk) -> None:
    limits = (
        Limit("life", None, DELTA, {"coordinator": 8.0}),
        Limit("purpose", None, 1e-6, {"everybody": 4.0}),
        Limit("experiment", "jail", DELTA, {"public": 2.0}),
    )
    with desk.open(*limits) as ledger:
        assert [(line.span, line.name, line.spent) for line in ledger.spent()] == [
            ("life", None, 0),
            ("experiment", "jail", 0),
        ]
        ledger.reserve(CARE, [TRAIN, TABLE])
        ledger.charge(CARE, "1", [steps(TRAIN, 20)])
        ledger.charge(COURT, "2", [SHARED])
        spent = ledger.spent()

    def line(span: Span, name: str | None, limit: Limit, charged: list[Event], reserved: list[Event]) -> Line:
        ((viewer, allowed),) = limit.epsilon.items()
        order = renyi.filter_order(allowed, limit.delta)
        values = [
            renyi.epsilon_at(loss(part, viewer, order), limit.delta, order) if part else 0.0
            for part in (charged, charged + reserved)
        ]
        return Line(span, name, viewer, limit.delta, order, values[0], values[1], allowed)

    some, rest = steps(TRAIN, 20), [steps(TRAIN, 30), TABLE]
    expected = [
        line("life", None, limits[0], [some, SHARED], rest),
        line("purpose", "care", limits[1], [some], rest),
        line("purpose", "court", limits[1], [SHARED], []),
        line("experiment", "jail", limits[2], [SHARED], []),
    ]
    assert len(spent) == len(expected)
    for found, wanted in zip(spent, expected, strict=True):
        assert (found.spent, found.claimed) == pytest.approx((wanted.spent, wanted.claimed), rel=1e-12)
        assert replace(found, spent=wanted.spent, claimed=wanted.claimed) == wanted
