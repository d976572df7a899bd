"""How the values of `federation.protocol` become Flower records, and are read back: the only code that does.

One Flower record a message: JSON for the small values, the safetensors format (never pickle) for each set of arrays.
Flower sends every record, array and chunk of a message in a request of its own, so a round costs what they are many.
A message that does not decode exactly is `Reason.MALFORMED`.
"""

import base64
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, final

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from google.protobuf.message import DecodeError
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from federation.cohort import CohortPlan
from federation.demand import MapPlan
from federation.pact import Greeting
from federation.plan import VERSION, Reason, Refused, Terms, TrainPlan, sentences
from federation.protocol import (
    AGREE,
    COHORT,
    DEAL,
    GREET,
    KEYS,
    MAP,
    OPEN,
    READY,
    ROUND,
    SEAL,
    STATS,
    AgreeOrder,
    Boxes,
    CohortOrder,
    CohortReply,
    DealOrder,
    Dealt,
    Greeted,
    GreetOrder,
    Head,
    Heads,
    Keys,
    KeysOrder,
    MapOrder,
    MapReply,
    Masked,
    MaskedReply,
    Opened,
    OpenOrder,
    Ready,
    Refusal,
    Reply,
    RoundOrder,
    RoundReply,
    Sealed,
    SealOrder,
    Signed,
    StatsOrder,
    StatsReply,
    Weights,
    plan_type,
)
from federation.release import Event, event_from_dict
from federation.secagg import Advert
from federation.stats import StatsPlan

_DOES_NOT_DECODE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
Answer = TypeVar("Answer")
Plan = TypeVar("Plan", bound=Terms)


def pack_ready_order(plan: Masked, node_id: int, heads: Heads | None = None) -> Message:
    """Ask whether an agency is ready for `plan`."""
    return _small_order(READY, node_id, {"plan": plan.canonical, "heads": heads or {}})


def read_ready_order(message: Message) -> tuple[Masked, Heads]:
    """The plan of a ready order and the heads that the coordinator keeps; `Refused` when it does not decode."""
    return _decoded(lambda small: (_read_masked(small.get("plan")), _read_heads(small["heads"])), message)


def pack_keys_order(order: KeysOrder, node_id: int) -> Message:
    """Ask an agency for mask keys."""
    small = {"plan": order.plan.canonical, "draws": order.draws, "heads": order.heads}
    return _small_order(KEYS, node_id, small)


def read_keys_order(message: Message) -> KeysOrder:
    """The inverse of `pack_keys_order`; `Refused` when it does not decode."""
    return _decoded(
        lambda small: KeysOrder(
            _read_masked(small["plan"]), int(small["draws"]), _read_heads(small["heads"])
        ),
        message,
    )


def pack_deal_order(order: DealOrder, node_id: int) -> Message:
    """Show an agency everybody's keys."""
    adverts = [advert.to_dict() for advert in order.adverts]
    return _small_order(DEAL, node_id, {"plan": order.plan.canonical, "adverts": adverts})


def read_deal_order(message: Message) -> DealOrder:
    """The inverse of `pack_deal_order`; `Refused` when it does not decode."""
    return _decoded(
        lambda small: DealOrder(_read_masked(small["plan"]), tuple(map(Advert.from_dict, small["adverts"]))),
        message,
    )


def pack_agree_order(order: AgreeOrder, node_id: int) -> Message:
    """Ask an agency to sign a list of survivors."""
    return _small_order(AGREE, node_id, _of_draw(order))


def read_agree_order(message: Message) -> AgreeOrder:
    """The inverse of `pack_agree_order`; `Refused` when it does not decode."""
    return _decoded(lambda small: AgreeOrder(**_read_of_draw(small)), message)


def pack_open_order(order: OpenOrder, node_id: int) -> Message:
    """Ask an agency for the shares that unmask a sum."""
    small = _of_draw(order) | {
        "signatures": _texts(order.signatures),
        "sealed": {name: [_text(part) for part in sealed] for name, sealed in order.sealed.items()},
        "last": order.last,
    }
    return _small_order(OPEN, node_id, small)


