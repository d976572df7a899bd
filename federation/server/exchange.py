"""Talking with the agencies: who is in a run, one message there and one back, and what is wrong with a reply."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from federation import wire
from federation.experiment import Experiment
from federation.plan import NOT_NOW
from federation.protocol import (
    Head,
    MapPlan,
    Masked,
    Participant,
    Ready,
    Reason,
    Refusal,
    Reply,
    RoundOrder,
    RoundReply,
    TrainPlan,
    Weights,
)
from federation.server import bounds
from federation.server.strategies import Update
from models import risk
from models.contract import Contract
from models.features import layout


class RunError(RuntimeError):
    """A run that cannot go on: one sentence that says what, which rule, and what to do."""


@dataclass
class Federation:
    """The agencies of a run as the server sees them: who is in, why others are not, the newest of each ledger.

    `away`: who is in, but said "not now" to the last order that it got, and why. `gone`: who is in, and was late last
    time. `ids`: Flower's number of each agency's node, whether it is in or not.
    """

    plan: Masked
    nodes: dict[str, int] = field(default_factory=dict)
    status: dict[str, dict[str, Any]] = field(default_factory=dict)
    heads: dict[str, Head] = field(default_factory=dict)
    away: dict[str, Reason] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    ids: dict[str, int] = field(default_factory=dict)

    def drop(self, name: str, status: str, reason: str | None) -> None:
        """Take `name` out of the run and remember why."""
        self.nodes.pop(name, None)
        self.away.pop(name, None)
        self.status[name] = {"status": status, "reason": reason}

    def saw(self, heads: Mapping[str, Head | None]) -> None:
        """Remember the newest head of each ledger."""
        for name, head in heads.items():
            if head is not None and head.seq > self.heads.get(name, Head(0, "")).seq:
                self.heads[name] = head


@dataclass
class Round:
    """What came back in one round. `tables`: by part and by whose they are, (counts, variance of their noise).

    `bounded`: whose change was longer than its bound and was scaled down to it, and how many times as long it was.
    `void` says why the round changed nothing, if it did not.
    """

    updates: list[Update] = field(default_factory=list)
    tables: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    replied: list[str] = field(default_factory=list)
    joined: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    bounded: dict[str, float] = field(default_factory=dict)
    void: str | None = None


MAY_COME_BACK = {Reason.MASKS, Reason.REPLAYED}  # with new keys: see `masked.set_up`
_STATUS = {
    Reason.UNAVAILABLE: "unavailable",
    Reason.WITHDRAWN: "withdrawn",
    Reason.NOT_YET: "not yet",
    Reason.CLOSED: "closed",
    Reason.BUSY: "busy",
    Reason.LEFT: "left",
}
ASK_AGAIN = 60.0  # seconds without an answer
ITS_NODE_IS_GONE = 5.0  # seconds until an agency is asked again that Flower says is not there
NOT_A_REPLY = "the reply does not decode or is not this agency's"


def meet(
    grid: Grid, experiment: Experiment, plan: Masked, heads: Mapping[str, Head] | None = None
) -> Federation:
    """Find the agencies' nodes and ask each whether it is ready for `plan`; `RunError` below quorum.

    `heads`: the newest ledger heads that the coordinator kept from before.
    """
    settings = experiment.settings
    federation = Federation(plan, heads=dict(heads or {}))
    names = [participant.name for participant in plan.participants]
    node_ids = await_nodes(grid, len(names), settings.join_timeout, settings.engine.poll_seconds)
    found = ask_until_ready(
        grid, experiment, lambda node: wire.pack_ready_order(plan, node, federation.heads), node_ids
    )
    said: dict[str, Head | None] = {}
    for message in found.values():
        reply = read(message)
        if isinstance(reply, Refusal | Ready) and reply.agency in names:
            federation.ids.setdefault(reply.agency, message.metadata.src_node_id)
        if isinstance(reply, Refusal) and reply.agency in names:
            federation.drop(reply.agency, status_of(reply.reason), reply.reason.value)
        elif isinstance(reply, Ready) and reply.agency in names and reply.agency not in federation.nodes:
            federation.nodes[reply.agency] = message.metadata.src_node_id
            federation.saw({name: head for name, head in reply.keeps.items() if name != reply.agency})
            said[reply.agency] = reply.head
    # An agency's own word of its ledger comes last, or the next order would not show it what others have seen.
    federation.saw({name: head for name, head in said.items() if name not in federation.heads})
    for participant in plan.participants:
        name, absent = participant.name, _not_asked(experiment.data_contract, plan, participant)
        if absent is not None:
            federation.drop(name, *absent)
        elif name in federation.nodes:
            federation.status[name] = {"status": "trained", "reason": None}
        else:
            federation.status.setdefault(name, {"status": "late", "reason": "did not answer"})
    federation.nodes = {name: federation.nodes[name] for name in sorted(federation.nodes)}
    if len(federation.nodes) < quorum(experiment, plan=plan):
        raise RunError(too_few(experiment, federation, "the start"))
    return federation


def _not_asked(contract: Contract, plan: Masked, participant: Participant) -> tuple[str, str] | None:
    """Status and reason of an agency that the plan's orders are not for, by its kind; None where they are."""
    if isinstance(plan, MapPlan):
        holds = bool(plan.asked_of(contract, participant.name).queries)
        return (
            None if holds else ("not held", "it holds nothing that is asked for, or may not be asked for it")
        )
    holds = contract.holds_label(participant.kind)
    return None if holds else ("no label", "its kind of agency does not hold the label")


