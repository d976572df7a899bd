"""A stranger has the coordinator's address, its CA certificate and a key of his own: what answers him?"""

import contextlib
import http.client
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from federation_host import Host, activate, coordinator, fleet, new_key
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufRequestContext
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from experiments.coordinator.proxy import FLEET, FORWARDED

pytestmark = [pytest.mark.deployed, pytest.mark.timeout(600)]
OPEN = {f"{FLEET}{name}" for name in FORWARDED}
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")


@pytest.fixture(scope="module")
def agency() -> ec.EllipticCurvePrivateKey:
    return new_key()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, agency: ec.EllipticCurvePrivateKey) -> Iterator[Host]:
    """A coordinator with one agency enrolled."""
    root = tmp_path_factory.mktemp("stranger")
    public = agency.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    (root / "police.pub").write_bytes(public)
    with coordinator(root / "coordinator") as running:
        running.enrol("police", root / "police.pub")
        yield running


@pytest.fixture(scope="module")
def stranger(host: Host) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"https://{host.address}", verify=context(host), trust_env=False) as client:
        yield client


def context(host: Host) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(host.ca))


def served() -> set[str]:
    """Every path that this Flower's SuperLink serves."""
    from fastapi.routing import iter_route_contexts
    from flwr.superlink.main import create_app

    app = create_app()
    found = {str(getattr(each, "path", "")) for each in app.routes}
    found |= {str(getattr(each.route, "path", "")) for each in iter_route_contexts(app.routes)}
    return {path for path in found if path.startswith("/")} | {path for _, path in PROTOBUF_REQUEST_TYPES}


