"""The round loop: meet the agencies, order, collect, check, combine, checkpoint; one message a round.

Works over any Flower `Grid`. Everything that it learns is in a `Checkpoint`, so a killed run goes on
from its last whole round to the same weights.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from flwr.serverapp import Grid

from federation import protocol
from federation.experiment import Experiment
from federation.protocol import Head, RoundOrder, TrainPlan, Weights
from federation.server import checkpoint as checkpoints
from federation.server import fair, masked, strategies
from federation.server.checkpoint import Checkpoint
from federation.server.exchange import Federation, Round, RunError, ask, meet, quorum, too_few
from federation.server.joining import Departures, Door
from federation.server.result import RunFacts, build_result, checkpoint_record, run_header
from models import risk
from models.features import layout

# Refusals that leave it open whether the order was charged: it failed half way, or came a second time.
PERHAPS_CHARGED = ("UNAVAILABLE", "REPLAYED", "MASKS")


class Watcher(Protocol):
    """Whoever follows a run: the tracker, the progress on the screen."""

    def start(self, header: Mapping[str, Any]) -> None: ...
    def round(self, record: Mapping[str, Any]) -> None: ...
    def checkpoint(self, record: Mapping[str, Any]) -> None: ...


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
    heads = Heads(folder if facts.simulation else folder.parent)
    federation = meet(grid, experiment, plan, heads.read())
    asker, door = Asker(grid, experiment, federation, folder), Door(grid, experiment, federation)
    departures = Departures(folder if facts.simulation else folder.parent)
    departures.note(federation.status, facts.run_id, 0)
    strategy = strategies.build(settings.strategy)
    state = _with_lost_orders(_first_state(experiment, folder), folder)
    strategies.restore(strategy, list(state.weights), state.optimiser)
    for watcher in watchers:
        watcher.start(run_header(experiment, plan, facts, federation.status) | {"resumed_at": state.round})
    void = 0
    for number in range(state.round + 1, plan.rounds + 1):
        started = clock()
        fairer: fair.State | None = state.history.get("fairness")
        parts: tuple[protocol.Part, ...] = ("tune",) if number - 1 in plan.checkpoints else ()
        counts = fair.of_order(fairer, experiment)
        order = RoundOrder(plan, number, state.weights, True, parts, multipliers=counts)
        joined = door.open(number)
        got = asker.ask(order)
        got.joined += joined
        departures.note(federation.status, facts.run_id, number)
        enough = len(got.replied) >= quorum(experiment, len(got.rejected)) and bool(got.updates)
        void = 0 if enough else void + 1
        weights = (
            strategies.combine(
                strategy,
                number,
                state.weights,
                fair.weighed(fairer, experiment, got.updates),
                len(got.rejected),
            )
            if enough
            else state.weights
        )
        state = _after(state, experiment, federation, strategy, order, weights, got, clock() - started)
        checkpoints.write(state, folder / "checkpoints")
        heads.keep(federation.heads)
        _tell(watchers, state, order)
        if void > settings.void_rounds or not federation.nodes:
            raise RunError(too_few(experiment, federation, f"round {number}"))
    order = RoundOrder(plan, plan.rounds + 1, state.weights, False, _last_parts(plan))
    started = clock()
    got = asker.ask(order)
    state = _after(state, experiment, federation, strategy, order, state.weights, got, clock() - started)
    heads.keep(federation.heads)
    _tell(watchers, state, order)
    departures.note(federation.status, facts.run_id, order.round)
    result = build_result(experiment, plan, facts, federation.status, state)
    return result | {"departures": departures.of(plan)}


class Asker:
    """Sends a round's order, noted on the disk first, plainly or behind masks as the plan has it."""

    def __init__(self, grid: Grid, experiment: Experiment, federation: Federation, folder: Path) -> None:
        self._grid, self._experiment, self._federation = grid, experiment, federation
        self._folder = folder / "checkpoints"
        self._masks: masked.Session | None = None

    def ask(self, order: RoundOrder) -> Round:
        """What came back; a void round says why."""
        plan, federation = order.plan, self._federation
        order = replace(order, heads=dict(federation.heads))
        shared = plan.privacy.shared
        if shared is not None and (self._masks is None or self._masks.is_spent):
            draws = plan.rounds + 2 - order.round  # the rounds to come and the last tables: nodes demand it
            try:
                self._masks = masked.set_up(self._grid, self._experiment, federation, draws)
            except masked.SetUpError as error:
                if self._masks is None or order.round > plan.rounds:
                    raise RunError(str(error)) from None
                return Round(void=str(error))
        asked = [n for n in federation.nodes if self._masks is None or n in self._masks.roster.names]
        checkpoints.note_order(order.round, order.kinds, asked, self._folder)
        if self._masks is None:
            return ask(self._grid, self._experiment, federation, order)
        last = order.round > plan.rounds
        return masked.ask(self._grid, self._experiment, federation, self._masks, order, last=last)


