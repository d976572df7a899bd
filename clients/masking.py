"""This node's part in secure aggregation: its secrets of each run, and what it may do only once.

`federation.secagg` has the mathematics and keeps nothing. Here is the state that makes it safe: a draw is
masked once, one list of survivors is signed for it, and only what was signed is opened. It lies in
`masks/RUN.keys` and, a line for each thing done, `masks/RUN.done` (mode 0600), because under a stock SuperNode each
message meets a new process, and under Ray any of several. So the files say what is so, not memory: a method
locks the folder, and reads again what another process has changed. What must outlive a power cut is on the
disk before a reply leaves: the ledger's charge of a draw, the roster that the secrets are bound to, and the
signed list.
"""

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from clients.keys import must_be_pinned
from federation import secagg
from federation.durable import write_whole
from federation.plan import Reason, Refused
from federation.protocol import AgreeOrder, Head, Masked, OpenOrder, Sealed
from federation.secagg import Advert, Roster, Secrets

KEYS, DONE = ".keys", ".done"
SPARE_DRAWS = 50  # beyond one per round and the last tables: for rounds that were void
Stamps = tuple[tuple[int, int, int], tuple[int, int]]
NO_KEYS = "there are no keys of this run here: they must be made again"


@dataclass(frozen=True)
class Done:
    """What was done with the set-up `transcript`: the newest draw masked, and the newest list that was signed."""

    transcript: str
    masked: int = -1
    signed: int = -1
    survivors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Session:
    """One set-up of keys: the secrets, everybody's adverts once they are checked, and what was done with them."""

    secrets: Secrets
    roster: Roster | None
    done: Done


