"""What masks cost a round: the same dp_fedsgd rounds with each agency's own noise, and with shared noise behind masks.

Behind masks a round takes three messages instead of one, sums in float64, exact integer noise, ten masks, and as many
signatures to check as there are agencies. Blocks of both take turns. One process does the work of all agencies one after another, so a round's time is all
agencies' work together. The set-up of keys is in the first round; it is reported apart, for each draw that it covers.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from experiments.benchmarks.work import Clock, Work, run, spread, study

WARM_UP = 2
MLP = Work(hidden=(128, 128))  # 24,577 parameters
ASKED = 1.5


@dataclass(frozen=True)
class Size:
    """`agencies` with d dropouts, and how many rounds a block has."""

    agencies: int
    dropouts: int
    rounds: int
    people: int = 2000
    sample_rate: float = 0.25
    blocks: int = 3


SIZES = (
    Size(10, 1, 12),
    Size(10, 1, 12, sample_rate=1.0),
    Size(30, 3, 8),
    Size(100, 10, 4, people=200, blocks=1),
)


def measure(folder: Path, *, sizes: tuple[Size, ...] = SIZES) -> dict[str, Any]:
    """Seconds per round of both for each size, and the ratio."""
    rows = [_row(size, folder / f"size-{i}") for i, size in enumerate(sizes)]
    first = rows[0]
    target = (
        f"{first['agencies']} agencies, {first['parameters']} parameters: at most {ASKED} unmasked rounds"
    )
    return {"rows": rows, "targets": [{"target": target, "value": first["ratio"], "most": ASKED}]}


def _row(size: Size, folder: Path) -> dict[str, Any]:
    work = replace(MLP, agencies=size.agencies, people=size.people)
    agencies = work.write(folder / "data")
    seconds: dict[str, list[float]] = {"local": [], "shared": []}
    set_up = []
    for block in range(size.blocks):
        for mechanism, found in seconds.items():
            clock = Clock()
            plan = study(agencies, work, size.rounds + WARM_UP, *_overrides(size, mechanism))
            run(plan, folder / f"{mechanism}-{block}", [clock])
            found += clock.seconds[WARM_UP:]
            if mechanism == "shared":
                draws = size.rounds + WARM_UP + 1
                set_up.append((clock.seconds[0] - median(clock.seconds[WARM_UP:])) / draws)
    shared = plan.experiment.privacy_plan().shared
    assert shared is not None
    return {
        "agencies": size.agencies,
        "people": size.people,
        "sample_rate": size.sample_rate,
        "parameters": shared.parameters,
        "bits": shared.bits,
        "local": spread(seconds["local"]),
        "shared": spread(seconds["shared"]),
        "ratio": median(seconds["shared"]) / median(seconds["local"]),
        "per_agency": (median(seconds["shared"]) - median(seconds["local"])) / size.agencies,
        "set_up_per_draw": median(set_up) / size.agencies,
    }


def _overrides(size: Size, mechanism: str) -> list[str]:
    return [
        "strategy=dp_fedsgd",
        f"privacy.mechanism={mechanism}",
        f"privacy.dropouts={size.dropouts}",
        f"privacy.sample_rate={size.sample_rate}",
        "local.steps=1",
        "void_rounds=0",
        "evaluation.checkpoints=0",
    ]
