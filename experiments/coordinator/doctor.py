"""`fedrisk coordinator doctor`: each line is well, or a sentence that says what to do."""

import os
import shutil
import ssl
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx

from experiments.coordinator import proxy, tls
from experiments.coordinator.control import FLOWER
from experiments.coordinator.folder import NAME, CoordinatorError, CoordinatorFile, Folder
from experiments.coordinator.service import (
    ENVIRONMENT,
    child_environment,
    free,
    healthy,
    own_address,
)
from federation import installed

PROTOBUF = {"content-type": "application/protobuf"}
LEAST_DISK = 2 * 2**30
SECRETS = (
    "tls/ca.key",
    "tls/loopback.key",
    "tls/server.key",
    "superexec.secret",
)
PROBES = (  # (method, path, what must come back through the proxy)
    ("POST", "/v1/control/start-run", 404),
    ("POST", "/v1/control/register-node", 404),
    ("POST", "/v1/runtime/acquire-task", 404),
    ("POST", "/v1/fleet/register-node", 404),
    ("POST", "/v1/fleet/get-fab", 404),
    ("GET", "/health", 404),
    ("GET", "/docs", 404),
    ("GET", "/", 404),
    ("POST", "/v1/fleet/pull-messages", 401),
)


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, whether it is well (None: cannot be told now), and what to know or do."""

    what: str
    well: bool | None
    sentence: str


def examine(folder: Folder) -> list[Finding]:
    """All findings; `CoordinatorError` only where the folder is none."""
    settings = folder.settings()
    running = folder.running() is not None and folder.connection.is_file()
    found = [_versions(), _permissions(folder), _disk(folder), _telemetry(folder)]
    if not settings.insecure and settings.proxy == "nginx":
        found += [_nginx(), *_certificate(folder, settings)]
    found.append(_running(folder, settings, running))
    if running and not settings.insecure:
        found += [_superlink(folder), *_proxy(folder, settings)]
    elif running:
        found.append(_superlink(folder, insecure=True))
        found.append(Finding("proxy", False, "insecure: there is none; for tests on this machine alone"))
    return found


def _versions() -> Finding:
    import flwr

    facts = f"fedrisk {installed.version()} (code {installed.code_sha256()[:16]}), Flower {flwr.__version__}"
    if flwr.__version__ != FLOWER:
        return Finding(
            "versions", False, f"{facts}: this release is for Flower {FLOWER}: reinstall with its constraints"
        )
    return Finding("versions", True, f"{facts}, Python {sys.version_info.major}.{sys.version_info.minor}")


def _permissions(folder: Folder) -> Finding:
    paths = [folder.path, *(folder.at(name) for name in SECRETS if folder.at(name).exists())]
    open_ones = [path for path in paths if stat.S_IMODE(path.stat().st_mode) & 0o077]
    foreign = [path for path in paths if path.stat().st_uid != os.geteuid()]
    if open_ones:
        return Finding("permissions", False, f"others can read {open_ones[0]}: chmod go= {open_ones[0]}")
    if foreign:
        return Finding("permissions", False, f"{foreign[0]} belongs to another user: run as its owner")
    return Finding("permissions", True, "the folder and its keys are this user's alone")


def _disk(folder: Folder) -> Finding:
    left = shutil.disk_usage(folder.path).free
    if left < LEAST_DISK:
        return Finding(
            "disk", False, f"{left / 2**30:.1f} GB are free, {LEAST_DISK / 2**30:.0f} are needed: make room"
        )
    return Finding("disk", True, f"{left / 2**30:.0f} GB free")


def _telemetry(folder: Folder) -> Finding:
    seen = child_environment(folder)
    on = [name for name, value in ENVIRONMENT.items() if seen.get(name) != value]
    if on:
        return Finding("telemetry", False, f"{on[0]} is not set for the children: reinstall fedrisk")
    return Finding("telemetry", True, "off, and so are update checks and installation at run time")


def _nginx() -> Finding:
    found = proxy.find_nginx()
    if found is None:
        return Finding("nginx", False, proxy.NO_NGINX)
    return Finding("nginx", True, found)


def _certificate(folder: Folder, settings: CoordinatorFile) -> Iterator[Finding]:
    certificate = folder.at(settings.certificate)
    ca = folder.at(settings.ca) if settings.ca else None
    try:
        for wrong in tls.problems(certificate, folder.at(settings.key), ca, settings.host):
            yield Finding("certificate", False, wrong)
        left = tls.days_left(tls.read(certificate)[0])
    except CoordinatorError as error:
        yield Finding("certificate", False, str(error))
        return
    ours = folder.at("tls/ca.key").exists() and certificate == folder.at("tls/server.crt")
    if left < tls.RENEW_DAYS and not ours:
        yield Finding(
            "certificate",
            False,
            f"{left:.0f} days are left: renew {certificate}; nginx takes it up by itself",
        )
        return
    renewal = ", renewed by itself" if ours else ""
    yield Finding("certificate", True, f"for {settings.host}, {left:.0f} days left{renewal}")


def _running(folder: Folder, settings: CoordinatorFile, running: bool) -> Finding:
    if running:
        return Finding("running", True, f"process {folder.running()}, agencies connect to {settings.address}")
    try:
        free(settings.listen, settings.port, "port")
    except CoordinatorError as error:
        return Finding("ports", False, str(error))
    return Finding(
        "running", None, f"no, and port {settings.port} is free: `fedrisk coordinator start {folder.path}`"
    )


def _superlink(folder: Folder, *, insecure: bool = False) -> Finding:
    import tomllib

    address = tomllib.loads(folder.connection.read_text())["superlink"][NAME]["address"]
    if healthy(folder, int(address.rpartition(":")[2]), insecure=insecure):
        return Finding("SuperLink", True, f"well, on {address}")
    return Finding(
        "SuperLink", False, f"nothing well answers on {address}: see {folder.at('log/superlink.log')}"
    )


def _proxy(folder: Folder, settings: CoordinatorFile) -> Iterator[Finding]:
    """Asks the proxy as a stranger would; what it forwards beside the fleet paths is named."""
    own = settings.proxy == "own"
    address = settings.address if own else own_address(settings)
    try:
        context = ssl.create_default_context(cafile=_anchor(folder, settings))
        context.check_hostname = own  # nginx is asked under the address that this machine has for it
        with httpx.Client(
            base_url=f"https://{address}", verify=context, timeout=10, trust_env=False
        ) as client:
            given = [(*probe, client.request(probe[0], probe[1], headers=PROTOBUF)) for probe in PROBES]
    except (httpx.HTTPError, OSError) as error:
        yield Finding(
            "proxy",
            False,
            f"{address} does not answer ({type(error).__name__}): see {'its log' if own else folder.at('log/nginx.log')}",
        )
        return
    wrong = [
        f"{m} {path} gives {r.status_code}, not {want}" for m, path, want, r in given if r.status_code != want
    ]
    if wrong:
        yield Finding("proxy", False, f"{'; '.join(wrong)}: forward exactly the paths in docs/coordinator.md")
    else:
        yield Finding(
            "proxy",
            True,
            f"{address} forwards {len(proxy.FORWARDED)} fleet paths to signed requests, nothing else",
        )
    yield _clock(given[0][3])


def _anchor(folder: Folder, settings: CoordinatorFile) -> str | None:
    return str(folder.at(settings.ca)) if settings.ca else None


def _clock(answer: httpx.Response) -> Finding:
    """The proxy's clock is this machine's; what can be seen here is a clock that nobody keeps."""
    try:
        off = parsedate_to_datetime(answer.headers["date"]).timestamp() - time.time()
    except (KeyError, ValueError):
        off = 0.0
    kept = _synchronised()
    if abs(off) > 3:
        return Finding("clock", False, f"the proxy's clock is {off:.0f} s off: nodes are refused beyond 5 s")
    if kept is False:
        return Finding(
            "clock", False, "this machine's clock is not synchronised: turn on NTP (timedatectl set-ntp true)"
        )
    return Finding(
        "clock", True if kept else None, "kept by NTP" if kept else "whether NTP keeps it cannot be told here"
    )


def _synchronised(read: Callable[[], str] | None = None) -> bool | None:
    """What systemd-timesyncd or chrony says; None where neither does."""
    if Path("/run/systemd/timesync/synchronized").exists():
        return True
    return False if Path("/run/systemd/timesync").is_dir() else None
