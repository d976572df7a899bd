"""`fedrisk coordinator`: its folder, its certificates, who may connect, and processes that come back."""

import hashlib
import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flwr
import httpx
import pytest
import tomli_w
from command import Done, fedrisk
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID
from deployment import alive, descendants, free_ports
from federation_host import Host, activate, coordinator, fleet, new_key, require_nginx
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.supercore.fab import Fab
from hosted import hosted

from experiments.coordinator import control, processes, proxy, serverapp, tls
from experiments.coordinator.folder import CoordinatorError, Folder
from experiments.coordinator.registry import fingerprint, read_key
from experiments.coordinator.service import answers
from federation import installed

PUBLIC = (Encoding.OpenSSH, PublicFormat.OpenSSH)
RUN_SECONDS = 240.0


def init(folder: Path, *options: str) -> Done:
    return fedrisk("coordinator", "init", str(folder), *(options or ("--host", "federation.example.org")))


# The folder


def test_init_makes_a_folder_that_is_nobody_elses(tmp_path: Path) -> None:
    done = init(tmp_path / "c", "--host", "federation.example.org", "--port", "9443")
    assert (done.code, done.err) == (0, "")
    modes = {
        path: stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "c", *(tmp_path / "c").rglob("*")]
    }
    public = {path for path, mode in modes.items() if mode & 0o077}
    assert all(path.suffix == ".crt" for path in public)
    assert modes[tmp_path / "c"] == 0o700
    assert {path.name for path in modes if path.suffix == ".key"} == {"ca.key", "server.key", "loopback.key"}
    settings = Folder(tmp_path / "c").settings()
    assert (settings.address, settings.listen) == ("federation.example.org:9443", "0.0.0.0")  # noqa: S104
    ca = tls.fingerprint(tls.read(tmp_path / "c" / "tls" / "ca.crt")[0])
    for fact in ("federation.example.org:9443", f"{tmp_path}/c/tls/ca.crt", ca, "fedrisk coordinator start"):
        assert fact in done.out


def test_the_certificate_is_for_the_host_and_this_machine_for_397_days(tmp_path: Path) -> None:
    init(tmp_path / "c", "--host", "192.0.2.7")
    at = tmp_path / "c" / "tls"
    leaf, ca = tls.read(at / "server.crt")
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {str(name) for name in names.get_values_for_type(x509.IPAddress)} == {
        "192.0.2.7",
        "127.0.0.1",
        "::1",
    }
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert tls.days_left(leaf) == pytest.approx(397, abs=0.1)
    assert isinstance(leaf.public_key(), ec.EllipticCurvePublicKey)
    assert [ca] == tls.read(at / "ca.crt")
    assert tls.problems(at / "server.crt", at / "server.key", at / "ca.crt", "192.0.2.7") == []
    (wrong,) = tls.problems(at / "server.crt", at / "server.key", at / "loopback-ca.crt", "192.0.2.7")
    assert "is not signed by" in wrong


def test_a_certificate_of_our_own_ca_is_signed_again_in_its_last_month(tmp_path: Path) -> None:
    init(tmp_path / "c")
    folder, at = Folder(tmp_path / "c"), tmp_path / "c" / "tls"
    assert not tls.renew(folder, "federation.example.org", at / "server.crt")
    tls.issue(folder, "ca", "server", ["federation.example.org"], days=29)
    assert tls.renew(folder, "federation.example.org", at / "server.crt")
    assert tls.days_left(tls.read(at / "server.crt")[0]) > 390
    assert tls.problems(at / "server.crt", at / "server.key", at / "ca.crt", "federation.example.org") == []
    assert not tls.renew(folder, "federation.example.org", at / "ca.crt")  # not one that it made for the host


