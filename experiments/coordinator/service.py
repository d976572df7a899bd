"""`fedrisk coordinator start`: SuperLink, SuperExec and nginx, kept running until SIGTERM.

The SuperLink is bound to the loopback and keeps nodes, runs and messages in its database, so one that is killed
comes back and the run goes on: the ServerApp is a process of its own, under the SuperExec. Nothing is installed
at run time, nothing phones home.
"""

import logging
import logging.handlers
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import httpx

from experiments.coordinator import proxy, serverapp, tls
from experiments.coordinator.folder import NAME, CoordinatorError, CoordinatorFile, Folder, at, write_whole
from experiments.coordinator.processes import Child, no_proxy, rotate

Say = Callable[[str], None]
READY_SECONDS, END_SECONDS, TICK, CHORES = 120.0, 15.0, 0.2, 60.0
TOO_OFTEN = 3  # restarts before it was ever ready
ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
    "PYTHONSAFEPATH": "1",
}


class Service:
    """The processes of the coordinator in `folder`."""

    def __init__(self, folder: Folder, say: Say) -> None:
        self.folder, self.settings = folder, folder.settings()
        self._say = say
        self._runs_nginx = not self.settings.insecure and self.settings.proxy == "nginx"
        self._stopping = threading.Event()
        self.log = _log(folder)
        self._port = self._superlink_port()
        self._children = self._make_children()
        self._certificate_seen = self._certificate_stamp()

    def run(self) -> None:
        """Start everything, say so in one line, and keep it running until told to stop."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        try:
            self._start()
            chores = time.monotonic() + CHORES
            while not self._stopping.wait(TICK):
                for child in self._children:
                    child.poll(self._tell)
                if time.monotonic() > chores:
                    chores = time.monotonic() + CHORES
                    self._do_chores()
        finally:
            self._end()

    def _start(self) -> None:
        for child in self._children:
            child.start()
        end = time.monotonic() + READY_SECONDS
        while not self._stopping.is_set() and not self.ready():
            for child in self._children:
                child.poll(self.log.info)
                if child.restarts >= TOO_OFTEN:
                    raise CoordinatorError(f"{child.name} does not start: {child.last_words()} ({child.log})")
            if time.monotonic() > end:
                raise CoordinatorError(f"not ready within {READY_SECONDS:.0f} s: see {self.folder.at('log')}")
            self._stopping.wait(TICK)
        if not self._stopping.is_set():
            self._write_connection()
            where = f"agencies connect to {self.settings.address}; SuperLink on 127.0.0.1:{self._port}"
            self._tell(f"ready: {where} (process {os.getpid()})")

    def ready(self) -> bool:
        """Whether all are up: the SuperLink says that it is well, and the proxy answers as it should."""
        if any(child.pid is None for child in self._children):
            return False
        if not healthy(self.folder, self._port, insecure=self.settings.insecure):
            return False
        return not self._runs_nginx or answers(own_address(self.settings))

    def _make_children(self) -> list[Child]:
        superlink = self._child("superlink", self._superlink_command())
        superexec = self._child("superexec", self._superexec_command())
        if not self._runs_nginx:
            return [superlink, superexec]
        proxy.configure(self.folder, self.settings, self._port)
        proxy.check(self.folder)
        return [superlink, superexec, self._child("nginx", proxy.command(self.folder))]

    def _child(self, name: str, command: list[str]) -> Child:
        log, environment = self.folder.at(f"log/{name}.log"), child_environment(self.folder)
        return Child(name, command, log=log, cwd=self.folder.path, environment=environment)

    def _superlink_command(self) -> list[str]:
        command = [_flower("flower-superlink"), "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--database", str(self.folder.at("superlink.db")), "--isolation", "process"]
        command += ["--disable-runtime-dependency-installation"]
        command += ["--superexec-auth-secret-file", str(self.folder.at("superexec.secret"))]
        if self.settings.insecure:
            return [*command, "--insecure"]
        tls_files = {"certfile": "loopback.crt", "keyfile": "loopback.key", "ca-certfile": "loopback-ca.crt"}
        for option, name in tls_files.items():
            command += [f"--ssl-{option}", str(self.folder.at(f"tls/{name}"))]
        return [*command, "--enable-supernode-auth"]

    def _superexec_command(self) -> list[str]:
        command = [_flower("flower-superexec"), "--runtime-api-address", f"127.0.0.1:{self._port}"]
        command += ["--superexec-auth-secret-file", str(self.folder.at("superexec.secret"))]
        if self.settings.insecure:
            return [*command, "--insecure"]
        return [*command, "--root-certificates", str(self.folder.at("tls/loopback-ca.crt"))]

    def _superlink_port(self) -> int:
        if self.settings.insecure:
            return free(self.settings.listen, self.settings.port, "port")
        if self._runs_nginx:
            free(self.settings.listen, self.settings.port, "port")
        port = free("127.0.0.1", self.settings.superlink_port, "superlink_port")
        while port == self.settings.port and not self.settings.superlink_port:  # free, but the proxy's to be
            port = free("127.0.0.1", 0, "superlink_port")
        return port

    def _write_connection(self) -> None:
        """What `fedrisk submit FOLDER` reads; also `FLWR_HOME=FOLDER/flower flwr log ... coordinator`."""
        entry = f'[superlink.{NAME}]\naddress = "127.0.0.1:{self._port}"\n'
        ca = self.folder.at("tls/loopback-ca.crt")
        entry += "insecure = true\n" if self.settings.insecure else f'root-certificates = "{ca}"\n'
        write_whole(self.folder.connection, entry.encode(), mode=0o600)

    def _do_chores(self) -> None:
        for child in self._children:
            child.rotate()
        for name in ("proxy-access.log", "proxy-error.log"):
            rotate(self.folder.at(f"log/{name}"))
        if not self._runs_nginx:
            return
        if tls.renew(self.folder, self.settings.host, self.folder.at(self.settings.certificate)):
            self._tell("the server's certificate was signed again for another year")
        stamp = self._certificate_stamp()
        if stamp != self._certificate_seen:
            self._certificate_seen = stamp
            self._children[-1].send(signal.SIGHUP)
            self._tell("nginx was told to read its certificate again")

    def _certificate_stamp(self) -> float:
        with suppress(OSError):
            return self.folder.at(self.settings.certificate).stat().st_mtime
        return 0.0

    def _end(self) -> None:
        """Nobody new is let in, then runs are told, then the SuperLink goes."""
        with suppress(OSError):
            self.folder.connection.unlink()
        for name in ("nginx", "superexec", "superlink"):
            for child in self._children:
                if child.name == name:
                    child.end(END_SECONDS)
        self.log.info("stopped")

    def _stop(self, _: int, __: FrameType | None) -> None:
        self._stopping.set()

    def _tell(self, sentence: str) -> None:
        self.log.info(sentence)
        self._say(sentence)


def start(folder: Folder, say: Say) -> None:
    """Run the coordinator in `folder` until SIGTERM, Ctrl-C or `stop`. `CoordinatorError` says why it cannot be."""
    settings = folder.settings()
    busy = f"a coordinator is at work in {folder.path} already (process {{process}}): `fedrisk coordinator stop` ends it"
    with folder.locked("start.lock", busy):
        for name in ("log", "outputs", "flower"):
            folder.at(name).mkdir(mode=0o700, exist_ok=True)
        folder.connection.unlink(missing_ok=True)  # of one that was killed
        serverapp.write_commands(folder.at("bin"))
        if not settings.insecure and settings.proxy == "nginx":
            certificate = folder.at(settings.certificate)
            tls.renew(folder, settings.host, certificate)
            ca = folder.at(settings.ca) if settings.ca else None
            wrong = tls.problems(certificate, folder.at(settings.key), ca, settings.host)
            if wrong:
                raise CoordinatorError("\n".join(wrong))
        Service(folder, say).run()


def stop(folder: Folder, *, seconds: float = 60.0) -> bool:
    """Ask the coordinator to stop and wait; False where none runs. `CoordinatorError` if it goes on."""
    folder.settings()
    process = folder.running()
    if process is None:
        return False
    os.kill(process, signal.SIGTERM)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if folder.running() is None:
            return True
        time.sleep(0.1)
    raise CoordinatorError(f"process {process} still runs after {seconds:.0f} s: see {folder.at('log')}")


def child_environment(folder: Folder, given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What the children see: `given` without any Flower setting, and with ours."""
    kept = {name: value for name, value in given.items() if not name.startswith(("FLWR_", "FLOWER_"))}
    path = os.pathsep.join([str(folder.at("bin")), str(Path(sys.executable).parent), given.get("PATH", "")])
    return (
        kept | ENVIRONMENT | {"FLWR_HOME": str(folder.flower_home), "NO_PROXY": no_proxy(given), "PATH": path}
    )


