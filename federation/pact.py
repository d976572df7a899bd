"""A secret that two or three agencies agree on while a coordinator carries every message and never has it.

Each agency u makes an X25519 key and 32 random bytes r_u for this one set-up, and sends a `Greeting`: the public key and
SHA-256(r_u), signed by the Ed25519 key that its peers have pinned, for this run and plan. Once everybody's greetings are
there it sends r_u to each other member in a box (ChaCha20-Poly1305 under HKDF of the two X25519 keys). Whoever has all of
them derives

    secret = HKDF-SHA256(r_1 | r_2 | ..., transcript)        in the order of names

where the transcript is the hash of all greetings: it is the signed Diffie-Hellman of SIGMA (Krawczyk, CRYPTO 2003) with
one key made of everybody's, as in group key transport. A greeting commits to r_u before anybody sees another's, so no member
can choose the secret, or give two members different ones; with one honest member it is uniform to whoever is none. The
keys go when the secret has served, so that a signing key that leaks later opens nothing.

Pure functions; what needs memory is the node's (`clients.matching`): one set of greetings for one set-up.
"""

import base64
import dataclasses
import functools
import hashlib
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from federation.masks import canonical, derive
from federation.plan import Reason, Refused
from federation.secagg import NONCE, is_sound, public, verifies

BYTES = 32  # of a contribution, and of the secret


@final
@dataclass(frozen=True)
class Own:
    """What an agency keeps to itself of one set-up, grown from 32 random bytes. `attempt`: which set-up of the run."""

    run_id: str
    plan_sha256: str
    agency: str
    attempt: int
    root: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.root) != BYTES or self.attempt < 0:
            raise ValueError(f"a set-up needs a root of {BYTES} bytes and a number from 0")

    def key(self) -> X25519PrivateKey:
        """The key that others seal to."""
        return X25519PrivateKey.from_private_bytes(self._grow("key"))

    def contribution(self) -> bytes:
        """r_u."""
        return self._grow("contribution")

    def _grow(self, kind: str) -> bytes:
        of = (self.run_id, self.plan_sha256, self.agency, self.attempt)
        return derive(self.root, f"fedrisk pact {kind} 1", *of)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, root and all: for a file that only the node can read."""
        return dataclasses.asdict(self) | {"root": base64.b64encode(self.root).decode()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; KeyError, TypeError or ValueError when it does not decode."""
        return cls(
            str(values["run_id"]),
            str(values["plan_sha256"]),
            str(values["agency"]),
            int(values["attempt"]),
            base64.b64decode(values["root"], validate=True),
        )


