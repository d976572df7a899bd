"""This node's part in counting a cohort: the secret that it agrees with its peers, and the histogram under it.

`federation.pact` has the mathematics and keeps nothing. What is kept of a run is one file, `cohorts/RUN.json` (mode 0600):
the root of this node's own half, and everybody's greetings once they are checked; no order meets the same process for
certain, so the file says what is so. It goes when the histogram has left, or when another cohort is begun: one at a time, so
that one which was given up neither keeps a secret nor holds a budget. The agreed secret itself is never written.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from clients import randomness
from clients.keys import must_be_pinned
from clients.randomness import Stream
from federation import pact
from federation.cohort import CohortPlan
from federation.durable import write_whole
from federation.pact import Circle, Greeting, Own
from federation.plan import Reason, Refused
from models.matchkey import buckets_of

IntArray = NDArray[np.int64]


class Pacts:
    """The set-ups of one node, a file for each run. `pins`: by peer, the Ed25519 key that its `node.toml` has."""

    def __init__(self, folder: Path, name: str, key: Ed25519PrivateKey, pins: Mapping[str, bytes]) -> None:
        self.folder = folder / "cohorts"
        self.name = name
        self._key = key
        self._pins = {**pins, name: key.public_key().public_bytes_raw()}

    def greet(self, plan: CohortPlan, attempt: int) -> Greeting:
        """This node's greeting: the same for one attempt, anew for the next; an attempt of before is refused."""
        must_be_pinned(plan.of, self._pins)
        with self._locked():
            kept = self._read(plan)
            if kept is not None and attempt < kept[0].attempt:
                raise Refused(Reason.REPLAYED, f"set-up {attempt} of this run has been begun anew since")
            if kept is None or attempt > kept[0].attempt:
                kept = (Own(plan.run_id, plan.sha256, self.name, attempt, self._root(plan, attempt)), None)
                self._write(*kept)
        return pact.greet(kept[0], self._key)

    def seal(self, plan: CohortPlan, greetings: Sequence[Greeting]) -> dict[str, bytes]:
        """Check everybody's greetings, keep them, and seal this node's contribution to each: for one set of them."""
        with self._locked():
            own, circle = self._kept(plan)
            found = pact.check(greetings, own, asked=plan.of, pins=self._pins)
            if circle is not None and circle.transcript != found.transcript:
                raise Refused(Reason.REPLAYED, "this set-up has been sealed for other greetings")
            self._write(own, found)
        return pact.seal(own, found)

    def secret(self, plan: CohortPlan, boxes: Mapping[str, bytes]) -> bytes:
        """The secret of the set-up, 32 bytes, from what the others sealed to this node."""
        with self._locked():
            own, circle = self._kept(plan)
        if circle is None:
            raise Refused(Reason.MASKS, "no greetings were checked here: the secret has not been agreed")
        return pact.agree(own, circle, boxes)

    def forget_others(self, plan: CohortPlan) -> list[str]:
        """Forget the set-ups of other runs, which were given up; the SHA-256 of their plans."""
        with self._locked():
            others = [path for path in self.folder.glob("*.json") if path != self._path(plan)]
            found = []
            for path in others:
                with contextlib.suppress(OSError, KeyError, TypeError, ValueError):
                    found.append(Own.from_dict(json.loads(path.read_text())["own"]).plan_sha256)
                path.unlink(missing_ok=True)
        return found

    def forget(self, plan: CohortPlan) -> None:
        """The histogram has left: nothing else is made of this secret."""
        self._path(plan).unlink(missing_ok=True)

    def _root(self, plan: CohortPlan, attempt: int) -> bytes:
        """Of the operating system; a simulation repeats it by the seed, which no other node takes a plan with."""
        if plan.seed is None:
            return secrets.token_bytes(pact.BYTES)
        text = f"{plan.seed}|{self.name}|cohort {attempt}"
        return hashlib.blake2b(text.encode(), digest_size=pact.BYTES).digest()

    def _kept(self, plan: CohortPlan) -> tuple[Own, Circle | None]:
        kept = self._read(plan)
        if kept is None:
            raise Refused(Reason.MASKS, "there is no set-up of this cohort here: it must be begun anew")
        return kept

    def _read(self, plan: CohortPlan) -> tuple[Own, Circle | None] | None:
        """What is kept of this very plan; None where there is nothing, or it does not decode."""
        try:
            kept = json.loads(self._path(plan).read_text())
            own = Own.from_dict(kept["own"])
            greetings = tuple(map(Greeting.from_dict, kept["greetings"]))
        except (OSError, KeyError, TypeError, ValueError):
            return None
        if (own.run_id, own.plan_sha256, own.agency) != (plan.run_id, plan.sha256, self.name):
            return None
        return own, Circle(own.run_id, own.plan_sha256, greetings) if greetings else None

    def _write(self, own: Own, circle: Circle | None) -> None:
        greetings = [] if circle is None else [greeting.to_dict() for greeting in circle.greetings]
        text = json.dumps({"own": own.to_dict(), "greetings": greetings})
        write_whole(self.folder / f"{own.run_id}.json", text.encode())

    def _path(self, plan: CohortPlan) -> Path:
        return self.folder / f"{plan.run_id}.json"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)


def histogram(keys: Sequence[str], group: IntArray, secret: bytes, shape: tuple[int, int]) -> IntArray:
    """People by (level, bucket), exact, of `clients.records.matched.Keys`: each pair of key and group in one cell.

    One person adds one pair or none, so joining or leaving changes one cell by 1 at most.
    """
    cells = group * shape[1] + buckets_of(keys, secret, shape[1])
    return np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape).astype(np.int64)


def noised(counts: IntArray, plan: CohortPlan, stream: Stream) -> np.ndarray:
    """`counts` with discrete Laplace noise on each cell, in the plan's type; what that cannot hold is its nearest value."""
    drawn = randomness.discrete_laplace(stream, counts.size, plan.epsilon).reshape(counts.shape)
    limits = np.iinfo(plan.dtype)
    return np.asarray(np.clip(counts + drawn, limits.min, limits.max), plan.dtype)
