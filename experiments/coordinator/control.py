"""A SuperLink's control API, on the loopback or through a tunnel: enrol, revoke, list, start a run.

Flower's private APIs of the coordinator's side are here and in `serverapp.py`, and nowhere else; `FLOWER` is the
release that they are those of (a test pins it).
"""

import contextlib
import io
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
import httpx
from flwr.cli.typing import SuperLinkConnection
from flwr.cli.utils import init_http_client_from_connection
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    RegisterNodeRequest,
    StartRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.utils import get_flwr_home

from experiments.coordinator.folder import NAME, Folder
from experiments.coordinator.processes import no_proxy
from federation import installed

FLOWER = "1.41.0"
GONE = "unregistered"


class ControlError(Exception):
    """The SuperLink did not do it: one phrase that says why."""


class NoSuchConnection(ControlError):
    """There is no connection of that name."""


@dataclass(frozen=True)
class NodeSeen:
    """What the SuperLink knows of a node: `status` is registered, online, offline or unregistered."""

    node_id: int
    public_key: bytes
    status: str
    last_seen: datetime | None


def find_connection(superlink: str) -> SuperLinkConnection:
    """A coordinator's folder, or a name in Flower's own configuration."""
    folder = Folder(Path(superlink))
    if folder.at("coordinator.toml").is_file():
        if folder.running() is None or not folder.connection.is_file():
            raise NoSuchConnection(
                f"the coordinator in {superlink} is not running: `fedrisk coordinator start`"
            )
        return _read(folder.connection, NAME)
    return _read(get_flwr_home() / "config.toml", superlink)


def _read(path: Path, name: str) -> SuperLinkConnection:
    try:
        entry = tomllib.loads(path.read_text()).get("superlink", {}).get(name, {})
    except FileNotFoundError:
        entry = {}
    except (OSError, ValueError) as error:
        raise ControlError(f"{path} cannot be read: {error}") from None
    address = entry.get("address", "") if isinstance(entry, dict) else ""
    if not address or str(address).startswith(":"):  # ":local:" is a simulation that Flower starts itself
        raise NoSuchConnection(
            f"there is no SuperLink {name!r}: {path} needs a section [superlink.{name}] with its address, or name "
            "the folder of a running coordinator (docs/coordinator.md)"
        )
    try:
        keys = ("address", "root-certificates", "insecure", "federation")
        return SuperLinkConnection(name, *(entry.get(key) for key in keys))
    except ValueError as error:
        raise ControlError(f"{path}: {error}") from None


@contextlib.contextmanager
def control(connection: SuperLinkConnection) -> Iterator[ControlHttpClient]:
    """A client for the block; whatever goes wrong in it is a `ControlError`. A web proxy is never asked."""
    os.environ["NO_PROXY"] = no_proxy(os.environ)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            client = init_http_client_from_connection(connection)
        with client:
            yield client
    except httpx.HTTPStatusError as error:
        raise ControlError(_said(error.response)) from None
    except (httpx.HTTPError, OSError) as error:
        raise ControlError(f"nothing answers there ({type(error).__name__}): is it running?") from None
    except (click.ClickException, ValueError) as error:
        raise ControlError(str(getattr(error, "message", error))) from None


def _said(response: httpx.Response) -> str:
    error = FlowerError.from_json(response.text)
    return error.message if error is not None else f"HTTP status {response.status_code}"


def register(client: ControlHttpClient, public_key: bytes, name: str) -> int:
    """Flower's number for the node that now may connect with this key."""
    return int(client.RegisterNode(RegisterNodeRequest(public_key=public_key, name=name)).node_id)


def unregister(client: ControlHttpClient, node_id: int) -> None:
    """From now on each request of this node is refused."""
    client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))


def nodes(client: ControlHttpClient) -> list[NodeSeen]:
    """Every node that the SuperLink ever registered."""
    found = client.ListNodes(ListNodesRequest()).nodes_info
    return [NodeSeen(node.node_id, node.public_key, node.status, _last_seen(node)) for node in found]


def _last_seen(node: object) -> datetime | None:
    """The latest sign of life: a lease is renewed for `heartbeat_interval` x 2 at each heartbeat."""
    values = [getattr(node, name, "") for name in ("last_activated_at", "last_deactivated_at")]
    times = [datetime.fromisoformat(value) for value in values if value]
    until, interval = getattr(node, "online_until", 0.0), getattr(node, "heartbeat_interval", 0.0)
    if until and times and getattr(node, "status", "") != GONE:
        times.append(min(datetime.fromtimestamp(until - PATIENCE * interval, UTC), datetime.now(UTC)))
    return max(times, default=None)


PATIENCE = 2.0  # Flower's HEARTBEAT_PATIENCE


def start_run(connection: SuperLinkConnection, config: Mapping[str, str]) -> int:
    """Start a run of the installed release with `config`; Flower's number for it.

    What `flwr run` does, but with a bundle whose bytes do not depend on this machine's zlib.
    """
    bundle = Fab(installed.fab_hash(), installed.fab(), {})
    with control(connection) as client:
        answer = client.StartRun(
            StartRunRequest(
                fab=fab_to_proto(bundle),
                override_config=user_config_to_proto(dict(config)),
                federation=connection.federation or "",
            )
        )
    if not answer.run_id:
        raise ControlError("no reason given")
    return int(answer.run_id)