def own_certificate(folder: Path, host: str, *, days: float = 90.0) -> tuple[Path, Path]:
    """A certificate that somebody else made, signed by itself."""
    key, name = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "own")]),
    )
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(days=100))
        .not_valid_after(datetime.now(UTC) + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, SHA256())
    )
    (folder / "own.crt").write_bytes(made.public_bytes(Encoding.PEM))
    (folder / "own.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return folder / "own.crt", folder / "own.key"


def test_the_organisations_own_certificate_stays_where_it_is(tmp_path: Path) -> None:
    certificate, key = own_certificate(tmp_path, "*.example.org")
    done = init(
        tmp_path / "c", "--host", "a.example.org", "--certificate", str(certificate), "--key", str(key)
    )
    assert done.code == 0, done.err
    settings = Folder(tmp_path / "c").settings()
    assert (settings.certificate, settings.key, settings.ca) == (str(certificate), str(key), "")
    assert "their systems trust the one that you gave" in done.out
    assert not (tmp_path / "c" / "tls" / "ca.key").exists()


@pytest.mark.parametrize(
    ("host", "days", "change", "said"),
    [
        ("b.example.com", 90, None, "is not for b.example.com: its subjectAltName must name it"),
        ("a.example.org", -1, None, "expired on"),
        ("a.example.org", 90, "key", "does not belong to certificate"),
        ("a.example.org", 90, "garbage", "is no certificate in PEM"),
        ("a.example.org", 90, "missing", "is missing"),
    ],
)
def test_a_certificate_that_agencies_would_refuse_is_refused_here(
    tmp_path: Path, host: str, days: int, change: str | None, said: str
) -> None:
    certificate, key = own_certificate(tmp_path, "a.example.org", days=days)
    if change == "key":
        key.write_bytes(new_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    elif change == "garbage":
        certificate.write_text("garbage")
    elif change == "missing":
        certificate.unlink()
    done = init(tmp_path / "c", "--host", host, "--certificate", str(certificate), "--key", str(key))
    assert done.code == 1
    (sentence,) = done.problems
    assert said in sentence
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "https://a.example.org"], "without a scheme or a port"),
        (["--host", "a.example.org", "--insecure"], "both be addresses of the loopback"),
        (["--host", "a.example.org", "--key", "x"], "--certificate and --key go together"),
    ],
)
def test_init_says_what_is_wrong_and_makes_nothing(tmp_path: Path, options: list[str], said: str) -> None:
    done = init(tmp_path / "c", *options)
    assert done.code == 1
    (sentence,) = done.problems
    assert said in sentence
    assert not (tmp_path / "c").exists()


