"""The agency's Flower ClientApp, and the catch-all that turns every error into a `Reason`.

An exception's text would reach the server as it is, and data libraries like to quote cells. So the
text of an unexpected error is not even written to the node's own log: the log names the kind of error
and the lines of code, the wire gets `UNAVAILABLE`.
"""

import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.journal import JournalError
from clients.keys import KeyFileError
from clients.ledger import LedgerError
from clients.node import DataError, Node, NodeError, open_node
from clients.policy import PolicyError
from clients.recorder import Recorder
from federation import wire
from federation.plan import Terms
from federation.protocol import Reason, Refusal, Refused, Reply

log = logging.getLogger("fedrisk.node")
FindNode = Callable[[Context], Node]
Answer = Callable[[Message, Context], Message]


@dataclass(frozen=True)
class Clock:
    """How a reply is padded to the policy's `min_reply_seconds`."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def make_app(find_node: FindNode, clock: Clock = Clock()) -> ClientApp:
    """A ClientApp that answers for the node that `find_node` finds: the one seam between engines."""
    app = ClientApp()

    def answers(read: Callable[[Message], Any], act: Callable[[Node, Any], Reply]) -> Answer:
        return lambda message, context: _answer(message, context, find_node, clock, read, act)

    app.query("ready")(answers(wire.read_ready_order, lambda node, order: node.ready(*order)))
    app.query("keys")(answers(wire.read_keys_order, Node.make_keys))
    app.query("deal")(answers(wire.read_deal_order, Node.deal))
    app.query("agree")(answers(wire.read_agree_order, Node.agree))
    app.query("open")(answers(wire.read_open_order, Node.open))
    app.query("stats")(answers(wire.read_stats_order, Node.stats))
    app.query("map")(answers(wire.read_map_order, Node.map))
    app.query("greet")(answers(wire.read_greet_order, Node.greet))
    app.query("seal")(answers(wire.read_seal_order, Node.seal))
    app.query("cohort")(answers(wire.read_cohort_order, Node.cohort))
    app.train("round")(answers(wire.read_round_order, Node.round))
    return app


def node_from_config(context: Context) -> Node:
    """The node whose folder the SuperNode was started with: `--node-config 'node-dir="..."'`."""
    return open_node(Path(str(context.node_config["node-dir"])))


def _answer(
    message: Message,
    context: Context,
    find_node: FindNode,
    clock: Clock,
    read: Callable[[Message], Any],
    act: Callable[[Node, Any], Reply],
) -> Message:
    started, floor = clock.now(), 0.0
    try:
        node = find_node(context)
        floor = node.policy.min_reply_seconds
        return _ask(node, message, read, act)
    except Exception as error:  # noqa: BLE001 - the wall: nothing of an error may leave
        return wire.pack_reply(Refusal("", _reason(error, log)), message)
    finally:
        clock.sleep(max(0.0, floor - (clock.now() - started)))


def _ask(
    node: Node, message: Message, read: Callable[[Message], Any], act: Callable[[Node, Any], Reply]
) -> Message:
    """The node's reply; the journal has every step, and the count of refusals each of them, before it leaves."""
    recorder, plan = Recorder(node.journal, message.metadata.message_type), None
    try:
        order = read(message)
        recorder.arrived(order)
        plan = _plan_of(order)
        if plan is not None:
            node.probing.check(plan)
        reply = act(node, order)
        if plan is not None:
            node.probing.accepted(plan)
        recorder.answered(reply)
        return wire.pack_reply(reply, message)
    except Exception as error:  # noqa: BLE001 - the wall: nothing of an error may leave
        reason = _reason(error, node.log)
        try:
            if plan is not None:
                node.probing.refused(plan, reason)
            recorder.refused(reason, error.sentence if isinstance(error, Refused) else "")
        except (JournalError, NodeError) as unwritten:
            reason = _reason(unwritten, node.log)
        return wire.pack_reply(Refusal(node.facts.name, reason), message)


def _plan_of(order: object) -> Terms | None:
    """The plan that an order carries; lists and openings of a masked round carry none."""
    plan = order[0] if isinstance(order, tuple) else getattr(order, "plan", None)
    return plan if isinstance(plan, Terms) else None


def _reason(error: Exception, node_log: logging.Logger) -> Reason:
    """What may leave of an error; the rest stays in the node's own log."""
    if isinstance(error, Refused):
        node_log.warning("refused, %s: %s", error.reason, error.sentence)
        return error.reason
    if isinstance(error, DataError):
        node_log.error("the data does not fit the contract: %s", error)
    elif isinstance(error, NodeError | PolicyError | LedgerError | KeyFileError | JournalError):
        node_log.error("this node cannot work: %s", error)
    else:
        node_log.error("failed with %s at %s", type(error).__name__, _where(error))
    return Reason.UNAVAILABLE


def _where(error: BaseException) -> str:
    """The lines of code of a traceback, without the error's text."""
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))


app = make_app(node_from_config)
