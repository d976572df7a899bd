"""What may cross between an agency and the coordinator: this file is the whole list.

Out of an agency go, and nothing else: `Ready` (a name), `RoundReply` (a clipped and noised change of
the weights, noised score tables, and the releases they were charged as) and `Refusal` (a name and a
`Reason` from a closed list). Nothing with a record axis has a field here.

It is also the only code that packs or reads Flower records: JSON for the small values, NumPy's
format (never pickle) for arrays. A message that does not decode exactly is `Reason.MALFORMED`.
"""

import functools
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal, Self, final

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from federation.privacy import Release
from models.risk import ModelSpec

VERSION = "1"
READY = "query.ready"
ROUND = "train.round"

Part = Literal["train", "tune", "test"]
Weights = dict[str, np.ndarray]
Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Reason(StrEnum):
    """Why an agency said no. Specific only where the cause cannot depend on its records."""

    VERSION = "VERSION"  # another protocol version
    MALFORMED = "MALFORMED"  # the order does not decode
    CONTRACT = "CONTRACT"  # another data contract than this agency agreed to
    MODEL = "MODEL"  # a model, strategy or size that its policy does not permit
    PURPOSE = "PURPOSE"  # a purpose that its policy does not permit
    PRIVACY = "PRIVACY"  # too little noise, no privacy, or a seed where the node is not a simulation
    BUDGET = "BUDGET"  # the privacy budget would be exceeded
    UNAVAILABLE = "UNAVAILABLE"  # everything else, and everything that may depend on data


