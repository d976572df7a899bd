"""`doctor`: for every check, what it says of a node that is fit, and of one that is not."""

import base64
import http.server
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import yaml
from conftest import CONTRACT, people, permits, write_table
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hosted import hosted
from test_policy import ask, orders

from clients.approvals import Approvals
from clients.desk import doctor_folder, doctor_subject
from clients.desk.doctor import CHECKS, LINE, Finding, examine
from clients.journal import Journal
from clients.journal_lines import Ordered, Stopped
from clients.keys import make_node_key, secret
from clients.node import open_node
from experiments import release
from federation.protocol import TrainPlan

ROOT = Path(__file__).resolve().parent.parent
NODE: dict[str, Any] = {
    "name": "north",
    "kind": "police",
    "table": "north.csv",
    "contract": "contract.yaml",
    "public_size": 300,
}


@pytest.fixture
def plan(make_study: Callable[..., Any]) -> TrainPlan:
    """A deployed run's plan that `permits` permits."""
    found: TrainPlan = make_study("rounds=2", "evaluation.checkpoints=1").experiment.plan(
        "run-1", simulation=False
    )
    return found


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A node that is fit to work, but for the line to a SuperLink."""
    folder = tmp_path / "node"
    folder.mkdir(mode=0o700)
    (folder / "node.toml").write_text(tomli_w.dumps(NODE))
    (folder / "policy.toml").write_text(tomli_w.dumps(permits(budget={"life": 20.0, "delta": 1e-5})))
    (folder / "contract.yaml").write_text(yaml.safe_dump(CONTRACT, sort_keys=False))
    write_table(folder / "north.csv", people(0), ("visits",))
    make_node_key(folder)
    secret(folder / "split.key")
    secret(folder / "signing.key")
    return folder


def says(folder: Path, check: str) -> Finding:
    """What one check finds; the whole table is asked, so that one check that stumbles shows everywhere."""
    (found,) = [finding for finding in examine(folder) if finding.check == check]
    return found


def with_(folder: Path, **values: Any) -> Path:
    (folder / "node.toml").write_text(tomli_w.dumps(NODE | values))
    return folder


# --- this machine -------------------------------------------------------------------------------------


def test_a_node_that_is_fit_has_nothing_to_mend_and_doctor_changes_nothing(node: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.stat().st_mode) for path in node.rglob("*")}
    found = examine(node, offline=True)
    assert [each for each in found if each.state == "fail"] == []
    assert {each.check for each in found if each.state == "ok"} >= {"versions", "node.toml", "permissions", "keys", "contract", "policy", "data", "ledger", "journal", "disk", "telemetry"}  # fmt: skip
    assert {path: (path.stat().st_mtime_ns, path.stat().st_mode) for path in node.rglob("*")} == before


def append(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text((folder / name).read_text() + text)


def replaced(name: str, old: str, new: str) -> Callable[[Path], object]:
    def act(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return act


def journal_without_its_first_line(folder: Path) -> None:
    for _ in range(2):
        Journal(folder).write(Stopped(how="asked"))
    path = folder / "log" / "journal.jsonl"
    path.write_text(path.read_text().partition("\n")[2])


def approvals_with_another_reason(folder: Path) -> None:
    Approvals(folder).approve("a" * 64, "A. Person", "agreed", datetime.now(UTC))
    replaced("approvals.jsonl", "agreed", "forged")(folder)


BROKEN: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "node.toml with a typo": ("node.toml", append("node.toml", "colour = 1\n"), "colour is not a known setting"),
    "no node.toml": ("node.toml", lambda f: (f / "node.toml").unlink(), "is this a node's folder?"),
    "an open folder": ("permissions", lambda f: f.chmod(0o755), "chmod 700 FOLDER"),
    "an open key": ("permissions", lambda f: (f / "node.key").chmod(0o640), "chmod 600 FOLDER/node.key"),
    "no node key": ("keys", lambda f: (f / "node.key").unlink(), "node.key missing: `fedrisk-node init FOLDER`"),
    "half a split key": ("keys", lambda f: (f / "split.key").write_bytes(b"x"), "split.key must hold 32 bytes"),
    "a key of another kind": ("keys", lambda f: (f / "node.key").write_text("x"), "no private key in PEM"),
    "no contract": ("contract", lambda f: (f / "contract.yaml").unlink(), "is missing or cannot be read"),
    "another kind": ("contract", replaced("node.toml", "police", "school"), "the contract's kinds are police, health, charity"),
    "policy with a typo": ("policy", append("policy.toml", "[limits]\na = 1\n"), "limits is not a known setting"),
    "a column that is missing": ("data", replaced("north.csv", "known", "unknown"), "known"),
    "no table": ("data", lambda f: (f / "north.csv").unlink(), "north.csv is missing"),
    "no ledger at all": ("ledger", lambda f: (f / "ledger.db").write_bytes(b"x" * 5000), "is not a fedrisk ledger"),
    "a journal with a line removed": ("journal", journal_without_its_first_line, "fails its hash chain at line 1"),
    "a changed approval": ("approvals", approvals_with_another_reason, "fails its hash chain at line 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BROKEN))
def test_what_must_be_mended_fails_its_check_in_a_sentence_and_the_others_go_on(
    case: str, node: Path
) -> None:
    check, spoil, sentence = BROKEN[case]
    spoil(node)
    found = says(node, check)
    assert found.state == "fail"
    assert sentence.replace("FOLDER", str(node)) in found.sentence
    assert "\n" not in found.sentence
    assert "stumbled" not in str(examine(node, offline=True))


def test_people_are_told_as_a_band(node: Path) -> None:
    found = says(node, "data")
    assert found.state == "ok"
    assert "people: 100-499" in found.sentence
    assert "300" not in found.sentence


def test_a_policy_that_permits_nothing_yet_is_something_to_look_at(node: Path) -> None:
    (node / "policy.toml").write_text("")
    found = says(node, "policy")
    assert (found.state, found.sentence) == (
        "warn",
        "it can be read and permits nothing yet: purposes, models, budget not written",
    )


def test_another_version_of_a_package_is_named(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor_folder.version
    monkeypatch.setattr(doctor_folder, "version", lambda name: "1.40.0" if name == "flwr" else real(name))
    found = says(node, "versions")
    assert found.state == "fail"
    assert "flwr is 1.40.0, not ==1.41.0" in found.sentence


@pytest.mark.parametrize(("free", "state"), [(50, "fail"), (500, "warn"), (5000, "ok")])
def test_a_disk_that_fills_up_is_told(
    node: Path, monkeypatch: pytest.MonkeyPatch, free: int, state: str
) -> None:
    usage = shutil.disk_usage(node)._replace(free=free * 10**6)
    monkeypatch.setattr(doctor_folder.shutil, "disk_usage", lambda _: usage)
    assert says(node, "disk").state == state


def test_telemetry_that_is_on_is_told(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    found = says(node, "telemetry")
    assert (found.state, found.sentence[:24]) == ("warn", "FLWR_TELEMETRY_ENABLED=1")


LISTENER = """
import fcntl, os, socket, sys
handle = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(handle, fcntl.LOCK_EX)
os.pwrite(handle, str(os.getpid()).encode(), 0)
if sys.argv[2] == "listen":
    door = socket.create_server(("127.0.0.1", 0))
    print(door.getsockname()[1], flush=True)
