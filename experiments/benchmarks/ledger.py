"""What the ledger costs: 10,000 releases composed, a ledger of them opened, and one more charge beside its fsync.

The releases are mixed: own and shared noise, several rates and multipliers, all parts, 60 plans of 6 purposes. The
budget has four limits for three viewers, so twelve filters count each charge.
"""

import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from clients.budget import Limit, PlanFacts
from clients.ledger import Ledger
from federation.privacy import epsilon
from federation.release import VIEWERS, Event, Part, Release, SharedRelease

DELTA = 1e-5
PLANS = [PlanFacts(f"{i:064x}", f"run-{i}", f"study-{i % 12}", f"purpose-{i % 6}") for i in range(60)]
HUGE = dict.fromkeys(VIEWERS, 1e6)
BUDGET = (
    Limit("life", None, DELTA, HUGE),
    Limit("year", None, DELTA, HUGE),
    Limit("experiment", None, DELTA, HUGE),
    Limit("purpose", "purpose-0", DELTA, HUGE),
)


def measure(folder: Path, *, releases: int = 10_000, charges: int = 200) -> dict[str, Any]:
    """Seconds, with their targets."""
    events = mixed(releases)
    composed = _timed(lambda: epsilon(events, DELTA))
    path = folder / "ledger.db"
    with _open(path) as ledger:
        ledger._db.execute("PRAGMA synchronous = OFF")  # building it is not what is measured
        for number, event in enumerate(events):
            ledger.charge(PLANS[number % len(PLANS)], f"order-{number}", [event])
    opened = _timed(lambda: _open(path).close())
    with _open(path) as ledger:
        durable = _charges(ledger, charges, "durable")
        ledger._db.execute("PRAGMA synchronous = OFF")
        alone = _charges(ledger, charges, "alone")
    return {
        "releases": releases,
        "composed": composed,
        "opened": opened,
        "charge": durable,
        "charge_without_fsync": alone,
        "targets": [
            {"target": f"{releases} releases compose in at most 2 s", "value": composed, "most": 2.0},
            {"target": "one more charge, beyond its fsync, at most 2 ms", "value": alone, "most": 0.002},
        ],
    }


def mixed(count: int) -> list[Event]:
    """`count` releases that differ as those of many experiments do, the same ones each time."""
    rng = random.Random(0)  # noqa: S311 - a benchmark's data
    parts: tuple[Part, ...] = ("train", "tune", "test", "all")

    def one() -> Event:
        rate, steps = rng.choice((0.01, 0.1, 0.25, 1.0)), rng.randint(1, 50)
        if rng.random() < 0.5:
            return Release("train", rng.choice(parts), rng.choice((0.8, 1.0, 2.0, 8.0)), rate, steps, "split")
        share = round((7000 * rng.choice((2.0, 5.0, 12.0))) ** 2 / 8)
        return SharedRelease(
            "train", rng.choice(parts), 7000.0, share, 61, 10, 1, 1, rate, steps, split_id="split"
        )

    return [one() for _ in range(count)]


def _open(path: Path) -> Ledger:
    return Ledger(path, budget=BUDGET, scope="this run alone", people="benchmark/people")


def _charges(ledger: Ledger, count: int, name: str) -> float:
    """Median seconds of one charge."""
    events = mixed(count)
    seconds = []
    for number, event in enumerate(events):
        plan = PLANS[number % len(PLANS)]
        seconds.append(_timed(lambda: ledger.charge(plan, f"{name}-{number}", [event])))  # noqa: B023
    return median(seconds)


def _timed(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began
