"""Secure aggregation: the coordinator learns the sum of the agencies' vectors, and no vector.

Bonawitz et al., Practical Secure Aggregation for Privacy-Preserving Machine Learning, CCS 2017
(eprint 2017/281), Protocol 4 with the consistency check of the malicious-server variant. Agency u sends

    y_u = x_u + PRG(b_u) + sum_{v > u} PRG(s_uv) - sum_{v < u} PRG(s_uv)   modulo 2^bits

where b_u is its own seed and s_uv what it and v derive from their X25519 mask keys. It deals Shamir shares
of b_u and of its mask key, any t of which suffice. When the list of survivors is signed by t of them, they
open b_u of each survivor and the mask key of each other agency, never both of one.

Unlike the paper, the keys of many draws are dealt at once. Each draw still has mask keys and a self-mask of
its own: a key that served two draws would, opened in the second, unmask the first, whose b_u is open.

With n agencies in the plan, c of which may tell the coordinator all they know, d that may drop out, t = n - d
and n > 2d + c, so 2t > n + c: two different lists cannot both get t signatures.

Everything here is a pure function of its arguments, but for the operating system's randomness in `deal`. What
needs memory is the node's: to `bind` secrets once and keep what comes back, to mask a draw once, and to sign
one list per draw.
"""

import base64
import dataclasses
import functools
import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from federation.masks import SEED, add_masks, canonical, derive, recombine, unwrap
from federation.plan import Reason, Refused

Sealed = tuple[bytes, bytes]  # shares of one draw's mask key and of its self-mask, each encrypted alone
Opened = Mapping[str, Mapping[str, bytes]]  # by agency that opened, by agency whose share it is

KEY, SELF = "key", "self"
NONCE = 12
FIELD_PRIME = 2**255 - 19
_PROBE = X25519PrivateKey.from_private_bytes(bytes(32))  # 2^254 once clamped: gives 0 for small orders alone


class UnmaskError(ValueError):
    """A sum that stays masked: one sentence says why."""


# --- values -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Secrets:
    """All that an agency must keep secret for `draws` masked vectors, grown from 32 random bytes.

    `root` must be fresh from the operating system for each set-up of keys, kept on the agency's disk alone
    and deleted after the last draw. `transcript` names the one roster that they serve (see `bind`).
    """

    run_id: str
    plan_sha256: str
    agency: str
    draws: int
    root: bytes = field(repr=False)
    transcript: str = ""

    def __post_init__(self) -> None:
        if len(self.root) != 32 or self.draws < 1:
            raise ValueError("secrets need a root of 32 bytes and at least one draw")

    def mask_seed(self, draw: int) -> bytes:
        """The 16 bytes behind this draw's mask key: opened if the agency drops out."""
        return self._grow("mask seed", draw)[:SEED]

    def self_seed(self, draw: int) -> bytes:
        """The 16 bytes behind this draw's self-mask: opened if the agency survives."""
        return self._grow("self seed", draw)[:SEED]

    def mask_key(self, draw: int) -> X25519PrivateKey:
        """This draw's mask key."""
        return _mask_key(self.mask_seed(draw), self.run_id, self.agency, draw)

    def share_key(self) -> X25519PrivateKey:
        """The key that others encrypt their shares to. Never opened."""
        return X25519PrivateKey.from_private_bytes(self._grow("share key"))

    def _grow(self, kind: str, *draw: int) -> bytes:
        return derive(self.root, f"fedrisk {kind} 1", self.run_id, self.plan_sha256, self.agency, *draw)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, root and all: for a file that only the node can read."""
        return {
            "run_id": self.run_id,
            "plan_sha256": self.plan_sha256,
            "agency": self.agency,
            "draws": self.draws,
            "root": base64.b64encode(self.root).decode(),
            "transcript": self.transcript,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; KeyError, TypeError or ValueError when it does not decode."""
        return cls(
            run_id=str(values["run_id"]),
            plan_sha256=str(values["plan_sha256"]),
            agency=str(values["agency"]),
            draws=int(values["draws"]),
            root=base64.b64decode(values["root"], validate=True),
            transcript=str(values["transcript"]),
        )