else:
    print(0, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("what", ["listen", "not"])
def test_a_node_at_work_that_listens_on_a_port_is_found(node: Path, what: str) -> None:
    command = [sys.executable, "-c", LISTENER, str(node / "node.lock"), what]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        found = says(node, "ports")
        process.communicate("")
    assert found.state == ("fail" if what == "listen" else "ok")
    assert (f"listens on port {port}:" in found.sentence) == (what == "listen")
    assert [each for each in examine(node) if each.check == "ports"] == [], "nobody is at work now"


def test_a_ledger_and_a_journal_in_use_are_checked_against_each_other(node: Path, plan: TrainPlan) -> None:
    for order in orders(plan):
        ask(node, order)
    seq, head = open_node(node).ledger.head
    assert f"its head is {seq} {head[:16]}" in says(node, "ledger").sentence
    assert says(node, "journal").sentence.endswith("the hash chain holds, and it agrees with the ledger")
    for name in ("journal.jsonl", "journal.head"):
        (node / "log" / name).unlink()
    Journal(node, now=lambda: datetime(2020, 1, 1, tzinfo=UTC)).write(Ordered(order="ready"))
    assert "which the journal does not know" in says(node, "journal").sentence


def test_a_check_that_stumbles_says_its_kind_and_nothing_of_its_text(
    node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumbles(_: object) -> None:
        raise ValueError("could not convert 'JOHN SMITH'")

    monkeypatch.setattr(doctor_folder.shutil, "disk_usage", stumbles)
    found = says(node, "disk")
    assert (found.state, found.sentence) == (
        "fail",
        "this check stumbled over ValueError: tell the maintainers of fedrisk",
    )


def test_every_check_is_in_the_table_once() -> None:
    names = [name for name, _ in CHECKS + LINE]
    assert len(names) == len(set(names))


# --- the line to the SuperLink ------------------------------------------------------------------------


class Ca:
    """A certificate authority for a test."""

    def __init__(self, name: str = "test CA") -> None:
        self.key = ec.generate_private_key(ec.SECP384R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._sign(self.name, self.key.public_key(), timedelta(days=3650), ca=True)

    def _sign(
        self, subject: x509.Name, public: Any, lasts: timedelta, *, ca: bool, host: str = ""
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        made = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(public)
        made = made.serial_number(x509.random_serial_number())
        made = made.not_valid_before(now - timedelta(days=400)).not_valid_after(now + lasts)
        made = made.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        if host:
            made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        return made.sign(self.key, hashes.SHA384())

    def server(
        self, folder: Path, *, host: str = "localhost", lasts: timedelta = timedelta(days=90)
    ) -> ssl.SSLContext:
        """A server's TLS with a certificate for `host`."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        certificate = self._sign(subject, key.public_key(), lasts, ca=False, host=host)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path = folder / f"server-{certificate.serial_number}.pem"
        path.write_bytes(pem + certificate.public_bytes(Encoding.PEM))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)


@contextmanager
def serving(
    tls: ssl.SSLContext | None, *, ahead: timedelta = timedelta(), dated: bool = True
) -> Iterator[int]:
    """A web server on the loopback that answers 404, with a Date that is `ahead` of this machine's clock."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(404)
            if dated:
                self.send_header("Date", format_datetime(datetime.now(UTC) + ahead, usegmt=True))
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Nothing."""

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that does not like the certificate hangs up."""

    with Server(("127.0.0.1", 0), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def linked(node: Path, port: int, ca: Ca | None, host: str = "localhost") -> Path:
    superlink: dict[str, Any] = {"address": f"{host}:{port}"}
    if ca is not None:
        (node / "ca.crt").write_bytes(ca.pem)
        superlink["certificate"] = "ca.crt"
    return with_(node, superlink=superlink)


def test_a_superlink_with_a_good_certificate_and_clock(node: Path) -> None:
    ca = Ca()
    with serving(ca.server(node.parent)) as port:
        found = {each.check: each for each in examine(linked(node, port, ca))}
    assert found["proxy"].sentence == "none: the node calls out directly"
    assert (found["connection"].state, found["clock"].state, found["certificate"].state) == ("ok", "ok", "ok")
    assert found["connection"].sentence == f"localhost:{port} answers over TLSv1.3, its certificate checks"
    assert "the SuperLink's certificate is the first to end: in 89 days" in found["certificate"].sentence
    assert found["enrolment"].state == "fail", "this server is no SuperLink"
    assert "does not answer as a SuperLink of Flower" in found["enrolment"].sentence


def test_a_certificate_that_ends_soon_is_told(node: Path) -> None:
    ca = Ca()
    with serving(ca.server(node.parent, lasts=timedelta(days=10, hours=1))) as port:
        found = says(linked(node, port, ca), "certificate")
    assert found.state == "warn"
    assert "ends in 10 days" in found.sentence


BAD: dict[str, tuple[dict[str, Any], bool, str]] = {
    "wrong CA": ({}, True, "its certificate is not from the CA in superlink.certificate"),
    "expired": ({"lasts": timedelta(days=-1)}, False, "its certificate has expired"),
    "wrong host": ({"host": "elsewhere.example.org"}, False, "its certificate is for another host name"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_a_certificate_that_does_not_check_is_told_with_its_reason(case: str, node: Path) -> None:
    options, other_ca, sentence = BAD[case]
    ca = Ca()
    with serving(ca.server(node.parent, **options)) as port:
        found = {each.check: each for each in examine(linked(node, port, Ca("another") if other_ca else ca))}
    assert found["connection"].state == "fail"
    assert found["connection"].sentence.startswith(f"localhost:{port} is there, but {sentence}")
    assert {found[name].state for name in ("certificate", "clock", "enrolment")} == {"warn"}


def test_a_port_without_tls_is_told(node: Path) -> None:
    with serving(None) as port:
        found = says(linked(node, port, Ca()), "connection")
    assert found.state == "fail"
    assert "is there, but does not speak TLS" in found.sentence


def test_a_closed_port_is_told(node: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    found = says(linked(node, port, Ca()), "connection")
    assert found.state == "fail"
    assert "does not take connections" in found.sentence


def test_a_server_that_says_nothing_is_told(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_subject, "SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = says(linked(node, silent.getsockname()[1], Ca()), "connection")
    assert found.state == "fail"
    assert "does not answer within" in found.sentence


def test_an_unknown_name_is_told(node: Path) -> None:
    found = says(linked(node, 9092, Ca(), host="superlink.invalid"), "connection")
    assert found.state == "fail"
    assert "the name in superlink.invalid:9092 is not known here" in found.sentence


def test_no_superlink_and_no_certificate_file_are_told(node: Path) -> None:
    assert says(node, "connection").state == "fail"
    found = says(with_(node, superlink={"address": "localhost:1", "certificate": "ca.crt"}), "connection")
    assert "superlink.certificate: ca.crt is no certificate in PEM" in found.sentence


CLOCKS = [(timedelta(minutes=-10), "fail", "ahead of"), (timedelta(minutes=10), "fail", "behind")]
CLOCKS += [(timedelta(minutes=2), "warn", "behind"), (timedelta(seconds=-9), "fail", "ahead of")]


@pytest.mark.parametrize(("ahead", "state", "which"), CLOCKS)
def test_a_clock_that_is_wrong_is_told(node: Path, ahead: timedelta, state: str, which: str) -> None:
    ca = Ca()
    with serving(ca.server(node.parent), ahead=ahead) as port:
        found = says(linked(node, port, ca), "clock")
    assert found.state == state
    assert which in found.sentence


def test_an_answer_without_a_date_is_told(node: Path) -> None:
    ca = Ca()
    with serving(ca.server(node.parent), dated=False) as port:
        assert says(linked(node, port, ca), "clock").state == "warn"


def test_a_proxy_is_named_without_its_password(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://somebody:hunter2@127.0.0.1:1")
    folder = linked(node, 9092, Ca(), host="localhost")
    found = {each.check: each for each in examine(folder)}
    assert found["proxy"].state == "warn"
    assert (
        found["proxy"].sentence
        == "127.0.0.1:1, from HTTPS_PROXY: it must pass localhost:9092 through unopened"
    )
    assert found["connection"].state == "fail"
    assert "hunter2" not in str(found)
    monkeypatch.setenv("NO_PROXY", "localhost")
    assert "NO_PROXY lists localhost" in says(folder, "proxy").sentence


@pytest.mark.deployed
def test_a_real_superlink_lets_an_enrolled_key_in_and_no_other(tmp_path: Path) -> None:
    """Before the node starts, while it works (and then its line is left alone), and with a key of nobody."""
    with hosted(tmp_path, ["north"], start=False) as federation:
        agency = federation.agencies["north"]
        agency.folder.chmod(0o700)
        found = {each.check: each for each in examine(agency.folder)}
        line = ("connection", "certificate", "clock", "enrolment")
        assert {name: found[name].state for name in line} == dict.fromkeys(line, "ok"), found
        assert found["enrolment"].sentence == "the SuperLink knows this node's key and let it in"
        agency.start()
        federation.until_online(["north"])
        found = {each.check: each for each in examine(agency.folder)}
        assert found["enrolment"].sentence.startswith("a node is at work here")
        assert found["ports"].sentence == "the node at work listens on no port: it only calls out"
        stranger = tmp_path / "stranger"
        shutil.copytree(agency.folder, stranger, ignore=shutil.ignore_patterns("node.*", "log", "*.db*"))
        shutil.copy(agency.folder / "node.toml", stranger)
        make_node_key(stranger)
        found = {each.check: each for each in examine(stranger)}
        assert (found["connection"].state, found["enrolment"].state) == ("ok", "fail")
        assert "is not enrolled there" in found["enrolment"].sentence


# --- the release --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A release of this tree, without a wheelhouse: its manifest, and the publisher's public key."""
    place = tmp_path_factory.mktemp("release")
    manifest = release.build(place / "out", place / "release.key", wheelhouse=False)
    return manifest, release.public_text(release.signing_key(place / "release.key"))


def released(node: Path, made: tuple[Path, str]) -> Path:
    """The node with the release's manifest in its folder."""
    manifest, key = made
    for path in (manifest, manifest.with_name(f"{manifest.name}.sig")):
        shutil.copy(path, node / path.name)
    return with_(node, release={"manifest": manifest.name, "key": key})


def test_a_release_is_a_wheel_a_bill_of_materials_and_a_signed_manifest(made: tuple[Path, str]) -> None:
    import json

    manifest = json.loads(made[0].read_text())
    out = made[0].parent
    assert release.sha256(out / manifest["wheel"]) == manifest["wheel_sha256"]
    assert release.sha256(out / manifest["sbom"]) == manifest["sbom_sha256"]
    bill = json.loads((out / manifest["sbom"]).read_text())
    names = {part["name"].lower() for part in bill["components"]}
    assert names >= {"torch", "flwr", "opacus", "typer", "pyarrow"}
    assert not names & {"mlflow", "hydra-core", "ray", "pytest"}, "a node needs none of them"
    assert (out.parent / "release.key").stat().st_mode & 0o777 == 0o600


def test_the_installed_code_is_compared_with_the_signed_release(node: Path, made: tuple[Path, str]) -> None:
    assert says(node, "release").state == "warn", "none was agreed on"
    found = says(released(node, made), "release")
    assert found.state == "ok"
    assert "signed; the installed code is that" in found.sentence


def test_one_bit_of_the_manifest_or_another_key_is_found(node: Path, made: tuple[Path, str]) -> None:
    folder = released(node, made)
    path = folder / made[0].name
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    assert "is not what the key in node.toml signed" in says(folder, "release").sentence
    stranger = base64.b64encode(os.urandom(32)).decode()
    found = says(with_(released(node, made), release={"manifest": made[0].name, "key": stranger}), "release")
    assert found.state == "fail"
    (folder / f"{made[0].name}.sig").unlink()
    assert "cannot be read" in says(folder, "release").sentence


ASK = "import sys; from pathlib import Path; from clients.desk import doctor_folder; from clients.desk.doctor_subject import Subject; print(*doctor_folder.release(Subject(Path(sys.argv[1]))))"


@pytest.mark.parametrize("spoil", ["nothing", "one byte", "one file more"])
def test_one_byte_of_the_installed_code_is_found(
    node: Path, made: tuple[Path, str], tmp_path: Path, spoil: str
) -> None:
    """The wheel is unpacked elsewhere and asked about itself, as a node that was installed from it."""
    folder, place = released(node, made), tmp_path / "site"
    with zipfile.ZipFile(next(made[0].parent.glob("*.whl"))) as wheel:
        wheel.extractall(place)
    policy = place / "clients" / "policy.py"
    if spoil == "one byte":
        policy.write_bytes(policy.read_bytes().replace(b"agency's own rules", b"agency's own Rules", 1))
    elif spoil == "one file more":
        (place / "clients" / "sitecustom.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-P", "-c", ASK, str(folder)],
        env={**os.environ, "PYTHONPATH": str(place)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(
        "ok " if spoil == "nothing" else "fail the installed code of fedrisk is not that"
    )


def test_a_key_in_the_repository_and_a_folder_in_use_are_refused(tmp_path: Path) -> None:
    with pytest.raises(release.BuildError, match="lies in the repository"):
        release.build(tmp_path / "out", ROOT / "release.key", wheelhouse=False)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "x").touch()
    with pytest.raises(release.BuildError, match="is not empty"):
        release.build(tmp_path / "used", tmp_path / "key", wheelhouse=False)
    (tmp_path / "key").write_bytes(b"x" * 32)
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(release.BuildError, match="chmod 600"):
        release.signing_key(tmp_path / "key")


def test_the_wheelhouse_is_pinned_by_hashes(tmp_path: Path) -> None:
    (tmp_path / "Some_Thing-1.2-py3-none-any.whl").write_bytes(b"wheel")
    (line,) = release.hashed(sorted(tmp_path.iterdir()))
    assert (
        line
        == f"some-thing==1.2 --hash=sha256:{release.sha256(tmp_path / 'Some_Thing-1.2-py3-none-any.whl')}"
    )
