"""What docs/ports-and-proxies.md says of the line: outbound TLS alone, through a proxy where the environment names one."""

import base64
import contextlib
import http.server
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import ActivateNodeResponse, DeactivateNodeResponse, PullMessagesResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from test_doctor import Ca

from clients.flower.link import Link, LinkError

KEY = ec.generate_private_key(ec.SECP384R1())
ANSWERS = {
    "/v1/fleet/activate-node": ActivateNodeResponse(node_id=7),
    "/v1/fleet/send-node-heartbeat": SendNodeHeartbeatResponse(success=True),
    "/v1/fleet/pull-messages": PullMessagesResponse(),
    "/v1/fleet/deactivate-node": DeactivateNodeResponse(),
}


@dataclass
class SuperLink:
    """A server on the loopback that answers as a SuperLink without orders does. `asked`: paths, in order."""

    port: int
    asked: list[str] = field(default_factory=list)


@dataclass
class Proxy:
    """A web proxy on the loopback. `asked`: (target, headers) of each CONNECT; `out`, `back`: bytes that it carried."""

    port: int
    password: str = ""
    names: dict[str, str] = field(default_factory=dict)
    opens: ssl.SSLContext | None = None
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    out: bytearray = field(default_factory=bytearray)
    back: bytearray = field(default_factory=bytearray)


@contextlib.contextmanager
def superlink(tls: ssl.SSLContext, *, elsewhere: str = "") -> Iterator[SuperLink]:
    """`elsewhere`: where every request is redirected."""
    found = SuperLink(0)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            found.asked.append(self.path)
            self.rfile.read(int(self.headers["content-length"]))
            content = b"" if elsewhere else ANSWERS[self.path].SerializeToString()
            self.send_response_only(307 if elsewhere else 200)
            if elsewhere:
                self.send_header("location", f"{elsewhere}{self.path}")
            self.send_header("content-type", PROTOBUF_MEDIA_TYPE)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with _Server(("127.0.0.1", 0), Handler) as server:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        found.port = int(server.server_address[1])
        with _serving(server):
            yield found


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that does not like the certificate hangs up."""


@contextlib.contextmanager
def _serving(server: http.server.HTTPServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def proxy(**options: object) -> Iterator[Proxy]:
    """`password`: asked for; `names`: what it knows of the world; `opens`: it ends TLS itself, as an inspection does."""
    found = Proxy(0, **options)  # type: ignore[arg-type]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            found.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            if found.password and found.password != self._given():
                self.send_error(407)
                return
            host, _, port = self.path.rpartition(":")
            self.send_response_only(200)
            self.end_headers()
            if found.opens is not None:
                with contextlib.suppress(OSError):
                    found.opens.wrap_socket(self.connection, server_side=True)
                return
            with socket.create_connection((found.names.get(host, host), int(port)), timeout=10) as beyond:
                back = threading.Thread(target=carry, args=(beyond, self.connection, found.back), daemon=True)
                back.start()
                carry(self.connection, beyond, found.out)
                back.join(timeout=10)

        def _given(self) -> str:
            return base64.b64decode(self.headers.get("proxy-authorization", "").partition(" ")[2]).decode()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with _Server(("127.0.0.1", 0), Handler) as server:
        found.port = int(server.server_address[1])
        with _serving(server):
            yield found


def carry(source: socket.socket, target: socket.socket, seen: bytearray) -> None:
    with contextlib.suppress(OSError):
        while part := source.recv(65536):
            seen.extend(part)
            target.sendall(part)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def ca(tmp_path: Path) -> Ca:
    found = Ca()
    (tmp_path / "ca.crt").write_bytes(found.pem)
    return found


@contextlib.contextmanager
def line(tmp_path: Path, port: int, host: str = "localhost") -> Iterator[Link]:
    link = Link(f"{host}:{port}", KEY, certificate=tmp_path / "ca.crt", insecure=False)
    try:
        yield link
    finally:
        link.close()


def works(link: Link) -> None:
    """The node is let in, and looks for orders."""
    with link.connected():
        assert link.node_id == 7
        assert link.pull() is None


# --- a proxy --------------------------------------------------------------------------------------------


def test_the_node_goes_through_the_proxy_that_the_environment_names(
    tmp_path: Path, ca: Ca, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        superlink(ca.server(tmp_path)) as there,
        proxy() as between,
        line_of(tmp_path, there, between, monkeypatch) as link,
    ):
        works(link)
        assert "/v1/fleet/pull-messages" in there.asked
        assert {target for target, _ in between.asked} == {f"localhost:{there.port}"}
        for carried in (between.out, between.back):
            assert carried[:1] == b"\x16", "it begins with a TLS handshake"
            for word in (b"v1/fleet", b"flwr-", b"protobuf"):
                assert word not in carried, "the proxy reads nothing of it"
        for _, headers in between.asked:
            assert not [name for name in headers if name.startswith("flwr-")]


@contextlib.contextmanager
def line_of(
    tmp_path: Path, there: SuperLink, between: Proxy, monkeypatch: pytest.MonkeyPatch, login: str = ""
) -> Iterator[Link]:
    monkeypatch.setenv("HTTPS_PROXY", f"http://{login}127.0.0.1:{between.port}")
    with line(tmp_path, there.port) as link:
        yield link


@pytest.mark.parametrize("listed", ["localhost", "*", "elsewhere.example.org,localhost"])
def test_no_proxy_is_for_who_is_listed(
    tmp_path: Path, ca: Ca, monkeypatch: pytest.MonkeyPatch, listed: str
) -> None:
    monkeypatch.setenv("NO_PROXY", listed)
    with (
        superlink(ca.server(tmp_path)) as there,
        proxy() as between,
        line_of(tmp_path, there, between, monkeypatch) as link,
    ):
        works(link)
        assert between.asked == []


def test_http_proxy_alone_is_not_for_tls(tmp_path: Path, ca: Ca, monkeypatch: pytest.MonkeyPatch) -> None:
    with superlink(ca.server(tmp_path)) as there, proxy() as between:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{between.port}")
        with line(tmp_path, there.port) as link:
            works(link)
        assert between.asked == []


def test_the_proxy_looks_up_the_name_and_the_node_does_not(
    tmp_path: Path, ca: Ca, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "superlink.invalid"  # a name that no DNS knows
    with superlink(ca.server(tmp_path, host=name)) as there, proxy(names={name: "127.0.0.1"}) as between:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{between.port}")
        with line(tmp_path, there.port, host=name) as link:
            works(link)
        monkeypatch.delenv("HTTPS_PROXY")
        with (
            line(tmp_path, there.port, host=name) as link,
            pytest.raises(LinkError, match="cannot be reached"),
        ):
            works(link)


def test_a_proxy_with_a_password_gets_it_and_one_without_is_told(
    tmp_path: Path, ca: Ca, monkeypatch: pytest.MonkeyPatch
) -> None:
    with superlink(ca.server(tmp_path)) as there, proxy(password="node:hunter2") as between:
        with line_of(tmp_path, there, between, monkeypatch, login="node:hunter2@") as link:
            works(link)
        with (
            line_of(tmp_path, there, between, monkeypatch) as link,
            pytest.raises(LinkError, match=r"cannot be reached .407 Proxy Authentication Required.") as told,
        ):
            works(link)
        assert "hunter2" not in str(told.value)


def test_a_proxy_that_opens_tls_is_refused_before_anything_is_sent(
    tmp_path: Path, ca: Ca, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shows a certificate of its own CA, which this machine may trust otherwise; node.toml names another."""
    inspection = Ca("inspection").server(tmp_path)
    with superlink(ca.server(tmp_path)) as there, proxy(opens=inspection) as between:
        with (
            line_of(tmp_path, there, between, monkeypatch) as link,
            pytest.raises(LinkError, match="shows a certificate that does not check"),
        ):
            works(link)
        assert there.asked == []