@dataclass(frozen=True)
class Advert:
    """An agency's public keys for a set-up: 32 bytes each, one mask key per draw, signed (64 bytes).

    `keeps`: a peer's name and the number and hash of the newest entry of its ledger that this agency has
    seen, so that the coordinator alone cannot set a ledger back.
    """

    agency: str
    share_key: bytes
    mask_keys: tuple[bytes, ...]
    signature: bytes
    keeps: tuple[str, int, str] | None = None

    def signed(self, run_id: str, plan_sha256: str) -> bytes:
        """What the signature is over: all of this for one plan."""
        return canonical(
            "fedrisk advert 1",
            run_id,
            plan_sha256,
            self.agency,
            self.share_key,
            self.mask_keys,
            self.keeps,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; keys and signature in base64."""
        return {
            "agency": self.agency,
            "share_key": base64.b64encode(self.share_key).decode(),
            "mask_keys": [base64.b64encode(key).decode() for key in self.mask_keys],
            "signature": base64.b64encode(self.signature).decode(),
            "keeps": self.keeps and list(self.keeps),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; KeyError, TypeError or ValueError when it does not decode."""
        peer = values["keeps"]
        return cls(
            agency=str(values["agency"]),
            share_key=base64.b64decode(values["share_key"], validate=True),
            mask_keys=tuple(base64.b64decode(key, validate=True) for key in values["mask_keys"]),
            signature=base64.b64decode(values["signature"], validate=True),
            keeps=None if peer is None else (str(peer[0]), int(peer[1]), str(peer[2])),
        )


@dataclass(frozen=True)
class Roster:
    """The adverts of a set-up, by name, as `check_adverts` left them; nothing else should make one.

    `threshold` is t. An agency of the plan without an advert is not in it and has no masks with anyone.
    """

    run_id: str
    plan_sha256: str
    threshold: int
    adverts: tuple[Advert, ...]

    @functools.cached_property
    def transcript(self) -> str:
        """SHA-256 (hex) of all that the members must have seen alike; every key and signature is bound to it."""
        adverts = [(a.agency, a.share_key, a.mask_keys, a.signature, a.keeps) for a in self.adverts]
        parts = canonical("fedrisk roster 1", self.run_id, self.plan_sha256, self.threshold, adverts)
        return hashlib.sha256(parts).hexdigest()

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The members, sorted."""
        return tuple(advert.agency for advert in self.adverts)

    @functools.cached_property
    def indices(self) -> Mapping[str, int]:
        """Where each member's shares lie on the polynomials, from 1."""
        return {name: position for position, name in enumerate(self.names, 1)}

    @property
    def draws(self) -> int:
        """How many masked vectors each member has keys for."""
        return len(self.adverts[0].mask_keys)

    def of(self, agency: str) -> Advert:
        """The advert of a member; KeyError for another name."""
        return self.adverts[self.indices[agency] - 1]


# --- keys ---------------------------------------------------------------------------------------------


def advert(
    secrets: Secrets, signing_key: Ed25519PrivateKey, keeps: tuple[str, int, str] | None = None
) -> Advert:
    """The public half of `secrets`, signed by the agency's pinned key. The same each time."""
    unsigned = Advert(secrets.agency, *_public_keys(secrets), signature=b"", keeps=keeps)
    signature = signing_key.sign(unsigned.signed(secrets.run_id, secrets.plan_sha256))
    return dataclasses.replace(unsigned, signature=signature)


def check_adverts(
    adverts: Iterable[Advert],
    *,
    run_id: str,
    plan_sha256: str,
    agencies: Collection[str],
    pins: Mapping[str, bytes],
    threshold: int,
    draws: int,
) -> Roster:
    """The roster of this set-up; `Refused(MASKS)` unless every advert checks.

    `agencies` are all n names of the plan, `pins` the Ed25519 public keys (32 bytes) that this agency
    trusts. There must be `threshold` adverts or more, each of another agency of the plan, signed under its
    pin for this plan, with `draws` mask keys; no key twice, and none that gives everyone the same secret.
    """
    found = tuple(sorted(adverts, key=lambda advert: advert.agency))
    n = len(set(agencies))
    _demand(draws >= 1, f"a set-up needs a draw, not {draws}")
    _demand(threshold <= n < 2 * threshold, f"a threshold of {threshold} of {n} agencies allows two lists")
    _demand(len(found) >= threshold, f"{len(found)} agencies sent keys, {threshold} are needed")
    _demand(len({advert.agency for advert in found}) == len(found), "an agency sent keys twice")
    for each in found:
        _demand(each.agency in agencies, f"the plan does not list {each.agency!r}, which sent keys")
        _check_signature(each, run_id, plan_sha256, pins)
        _demand(len(each.mask_keys) == draws, f"{each.agency!r} sent {len(each.mask_keys)} keys, not {draws}")
    keys = [key for each in found for key in (each.share_key, *each.mask_keys)]
    _demand(len(set(keys)) == len(keys), "a key is used twice")
    _demand(all(map(is_sound, keys)), "a key is not a point of X25519, or one that hides nothing")
    return Roster(run_id, plan_sha256, threshold, found)


def _check_signature(advert: Advert, run_id: str, plan_sha256: str, pins: Mapping[str, bytes]) -> None:
    _demand(advert.agency in pins, f"no key is pinned for {advert.agency!r}")
    signed = advert.signed(run_id, plan_sha256)
    _demand(
        verifies(pins[advert.agency], advert.signature, signed),
        f"the keys of {advert.agency!r} are not signed by it for this plan",
    )


def is_sound(key: bytes) -> bool:
    """32 bytes, the one way to write its point, and not of small order (X25519 would give all zeros)."""
    if len(key) != 32 or int.from_bytes(key, "little") >= FIELD_PRIME:
        return False
    try:
        _PROBE.exchange(X25519PublicKey.from_public_bytes(key))
    except ValueError:
        return False
    return True


def verifies(public_key: bytes, signature: bytes, signed: bytes) -> bool:
    """Whether `signature` is of `signed` by the Ed25519 key of these 32 bytes."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, signed)
    except (InvalidSignature, ValueError):
        return False
    return True


def _mask_key(seed: bytes, run_id: str, agency: str, draw: int) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(derive(seed, "fedrisk mask key 1", run_id, agency, draw))


def bind(secrets: Secrets, roster: Roster) -> Secrets:
    """`secrets` for this roster alone; keep these before dealing, and nothing else of them.

    Were they used with two rosters, a coordinator could have an agency survive in one and drop out in the
    other, and have both its seeds opened. `Refused(MASKS)` where they are bound to another roster, or where
    this roster has other keys of this agency.
    """
    _demand(secrets.agency in roster.indices, "this agency is not among those that sent keys")
    same_plan = (secrets.run_id, secrets.plan_sha256) == (roster.run_id, roster.plan_sha256)
    _demand(same_plan, "the keys are for another plan than this agency's secrets")
    listed, mine = roster.of(secrets.agency), _public_keys(secrets)
    _demand((listed.share_key, listed.mask_keys) == mine, "the keys under this agency's name are not its own")
    bound = dataclasses.replace(secrets, transcript=roster.transcript)
    _demand(secrets in (bound, dataclasses.replace(secrets, transcript="")), "a set-up has one roster only")
    return bound


def _public_keys(secrets: Secrets) -> tuple[bytes, tuple[bytes, ...]]:
    """The share key, and the mask key of each draw."""
    mask_keys = (secrets.mask_key(draw) for draw in range(secrets.draws))
    return public(secrets.share_key()), tuple(public(key) for key in mask_keys)


def public(key: X25519PrivateKey) -> bytes:
    """The 32 bytes that others see of it."""
    return key.public_key().public_bytes_raw()


def _check_bound(secrets: Secrets, roster: Roster, draw: int) -> None:
    _demand(secrets.transcript == roster.transcript, "this agency's secrets are not bound to this roster")
    _check_draw(roster, draw)


def _check_draw(roster: Roster, draw: int) -> None:
    _demand(0 <= draw < roster.draws, f"there are keys for {roster.draws} draws, none for draw {draw}")


# --- shares -------------------------------------------------------------------------------------------


def deal(secrets: Secrets, roster: Roster) -> dict[str, tuple[Sealed, ...]]:
    """For each member (itself too) and each draw, its shares of the two seeds, each encrypted to it alone.

    Each of the two is 44 bytes: a nonce, 16 bytes of share, a tag. They are apart, and apart for each draw,
    so that the coordinator, who keeps them, can later send just what is to be opened. Nonces are random, so
    dealing again after a crash is safe; but shares of two dealings do not fit together: keep the last.
    Takes n t multiplications per seed. `Refused(MASKS)` unless `secrets` are bound to the roster.
    """
    _check_bound(secrets, roster, 0)
    boxes = {peer: _box(secrets, roster, peer, secrets.agency, peer) for peer in roster.names}
    dealt: dict[str, list[Sealed]] = {peer: [] for peer in roster.names}
    for draw in range(roster.draws):
        key_shares = _split(secrets.mask_seed(draw), roster)
        self_shares = _split(secrets.self_seed(draw), roster)
        for peer, key_share, self_share in zip(roster.names, key_shares, self_shares, strict=True):
            bound = roster, secrets.agency, peer, draw
            pair = _seal(boxes[peer], key_share, *bound, KEY), _seal(boxes[peer], self_share, *bound, SELF)
            dealt[peer].append(pair)
    return {peer: tuple(each) for peer, each in dealt.items()}


def _split(seed: bytes, roster: Roster) -> list[bytes]:
    return [share for _, share in Shamir.split(roster.threshold, len(roster.names), seed, ssss=False)]


def _box(secrets: Secrets, roster: Roster, peer: str, sender: str, receiver: str) -> ChaCha20Poly1305:
    """The cipher between this agency and `peer` in the direction from `sender` to `receiver`."""
    return _box_of(secrets, roster.of(peer).share_key, roster.transcript, sender, receiver)


@functools.lru_cache(maxsize=4096)  # the same in every draw of a set-up
def _box_of(
    secrets: Secrets, share_key: bytes, transcript: str, sender: str, receiver: str
) -> ChaCha20Poly1305:
    secret = secrets.share_key().exchange(X25519PublicKey.from_public_bytes(share_key))
    return ChaCha20Poly1305(derive(secret, "fedrisk share box 1", transcript, sender, receiver))


def _seal(
    box: ChaCha20Poly1305, share: bytes, roster: Roster, sender: str, receiver: str, draw: int, kind: str
) -> bytes:
    nonce = os.urandom(NONCE)
    return nonce + box.encrypt(nonce, share, _bound(roster, sender, receiver, draw, kind))


def _bound(roster: Roster, sender: str, receiver: str, draw: int, kind: str) -> bytes:
    """What an encrypted share is good for; it decrypts for nothing else."""
    return canonical("fedrisk share 1", roster.transcript, sender, receiver, draw, kind)


# --- masked vectors -----------------------------------------------------------------------------------


def mask(secrets: Secrets, roster: Roster, draw: int, vector: np.ndarray) -> np.ndarray:
    """y_u: `vector` (uint32 or uint64, 1-D) plus this agency's masks of `draw`, modulo 2^bits.

    Mask one draw once: two vectors under the same masks give away their difference. The caller remembers
    which draws it has masked. `Refused(MASKS)` unless `secrets` are bound to the roster, ValueError for
    another type of vector.
    """
    _check_bound(secrets, roster, draw)
    plus, minus = _pair_keys(secrets.mask_key(draw), roster, draw, secrets.agency, roster.names)
    own = _self_key(secrets.self_seed(draw), roster, draw, secrets.agency)
    return add_masks(vector, [own, *plus], minus)


def _self_key(seed: bytes, roster: Roster, draw: int, agency: str) -> bytes:
    return derive(seed, "fedrisk self mask 1", roster.transcript, draw, agency)


def _pair_keys(
    mine: X25519PrivateKey, roster: Roster, draw: int, me: str, peers: Iterable[str]
) -> tuple[list[bytes], list[bytes]]:
    """The keys of the masks that `me` adds (for later names) and subtracts (for earlier ones)."""
    plus: list[bytes] = []
    minus: list[bytes] = []
    for peer in peers:
        if peer != me:
            secret = mine.exchange(X25519PublicKey.from_public_bytes(roster.of(peer).mask_keys[draw]))
            pair = min(me, peer), max(me, peer)
            key = derive(secret, "fedrisk pair mask 1", roster.transcript, draw, *pair)
            (plus if peer > me else minus).append(key)
    return plus, minus


# --- survivors ----------------------------------------------------------------------------------------


def sign_survivors(
    signing_key: Ed25519PrivateKey, roster: Roster, draw: int, survivors: Sequence[str]
) -> bytes:
    """This agency's word that `survivors`, and no other list, are whose sum of `draw` it will help unmask.

    Sign one list per draw, and for the roster that this agency's secrets are bound to: with two, a
    coordinator could open both seeds of an agency. The caller remembers which list it has signed; for the
    same list the signature is the same. `Refused(MASKS)` for a list that
    is not sorted, has a stranger or fewer than t names.
    """
    _check_survivors(roster, draw, survivors)
    return signing_key.sign(_list(roster, draw, survivors))


def open_shares(
    secrets: Secrets,
    roster: Roster,
    draw: int,
    survivors: Sequence[str],
    signatures: Mapping[str, bytes],
    ciphertexts: Mapping[str, Sealed],
    pins: Mapping[str, bytes],
) -> dict[str, bytes]:
    """This agency's share (16 bytes) of each survivor's self-mask and of each other member's mask key.

    `ciphertexts`: by member, what it dealt to this agency for `draw`; of the two only the one in question is
    read, so the other may be empty. `Refused(MASKS)`, before anything is decrypted, unless at least t
    survivors, this agency among them, have signed exactly this list: as an agency signs one list per draw,
    it opens for one only. A ciphertext that is missing or does not decrypt leaves its agency out: t others
    may do.
    """
    _check_bound(secrets, roster, draw)
    _check_survivors(roster, draw, survivors)
    me = secrets.agency
    _demand(me in survivors, "this agency is not on the list of survivors")
    signers = _signers(roster, draw, survivors, signatures, pins)
    _demand(me in signers, "this agency has not signed this list of survivors")
    _demand(
        len(signers) >= roster.threshold,
        f"{len(signers)} signed this list of survivors, {roster.threshold} must",
    )
    opened = {}
    for name in roster.names:
        kind = SELF if name in survivors else KEY
        sealed = ciphertexts.get(name, (b"", b""))[kind == SELF]
        try:
            box = _box(secrets, roster, name, name, me)
            opened[name] = box.decrypt(sealed[:NONCE], sealed[NONCE:], _bound(roster, name, me, draw, kind))
        except (InvalidTag, ValueError):
            continue
    return {name: share for name, share in opened.items() if len(share) == SEED}


def _signers(
    roster: Roster,
    draw: int,
    survivors: Sequence[str],
    signatures: Mapping[str, bytes],
    pins: Mapping[str, bytes],
) -> set[str]:
    """The survivors whose signature on the list checks."""
    signed = _list(roster, draw, survivors)
    return {
        name
        for name in survivors
        if name in pins and name in signatures and verifies(pins[name], signatures[name], signed)
    }


def _list(roster: Roster, draw: int, survivors: Sequence[str]) -> bytes:
    return canonical("fedrisk survivors 1", roster.transcript, draw, list(survivors))


def _check_survivors(roster: Roster, draw: int, survivors: Sequence[str]) -> None:
    _check_draw(roster, draw)
    _demand(list(survivors) == sorted(set(survivors)), "a list of survivors must be sorted, each once")
    _demand(set(survivors) <= set(roster.names), "a survivor is not among those that sent keys")
    few = f"{len(survivors)} survivors, {roster.threshold} are needed"
    _demand(len(survivors) >= roster.threshold, few)


def _demand(holds: bool, sentence: str) -> None:
    if not holds:
        raise Refused(Reason.MASKS, sentence)


# --- the coordinator ----------------------------------------------------------------------------------


def unmask(
    total: np.ndarray, roster: Roster, draw: int, survivors: Sequence[str], opened: Opened
) -> np.ndarray:
    """sum_u x_u over the survivors, signed int64, from `total` = sum_u y_u modulo 2^bits (uint32 or uint64).

    `opened`: by survivor that answered, its shares. Any t shares of a seed do. `UnmaskError` where there are
    fewer, where there are more and they do not all fit, or where a mask key is not the one that was advertised.
    """
    try:
        _check_survivors(roster, draw, survivors)
    except Refused as refused:
        raise UnmaskError(refused.sentence) from None
    seeds = dict(_seeds(roster, survivors, opened))
    plus: list[bytes] = []
    minus = [_self_key(seeds[name], roster, draw, name) for name in survivors]
    for name in sorted(set(roster.names) - set(survivors)):
        # what the dropped agency would have added cancels what the survivors did
        key = _mask_key(seeds[name], roster.run_id, name, draw)
        if public(key) != roster.of(name).mask_keys[draw]:
            raise UnmaskError(f"the shares of {name!r} do not give its mask key")
        added, subtracted = _pair_keys(key, roster, draw, name, survivors)
        plus += added
        minus += subtracted
    return unwrap(add_masks(total, plus, minus))


def _seeds(roster: Roster, survivors: Sequence[str], opened: Opened) -> Iterator[tuple[str, bytes]]:
    """Each member with the seed that its opened shares give; those who were opened by the same go together."""
    together: dict[tuple[str, ...], list[str]] = {}
    for owner in roster.names:
        openers = tuple(name for name in survivors if len(opened.get(name, {}).get(owner, b"")) == SEED)
        if len(openers) < roster.threshold:
            raise UnmaskError(f"{len(openers)} shares of {owner!r} are open, {roster.threshold} are needed")
        together.setdefault(openers, []).append(owner)
    for openers, owners in together.items():
        first, last = (
            recombine(
                [roster.indices[name] for name in some],
                [[opened[name][owner] for name in some] for owner in owners],
            )
            for some in (openers[: roster.threshold], openers[-roster.threshold :])
        )
        for owner, seed, again in zip(owners, first, last, strict=True):
            if seed != again:
                raise UnmaskError(f"the shares of {owner!r} do not fit together")
            yield owner, seed
