"""What may cross between an agency and the coordinator: this file is the whole list.

Out of an agency go, and nothing else: `Ready` (a name), `RoundReply` (a clipped and noised change of the
weights, noised score tables, and the events they were charged as), `StatsReply` (one noised table of the values
of a column, and its event), `MapReply` (noised counts of a workload, and their event), `CohortReply` (one noised
histogram of keyed hashes, and its event), `MaskedReply` (whole numbers that mean nothing until the coordinator has
added those of the other agencies), what the masking needs (`Keys`, `Dealt`, `Signed`, `Opened`: public keys, encrypted
shares, signatures, shares of masks; made without any record), what agreeing a secret needs (`Greeted`, `Boxes`: public keys
and encrypted random bytes; made without any record) and `Refusal` (a name and a `Reason` from a closed list). A `Head`, the number and hash of the newest
entry of the agency's ledger, rides along so that a ledger that was set back shows. Nothing with a record
axis has a field here.

`federation.wire` packs these values into Flower's records and reads them back.
"""

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from federation.cohort import CohortPlan
from federation.demand import MapPlan
from federation.pact import Greeting
from federation.plan import (
    Agreed,
    Fraction,
    LocalPlan,
    Part,
    Participant,
    PrivacyPlan,
    Reason,
    Refused,
    SharedNoise,
    Slug,
    TrainPlan,
    sentences,
)
from federation.release import Event
from federation.secagg import Advert
from federation.stats import StatsPlan

READY = "query.ready"
KEYS = "query.keys"
DEAL = "query.deal"
AGREE = "query.agree"
OPEN = "query.open"
ROUND = "train.round"
STATS = "query.stats"
MAP = "query.map"
GREET = "query.greet"
SEAL = "query.seal"
COHORT = "query.cohort"
ORDERS = (READY, KEYS, DEAL, AGREE, OPEN, ROUND, STATS, MAP, GREET, SEAL, COHORT)

Masked = TrainPlan | MapPlan  # plans whose noise may be shared behind masks

Weights = dict[str, np.ndarray]
Sealed = tuple[
    bytes, bytes
]  # shares of one draw's mask key and self-mask, encrypted from one agency to another


class Head(NamedTuple):
    """The newest entry of a ledger: its number (0: none yet) and its hash."""

    seq: int
    hash: str


Heads = Mapping[str, Head]  # by agency


@dataclass(frozen=True)
class RoundOrder:
    """One order of one round: evaluate these weights on `evaluate` parts, then train from them.

    Behind masks `draw` numbers the masked vectors of one set-up of keys, and `transcript` names the set-up.
    `heads` are the newest ledger heads that the coordinator knows. `multipliers`: two for each audit group, outcome 0
    first (`federation.multipliers`), or none.
    """

    plan: TrainPlan
    round: int
    weights: Weights
    train: bool
    evaluate: tuple[Part, ...] = ()
    draw: int | None = None
    transcript: str = ""
    heads: Heads = field(default_factory=dict)
    multipliers: tuple[float, ...] = ()

    @functools.cached_property
    def digest(self) -> str:
        """Names what is asked, hex: the same order sent twice has the same, whatever heads it brings."""
        which = (self.plan.sha256, self.round, self.train, self.evaluate)
        return _digest(repr((*which, self.draw, self.transcript, self.multipliers)), self.weights)

    @property
    def order_id(self) -> str:
        """Names the draw in the ledger, by the whole hash: whoever asks chooses what is hashed, and could make half of two
        hashes alike. Behind masks a draw is made once, whatever is asked of it.
        """
        which = f"#{self.digest}" if self.draw is None else f"/{self.transcript[:16]}.{self.draw}"
        return f"{self.plan.run_id}/{self.round}{which}"

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables that it asks for: a score table of each part, and `users` beside that of test where it is planned."""
        users = self.plan.users is not None and "test" in self.evaluate
        return (*self.evaluate, "users") if users else self.evaluate

    @property
    def releases(self) -> tuple[Event, ...]:
        """What it is charged as: the tables in the order of `tables`, then the training."""
        tables = tuple(self.plan.table_release(part) for part in self.evaluate)
        tables += self.plan.users_releases() if "users" in self.tables else ()
        return (*tables, self.plan.train_release()) if self.train else tables

    @property
    def kinds(self) -> tuple[str, ...]:
        """What it asks for: the parts to evaluate, and `train`."""
        return (*self.evaluate, "train") if self.train else self.evaluate


@dataclass(frozen=True)
class StatsOrder:
    """Send one noised table of the values of the plan's column. `heads`: as in `RoundOrder`."""

    plan: StatsPlan
    heads: Heads = field(default_factory=dict)


