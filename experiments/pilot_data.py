"""`fedrisk pilot-data`: the made-up town's agencies as files, to follow a page with two real nodes and no data of one's own."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from experiments.agencies import DataError
from experiments.datasets import CONTRACTS
from experiments.pilot import NEEDS, Options, declared_size, population, tables

WORKLOAD = CONTRACTS.parent / "map" / "pilot.yaml"


def write_pilot_data(
    folder: Path, agencies: Sequence[str], *, people: float = 1.0, seed: int = 7
) -> list[Path]:
    """The files, written: a CSV per agency, contract.yaml, agencies.yaml, and workload.yaml of what these agencies can say.

    `DataError`: an agency or a size that there is not, or a folder that is not empty or cannot be written.
    """
    try:
        options = Options(seed, people, tuple(agencies))
    except ValueError as error:
        raise DataError(str(error)) from None
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is not an empty folder: name another")
    listed = [
        {"name": name, "kind": name, "table": f"{name}.csv", "public_size": declared_size(name, people)}
        for name in agencies
    ]
    texts = {
        "contract.yaml": (CONTRACTS / "pilot.yaml").read_text(encoding="utf-8"),
        "agencies.yaml": yaml.safe_dump({"contract": "contract.yaml", "agencies": listed}, sort_keys=False),
        "workload.yaml": _workload(agencies),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in tables(population(options)).items():
            _write_csv(table, folder / f"{name}.csv")
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror or type(error).__name__}") from None
    return [folder / name for name in (*(f"{name}.csv" for name in agencies), *texts)]


def _workload(agencies: Sequence[str]) -> str:
    """That of conf/map/pilot.yaml, without the lines about needs that none of these agencies records."""
    foreign = [name for name, need in NEEDS.items() if not set(need.held_by) & set(agencies)]
    text = WORKLOAD.read_text(encoding="utf-8").partition("\nworkload:\n")[2]
    lines = textwrap.dedent(text).splitlines(keepends=True)
    return "".join(line for line in lines if not any(name in line for name in foreign))


def _write_csv(table: Mapping[str, np.ndarray], path: Path) -> None:
    """Numbers of the town are whole, and written so; what is missing is an empty cell."""
    import pyarrow as pa
    import pyarrow.csv as csv

    columns = {
        name: pa.array(values.astype(np.int64) if values.dtype.kind == "f" else values, from_pandas=True)
        for name, values in table.items()
    }
    csv.write_csv(pa.table(columns), path, csv.WriteOptions(quoting_style="needed"))
