"""`approval.json`, beside a model: whether the panel that node.toml pins allows it here now, and within which limits.

Everything is verified offline (`federation.decision`). What this machine remembers is the newest word of the panel on
each decision that it saw, in `panel-status.json`: an older one is not believed afterwards, and a suspension that
was heard once stands for good.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

from pydantic import TypeAdapter, ValidationError

from clients.folder import NodeError, NodeFile
from clients.scoring.model_file import Model, ScoringError
from federation.decision import (
    CLOCKS_DIFFER,
    Approval,
    DecisionError,
    Heard,
    Panel,
    Permission,
    Status,
    permitted,
    read_approval,
)
from federation.durable import write_whole
from federation.plan import Sha256

APPROVAL = "approval.json"  # beside card.json: where there is none, nothing was decided
SEEN = "panel-status.json"  # in the node's folder
_SEEN = TypeAdapter(dict[Sha256, Heard])
REHEARSE = "or add --rehearsal to try the model, and act on nothing that it writes"


@final
@dataclass(frozen=True)
class Approved:
    """That a panel allows a model at this node for now, as every page says it."""

    panel: str
    permission: Permission

    @property
    def state(self) -> str:
        """The verdict in words."""
        return "approved with conditions" if self.permission.conditions else "approved"

    @property
    def until(self) -> str:
        """When the approval ends, or the panel must have said again that it stands: whichever is first."""
        return f"{self.permission.until.astimezone(UTC):%d %B %Y %H:%M} UTC"

    @property
    def decision(self) -> str:
        """The decision as people name it: the beginning of its SHA-256."""
        return self.permission.decision_sha256[:12]

    @property
    def brief(self) -> str:
        """Who approved it, how, until when, and by which decision; one line."""
        return " ".join(
            f"{self.state} by the panel {self.panel} until {self.until}, decision {self.decision}".split()
        )

    @property
    def sentence(self) -> str:
        """`brief`, with who answers for it and each condition; one line."""
        conditions = "; ".join(condition.text for condition in self.permission.conditions)
        more = f"; conditions: {conditions}" if conditions else ""
        return " ".join(f"{self.brief}; owner: {self.permission.owner}{more}".split())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        found = self.permission
        return {
            "panel": self.panel,
            "verdict": found.verdict,
            "until": found.until.isoformat(),
            "owner": found.owner,
            "conditions": [condition.text for condition in found.conditions],
            "limits": found.limits.model_dump(mode="json"),
            "decision_sha256": found.decision_sha256,
        }

    def check_capacity(self, capacity: int) -> None:
        """`ScoringError` where one run would list more people than the panel allows."""
        most = self.permission.limits.capacity
        if most is not None and capacity > most:
            raise ScoringError(
                f"--capacity {capacity} is more than the {most} people that the panel {self.panel!r} allows one run to "
                f"list: ask for {most} at most"
            )


def read_permission(folder: Path, facts: NodeFile, model: Model, place: Path, now: datetime) -> Approved:
    """What the panel of the node in `folder` allows with the model that was read from `place`.

    `ScoringError`, `DecisionError` or `NodeError` says why it is nothing, and what to do.
    """
    panel = facts.panel
    if panel is None:
        raise ScoringError(
            "node.toml pins no ethics panel, so no approval can be verified and nobody is scored: put the panel's keys "
            f"under [panel] (docs/hosting-a-node.md says how), {REHEARSE}"
        )
    approval = _read(place, panel)
    heard = _heard(folder, panel, approval, now)
    found = permitted(approval, panel, model.card, model.card_sha256, now=now, heard=heard)
    agencies = found.limits.agencies
    if agencies is not None and facts.name not in agencies:
        raise ScoringError(
            f"the panel {panel.name!r} approved the model for {', '.join(agencies) or 'nobody'} and not for "
            f"{facts.name!r}, which this node is: nobody is scored with it here"
        )
    return Approved(panel.name, found)


def check_seen(folder: Path) -> None:
    """`NodeError` where what this machine remembers of its panel is damaged."""
    _seen(folder / SEEN)


def _read(place: Path, panel: Panel) -> Approval:
    path = place / APPROVAL
    try:
        return read_approval(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ScoringError(
            f"{path} is not there: the panel {panel.name!r} decided nothing on this model that this machine knows of, so "
            f"nobody is scored. Get {APPROVAL} from the panel and put it beside card.json, {REHEARSE}"
        ) from None
    except (OSError, UnicodeDecodeError):
        raise ScoringError(f"{path} cannot be read: get it from the panel again") from None


def _heard(folder: Path, panel: Panel, approval: Approval, now: datetime) -> Heard | None:
    """What was ever heard here of this decision; the status of `approval` is heard now.

    One from the future may be a wrong clock's, and is kept in mind only if it suspends.
    """
    with _alone(folder):
        seen = _seen(folder / SEEN)
        with contextlib.suppress(DecisionError):  # `permitted` says what is wrong with it
            status = approval.status.verify(Status, panel, quorum=panel.status_quorum)
            before = seen.get(status.decision_sha256)
            suspends = status.state == "suspended"
            if suspends or status.issued <= now + CLOCKS_DIFFER:
                latest = status.issued if before is None else max(status.issued, before.issued)
                after = Heard(issued=latest, suspended=suspends or (before is not None and before.suspended))
                if after != before:
                    seen[status.decision_sha256] = after
                    write_whole(folder / SEEN, _SEEN.dump_json(seen, indent=1))
        return seen.get(approval.decision.digest)


def _seen(path: Path) -> dict[str, Heard]:
    """By a decision's SHA-256, what was heard of it."""
    try:
        return _SEEN.validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError):
        raise NodeError(
            f"{path} is damaged, so this machine no longer knows what it heard last from its panel and nobody is scored: "
            "put it back from a copy; or get the newest approval.json from the panel itself, then remove the file"
        ) from None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process remembers anything meanwhile; `NodeError` where nothing can be remembered at all."""
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)
    except OSError as error:
        raise NodeError(
            f"{folder / SEEN} cannot be used ({error.strerror}): the newest word of the panel must be remembered, so "
            "nobody is scored"
        ) from None