class Masks:
    """The sessions of one node. `pins`: by peer, the Ed25519 public key that its `node.toml` has."""

    def __init__(self, folder: Path, name: str, key: Ed25519PrivateKey, pins: Mapping[str, bytes]) -> None:
        self.folder = folder / "masks"
        self.name = name
        self._key = key
        self._pins = {**pins, name: key.public_key().public_bytes_raw()}
        self._open: dict[str, tuple[Stamps, Session]] = {}  # as the files were when they were read

    def keys(self, plan: Masked, draws: int, keeps: tuple[str, Head] | None) -> Advert:
        """New secrets for `draws` masked vectors of `plan`, in place of any older ones of its run."""
        self._must_be_pinned(plan)
        if not 1 <= draws <= plan.masked_draws + SPARE_DRAWS:
            raise Refused(Reason.MASKS, f"keys for {draws} draws are more than the plan's rounds can need")
        own = Secrets(plan.run_id, plan.sha256, self.name, draws, secrets.token_bytes(32))
        self.folder.mkdir(mode=0o700, exist_ok=True)
        with self._locked():
            self._keep(own, None)
        kept = None if keeps is None else (keeps[0], *keeps[1])
        return secagg.advert(own, self._key, keeps=kept)

    def deal(self, plan: Masked, adverts: Sequence[Advert]) -> tuple[dict[str, tuple[Sealed, ...]], Roster]:
        """Check everybody's adverts, keep them, and share this node's seeds with each of them."""
        with self._locked():
            session = self._session(plan.run_id)
            if session.secrets.plan_sha256 != plan.sha256 or session.roster is not None:
                raise Refused(
                    Reason.REPLAYED, "the keys of this set-up have been dealt, or are another plan's"
                )
            roster = self._check(plan, session.secrets.draws, adverts)
            own = secagg.bind(session.secrets, roster)
            self._keep(own, roster)
        return secagg.deal(own, roster), roster

    def may_mask(self, plan: Masked, transcript: str, draw: int) -> int:
        """How many draws this set-up has; `Refused` unless `draw` is a new one.

        Two vectors under one mask would show their difference.
        """
        with self._locked():
            return self._may_mask(plan, transcript, draw)[0].secrets.draws

    def _may_mask(self, plan: Masked, transcript: str, draw: int) -> tuple[Session, Roster]:
        session, roster = self._of(plan.run_id, transcript)
        if session.secrets.plan_sha256 != plan.sha256:
            raise Refused(Reason.MASKS, "the keys of this set-up are another plan's")
        if not session.done.masked < draw < session.secrets.draws:
            raise Refused(Reason.REPLAYED, f"draw {draw} of this set-up has been masked, or has no keys")
        return session, roster

    def mask(self, plan: Masked, transcript: str, draw: int, vector: np.ndarray) -> np.ndarray:
        """`vector` under this draw's masks, once."""
        with self._locked():
            session, roster = self._may_mask(plan, transcript, draw)
            done = replace(session.done, masked=draw)
            self._did(session, done, durable=False)  # the ledger's charge is durable
        return secagg.mask(session.secrets, roster, draw, vector)

    def agree(self, order: AgreeOrder) -> bytes:
        """Sign the list of survivors of a draw that this node masked: one list, on the disk before it leaves."""
        with self._locked():
            session, roster = self._of(order.run_id, order.transcript)
            if order.draw > session.done.masked:
                raise Refused(
                    Reason.MASKS, f"draw {order.draw} was not masked here, so its list is not signed"
                )
            if order.draw <= session.done.signed:
                raise Refused(
                    Reason.REPLAYED, f"a list of survivors of draw {order.draw} or later has been signed"
                )
            signature = secagg.sign_survivors(self._key, roster, order.draw, order.survivors)
            done = replace(session.done, signed=order.draw, survivors=order.survivors)
            self._did(session, done, durable=True)
        return signature

    def open(self, order: OpenOrder) -> dict[str, bytes]:
        """For the list that this node signed, the shares that unmask its sum; secrets go with the last draw."""
        with self._locked():
            session, roster = self._of(order.run_id, order.transcript)
            if (session.done.signed, session.done.survivors) != (order.draw, order.survivors):
                raise Refused(
                    Reason.MASKS, f"draw {order.draw}: this is not the list of survivors that was signed"
                )
            signed, sealed = order.signatures, order.sealed
            shares = secagg.open_shares(
                session.secrets, roster, order.draw, order.survivors, signed, sealed, self._pins
            )
            if order.last:
                self._forget(order.run_id)
        return shares

    # --- what is kept -----------------------------------------------------------------------------------

    def _must_be_pinned(self, plan: Masked) -> None:
        circle = plan.circle
        if circle is None or self.name not in circle.agencies:
            raise Refused(Reason.MASKS, "the plan has no shared noise that this agency is part of")
        must_be_pinned(circle.agencies, self._pins)

    def _check(self, plan: Masked, draws: int, adverts: Sequence[Advert]) -> Roster:
        self._must_be_pinned(plan)
        assert plan.circle is not None  # noqa: S101 - just checked
        return secagg.check_adverts(
            adverts,
            run_id=plan.run_id,
            plan_sha256=plan.sha256,
            agencies=plan.circle.agencies,
            pins=self._pins,
            threshold=plan.circle.threshold,
            draws=draws,
        )

    def _of(self, run_id: str, transcript: str) -> tuple[Session, Roster]:
        session = self._session(run_id)
        if session.roster is None or session.roster.transcript != transcript:
            raise Refused(Reason.MASKS, "there are no keys of this set-up here: it must be made again")
        return session, session.roster

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time: nothing is done between reading what was done and adding to it."""
        try:
            folder = os.open(self.folder, os.O_RDONLY)
        except FileNotFoundError:
            raise Refused(Reason.MASKS, NO_KEYS) from None
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _session(self, run_id: str) -> Session:
        """The session as the files have it now; whatever does not decode is not there."""
        try:
            keys, done = stamps = self._stamps(run_id)
            then, session = self._open.get(run_id, (None, None))
            if session is None or then is None or then[0] != keys:
                session = self._read(run_id)
            elif then[1] != done:
                known = _read_done(self._path(run_id, DONE), session.secrets.transcript)
                session = replace(session, done=known)
        except (OSError, KeyError, TypeError, ValueError):
            self._open.pop(run_id, None)
            raise Refused(Reason.MASKS, NO_KEYS) from None
        self._open[run_id] = (stamps, session)
        return session

    def _read(self, run_id: str) -> Session:
        keys = json.loads(self._path(run_id, KEYS).read_text())
        own = Secrets.from_dict(keys["secrets"])
        if own.run_id != run_id:
            raise ValueError("these are the keys of another run: an order's run_id is no path")
        adverts = tuple(Advert.from_dict(advert) for advert in keys["adverts"])
        return Session(
            own,
            Roster(own.run_id, own.plan_sha256, int(keys["threshold"]), adverts) if adverts else None,
            _read_done(self._path(run_id, DONE), own.transcript),
        )

    def _stamps(self, run_id: str) -> Stamps:
        """Which keys and how much of what was done are in the files: a write of any process changes them."""
        keys, done = (self._path(run_id, what).stat() for what in (KEYS, DONE))
        return (keys.st_ino, keys.st_mtime_ns, keys.st_size), (done.st_ino, done.st_size)

    def _keep(self, own: Secrets, roster: Roster | None) -> None:
        """Put new keys, whole and private, onto the disk and into memory."""
        path, done = self._path(own.run_id, KEYS), self._path(own.run_id, DONE)
        done.touch(mode=0o600)
        write_whole(path, json.dumps(_keys_of(own, roster)).encode())
        session = Session(own, roster, Done(own.transcript))
        self._open[own.run_id] = (self._stamps(own.run_id), session)

    def _did(self, session: Session, done: Done, *, durable: bool) -> None:
        """Add a line to what was done, before it is done."""
        run_id = session.secrets.run_id
        with self._path(run_id, DONE).open("a") as file:
            file.write(f"\n{json.dumps(asdict(done))}\n")  # half a line of a crash stays by itself
            if durable:
                file.flush()
                os.fsync(file.fileno())
        self._open[run_id] = (self._stamps(run_id), replace(session, done=done))

    def _forget(self, run_id: str) -> None:
        self._open.pop(run_id, None)
        for what in (KEYS, DONE):
            self._path(run_id, what).unlink(missing_ok=True)

    def _path(self, run_id: str, what: str) -> Path:
        return self.folder / f"{run_id}{what}"


def _read_done(path: Path, transcript: str) -> Done:
    """The last whole line about this set-up; a half one was never acted on."""
    for line in reversed(path.read_text().splitlines()):
        try:
            values = json.loads(line)
            done = Done(
                str(values["transcript"]),
                int(values["masked"]),
                int(values["signed"]),
                tuple(values["survivors"]),
            )
        except (KeyError, TypeError, ValueError):
            continue
        if done.transcript == transcript:
            return done
    return Done(transcript)


def _keys_of(own: Secrets, roster: Roster | None) -> dict[str, Any]:
    return {
        "secrets": own.to_dict(),
        "adverts": [] if roster is None else [advert.to_dict() for advert in roster.adverts],
        "threshold": 0 if roster is None else roster.threshold,
    }


__all__ = ["Masks", "Session"]