def read_open_order(message: Message) -> OpenOrder:
    """The inverse of `pack_open_order`; `Refused` when it does not decode."""

    def read(small: dict[str, Any]) -> OpenOrder:
        return OpenOrder(
            **_read_of_draw(small),
            signatures=_read_texts(small["signatures"]),
            sealed={str(name): _read_sealed(value) for name, value in small["sealed"].items()},
            last=bool(small["last"]),
        )

    return _decoded(read, message)


def pack_round_orders(order: RoundOrder, node_ids: Mapping[str, int]) -> dict[str, Message]:
    """One round's order for each agency, packed once: it says the same to all."""
    small = {
        "plan": order.plan.canonical,
        "round": order.round,
        "train": order.train,
        "evaluate": list(order.evaluate),
        "draw": order.draw,
        "transcript": order.transcript,
        "heads": order.heads,
        "multipliers": list(order.multipliers),
    }
    content = _record(small, {"weights": order.weights})
    return {
        name: Message(content, dst_node_id=node_id, message_type=ROUND, group_id=str(order.round))
        for name, node_id in node_ids.items()
    }


def pack_round_order(order: RoundOrder, node_id: int) -> Message:
    """One round's order for one agency."""
    return pack_round_orders(order, {"": node_id})[""]


def read_round_order(message: Message) -> RoundOrder:
    """The order in `message`; `Refused(MALFORMED or VERSION)` when it does not decode."""

    def read(small: dict[str, Any]) -> RoundOrder:
        parts = tuple(str(part) for part in small["evaluate"])
        if not set(parts) <= {"tune", "test"} or len(set(parts)) < len(parts):
            raise ValueError("only tune and test are evaluated, each once")
        return RoundOrder(
            plan=_read_plan(small["plan"]),
            round=int(small["round"]),
            weights=_read_arrays(message.content, "weights"),
            train=bool(small["train"]),
            evaluate=parts,  # type: ignore[arg-type]
            draw=None if small["draw"] is None else int(small["draw"]),
            transcript=str(small["transcript"]),
            heads=_read_heads(small["heads"]),
            multipliers=tuple(float(value) for value in small["multipliers"]),
        )

    return _decoded(read, message)


def pack_stats_order(order: StatsOrder, node_id: int) -> Message:
    """Ask an agency for a table of the values of one column."""
    return _small_order(STATS, node_id, {"plan": order.plan.canonical, "heads": order.heads})


def read_stats_order(message: Message) -> StatsOrder:
    """The inverse of `pack_stats_order`; `Refused(MALFORMED or VERSION)` when it does not decode."""
    return _decoded(
        lambda small: StatsOrder(_read_terms(small["plan"], StatsPlan), _read_heads(small["heads"])), message
    )


def pack_map_order(order: MapOrder, node_id: int) -> Message:
    """Ask an agency for the counts of a map."""
    small = {"plan": order.plan.canonical, "draw": order.draw, "transcript": order.transcript}
    return _small_order(MAP, node_id, small | {"heads": order.heads})


def read_map_order(message: Message) -> MapOrder:
    """The inverse of `pack_map_order`; `Refused(MALFORMED or VERSION)` when it does not decode."""

    def read(small: dict[str, Any]) -> MapOrder:
        draw = None if small["draw"] is None else int(small["draw"])
        plan = _read_terms(small["plan"], MapPlan)
        return MapOrder(plan, draw, str(small["transcript"]), _read_heads(small["heads"]))

    return _decoded(read, message)


def pack_greet_order(order: GreetOrder, node_id: int) -> Message:
    """Ask an agency to begin agreeing a secret."""
    small = {"plan": order.plan.canonical, "attempt": order.attempt, "heads": order.heads}
    return _small_order(GREET, node_id, small)


def read_greet_order(message: Message) -> GreetOrder:
    """The inverse of `pack_greet_order`; `Refused(MALFORMED or VERSION)` when it does not decode."""

    def read(small: dict[str, Any]) -> GreetOrder:
        plan = _read_terms(small["plan"], CohortPlan)
        return GreetOrder(plan, int(small["attempt"]), _read_heads(small["heads"]))

    return _decoded(read, message)


