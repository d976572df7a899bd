"""What loading a large source takes: seconds and the process's peak memory, each load in a process of its own.

    python -m experiments.benchmarks.data                              2,000,000 people, from CSV, Parquet and SQLite
    python -m experiments.benchmarks.data --rows-per-person 4          as many rows of a quarter of the people
    python -m experiments.benchmarks.data --kinds csv --rows 100000

Ten columns: id, month, four numbers, three of levels, the outcome; 22 features. The rows of a person are far apart.
The peak (VmHWM) is that of the whole process; "before" is what it held when everything was imported.
"""

import argparse
import contextlib
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.contract import Contract

KINDS = ("csv", "parquet", "sqlite")
CHUNK = 100_000
LEVELS = {"tenure": ("social", "private", "owner"), "area": tuple("abcdefgh"), "sex": ("f", "m")}
NUMBERS = ("age", "rent", "arrears", "visits")
CONTRACT = Contract.from_dict(
    {
        "name": "large",
        "purpose": "benchmark",
        "unit": {"kind": "person", "column": "id", "order_by": "month"},
        "columns": {
            **{name: {"type": "number", "min": 0, "max": 100, "missing": "indicator"} for name in NUMBERS},
            "tenure": {"type": "category", "levels": [*LEVELS["tenure"]], "missing": "level"},
            "area": {"type": "category", "levels": [*LEVELS["area"]]},
        },
        "groups": {"sex": {"column": "sex", "levels": [*LEVELS["sex"]]}},
        "label": {"column": "y", "positive": ["1"], "horizon": "1 year"},
    }
)


def chunks(rows: int, people: int) -> Iterator[dict[str, Any]]:
    """The table, some rows at a time: column -> values."""
    rng = np.random.default_rng(0)
    for start in range(0, rows, CHUNK):
        n = min(CHUNK, rows - start)
        person = np.arange(start, start + n) % people
        yield {
            "id": [f"P{number:09d}" for number in (person * 7919) % 999_999_937],
            "month": [f"20{year:02d}-{month:02d}" for year, month in rng.integers((10, 1), (26, 13), (n, 2))],
            **{name: np.round(rng.normal(50, 25, n), 2) for name in NUMBERS},
            **{name: rng.choice(levels, n) for name, levels in LEVELS.items()},
            "y": rng.integers(0, 2, n),
        }


def write(folder: Path, kind: str, rows: int, people: int) -> Path:
    """The node's folder with that table in it; data.toml says where."""
    place = folder / f"{kind}-{rows}-{people}"
    place.mkdir(parents=True)
    {"csv": _write_file, "parquet": _write_file, "sqlite": _write_database}[kind](place, kind, rows, people)
    where = 'kind = "sql"\nurl = "sqlite:///t.sqlite"\ntable = "people"'
    if kind != "sqlite":
        where = f'kind = "{kind}"\npath = "t.{kind}"'
    (place / "data.toml").write_text(f"[source]\n{where}\n")
    return place


def _write_file(place: Path, kind: str, rows: int, people: int) -> None:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    writer = None
    for chunk in chunks(rows, people):
        table = pa.table(chunk)
        if writer is None:
            make = pa.csv.CSVWriter if kind == "csv" else pa.parquet.ParquetWriter
            writer = make(place / f"t.{kind}", table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def _write_database(place: Path, kind: str, rows: int, people: int) -> None:
    with contextlib.closing(sqlite3.connect(place / f"t.{kind}")) as database:
        for number, chunk in enumerate(chunks(rows, people)):
            names = ", ".join(chunk)
            if number == 0:
                database.execute(f"CREATE TABLE people ({names})")
            marks = ", ".join("?" * len(chunk))
            columns = [np.asarray(values).tolist() for values in chunk.values()]
            database.executemany(f"INSERT INTO people VALUES ({marks})", zip(*columns, strict=True))  # noqa: S608
        database.commit()


def loaded(folder: Path) -> dict[str, float]:
    """Load the source in `folder` in this process: seconds, and MB before, at most, and of the arrays."""
    from clients.records.data import load
    from clients.records.sources import find_source

    fractions = {"train": 0.6, "tune": 0.2, "test": 0.2}
    before, began = memory("VmRSS"), time.perf_counter()
    found = load(
        CONTRACT, find_source(folder, None), None, fractions=fractions, key=b"benchmark", min_people=50
    )
    seconds = time.perf_counter() - began
    arrays = sum(part.x.nbytes for part in found.parts.values())
    return {"seconds": seconds, "before": before, "peak": memory("VmHWM"), "arrays": arrays}


def memory(what: str) -> int:
    """Bytes, as Linux counts them for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


def measure(folder: Path, kind: str, rows: int, people: int) -> dict[str, float]:
    """`loaded`, in a fresh process."""
    place = write(folder, kind, rows, people)
    command = [sys.executable, "-m", "experiments.benchmarks.data", "--load", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    names, values = (line.split() for line in done.stdout.splitlines())
    return dict(zip(names, map(float, values), strict=True))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rows-per-person", type=int, default=1)
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"with commas between: {','.join(KINDS)}")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.load is not None:
        found = loaded(options.load)
        print(*found)
        print(*found.values())
        return
    people = options.rows // options.rows_per_person
    print(f"{options.rows:,} rows of {people:,} people, ten columns, 22 features")
    for kind in options.kinds.split(","):
        with tempfile.TemporaryDirectory() as folder:
            found = measure(Path(folder), kind, options.rows, people)
        print(
            f"  {kind:<8}{found['seconds']:>7.1f} s   peak {found['peak'] / 1e6:>6,.0f} MB, of which before "
            f"{found['before'] / 1e6:,.0f} MB and the features {found['arrays'] / 1e6:,.0f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
