"""Does an agency's round cost the same in a large federation? Time per agency-round, few agencies against many.

The two federations take turns block by block, and the bare loop on the same agencies takes turns with each, so
that a cache too small for everybody's records shows there too.
"""

from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from experiments.benchmarks.work import Turns, Work, spread

WARM_UP = 3


def measure(
    work: Work, folder: Path, *, few: int = 10, many: int = 100, rounds: int = 20, blocks: int = 3
) -> dict[str, Any]:
    """Seconds per agency-round of both, and how many times more that is with `many`."""
    sizes = {count: replace(work, agencies=count) for count in (few, many)}
    turns = {count: Turns(size, folder / f"{count}-agencies") for count, size in sizes.items()}
    ours: dict[int, list[float]] = {few: [], many: []}
    bare: dict[int, list[float]] = {few: [], many: []}
    for _ in range(blocks):
        for count, pair in turns.items():
            block = pair.block(rounds + WARM_UP)
            ours[count] += [seconds / count for seconds in block.ours[WARM_UP:]]
            bare[count] += [seconds / count for seconds in block.bare[WARM_UP:]]
    rows = [
        {"agencies": count, "people": work.people, **spread(ours[count]), "bare": median(bare[count])}
        for count in (few, many)
    ]
    growth = median(ours[many]) / median(ours[few])
    return {
        "rows": rows,
        "bare_growth": median(bare[many]) / median(bare[few]),
        "targets": [{"target": f"{few} to {many} agencies at most 1.2 x", "value": growth, "most": 1.2}],
    }
