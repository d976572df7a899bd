"""`fedrisk-node doctor`: is this node fit to work? Each check is one small function that says a sentence.

"ok" says what was found, "warn" what may be as it should, "fail" what must be mended and how; only a failure makes
the exit code 1. Nothing in the folder is changed. A check that stumbles names the kind of error and no more: an
error's text may quote a record.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clients.desk import doctor_folder as folder
from clients.desk import doctor_network as network
from clients.desk.doctor_subject import State, Subject, Verdict


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    state: State
    sentence: str


Check = Callable[[Subject], Verdict | None]  # None: there is nothing to say here
CHECKS: tuple[tuple[str, Check], ...] = (
    ("versions", folder.versions),
    ("release", folder.release),
    ("node.toml", folder.node_file),
    ("permissions", folder.permissions),
    ("keys", folder.key_files),
    ("contract", folder.contract),
    ("policy", folder.policy),
    ("data", folder.data),
    ("ledger", folder.ledger),
    ("journal", folder.journal),
    ("approvals", folder.approvals),
    ("panel", folder.panel),
    ("disk", folder.disk),
    ("telemetry", folder.telemetry),
    ("ports", folder.ports),
)
LINE: tuple[tuple[str, Check], ...] = (
    ("proxy", network.proxy),
    ("connection", network.connection),
    ("certificate", network.certificate),
    ("clock", network.clock),
    ("enrolment", network.enrolment),
)


def examine(place: Path, *, offline: bool = False) -> list[Finding]:
    """Every check of the node in `place`, in order; `offline` leaves out those of the line to the SuperLink."""
    subject = Subject(place)
    found = []
    for name, check in CHECKS if offline else CHECKS + LINE:
        try:
            verdict = check(subject)
        except Exception as error:  # noqa: BLE001 - the others go on, and its text may quote a cell
            verdict = (
                "fail",
                f"this check stumbled over {type(error).__name__}: tell the maintainers of fedrisk",
            )
        if verdict is not None:
            found.append(Finding(name, *verdict))
    return found