def test_init_leaves_a_folder_with_something_in_it_alone(tmp_path: Path) -> None:
    assert init(tmp_path / "c").code == 0
    before = (tmp_path / "c" / "tls" / "ca.key").read_bytes()
    (sentence,) = init(tmp_path / "c").problems
    assert sentence == f"{tmp_path / 'c'} is not empty: choose another folder"
    assert (tmp_path / "c" / "tls" / "ca.key").read_bytes() == before
    (sentence,) = init(tmp_path / "a b").problems
    assert "which nginx reads otherwise" in sentence


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"port": 0}, "port should be greater than or equal to 1, got 0"),
        ({"colour": "red"}, "colour is not a known setting"),
        ({"insecure": True, "host": "127.0.0.1"}, "must both be addresses of the loopback"),
        ({"proxy": "own"}, "needs a superlink_port to forward to"),
        ({"proxy": "caddy"}, "proxy should be 'nginx' or 'own'"),
    ],
)
def test_a_changed_coordinator_toml_is_checked(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    """The last would send everything in the clear to whoever reaches 0.0.0.0."""
    init(tmp_path / "c")
    file = tmp_path / "c" / "coordinator.toml"
    file.write_text(tomli_w.dumps(tomllib.loads(file.read_text()) | change))
    for words in (["start"], ["doctor"], ["agencies"], ["stop"]):
        done = fedrisk("coordinator", *words, str(tmp_path / "c"))
        assert done.code == 1
        assert said in done.problems[0]
    assert not list((tmp_path / "c" / "log").iterdir())


@pytest.mark.parametrize("words", [["start"], ["stop"], ["agencies"], ["doctor"]])
def test_a_folder_that_is_none_is_one_sentence(tmp_path: Path, words: list[str]) -> None:
    (sentence,) = fedrisk("coordinator", *words, str(tmp_path)).problems
    assert sentence.startswith(f"{tmp_path} is no coordinator's folder")
    assert "fedrisk coordinator init" in sentence


def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        init(tmp_path / "c", "--host", "127.0.0.1", "--port", str(port))
        done = fedrisk("coordinator", "start", str(tmp_path / "c"))
    assert done.code == 1
    (sentence,) = done.problems
    assert sentence.startswith(f"127.0.0.1:{port} cannot be listened on")
    assert "change port in coordinator.toml" in sentence


# Keys


def key_file(path: Path, kind: str) -> Path:
    text: dict[str, Callable[[], bytes]] = {
        "private": lambda: new_key().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()),
        "rsa": lambda: rsa.generate_private_key(65537, 2048).public_key().public_bytes(*PUBLIC),
        "p256": lambda: ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(*PUBLIC),
        "garbage": lambda: b"ssh-rsa garbage",
        "pem garbage": lambda: b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        "empty": lambda: b"",
    }
    path.write_bytes(text[kind]())
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("private", "is a private key, which must never leave its agency"),
        ("rsa", "must be an ECDSA P-384 key"),
        ("p256", "must be an ECDSA P-384 key"),
        ("garbage", "is no public key"),
        ("pem garbage", "is no public key"),
        ("empty", "is no public key"),
    ],
)
def test_a_key_that_is_none_is_one_sentence(tmp_path: Path, kind: str, said: str) -> None:
    init(tmp_path / "c")
    words = ["enrol", f"police={key_file(tmp_path / 'node.pub', kind)}", "--folder", str(tmp_path / "c")]
    done = fedrisk("coordinator", *words)
    assert done.code == 1
    (sentence,) = done.problems
    assert said in sentence
    assert not (tmp_path / "c" / "agencies.toml").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["node.pub"], "whose key is it?"),
        (["a=node.pub", "b=node.pub", "--agency", "c"], "--agency NAME goes with one KEY.pub"),
        (["Police Force=node.pub"], "a name must be small letters"),
        (["police=nowhere.pub"], "nowhere.pub cannot be read: No such file"),
        (["police=node.pub"], "is not running: `fedrisk coordinator start`"),
    ],
)
def test_enrolment_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    init(tmp_path / "c")
    monkeypatch.chdir(tmp_path)
    new_key(tmp_path / "node.pub")
    done = fedrisk("coordinator", "enrol", *words, "--folder", "c")
    assert done.code == 1
    (sentence,) = done.problems
    assert said in sentence


def test_a_key_in_pem_is_the_same_key(tmp_path: Path) -> None:
    key = new_key(tmp_path / "node.pub").public_key()
    (tmp_path / "node.pem").write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert fingerprint(read_key(tmp_path / "node.pub")) == fingerprint(read_key(tmp_path / "node.pem"))


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_a_fingerprint_is_what_ssh_keygen_prints(tmp_path: Path) -> None:
    key = new_key(tmp_path / "node.pub").public_key()
    done = subprocess.run(
        ["ssh-keygen", "-lf", str(tmp_path / "node.pub")], capture_output=True, text=True, check=True
    )
    assert fingerprint(key) == done.stdout.split()[1]


# The proxy, the logs, the bundle


def test_nginx_takes_its_configuration(tmp_path: Path) -> None:
    require_nginx()
    init(tmp_path / "c", "--host", "127.0.0.1", "--port", str(free_ports(1)[0]))
    folder = Folder(tmp_path / "c")
    text = proxy.configure(folder, folder.settings(), 12345).read_text()
    proxy.check(folder)
    assert all(f'"{proxy.FLEET}{name}"' in text for name in proxy.FORWARDED)
    assert not {"register-node", "unregister-node", "get-fab"} & set(proxy.FORWARDED)
    (tmp_path / "c" / "nginx.conf").write_text(text.replace("ssl_protocols", "ssl_protocol"))
    with pytest.raises(CoordinatorError, match=r"nginx refuses .*ssl_protocol"):
        proxy.check(folder)


def test_doctor_without_nginx_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    init(tmp_path / "c", "--host", "127.0.0.1", "--port", str(free_ports(1)[0]))
    monkeypatch.setattr(proxy, "find_nginx", lambda: None)
    done = fedrisk("coordinator", "doctor", str(tmp_path / "c"))
    assert done.code == 1
    assert "✗ nginx: nginx is not installed: `apt install nginx-light`" in done.out
    (sentence,) = fedrisk("coordinator", "start", str(tmp_path / "c")).problems
    assert sentence == proxy.NO_NGINX