def ask(grid: Grid, experiment: Experiment, federation: Federation, order: RoundOrder) -> Round:
    """Send `order` to every agency in the run; agencies that refuse leave it, and are named."""
    plan, got = order.plan, Round()
    found = answers(grid, experiment, federation, wire.pack_round_orders(order, federation.nodes), got)
    held = held_masks(experiment)
    for name, (message, reply) in found.items():
        participant = plan.participant(name)
        holds = held.get(participant.kind, {})
        problem = _problem(reply, name, order, experiment.data_contract)
        if problem is None and isinstance(reply, RoundReply) and reply.delta is not None:
            limit = bounds.bound_of(experiment, plan, name, order.weights, holds)
            delta, times = bounds.bounded(reply.delta, limit)
            problem = bounds.cannot_be(delta, order.weights, holds)
        if problem is not None or not isinstance(reply, RoundReply):
            got.rejected[name] = problem or NOT_A_REPLY
            continue
        got.replied.append(name)
        federation.saw({name: reply.head})
        for part, table in reply.tables.items():
            got.tables.setdefault(part, {})[name] = table
        if reply.delta is not None:
            got.updates.append(Update(message, delta, participant.weight, holds, name))
            got.bounded |= {name: times} if times > 1 else {}
    return got


def answers(
    grid: Grid,
    experiment: Experiment,
    federation: Federation,
    orders: Mapping[str, Message],
    got: Round,
) -> dict[str, tuple[Message, Reply | None]]:
    """Replies to `orders` in name order; who is late or refuses is noted in `got`.

    Who refuses leaves the run; who says "not now" (`NOT_NOW`) misses this order alone, and who may come back
    (`MAY_COME_BACK`) does with new keys.
    """
    settings = experiment.settings
    patience = {name: 0.0 if name in federation.gone else settings.patience for name in orders}
    found = exchange(grid, orders, settings.round_timeout, settings.engine.poll_seconds, patience)
    federation.gone = {name for name in orders if name not in found}
    got.late += sorted(federation.gone)
    replies: dict[str, tuple[Message, Reply | None]] = {}
    for name in sorted(found):
        reply = read(found[name])
        if isinstance(reply, Refusal):
            got.refused[name] = reply.reason.value
            if reply.reason in NOT_NOW:
                federation.away[name] = reply.reason
            elif reply.reason not in MAY_COME_BACK:
                federation.drop(name, status_of(reply.reason), reply.reason.value)
        else:
            federation.away.pop(name, None)
            replies[name] = (found[name], reply)
    return replies


def ask_until_ready(
    grid: Grid, experiment: Experiment, pack: Callable[[int], Message], node_ids: Iterable[int]
) -> dict[str, Message]:
    """What each of the nodes says to its order, by node id; those that say "not now" are asked again.

    They are asked until `join_timeout` seconds are over, each time after a tenth of it, but at most a minute: a
    person there may have to approve first.
    """
    settings = experiment.settings
    poll, until = settings.engine.poll_seconds, time.monotonic() + settings.join_timeout
    pause = max(poll, min(60.0, settings.join_timeout / 10))
    again = list(node_ids)
    found: dict[str, Message] = {}
    while True:
        orders = {str(node): pack(node) for node in again}
        patience = dict.fromkeys(orders, max(0.0, until - time.monotonic()))
        found |= exchange(grid, orders, settings.round_timeout, poll, patience)
        again = [int(node) for node in orders if node in found and _not_now(found[node])]
        if not again or time.monotonic() + pause > until:
            return found
        time.sleep(pause)


