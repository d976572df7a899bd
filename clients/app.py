"""The agency's Flower ClientApp, and the catch-all that turns every error into a `Reason`.

An exception's text would reach the server as it is, and data libraries like to quote cells. So the
text of an unexpected error is not even written to the node's own log: the log names the kind of error
and the lines of code, the wire gets `UNAVAILABLE`.
"""

import logging
import traceback
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.ledger import LedgerError
from clients.node import DataError, Node, NodeError, open_node
from clients.policy import PolicyError
from federation import protocol
from federation.protocol import Ready, Reason, Refusal, Refused, RoundReply

log = logging.getLogger("fedrisk.node")
FindNode = Callable[[Context], Node]


def make_app(find_node: FindNode) -> ClientApp:
    """A ClientApp that answers for the node that `find_node` finds: the one seam between engines."""
    app = ClientApp()

    @app.query("ready")
    def ready(message: Message, context: Context) -> Message:
        return _answer(
            message, context, find_node, lambda node: node.ready(protocol.read_ready_order(message))
        )

    @app.train("round")
    def one_round(message: Message, context: Context) -> Message:
        return _answer(
            message, context, find_node, lambda node: node.round(protocol.read_round_order(message))
        )

    return app


def node_from_config(context: Context) -> Node:
    """The node whose folder the SuperNode was started with: `--node-config 'node-dir="..."'`."""
    return open_node(Path(str(context.node_config["node-dir"])))


def _answer(
    message: Message, context: Context, find_node: FindNode, act: Callable[[Node], Ready | RoundReply]
) -> Message:
    name, node_log = "", log
    try:
        node = find_node(context)
        name, node_log = node.facts.name, node.log
        return protocol.pack_reply(act(node), message)
    except Refused as refused:
        node_log.warning("refused, %s: %s", refused.reason, refused.sentence)
        reason = refused.reason
    except DataError as error:
        node_log.error("the data does not fit the contract: %s", error)
        reason = Reason.UNAVAILABLE
    except (NodeError, PolicyError, LedgerError) as error:
        node_log.error("this node cannot work: %s", error)
        reason = Reason.UNAVAILABLE
    except Exception as error:  # noqa: BLE001 - the wall: nothing of an error may leave
        node_log.error("failed with %s at %s", type(error).__name__, _where(error))
        reason = Reason.UNAVAILABLE
    return protocol.pack_reply(Refusal(name, reason), message)


def _where(error: BaseException) -> str:
    """The lines of code of a traceback, without the error's text."""
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))


app = make_app(node_from_config)
