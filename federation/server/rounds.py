"""The round loop: meet the agencies, order, collect, check, combine, checkpoint; one message a round.

Works over any Flower `Grid`. Everything that it learns is in a `Checkpoint`, so a killed run goes on
from its last whole round to the same weights.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from federation import protocol
from federation.experiment import Experiment
from federation.protocol import Ready, Reason, Refusal, RoundOrder, RoundReply, TrainPlan, Weights
from federation.server import checkpoint as checkpoints
from federation.server import strategies
from federation.server.checkpoint import Checkpoint
from federation.server.result import RunFacts, build_result, checkpoint_record, run_header
from federation.server.strategies import Update
from models import risk
from models.features import layout


class RunError(RuntimeError):
    """A run that cannot go on: one sentence that says what, which rule, and what to do."""


class Watcher(Protocol):
    """Whoever follows a run: the tracker, the progress on the screen."""

    def start(self, header: Mapping[str, Any]) -> None: ...
    def round(self, record: Mapping[str, Any]) -> None: ...
    def checkpoint(self, record: Mapping[str, Any]) -> None: ...


@dataclass
class Federation:
    """The agencies of a run as the server sees them: who is in, and why others are not."""

    plan: TrainPlan
    nodes: dict[str, int] = field(default_factory=dict)
    status: dict[str, dict[str, Any]] = field(default_factory=dict)

    def drop(self, name: str, status: str, reason: str | None) -> None:
        """Take `name` out of the run and remember why."""
        self.nodes.pop(name, None)
        self.status[name] = {"status": status, "reason": reason}


@dataclass(frozen=True)
class Round:
    """What came back in one round, by agency name."""

    replies: dict[str, tuple[Message, RoundReply]]
    late: list[str]
    refused: dict[str, str]
    rejected: dict[str, str]


def run_federation(
    grid: Grid,
    experiment: Experiment,
    facts: RunFacts,
    folder: Path,
    watchers: Sequence[Watcher] = (),
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Run `experiment` on `grid` into `folder`, or go on where its checkpoints end. Returns the result.

    Raises:
        RunError: too few agencies are ready, or too many rounds in a row were void.
        CheckpointError: a checkpoint cannot be written or read.
    """
    settings = experiment.settings
    plan = experiment.plan(facts.run_id, simulation=facts.simulation)
    federation = meet(grid, experiment, plan)
    strategy = strategies.build(settings.strategy)
    state = _with_lost_orders(_first_state(experiment, folder), folder)
    strategies.restore(strategy, list(state.weights), state.optimiser)
    held = held_masks(experiment)
    for watcher in watchers:
        watcher.start(run_header(experiment, plan, facts, federation.status) | {"resumed_at": state.round})
    void = 0
    for number in range(state.round + 1, plan.rounds + 1):
        started = clock()
        order = RoundOrder(
            plan, number, state.weights, True, ("tune",) if number - 1 in plan.checkpoints else ()
        )
        got = _note_and_ask(grid, experiment, federation, order, folder)
        updates = _updates(held, plan, got)
        enough = len(updates) >= settings.min_agencies
        void = 0 if enough else void + 1
        weights = strategies.combine(strategy, number, state.weights, updates) if enough else state.weights
        state = _after(state, experiment, federation, strategy, order, weights, got, clock() - started)
        checkpoints.write(state, folder / "checkpoints")
        _tell(watchers, state, order)
        if void > settings.void_rounds or not federation.nodes:
            raise RunError(_too_few(experiment, federation, f"round {number}"))
    order = RoundOrder(plan, plan.rounds + 1, state.weights, False, _last_parts(plan))
    started = clock()
    got = _note_and_ask(grid, experiment, federation, order, folder)
    state = _after(state, experiment, federation, strategy, order, state.weights, got, clock() - started)
    _tell(watchers, state, order)
    return build_result(experiment, plan, facts, federation.status, state)


