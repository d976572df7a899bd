"""What people at the agency decided on plans: `approvals.jsonl`, which only grows, and `asked/`, the plans that wait.

A line is one decision: `seq`, `at` (UTC), `action`, `plan_sha256`, `who`, `why`, `previous` and `hash`, SHA-256 over all
the others in canonical form. The newest line of a plan counts. It is on the disk when `approve` or `withdraw`
returns; half a line that a crash left never counted, and the next write removes it. `verify` finds a line that was
changed, removed from the middle, put in or moved; the node's journal has a line for each decision as well, so one
that was removed from the end is found too.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from clients import journal
from clients import journal_lines as lines
from clients.folder import NodeError
from clients.journal import Journal
from clients.rules import Plan, Standing
from federation.cohort import CohortPlan
from federation.durable import sync_folder
from federation.plan import Agreed, TrainPlan, sentences
from federation.stats import StatsPlan

START = "0" * 64
MOST_ASKED = 100  # plans that are kept for a person to read: the oldest go first
Text = Annotated[str, Field(min_length=1, max_length=400)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ApprovalsError(NodeError):
    """The approvals cannot be read or written, or fail their chain: one sentence. The node answers no order."""


class Decision(Agreed):
    """One line. `action` is what the plan's standing becomes."""

    seq: Annotated[int, Field(ge=1)]
    at: datetime
    action: Standing
    plan_sha256: Sha256
    who: Text
    why: Text
    previous: Sha256
    hash: Sha256


class Approvals:
    """The decisions in a node's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "approvals.jsonl"

    def approve(self, plan_sha256: str, who: str, why: str, when: datetime) -> Decision:
        """From now on the plan may run, as far as the policy permits it. `ApprovalsError` where that is not written."""
        return self._decide("approved", plan_sha256, who, why, when)

    def withdraw(self, plan_sha256: str, who: str, why: str, when: datetime) -> Decision:
        """No further order of the plan is answered, whether or not it had been approved. What has left stays out."""
        return self._decide("withdrawn", plan_sha256, who, why, when)

    def standing(self) -> dict[str, Standing]:
        """What was decided last, by plan."""
        return {decision.plan_sha256: decision.action for decision in self.decisions()}

    def decisions(self) -> list[Decision]:
        """Every decision, oldest first; `ApprovalsError` names the first line that is not as it was written."""
        try:
            *whole, _ = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ApprovalsError(f"{self.path} cannot be read ({error.strerror})") from None
        return self._chained(whole)

    def verify(self) -> int:
        """How many decisions there are, if the chain holds and the journal knows of the same; else `ApprovalsError`."""
        found = self.decisions()
        kinds = {"approved", "withdrawn"}
        noted = [
            (record.kind, record.facts["plan_sha256"])
            for record in journal.read(self.folder)
            if record.kind in kinds
        ]
        written = iter([(str(decision.action), decision.plan_sha256) for decision in found])
        if not all(
            decision in written for decision in noted
        ):  # in this order; a crash may have lost some of the journal's
            raise ApprovalsError(
                f"{self.path} does not have the decisions that the journal has: put it back from a copy, and find out who "
                "wrote to it"
            )
        return len(found)

    def _decide(self, action: Standing, plan_sha256: str, who: str, why: str, when: datetime) -> Decision:
        if not re.fullmatch(r"[0-9a-f]{64}", plan_sha256):
            raise ApprovalsError(
                f"a plan is named by its SHA-256, 64 hexadecimal digits as the log shows it, got {plan_sha256!r}"
            )
        if when.tzinfo is None:
            raise ValueError("when must have a time zone")
        for name, text in (("who", who), ("why", why)):
            if not text.strip():
                raise ApprovalsError(f"{name} must be said: it is what the record is for")
        try:
            with self._locked():
                decision = self._append(action, plan_sha256, who, why, when)
        except OSError as error:
            raise ApprovalsError(
                f"{self.path} cannot be written ({error.strerror}): nothing was decided"
            ) from None
        line = lines.Approved if action == "approved" else lines.Withdrawn
        Journal(self.folder, now=lambda: when).write(line(plan_sha256=plan_sha256, by=decision.who))
        return decision

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time, whichever process."""
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _append(self, action: Standing, plan_sha256: str, who: str, why: str, when: datetime) -> Decision:
        self._cut_half_a_line()
        before = self.decisions()
        facts = {
            "seq": len(before) + 1,
            "at": when.astimezone(UTC).isoformat(timespec="milliseconds"),
            "action": action,
            "plan_sha256": plan_sha256,
            "who": lines.printable(who.strip()),
            "why": lines.printable(why.strip()),
            "previous": before[-1].hash if before else START,
        }
        facts["hash"] = _hash(facts)
        size = self.path.stat().st_size
        try:
            with self.path.open("ab") as file:
                file.write(_json(facts) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            sync_folder(self.folder)
        except OSError:
            os.truncate(self.path, size)
            raise
        return Decision.model_validate(facts)

    def _cut_half_a_line(self) -> None:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)

    def _chained(self, whole: list[bytes]) -> list[Decision]:
        found: list[Decision] = []
        for number, text in enumerate(whole, start=1):
            decision = _read(text)
            previous = found[-1].hash if found else START
            if decision is None or (decision.seq, decision.previous) != (number, previous):
                raise ApprovalsError(
                    f"{self.path} fails its hash chain at line {number}, which was changed or removed after it was "
                    "written: put it back from a copy, and find out who wrote to it"
                )
            found.append(decision)
        return found


