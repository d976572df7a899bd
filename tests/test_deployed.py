"""A federation as agencies would run it: a SuperLink, three SuperNodes, and `fedrisk submit`."""

import json
import logging
import re
import shutil
import stat
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import yaml
from conftest import CONTRACT, people, permits, write_table
from deployment import NAME, Deployment, alive, deployed, descendants, free_ports, know_superlink

from clients.app import make_app, node_from_config
from clients.keys import KeyFileError, public_text, secret
from clients.ledger import Ledger
from experiments import cli, engines
from experiments.config import compose, read
from federation import installed, protocol, wire
from federation.protocol import TrainPlan
from federation.release import SharedRelease

ROOT = Path(__file__).resolve().parent.parent
AGENCIES = {"clinic": "health", "north": "police", "south": "police"}
CANARY = "canary-person"
RUN_SECONDS, END_SECONDS = 600.0, 60.0  # far more than it takes, for a machine with other work
SETTINGS = ["experiment=own", "name=deployed", "tracking=none", "output=runs", "rounds=3"]
SETTINGS += ["evaluation.checkpoints=1", "min_agencies=3", "join_timeout=120"]


@dataclass(frozen=True)
class Run:
    """A submitted run: its name, Flower's number for it, and where the coordinator keeps it."""

    name: str
    number: str
    folder: Path


def lay_out(root: Path) -> dict[str, Path]:
    """A node folder for each agency, and what the data scientist has: a contract and a list without tables."""
    nodes, listing = {name: root / "agencies" / name for name in AGENCIES}, []
    for home in nodes.values():
        home.mkdir(parents=True)
    public = {name: public_text(home) for name, home in nodes.items()}
    for seed, (name, kind) in enumerate(AGENCIES.items()):
        home = nodes[name]
        rows = [row | {"person": f"{CANARY}-{row['person']}"} for row in people(seed)]
        write_table(home / "people.csv", rows, () if kind == "health" else ("visits",))
        facts = {"name": name, "kind": kind, "public_size": 300}
        node = facts | {"table": "people.csv", "contract": "contract.yaml"}
        node |= {"peers": {peer: key for peer, key in public.items() if peer != name}}
        policy = permits(min_people=100, max_honest=2, stats_columns=["age"])
        (home / "contract.yaml").write_text(yaml.safe_dump(CONTRACT, sort_keys=False))
        (home / "node.toml").write_text(tomli_w.dumps(node))
        (home / "policy.toml").write_text(tomli_w.dumps(policy | {"budget": {"life": 20.0, "delta": 1e-5}}))
        listing.append(facts)
    (root / "contract.yaml").write_text(yaml.safe_dump(CONTRACT, sort_keys=False))
    (root / "agencies.yaml").write_text(yaml.safe_dump({"contract": "contract.yaml", "agencies": listing}))
    return nodes


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    root = tmp_path_factory.mktemp("deployed")
    with deployed(root, lay_out(root)) as running:
        yield running
        family = [pid for process in running.processes.values() for pid in descendants(process.pid)]
    assert not [pid for pid in family if alive(pid)], "a process outlived its deployment"


def submit(deployment: Deployment, *overrides: str) -> Run:
    """`fedrisk submit`, and what it says."""
    arguments = ["submit", NAME, "data.agencies=agencies.yaml", *SETTINGS, *overrides]
    done = deployment.command("experiments.cli", *arguments)
    assert done.returncode == 0, done.stderr
    said = re.search(r"run +(\S+), which Flower calls (\d+)\nresult +(\S+)/result.json", done.stdout)
    assert said is not None, done.stdout
    assert f"flwr log {said[2]} {NAME}" in done.stdout
    return Run(said[1], said[2], Path(said[3]))


def until_it_ends(deployment: Deployment, run: Run) -> str:
    """Flower's word for the run once it is over: there is a result, or an error in its log."""
    log, result, said = run.folder / "run.log", run.folder / "result.json", ["running"]

    def over() -> bool:
        return result.exists() or (log.exists() and " ERROR " in log.read_text())

    def told() -> bool:
        said.append(deployment.status(run.number))
        return said[-1].startswith("finished")

    deployment.wait(over, RUN_SECONDS, "the run's result")
    deployment.wait(told, END_SECONDS, "the run's end")
    return said[-1]


@pytest.fixture(scope="module")
def finished(deployment: Deployment) -> Run:
    """A run that has been submitted and has gone through."""
    run = submit(deployment)
    assert until_it_ends(deployment, run) == "finished:completed", deployment.log(run.number)
    return run


def plan_of(deployment: Deployment, run: Run) -> TrainPlan:
    """The plan that the agencies must have seen."""
    config = compose([*SETTINGS, "engine=superlink", f"data.agencies={deployment.folder}/agencies.yaml"])
    return read(config, tables=False).experiment.plan(run.name, simulation=False)


def charged(node: Path) -> list[tuple[str, Any]]:
    """The plan and the release of every charge in a node's ledger, which is for life."""
    people = f"{node.name}/people"
    with Ledger(node / "ledger.db", budget=None, scope="lifetime", people=people) as ledger:
        return [
            (entry.plan_sha256, entry.releases[0]) for entry in ledger.entries() if entry.action == "charge"
        ]


