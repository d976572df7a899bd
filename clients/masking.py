"""This node's part in secure aggregation: its secrets of each run, and what it may do only once.

`federation.secagg` has the mathematics and keeps nothing. Here is the state that makes it safe: a draw is
masked once, one list of survivors is signed for it, and only what was signed is opened. It lies in
`masks/RUN.keys` and, a line for each thing done, `masks/RUN.done` (mode 0600), because under a stock SuperNode each
message meets a new process. What must outlive a power cut is on the disk before a reply leaves: the ledger's
charge of a draw, and the signed list.
"""

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation import secagg
from federation.plan import Reason, Refused, TrainPlan
from federation.protocol import AgreeOrder, Head, OpenOrder, Sealed
from federation.secagg import Advert, Roster, Secrets

KEYS, DONE = ".keys", ".done"
SPARE_DRAWS = 50  # beyond one per round and the last tables: for rounds that were void


@dataclass(frozen=True)
class Done:
    """What was done with a set-up of keys: the newest draw that was masked, and the newest list that was signed."""

    masked: int = -1
    signed: int = -1
    survivors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Session:
    """One set-up of keys: the secrets, everybody's adverts once they are checked, and what was done with them."""

    secrets: Secrets
    roster: Roster | None = None
    done: Done = Done()