def _read(text: bytes) -> Decision | None:
    """The decision in one line, if its hash is that of what it says."""
    try:
        facts = json.loads(text)
        given = facts.pop("hash")
        return Decision.model_validate(facts | {"hash": given}) if given == _hash(facts) else None
    except (AttributeError, KeyError, TypeError, ValueError):  # pydantic's is a ValueError
        return None


def _hash(facts: object) -> str:
    return hashlib.sha256(_json(facts)).hexdigest()


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


# --- plans that wait for a person ---------------------------------------------------------------------


def keep_asked(folder: Path, plan: Plan) -> None:
    """Keep the whole plan in `asked/`, for the person who is to approve it. A full disk changes no answer."""
    with contextlib.suppress(OSError):
        home = folder / "asked"
        home.mkdir(mode=0o700, exist_ok=True)
        path = home / f"{plan.sha256}.json"
        if path.exists():
            return
        handle = os.open(path.with_suffix(".writing"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(plan.canonical)
        path.with_suffix(".writing").replace(path)
        for old in sorted(home.glob("*.json"), key=lambda kept: kept.stat().st_mtime_ns)[:-MOST_ASKED]:
            old.unlink()


def asked(folder: Path) -> list[Plan]:
    """The plans in `asked/` on which nobody has decided yet, newest first."""
    standing = Approvals(folder).standing()
    newest = sorted((folder / "asked").glob("*.json"), key=lambda kept: kept.stat().st_mtime_ns, reverse=True)
    return [read_plan(path) for path in newest if path.stem not in standing]


def read_plan(path: Path) -> Plan:
    """The plan in a JSON file, as it rides in an order; `NodeError` says what is wrong with it."""
    try:
        text = path.read_text()
        values = json.loads(text)
        kinds: dict[str, type[Plan]] = {"column": StatsPlan, "of": CohortPlan}
        kind = next((kind for key, kind in kinds.items() if key in values), TrainPlan)
        return kind.model_validate_json(text)
    except OSError as error:
        raise NodeError(f"{path} cannot be read ({error.strerror})") from None
    except ValidationError as error:
        raise NodeError("\n".join(f"{path.name}: {line}" for line in sentences(error))) from None
    except (TypeError, ValueError):
        raise NodeError(f"{path} is not a plan in JSON") from None


__all__ = ["Approvals", "ApprovalsError", "Decision", "asked", "keep_asked", "read_plan"]