def test_doctor_names_what_is_wrong_with_a_folder(tmp_path: Path) -> None:
    init(tmp_path / "c", "--host", "127.0.0.1", "--port", str(free_ports(1)[0]))
    folder = Folder(tmp_path / "c")
    (tmp_path / "c" / "tls" / "ca.key").chmod(0o640)
    tls.issue(folder, "ca", "server", ["elsewhere.example.org"])
    done = fedrisk("coordinator", "doctor", str(tmp_path / "c"), "--json")
    assert done.code == 1
    found = {finding["what"]: finding for finding in json.loads(done.out)}
    assert (
        found["permissions"]["sentence"]
        == f"others can read {tmp_path}/c/tls/ca.key: chmod go= {tmp_path}/c/tls/ca.key"
    )
    assert found["versions"]["well"]
    wrong = [f["sentence"] for f in json.loads(done.out) if f["what"] == "certificate" and f["well"] is False]
    assert [sentence for sentence in wrong if "is not for 127.0.0.1" in sentence]


def test_a_log_is_rotated_under_a_process_that_goes_on_writing(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    with log.open("ab", buffering=0) as file:
        for number in range(8):
            file.write(b"%d" % number * 100)
            processes.rotate(log, largest=50, keep=3)
        file.write(b"last")
    assert log.read_bytes() == b"last"
    kept = {path.name: path.read_bytes()[:1] for path in tmp_path.glob("a.log.*")}
    assert kept == {"a.log.1": b"7", "a.log.2": b"6", "a.log.3": b"5"}


def test_the_private_apis_are_those_of_the_flower_that_is_installed() -> None:
    assert flwr.__version__ == control.FLOWER


def test_the_bundle_is_the_same_bytes_in_another_process_and_has_no_code() -> None:
    code = "from federation import installed; print(installed.fab_hash(), installed.code_sha256())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [installed.fab_hash(), installed.code_sha256()]
    archive = zipfile.ZipFile(io.BytesIO(installed.fab()))
    assert archive.namelist() == ["pyproject.toml", ".info/CONTENT"]
    assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
    assert tomllib.loads(archive.read("pyproject.toml").decode()) == installed.bundle()
    assert installed.bundle()["project"]["version"] == installed.version()
    assert "dependencies" not in installed.bundle()["project"]


def test_the_bundle_is_what_flower_would_build_and_it_installs(tmp_path: Path) -> None:
    from flwr.cli.install import install_from_fab

    built, _ = build_fab_from_files({"pyproject.toml": installed.pyproject().encode()})
    theirs, ours = (zipfile.ZipFile(io.BytesIO(data)) for data in (built, installed.fab()))
    assert theirs.namelist() == ours.namelist()
    assert tomllib.loads(theirs.read("pyproject.toml").decode()) == installed.bundle()
    assert (install_from_fab(installed.fab(), tmp_path, skip_prompt=True) / "pyproject.toml").is_file()


def test_the_codes_hash_is_of_what_learns_agrees_and_guards(tmp_path: Path) -> None:
    """A changed policy, template or protocol is another release; a benchmark is not."""
    root = Path(installed.__file__).resolve().parent.parent
    for name in (*installed.PACKAGES, "experiments"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))

    def found() -> str:
        code = "from federation import installed; print(installed.code_sha256())"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    seen = [found()]
    (tmp_path / "experiments" / "cli.py").write_text("")
    assert found() == seen[0]
    template = next((tmp_path / "federation").rglob("*.j2"))
    lines = tmp_path / "federation" / "panel" / "checklists.yaml"
    for path in (tmp_path / "clients" / "policy.py", template, lines, tmp_path / "models" / "risk.py"):
        path.write_text(path.read_text() + "\n")
        seen.append(found())
    assert len(set(seen)) == 5


