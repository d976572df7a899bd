"""What a node's configuration knows, gathered for the papers. Its ledger is read, its records are not.

Nothing here is counted from records: the one number of people is the size that the agency declares publicly.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from clients.desk import policy_words, statement
from clients.folder import NodeFile, read_contract, read_node_file
from clients.policy import EpsilonTo, Policy, read_policy
from clients.records.datafile import DataFile, address_of, read_data_file
from clients.records.sources import find_source
from federation import installed
from federation.release import VIEWERS
from models.contract import Category, Column, Contract, Number, Ordinal
from models.matchkey import WORDS

COMPETENT = ("police", "probation", "prison", "prisons", "prosecution", "youth-justice", "youth-offending")


@dataclass(frozen=True)
class ColumnFacts:
    """One column that the agency reads. `source`: what it is called at the agency's own source."""

    name: str
    role: str
    values: str
    description: str
    source: str
    proxy_for: str | None = None
    actionable: bool = True


@dataclass(frozen=True)
class PurposeFacts:
    """One purpose of policy.toml. `most`: the most ε that it may take, in words, where it has a limit of its own."""

    name: str
    legal_basis: str | None
    expires: date | None
    asked: bool
    most: str | None


@dataclass(frozen=True)
class LimitFacts:
    """One limit: over what and the most ε to each viewer, and how sure the one who sees most may become by it."""

    says: str
    sureness: str


@dataclass(frozen=True)
class Facts:
    """All that the templates may say."""

    node: NodeFile
    policy: Policy
    contract: Contract
    data: DataFile | None
    today: date
    version: str
    competent: bool
    columns: tuple[ColumnFacts, ...]
    elsewhere: tuple[ColumnFacts, ...]
    purposes: tuple[PurposeFacts, ...]
    limits: tuple[LimitFacts, ...]
    policy_lines: tuple[policy_words.Line, ...]
    ledger: tuple[str, ...]
    head: tuple[int, str] | None  # of the ledger's newest entry, once something has left
    source: str
    source_short: str
    currency: str
    releases: tuple[str, ...]
    line: str
    unit: str


def gather(folder: Path, today: date, *, competent: bool | None = None) -> Facts:
    """The facts of the node in `folder`; known errors are those of reading its files.

    `competent`: whether Part 3 applies; None decides by the agency's kind.
    """
    node, policy = read_node_file(folder / "node.toml"), read_policy(folder / "policy.toml")
    contract = read_contract(folder, node.contract)
    find_source(folder, node.table)  # says what is wrong with data.toml; opens no record
    data = None if node.table is not None else read_data_file(folder / "data.toml")
    told = statement.of_folder(folder)
    lines = tuple(policy_words.show(policy, contract))
    says = {line.key: line.says for line in lines}
    here, elsewhere = _columns(contract, node.kind, data)
    return Facts(
        node=node,
        policy=policy,
        contract=contract,
        data=data,
        today=today,
        version=installed.version(),
        competent=node.kind in COMPETENT if competent is None else competent,
        columns=here,
        elsewhere=elsewhere,
        purposes=_purposes(policy, says),
        limits=_limits(policy, says),
        policy_lines=lines,
        ledger=tuple(statement.sentences(told)),
        head=told.head if told.left.orders else None,
        source=_source(data),
        source_short="a file" if data is None or data.source.kind != "sql" else "a database",
        currency=_currency(data),
        releases=_releases(policy),
        line=_line(node),
        unit=_unit(contract),
    )


def sureness(epsilon: float) -> str:
    """How sure anybody can become that a person is in the records who thought it an even bet, e^ε / (1 + e^ε), rounded up."""
    chance = 100 / (1 + math.exp(-epsilon))
    if chance >= 99.99:
        return "more than 99.99 in 100, which is next to no protection"
    return f"{math.ceil(chance) if chance <= 99 else math.ceil(chance * 100) / 100:g} in 100"


def _purposes(policy: Policy, says: Mapping[str, str]) -> tuple[PurposeFacts, ...]:
    return tuple(
        PurposeFacts(
            name,
            purpose.legal_basis,
            purpose.expires,
            policy.asks(name),
            says.get(f"budget.purpose.{name}"),
        )
        for name, purpose in policy.purposes.items()
    )


def _limits(policy: Policy, says: Mapping[str, str]) -> tuple[LimitFacts, ...]:
    budget = policy.budget
    if budget is None:
        return ()
    each = {name: getattr(budget, name) for name in ("life", "year", "experiment", "order")}
    each |= {f"purpose.{name}": most for name, most in budget.purpose.items()}
    return tuple(
        LimitFacts(says[f"budget.{key}"], sureness(_largest(most)))
        for key, most in each.items()
        if most is not None
    )


def _largest(most: EpsilonTo) -> float:
    return max(most.to(viewer) for viewer in VIEWERS)


