"""How long `fedrisk map` takes over ten agencies of 200,000 rows in the local engine, and how much memory, as a process of its own.

Each agency's table is a Parquet file: 100,000 people, two rows each at most, four flags, ten areas, two years of dates.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pyarrow.parquet as pq  # type: ignore[import-untyped, unused-ignore]
import yaml

AGENCIES, ROWS = 10, 200_000
SECONDS, GIB = 30.0, 1.0  # at most
AREAS = [f"area-{i}" for i in range(10)]
FLAGS = ["drugs", "debt", "housing", "health"]
CONTRACT = {
    "name": "bench",
    "version": 1,
    "description": "Made-up people for a benchmark.",
    "purpose": "benchmark",
    "unit": {"kind": "person", "column": "person", "rows": 2, "order_by": "seen"},
    "columns": {
        "area": {"type": "category", "levels": AREAS},
        **{name: {"type": "flag"} for name in FLAGS},
    },
    "groups": {"sex": {"column": "sex", "levels": {"female": ["f"], "male": ["m"]}, "other": False}},
    "label": {"column": "outcome", "positive": ["1"], "horizon": "a year", "description": "Made up."},
}
WORKLOAD = {
    "name": "large",
    "attributes": {"month": {"column": "seen", "first": "2023-01", "months": 24}},
    "queries": [
        *({"rate": {"of": {name: "yes"}, "among": "everybody"}, "by": ["area"]} for name in FLAGS),
        *({"crosstab": [name, "sex"]} for name in FLAGS),
        {"crosstab": ["area", "month"], "each": "row"},
    ],
}


def measure(folder: Path, *, agencies: int = AGENCIES, rows: int = ROWS) -> dict[str, Any]:
    """Seconds from the command to its end, and the largest resident memory of its process, GiB."""
    write(folder, agencies, rows)
    words = ["map", "experiment=own", "map=own", f"data.agencies={folder}/agencies.yaml", "name=large"]
    words += [f"map.workload={folder}/workload.yaml", f"output={folder}/outputs", "tracking=none"]
    began, most = time.monotonic(), 0.0
    with (folder / "map.out").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments.cli", *words], stdout=out, stderr=out, env=dict(os.environ)
        )
        while process.poll() is None:
            most = max(most, _most_memory(process.pid))
            time.sleep(0.05)
    seconds = time.monotonic() - began
    if process.returncode != 0:
        raise RuntimeError((folder / "map.out").read_text())
    return {
        "agencies": agencies,
        "rows": rows,
        "seconds": seconds,
        "gib": most,
        "targets": [
            {
                "target": f"a map of {agencies} agencies x {rows:,} rows: seconds",
                "value": seconds,
                "most": SECONDS,
            },
            {"target": "its largest memory, GiB", "value": most, "most": GIB},
        ],
    }


def _most_memory(process: int) -> float:
    """The largest resident memory of a process so far, GiB; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith("VmHWM")), 0.0)


def write(folder: Path, agencies: int, rows: int) -> None:
    """The agencies' tables, contract, agencies.yaml and workload."""
    folder.mkdir(parents=True, exist_ok=True)
    listing = []
    for seed in range(agencies):
        rng = np.random.default_rng(seed)
        months = np.datetime64("2023-01") + rng.integers(0, 24, rows).astype("timedelta64[M]")
        columns: dict[str, Any] = {
            "person": [f"p{seed}-{i // 2}" for i in range(rows)],
            "seen": [f"{month}-15" for month in months],
            "area": np.array(AREAS)[rng.integers(0, len(AREAS), rows)],
            "sex": np.array(["f", "m"])[rng.integers(0, 2, rows)],
            "outcome": rng.integers(0, 2, rows),
        }
        columns |= {name: rng.integers(0, 2, rows) for name in FLAGS}
        pq.write_table(pa.table(columns), folder / f"agency-{seed}.parquet")
        listing.append(
            {"name": f"agency-{seed}", "table": f"agency-{seed}.parquet", "public_size": rows // 2}
        )
    (folder / "contract.yaml").write_text(yaml.safe_dump(CONTRACT, sort_keys=False))
    (folder / "workload.yaml").write_text(yaml.safe_dump(WORKLOAD, sort_keys=False))
    (folder / "agencies.yaml").write_text(yaml.safe_dump({"contract": "contract.yaml", "agencies": listing}))


def shown(result: Mapping[str, Any]) -> list[str]:
    """Time and memory."""
    return [
        f"  {result['agencies']} agencies x {result['rows']:,} rows: {result['seconds']:.1f} s, {result['gib']:.2f} GiB"
    ]
