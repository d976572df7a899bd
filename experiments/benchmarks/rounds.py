"""Steady seconds of one round: fedrisk's local engine beside a bare loop, Flower with Opacus, and pfl.

Ten agencies, 2,000 training people each, 60 features, one local epoch in batches of 64, one thread. fedrisk and
the bare loop take turns round by round; the others, which need processes of their own, block by block.
"""

from pathlib import Path
from typing import Any

from experiments.benchmarks import peers
from experiments.benchmarks.work import Turns, Work, spread

BARE = "bare loop, no privacy, written by hand"
OPTIMIZER = "the same with torch.optim.SGD"
OURS = "fedrisk, local engine: DP-SGD, ledgers and checkpoints on disk"
PFL = "pfl, its privacy is of a whole agency only"
FLOWER = "Flower's Ray engine, Opacus client as in its example"
NO_EPSILON = "the same client, never computing ε"
WARM_UP = 3  # rounds of each run that are not counted


def measure(
    work: Work, folder: Path, *, rounds: int, blocks: int, flower: int, pfl_python: str | None
) -> dict[str, Any]:
    """Rows of name, seconds a round, and how many bare loops that is.

    `rounds` rounds in each of `blocks` blocks, `flower` of Flower's, after some that are not counted.
    """
    seconds: dict[str, list[float]] = {}
    missing: dict[str, str] = {}
    turns = Turns(work, folder)

    def add(name: str, found: list[float] | str) -> None:
        if isinstance(found, str):
            missing[name] = found
        else:
            seconds.setdefault(name, []).extend(found[WARM_UP:])

    for _ in range(blocks):
        found = turns.block(rounds + WARM_UP)
        add(OURS, found.ours)
        add(BARE, found.bare)
        add(OPTIMIZER, found.optimizer)
        add(PFL, peers.pfl_rounds(work, rounds + WARM_UP, pfl_python))
        if flower:
            add(FLOWER, peers.flower_rounds(work, flower + WARM_UP, epsilon=True))
            add(NO_EPSILON, peers.flower_rounds(work, flower + WARM_UP, epsilon=False))
    times = {name: spread(values) for name, values in seconds.items()}
    rows = [
        {"name": name, **times[name], "ratio": times[name]["median"] / times[BARE]["median"]}
        for name in (BARE, OPTIMIZER, OURS, PFL, FLOWER, NO_EPSILON)
        if name in times
    ]
    return {"rows": rows, "missing": missing, "targets": _targets(times)}


def _targets(times: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    ours = times[OURS]["median"]
    found = [{"target": "at most 3 bare loops", "value": ours / times[BARE]["median"], "most": 3.0}]
    if FLOWER in times:
        factor = times[FLOWER]["median"] / ours
        found.append(
            {"target": "Flower with Opacus takes at least 20 times as long", "value": factor, "least": 20.0}
        )
    return found