def test_another_bundle_is_refused_before_it_is_read() -> None:
    read = serverapp.only_ours(lambda proto: "read")
    assert read(SimpleNamespace(content=installed.fab())) == "read"
    for content in (b"", installed.fab() + b"x", installed.fab()[:-1]):
        with pytest.raises(serverapp.NotInstalledHere, match="start runs with `fedrisk submit`"):
            read(SimpleNamespace(content=content))


def test_every_command_of_flowers_tasks_is_ours(tmp_path: Path) -> None:
    from flwr.supercore.constant import TASK_TYPE_TO_COMMAND

    serverapp.write_commands(tmp_path / "bin")
    assert {path.name for path in (tmp_path / "bin").iterdir()} == set(TASK_TYPE_TO_COMMAND.values())
    for name in ("flwr-agentapp", "flwr-simulation", "flwr-clientapp"):
        done = subprocess.run([str(tmp_path / "bin" / name)], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert "nothing else" in done.stderr


# Real processes


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with coordinator(tmp_path_factory.mktemp("coordinator") / "coordinator") as running:
        yield running


@pytest.mark.deployed
@pytest.mark.timeout(600)
def test_agencies_are_enrolled_seen_and_revoked(host: Host, tmp_path: Path) -> None:
    keys = {name: new_key(tmp_path / f"{name}.pub") for name in ("clinic", "north")}
    pairs = [f"{name}={tmp_path / name}.pub" for name in keys]
    done = host.fedrisk("coordinator", "enrol", *pairs, "--folder", str(host.folder))
    printed = [line.split() for line in done.stdout.splitlines()]
    assert printed == [["enrolled", name, fingerprint(key.public_key())] for name, key in keys.items()]
    assert {name: row["status"] for name, row in host.agencies().items()} == {
        "clinic": "never seen",
        "north": "never seen",
    }

    with fleet(host, keys["clinic"]) as client:
        assert str(activate(client, keys["clinic"])) == host.agencies()["clinic"]["node_id"]
        assert host.agencies()["clinic"]["status"] == "online"
        seen = datetime.fromisoformat(host.agencies()["clinic"]["last_seen"])
        assert abs(datetime.now(UTC) - seen) < timedelta(minutes=2)
        host.revoke("clinic")
        for act in (lambda: pull(client, host, "clinic"), lambda: activate(client, keys["clinic"])):
            with pytest.raises(httpx.HTTPStatusError, match=r"401|412"):
                act()
    assert (host.agencies()["clinic"]["status"], host.agencies()["north"]["status"]) == (
        "revoked",
        "never seen",
    )
    with fleet(host, keys["north"]) as client:  # the others go on
        activate(client, keys["north"])

    refused = {
        f"clinic={tmp_path / 'clinic.pub'}": "was revoked and stays so",
        f"south={tmp_path / 'north.pub'}": "is enrolled as 'north'",
        f"north={tmp_path / 'clinic2.pub'}": "the name is taken",
    }
    new_key(tmp_path / "clinic2.pub")
    before = (host.folder / "agencies.toml").read_bytes()
    for pair, said in refused.items():
        done = host.fedrisk("coordinator", "enrol", pair, "--folder", str(host.folder))
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert said in done.stderr
    done = host.fedrisk("coordinator", "revoke", "clinic", "--folder", str(host.folder))
    assert (done.returncode, done.stderr) == (
        1,
        "fedrisk: no agency 'clinic' is enrolled; enrolled are: north\n",
    )
    assert (host.folder / "agencies.toml").read_bytes() == before
    host.enrol("clinic", tmp_path / "clinic2.pub")  # the agency may come back, with a new key


def pull(client: Any, host: Host, name: str) -> None:
    from flwr.proto.fleet_pb2 import PullMessagesRequest
    from flwr.proto.node_pb2 import Node

    client.PullMessages(PullMessagesRequest(node=Node(node_id=int(host.agencies()[name]["node_id"]))))


@pytest.mark.deployed
@pytest.mark.timeout(600)
def test_an_enrolment_that_was_stopped_half_way_is_finished(host: Host, tmp_path: Path) -> None:
    """The SuperLink knows the key, agencies.toml does not: the same command ends it."""
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    key = new_key(tmp_path / "half.pub")
    with control.control(control.find_connection(str(host.folder))) as client:
        node_id = control.register(client, public_key_to_bytes(key.public_key()), "half")
    host.enrol("half", tmp_path / "half.pub")
    assert host.agencies()["half"]["node_id"] == str(node_id)


@pytest.mark.deployed
@pytest.mark.timeout(600)
def test_doctor_finds_a_running_coordinator_well(host: Host) -> None:
    done = host.fedrisk("coordinator", "doctor", str(host.folder), "--json")
    found = {finding["what"]: finding["well"] for finding in json.loads(done.stdout)}
    assert {"nginx", "certificate", "running", "SuperLink", "proxy", "permissions", "telemetry"} <= set(found)
    assert {what: well for what, well in found.items() if well is False} == {}, done.stdout
    assert (done.returncode, found["proxy"]) == (0, True)


@pytest.mark.deployed
@pytest.mark.timeout(600)
def test_doctor_names_a_proxy_that_forwards_more(host: Host) -> None:
    conf = host.folder / "nginx.conf"
    before = conf.read_text()
    try:
        conf.write_text(
            before.replace("location / { return 404; }", "location / { proxy_pass https://superlink; }")
        )
        os.kill(child(host, "nginx"), signal.SIGHUP)
        done = host.fedrisk("coordinator", "doctor", str(host.folder))
        assert done.returncode == 1
        assert "GET /health gives 200, not 404" in done.stdout
        assert "forward exactly the paths in docs/coordinator.md" in done.stdout
    finally:
        conf.write_text(before)
        os.kill(child(host, "nginx"), signal.SIGHUP)


def child(host: Host, name: str) -> int:
    found = host.child(name)
    assert found is not None, host.logs()
    return found


@pytest.mark.deployed
@pytest.mark.timeout(600)
def test_a_second_start_on_the_same_folder_is_refused(host: Host) -> None:
    done = host.fedrisk("coordinator", "start", str(host.folder))
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"fedrisk: a coordinator is at work in {host.folder} already (process {host.process.pid})"
    )
    assert done.stderr.count("\n") == 1
    assert host.child("superlink") is not None