def pack_seal_order(order: SealOrder, node_id: int) -> Message:
    """Show an agency everybody's greetings."""
    greetings = [greeting.to_dict() for greeting in order.greetings]
    return _small_order(SEAL, node_id, {"plan": order.plan.canonical, "greetings": greetings})


def read_seal_order(message: Message) -> SealOrder:
    """The inverse of `pack_seal_order`; `Refused(MALFORMED or VERSION)` when it does not decode."""

    def read(small: dict[str, Any]) -> SealOrder:
        greetings = tuple(map(Greeting.from_dict, small["greetings"]))
        return SealOrder(_read_terms(small["plan"], CohortPlan), greetings)

    return _decoded(read, message)


def pack_cohort_order(order: CohortOrder, node_id: int) -> Message:
    """Ask an agency for a histogram of its people under the secret that was agreed."""
    small = {"plan": order.plan.canonical, "boxes": _texts(order.boxes), "heads": order.heads}
    return _small_order(COHORT, node_id, small)


def read_cohort_order(message: Message) -> CohortOrder:
    """The inverse of `pack_cohort_order`; `Refused(MALFORMED or VERSION)` when it does not decode."""

    def read(small: dict[str, Any]) -> CohortOrder:
        plan = _read_terms(small["plan"], CohortPlan)
        return CohortOrder(plan, _read_texts(small["boxes"]), _read_heads(small["heads"]))

    return _decoded(read, message)


def pack_reply(reply: Reply, order: Message) -> Message:
    """The one way out of an agency. The size depends on the plan alone."""
    return Message(_content(reply), reply_to=order)


def freeze(reply: Reply) -> bytes:
    """A reply as a node keeps it on its disk."""
    return bytes(recorddict_to_proto(_content(reply)).SerializeToString())


def thaw(kept: bytes) -> Reply:
    """The inverse of `freeze`; ValueError when it does not decode."""
    try:
        return _reply_of(recorddict_from_proto(RecordDictProto.FromString(kept)))
    except DecodeError:
        raise ValueError("a kept reply does not decode") from None


def _content(reply: Reply) -> RecordDict:
    small: dict[str, Any] = {"kind": type(reply).__name__, "agency": reply.agency}
    arrays: dict[str, Mapping[str, np.ndarray]] = {}
    match reply:
        case Refusal():
            small |= {"reason": reply.reason.value}
        case Ready():
            small |= {"head": reply.head, "keeps": reply.keeps}
        case RoundReply():
            small |= {"releases": _released(reply.releases), "trained": reply.delta is not None}
            small |= {"head": reply.head}
            arrays |= {} if reply.delta is None else {"delta": reply.delta}
            arrays |= {"tables": reply.tables} if reply.tables else {}
        case StatsReply():
            small |= {"releases": _released(reply.releases), "head": reply.head}
            arrays |= {"stats": {"sums": reply.sums}}
        case MapReply():
            small |= {"releases": _released(reply.releases), "head": reply.head}
            arrays |= {"map": {"numbers": reply.numbers}}
        case CohortReply():
            small |= {"releases": _released(reply.releases), "head": reply.head}
            arrays |= {"cohort": {"counts": reply.counts}}
        case MaskedReply():
            small |= {"releases": _released(reply.releases), "head": reply.head}
            arrays |= {"masked": {"vector": reply.vector}}
        case Greeted():
            small |= {"greeting": reply.greeting.to_dict()}
        case Boxes():
            small |= {"boxes": _texts(reply.boxes)}
        case Keys():
            small |= {"advert": reply.advert.to_dict()}
        case Dealt():
            small |= {
                "sealed": {n: [[_text(k), _text(s)] for k, s in each] for n, each in reply.sealed.items()}
            }
        case Signed():
            small |= {"signature": _text(reply.signature)}
        case Opened():
            small |= {"shares": _texts(reply.shares)}
    return _record(small, arrays)