@dataclass(frozen=True)
class MapOrder:
    """Send one noised vector of counts of the plan's workload. `draw`, `transcript` and `heads`: as in `RoundOrder`."""

    plan: MapPlan
    draw: int | None = None
    transcript: str = ""
    heads: Heads = field(default_factory=dict)

    @functools.cached_property
    def digest(self) -> str:
        """Names what is asked, hex: the same order sent twice has the same, whatever heads it brings."""
        return _digest(repr((self.plan.sha256, self.draw, self.transcript)), {})

    @property
    def order_id(self) -> str:
        """Names the draw in the ledger, by the plan alone: a plan is drawn once, whatever set-up of masks asks for it."""
        return f"{self.plan.run_id}/map#{self.plan.sha256}"

    @property
    def releases(self) -> tuple[Event, ...]:
        """What it is charged as."""
        return self.plan.releases()


@dataclass(frozen=True)
class GreetOrder:
    """Begin to agree a secret for this cohort; a new `attempt` begins anew. `heads`: as in `RoundOrder`."""

    plan: CohortPlan
    attempt: int = 0
    heads: Heads = field(default_factory=dict)


@dataclass(frozen=True)
class SealOrder:
    """Here are the greetings of all who take part: check them, and seal your contribution to each."""

    plan: CohortPlan
    greetings: tuple[Greeting, ...]


@dataclass(frozen=True)
class CohortOrder:
    """Send one noised histogram of the plan's people. `boxes`: by agency, what it sealed to you. `heads`: as in `RoundOrder`."""

    plan: CohortPlan
    boxes: Mapping[str, bytes]
    heads: Heads = field(default_factory=dict)


@dataclass(frozen=True)
class KeysOrder:
    """Make keys for `draws` masked vectors of this plan."""

    plan: Masked
    draws: int
    heads: Heads = field(default_factory=dict)


@dataclass(frozen=True)
class DealOrder:
    """Here are all agencies' keys: check them, and deal shares of yours to each."""

    plan: Masked
    adverts: tuple[Advert, ...]


@dataclass(frozen=True)
class AgreeOrder:
    """These agencies' masked vectors of `draw` have arrived: sign the list, once."""

    run_id: str
    transcript: str
    draw: int
    survivors: tuple[str, ...]


@dataclass(frozen=True)
class OpenOrder:
    """All have signed the same list: open what unmasks its sum. `sealed`: by agency, what it dealt to you.

    `last`: no draw of this set-up follows, so its secrets can go.
    """

    run_id: str
    transcript: str
    draw: int
    survivors: tuple[str, ...]
    signatures: Mapping[str, bytes]
    sealed: Mapping[str, Sealed]
    last: bool = False


@dataclass(frozen=True)
class Ready:
    """The agency's policy and data permit the plan. `keeps`: the newest head of its neighbour that it has seen."""

    agency: str
    head: Head | None = None
    keeps: Heads = field(default_factory=dict)


@dataclass(frozen=True)
class RoundReply:
    """What an agency releases in a round.

    `delta` by parameter name, or None where it did not train; `tables` by part: noised counts of
    shape (groups, bins, 2), and under `users` of shape `Contract.users_shape`; `releases` are the ledger's events for
    both.
    """

    agency: str
    delta: Weights | None
    tables: Mapping[str, np.ndarray]
    releases: tuple[Event, ...]
    head: Head | None = None


@dataclass(frozen=True)
class StatsReply:
    """What an agency releases of a column: `sums` of shape (`models.quantiles.CELLS`,), its own noise on each.

    The shape is the protocol's, whatever the column holds; `releases` is the ledger's one event for it.
    """

    agency: str
    sums: np.ndarray
    releases: tuple[Event, ...]
    head: Head | None = None


