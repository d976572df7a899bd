"""`fedrisk-node log`: the journal since a time, and whether it holds, also against the ledger."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from clients import journal
from clients.desk.ledger_copy import read_only
from clients.folder import NodeError, read_node_file
from clients.journal import Record
from clients.policy import read_policy

SPANS = {"d": "days", "h": "hours", "m": "minutes"}


def lines_since(folder: Path, since: str, now: datetime | None = None) -> list[Record]:
    """The lines since a day (UTC) or for a span such as 7d; all of them without one. `NodeError` where it is neither."""
    read_node_file(folder / "node.toml")
    return journal.read(folder, _moment(since, now or datetime.now(UTC)) if since else None)


def checked(folder: Path) -> str:
    """What `verify` found, in words; `JournalError` or `LedgerError` where something does not hold."""
    found = journal.verify(folder)
    facts, policy = read_node_file(folder / "node.toml"), read_policy(folder / "policy.toml")
    said = (
        f"{found.lines:,} lines in {found.files} file{'' if found.files == 1 else 's'}: the hash chain holds"
    )
    if found.unfinished:
        said += "; a crash left half a line at the end, which never counted"
    with read_only(folder, facts, policy) as ledger:
        charged = [(entry.order_id, entry.at) for entry in ledger.entries() if entry.action == "charge"]
        older = journal.against_ledger(journal.read(folder), charged, ledger.holds)
    if older:
        return f"{said}. {older} charges of the ledger are older than the journal; all later ones are in it."
    return f"{said}. Every charge of the ledger is in it, and every release names an entry of the ledger."


def _moment(text: str, now: datetime) -> datetime:
    span = re.fullmatch(r"(\d{1,5})([dhm])", text)
    if span:
        return now - timedelta(**{SPANS[span[2]]: int(span[1])})
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise NodeError(
            f"--since must be a day (2026-11-01) or how long ago (7d, 12h, 30m), got {text!r}"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