@pytest.mark.deployed
@pytest.mark.timeout(600)
def test_a_bundle_with_python_is_not_run(host: Host, tmp_path: Path) -> None:
    """Handed to the control API by somebody on the host, under the names of the release's own modules."""
    witness = tmp_path / "witness"
    code = f"open({str(witness)!r}, 'w').write('ran')\napp = 1\n".encode()
    names = ("federation/__init__.py", "federation/server/__init__.py", "federation/server/app.py")
    files = {"pyproject.toml": installed.pyproject().encode(), **dict.fromkeys(names, code)}
    content, _ = build_fab_from_files(files)
    bundle = Fab(hashlib.sha256(content).hexdigest(), content, {})
    with control.control(control.find_connection(str(host.folder))) as client:
        number = str(client.StartRun(StartRunRequest(fab=fab_to_proto(bundle))).run_id)
    host.wait(lambda: host.status(number).startswith("finished"), 90, "the run's end")
    run = of_run(host, number)
    assert (run["status"], run["fab-hash"]) == ("finished:failed", bundle.hash_str)
    assert "start runs with `fedrisk submit`" in run["status-details"]
    assert not witness.exists()


@pytest.mark.deployed
@pytest.mark.timeout(600)
def test_a_proxy_of_ones_own_is_judged_by_what_it_forwards(tmp_path: Path) -> None:
    """The coordinator starts no nginx; here the test does, in the place of another proxy."""
    require_nginx()
    port = free_ports(1)[0]
    init(tmp_path / "c", "--host", "127.0.0.1", "--port", str(free_ports(1)[0]))
    file = tmp_path / "c" / "coordinator.toml"
    file.write_text(tomli_w.dumps(tomllib.loads(file.read_text()) | {"proxy": "own", "superlink_port": port}))
    with coordinator(tmp_path / "c") as host:
        assert (host.child("nginx"), host.superlink) == (None, f"127.0.0.1:{port}")
        done = host.fedrisk("coordinator", "doctor", str(host.folder))
        assert done.returncode == 1
        assert f"✗ proxy: {host.address} does not answer (ConnectError): see its log" in done.stdout
        folder = Folder(tmp_path / "c")
        proxy.configure(folder, folder.settings(), port)
        other = subprocess.Popen(proxy.command(folder))
        try:
            host.wait(lambda: answers(host.address), 10, "the other proxy")
            done = host.fedrisk("coordinator", "doctor", str(host.folder))
            assert (done.returncode, "✓ proxy" in done.stdout) == (0, True), done.stdout
        finally:
            other.terminate()
            other.wait(10)