def own_address(settings: CoordinatorFile) -> str:
    """Where this machine itself reaches the proxy."""
    anywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
    bare = settings.listen.strip("[]")
    return at(anywhere.get(bare, bare), settings.port)


def healthy(folder: Folder, port: int, *, insecure: bool) -> bool:
    """Whether the SuperLink says that it is well."""
    try:
        if insecure:
            return httpx.get(f"http://127.0.0.1:{port}/health", timeout=2, trust_env=False).is_success
        with loopback_client(folder, port) as client:
            return client.get("/health").is_success
    except (httpx.HTTPError, OSError):
        return False


@contextmanager
def loopback_client(folder: Folder, port: int) -> Iterator[httpx.Client]:
    """An HTTPS client for the SuperLink on this machine's loopback."""
    import ssl

    context = ssl.create_default_context(cafile=str(folder.at("tls/loopback-ca.crt")))
    base = f"https://127.0.0.1:{port}"
    with httpx.Client(base_url=base, verify=context, timeout=5, trust_env=False) as client:
        yield client


def answers(address: str) -> bool:
    """Whether something accepts a TCP connection at `address`."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
            return True
    except OSError:
        return False


def free(host: str, port: int, key: str) -> int:
    """`port` if nobody listens there, or any free one for 0; `CoordinatorError` otherwise."""
    bare = host.strip("[]")
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    try:
        with socket.socket(family) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((bare, port))
            return int(one.getsockname()[1])
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise CoordinatorError(
            f"{at(host, port)} cannot be listened on ({why}): end what uses it, or change {key} in coordinator.toml"
        ) from None


def _flower(command: str) -> str:
    """A command of the Flower that is installed beside this Python."""
    found = shutil.which(command, path=str(Path(sys.executable).parent)) or shutil.which(command)
    if found is None:
        raise CoordinatorError(f"{command} is not installed: pip install 'fedrisk[server]'")
    return found


def _log(folder: Folder) -> logging.Logger:
    """`log/coordinator.log`: starts, ends, restarts."""
    log = logging.getLogger(f"fedrisk.coordinator.{folder.path}")
    log.setLevel(logging.INFO)
    log.propagate = False
    handler = logging.handlers.RotatingFileHandler(
        folder.at("log/coordinator.log"), maxBytes=2**20, backupCount=5
    )
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.handlers = [handler]
    return log
