"""The node's line to a SuperLink: outbound HTTPS alone, signed with the node's key; no Python of anybody else.

Flower's private APIs live in `clients/flower/` and nowhere else under `clients/` (`FLOWER` is the release that they
are those of; a test pins it). A stock SuperNode fetches the bundle of a run, unpacks it and imports it. This
one never asks for a bundle: it reads which bundle a run names (`Task.fab_hash`) and hands the message's bytes,
unopened, to the worker that holds the records.

The Fleet API (Flower 1.41): activate, heartbeat, pull a message and its objects, push a reply and its objects.
A request is signed over its time, so a clock that is more than 5 s fast or 305 s slow is a 401.
"""

import contextlib
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.error import FlowerError
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from clients.flower.envelope import Answer, Task

FLOWER = "1.41.0"
OBJECT_SECONDS = (0.02, 0.5, 60.0)  # between tries for an object that is on its way: first, longest, in all
RUN_IS_OVER = 2007  # Flower's code for a run that takes no more messages
NOT_ACTIVATED = 2004  # Flower's code for a key that is not enrolled, or whose last lease is not over
LARGEST_ORDER = 512 * 1024 * 1024  # bytes of one message's objects


Found = TypeVar("Found")


class LinkError(Exception):
    """The line is down or was refused: one sentence that says what, and what to do.

    `is_open`: the SuperLink still knows this node, so it is enough to ask again.
    """

    def __init__(self, sentence: str, *, is_open: bool = True) -> None:
        super().__init__(sentence)
        self.is_open = is_open


class RunIsOver(LinkError):
    """The run that a message belongs to takes no more messages."""