def meet(grid: Grid, experiment: Experiment, plan: TrainPlan) -> Federation:
    """Find the agencies' nodes and ask each whether it is ready for `plan`; `RunError` below quorum."""
    settings = experiment.settings
    federation = Federation(plan)
    names = [participant.name for participant in plan.participants]
    node_ids = _await_nodes(grid, len(names), settings.join_timeout, settings.engine.poll_seconds)
    orders = {str(node_id): protocol.pack_ready_order(plan, node_id) for node_id in node_ids}
    found = exchange(grid, orders, settings.round_timeout, settings.engine.poll_seconds)
    for message in found.values():
        reply = _read(message)
        if isinstance(reply, Refusal) and reply.agency in names:
            federation.drop(reply.agency, _status_of(reply.reason), reply.reason.value)
        elif isinstance(reply, Ready) and reply.agency in names and reply.agency not in federation.nodes:
            federation.nodes[reply.agency] = message.metadata.src_node_id
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
    if len(federation.nodes) < settings.min_agencies:
        raise RunError(_too_few(experiment, federation, "the start"))
    return federation


def ask(grid: Grid, experiment: Experiment, federation: Federation, order: RoundOrder) -> Round:
    """Send `order` to every agency in the run; agencies that refuse leave it, and are named."""
    settings = experiment.settings
    orders = {name: protocol.pack_round_order(order, node) for name, node in federation.nodes.items()}
    found = exchange(grid, orders, settings.round_timeout, settings.engine.poll_seconds)
    got = Round({}, [name for name in orders if name not in found], {}, {})
    n_groups = len(experiment.data_contract.group_names)
    for name in sorted(found):
        reply = _read(found[name])
        if isinstance(reply, Refusal):
            got.refused[name] = reply.reason.value
            federation.drop(name, _status_of(reply.reason), reply.reason.value)
            continue
        problem = _problem(reply, name, order, n_groups)
        if problem is None and isinstance(reply, RoundReply):
            got.replies[name] = (found[name], reply)
        else:
            got.rejected[name] = problem or "not a round's reply"
    return got


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


def _await_nodes(grid: Grid, expected: int, timeout: float, poll: float) -> list[int]:
    until = time.monotonic() + timeout
    while True:
        nodes = sorted(grid.get_node_ids())
        if len(nodes) >= expected or time.monotonic() >= until:
            return nodes
        time.sleep(poll)


def _read(message: Message) -> Ready | RoundReply | Refusal | None:
    try:
        return protocol.read_reply(message)
    except ValueError:
        return None


def _status_of(reason: Reason) -> str:
    return "unavailable" if reason is Reason.UNAVAILABLE else "refused"


def _problem(reply: object, name: str, order: RoundOrder, n_groups: int) -> str | None:
    """Why a reply is rejected, or None. It names the rule, and no value of the reply."""
    if not isinstance(reply, RoundReply) or reply.agency != name:
        return "the reply does not decode or is not this agency's"
    if order.train != (reply.delta is not None) or set(reply.tables) != set(order.evaluate):
        return "the reply is not what was ordered"
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


def _updates(held: Mapping[str | None, Weights], plan: TrainPlan, got: Round) -> list[Update]:
    """The valid changes in name order, with each agency's public weight and what it holds."""
    updates = []
    for name, (message, reply) in sorted(got.replies.items()):
        if reply.delta is not None:
            participant = plan.participant(name)
            updates.append(Update(message, reply.delta, participant.weight, held.get(participant.kind, {})))
    return updates


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


def _first_state(experiment: Experiment, folder: Path) -> Checkpoint:
    """The last checkpoint of the same configuration, or the initial weights."""
    found = checkpoints.read_last(folder / "checkpoints")
    if found is None:
        module = risk.build(
            experiment.settings.model, len(layout(experiment.data_contract).names), experiment.settings.seed
        )
        history: dict[str, Any] = {"rounds": [], "checkpoints": [], "orders": {}}
        return Checkpoint(0, experiment.sha256, risk.weights_of(module), history=history)
    if found.config_sha256 != experiment.sha256:
        raise RunError(
            f"{folder} was started with another configuration (SHA-256 {found.config_sha256[:12]}..., this one "
            f"{experiment.sha256[:12]}...): resume it with its own, or start a new run"
        )
    return found