def read_reply(message: Message) -> Reply:
    """The reply in `message`; ValueError (one sentence) when it does not decode."""
    return _reply_of(message.content)


def _reply_of(content: RecordDict) -> Reply:
    try:
        small = _read_json(content)
        return _READERS[small["kind"]](str(small["agency"]), small, content)
    except (*_DOES_NOT_DECODE, Refused):
        raise ValueError("a reply does not decode: it is not from this version of fedrisk") from None


def _read_round_reply(agency: str, small: dict[str, Any], content: RecordDict) -> RoundReply:
    return RoundReply(
        agency=agency,
        delta=_read_arrays(content, "delta") if small["trained"] else None,
        tables=_read_arrays(content, "tables") if "tables" in _fields(content) else {},
        releases=_read_released(small["releases"]),
        head=_read_head(small["head"]),
    )


def _read_stats_reply(agency: str, small: dict[str, Any], content: RecordDict) -> StatsReply:
    sums = _read_arrays(content, "stats")["sums"]
    return StatsReply(agency, sums, _read_released(small["releases"]), _read_head(small["head"]))


def _read_map_reply(agency: str, small: dict[str, Any], content: RecordDict) -> MapReply:
    numbers = _read_arrays(content, "map")["numbers"]
    return MapReply(agency, numbers, _read_released(small["releases"]), _read_head(small["head"]))


def _read_cohort_reply(agency: str, small: dict[str, Any], content: RecordDict) -> CohortReply:
    counts = _read_arrays(content, "cohort")["counts"]
    return CohortReply(agency, counts, _read_released(small["releases"]), _read_head(small["head"]))


def _read_masked_reply(agency: str, small: dict[str, Any], content: RecordDict) -> MaskedReply:
    vector = _read_arrays(content, "masked")["vector"]
    return MaskedReply(agency, vector, _read_released(small["releases"]), _read_head(small["head"]))


def _read_dealt(agency: str, small: dict[str, Any], _: RecordDict) -> Dealt:
    return Dealt(agency, {n: tuple(map(_read_sealed, each)) for n, each in small["sealed"].items()})


_READERS: Mapping[str, Callable[[str, dict[str, Any], RecordDict], Reply]] = {
    "Refusal": lambda agency, small, _: Refusal(agency, Reason(small["reason"])),
    "Ready": lambda agency, small, _: Ready(agency, _read_head(small["head"]), _read_heads(small["keeps"])),
    "RoundReply": _read_round_reply,
    "StatsReply": _read_stats_reply,
    "MapReply": _read_map_reply,
    "CohortReply": _read_cohort_reply,
    "MaskedReply": _read_masked_reply,
    "Greeted": lambda agency, small, _: Greeted(agency, Greeting.from_dict(small["greeting"])),
    "Boxes": lambda agency, small, _: Boxes(agency, _read_texts(small["boxes"])),
    "Keys": lambda agency, small, _: Keys(agency, Advert.from_dict(small["advert"])),
    "Dealt": _read_dealt,
    "Signed": lambda agency, small, _: Signed(agency, _bytes(small["signature"])),
    "Opened": lambda agency, small, _: Opened(agency, _read_texts(small["shares"])),
}


# --- small values -------------------------------------------------------------------------------------


def _small_order(message_type: str, node_id: int, small: Mapping[str, Any]) -> Message:
    return Message(_record(small), dst_node_id=node_id, message_type=message_type)


def _decoded(read: Callable[[dict[str, Any]], Answer], message: Message) -> Answer:
    small = _read_json(message.content)
    try:
        return read(small)
    except _DOES_NOT_DECODE as error:
        raise Refused(Reason.MALFORMED, f"an order does not decode: {type(error).__name__}") from None


def _of_draw(order: AgreeOrder | OpenOrder) -> dict[str, Any]:
    return {
        "run_id": order.run_id,
        "transcript": order.transcript,
        "draw": order.draw,
        "survivors": list(order.survivors),
    }


def _read_of_draw(small: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "run_id": str(small["run_id"]),
        "transcript": str(small["transcript"]),
        "draw": int(small["draw"]),
        "survivors": tuple(str(name) for name in small["survivors"]),
    }