class Refused(Exception):
    """A refusal: `reason` may leave the agency, `sentence` stays on its machine."""

    def __init__(self, reason: Reason, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.sentence = sentence


class Agreed(BaseModel):
    """A frozen value with a canonical form. Unknown keys are errors, ±Inf is written as a string."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_inf_nan="strings", allow_inf_nan=True, protected_namespaces=()
    )

    @functools.cached_property
    def canonical(self) -> str:
        """The one JSON text of this value: sorted keys, no spaces."""
        return json.dumps(json.loads(self.model_dump_json()), sort_keys=True, separators=(",", ":"))

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256 of `canonical`, hex."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()

    def but(self, **changes: Any) -> Self:
        """This value with `changes`, checked again (pydantic's `model_copy` checks nothing)."""
        return type(self).model_validate(
            {name: getattr(self, name) for name in type(self).model_fields} | changes
        )


class Participant(Agreed):
    """What everybody may know about an agency. `public_size` is declared, never counted."""

    name: Slug
    kind: str | None = None
    public_size: Annotated[int, Field(ge=1)]
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PrivacyPlan(Agreed):
    """The noise of every release of a run. All of it is public.

    `noise_multiplier` is noise std / `max_grad_norm`, dimensionless. `sample_rate` is the chance that
    a person is in a step. `tune_sigma` and `test_sigma` are the noise std of one cell of a score table,
    in people (sensitivity 1).
    """

    mechanism: Literal["gaussian", "none"]
    noise_multiplier: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    max_grad_norm: Annotated[float, Field(gt=0)]
    sample_rate: Annotated[float, Field(gt=0, le=1)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    tune_sigma: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    test_sigma: Annotated[float, Field(ge=0, allow_inf_nan=False)]

    @model_validator(mode="after")
    def noise_or_none(self) -> Self:
        noised = self.noise_multiplier > 0 and self.tune_sigma > 0 and self.test_sigma > 0
        if self.mechanism == "gaussian" and not (noised and np.isfinite(self.max_grad_norm)):
            raise ValueError("mechanism gaussian needs a finite max_grad_norm and noise above 0 everywhere")
        if self.mechanism == "none" and self.noise_multiplier + self.tune_sigma + self.test_sigma > 0:
            raise ValueError("mechanism none must say 0 for every noise")
        return self


class LocalPlan(Agreed):
    """What one agency does in one round: `steps` optimiser steps from the round's weights."""

    steps: Annotated[int, Field(ge=1)]
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    proximal_mu: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class TrainPlan(Agreed):
    """The whole of a run as an agency needs it to say yes or no. It rides in every order.

    `seed` is set in simulations only: it makes every draw repeatable, so a node that guards real
    records refuses a plan that carries one.
    """

    version: str = VERSION
    run_id: Slug
    purpose: Slug
    contract_sha256: str
    model: ModelSpec
    privacy: PrivacyPlan
    local: LocalPlan
    rounds: Annotated[int, Field(ge=1, le=100_000)]
    checkpoints: tuple[int, ...]
    edges: tuple[float, ...]
    tune_fraction: Fraction
    test_fraction: Fraction
    participants: tuple[Participant, ...]
    seed: int | None = None

    def participant(self, name: str) -> Participant:
        """The declared facts of agency `name`; `Refused(CONTRACT)` if the plan does not list it."""
        if name not in self._by_name:
            raise Refused(Reason.CONTRACT, f"the plan does not list the agency {name!r}")
        return self._by_name[name]

    @functools.cached_property
    def _by_name(self) -> dict[str, Participant]:
        return {participant.name: participant for participant in self.participants}

    @property
    def train_fraction(self) -> float:
        """The declared share of people in the train part, (0, 1]."""
        return 1 - self.tune_fraction - self.test_fraction

    def train_release(self) -> Release:
        """What one round of training costs."""
        return Release(
            kind="train",
            part="train",
            noise_multiplier=self.privacy.noise_multiplier,
            sample_rate=self.privacy.sample_rate,
            steps=self.local.steps,
        )

    def table_release(self, part: Part) -> Release:
        """What one score table on `part` costs: one Gaussian release of sensitivity 1."""
        sigma = self.privacy.tune_sigma if part == "tune" else self.privacy.test_sigma
        return Release(kind="evaluate", part=part, noise_multiplier=sigma, sample_rate=1.0, steps=1)

    def releases(self) -> tuple[Release, ...]:
        """Everything that this plan may take from one agency, if every round happens once."""
        train = [self.train_release()] * self.rounds
        tune = [self.table_release("tune")] * len(self.checkpoints)
        return (*train, *tune, self.table_release("test"))


@dataclass(frozen=True)
class RoundOrder:
    """One order of one round: evaluate these weights on `evaluate` parts, then train from them."""

    plan: TrainPlan
    round: int
    weights: Weights
    train: bool
    evaluate: tuple[Part, ...] = ()

    @property
    def order_id(self) -> str:
        """Names the draw in the ledger."""
        return f"{self.plan.run_id}/{self.round}"

    @property
    def kinds(self) -> tuple[str, ...]:
        """What it asks for: the parts to evaluate, and `train`."""
        return (*self.evaluate, "train") if self.train else self.evaluate

    @functools.cached_property
    def packed(self) -> RecordDict:
        """The order as Flower sends it, packed once: it says the same to every agency. To be read only."""
        small = {
            "plan": self.plan.canonical,
            "round": self.round,
            "train": self.train,
            "evaluate": list(self.evaluate),
        }
        content = _json_record(small)
        content["weights"] = _pack_arrays(self.weights)
        return content


@dataclass(frozen=True)
class Ready:
    """The agency's policy and data permit the plan."""

    agency: str


@dataclass(frozen=True)
class RoundReply:
    """What an agency releases in a round.

    `delta` by parameter name, or None where it did not train; `tables` by part: noised counts of
    shape (groups, bins, 2); `releases` are the ledger's events for both.
    """

    agency: str
    delta: Weights | None
    tables: Mapping[str, np.ndarray]
    releases: tuple[Release, ...]


@dataclass(frozen=True)
class Refusal:
    """An agency's no."""

    agency: str
    reason: Reason


# --- packing and reading Flower records -------------------------------------------------------------


def pack_ready_order(plan: TrainPlan, node_id: int) -> Message:
    """Ask whether an agency is ready for `plan`."""
    return Message(_json_record({"plan": plan.canonical}), dst_node_id=node_id, message_type=READY)


def read_ready_order(message: Message) -> TrainPlan:
    """The plan of a ready order; `Refused` when it does not decode."""
    return _read_plan(_read_json(message.content).get("plan"))


def pack_round_order(order: RoundOrder, node_id: int, ttl: float | None = None) -> Message:
    """One round's order for one agency."""
    return Message(order.packed, dst_node_id=node_id, message_type=ROUND, group_id=str(order.round), ttl=ttl)


def read_round_order(message: Message) -> RoundOrder:
    """The order in `message`; `Refused(MALFORMED or VERSION)` when it does not decode."""
    small = _read_json(message.content)
    try:
        parts = tuple(str(part) for part in small["evaluate"])
        if not set(parts) <= {"tune", "test"}:
            raise ValueError("only tune and test are evaluated")
        return RoundOrder(
            plan=_read_plan(small["plan"]),
            round=int(small["round"]),
            weights=_read_arrays(message.content, "weights"),
            train=bool(small["train"]),
            evaluate=parts,  # type: ignore[arg-type]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(Reason.MALFORMED, f"a round order does not decode: {type(error).__name__}") from None


def pack_reply(reply: Ready | RoundReply | Refusal, order: Message) -> Message:
    """The one way out of an agency. The size depends on the plan alone."""
    if isinstance(reply, Refusal):
        return Message(_json_record({"agency": reply.agency, "refused": reply.reason.value}), reply_to=order)
    if isinstance(reply, Ready):
        return Message(_json_record({"agency": reply.agency}), reply_to=order)
    releases = [release.to_dict() for release in reply.releases]
    content = _json_record({"agency": reply.agency, "releases": releases, "trained": reply.delta is not None})
    if reply.delta is not None:
        content["delta"] = _pack_arrays(reply.delta)
    if reply.tables:
        content["tables"] = _pack_arrays(reply.tables)
    return Message(content, reply_to=order)


def read_reply(message: Message) -> Ready | RoundReply | Refusal:
    """The reply in `message`; ValueError (one sentence) when it does not decode."""
    try:
        small = _read_json(message.content)
        agency = str(small["agency"])
        if "refused" in small:
            return Refusal(agency, Reason(small["refused"]))
        if "releases" not in small:
            return Ready(agency)
        return RoundReply(
            agency=agency,
            delta=_read_arrays(message.content, "delta") if small["trained"] else None,
            tables=_read_arrays(message.content, "tables") if "tables" in message.content else {},
            releases=tuple(Release.from_dict(release) for release in small["releases"]),
        )
    except (KeyError, TypeError, ValueError, Refused):
        raise ValueError("a reply does not decode: it is not from this version of fedrisk") from None


def as_strategy_reply(message: Message, weights: Weights, public_weight: float) -> Message:
    """`message` as Flower's strategies want it: arrays, and the agreed weight in place of a row count."""
    arrays = _record({name: _Here(value) for name, value in weights.items()})
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"weight": public_weight})})
    return Message(content, metadata=message.metadata)  # type: ignore[call-overload,no-any-return]