def _not_now(message: Message) -> bool:
    reply = read(message)
    return isinstance(reply, Refusal) and reply.reason in NOT_NOW


def exchange(
    grid: Grid,
    orders: Mapping[str, Message],
    timeout: float,
    poll: float,
    patience: Mapping[str, float] | None = None,
) -> dict[str, Message]:
    """Push `orders` and pull until all have answered or `timeout` seconds are over. Late ones are absent.

    An order may be asked again, for a node answers one that it knows with the reply that it has, uncharged: after
    ASK_AGAIN seconds without an answer (then twice as long, and so forth), and, for its seconds of `patience`, when
    Flower says that its node is gone. Flower's `send_and_receive` sleeps three seconds between pulls; here `poll` says how long.
    """
    asked = _Asked(grid, orders, patience or {})
    until = time.monotonic() + timeout
    while True:
        asked.pull()
        if not asked.missing or time.monotonic() >= until:
            return asked.found
        asked.ask_again()
        time.sleep(poll)


class _Asked:
    """Orders that were sent, some perhaps several times, and the first answer to each."""

    def __init__(self, grid: Grid, orders: Mapping[str, Message], patience: Mapping[str, float]) -> None:
        self._grid, self._orders, self._patience = grid, orders, patience
        self._began = time.monotonic()
        self._of: dict[str, str] = {}
        self._next: dict[str, float] = {}
        self._wait = dict.fromkeys(orders, ASK_AGAIN)
        self.found: dict[str, Message] = {}
        self.missing = set(orders)
        self._push(orders)

    def _push(self, orders: Mapping[str, Message]) -> None:
        pushed = list(self._grid.push_messages(list(orders.values())))
        for name, identifier in zip(orders, pushed, strict=True):
            if identifier:
                self._of[identifier] = name
                self._next[name] = time.monotonic() + self._wait[name]
            else:
                self.missing.discard(name)

    def pull(self) -> None:
        """Take in what has arrived."""
        waiting = [identifier for identifier, name in self._of.items() if name in self.missing]
        for message in self._grid.pull_messages(waiting) if waiting else ():
            name = self._of.pop(message.metadata.reply_to_message_id, None)
            if name is None or name not in self.missing:
                continue
            if not message.has_error():
                self.found[name] = message
                self.missing.discard(name)
            elif time.monotonic() - self._began >= self._patience.get(name, 0.0):
                self.missing.discard(name)  # its node is gone, and was for long enough
            else:
                self._next[name] = time.monotonic() + ITS_NODE_IS_GONE

    def ask_again(self) -> None:
        """Send once more what has waited long enough."""
        now = time.monotonic()
        late = [name for name in self.missing if now >= self._next[name]]
        for name in late:
            self._wait[name] *= 2
        self._push({name: _again(self._orders[name]) for name in sorted(late)})


def _again(order: Message) -> Message:
    """The same order as another message."""
    told = order.metadata
    return Message(
        order.content, dst_node_id=told.dst_node_id, message_type=told.message_type, group_id=told.group_id
    )


def await_nodes(grid: Grid, expected: int, timeout: float, poll: float) -> list[int]:
    """The nodes that are there once `expected` are, or when `timeout` seconds are over."""
    until = time.monotonic() + timeout
    while True:
        nodes = sorted(grid.get_node_ids())
        if len(nodes) >= expected or time.monotonic() >= until:
            return nodes
        time.sleep(poll)


def read(message: Message) -> Reply | None:
    """The reply, or None where it does not decode."""
    try:
        return wire.read_reply(message)
    except ValueError:
        return None


def status_of(reason: Reason) -> str:
    """What a refusal makes of an agency in the result."""
    return _STATUS.get(reason, "refused")


def table_shape(contract: Contract, plan: TrainPlan, table: str) -> tuple[int, ...]:
    """The shape of a table that an agency sends: a score table of a part, or `users`."""
    if table == "users" and contract.users_shape is not None:
        return contract.users_shape
    return len(contract.group_names), len(plan.edges) - 1, 2