def _after(
    state: Checkpoint,
    experiment: Experiment,
    federation: Federation,
    strategy: Any,
    order: RoundOrder,
    weights: Weights,
    got: Round,
    seconds: float,
) -> Checkpoint:
    """The state with one more round in it: the newest tables, spending, who replied, a metrics record."""
    plan = order.plan
    tables = {
        key: table for key, table in state.tables.items() if key.partition("/")[0] not in order.evaluate
    }
    measured = order.round - 1
    for name, (_, reply) in got.replies.items():
        tables |= {f"{part}/{measured}/{name}": table for part, table in reply.tables.items()}
    perhaps_charged = [name for name, reason in got.refused.items() if reason == "UNAVAILABLE"]
    names = [*got.replies, *got.late, *got.rejected, *perhaps_charged]
    orders = _counted(state.history["orders"], order.kinds, names)
    for name in got.replies:
        orders[name]["rounds"] += int(order.train)
    record = {
        "round": order.round,
        "seconds": seconds,
        "replied": sorted(got.replies),
        "late": sorted(got.late),
        "refused": got.refused,
        "rejected": got.rejected,
    }
    history: dict[str, Any] = {
        "rounds": [*state.history["rounds"], record] if order.train else list(state.history["rounds"]),
        "checkpoints": list(state.history["checkpoints"]),
        "orders": orders,
    }
    for part in order.evaluate:
        history["checkpoints"].append(checkpoint_record(experiment, plan, part, measured, tables, orders))
    optimiser = strategies.state(strategy, list(weights))
    return Checkpoint(order.round, experiment.sha256, weights, optimiser, tables, history)


def _note_and_ask(
    grid: Grid, experiment: Experiment, federation: Federation, order: RoundOrder, folder: Path
) -> Round:
    checkpoints.note_order(order.round, order.kinds, list(federation.nodes), folder / "checkpoints")
    return ask(grid, experiment, federation, order)


def _with_lost_orders(state: Checkpoint, folder: Path) -> Checkpoint:
    """`state` with the orders that were sent after it and whose round was lost: they were charged all the same."""
    orders = state.history["orders"]
    for kinds, names in checkpoints.orders_after(state.round, folder / "checkpoints"):
        orders = _counted(orders, kinds, names)
    return replace(state, history={**state.history, "orders": orders})


def _counted(
    orders: Mapping[str, Mapping[str, int]], kinds: Iterable[str], names: Iterable[str]
) -> dict[str, dict[str, int]]:
    """`orders` with one more release of each of `kinds` at each of `names`."""
    counted = {name: dict(counts) for name, counts in orders.items()}
    for name in names:
        counts = counted.setdefault(name, {"train": 0, "tune": 0, "test": 0, "rounds": 0})
        for kind in kinds:
            counts[kind] += 1
    return counted


def _last_parts(plan: TrainPlan) -> tuple[protocol.Part, ...]:
    return ("tune", "test") if plan.rounds in plan.checkpoints else ("test",)


def _tell(watchers: Iterable[Watcher], state: Checkpoint, order: RoundOrder) -> None:
    fresh = state.history["checkpoints"][-len(order.evaluate) :] if order.evaluate else []
    for watcher in watchers:
        for record in fresh:
            watcher.checkpoint(record)
        if order.train:
            watcher.round(state.history["rounds"][-1])


def _too_few(experiment: Experiment, federation: Federation, when: str) -> str:
    absent = [
        f"{name} ({facts['status']}{'' if facts['reason'] is None else ': ' + facts['reason']})"
        for name, facts in sorted(federation.status.items())
        if facts["status"] != "trained"
    ]
    return (
        f"fewer agencies took part at {when} than min_agencies={experiment.settings.min_agencies} asks for"
        f"{'; not in: ' + ', '.join(absent) if absent else ''}. Each agency's own log says why; the run can be resumed"
    )
