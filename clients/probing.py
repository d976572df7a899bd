"""Probing the limits is rate limited: after too many refusals no new plan is looked at for a while.

Who sends plan after plan and reads the refusals learns where this agency's limits are, and by a refusal that depends on
data one bit about its records. So refusals are counted in `probing.db`, which outlives the process: those that say
something of a limit or of data (`TELL`) each time, and those that a plan gets because it passed all lasting rules
(`ONCE`) once for each plan. Beyond `[probing]` of policy.toml every order of a plan that was never accepted here gets
BUSY, whatever it says and whatever the records are, until enough of the counted refusals are older than the window.
Plans that were accepted before go on: what they may learn is charged.

Who asked knows how many refusals it got, so BUSY tells it nothing new. A refusal is padded as any other reply
(`min_reply_seconds`), and counts before it leaves.
"""

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from clients.folder import NodeError
from clients.policy import ProbingRules
from federation.plan import Reason, Refused, Terms

TELL = frozenset(
    {
        *(Reason.MALFORMED, Reason.CONTRACT, Reason.MODEL, Reason.PURPOSE, Reason.PRIVACY, Reason.BUDGET),
        Reason.UNAVAILABLE,
    }
)
ONCE = frozenset({Reason.NOT_YET, Reason.CLOSED})
SCHEMA = """
CREATE TABLE IF NOT EXISTS refusals (at REAL NOT NULL, plan TEXT NOT NULL, experiment TEXT NOT NULL, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS accepted (plan TEXT PRIMARY KEY) WITHOUT ROWID;
"""


class ProbingError(NodeError):
    """The count of refusals cannot be read or written: one sentence. The node then answers no order."""


class Counted(NamedTuple):
    """Refusals in the window: of all experiments, and of each."""

    refusals: int
    per_experiment: dict[str, int]


class Probing:
    """The count in a node's `folder`; `now` is the clock, with a time zone. `rules` None: nothing is counted (a simulation)."""

    def __init__(
        self,
        folder: Path,
        rules: ProbingRules | None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.path = folder / "probing.db"
        self._rules = rules
        self._now = now
        self._accepted: set[str] = set()

    def check(self, plan: Terms) -> None:
        """`Refused(BUSY)` where `plan` is new and too many refusals are in the window."""
        rules = self._rules
        if rules is None or self._was_accepted(plan.sha256):
            return
        counted = self.counted()
        of_plans = counted.per_experiment.get(plan.experiment, 0)
        if counted.refusals >= rules.refusals:
            rule, found = "refusals", f"{counted.refusals} refusals"
        elif of_plans >= rules.per_experiment:
            rule, found = "per_experiment", f"{of_plans} refusals of experiment {plan.experiment}"
        else:
            return
        raise Refused(
            Reason.BUSY, f"probing.{rule}: {found} in {rules.hours:g} hours: no new plan is looked at for now"
        )

    def refused(self, plan: Terms, reason: Reason) -> None:
        """Count a refusal of `plan`, before it leaves."""
        if self._rules is None or reason not in TELL | ONCE:
            return
        at, row = self._now().timestamp(), (plan.sha256, plan.experiment, reason.value)
        with self._database() as database:
            known = "SELECT 1 FROM refusals WHERE plan = ? AND reason IN (?, ?)"
            once = (plan.sha256, *sorted(ONCE))
            if reason in ONCE and database.execute(known, once).fetchone():
                return
            database.execute("DELETE FROM refusals WHERE at <= ?", (at - self._window,))
            database.execute("INSERT INTO refusals VALUES (?, ?, ?, ?)", (at, *row))

    def accepted(self, plan: Terms) -> None:
        """Remember that `plan` was answered: its later orders are always looked at."""
        if self._rules is not None and not self._was_accepted(plan.sha256):
            with self._database() as database:
                database.execute("INSERT OR IGNORE INTO accepted VALUES (?)", (plan.sha256,))
            self._accepted.add(plan.sha256)

    def counted(self) -> Counted:
        """What is in the window now. A refusal that is dated in the future (a clock that was set back) counts."""
        if self._rules is None:
            return Counted(0, {})
        by = "SELECT experiment, count(*) FROM refusals WHERE at > ? GROUP BY experiment"
        with self._database() as database:
            found = dict(database.execute(by, (self._now().timestamp() - self._window,)).fetchall())
        return Counted(sum(found.values()), found)

    @property
    def _window(self) -> float:
        """Seconds."""
        return 0.0 if self._rules is None else self._rules.hours * 3600

    def _was_accepted(self, plan: str) -> bool:
        if plan not in self._accepted:
            with self._database() as database:
                if not database.execute("SELECT 1 FROM accepted WHERE plan = ?", (plan,)).fetchone():
                    return False
            self._accepted.add(plan)
        return True

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """Committed as a whole, or `ProbingError`."""
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            with contextlib.closing(sqlite3.connect(self.path, timeout=10)) as database, database:
                database.executescript(SCHEMA)
                yield database
        except (OSError, sqlite3.Error) as error:
            raise ProbingError(
                f"{self.path} cannot be used ({type(error).__name__}): free some space, give the node's user the right to "
                "write there, or put it back from a copy; without a count of refusals nothing is answered"
            ) from None