def _released(releases: Sequence[Event]) -> list[dict[str, Any]]:
    return [release.to_dict() for release in releases]


def _read_released(values: Sequence[Mapping[str, Any]]) -> tuple[Event, ...]:
    return tuple(event_from_dict(value) for value in values)


def _read_head(value: Any) -> Head | None:
    return None if value is None else Head(int(value[0]), str(value[1]))


def _read_heads(values: Mapping[str, Any]) -> dict[str, Head]:
    return {str(name): Head(int(value[0]), str(value[1])) for name, value in values.items()}


def _read_sealed(value: Sequence[str]) -> Sealed:
    key, own = value
    return _bytes(key), _bytes(own)


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _texts(values: Mapping[str, bytes]) -> dict[str, str]:
    return {name: _text(value) for name, value in values.items()}


def _read_texts(values: Mapping[str, str]) -> dict[str, bytes]:
    return {str(name): _bytes(value) for name, value in values.items()}


def _bytes(value: str) -> bytes:
    return base64.b64decode(value, validate=True)


# --- arrays -------------------------------------------------------------------------------------------


def as_strategy_reply(message: Message, weights: Weights, public_weight: float) -> Message:
    """`message` as Flower's strategies want it: arrays, and the agreed weight in place of a row count."""
    content = RecordDict(
        {"arrays": pack_weights(weights), "metrics": MetricRecord({"weight": public_weight})}
    )
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
    """Weights as Flower's strategies take them, in this process; nothing of it is sent."""
    record = ArrayRecord()
    for name, value in weights.items():
        record[name] = _Here(value)  # ArrayRecord's constructor would copy it
    return record


def read_weights(record: ArrayRecord) -> Weights:
    """Weights as Flower's strategies give them."""
    return {name: array.numpy() for name, array in record.items()}


def _pack_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """In the safetensors format, which reads memory as it lies: so each array is made to lie in order first."""
    packed: bytes = save({name: np.asarray(value, order="C") for name, value in arrays.items()})
    return packed


def _read_arrays(content: RecordDict, key: str) -> Weights:
    """The inverse of `_pack_arrays`; ValueError when it does not decode."""
    packed = _fields(content)[key]
    if not isinstance(packed, bytes):
        raise TypeError(f"{key} is not a set of arrays")
    try:
        arrays: Weights = load(packed)
    except SafetensorError:
        raise ValueError(f"{key} does not decode") from None
    return arrays


def _record(
    small: Mapping[str, Any], arrays: Mapping[str, Mapping[str, np.ndarray]] | None = None
) -> RecordDict:
    packed = {key: _pack_arrays(value) for key, value in (arrays or {}).items()}
    return RecordDict({"fedrisk": ConfigRecord({"json": json.dumps(small), **packed})})


def _fields(content: RecordDict) -> ConfigRecord:
    record = content["fedrisk"]
    if not isinstance(record, ConfigRecord):
        raise TypeError("fedrisk is not a record of values")
    return record


def _read_json(content: RecordDict) -> dict[str, Any]:
    try:
        value = json.loads(str(_fields(content)["json"]))
        if not isinstance(value, dict):
            raise TypeError
        return value
    except _DOES_NOT_DECODE:
        raise Refused(Reason.MALFORMED, "a message without fedrisk's own record") from None


@functools.lru_cache(maxsize=8)
def _read_plan(text: object) -> TrainPlan:
    return _read_terms(text, TrainPlan)


@functools.lru_cache(maxsize=8)
def _read_masked(text: object) -> Masked:
    """A plan whose noise may be shared: of which kind, its keys say."""
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        found = None
    is_map = isinstance(found, dict) and plan_type(found) is MapPlan
    return _read_terms(text, MapPlan) if is_map else _read_plan(text)


def _read_terms(text: object, cls: type[Plan]) -> Plan:
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
        return cls.model_validate_json(text)
    except ValidationError as error:
        raise Refused(Reason.MALFORMED, "; ".join(sentences(error))) from None
