"""Talking with the agencies: who is in a run, one message there and one back, and what is wrong with a reply."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from federation import wire
from federation.experiment import Experiment
from federation.protocol import (
    Head,
    Ready,
    Reason,
    Refusal,
    Reply,
    RoundOrder,
    RoundReply,
    TrainPlan,
    Weights,
)
from federation.server.strategies import Update
from models import risk
from models.features import layout


class RunError(RuntimeError):
    """A run that cannot go on: one sentence that says what, which rule, and what to do."""


@dataclass
class Federation:
    """The agencies of a run as the server sees them: who is in, why others are not, the newest of each ledger."""

    plan: TrainPlan
    nodes: dict[str, int] = field(default_factory=dict)
    status: dict[str, dict[str, Any]] = field(default_factory=dict)
    heads: dict[str, Head] = field(default_factory=dict)

    def drop(self, name: str, status: str, reason: str | None) -> None:
        """Take `name` out of the run and remember why."""
        self.nodes.pop(name, None)
        self.status[name] = {"status": status, "reason": reason}

    def saw(self, heads: Mapping[str, Head | None]) -> None:
        """Remember the newest head of each ledger."""
        for name, head in heads.items():
            if head is not None and head.seq > self.heads.get(name, Head(0, "")).seq:
                self.heads[name] = head


@dataclass
class Round:
    """What came back in one round. `tables`: by part and by whose they are, (counts, variance of their noise).

    `void` says why the round changed nothing, if it did not.
    """

    updates: list[Update] = field(default_factory=list)
    tables: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    replied: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    void: str | None = None


MAY_COME_BACK = {Reason.MASKS, Reason.REPLAYED}  # with new keys: see `masked.set_up`
NOT_A_REPLY = "the reply does not decode or is not this agency's"


def meet(
    grid: Grid, experiment: Experiment, plan: TrainPlan, heads: Mapping[str, Head] | None = None
) -> Federation:
    """Find the agencies' nodes and ask each whether it is ready for `plan`; `RunError` below quorum.

    `heads`: the newest ledger heads that the coordinator kept from before.
    """
    settings = experiment.settings
    federation = Federation(plan, heads=dict(heads or {}))
    names = [participant.name for participant in plan.participants]
    node_ids = await_nodes(grid, len(names), settings.join_timeout, settings.engine.poll_seconds)
    orders = {str(node_id): wire.pack_ready_order(plan, node_id, federation.heads) for node_id in node_ids}
    found = exchange(grid, orders, settings.round_timeout, settings.engine.poll_seconds)
    said: dict[str, Head | None] = {}
    for message in found.values():
        reply = read(message)
        if isinstance(reply, Refusal) and reply.agency in names:
            federation.drop(reply.agency, status_of(reply.reason), reply.reason.value)
        elif isinstance(reply, Ready) and reply.agency in names and reply.agency not in federation.nodes:
            federation.nodes[reply.agency] = message.metadata.src_node_id
            federation.saw({name: head for name, head in reply.keeps.items() if name != reply.agency})
            said[reply.agency] = reply.head
    # An agency's own word of its ledger comes last, or the next order would not show it what others have seen.
    federation.saw({name: head for name, head in said.items() if name not in federation.heads})
    contract = experiment.data_contract
    for participant in plan.participants:
        name = participant.name
        if not contract.holds_label(participant.kind):
            federation.drop(name, "no label", "its kind of agency does not hold the label")
        elif name in federation.nodes:
            federation.status[name] = {"status": "trained", "reason": None}
        else:
            federation.status.setdefault(name, {"status": "late", "reason": "did not answer"})
    federation.nodes = {name: federation.nodes[name] for name in sorted(federation.nodes)}
    if len(federation.nodes) < quorum(experiment):
        raise RunError(too_few(experiment, federation, "the start"))
    return federation


def ask(grid: Grid, experiment: Experiment, federation: Federation, order: RoundOrder) -> Round:
    """Send `order` to every agency in the run; agencies that refuse leave it, and are named."""
    plan, got = order.plan, Round()
    found = answers(grid, experiment, federation, wire.pack_round_orders(order, federation.nodes), got)
    n_groups = len(experiment.data_contract.group_names)
    held = held_masks(experiment)
    for name, (message, reply) in found.items():
        problem = _problem(reply, name, order, n_groups)
        if problem is not None or not isinstance(reply, RoundReply):
            got.rejected[name] = problem or NOT_A_REPLY
            continue
        got.replied.append(name)
        federation.saw({name: reply.head})
        for part, table in reply.tables.items():
            got.tables.setdefault(part, {})[name] = table
        if reply.delta is not None:
            participant = plan.participant(name)
            holds = held.get(participant.kind, {})
            got.updates.append(Update(message, reply.delta, participant.weight, holds))
    return got


def answers(
    grid: Grid,
    experiment: Experiment,
    federation: Federation,
    orders: Mapping[str, Message],
    got: Round,
) -> dict[str, tuple[Message, Reply | None]]:
    """Replies to `orders` in name order; who is late or refuses is noted in `got`, and who refuses leaves the run."""
    settings = experiment.settings
    found = exchange(grid, orders, settings.round_timeout, settings.engine.poll_seconds)
    got.late += [name for name in orders if name not in found]
    replies: dict[str, tuple[Message, Reply | None]] = {}
    for name in sorted(found):
        reply = read(found[name])
        if isinstance(reply, Refusal):
            got.refused[name] = reply.reason.value
            if reply.reason not in MAY_COME_BACK:
                federation.drop(name, status_of(reply.reason), reply.reason.value)
        else:
            replies[name] = (found[name], reply)
    return replies


def exchange(grid: Grid, orders: Mapping[str, Message], timeout: float, poll: float) -> dict[str, Message]:
    """Push `orders` and pull until all have answered or `timeout` seconds are over. Late ones are absent.

    Flower's `send_and_receive` sleeps three seconds between pulls; here `poll` says how long.
    """
    names = list(orders)
    pushed = list(grid.push_messages(list(orders.values())))
    waiting = {identifier: name for identifier, name in zip(pushed, names, strict=True) if identifier}
    found: dict[str, Message] = {}
    until = time.monotonic() + timeout
    while waiting:
        for message in grid.pull_messages(list(waiting)):
            name = waiting.pop(message.metadata.reply_to_message_id, None)
            if name is not None and not message.has_error():
                found[name] = message
        if time.monotonic() >= until:
            break
        if waiting:
            time.sleep(poll)
    return found


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
    return "unavailable" if reason is Reason.UNAVAILABLE else "refused"


def _problem(reply: object, name: str, order: RoundOrder, n_groups: int) -> str | None:
    """Why a reply is rejected, or None. It names the rule, and no value of the reply."""
    if not isinstance(reply, RoundReply) or reply.agency != name:
        return NOT_A_REPLY
    if order.train != (reply.delta is not None) or set(reply.tables) != set(order.evaluate):
        return "the reply is not what was ordered"
    if reply.releases != order.releases:
        return "the reply was charged as something else than was ordered"
    shape = (n_groups, len(order.plan.edges) - 1, 2)
    expected: dict[str, tuple[tuple[int, ...], type]] = dict.fromkeys(order.evaluate, (shape, np.float64))
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
    return (
        f"fewer agencies took part at {when} than {_quorum(experiment)}"
        f"{'; not in: ' + ', '.join(absent) if absent else ''}. Each agency's own log says why; the run can be resumed"
    )


def quorum(experiment: Experiment) -> int:
    """How many agencies a round needs: `min_agencies`, and behind masks at least the threshold."""
    shared = experiment.privacy_plan().shared
    return max(experiment.settings.min_agencies, 0 if shared is None else shared.threshold)


def _quorum(experiment: Experiment) -> str:
    least = quorum(experiment)
    if least > experiment.settings.min_agencies:
        return f"the {least} that shared noise with {experiment.settings.privacy.dropouts} dropouts needs"
    return f"min_agencies={least} asks for"