@pytest.mark.deployed
@pytest.mark.timeout(600)
def test_insecure_has_no_proxy_and_stays_on_the_loopback(tmp_path: Path) -> None:
    with coordinator(tmp_path / "c", "--insecure") as host:
        assert host.superlink == host.address
        assert (host.child("nginx"), host.ca) == (None, None)
        key = new_key(tmp_path / "a.pub")
        host.enrol("north", tmp_path / "a.pub")
        assert host.agencies()["north"]["fingerprint"] == fingerprint(key.public_key())
        done = host.fedrisk("coordinator", "doctor", str(host.folder))
        assert done.returncode == 1
        assert "✗ proxy: insecure: there is none; for tests on this machine alone" in done.stdout
        assert host.end() == 0


@pytest.mark.deployed
@pytest.mark.timeout(600)
def test_sigterm_ends_all_and_a_killed_supervisor_leaves_nothing(tmp_path: Path) -> None:
    require_nginx()
    new_key(tmp_path / "north.pub")
    with coordinator(tmp_path / "c") as host:
        host.enrol("north", tmp_path / "north.pub")
        family = descendants(host.process.pid)
        assert len(family) >= 4  # SuperLink, SuperExec, nginx and its workers
        host.process.send_signal(signal.SIGKILL)
        host.process.wait()
        end = time.monotonic() + 30
        while [pid for pid in family if alive(pid)] and time.monotonic() < end:
            time.sleep(0.1)
        assert not [pid for pid in family if alive(pid)], "a process outlived its supervisor"
    with coordinator(tmp_path / "c") as host:  # the same folder, and it remembers
        assert set(host.agencies()) == {"north"}
        done = host.fedrisk("coordinator", "stop", str(host.folder))
        assert (done.returncode, done.stderr) == (0, "")
        assert host.process.wait(10) == 0
        assert not (host.folder / "flower" / "config.toml").exists()
        assert host.fedrisk("coordinator", "stop", str(host.folder)).stdout == "nothing runs here\n"
        done = host.fedrisk("submit", str(host.folder), "experiment=own", "data.agencies=x")
        assert done.returncode == 1


# A run


@pytest.mark.deployed
@pytest.mark.timeout(900)
@pytest.mark.long
def test_a_run_goes_on_when_the_superlink_is_killed(tmp_path: Path) -> None:
    """The ServerApp is a process of its own, and the SuperLink comes back on its database."""
    with hosted(tmp_path, ["north"]) as federation:
        host, run = federation.host, federation.submit("rounds=15")
        assert run.folder.parent == host.folder / "outputs"
        federation.until_round(run, 2)
        killed = child(host, "superlink")
        os.kill(killed, signal.SIGKILL)
        host.wait(lambda: host.child("superlink") not in (None, killed), 60, "the SuperLink's return")
        assert not (run.folder / "result.json").exists()  # it was killed in the middle of the run
        assert federation.until_it_ends(run) == "finished:completed"
        assert (run.result["status"], len(run.result["rounds"])) == ("finished", 15)
        assert "superlink ended (signal 9)" in (host.folder / "log" / "coordinator.log").read_text()
        assert of_run(host, run.number)["fab-hash"] == installed.fab_hash()
        federation.must_have_charged_what_left(run)
        for agency in federation.agencies.values():
            agency.stop()
        assert host.end() == 0


def of_run(host: Host, number: str) -> dict[str, str]:
    """What Flower says of a run."""
    done = host.flwr("ls", "coordinator", "--run-id", number, "--format", "json")
    found: dict[str, str] = json.loads(done.stdout)["runs"][0]
    return found
