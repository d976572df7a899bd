"""The panel's site on a free port of the loopback, in a thread of the test: started, and stopped again."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import httpx

from federation.panel.site.server import listen, prepare

Clock = Callable[[], datetime]


@contextmanager
def serving(folder: Path, runs: Path, now: Clock) -> Iterator[str]:
    """The address that lets one browser in, once."""
    with listen("127.0.0.1", 0) as door:
        address, server = prepare(folder, runs, door, now)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]}, daemon=True)
        thread.start()
        until = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < until
            time.sleep(0.005)
        try:
            yield address
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def client(address: str) -> httpx.Client:
    """A browser without scripts, which has been nowhere yet."""
    return httpx.Client(base_url=address.partition("/enter")[0], follow_redirects=True, timeout=20)