@final
class _Here(Array):
    """An array that stays in this process: Flower's strategies read it without unpacking it first."""

    def __init__(self, value: np.ndarray) -> None:
        super().__init__(str(value.dtype), value.shape, "numpy.ndarray", b"")
        self.__dict__["value"] = value

    def numpy(self) -> np.ndarray:
        value: np.ndarray = self.__dict__["value"]
        return value


def pack_weights(weights: Weights) -> ArrayRecord:
    """Weights as a Flower record (float32 arrays by parameter name)."""
    return _pack_arrays(weights)


def read_weights(record: ArrayRecord) -> Weights:
    """The inverse of `pack_weights`."""
    return {name: _read_array(array) for name, array in record.items()}


def _pack_arrays(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    return _record({name: _pack_array(value) for name, value in arrays.items()})


def _record(arrays: Mapping[str, Array]) -> ArrayRecord:
    """A record of `arrays`. Flower's constructor would copy each of them."""
    record = ArrayRecord()
    for name, array in arrays.items():
        record[name] = array
    return record


def _pack_array(value: np.ndarray) -> Array:
    """As Flower packs it, in NumPy's format, without writing the same header each time."""
    dtype = str(value.dtype)
    data = _header(dtype, value.shape) + value.tobytes()
    return Array(dtype=dtype, shape=value.shape, stype="numpy.ndarray", data=data)


def _read_array(array: Array) -> np.ndarray:
    """The inverse of `_pack_array`; whatever else is in NumPy's format goes through NumPy's own reader."""
    dtype = np.dtype(array.dtype)
    header = b"" if dtype.hasobject else _header(array.dtype, array.shape)
    if array.stype != "numpy.ndarray" or not header or not array.data.startswith(header):
        return array.numpy()
    return np.frombuffer(array.data, dtype, offset=len(header)).reshape(array.shape).copy()


@functools.lru_cache(maxsize=256)
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """What NumPy's format puts before the values."""
    facts = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": shape,
    }
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, facts)
    return header.getvalue()


def _read_arrays(content: RecordDict, key: str) -> Weights:
    record = content[key]
    if not isinstance(record, ArrayRecord):
        raise TypeError(f"{key} is not a record of arrays")
    return read_weights(record)


def _json_record(value: Mapping[str, Any]) -> RecordDict:
    return RecordDict({"fedrisk": ConfigRecord({"json": json.dumps(value)})})


def _read_json(content: RecordDict) -> dict[str, Any]:
    try:
        value = json.loads(str(content["fedrisk"]["json"]))
        if not isinstance(value, dict):
            raise TypeError
        return value
    except (KeyError, TypeError, ValueError):
        raise Refused(Reason.MALFORMED, "a message without fedrisk's own record") from None


@functools.lru_cache(maxsize=8)
def _read_plan(text: object) -> TrainPlan:
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        found = None
    if not isinstance(text, str) or not isinstance(found, dict):
        raise Refused(Reason.MALFORMED, "the order carries no plan in JSON")
    if found.get("version") != VERSION:
        raise Refused(
            Reason.VERSION, f"the plan speaks protocol {found.get('version')!r}, this node {VERSION!r}"
        )
    try:
        return TrainPlan.model_validate_json(text)
    except ValidationError as error:
        raise Refused(Reason.MALFORMED, "; ".join(sentences(error))) from None


def sentences(error: ValidationError, within: Sequence[str] = ()) -> list[str]:
    """A pydantic error as sentences: the key, the rule and what was found."""
    found = []
    for item in error.errors(include_url=False):
        key = ".".join([*within, *(str(part) for part in item["loc"])])
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            found.append(f"{key} is not a known setting")
        elif item["type"] == "missing":
            found.append(f"{key} is missing")
        elif item["type"] in ("model_type", "dataclass_type"):
            found.append(f"{key or 'this'} must be a group of settings, got {item['input']!r}")
        elif item["type"] == "string_pattern_mismatch":  # `Slug` is the one pattern
            found.append(f"{key} must be small letters, digits, - and _, at most 64, got {item['input']!r}")
        else:
            rule = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
            got = "" if item["type"] == "value_error" else f", got {item['input']!r}"
            found.append(f"{key} {rule}{got}" if key else rule)
    return found