class Link:
    """The line of one node. Use `connected()`; the methods raise `LinkError`, and nothing else, on trouble."""

    def __init__(
        self, address: str, key: ec.EllipticCurvePrivateKey, *, certificate: Path | None, insecure: bool
    ) -> None:
        self.address = address
        self._public = public_key_to_bytes(key.public_key())
        self._insecure = insecure
        self._runs: dict[int, tuple[str, str]] = {}
        self._node: Node | None = None
        try:
            self._client = FleetHttpClient(
                f"{'http' if insecure else 'https'}://{address}",
                verify=not insecure and _tls(certificate),
                interceptors=[
                    RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                    NodeAuthHttpInterceptor(key, key.public_key()),
                ],
            )
            self._client._client.follow_redirects = (
                False  # the agency's firewall and we agreed to one address
            )
        except ImportError:
            raise LinkError(
                "ALL_PROXY or HTTPS_PROXY names a SOCKS proxy, which the node cannot use: name an HTTP proxy, or none",
                is_open=False,
            ) from None
        except (OSError, ssl.SSLError, UnicodeDecodeError):
            raise LinkError(
                f"superlink.certificate: {certificate} is no readable PEM certificate: ask the coordinator for ca.crt",
                is_open=False,
            ) from None

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """Activated and with a heartbeat for the length of the block, then deactivated."""
        self._activate()
        ended = threading.Event()
        heart = threading.Thread(target=self._beat, args=(ended,), daemon=True, name="heartbeat")
        heart.start()
        try:
            yield
        finally:
            ended.set()
            heart.join(timeout=10)
            node, self._node = self._node, None
            with contextlib.suppress(LinkError):
                if node is not None:
                    self._call(
                        lambda: self._client.DeactivateNode(DeactivateNodeRequest(node_id=node.node_id))
                    )

    @property
    def node_id(self) -> int:
        """Flower's number for this node."""
        return self._here.node_id

    def pull(self) -> Task | None:
        """The next message for this node, whole, or None."""
        found = self._call(lambda: self._client.PullMessages(PullMessagesRequest(node=self._here)))
        if not found.messages_list:
            return None
        message, tree = found.messages_list[0], found.message_object_trees[0]
        run_id, message_id = message.metadata.run_id, tree.object_id
        objects = self._pull_objects(run_id, tree)
        self._call(
            lambda: self._client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(node=self._here, run_id=run_id, message_object_id=message_id)
            )
        )
        return Task(run_id, self._here.node_id, message_id, *self._run(run_id), objects)

    def push(self, answer: Answer) -> None:
        """Send a reply. To send it twice does no harm: its hash names it."""
        tree = ObjectTree.FromString(answer.tree)
        request = PushMessagesRequest(
            node=self._here,
            messages_list=[MessageProto.FromString(answer.message)],
            message_object_trees=[tree],
            clientapp_runtime_list=[0.0],  # how long it took is nobody's business
        )
        said = self._call(lambda: self._client.PushMessages(request))
        for identifier in said.objects_to_push:
            one = PushObjectRequest(
                node=self._here,
                run_id=answer.run_id,
                object_id=identifier,
                object_content=answer.objects[identifier],
                session_id=said.session_id,
            )
            if not self._call(lambda one=one: self._client.PushObject(one)).stored:  # type: ignore[misc]
                raise LinkError("the SuperLink did not keep a part of the reply: it will be sent again")

    def close(self) -> None:
        """Close the connections."""
        with contextlib.suppress(Exception):
            self._client.close()

    @property
    def _here(self) -> Node:
        if self._node is None:
            raise LinkError("the line is not open", is_open=False)
        return self._node

    def _activate(self) -> None:
        if self._insecure:  # a SuperLink without node authentication: only ever on this machine's loopback
            with contextlib.suppress(LinkError):
                self._call(
                    lambda: self._client.RegisterNode(RegisterNodeFleetRequest(public_key=self._public))
                )
        request = ActivateNodeRequest(
            public_key=self._public, heartbeat_interval=float(HEARTBEAT_DEFAULT_INTERVAL)
        )
        self._node = Node(node_id=self._call(lambda: self._client.ActivateNode(request)).node_id)

    def _beat(self, ended: threading.Event) -> None:
        """Tell the SuperLink that this node is there; a beat that fails is tried again soon."""
        wait = 0.0
        while not ended.wait(wait):
            try:
                request = SendNodeHeartbeatRequest(
                    node=self._here, heartbeat_interval=float(HEARTBEAT_DEFAULT_INTERVAL)
                )
                self._call(lambda request=request: self._client.SendNodeHeartbeat(request))  # type: ignore[misc]
                wait = 0.7 * HEARTBEAT_DEFAULT_INTERVAL
            except LinkError:
                wait = 2.0

    def _run(self, run_id: int) -> tuple[str, str]:
        if run_id not in self._runs:
            run = self._call(lambda: self._client.GetRun(GetRunRequest(node=self._here, run_id=run_id))).run
            self._runs = {run_id: (run.fab_hash, run.fab_version)}
        return self._runs[run_id]

    def _pull_objects(self, run_id: int, tree: ObjectTree) -> dict[str, bytes]:
        objects: dict[str, bytes] = {}
        size = 0
        for identifier in dict.fromkeys(each.object_id for each in iterate_object_tree(tree)):
            objects[identifier] = self._pull_object(run_id, identifier)
            size += len(objects[identifier])
            if size > LARGEST_ORDER:
                raise LinkError(f"an order is larger than {LARGEST_ORDER // 2**20} MB: it is left unread")
        return objects

    def _pull_object(self, run_id: int, identifier: str) -> bytes:
        wait, longest, left = OBJECT_SECONDS
        request = PullObjectRequest(node=self._here, run_id=run_id, object_id=identifier)
        while True:
            found = self._call(lambda: self._client.PullObject(request))
            if not found.object_found or left <= 0:
                raise LinkError("a part of an order is not there: the coordinator will have to send it again")
            if found.object_available:
                return bytes(found.object_content)
            threading.Event().wait(wait)
            left, wait = left - wait, min(2 * wait, longest)

    def _call(self, call: Callable[[], Found]) -> Found:
        """`call()`, with whatever goes wrong as one sentence."""
        try:
            return call()
        except httpx.HTTPStatusError as error:
            self._refused(error.response)
        except httpx.TransportError as error:
            why = str(error)
        except (ValueError, SystemExit):  # no protobuf came back; or Flower's versions do not match
            self._stranger()
        if "CERTIFICATE_VERIFY_FAILED" in why:
            reason = why.partition("CERTIFICATE_VERIFY_FAILED] ")[2].partition(" (")[0]
            raise LinkError(
                f"{self.address} shows a certificate that does not check ({reason}): is superlink.certificate the "
                "coordinator's ca.crt, and superlink.address the name in its certificate?",
                is_open=False,
            )
        raise LinkError(f"{self.address} cannot be reached ({why or 'no answer'}): is the network there?")

    def _refused(self, response: httpx.Response) -> NoReturn:
        known = FlowerError.from_json(response.text)
        code = None if known is None else known.code
        if code == RUN_IS_OVER:
            raise RunIsOver("the run takes no more messages")
        if code == NOT_ACTIVATED:
            raise LinkError(
                "the SuperLink does not let this node in: its key is not enrolled there (`fedrisk coordinator enrol`), "
                "or it stopped without a word less than 66 seconds ago",
                is_open=False,
            )
        if response.status_code == httpx.codes.UNAUTHORIZED:
            theirs = response.headers.get("date", "unknown")
            raise LinkError(
                "the SuperLink does not accept this node's signature: its key is not enrolled there or was revoked, or "
                f"this machine's clock is wrong (the SuperLink's: {theirs}; it may be 5 s ahead or 305 s behind)",
                is_open=False,
            )
        if response.status_code == httpx.codes.NOT_FOUND:
            self._stranger()
        raise LinkError(
            f"{self.address} answers with HTTP status {response.status_code}: it will be asked again"
        )

    def _stranger(self) -> NoReturn:
        raise LinkError(
            f"{self.address} does not answer as a SuperLink of Flower {FLOWER} does: is superlink.address right?"
        )


def _tls(certificate: Path | None) -> ssl.SSLContext:
    """TLS 1.2 or newer, checked against the coordinator's CA alone, or against the system's own store."""
    context = ssl.create_default_context(
        cadata=None if certificate is None else certificate.read_bytes().decode("ascii")
    )
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