@final
@dataclass(frozen=True)
class Greeting:
    """An agency's half of a set-up that everybody may see: an X25519 key, SHA-256(r_u), and an Ed25519 signature."""

    agency: str
    key: bytes
    commitment: bytes
    signature: bytes = b""

    def signed(self, run_id: str, plan_sha256: str) -> bytes:
        """What the signature is over: all of this for one plan."""
        return canonical("fedrisk greeting 1", run_id, plan_sha256, self.agency, self.key, self.commitment)

    def to_dict(self) -> dict[str, str]:
        """JSON-ready, bytes in base64."""
        parts = {"key": self.key, "commitment": self.commitment, "signature": self.signature}
        return {"agency": self.agency} | {
            name: base64.b64encode(part).decode() for name, part in parts.items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; KeyError, TypeError or ValueError when it does not decode."""
        parts = [base64.b64decode(values[name], validate=True) for name in ("key", "commitment", "signature")]
        return cls(str(values["agency"]), *parts)


@final
@dataclass(frozen=True)
class Circle:
    """The greetings of a set-up by name, as `check` left them; nothing else should make one."""

    run_id: str
    plan_sha256: str
    greetings: tuple[Greeting, ...]

    @functools.cached_property
    def transcript(self) -> str:
        """SHA-256 (hex) of all that the members must have seen alike."""
        each = [(g.agency, g.key, g.commitment, g.signature) for g in self.greetings]
        text = canonical("fedrisk pact 1", self.run_id, self.plan_sha256, each)
        return hashlib.sha256(text).hexdigest()

    @property
    def names(self) -> tuple[str, ...]:
        """The members, sorted."""
        return tuple(greeting.agency for greeting in self.greetings)

    def of(self, agency: str) -> Greeting:
        """The greeting of a member."""
        return self.greetings[self.names.index(agency)]


def greet(own: Own, signing_key: Ed25519PrivateKey) -> Greeting:
    """The public half of `own`. The same each time."""
    commitment = hashlib.sha256(own.contribution()).digest()
    unsigned = Greeting(own.agency, public(own.key()), commitment)
    signature = signing_key.sign(unsigned.signed(own.run_id, own.plan_sha256))
    return dataclasses.replace(unsigned, signature=signature)


def check(
    greetings: Iterable[Greeting], own: Own, *, asked: Collection[str], pins: Mapping[str, bytes]
) -> Circle:
    """The circle of this set-up; `Refused(MASKS)` unless every greeting checks.

    `asked`: the names in the plan; two of them or more must be there, this agency with its own greeting among them, each
    once, signed under its pin (Ed25519 public keys, 32 bytes) for this run and plan, with a key that hides something.
    """
    found = tuple(sorted(greetings, key=lambda greeting: greeting.agency))
    names = [greeting.agency for greeting in found]
    _demand(len(set(names)) == len(names) >= 2, "a secret is agreed by two agencies or more, each once")
    _demand(own.agency in names, "this agency's own greeting is not among those of the set-up")
    for each in found:
        name = repr(each.agency)
        _demand(each.agency in asked, f"the plan does not ask {name}, which sent a greeting")
        _demand(each.agency in pins, f"no key is pinned for {name}")
        signed = each.signed(own.run_id, own.plan_sha256)
        text = f"the greeting of {name} is not signed by it for this plan"
        _demand(verifies(pins[each.agency], each.signature, signed), text)
        _demand(is_sound(each.key), f"the key of {name} is no point of X25519, or one that hides nothing")
        _demand(len(each.commitment) == BYTES, f"the greeting of {name} commits to nothing")
    _demand(len({greeting.key for greeting in found}) == len(found), "a key is used twice")
    mine = found[names.index(own.agency)]
    ours = (public(own.key()), hashlib.sha256(own.contribution()).digest())
    text = "the greeting under this agency's name is of another set-up: begin again with new greetings"
    _demand((mine.key, mine.commitment) == ours, text)
    return Circle(own.run_id, own.plan_sha256, found)


def seal(own: Own, circle: Circle) -> dict[str, bytes]:
    """This agency's contribution for each other member, each in a box that it alone can open."""
    sealed = {}
    for name in circle.names:
        if name != own.agency:
            nonce = os.urandom(NONCE)
            box = _box(own, circle, name, own.agency, name)
            sealed[name] = nonce + box.encrypt(nonce, own.contribution(), _bound(circle, own.agency, name))
    return sealed


def agree(own: Own, circle: Circle, boxes: Mapping[str, bytes]) -> bytes:
    """The secret, 32 bytes, once every other member's box is there.

    `Refused(MASKS)` where a box is missing, too many, does not open, or holds what its sender did not commit to.
    """
    others = set(circle.names) - {own.agency}
    _demand(set(boxes) == others, "there must be one box from each other agency of the set-up, and no more")
    contributions = [
        own.contribution() if name == own.agency else _opened(own, circle, name, boxes[name])
        for name in circle.names
    ]
    return derive(b"".join(contributions), "fedrisk cohort secret 1", circle.transcript)


def _opened(own: Own, circle: Circle, sender: str, box: bytes) -> bytes:
    cipher = _box(own, circle, sender, sender, own.agency)
    try:
        found = cipher.decrypt(box[:NONCE], box[NONCE:], _bound(circle, sender, own.agency))
    except (InvalidTag, ValueError):
        found = b""
    _demand(bool(found), f"the box of {sender!r} does not open: it is of another set-up, or was changed")
    committed = hashlib.sha256(found).digest() == circle.of(sender).commitment
    _demand(len(found) == BYTES and committed, f"the box of {sender!r} holds what it did not commit to")
    return found


def _box(own: Own, circle: Circle, peer: str, sender: str, receiver: str) -> ChaCha20Poly1305:
    """The cipher between this agency and `peer` in the direction from `sender` to `receiver`."""
    shared = own.key().exchange(X25519PublicKey.from_public_bytes(circle.of(peer).key))
    return ChaCha20Poly1305(derive(shared, "fedrisk pact box 1", circle.transcript, sender, receiver))


def _bound(circle: Circle, sender: str, receiver: str) -> bytes:
    return canonical("fedrisk pact 1", circle.transcript, sender, receiver)


def _demand(holds: bool, sentence: str) -> None:
    if not holds:
        raise Refused(Reason.MASKS, sentence)
