"""A coordinator's folder: what it is called, what is in it, who is enrolled. No process is started here.

coordinator.toml  what the organisation chose     agencies.toml  who is enrolled, and who was
tls/              keys and certificates           superexec.secret   who may take tasks on this machine
nginx.conf        the proxy, written at start     superlink.db       Flower's database: nodes, runs, messages
flower/           Flower's home: apps, and the connection that `fedrisk submit FOLDER` uses
log/  outputs/    what happened, what came out
"""

import contextlib
import fcntl
import ipaddress
import os
import re
import secrets
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from federation.plan import Agreed, sentences

NAME = "coordinator"  # the connection in flower/config.toml
SLUG = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")  # `Slug` of the plans, which name agencies alike
Port = Annotated[int, Field(ge=1, le=65535)]
FreePort = Annotated[int, Field(ge=0, le=65535)]


class CoordinatorError(ValueError):
    """What is wrong, which rule, what to do: one sentence a line, for the person at this machine."""


class CoordinatorFile(Agreed):
    """`coordinator.toml`."""

    host: str  # the name or address that agencies connect to
    port: Port = 9092
    listen: str = "0.0.0.0"  # noqa: S104 - agencies must reach it; nginx is what listens
    proxy: Literal["nginx", "own"] = (
        "nginx"  # own: another one forwards to superlink_port (docs/coordinator.md)
    )
    superlink_port: FreePort = 0  # on the loopback; 0: any free one at each start
    certificate: str = "tls/server.crt"
    key: str = "tls/server.key"
    ca: str = "tls/ca.crt"  # what agencies check the certificate with; "": what their system trusts
    insecure: bool = False  # neither TLS nor proxy nor node authentication: on the loopback alone
    max_body_mb: Annotated[int, Field(ge=1, le=2048)] = 64  # of one request: the largest part of a reply

    @model_validator(mode="after")
    def known_to_its_proxy(self) -> Self:
        if self.proxy == "own" and (self.superlink_port == 0 or self.insecure):
            raise ValueError(
                'proxy = "own" needs a superlink_port to forward to, and is not for insecure = true'
            )
        return self

    @property
    def address(self) -> str:
        """`host:port`, as agencies write it."""
        return at(self.host, self.port)


class Enrolled(Agreed):
    """One agency's key, as `agencies.toml` remembers it; `revoked` says since when it is refused."""

    name: str
    node_id: int
    fingerprint: str
    enrolled: str
    revoked: str | None = None


class Agencies(Agreed):
    """`agencies.toml`."""

    agency: tuple[Enrolled, ...] = ()


@dataclass(frozen=True)
class Folder:
    """The folder at `path`, which `init` made."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", self.path.absolute())

    def at(self, name: str) -> Path:
        """A file by its name within the folder; an absolute name stays what it is."""
        return self.path / name

    @property
    def flower_home(self) -> Path:
        return self.path / "flower"

    @property
    def connection(self) -> Path:
        """Flower's configuration with the running SuperLink in it; absent while nothing runs."""
        return self.flower_home / "config.toml"

    def settings(self) -> CoordinatorFile:
        """`coordinator.toml`, checked."""
        found: CoordinatorFile = self._read("coordinator.toml", CoordinatorFile)
        if found.insecure and not (is_loopback(found.host) and is_loopback(found.listen)):
            raise CoordinatorError(NOT_INSECURE)
        return found

    def agencies(self) -> tuple[Enrolled, ...]:
        """All that were ever enrolled, oldest first."""
        if not self.at("agencies.toml").exists():
            return ()
        found: Agencies = self._read("agencies.toml", Agencies)
        return found.agency

    def keep_agencies(self, agencies: Sequence[Enrolled]) -> None:
        """Write `agencies.toml`, whole."""
        import tomli_w

        entries = [agency.model_dump(exclude_none=True) for agency in agencies]
        write_whole(self.at("agencies.toml"), tomli_w.dumps({"agency": entries}).encode(), mode=0o600)

    @contextlib.contextmanager
    def locked(self, name: str, sentence: str) -> Iterator[None]:
        """Hold the lock `name` of this folder; `CoordinatorError(sentence)` where another process has it."""
        handle = os.open(self.at(name), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                holder = os.pread(handle, 20, 0).decode(errors="replace").strip() or "unknown"
                raise CoordinatorError(sentence.format(process=holder)) from None
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(handle)

    def running(self) -> int | None:
        """The process id of `start`, while it holds the folder."""
        try:
            with self.locked("start.lock", "{process}"):
                return None
        except CoordinatorError as holder:
            return int(str(holder)) if str(holder).isdigit() else None
        except OSError:
            return None

    def _read(self, name: str, kind: type[Any]) -> Any:
        path = self.at(name)
        try:
            return kind.model_validate(tomllib.loads(path.read_text()))
        except FileNotFoundError:
            raise CoordinatorError(
                f"{self.path} is no coordinator's folder ({name} is missing): "
                f"`fedrisk coordinator init {self.path} --host NAME` makes one"
            ) from None
        except ValidationError as error:
            raise CoordinatorError("\n".join(f"{path}: {line}" for line in sentences(error))) from None
        except (OSError, ValueError) as error:
            raise CoordinatorError(f"{path} cannot be read: {error}") from None


NOT_INSECURE = (
    "insecure = true sends everything in the clear, so host and listen must both be addresses of the loopback "
    "(127.0.0.1, localhost or ::1): set them, or leave --insecure out"
)


def is_loopback(host: str) -> bool:
    """Whether `host` is an address (or the name) of this machine's loopback."""
    bare = host.strip("[]")
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return bare == "localhost"


def at(host: str, port: int) -> str:
    """`host:port`, with an IPv6 address in brackets."""
    bare = host.strip("[]")
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def checked_name(name: str) -> str:
    """An agency's name, or a `CoordinatorError`."""
    if not SLUG.fullmatch(name):
        raise CoordinatorError(
            f"agency {name!r}: a name must be small letters, digits, - and _, at most 64: "
            "take the agency's name in agencies.yaml"
        )
    return name


def write_whole(path: Path, data: bytes, *, mode: int) -> None:
    """Put `data` into `path` with `mode`; whoever reads it meets the old file or the new one, never half of one."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.chmod(mode)
    beside.replace(path)
