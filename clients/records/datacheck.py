"""The records held against the contract, for the person at this machine: problems as sentences, people as a band."""

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import final

from clients.folder import NodeError, read_contract, read_node_file
from clients.policy import PolicyError, read_policy
from clients.records.data import DataError, checked
from clients.records.matched import load_keys
from clients.records.sources import Source, find_source
from models.contract import Contract
from models.matchkey import WORDS

BANDS = (
    (50, "under 50"),
    (100, "50-99"),
    (500, "100-499"),
    (2_000, "500-1,999"),
    (10_000, "2,000-9,999"),
    (100_000, "10,000-99,999"),
)


@final
@dataclass(frozen=True)
class DataCheck:
    """problems: a sentence for each, () where the records fit. facts: what may be said about records that do."""

    problems: tuple[str, ...]
    facts: tuple[str, ...]


def check_source(folder: Path) -> DataCheck:
    """The source of the node in `folder`, read as a whole, and again for match keys; nothing is encoded or kept."""
    try:
        facts = read_node_file(folder / "node.toml")
        contract = read_contract(folder, facts.contract)
        source = find_source(folder, facts.table)
        found = checked(contract, source, facts.kind, min_people=_least(folder))
    except (NodeError, DataError) as error:
        heading, *lines = str(error).splitlines()
        each = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
        return DataCheck(
            tuple(f"{heading.removesuffix(':')}: {line}" for line in each) or (heading, *lines), ()
        )
    who = "people" if contract.unit.kind == "person" else "rows"
    return DataCheck(
        (),
        (
            f"{source.name} fits the contract {contract.name}",
            f"{who}: {band(found.people)}",
            currency(source),
            *_match_keys(contract, source, facts.kind),
        ),
    )


def _match_keys(contract: Contract, source: Source, kind: str | None) -> tuple[str, ...]:
    """Whether a cohort could be asked for, where the contract says how people are matched: no training needs it."""
    if contract.match is None:
        return ()
    try:
        found = load_keys(contract, source, kind, min_people=0)
    except DataError as error:
        _, *lines = str(error).splitlines()
        why = "; ".join(line.removeprefix("- ") for line in lines)
        return (f"match keys: none can be made, so no cohort can be counted here: {why}",)
    return (f"match keys: {WORDS[contract.match.rule]}; people without a key: {band(found.without)}",)


def band(people: int) -> str:
    """How many people, never exactly."""
    return next((name for below, name in BANDS if people < below), "100,000 and more")


def currency(source: Source) -> str:
    """How current the records are, from data.toml or from the file's own date."""
    view = source.view
    if view.as_of is not None:
        return f"data currency: as of {view.as_of.isoformat()}, by the column {view.as_of_column!r}"
    if source.files:
        written = datetime.datetime.fromtimestamp(source.files[0].stat().st_mtime, tz=datetime.UTC)
        return f"data currency: no as_of; the file was last written on {written:%Y-%m-%d}"
    return f"data currency: no as_of; read from the database again after {source.reload_minutes} minutes"


def _least(folder: Path) -> int:
    """The fewest people that the policy permits; what is wrong with the policy itself is said elsewhere."""
    try:
        return read_policy(folder / "policy.toml").min_people
    except PolicyError:
        return 0