def signature(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    """The headers of a request that is signed now."""
    request = httpx.Request("POST", "https://nowhere")
    call = ProtobufRequestContext(rpc_method="", message=ActivateNodeRequest(), request=request)
    NodeAuthHttpInterceptor(key, key.public_key()).intercept(call, lambda _: httpx.Response(200))
    wanted = ("flwr-public-key", "flwr-signature", "flwr-timestamp")
    return {name: value for name, value in request.headers.items() if name in wanted or "timestamp" in name}


def body(path: str, node_id: int, public: bytes) -> bytes:
    """The request of a fleet path in the name of `node_id`."""
    request = PROTOBUF_REQUEST_TYPES["POST", path]()
    if hasattr(request, "node"):
        request.node.node_id = node_id
    elif hasattr(request, "node_id"):
        request.node_id = node_id
    if hasattr(request, "public_key"):
        request.public_key = public
    return bytes(request.SerializeToString())


def test_flower_serves_what_this_test_is_about() -> None:
    paths = served()
    assert paths > OPEN
    for name in (
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/v1/fleet/register-node",
        "/docs",
        "/health",
    ):
        assert name in paths
    assert len(paths) > 60


def test_an_unsigned_request_gets_404_everywhere_and_401_where_agencies_go(stranger: httpx.Client) -> None:
    wanted, given = {}, {}
    for path in sorted(served() | {"/", "/openapi.json", "/v1", "/v1/fleet", "/v1/fleet/", "/v1/fleet/new"}):
        for method in METHODS:
            wanted[method, path] = 401 if path in OPEN and method == "POST" else 404
            given[method, path] = stranger.request(method, path).status_code
    assert given == wanted


def test_a_key_that_nobody_enrolled_gets_nothing(
    host: Host, stranger: httpx.Client, agency: ec.EllipticCurvePrivateKey
) -> None:
    """In his own name and in the agency's, on every path that has a request: no answer but a refusal."""
    mine = new_key()
    victim = int(host.agencies()["police"]["node_id"])
    for node_id in (0, 1, victim):
        for _, path in sorted(PROTOBUF_REQUEST_TYPES):
            content = body(path, node_id, public_key_to_bytes(mine.public_key()))
            headers = {"content-type": PROTOBUF_MEDIA_TYPE, **signature(mine)}
            status = stranger.post(path, content=content, headers=headers).status_code
            refused = {412} if path.endswith("/activate-node") else {401}  # 412: Flower does not know the key
            assert status in (refused if path in OPEN else {404}), (path, node_id, status)
    with fleet(host, mine) as client, pytest.raises(httpx.HTTPStatusError):
        activate(client, mine)
    assert set(host.agencies()) == {"police"}


def test_a_forged_or_old_signature_of_an_enrolled_key_is_refused(
    host: Host, stranger: httpx.Client, agency: ec.EllipticCurvePrivateKey
) -> None:
    """He knows the agency's public key and node id, which are no secrets."""
    node_id, mine = int(host.agencies()["police"]["node_id"]), new_key()
    theirs, forged = signature(agency), signature(mine)
    forged["flwr-public-key"] = theirs["flwr-public-key"]
    (when,) = [name for name in theirs if "timestamp" in name]
    moved = theirs | {when: "2020-01-01T00:00:00+00:00"}
    for headers in (forged, moved, {**theirs, "flwr-signature": "AAAA"}, {"flwr-signature": "x"}):
        for path in sorted(OPEN):
            content = body(path, node_id, public_key_to_bytes(agency.public_key()))
            headers = {"content-type": PROTOBUF_MEDIA_TYPE, **headers}
            assert stranger.post(path, content=content, headers=headers).status_code == 401, path


def test_an_enrolled_key_activates_and_pulls(host: Host, agency: ec.EllipticCurvePrivateKey) -> None:
    """The control: the same client and the same proxy let an agency through."""
    with fleet(host, agency) as client:
        node_id = activate(client, agency)
        assert str(node_id) == host.agencies()["police"]["node_id"]
        assert list(client.PullMessages(PullMessagesRequest(node=Node(node_id=node_id))).messages_list) == []
        with pytest.raises(httpx.HTTPStatusError, match="401"):  # an agency is no other agency
            client.PullMessages(PullMessagesRequest(node=Node(node_id=node_id + 1)))
        client.DeactivateNode(DeactivateNodeRequest(node_id=node_id))


@pytest.mark.parametrize(
    "path",
    [
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/..%2fcontrol/start-run",
        "/v1/fleet/activate-node/../../control/start-run",
        "/v1/control/start-run?/v1/fleet/activate-node",
        "/v1/control/start-run%3f/../../fleet/activate-node",
        "/v1/control/start-run#/v1/fleet/activate-node",
        "//v1//control//start-run",
        "/v1/fleet/activate-node/",
        "/v1/fleet/activate-node%00/x",
        "/V1/FLEET/ACTIVATE-NODE",
        "https://127.0.0.1/v1/control/start-run",
    ],
)
def test_no_spelling_of_a_path_reaches_another(host: Host, path: str) -> None:
    """What is forwarded is one of nine constants, never what the caller wrote."""
    before = (host.folder / "log" / "superlink.log").read_text().count("/v1/control/")
    name, _, port = host.address.partition(":")
    line = http.client.HTTPSConnection(name, int(port), context=context(host), timeout=10)
    line._validate_path = lambda url: None  # type: ignore[attr-defined]  # sent as it is written here
    headers = {"content-type": PROTOBUF_MEDIA_TYPE, **signature(new_key())}
    with contextlib.closing(line):
        line.request("POST", path, body=b"", headers=headers)
        assert line.getresponse().status in (400, 401, 404)
    assert (host.folder / "log" / "superlink.log").read_text().count("/v1/control/") == before


def test_a_request_in_a_request_is_not_forwarded(host: Host) -> None:
    hidden = b"POST /v1/control/list-runs HTTP/1.1\r\nHost: x\r\n\r\n"
    head = (
        b"POST /v1/fleet/get-run HTTP/1.1\r\nHost: x\r\nflwr-signature: x\r\nContent-Length: "
        + str(len(hidden) + 5).encode()
        + b"\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    )
    assert raw(host, head + hidden).startswith(b"HTTP/1.1 400")


def test_a_body_beyond_the_limit_is_refused_before_it_is_read(host: Host) -> None:
    head = b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\nflwr-signature: x\r\nContent-Length: 67108865\r\n\r\n"
    assert raw(host, head).startswith(b"HTTP/1.1 413")


def raw(host: Host, data: bytes) -> bytes:
    """The first bytes that come back over TLS."""
    name, _, port = host.address.partition(":")
    with (
        socket.create_connection((name, int(port)), timeout=10) as line,
        context(host).wrap_socket(line, server_hostname=name) as secure,
    ):
        secure.sendall(data)
        return secure.recv(1000)


def test_plaintext_gets_nothing(host: Host) -> None:
    name, _, port = host.address.partition(":")
    with socket.create_connection((name, int(port)), timeout=10) as line:
        line.sendall(b"GET /v1/fleet/activate-node HTTP/1.1\r\nHost: x\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert line.recv(1000) == b""


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_tls_is_refused(host: Host) -> None:
    name, _, port = host.address.partition(":")
    old = context(host)
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection((name, int(port)), timeout=10) as line,
        pytest.raises(ssl.SSLError, match=r"(?i)version|alert"),
    ):
        old.wrap_socket(line, server_hostname=name)


def test_nothing_listens_beyond_the_loopback_but_the_proxy(host: Host) -> None:
    port = int(host.superlink.rpartition(":")[2])
    listening = {
        line.split()[1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()[1:]
        if line.split()[3] == "0A" and int(line.split()[1].rpartition(":")[2], 16) == port
    }
    assert listening == {f"0100007F:{port:04X}"}


@pytest.mark.parametrize("secret", [None, b"x" * 32])
def test_no_task_is_taken_on_the_host_without_the_secret(host: Host, secret: bytes | None) -> None:
    with runtime(host, secret) as client, pytest.raises(httpx.HTTPStatusError, match=r"401|403"):
        client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))


def test_with_the_secret_a_task_may_be_asked_for(host: Host) -> None:
    with runtime(host, (host.folder / "superexec.secret").read_bytes()) as client:
        answer = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
    assert not answer.HasField("task")


def runtime(host: Host, secret: bytes | None) -> RuntimeHttpClient:
    """Flower's own client of the runtime API on the loopback."""
    interceptors: list[object] = [RuntimeVersionHttpInterceptor(component_name="SuperExec")]
    if secret is not None:
        methods = frozenset({"/flwr.proto.Runtime/AcquireTask"})
        interceptors.append(SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=methods))
    ca = (host.folder / "tls" / "loopback-ca.crt").read_bytes()
    return RuntimeHttpClient.from_server_address(host.superlink, False, ca, interceptors=interceptors)  # type: ignore[arg-type]


def test_the_proxys_log_has_no_query_and_no_signature(host: Host, stranger: httpx.Client) -> None:
    headers = {"flwr-signature": "canary-signature", "content-type": PROTOBUF_MEDIA_TYPE}
    assert stranger.post("/v1/fleet/get-run?canary-query=1", content=b"", headers=headers).status_code == 401
    host.wait(lambda: "/v1/fleet/get-run" in access_log(host), 10, "the proxy's log")
    everything = "".join(path.read_text() for path in (host.folder / "log").iterdir())
    assert "canary-" not in everything


def access_log(host: Host) -> str:
    return (host.folder / "log" / "proxy-access.log").read_text()


def test_the_proxy_does_not_say_what_it_is(stranger: httpx.Client) -> None:
    answer = stranger.get("/")
    assert answer.headers["server"] == "nginx"
    assert "/1." not in answer.text