class Masks:
    """The sessions of one node. `pins`: by peer, the Ed25519 public key that its `node.toml` has."""

    def __init__(self, folder: Path, name: str, key: Ed25519PrivateKey, pins: Mapping[str, bytes]) -> None:
        self.folder = folder / "masks"
        self.name = name
        self._key = key
        self._pins = {**pins, name: key.public_key().public_bytes_raw()}
        self._open: dict[str, Session] = {}

    def keys(self, plan: TrainPlan, draws: int, keeps: tuple[str, Head] | None) -> Advert:
        """New secrets for `draws` masked vectors of `plan`, in place of any older ones of its run."""
        self._must_be_pinned(plan)
        if not 1 <= draws <= plan.rounds + 1 + SPARE_DRAWS:
            raise Refused(Reason.MASKS, f"keys for {draws} draws are more than the plan's rounds can need")
        session = Session(Secrets(plan.run_id, plan.sha256, self.name, draws, secrets.token_bytes(32)))
        self._path(plan.run_id, DONE).unlink(missing_ok=True)
        self._keep(session)
        kept = None if keeps is None else (keeps[0], *keeps[1])
        return secagg.advert(session.secrets, self._key, keeps=kept)

    def deal(
        self, plan: TrainPlan, adverts: Sequence[Advert]
    ) -> tuple[dict[str, tuple[Sealed, ...]], Roster]:
        """Check everybody's adverts, keep them, and share this node's seeds with each of them."""
        session = self._session(plan.run_id)
        if session.secrets.plan_sha256 != plan.sha256 or session.roster is not None:
            raise Refused(Reason.REPLAYED, "the keys of this set-up have been dealt, or are another plan's")
        roster = self._check(plan, session.secrets.draws, adverts)
        session = replace(session, secrets=secagg.bind(session.secrets, roster), roster=roster)
        self._keep(session)
        return secagg.deal(session.secrets, roster), roster

    def may_mask(self, plan: TrainPlan, transcript: str, draw: int) -> None:
        """`Refused` unless `draw` of this set-up is new: two vectors under one mask would show their difference."""
        session, _ = self._of(plan.run_id, transcript)
        if session.secrets.plan_sha256 != plan.sha256:
            raise Refused(Reason.MASKS, "the keys of this set-up are another plan's")
        if not session.done.masked < draw < session.secrets.draws:
            raise Refused(Reason.REPLAYED, f"draw {draw} of this set-up has been masked, or has no keys")

    def mask(self, plan: TrainPlan, transcript: str, draw: int, vector: np.ndarray) -> np.ndarray:
        """`vector` under this draw's masks, once."""
        self.may_mask(plan, transcript, draw)
        session, roster = self._of(plan.run_id, transcript)
        self._did(
            session, replace(session.done, masked=draw), durable=False
        )  # the ledger's charge is durable
        return secagg.mask(session.secrets, roster, draw, vector)

    def agree(self, order: AgreeOrder) -> bytes:
        """Sign the list of survivors of a draw that this node masked: one list, on the disk before it leaves."""
        session, roster = self._of(order.run_id, order.transcript)
        if order.draw > session.done.masked:
            raise Refused(Reason.MASKS, f"draw {order.draw} was not masked here, so its list is not signed")
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

    def _must_be_pinned(self, plan: TrainPlan) -> None:
        shared = plan.privacy.shared
        if shared is None or self.name not in shared.agencies:
            raise Refused(Reason.MASKS, "the plan has no shared noise that this agency is part of")
        if missing := sorted(set(shared.agencies) - set(self._pins)):
            raise Refused(
                Reason.MASKS,
                f"peers: node.toml has no public key of {', '.join(missing)}: ask them for the line that "
                "`python -m clients.keys FOLDER` prints, over a channel that the coordinator does not run",
            )

    def _check(self, plan: TrainPlan, draws: int, adverts: Sequence[Advert]) -> Roster:
        self._must_be_pinned(plan)
        assert plan.privacy.shared is not None  # noqa: S101 - just checked
        return secagg.check_adverts(
            adverts,
            run_id=plan.run_id,
            plan_sha256=plan.sha256,
            agencies=plan.privacy.shared.agencies,
            pins=self._pins,
            threshold=plan.privacy.shared.threshold,
            draws=draws,
        )

    def _of(self, run_id: str, transcript: str) -> tuple[Session, Roster]:
        session = self._session(run_id)
        if session.roster is None or session.roster.transcript != transcript:
            raise Refused(Reason.MASKS, "there are no keys of this set-up here: it must be made again")
        return session, session.roster

    def _session(self, run_id: str) -> Session:
        if run_id not in self._open:
            self._open[run_id] = self._read(run_id)
        return self._open[run_id]

    def _read(self, run_id: str) -> Session:
        try:
            keys = json.loads(self._path(run_id, KEYS).read_text())
            own = Secrets.from_dict(keys["secrets"])
            adverts = tuple(Advert.from_dict(advert) for advert in keys["adverts"])
            threshold = int(keys["threshold"])
            return Session(
                own,
                Roster(own.run_id, own.plan_sha256, threshold, adverts) if adverts else None,
                _read_done(self._path(run_id, DONE)),
            )
        except (OSError, KeyError, TypeError, ValueError):
            raise Refused(
                Reason.MASKS, "there are no keys of this run here: they must be made again"
            ) from None

    def _keep(self, session: Session) -> None:
        """Put new keys into memory and, whole and private, into their file."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        path = self._path(session.secrets.run_id, KEYS)
        beside = path.with_name(f"{path.name}.writing")
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(_keys_of(session), file)
        beside.replace(path)
        self._open[session.secrets.run_id] = session

    def _did(self, session: Session, done: Done, *, durable: bool) -> None:
        """Add a line to what was done, before it is done."""
        path = self._path(session.secrets.run_id, DONE)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w") as file:
            file.write(f"\n{json.dumps(asdict(done))}\n")  # half a line of a crash stays by itself
            if durable:
                file.flush()
                os.fsync(file.fileno())
        self._open[session.secrets.run_id] = replace(session, done=done)

    def _forget(self, run_id: str) -> None:
        self._open.pop(run_id, None)
        for what in (KEYS, DONE):
            self._path(run_id, what).unlink(missing_ok=True)

    def _path(self, run_id: str, what: str) -> Path:
        return self.folder / f"{run_id}{what}"


def _read_done(path: Path) -> Done:
    """The last whole line; a half one was never acted on."""
    for line in reversed(path.read_text().splitlines() if path.exists() else []):
        try:
            values = json.loads(line)
            return Done(int(values["masked"]), int(values["signed"]), tuple(values["survivors"]))
        except (KeyError, TypeError, ValueError):
            continue
    return Done()


def _keys_of(session: Session) -> dict[str, Any]:
    roster = session.roster
    return {
        "secrets": session.secrets.to_dict(),
        "adverts": [] if roster is None else [advert.to_dict() for advert in roster.adverts],
        "threshold": 0 if roster is None else roster.threshold,
    }


__all__ = ["Masks", "Session"]
