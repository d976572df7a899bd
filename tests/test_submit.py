"""`fedrisk submit` before anything is sent, and what a node and its keys do without a SuperLink."""

import logging
import shutil
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import pytest
from deployment import free_ports, know_superlink
from hosted import lay_out

from clients.app import make_app, node_from_config
from clients.keys import KeyFileError, secret
from experiments import cli, engines
from experiments.config import compose, read
from federation import installed, protocol, wire

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("clinic", "north", "south")
SETTINGS = ["experiment=own", "name=deployed", "tracking=none", "output=runs", "rounds=3"]
SETTINGS += ["evaluation.checkpoints=1", "min_agencies=3", "join_timeout=120"]


def test_a_node_that_cannot_work_says_why_on_its_own_machine_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("fedrisk.node"), "handlers", [caplog.handler])
    home = lay_out(tmp_path, NAMES, "127.0.0.1:1", None)["north"].folder
    (home / "policy.toml").write_text("budget = 1\n")
    settings = [*SETTINGS, "engine=superlink", f"data.agencies={tmp_path}/agencies.yaml"]
    plan = read(compose(settings), tables=False).experiment.plan("run-1", simulation=False)
    grid = engines.LocalGrid(make_app(node_from_config), [{"node-dir": str(home)}])
    (message,) = grid.send_and_receive([wire.pack_ready_order(plan, 1)])
    assert wire.read_reply(message) == protocol.Refusal("", protocol.Reason.UNAVAILABLE)
    assert "this node cannot work: policy.toml: budget" in caplog.text
    assert not (home / "ledger.db").exists()


def test_a_split_key_is_made_once_and_never_taken_in_part(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:  # as many processes as may start at once
        keys = set(pool.map(lambda _: secret.__wrapped__(tmp_path / "split.key"), range(64)))
    assert keys == {(tmp_path / "split.key").read_bytes()}
    assert [path.name for path in tmp_path.iterdir()] == ["split.key"]
    (tmp_path / "split.key").write_bytes(b"")
    with pytest.raises(KeyFileError, match="must hold 32 bytes"):
        secret.__wrapped__(tmp_path / "split.key")


def refused_submit(
    superlink: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """What `fedrisk submit` says on its way out with exit code 1."""
    monkeypatch.setattr(
        sys, "argv", ["fedrisk", "submit", superlink, "data.agencies=agencies.yaml", *SETTINGS]
    )
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    return capsys.readouterr().err


@pytest.fixture
def submitter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data scientist's folder, with a Flower home of its own."""
    lay_out(tmp_path, NAMES, "127.0.0.1:1", None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flower"))
    return tmp_path


@pytest.mark.parametrize("name", ["nowhere", "local"])
def test_an_unknown_superlink_is_one_sentence(
    submitter: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """`local` is Flower's own name for a simulation that it would start by itself."""
    (submitter / "flower").mkdir()
    (submitter / "flower" / "config.toml").write_text('[superlink.local]\naddress = ":local:"\n')
    said = refused_submit(name, monkeypatch, capsys)
    assert said.startswith(f"fedrisk: there is no SuperLink '{name}': {submitter}/flower/config.toml needs")
    assert said.count("\n") == 1
    assert not (submitter / "runs").exists()


def test_an_unreachable_superlink_is_one_sentence(
    submitter: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    know_superlink(submitter / "flower", "down", address)
    said = refused_submit("down", monkeypatch, capsys)
    assert said.startswith(
        f"fedrisk: the SuperLink 'down' at {address} did not take the run: nothing answers there"
    )
    assert said.count("\n") == 1


def test_the_repository_is_a_flower_app_whose_bundle_has_no_code_tests_or_data(tmp_path: Path) -> None:
    from flwr.cli.build import build_fab_from_disk
    from flwr.cli.config_utils import load_and_validate

    for name in ("pyproject.toml", ".gitignore"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("clients", "federation", "models", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "people.json").write_text('["a record"]')
    config, warnings = load_and_validate(tmp_path / "pyproject.toml")
    assert warnings == []
    assert set(zipfile.ZipFile(BytesIO(build_fab_from_disk(tmp_path))).namelist()) == {
        "pyproject.toml",
        ".info/CONTENT",
    }
    submitted = installed.bundle()["tool"]["flwr"]["app"]
    assert {key: config["tool"]["flwr"]["app"][key] for key in submitted} == submitted
