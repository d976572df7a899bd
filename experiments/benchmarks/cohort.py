"""How far off `fedrisk cohort` is at epsilon 1, and how long two lists of a million take, through the whole command.

Two simulated agencies, whose tables are Parquet files with an identifier; each run agrees a new secret and draws new noise.
"""

import contextlib
import io
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pyarrow.parquet as pq  # type: ignore[import-untyped, unused-ignore]
import yaml

from experiments.cohort import cohort_from

NAMES = ("health", "police")
CONTRACT = {
    "name": "bench",
    "version": 1,
    "description": "Made-up people for a benchmark.",
    "purpose": "benchmark",
    "unit": {"kind": "person", "column": "person"},
    "columns": {"known": {"type": "flag"}},
    "label": {"column": "outcome", "positive": ["1"], "horizon": "a year", "description": "Made up."},
    "match": {"identifier": "number"},
}
CASES = ((10_000, 2_000, 100, 0.15), (100_000, 20_000, 20, 0.05), (1_000_000, 200_000, 1, 0.05))
SECONDS = 60.0  # that the largest lists may take


def measure(
    folder: Path, cases: Sequence[tuple[int, int, int, float]] = CASES, seconds: float = SECONDS
) -> dict[str, Any]:
    """By case (people, in common, runs, largest relative error): what came out, and seconds of a run."""
    rows = [_case(folder / f"of-{people}", people, shared, runs) for people, shared, runs, _ in cases]
    targets = [
        {
            "target": f"{row['people']:,} x 2, {row['shared']:,} in common: relative RMSE",
            "value": row["rmse"],
            "most": most,
        }
        for row, (*_, most) in zip(rows, cases, strict=True)
    ]
    slowest = {
        "target": f"{rows[-1]['people']:,} x 2: seconds",
        "value": rows[-1]["seconds"],
        "most": seconds,
    }
    return {"rows": rows, "targets": [*targets, slowest]}


def _case(folder: Path, people: int, shared: int, runs: int) -> dict[str, Any]:
    _write(folder, people, shared)
    words = [*NAMES, "experiment=own", f"data.agencies={folder}/agencies.yaml", f"output={folder}/outputs"]
    words += ["tracking=none", "evaluation.disclosure=none"]
    started, pairs = time.perf_counter(), []
    for seed in range(runs):
        with contextlib.redirect_stdout(io.StringIO()):
            pairs += cohort_from([*words, f"seed={seed}"], as_json=True)["pairs"]
    values = np.array([pair["shared"]["value"] or 0.0 for pair in pairs])
    held = [
        pair["shared"]["publishable"] and pair["shared"]["low"] <= shared <= pair["shared"]["high"]
        for pair in pairs
    ]
    return {
        "people": people,
        "shared": shared,
        "runs": runs,
        "rmse": math.sqrt(float(np.mean((values - shared) ** 2))) / shared,
        "planned": pairs[0]["example"]["sd"] / shared,
        "covered": float(np.mean(held)),
        "seconds": (time.perf_counter() - started) / runs,
    }


def _write(folder: Path, people: int, shared: int) -> None:
    folder.mkdir()
    (folder / "contract.yaml").write_text(yaml.safe_dump(CONTRACT, sort_keys=False))
    listing = []
    for place, name in enumerate(NAMES, start=1):
        number = np.arange(people) + 10_000_000
        number[shared:] += place * 100_000_000
        table = {
            "person": [f"p{one}" for one in number],
            "number": [str(one) for one in number],
            "known": np.zeros(people, np.int64),
            "outcome": np.arange(people) % 2,
        }
        pq.write_table(pa.table(table), folder / f"{name}.parquet")
        listing.append({"name": name, "table": f"{name}.parquet", "public_size": people})
    (folder / "agencies.yaml").write_text(yaml.safe_dump({"contract": "contract.yaml", "agencies": listing}))


def shown(result: Mapping[str, Any]) -> list[str]:
    """Each case as a line."""
    return [
        f"  2 x {row['people']:,} people, {row['shared']:,} in common: off by {row['rmse']:.1%} (planned {row['planned']:.1%}), "
        f"{row['covered']:.0%} of {row['runs']} intervals hold it, {row['seconds']:.1f} s a run"
        for row in result["rows"]
    ]
