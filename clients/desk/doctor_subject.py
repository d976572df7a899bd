"""What `doctor` looks at: the files of a folder, each read once, and the answer of the SuperLink."""

import functools
import re
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal

import httpx

from clients.folder import NodeError, NodeFile, SuperLinkFile, read_node_file
from clients.policy import Policy, PolicyError, read_policy

State = Literal["ok", "warn", "fail"]
Verdict = tuple[State, str]
SECONDS = 10.0  # for an answer


@dataclass(frozen=True)
class Reached:
    """The SuperLink's answer. `ahead`: how far this machine's clock is ahead of its. `trouble`: why there is none."""

    trouble: str = ""
    ahead: timedelta | None = None
    expires: datetime | None = None
    protocol: str = ""


class Subject:
    """The node in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @functools.cached_property
    def facts(self) -> NodeFile | NodeError:
        """node.toml, or what is wrong with it."""
        try:
            return read_node_file(self.folder / "node.toml")
        except NodeError as error:
            return error

    @functools.cached_property
    def policy(self) -> Policy | PolicyError:
        """policy.toml, or what is wrong with it."""
        try:
            return read_policy(self.folder / "policy.toml")
        except PolicyError as error:
            return error

    @property
    def superlink(self) -> SuperLinkFile | None:
        """Where the federation meets, if node.toml can be read and says so."""
        return self.facts.superlink if isinstance(self.facts, NodeFile) else None

    @functools.cached_property
    def reached(self) -> Reached | None:
        """What one harmless request to the SuperLink brought; None where no SuperLink is known."""
        return None if self.superlink is None else reach(self.folder, self.superlink)


def reach(folder: Path, superlink: SuperLinkFile) -> Reached:
    """Ask the SuperLink for nothing, as the node itself asks: the same address, proxy, CA and host name."""
    try:
        context = tls_context(folder, superlink)
    except (OSError, ValueError):
        return Reached(
            f"superlink.certificate: {superlink.certificate} is no certificate in PEM: ask for ca.crt anew"
        )
    scheme = "http" if superlink.insecure else "https"
    try:
        with (
            httpx.Client(verify=context, timeout=SECONDS) as client,
            client.stream("GET", f"{scheme}://{superlink.address}/v1/fleet/") as response,
        ):
            return _answer(response)
    except httpx.ProxyError as error:
        return Reached(
            f"the proxy does not let this node through to {superlink.address} ({error}): ask who runs it"
        )
    except httpx.HTTPError as error:
        return Reached(why(error, superlink))


def tls_context(folder: Path, superlink: SuperLinkFile) -> ssl.SSLContext | bool:
    """How the node checks the SuperLink's certificate."""
    if superlink.insecure or superlink.certificate is None:
        return not superlink.insecure
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=(folder / superlink.certificate).read_text())
    return context


def _answer(response: httpx.Response) -> Reached:
    now = datetime.now(UTC)
    ahead, expires, protocol = None, None, ""
    tls: Any = response.extensions["network_stream"].get_extra_info("ssl_object")
    if tls is not None:
        expires = datetime.fromtimestamp(ssl.cert_time_to_seconds(tls.getpeercert()["notAfter"]), UTC)
        protocol = str(tls.version())
    try:
        ahead = now - parsedate_to_datetime(response.headers["date"])
    except (KeyError, ValueError, TypeError):
        ahead = None
    return Reached(ahead=ahead, expires=expires, protocol=protocol)


_CERTIFICATE = {
    9: "its certificate is not valid yet: compare the clocks, or ask the coordinator",
    10: "its certificate has expired: the coordinator must make a new one",
    62: "its certificate is for another host name: write the name that is in it into superlink.address",
    64: "its certificate is for another address: write the name that is in it into superlink.address",
}


def why(error: BaseException, superlink: SuperLinkFile) -> str:
    """What is wrong with a connection, from the error under httpx's own."""
    address = superlink.address
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    for each in chain:
        if isinstance(each, ssl.SSLCertVerificationError):
            other = (
                "its certificate is not from the CA in superlink.certificate: ask the coordinator for ca.crt"
            )
            return f"{address} is there, but {_CERTIFICATE.get(each.verify_code, other)}"
        if isinstance(each, ssl.SSLError | httpx.RemoteProtocolError | httpx.ReadError):
            wanted = "plain HTTP, which insecure asks for" if superlink.insecure else "TLS"
            return (
                f"{address} is there, but does not speak {wanted}: is it the port that the coordinator named?"
            )
    if isinstance(error, httpx.TimeoutException):
        return f"{address} does not answer within {SECONDS:.0f} s: does a firewall let this machine call out to it?"
    said = re.sub(r"\[Errno -?\d+\] ", "", str(error))
    if "Name or service" in said or "resolution" in said or "nodename" in said:
        return f"the name in {address} is not known here: is superlink.address right, and DNS reachable?"
    return f"{address} does not take connections ({said}): is the SuperLink running, and the port right?"
