"""The site on a port of this machine's loopback, and nowhere else."""

import secrets
import socket
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import uvicorn

from federation.panel.files import PanelError, read_panel
from federation.panel.site.app import make_app

HOSTS = ("127.0.0.1", "localhost", "::1")


def listen(host: str, port: int) -> socket.socket:
    """A port of this machine that nobody else can reach; `PanelError` where it is not one. 0: any that is free."""
    if host not in HOSTS:
        raise PanelError(
            f"--host must be {', '.join(HOSTS[:-1])} or {HOSTS[-1]}, got {host}: the site has no TLS, so it is offered to no "
            f"other machine; from another one, go through ssh -L {port}:127.0.0.1:{port} to this one, and open the address there"
        )
    family = socket.AF_INET6 if host == "::1" else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise PanelError(f"port {port} of {host} cannot be had ({why}): name another with --port") from None


def prepare(
    folder: Path, runs: Path, door: socket.socket, now: Callable[[], datetime]
) -> tuple[str, uvicorn.Server]:
    """The address that lets one browser in, once, and the server, which is not running yet."""
    read_panel(folder)
    if not runs.is_dir():
        raise PanelError(f"{runs} is no folder: name the folder of the runs with --runs")
    token = secrets.token_urlsafe(32)
    config = uvicorn.Config(
        make_app(folder, runs, token, now),
        log_level="warning",
        access_log=False,  # the token is in an address
        server_header=False,
        proxy_headers=False,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        limit_concurrency=64,
        timeout_graceful_shutdown=2,
    )
    host, port = door.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/enter?token={token}", uvicorn.Server(config)