class Heads:
    """`heads.json`: the newest head of each agency's ledger that this coordinator has seen, over all its runs."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "heads.json"

    def read(self) -> dict[str, Head]:
        """What is kept; nothing where there is no file yet or it does not decode."""
        try:
            kept = json.loads(self._path.read_text())
            return {str(name): Head(int(seq), str(head)) for name, (seq, head) in kept.items()}
        except (OSError, AttributeError, TypeError, ValueError):
            return {}

    def keep(self, heads: Mapping[str, Head]) -> None:
        """Keep `heads`, and those of agencies that are not in this run."""
        beside = self._path.with_suffix(".writing")
        kept = self.read()
        newer = {n: head for n, head in heads.items() if n not in kept or head.seq >= kept[n].seq}
        beside.write_text(json.dumps(kept | newer))
        beside.replace(self._path)


def _first_state(experiment: Experiment, folder: Path) -> Checkpoint:
    """The last checkpoint of the same configuration, or the initial weights."""
    found = checkpoints.read_last(folder / "checkpoints")
    if found is None:
        module = risk.build(
            experiment.settings.model, len(layout(experiment.data_contract).names), experiment.settings.seed
        )
        history: dict[str, Any] = {"rounds": [], "checkpoints": [], "orders": {}}
        history["fairness"] = fair.start(experiment.settings.fairness)
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
    tables = {key: table for key, table in state.tables.items() if key.partition("/")[0] not in order.tables}
    measured = order.round - 1
    for part, each in got.tables.items():
        tables |= {f"{part}/{measured}/{whose}": table for whose, table in each.items()}
    orders = _counted(state.history["orders"], order.kinds, charged(got))
    for name in got.replied if got.void is None else ():
        orders[name]["rounds"] += int(order.train)
    record = {
        "round": order.round,
        "seconds": seconds,
        "replied": sorted(got.replied),
        "joined": got.joined,
        "late": sorted(got.late),
        "refused": got.refused,
        "rejected": got.rejected,
        "bounded": got.bounded,
        "void": got.void,
    }
    history: dict[str, Any] = {
        "rounds": [*state.history["rounds"], record] if order.train else list(state.history["rounds"]),
        "checkpoints": list(state.history["checkpoints"]),
        "orders": orders,
        "fairness": state.history.get("fairness"),
    }
    if history["fairness"] is not None and order.train and "tune" in order.evaluate:
        history["fairness"] = fair.after(history["fairness"], experiment, plan, measured, tables)
    for part in order.evaluate:
        measures = checkpoint_record(experiment, plan, part, measured, tables, orders)
        history["checkpoints"].append(measures | {"rejected": got.rejected})
    optimiser = strategies.state(strategy, list(weights))
    return Checkpoint(order.round, experiment.sha256, weights, optimiser, tables, history)


def charged(got: Round) -> list[str]:
    """Who charged the round's order, as far as the coordinator can know: everybody who did not refuse it first."""
    perhaps = [name for name, reason in got.refused.items() if reason in PERHAPS_CHARGED]
    return [*got.replied, *got.late, *got.rejected, *perhaps]


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


__all__ = ["RunError", "Watcher", "run_federation"]