def _problem(reply: object, name: str, order: RoundOrder, contract: Contract) -> str | None:
    """Why a reply is rejected, or None. It names the rule, and no value of the reply."""
    if not isinstance(reply, RoundReply) or reply.agency != name:
        return NOT_A_REPLY
    if order.train != (reply.delta is not None) or set(reply.tables) != set(order.tables):
        return "the reply is not what was ordered"
    if reply.releases != order.releases:
        return "the reply was charged as something else than was ordered"
    expected: dict[str, tuple[tuple[int, ...], type]] = {
        table: (table_shape(contract, order.plan, table), np.float64) for table in order.tables
    }
    arrays = dict(reply.tables)
    if reply.delta is not None:
        expected |= {f"delta/{key}": (value.shape, np.float32) for key, value in order.weights.items()}
        arrays |= {f"delta/{key}": value for key, value in reply.delta.items()}
    if set(arrays) != set(expected):
        return "the reply has other parameters than the model"
    for key, (want, dtype) in expected.items():
        if arrays[key].shape != want or arrays[key].dtype != dtype:
            return f"{key} must have shape {want} and type {np.dtype(dtype)}"
        if not np.isfinite(arrays[key]).all():
            return f"{key} has NaN or infinite values"
    participant = order.plan.participant(name)
    for table in order.tables:
        if (np.abs(reply.tables[table]) > bounds.table_bound(order.plan, table, participant)).any():
            return f"{table} counts more people in a cell than {bounds.MOST_PEOPLE:g} x its declared size"
    return None


def held_masks(experiment: Experiment) -> dict[str | None, Weights]:
    """For each kind of agency, 0/1 over the features axis of the first layer: the blocks it holds."""
    contract = experiment.data_contract
    features = layout(contract)
    module = risk.build(experiment.settings.model, len(features.names))
    masks: dict[str | None, Weights] = {}
    for kind in {participant.kind for participant in experiment.participants}:
        held = [block is None or contract.holds(kind, block) for block in features.block]
        masks[kind] = {} if all(held) else {risk.input_weight(module): np.asarray(held, dtype=np.float64)}
    return masks


def too_few(experiment: Experiment, federation: Federation, when: str) -> str:
    """The sentence of a run that has too few agencies."""
    absent = [
        f"{name} ({facts['status']}{'' if facts['reason'] is None else ': ' + facts['reason']})"
        for name, facts in sorted(federation.status.items())
        if facts["status"] != "trained"
    ]
    absent += [f"{name} ({status_of(reason)})" for name, reason in sorted(federation.away.items())]
    again = "the run can be resumed"
    if isinstance(federation.plan, MapPlan):
        again = "ask for the map again"
    elif federation.plan.retest is not None:
        again = "ask for the retest again"
    return (
        f"fewer agencies took part at {when} than {_quorum(experiment, federation.plan)}"
        f"{'; not in: ' + ', '.join(absent) if absent else ''}. Each agency's own log says why; {again}"
    )


def quorum(experiment: Experiment, caught: int = 0, plan: Masked | None = None) -> int:
    """How many agencies a round needs: `min_agencies`, the threshold behind masks, and what a robust strategy asks.

    `caught`: how many of those that sent rubbish it has already seen. A map (`plan`) has no strategy.
    """
    settings = experiment.settings
    if isinstance(plan, MapPlan):
        return max(settings.min_agencies, 0 if plan.circle is None else plan.circle.threshold)
    shared = experiment.privacy_plan().shared if settings.privacy.mechanism == "shared" else None
    threshold = 0 if shared is None else shared.threshold
    return max(settings.min_agencies, threshold, settings.strategy.least(caught))


def _quorum(experiment: Experiment, plan: Masked) -> str:
    least, strategy = quorum(experiment, plan=plan), experiment.settings.strategy
    if isinstance(plan, TrainPlan) and strategy.least() == least > experiment.settings.min_agencies:
        return f"the {least} that strategy {strategy.name} against malicious={strategy.malicious} needs"
    if least > experiment.settings.min_agencies:
        return f"the {least} that shared noise with {experiment.settings.privacy.dropouts} dropouts needs"
    return f"min_agencies={least} asks for"
