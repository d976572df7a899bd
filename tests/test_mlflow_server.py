"""A run in a real MLflow server on PostgreSQL, where nobody may do anything that was not granted: whole for its owner, closed for others."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from command import fedrisk, small_run
from conftest import write_agencies
from fake_result import fake_result
from mlflow_server import ADMIN, ADMINS_SECRET, MlflowServer, mlflow_server
from postgres import OWNERS_SECRET, Server, postgres

from federation.server.archive import charts
from federation.server.archive.names import published_metrics
from federation.server.registry import promote
from federation.server.tracking import MlflowTracker, TrackerError, open_tracker
from models.spec import ModelSpec

# the server alone takes half a minute to start on two cores
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

SCIENTIST = ("scientist", "the scientist's own")
STRANGER = ("stranger", "the stranger's own")
NAME = "early-help"
API = "/api/2.0/mlflow"


@dataclass(frozen=True)
class Archive:
    """The server, the run that the scientist made, and what MLflow calls it."""

    server: MlflowServer
    base: Server
    home: Path
    folder: Path
    run: str
    experiment: str

    @property
    def result(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.folder / "result.json").read_text())
        return value


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    """`fedrisk run` and a promotion by the scientist, whose name and password are in the environment alone."""
    home = tmp_path_factory.mktemp("archive")
    write_agencies(home, {"north": "police", "clinic": "health", "south": "police"})
    with postgres() as base, mlflow_server(base, home) as server, pytest.MonkeyPatch.context() as known:
        for who in (SCIENTIST, STRANGER):
            server.add_user(*who)
        known.setenv("MLFLOW_TRACKING_USERNAME", SCIENTIST[0])
        known.setenv("MLFLOW_TRACKING_PASSWORD", SCIENTIST[1])
        done = fedrisk(*small_run(home, f"tracking.uri={server.uri}"))
        assert done.code == 0, done.err
        (folder,) = (home / "outputs").glob("small-*")
        run = json.loads((folder / "tracking.json").read_text())[""]
        info = server.ask(SCIENTIST, f"{API}/runs/get?run_id={run}")[1]["run"]["info"]
        assert f"charts  {server.uri}/{charts.page(info['experiment_id'])}" in done.out
        yield Archive(server, base, home, folder, run, info["experiment_id"])


@pytest.fixture(scope="module")
def version(archive: Archive) -> str:
    """The registry's version of the run's model, promoted by the scientist."""
    card = json.loads((archive.folder / "model" / "card.json").read_text())
    tags = {"panel.decision_sha256": "d" * 64, "fedrisk.weights_sha256": card["weights_sha256"]}
    spec, features = ModelSpec("logistic", ()), archive.result["model"]["features"]
    where = (archive.server.uri, NAME, archive.folder / "model", spec, features)
    promoted = promote(*where, archive.result["run_id"], "small", tags)
    assert promoted.run == archive.run
    return promoted.version


def test_a_run_is_whole_in_the_server(archive: Archive) -> None:
    status, said = archive.server.ask(SCIENTIST, f"{API}/runs/get?run_id={archive.run}")
    assert status == 200
    logged = {entry["key"]: entry["value"] for entry in said["run"]["data"]["metrics"]}
    final = archive.result["final"]["metrics"]
    assert {name: value for name, value in logged.items() if name.startswith("test/")} == {
        f"test/{name}": pytest.approx(value) for name, value in published_metrics(final).items()
    }
    params = {entry["key"]: entry["value"] for entry in said["run"]["data"]["params"]}
    assert params["rounds"] == "4"
    assert said["run"]["info"]["status"] == "FINISHED"
    history = archive.server.ask(
        SCIENTIST,
        f"{API}/metrics/get-history?run_id={archive.run}&metric_key={quote('privacy/epsilon_busiest')}",
    )[1]
    assert sorted({int(point["step"]) for point in history["metrics"]}) == [2, 4]
    names = {entry["path"] for entry in files(archive)}
    assert {
        "config.json",
        "contract.json",
        "plan.json",
        "environment.json",
        "result.json",
        "report.html",
    } <= names
    report = archive.server.ask(SCIENTIST, f"/get-artifact?path=report.html&run_uuid={archive.run}")[1]
    assert report == (archive.folder / "report.html").read_bytes()


def files(archive: Archive) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = archive.server.ask(SCIENTIST, f"{API}/artifacts/list?run_id={archive.run}")[
        1
    ]["files"]
    return found


def test_it_is_all_in_postgresql(archive: Archive, version: str) -> None:
    def count(base: str, sql: str) -> int:
        where = {"host": "127.0.0.1", "port": archive.base.port, "user": "owner", "dbname": base}
        with psycopg.connect(**where, password=OWNERS_SECRET) as connection:
            (row,) = connection.execute(sql.encode()).fetchall()
        return int(row[0])

    assert count("mlflow", "SELECT count(*) FROM metrics") > 50
    assert count("mlflow", "SELECT count(*) FROM runs") == 4
    assert count("mlflow", "SELECT count(*) FROM registered_model_aliases") == 1
    assert count("users", "SELECT count(*) FROM users") >= 3


def test_the_chart_view_is_saved_for_the_experiment(archive: Archive) -> None:
    said = archive.server.ask(SCIENTIST, f"{API}/experiments/get?experiment_id={archive.experiment}")[1]
    tags = {entry["key"]: entry["value"] for entry in said["experiment"]["tags"]}
    assert json.loads(tags[charts.TAG])["name"] == "fedrisk: round by round"
    matched = {"experiment_ids": [archive.experiment], "filter": charts.FEDERATIONS}
    runs = archive.server.ask(SCIENTIST, f"{API}/runs/search", matched)[1]["runs"]
    assert [run["info"]["run_id"] for run in runs] == [archive.run], "its filter leaves the federations"


def test_the_alias_is_on_the_version_of_the_run(archive: Archive, version: str) -> None:
    said = archive.server.ask(SCIENTIST, f"{API}/registered-models/alias?name={NAME}&alias=champion")[1]
    assert said["model_version"]["version"] == version
    assert said["model_version"]["run_id"] == archive.run
    tags = {entry["key"]: entry["value"] for entry in said["model_version"]["tags"]}
    assert tags["panel.decision_sha256"] == "d" * 64


READS = {
    "experiment": API + "/experiments/get?experiment_id={experiment}",
    "experiment by name": API + "/experiments/get-by-name?experiment_name=small",
    "run": API + "/runs/get?run_id={run}",
    "history": API + "/metrics/get-history?run_id={run}&metric_key=test%2Foverall%2Fauc",
    "artifacts": API + "/artifacts/list?run_id={run}",
    "report": "/get-artifact?path=report.html&run_uuid={run}",
    "proxied file": "/api/2.0/mlflow-artifacts/artifacts/{experiment}/{run}/artifacts/result.json",
    "model": API + f"/registered-models/get?name={NAME}",
    "alias": API + f"/registered-models/alias?name={NAME}&alias=champion",
    "version": API + f"/model-versions/get?name={NAME}&version=1",
    "version's files": f"/model-versions/get-artifact?name={NAME}&version=1&path=MLmodel",
}


@pytest.mark.parametrize("what", READS)
def test_a_stranger_reads_nothing(archive: Archive, version: str, what: str) -> None:
    path = READS[what].format(experiment=archive.experiment, run=archive.run)
    assert archive.server.ask(SCIENTIST, path)[0] == 200, (
        "its owner reads it, so the refusal is no typing error"
    )
    assert archive.server.ask(STRANGER, path)[0] == 403
    assert archive.server.ask(None, path)[0] == 401
    assert archive.server.ask((STRANGER[0], SCIENTIST[1]), path)[0] == 401


def test_a_stranger_finds_and_changes_nothing(archive: Archive, version: str) -> None:
    ask = archive.server.ask
    assert ask(STRANGER, f"{API}/experiments/search?max_results=10") == (200, {})
    found = ask(STRANGER, f"{API}/runs/search", {"experiment_ids": [archive.experiment]})
    assert not (found[1].get("runs") if isinstance(found[1], dict) else None), found
    assert not ask(STRANGER, f"{API}/registered-models/search?max_results=10")[1].get("registered_models")
    changes = {
        "runs/set-tag": {"run_id": archive.run, "key": "x", "value": "y"},
        "runs/delete": {"run_id": archive.run},
        "experiments/set-experiment-tag": {
            "experiment_id": archive.experiment,
            "key": charts.TAG,
            "value": "",
        },
        "registered-models/alias": {"name": NAME, "alias": "champion", "version": version},
    }
    for path, body in changes.items():
        assert ask(STRANGER, f"{API}/{path}", body)[0] == 403, path


def test_who_was_granted_it_reads_and_changes_nothing(archive: Archive) -> None:
    """As docs/tracking.md grants it."""
    ask, reader = archive.server.ask, ("panel", "the panel's own word")
    archive.server.add_user(*reader)
    run = READS["run"].format(run=archive.run)
    assert ask(reader, run)[0] == 403
    grant = {
        "username": "panel",
        "resource_type": "experiment",
        "resource_id": archive.experiment,
        "permission": "READ",
    }
    status, said = ask((ADMIN, ADMINS_SECRET), "/api/3.0/mlflow/users/permissions/grant", grant)
    assert status == 200, said
    for what in ("experiment", "run", "history", "artifacts", "report"):
        path = READS[what].format(experiment=archive.experiment, run=archive.run)
        assert ask(reader, path)[0] == 200, what
    assert ask(reader, f"{API}/runs/set-tag", {"run_id": archive.run, "key": "x", "value": "y"})[0] == 403


def test_no_name_or_password_is_in_any_file_or_answer(archive: Archive, version: str) -> None:
    written = [
        path.read_bytes()
        for path in archive.home.rglob("*")
        if path.is_file() and path.name != "basic_auth.ini"
    ]
    assert len(written) > 20
    for secret in (SCIENTIST[1], ADMINS_SECRET, OWNERS_SECRET):
        assert not [content for content in written if secret.encode() in content]
    said = archive.server.ask(SCIENTIST, f"{API}/runs/get?run_id={archive.run}")[1]
    assert SCIENTIST[0] not in json.dumps(said), "the run names nobody"


def test_a_wrong_password_is_one_sentence_before_any_agency_is_asked(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "not the scientist's")
    before = sorted((archive.home / "outputs").iterdir())
    done = fedrisk(*small_run(archive.home, f"tracking.uri={archive.server.uri}"))
    assert done.code == 1
    (sentence,) = done.problems
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in sentence
    assert "not the scientist's" not in done.err
    assert sorted((archive.home / "outputs").iterdir()) == before


def test_another_persons_experiment_is_trouble_and_costs_no_run(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", STRANGER[0])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", STRANGER[1])
    heard: list[str] = []
    tracker = open_tracker(archive.server.uri, "small", tmp_path, warn=heard.append)
    tracker.start({"run_id": tmp_path.name})
    tracker.finish(archive.result, tmp_path)
    assert "Permission denied" in heard[-1]


def test_a_server_that_goes_away_costs_no_run_and_it_is_tracked_later(
    archive: Archive, tmp_path: Path
) -> None:
    """The last test of this file: it stops the server."""
    result, heard = fake_result(), list[str]()
    tracker = MlflowTracker(archive.server.uri, "gone", tmp_path, warn=heard.append)
    tracker.start({"run_id": result["run_id"]})
    tracker.checkpoint(result["checkpoints"][0])
    archive.server.stop()
    tracker.checkpoint(result["checkpoints"][1])
    tracker.finish(result, tmp_path)
    assert f"fedrisk track {tmp_path}" in heard[-1]
    with pytest.raises(TrackerError, match="no MLflow server answers"):
        open_tracker(archive.server.uri, "gone", tmp_path)
    folder = Path(shutil.copytree(archive.folder, tmp_path / archive.folder.name))
    done = fedrisk("track", str(folder))
    assert done.code == 1
    assert "no MLflow server answers" in done.problems[0]
    done = fedrisk("track", str(folder), "--uri", f"sqlite:///{tmp_path}/later.db")
    assert done.code == 0, done.err
    assert ADMIN not in done.out
