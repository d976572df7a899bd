"""Agencies in a folder: `agencies.yaml`, a contract, and one table per agency (docs/your-own-data.md)."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class DataError(ValueError):
    """Data that cannot be used: `problems` has one sentence each, and none shows a cell."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Agency:
    """One line of agencies.yaml. public_size: people it publicly says it serves, never counted from its table."""

    name: str
    kind: str | None
    table: Path
    public_size: int
    weight: float


def read_agencies(path: Path, *, tables: bool = True) -> tuple[Path, tuple[Agency, ...]]:
    """The contract's path and the agencies of an agencies.yaml (or of the folder that holds one).

    tables: False where the agencies keep theirs elsewhere; then `table` is not looked at and may be left out.
    `DataError` lists everything that is wrong with it.
    """
    path = path / "agencies.yaml" if path.is_dir() else path
    listing = _yaml_mapping(path)
    problems = unknown_keys(listing, {"contract", "agencies"}, "")
    contract, kinds = _contract(path, listing.get("contract"), problems)
    entries = listing.get("agencies")
    if not isinstance(entries, list) or not entries:
        entries = []
        problems.append("agencies must be a list of at least one agency")
    agencies = [
        _agency(entry, f"agencies[{i}]", path.parent, kinds, problems, tables)
        for i, entry in enumerate(entries)
    ]
    for what in ("name", "table"):
        problems += _repeated(what, [agency and getattr(agency, what) for agency in agencies])
    if problems:
        raise DataError(*(f"{path.name}: {problem}" for problem in problems))
    return contract, tuple(agency for agency in agencies if agency)


def _yaml_mapping(path: Path) -> dict[str, Any]:
    import yaml

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; docs/your-own-data.md shows how to write it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise DataError(f"{path} is not valid YAML{where}") from None
    except ValueError as error:  # YAML reads 2024-02-30 as a day
        raise DataError(f"{path} has a date that there is not: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} must be a YAML mapping, got {type(value).__name__}")
    return value


def unknown_keys(given: Mapping[str, Any], known: Iterable[str], where: str) -> list[str]:
    known = sorted(known)
    return [
        f"{where}{key} is not a known key; known are {', '.join(known)}" for key in given if key not in known
    ]


def _contract(path: Path, value: object, problems: list[str]) -> tuple[Path, tuple[str, ...] | None]:
    """The contract's path and the kinds of agency that it declares; None where it cannot be read."""
    if not isinstance(value, str):
        problems.append("contract must name the contract's file, for example contract.yaml")
        return path, None
    contract = path.parent / value
    try:
        kinds = _yaml_mapping(contract).get("kinds")
    except DataError as error:
        problems.append(f"contract: {error}")
        return contract, None
    return contract, tuple(map(str, kinds)) if isinstance(kinds, list) else ()


def _agency(
    entry: object, where: str, folder: Path, kinds: tuple[str, ...] | None, problems: list[str], tables: bool
) -> Agency | None:
    """The agency of one entry, or None after adding to `problems`."""
    if not isinstance(entry, dict):
        problems.append(f"{where} must be a mapping with name, table and public_size")
        return None
    name, kind, table = entry.get("name"), entry.get("kind"), entry.get("table")
    size = entry.get("public_size")
    weight = entry.get("weight", size)
    found = unknown_keys(entry, {"name", "kind", "table", "public_size", "weight"}, f"{where}.")
    if not (isinstance(name, str) and re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", name)):
        found.append(f"{where}.name must be small letters, digits and hyphens, got {name!r}")
    if kinds and kind not in kinds:
        found.append(f"{where}.kind must be one of the contract's kinds ({', '.join(kinds)}), got {kind!r}")
    if kinds == () and kind is not None:
        found.append(f"{where}.kind must be left out, because the contract declares no kinds")
    found += _table_problems(table, where, folder) if tables else []
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        found.append(f"{where}.public_size must be a whole number of at least 1, got {size!r}")
    elif isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        found.append(f"{where}.weight must be a number above 0, got {weight!r}")
    if found:
        problems += found
        return None
    return Agency(str(name), kind, folder / str(table or name), int(str(size)), float(str(weight)))


def _table_problems(table: object, where: str, folder: Path) -> list[str]:
    if not isinstance(table, str) or Path(table).suffix not in (".parquet", ".csv"):
        return [f"{where}.table must name a .parquet or .csv file, got {table!r}"]
    if not (folder / table).is_file():
        return [f"{where}.table: {folder / table} does not exist"]
    return []


def _repeated(what: str, values: list[Any]) -> list[str]:
    return [
        f"agencies[{i}].{what} is the same as that of agencies[{values.index(value)}]"
        for i, value in enumerate(values)
        if value is not None and values.index(value) < i
    ]