@pytest.mark.deployed
@pytest.mark.timeout(900)
def test_three_agencies_finish_three_rounds(deployment: Deployment, finished: Run) -> None:
    result = json.loads((finished.folder / "result.json").read_text())
    assert (result["run_id"], result["status"]) == (finished.name, "finished")
    assert (result["engine"], result["simulation"]) == ("superlink", False)
    assert result["privacy"]["ledger"] == "lifetime"
    assert [record["round"] for record in result["rounds"]] == [1, 2, 3]
    assert all(record["replied"] == list(AGENCIES) for record in result["rounds"])
    assert all(agency["status"] == "trained" for agency in result["agencies"].values())
    assert result["final"]["part"] == "test"
    assert (finished.folder / "model" / "model.safetensors").exists()


@pytest.mark.deployed
@pytest.mark.timeout(900)
def test_each_ledger_holds_what_the_plan_says(deployment: Deployment, finished: Run) -> None:
    plan = plan_of(deployment, finished)
    assert plan.seed is None
    assert json.loads((finished.folder / "result.json").read_text())["plan_sha256"] == plan.sha256
    splits = set()
    for node in deployment.nodes.values():
        entries = charged(node)
        assert {sha for sha, _ in entries} == {plan.sha256}
        assert Counter(replace(release, split_id="") for _, release in entries) == Counter(plan.releases())
        splits |= {release.split_id for _, release in entries}
    assert len(splits) == len(AGENCIES), "each agency deals its people with a secret of its own"


@pytest.mark.deployed
@pytest.mark.timeout(900)
def test_nothing_of_a_record_and_no_code_is_outside_the_agencies(
    deployment: Deployment, finished: Run
) -> None:
    """Logs, homes and results of everybody; the agencies' own folders are theirs."""
    assert finished.folder.is_dir()
    outside = [
        path
        for path in deployment.folder.rglob("*")
        if path.is_file() and deployment.folder / "agencies" not in path.parents
    ]
    assert not [path for path in outside if CANARY.encode() in path.read_bytes()]
    bundles = [path for path in outside if "apps" in path.parts]
    assert {path.name for path in bundles if ".info" not in path.parts} == {"pyproject.toml"}


@pytest.mark.deployed
@pytest.mark.timeout(900)
def test_a_node_keeps_its_secret_to_itself(deployment: Deployment, finished: Run) -> None:
    assert finished.folder.is_dir()
    keys = {node / f"{name}.key" for node in deployment.nodes.values() for name in ("split", "signing")}
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    assert {len(key.read_bytes()) for key in keys} == {32}


@pytest.mark.deployed
@pytest.mark.timeout(900)
def test_nodes_refuse_a_plan_without_privacy_and_the_run_fails(deployment: Deployment, finished: Run) -> None:
    before = {name: charged(node) for name, node in deployment.nodes.items()}
    run = submit(deployment, "privacy=none")
    assert until_it_ends(deployment, run) == "finished:failed"
    log = (run.folder / "run.log").read_text()
    assert "RunError: fewer agencies took part" in log
    assert all(f"{name} (refused: PRIVACY)" in log for name in AGENCIES)
    assert "refused: PRIVACY" in deployment.log(run.number)
    assert not (run.folder / "result.json").exists()
    assert {name: charged(node) for name, node in deployment.nodes.items()} == before
    for node in deployment.nodes.values():
        assert (
            "refused, PRIVACY: simulation: a plan without privacy" in (node / "log" / "node.log").read_text()
        )


@pytest.mark.deployed
@pytest.mark.timeout(900)
def test_three_agencies_share_their_noise_over_a_superlink(deployment: Deployment, finished: Run) -> None:
    """Every message meets a new process, so what masking must remember lies on the agencies' disks."""
    before = {name: len(charged(node)) for name, node in deployment.nodes.items()}
    shared = ["strategy=dp_fedsgd", "privacy=shared", "privacy.dropouts=0", "rounds=1"]
    run = submit(deployment, *shared, "evaluation.checkpoints=0")
    assert until_it_ends(deployment, run) == "finished:completed", deployment.log(run.number)
    result = json.loads((run.folder / "result.json").read_text())
    assert [record["void"] for record in result["rounds"]] == [None]
    assert result["rounds"][0]["replied"] == list(AGENCIES)
    assert result["final"]["metrics"] is not None
    assert result["final"]["metrics"]["agencies"] == {}, "nobody knows one agency's table"
    assert result["privacy"]["shared"]["honest"] == 2
    for name, node in deployment.nodes.items():
        released = [release for _, release in charged(node)[before[name] :]]
        assert [type(release) for release in released] == [SharedRelease, SharedRelease]
        assert not list((node / "masks").iterdir()), "the secrets went with the last draw"


def test_a_node_that_cannot_work_says_why_on_its_own_machine_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("fedrisk.node"), "handlers", [caplog.handler])
    home = lay_out(tmp_path)["north"]
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
    lay_out(tmp_path)
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


@pytest.mark.deployed
def test_a_statistic_is_taken_of_the_deployed_agencies(deployment: Deployment) -> None:
    words = ["stats", "age", "--epsilon", "2", "--superlink", NAME, "data.agencies=agencies.yaml", *SETTINGS]
    done = deployment.command("experiments.cli", *words)
    assert done.returncode == 0, done.stderr
    said = re.search(r"run +(\S+), which Flower calls (\d+)\nresult +(\S+)/stats.json", done.stdout)
    assert said is not None, done.stdout
    run = Run(said[1], said[2], Path(said[3]))
    deployment.wait((run.folder / "stats.json").exists, RUN_SECONDS, "the statistic")
    found = json.loads((run.folder / "stats.json").read_text())
    assert {facts["status"] for facts in found["agencies"].values()} == {"counted"}
    assert found["people"]["value"] == pytest.approx(900, abs=60)
    assert CANARY not in json.dumps(found)


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