@dataclass(frozen=True)
class MapReply:
    """What an agency releases for a map: `numbers` of int64, its own noise on each (`models.design.Design.numbers`).

    How many there are follows from the plan and the agency's kind; `releases` is the ledger's one event for them.
    """

    agency: str
    numbers: np.ndarray
    releases: tuple[Event, ...]
    head: Head | None = None


@dataclass(frozen=True)
class Greeted:
    """An agency's public half of an agreed secret, signed by the key that its peers have pinned."""

    agency: str
    greeting: Greeting


@dataclass(frozen=True)
class Boxes:
    """By peer, this agency's contribution to an agreed secret, encrypted to it alone."""

    agency: str
    boxes: Mapping[str, bytes]


@dataclass(frozen=True)
class CohortReply:
    """What an agency releases for a cohort: `counts` of people by (level, bucket), its own noise on each.

    Shape and type are the plan's, whatever is counted; `releases` is the ledger's one event for it.
    """

    agency: str
    counts: np.ndarray
    releases: tuple[Event, ...]
    head: Head | None = None


@dataclass(frozen=True)
class MaskedReply:
    """What an agency sends behind masks: `vector` of uint32 or uint64, uniform to whoever lacks the others'.

    It holds the tables of `RoundOrder.tables` in order, then the gradient, or the numbers of a map: what `releases` charged.
    """

    agency: str
    vector: np.ndarray
    releases: tuple[Event, ...]
    head: Head | None = None


@dataclass(frozen=True)
class Keys:
    """An agency's public mask keys, signed by the key that its peers have pinned."""

    agency: str
    advert: Advert


@dataclass(frozen=True)
class Dealt:
    """An agency's shares of its masks' seeds, encrypted to each peer: for each draw one `Sealed`."""

    agency: str
    sealed: Mapping[str, tuple[Sealed, ...]]


@dataclass(frozen=True)
class Signed:
    """An agency's signature on a list of survivors."""

    agency: str
    signature: bytes


@dataclass(frozen=True)
class Opened:
    """By agency one share: of its self-mask if it survived, of its mask key if it did not."""

    agency: str
    shares: Mapping[str, bytes]


@dataclass(frozen=True)
class Refusal:
    """An agency's no."""

    agency: str
    reason: Reason


def weights_digest(weights: Weights) -> str:
    """SHA-256, hex, of the names, types, shapes and numbers of `weights`: the same in whichever order they come."""
    return _digest("", weights)


def _digest(begins: str, weights: Weights) -> str:
    digest = hashlib.sha256(begins.encode())
    for name, values in sorted(weights.items()):
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


Plan = TrainPlan | StatsPlan | MapPlan | CohortPlan
PLANS: Mapping[str, type[Plan]] = {
    "model": TrainPlan,
    "column": StatsPlan,
    "workload": MapPlan,
    "of": CohortPlan,
}
"""Every kind of plan, by a key that it alone has."""


def plan_type(values: Mapping[str, object]) -> type[Plan]:
    """Of which kind the plan with these keys is: a training's where none fits."""
    return next((kind for key, kind in PLANS.items() if key in values), TrainPlan)


CohortOrders = GreetOrder | SealOrder | CohortOrder
MaskOrders = KeysOrder | DealOrder | AgreeOrder | OpenOrder
Order = TrainPlan | MapPlan | RoundOrder | StatsOrder | MapOrder | CohortOrders | MaskOrders
Secrecy = Greeted | Boxes | Keys | Dealt | Signed | Opened  # made without any record
Reply = Ready | RoundReply | StatsReply | MapReply | CohortReply | MaskedReply | Secrecy | Refusal


__all__ = [
    "Agreed",
    "CohortPlan",
    "Fraction",
    "LocalPlan",
    "MapPlan",
    "Part",
    "Participant",
    "PrivacyPlan",
    "Reason",
    "Refused",
    "SharedNoise",
    "Slug",
    "StatsPlan",
    "TrainPlan",
    "sentences",
]