def _columns(
    contract: Contract, kind: str | None, data: DataFile | None
) -> tuple[tuple[ColumnFacts, ...], tuple[ColumnFacts, ...]]:
    """(what this kind of agency reads, the features that other kinds hold)."""
    names = {} if data is None else data.columns
    here: list[ColumnFacts] = []
    elsewhere: list[ColumnFacts] = []
    for column in contract.columns:
        held = contract.holds(kind, column.block)
        (here if held else elsewhere).append(_feature(contract, column, names.get(column.name, column.name)))
    known = {column.name for column in contract.columns}
    for name, role, values, description in _others(contract, kind):
        if name not in known:
            here.append(ColumnFacts(name, role, values, description, names.get(name, name)))
            known.add(name)
    as_of = None if data is None else data.as_of_column
    if as_of is not None and as_of not in {column.source for column in here}:
        here.append(ColumnFacts(as_of, "says which rows count", "a day", "when a row was recorded", as_of))
    return tuple(here), tuple(elsewhere)


def _feature(contract: Contract, column: Column, source: str) -> ColumnFacts:
    groups = [group.name for group in contract.groups if group.column == column.name]
    role = f"feature, and audit group {groups[0]}" if groups else "feature"
    about = column.about
    return ColumnFacts(
        column.name, role, _values(column), about.description, source, about.proxy_for, about.actionable
    )


def _others(contract: Contract, kind: str | None) -> list[tuple[str, str, str, str]]:
    """(column, role, values, description) of what is read beside the features."""
    unit, label = contract.unit, contract.label
    found = [
        (unit.column, "names the person, never a feature", "an identifier", "the source's own identifier"),
        (unit.order_by, "orders the rows of a person", "a number or a day", "which row is the newest"),
    ]
    for group in contract.groups:
        levels = ", ".join(group.level_names)
        found.append(
            (group.column, f"audit group {group.name}, not a feature", levels, "compared for fairness")
        )
    if contract.holds_label(kind):
        positive = f"positive: {', '.join(label.positive)}"
        found.append((label.column, f"outcome, {label.horizon}", positive, label.description))
        found += _of_users(contract)
    found.append(
        (contract.split, "says who trains and who tests", "train, tune or test", "the part of a person")
    )
    found += _of_match(contract)
    return [(name, role, values, said) for name, role, values, said in found if name is not None]


def _of_users(contract: Contract) -> list[tuple[str, str, str, str]]:
    """What the table of users reads of people with a label."""
    intensity, lead, practice = contract.intensity, contract.lead_time, contract.practice
    found = []
    if intensity is not None:
        levels = ", ".join(level.name for level in intensity.levels)
        found.append((intensity.column, "how intensively services are used", levels, intensity.description))
    if lead is not None:
        values = f"{lead.unit}, in bands cut at {', '.join(f'{edge:g}' for edge in lead.edges)}"
        found.append((lead.column, "time to the outcome, never a feature", values, lead.description))
    if practice is not None:
        values = f"flagged: {', '.join(practice.positive)}"
        found.append((practice.column, "today's practice, never a feature", values, practice.description))
    return found


def _of_match(contract: Contract) -> list[tuple[str, str, str, str]]:
    """What tells whether a person is known elsewhere."""
    if contract.match is None:
        return []
    said = f"Two agencies know one person: {WORDS[contract.match.rule]}"
    role = "makes a match key for a cohort alone, never a feature"
    return [(name, role, "text", said) for name in contract.match.columns]


def _values(column: Column) -> str:
    match column:
        case Number():
            scale = ", on a log scale" if column.log else ""
            return f"{column.min:g} to {column.max:g}{' ' if column.unit else ''}{column.unit}{scale}"
        case Ordinal():
            return f"{' < '.join(column.levels)}"
        case Category():
            return ", ".join(column.levels)
        case _:
            return "yes or no"


def _source(data: DataFile | None) -> str:
    if data is None:
        return "a file in the node's folder, named in node.toml"
    if data.source.kind != "sql" or data.source.url is None:
        return f"a {data.source.kind.capitalize() if data.source.kind == 'parquet' else 'CSV'} file, read and never written"
    what = "one table or view" if data.source.table is not None else "one SELECT"
    if address_of(data.source.url).drivername == "sqlite":
        return f"{what} of an SQLite file, opened for reading alone"
    return f"{what} of a PostgreSQL database, in a read-only transaction"


def _currency(data: DataFile | None) -> str:
    if data is None:
        return "read again when the file has changed"
    as_of = (
        "no as-of date is set"
        if data.as_of is None
        else f"only what was known on {data.as_of.isoformat()} is read"
    )
    again = (
        f"read again after {data.reload_minutes} minutes"
        if data.source.kind == "sql"
        else "read again when the file has changed"
    )
    return f"{as_of}; {again}"


def _releases(policy: Policy) -> tuple[str, ...]:
    if policy.releases is None:
        return tuple(policy_words.KINDS.values()) if policy.simulation else ()
    return tuple(policy_words.KINDS[kind] for kind in policy.releases)


def _line(node: NodeFile) -> str:
    if node.superlink is None:
        return "no line is configured yet"
    if node.superlink.insecure:
        return (
            f"{node.superlink.address}, on this machine alone and without TLS: to try things, not for records"
        )
    checks = (
        f"checked with {node.superlink.certificate}"
        if node.superlink.certificate
        else "checked with the CAs that this system trusts"
    )
    return f"{node.superlink.address}, TLS 1.2 or newer, the server's certificate {checks}"


def _unit(contract: Contract) -> str:
    if contract.unit.kind == "row":
        return "one row: the contract has no person, so a person with several rows is protected row by row"
    rows = contract.unit.rows
    return f"one person at this agency, with {'the most recent row' if rows == 1 else f'at most the {rows} most recent rows'}"
