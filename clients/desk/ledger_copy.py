"""A ledger for reading alone, while a node runs or not: a copy of its two files that is thrown away afterwards.

SQLite makes files beside a ledger that it opens, even to read it. A copy leaves the folder as it is; it is taken
again where the node wrote in between.
"""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from clients.folder import NodeFile
from clients.ledger import Ledger, LedgerError
from clients.policy import Policy

ATTEMPTS = 10
FILES = ("ledger.db", "ledger.db-wal")


@contextlib.contextmanager
def read_only(folder: Path, facts: NodeFile, policy: Policy) -> Iterator[Ledger]:
    """The ledger of the node in `folder`, its chain checked; an empty one where there is none yet. `LedgerError` as it has."""
    with tempfile.TemporaryDirectory() as place:
        ledger = _opened(folder, Path(place), facts, policy)
        try:
            yield ledger
        finally:
            ledger.close()


def _opened(folder: Path, place: Path, facts: NodeFile, policy: Policy) -> Ledger:
    for attempt in range(ATTEMPTS):
        still = _copy(folder, place)
        try:
            return Ledger(
                place / FILES[0],
                budget=None if policy.budget is None else policy.budget.limits(),
                scope="this run alone" if policy.simulation else "lifetime",
                people=f"{facts.name}/{facts.dataset}",
            )
        except LedgerError as error:
            if still or attempt == ATTEMPTS - 1:  # it is not a copy that was caught half way
                raise LedgerError(str(error).replace(str(place), str(folder))) from None
            time.sleep(0.1)
    raise AssertionError("the last attempt returns or raises")


def _copy(folder: Path, place: Path) -> bool:
    """Copy what is there; whether nobody wrote meanwhile."""
    for attempt in range(ATTEMPTS):
        before = _stamps(folder)
        for name in FILES:
            (place / name).unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(folder / name, place / name)
        (place / "ledger.db-shm").unlink(missing_ok=True)
        if _stamps(folder) == before:
            return True
        time.sleep(0.02 * attempt)
    return False


def _stamps(folder: Path) -> list[tuple[int, int, int] | None]:
    found: list[tuple[int, int, int] | None] = []
    for name in FILES:
        try:
            status = (folder / name).stat()
            found.append((status.st_ino, status.st_size, status.st_mtime_ns))
        except FileNotFoundError:
            found.append(None)
    return found
