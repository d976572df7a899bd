"""A hosted federation: what a bundle cannot do, what a round costs, and who may not start twice."""

import json
import re
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from flwr.supernode import node_auth_http_interceptor
from hosted import CANARY, SETTINGS, Federation, Run, hosted
from panels import Signatories

from clients import journal
from clients.flower.link import Link, LinkError
from clients.keys import make_node_key, node_key
from experiments.config import compose, read
from experiments.drafting import draft
from federation.decision import Registration
from federation.release import SharedRelease

NAMES = ("clinic", "north", "south")
pytestmark = [pytest.mark.deployed, pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with hosted(tmp_path_factory.mktemp("hosted"), NAMES) as running:
        yield running


@pytest.fixture(scope="module")
def finished(federation: Federation) -> Run:
    """A run that went through."""
    run = federation.submit("rounds=4")
    assert federation.until_it_ends(run) == "finished:completed", federation.logs()
    return run


def test_three_agencies_finish_and_each_ledger_holds_what_left(federation: Federation, finished: Run) -> None:
    result = finished.result
    assert [record["replied"] for record in result["rounds"]] == [list(NAMES)] * 4
    assert (result["engine"], result["simulation"]) == ("superlink", False)
    assert result["privacy"]["ledger"] == "lifetime"
    assert (finished.folder / "model" / "model.safetensors").exists()
    federation.must_have_charged_what_left(finished)
    for agency in federation.agencies.values():
        assert len(agency.charges()) == 4 + 2, "four trainings, a table at the checkpoint, one at the end"


def test_a_run_pays_for_imports_once(federation: Federation, finished: Run) -> None:
    """One worker has answered everything: nobody started a process for an order."""
    for agency in federation.agencies.values():
        assert "a new worker" not in agency.log()
        assert agency.worker is not None


def test_a_plan_without_privacy_is_refused_and_the_run_fails(federation: Federation, finished: Run) -> None:
    before = {name: agency.charges() for name, agency in federation.agencies.items()}
    run = federation.submit("privacy=none", "rounds=1")
    assert federation.until_it_ends(run) == "finished:failed"
    log = (run.folder / "run.log").read_text()
    assert "RunError: fewer agencies took part" in log
    assert all(f"{name} (refused: PRIVACY)" in log for name in NAMES)
    assert not (run.folder / "result.json").exists()
    assert {name: agency.charges() for name, agency in federation.agencies.items()} == before
    for agency in federation.agencies.values():
        assert "refused, PRIVACY: simulation: a plan without privacy" in agency.log()


def test_three_agencies_share_their_noise(federation: Federation, finished: Run) -> None:
    """One set-up of keys for the run; three messages a round; nobody knows one agency's table."""
    before = {name: len(agency.charges()) for name, agency in federation.agencies.items()}
    shared = ["strategy=dp_fedsgd", "privacy=shared", "privacy.dropouts=0", "rounds=3"]
    run = federation.submit(*shared, "evaluation.checkpoints=0")
    assert federation.until_it_ends(run) == "finished:completed", federation.logs()
    result = run.result
    assert [(record["void"], record["replied"]) for record in result["rounds"]] == [(None, list(NAMES))] * 3
    assert result["final"]["metrics"]["agencies"] == {}, "nobody knows one agency's table"
    assert result["privacy"]["shared"]["honest"] == 2
    for name, agency in federation.agencies.items():
        released = [event for _, event in agency.charges()[before[name] :]]
        assert [type(event) for event in released] == [SharedRelease] * 4
        assert not list((agency.folder / "masks").iterdir()), "the secrets went with the last draw"


def test_a_registered_run_is_witnessed_by_each_node(federation: Federation, finished: Run) -> None:
    """From the command line to three nodes: what a panel signed rides in each order, and its hash is in each journal."""
    settings = [
        *SETTINGS,
        f"min_agencies={len(NAMES)}",
        f"data.agencies={federation.root}/agencies.yaml",
        "rounds=2",
    ]
    drafted = yaml.safe_load(draft(read(compose(settings), tables=False).experiment, {}))
    panel = Signatories.of("alice", "bob", quorum=2)
    said = {"panel": panel.panel.name, "registered": datetime.now(UTC).isoformat()}
    signed = panel.signed(Registration.model_validate(drafted | said))
    file = federation.root / "registration.json"
    file.write_text(signed.canonical)
    run = federation.submit("rounds=2", f"registration={file}")
    assert federation.until_it_ends(run) == "finished:completed", federation.logs()
    assert run.result["registration"]["sha256"] == signed.digest
    for agency in federation.agencies.values():
        lines = [
            line.facts for line in journal.read(agency.folder) if line.facts.get("run_id") == run.folder.name
        ]
        assert {facts["registration"] for facts in lines if "experiment" in facts} == {signed.digest}


def test_a_statistic_is_taken(federation: Federation, finished: Run) -> None:
    words = ["stats", "age", "--epsilon", "2", "--superlink", str(federation.host.folder), *SETTINGS]
    done = federation.host.fedrisk(*words, "min_agencies=3", cwd=federation.root)
    assert done.returncode == 0, done.stderr
    path = Path(re.search(r"result +(\S+stats.json)", done.stdout)[1])  # type: ignore[index]
    federation.wait(path.exists, 120, "the statistic")
    found = json.loads(path.read_text())
    assert {facts["status"] for facts in found["agencies"].values()} == {"counted"}
    assert found["people"]["value"] == pytest.approx(900, abs=60)
    assert CANARY not in json.dumps(found)


def test_a_map_is_drawn_behind_masks(federation: Federation, finished: Run) -> None:
    """One charge in each ledger, of noise that all share; the coordinator has the sum alone, and it is near the truth."""
    before = {name: agency.charges() for name, agency in federation.agencies.items()}
    workload = federation.root / "workload.yaml"
    workload.write_text("name: masked\nqueries:\n- crosstab: [known, sex]\n")
    words = ["map", "--superlink", str(federation.host.folder), *SETTINGS, "min_agencies=3", "map=own"]
    words += [f"map.workload={workload}", "map.epsilon=2", "privacy=shared", "privacy.dropouts=0"]
    done = federation.host.fedrisk(*words, cwd=federation.root)
    assert done.returncode == 0, done.stderr
    path = Path(re.search(r"result +(\S+map.json)", done.stdout)[1])  # type: ignore[index]
    federation.wait(path.exists, 120, "the map")
    found = json.loads(path.read_text())
    assert {facts["status"] for facts in found["agencies"].values()} == {"counted"}
    assert found["queries"][0]["agencies"] == {}
    assert found["people"]["value"] == pytest.approx(900, abs=20)
    assert (path.parent / "map.html").exists()
    for name, agency in federation.agencies.items():
        (new,) = agency.charges()[len(before[name]) :]
        assert isinstance(new[1], SharedRelease)
        assert new[1].to_dict() | {"split_id": ""} == found["agencies"][name]["releases"][0]
    assert CANARY not in path.read_text() + (path.parent / "map.html").read_text()


def test_a_deployed_model_is_measured_again(federation: Federation, finished: Run) -> None:
    """One more table in each ledger, and nothing that trains; the numbers are those of the run within the noise."""
    before = {name: agency.charges() for name, agency in federation.agencies.items()}
    words = [
        "retest",
        str(finished.folder),
        "--superlink",
        str(federation.host.folder),
        "--threshold",
        "AUC below 0.2",
    ]
    done = federation.host.fedrisk(*words, cwd=federation.root)
    assert done.returncode == 0, done.stderr
    path = Path(re.search(r"result +(\S+retest.json)", done.stdout)[1])  # type: ignore[index]
    federation.wait(path.exists, 120, "the retest")
    found = json.loads(path.read_text())
    assert found["retest_of"] == finished.folder.name
    assert {facts["status"] for facts in found["agencies"].values()} == {"counted"}
    then, now = (each["final"]["metrics"]["overall"]["people"] for each in (finished.result, found))
    assert now["value"] == pytest.approx(then["value"], abs=(now["high"] - now["low"]))
    assert found["thresholds"][0]["verdict"] in ("not due", "cannot be told")
    for name, agency in federation.agencies.items():
        (new,) = agency.charges()[len(before[name]) :]
        assert (new[1].kind, new[1].part) == ("evaluate", "test")
        ordered = [line.facts for line in journal.read(agency.folder) if line.facts.get("retest_of")]
        assert {facts["retest_of"] for facts in ordered} == {finished.folder.name}


def test_a_node_keeps_its_secrets_to_itself(federation: Federation, finished: Run) -> None:
    """By mode; and each deals its people with a secret of its own."""
    for agency in federation.agencies.values():
        files = [agency.folder / f"{name}.key" for name in ("node", "split", "signing")]
        files += list((agency.folder / "draws").iterdir())
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    splits = {(agency.folder / "split.key").read_bytes() for agency in federation.agencies.values()}
    assert len(splits) == len(NAMES)


def test_the_second_node_on_a_folder_refuses(federation: Federation) -> None:
    agency = federation.agencies["north"]
    second = agency.command("start", str(agency.folder))
    assert second.returncode == 1
    assert second.stderr.startswith("fedrisk-node: a node is at work in")
    assert second.stderr.count("\n") == 1
    assert agency.process is not None
    assert agency.process.poll() is None


def test_nothing_of_a_record_is_outside_the_agencies(federation: Federation, finished: Run) -> None:
    """Coordinator, homes, what nodes printed; inside an agency only its own table has it."""
    assert finished.folder.is_dir()
    holders = [
        path.relative_to(federation.root).as_posix()
        for path in federation.root.rglob("*")
        if path.is_file() and not path.is_symlink() and CANARY.encode() in path.read_bytes()
    ]
    assert sorted(holders) == [f"nodes/{name}/people.csv" for name in sorted(NAMES)]


@pytest.mark.parametrize("seconds", [-400, 60], ids=["slow", "fast"])
def test_a_wrong_clock_is_one_sentence_and_a_right_one_connects(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    """Flower takes a signature that is up to 5 s early and 305 s late, and says no more than 401."""
    make_node_key(tmp_path)
    federation.host.enrol(f"clock-{abs(seconds)}", tmp_path / "node.pub")
    link = Link(federation.host.address, node_key(tmp_path), certificate=federation.host.ca, insecure=False)
    now = node_auth_http_interceptor.now
    with link.connected():
        assert link.pull() is None
    wrong = timedelta(seconds=seconds)
    monkeypatch.setattr(node_auth_http_interceptor, "now", lambda: now() + wrong)
    with pytest.raises(LinkError, match="this machine's clock is wrong") as refused, link.connected():
        pass
    assert not refused.value.is_open
    link.close()


def test_a_stranger_with_the_certificate_and_a_key_of_his_own_is_not_let_in(
    federation: Federation, tmp_path: Path
) -> None:
    make_node_key(tmp_path)
    link = Link(federation.host.address, node_key(tmp_path), certificate=federation.host.ca, insecure=False)
    with pytest.raises(LinkError, match="its key is not enrolled there"), link.connected():
        pass
    link.close()


def test_another_ca_is_one_sentence(federation: Federation, tmp_path: Path) -> None:
    make_node_key(tmp_path)
    system = Link(federation.host.address, node_key(tmp_path), certificate=None, insecure=False)
    with pytest.raises(LinkError, match="shows a certificate that does not check"), system.connected():
        pass
    system.close()


def test_a_node_stops_after_its_order_and_its_journal_and_ledger_hold(
    federation: Federation, finished: Run
) -> None:
    """The last test of the module: it ends the nodes."""
    assert finished.folder.is_dir()
    for agency in federation.agencies.values():
        assert agency.stop() == 0
        for command in ("ledger", "log"):
            done = agency.command(command, str(agency.folder), "--verify")
            assert done.returncode == 0, done.stderr
        kinds = [
            line["kind"] for line in json.loads(agency.command("log", str(agency.folder), "--json").stdout)
        ]
        assert (kinds[0], kinds[-1]) == ("started", "stopped")
        assert kinds.count("released") == 5 + 4 + 3 + 1 + 1 + 1, (
            "a run, a masked and a registered one, a statistic, a map, a retest"
        )