# --- TLS ------------------------------------------------------------------------------------------------


def test_tls_1_2_is_taken_and_older_is_not(tmp_path: Path, ca: Ca) -> None:
    new = ca.server(tmp_path)
    new.maximum_version = ssl.TLSVersion.TLSv1_2
    with superlink(new) as there, line(tmp_path, there.port) as link:
        works(link)
    old = ca.server(tmp_path)
    old.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with superlink(old) as there, line(tmp_path, there.port) as link:
        with pytest.raises(LinkError, match="cannot be reached"):
            works(link)
        assert there.asked == []


def test_a_redirect_sends_the_node_nowhere_else(tmp_path: Path, ca: Ca) -> None:
    with (
        superlink(ca.server(tmp_path)) as other,
        superlink(ca.server(tmp_path), elsewhere=f"https://localhost:{other.port}") as there,
        line(tmp_path, there.port) as link,
    ):
        with pytest.raises(LinkError, match="answers with HTTP status 307"):
            works(link)
        assert other.asked == []


# --- how much -------------------------------------------------------------------------------------------


def test_a_look_for_an_order_is_as_small_as_the_page_says(
    tmp_path: Path, ca: Ca, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less than 1 kB out and 0.5 kB in, on a connection that is kept."""
    looks = 20
    with (
        superlink(ca.server(tmp_path)) as there,
        proxy() as between,
        line_of(tmp_path, there, between, monkeypatch) as link,
        link.connected(),
    ):
        link.pull()
        time.sleep(0.2)
        out, back, lines = len(between.out), len(between.back), len(between.asked)
        for _ in range(looks):
            link.pull()
        time.sleep(0.2)
        assert 500 < (len(between.out) - out) / looks < 1000
        assert 50 < (len(between.back) - back) / looks < 500
        assert len(between.asked) == lines
