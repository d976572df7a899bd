"""What reaches MLflow: everything that may be published, nothing else, and no failure reaches the run."""

import base64
import json
import math
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from demand_folders import made, put
from fake_result import SECRET, fake_result

from federation.server import tracking
from federation.server.archive import address, charts, process
from federation.server.archive.demand import header_of
from federation.server.archive.names import published_metrics, user_metrics
from federation.server.archive.texts import environment, flat_params, neutral, published
from federation.server.archive.writer import Writer
from federation.server.tracking import MlflowTracker, NoTracker, TrackerError, open_tracker

# MLflow calls SQLAlchemy in ways that SQLAlchemy has deprecated; nothing here can change that.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

RESULT = fake_result()
HEADER = {
    "run_id": RESULT["run_id"],
    "purpose": RESULT["purpose"],
    "code_sha256": RESULT["code_sha256"],
    "config": {
        "rounds": 20,
        "privacy": {"noise_multiplier": 1.9},
        "data": "/home/alice/tables",
        "note": "x" * 7000,
    },
    "contract": {"name": "early_help", "version": 1},
    "plan": {"rounds": 20},
    "agencies": {name: {"kind": a["kind"], "weight": a["weight"]} for name, a in RESULT["agencies"].items()},
}


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's empty database; making it takes seconds, so the tests copy it."""
    folder = tmp_path_factory.mktemp("store")
    Writer(f"sqlite:///{folder / 'mlflow.db'}", "unused").connect()
    return folder / "mlflow.db"


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(empty_store, tmp_path / "mlflow.db"))


def client(store: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{store}")


def runs_of(store: Path, experiment: str = "early-help") -> dict[str, Any]:
    """MLflow runs by name."""
    mlflow = client(store)
    found = mlflow.get_experiment_by_name(experiment)
    return {run.info.run_name: run for run in mlflow.search_runs([found.experiment_id], max_results=100)}


def follow(writer: Any, folder: Path, result: Mapping[str, Any] = RESULT) -> None:
    """A whole run, told to a Writer as the writer process would."""
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "report.html").write_text("<!doctype html><title>report</title>")
    if not (folder / "evidence.json").exists():
        (folder / "evidence.json").write_text("{}")
    writer.start(HEADER)
    checkpoints = {record["round"]: record for record in result["checkpoints"]}
    for at, record in enumerate(result["rounds"]):
        writer.round(record, 1000 + at)
        if record["round"] in checkpoints:
            writer.checkpoint(checkpoints[record["round"]], 1000 + at)
    writer.finish(result, folder, 3000)


def written(store: Path, folder: Path, state: Path | None = None) -> Writer:
    return Writer(f"sqlite:///{store}", "early-help", artifacts=(folder / "files").as_uri(), state=state)


@pytest.fixture(scope="module")
def finished(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which RESULT was tracked from start to end; its folder has the artifacts too."""
    folder = tmp_path_factory.mktemp("finished")
    store = Path(shutil.copy(empty_store, folder / "mlflow.db"))
    follow(written(store, folder), folder)
    return store


# ---- what is in MLflow equals what result.json says ----


def expected(prefix: str, table: Mapping[str, Any]) -> dict[str, float]:
    """The names and values that `table` must have in MLflow, worked out anew."""
    out = {}
    for name, e in table.items():
        if not e["publishable"]:
            out[f"{prefix}/{name}_suppressed"] = 1.0
            continue
        out |= {
            f"{prefix}/{name}": e["value"],
            f"{prefix}/{name}_low": e["low"],
            f"{prefix}/{name}_high": e["high"],
        }
    return out


def expected_of(metrics: Mapping[str, Any], prefix: str) -> dict[str, float]:
    # "harbour children's services" has an apostrophe, but it refused and has no metrics
    out = expected(f"{prefix}overall", metrics["overall"])
    out |= expected(f"{prefix}overall", {"worst_gap": metrics["worst_gap"]})
    for name, table in metrics["agencies"].items():
        out |= expected(f"{prefix}agencies/{name}", table)
    for attribute, levels in metrics["groups"].items():
        for level, table in levels.items():
            out |= expected(f"{prefix}groups/{attribute}/{level}", table)
    for attribute, table in metrics["gaps"].items():
        out |= expected(f"{prefix}gaps/{attribute}", table)
    return out | {f"{prefix}overall/cutoff": metrics["cutoff"]}


def test_final_metrics_are_the_published_ones_of_result_json_and_no_others(finished: Path) -> None:
    logged = runs_of(finished)[RESULT["run_id"]].data.metrics
    test = expected_of(RESULT["final"]["metrics"], "test/")
    assert {k: v for k, v in logged.items() if k.startswith("test/")} == test
    tune = expected_of(RESULT["checkpoints"][-1]["metrics"], "")
    other = {k: v for k, v in logged.items() if not k.startswith(("test/", "privacy/", "time/", "rounds/"))}
    assert other == tune | {k: other[k] for k in other.keys() - tune.keys()}
    assert all(
        k.endswith("_suppressed") or k in tune for k in other
    )  # an earlier checkpoint may have suppressed more


def test_every_checkpoint_and_round_is_a_step(finished: Path) -> None:
    mlflow, run = client(finished), runs_of(finished)[RESULT["run_id"]].info.run_id
    for name in ("auc", "brier"):
        points = [(m.step, m.value) for m in mlflow.get_metric_history(run, f"overall/{name}")]
        assert points == [(c["round"], c["metrics"]["overall"][name]["value"]) for c in RESULT["checkpoints"]]
    seconds = [(m.step, m.value) for m in mlflow.get_metric_history(run, "time/round_seconds")]
    assert seconds == [(r["round"], r["seconds"]) for r in RESULT["rounds"]]
    late = [(m.step, m.value) for m in mlflow.get_metric_history(run, "rounds/late")]
    assert late == [(r["round"], len(r["late"])) for r in RESULT["rounds"]]


def test_each_agency_has_a_child_run_with_its_own_numbers(finished: Path) -> None:
    runs = runs_of(finished)
    parent = runs[RESULT["run_id"]].info.run_id
    for name, facts in RESULT["agencies"].items():
        run = runs[name]
        assert run.data.tags["mlflow.parentRunId"] == parent
        assert run.data.tags["fedrisk.status"] == facts["status"]
        assert run.info.status == ("FINISHED" if facts["status"] == "trained" else "FAILED")
        assert run.data.metrics["rounds/trained"] == facts["rounds"]
        spent = {k: run.data.metrics[f"privacy/epsilon_{k}"] for k in ("train", "evaluate", "total")}
        assert spent == facts["epsilon"]
        table = RESULT["final"]["metrics"]["agencies"].get(name, {})
        own = {k: v for k, v in run.data.metrics.items() if k.startswith("test/")}
        assert own == expected("test/overall", table)
    assert len(runs) == 1 + len(RESULT["agencies"])


def test_config_and_evidence_are_artifacts(finished: Path) -> None:
    mlflow, run = client(finished), runs_of(finished)[RESULT["run_id"]]
    names = {file.path for file in mlflow.list_artifacts(run.info.run_id)}
    assert names == {
        "config.json",
        "contract.json",
        "plan.json",
        "environment.json",
        "result.json",
        "report.html",
        "evidence.json",
    }
    at = finished.parent / "files" / run.info.run_id / "artifacts"
    assert json.loads((at / "contract.json").read_text()) == HEADER["contract"]
    assert json.loads((at / "environment.json").read_text())["code_sha256"] == RESULT["code_sha256"]
    assert run.data.params["privacy.noise_multiplier"] == "1.9"
    assert run.data.params["note"].startswith("in config.json, SHA-256 ")
    assert json.loads((at / "config.json").read_text())["note"] == "x" * 7000


def test_result_json_is_archived_byte_for_byte_when_it_holds_nothing_suppressed(
    store: Path, tmp_path: Path
) -> None:
    follow(written(store, tmp_path), tmp_path, published(RESULT))
    run = runs_of(store)[RESULT["run_id"]].info.run_id
    archived = tmp_path / "files" / run / "artifacts" / "result.json"
    assert archived.read_bytes() == (tmp_path / "result.json").read_bytes()


def test_cards_are_archived_where_they_are_and_hold_no_suppressed_number(store: Path, tmp_path: Path) -> None:
    named = {
        "evidence": "evidence.json",
        "model_card": "model-card.json",
        "atrs": "atrs.json",
        "report": "../report.html",
    }
    (tmp_path / "evidence.json").write_text(json.dumps(RESULT))
    (tmp_path / "model-card.json").write_text('{"model": "x",  "bytes": "kept"}')
    (tmp_path / "gates.json").write_text("{}")
    (tmp_path.parent / "report.html").write_text("outside of the run's folder")
    follow(written(store, tmp_path), tmp_path, RESULT | {"files": named})
    run = runs_of(store)[RESULT["run_id"]].info.run_id
    at = tmp_path / "files" / run / "artifacts"
    names = {path.name for path in at.iterdir()}
    assert names >= {"result.json", "evidence.json", "model-card.json", "gates.json"}
    assert names.isdisjoint({"atrs.json", "report.html"})
    assert json.loads((at / "evidence.json").read_text()) == published(RESULT)
    assert (at / "model-card.json").read_bytes() == (tmp_path / "model-card.json").read_bytes()


def test_a_large_run_is_a_few_requests(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch per run and checkpoint, however many rounds and groups there are; then one with the facts."""
    writer = written(store, tmp_path)
    writer.connect()
    batches: list[str] = []
    log_batch = writer._client.log_batch
    monkeypatch.setattr(
        writer._client, "log_batch", lambda run, **what: (batches.append(run), log_batch(run, **what))
    )
    follow(writer, tmp_path)
    runs = 1 + len(RESULT["agencies"])
    assert len(batches) <= 1 + runs * (len(RESULT["checkpoints"]) + 2)


# ---- the saved charts ----


def unpacked(value: str) -> dict[str, Any]:
    """What MLflow's page reads from the tag: savedViewEnvelope.ts, then StringUtils.ts (`deflate;`, base64, zlib)."""
    envelope = json.loads(value)
    assert isinstance(envelope["name"], str)
    assert isinstance(envelope["createdAt"], int)
    kind, _, packed = envelope["state"].partition(";")
    assert kind == "deflate"
    state: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed, validate=True)))
    return state


def test_the_experiment_has_a_view_whose_charts_are_of_metrics_that_are_there(finished: Path) -> None:
    mlflow, runs = client(finished), runs_of(finished)
    experiment = mlflow.get_experiment_by_name("early-help")
    value = experiment.tags[charts.TAG]
    assert len(value) < charts.LONGEST
    state = unpacked(value)
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == sections
    assert len({chart["uuid"] for chart in state["compareRunCharts"]}) == len(state["compareRunCharts"])
    there = set(runs[RESULT["run_id"]].data.metrics)
    drawn = {
        key
        for chart in state["compareRunCharts"]
        for key in chart.get("selectedMetricKeys", [chart["metricKey"]])
    }
    assert drawn - there == {"test/overall/net_benefit_gain"}, "which the made-up result lacks"
    found = mlflow.search_runs([experiment.experiment_id], state["searchFilter"])
    assert [run.info.run_name for run in found] == [RESULT["run_id"]]


def test_what_people_made_of_the_view_stays(store: Path, tmp_path: Path) -> None:
    writer = written(store, tmp_path)
    writer.connect()
    mlflow = client(store)
    experiment = mlflow.get_experiment_by_name("early-help").experiment_id
    mlflow.set_experiment_tag(experiment, charts.TAG, "mine")
    assert writer.page == charts.page(experiment)
    written(store, tmp_path).connect()
    assert mlflow.get_experiment(experiment).tags[charts.TAG] == "mine"


# ---- nothing else is ----


def everything(store: Path) -> str:
    """All text of the database (numbers included) and of the artifacts."""
    base = sqlite3.connect(store)
    texts = list(base.iterdump())
    texts += [str(row) for row in base.execute("SELECT * FROM metrics").fetchall()]
    base.close()
    files = [path for path in (store.parent / "files").rglob("*") if path.is_file()]
    return "\n".join(texts + [path.read_text() for path in files])


def test_no_suppressed_value_is_anywhere_in_mlflow(finished: Path) -> None:
    stored = everything(finished)
    assert "_suppressed" in stored
    assert not [value for value in SECRET if str(value)[:9] in stored]


def test_no_user_host_or_source_path_is_in_mlflow(finished: Path) -> None:
    stored = everything(finished)
    for line in stored.splitlines():
        if "artifact" not in line and "file://" not in line:  # MLflow must know where its files are
            assert str(finished.parent) not in line
    assert "/home/alice" not in stored
    for run in runs_of(finished).values():
        assert run.info.user_id == run.data.tags["mlflow.user"] == "fedrisk"
        assert run.data.tags["mlflow.source.name"] == "fedrisk"
        assert "mlflow.source.git.commit" not in run.data.tags
    assert socket.gethostname() not in json.dumps(environment())


def test_nan_and_infinity_are_never_logged() -> None:
    table = {
        "auc": {"value": float("nan"), "low": float("-inf"), "high": 0.9, "publishable": True},
        "brier": {"value": None, "low": None, "high": None, "publishable": True},
        "ece": {"value": 0.1, "low": None, "high": float("inf"), "publishable": True},
        "tpr": {"value": 0.7, "low": 0.6, "high": 0.8},
    }
    assert published_metrics({"overall": table}) == {
        "overall/auc_high": 0.9,
        "overall/ece": 0.1,
        "overall/tpr_suppressed": 1.0,
    }


def estimate(value: float, *, publishable: bool = True) -> dict[str, Any]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "publishable": publishable}


def test_of_the_evidence_only_what_is_listed_becomes_a_metric() -> None:
    """Tables that MLflow has no use for, and whatever a later version adds, stay in result.json."""
    table = {"tpr": estimate(0.7), "fnr": estimate(0.3), "unheard_of": estimate(0.5)}
    gaps = {"equal_opportunity": estimate(0.2), "unheard_of": estimate(0.5)}
    metrics = {
        "overall": table,
        "gaps": {"sex": gaps},
        "intersections": {"sex=female & race=black": table},
        "capacity": {
            "share": 0.1,
            "cutoff": 0.62,
            "chosen_on": "tune",
            "overall": table,
            "groups": {"sex": {"f": table}},
        },
        "agency_gaps": {"sex": {"north": gaps}},
        "between_agencies": {"tpr": estimate(0.4, publishable=False), "unheard_of": estimate(0.5)},
        "constant": {"nobody": table},
        "conflicts": {"sex": {"base_rate_gap": estimate(0.1), "conflict": True}},
        "analysis": {"label": "analysis only"},
        "unheard_of": estimate(0.5),
    }
    found = published_metrics(metrics)
    values = {name for name in found if not name.endswith(("_low", "_high"))}
    assert values == {
        "overall/tpr",
        "overall/fnr",
        "gaps/sex/equal_opportunity",
        "capacity/tpr",
        "capacity/fnr",
        "capacity/share",
        "capacity/cutoff",
        "between_agencies/tpr_suppressed",
    }
    assert found["capacity/cutoff"] == 0.62
    assert published_metrics({**metrics, "capacity": None, "between_agencies": {}}).keys() <= found.keys()


def test_two_numbers_about_users_of_many_services_are_metrics() -> None:
    assert user_metrics(None) == {}
    users = {"sigma": 2.0, "by_intensity": {"high": {"tpr": estimate(0.5)}}, "found_beyond": estimate(0.25)}
    users["most_intensive_share_of_flagged"] = estimate(0.5, publishable=False)
    assert user_metrics(users) == {
        "test/users/most_intensive_share_of_flagged_suppressed": 1.0,
        "test/users/found_beyond": 0.25,
        "test/users/found_beyond_low": 0.15,
        "test/users/found_beyond_high": 0.35,
    }


def test_names_that_mlflow_would_reject_stay_apart() -> None:
    from mlflow.utils.validation import _validate_metric_name

    levels = [
        "<25",
        ">25",
        "25-44",
        "sex=female & race=black",
        "a/b",
        "..",
        ".",
        "",
        "é" * 300,
        "it's 50%",
        "[x](y)|,@",
    ]
    table = {"auc": {"value": 0.5, "low": 0.4, "high": 0.6, "publishable": True}}
    names = published_metrics({"groups": {"any/thing": dict.fromkeys(levels, table)}})
    assert len(names) == 3 * len(levels)
    for name in names:
        _validate_metric_name(name)
    assert any(name.endswith("/25-44/auc") for name in names)


def test_paths_addresses_and_passwords_keep_their_last_part() -> None:
    config = {
        "a": "/home/alice/x/agencies.yaml",
        "b": ["C:\\Users\\alice\\t.csv"],
        "c": "postgresql://u:pw@host/base",
    }
    config |= {"d": "outputs/tables", "e": "http://host", "f": 3, "g": "police: yes", "h": "~/x.csv"}
    assert neutral(config) == {
        "a": ".../agencies.yaml",
        "b": [".../t.csv"],
        "c": "postgresql://.../base",
        "d": "outputs/tables",
        "e": "http://...",
        "f": 3,
        "g": "police: yes",
        "h": ".../x.csv",
    }


def test_params_are_flat_and_never_cut() -> None:
    assert flat_params({"a": {"b": 1, "c": {}}, "d": [1, 2], "e": None}) == {
        "a.b": "1",
        "a.c": "{}",
        "d": "[1, 2]",
        "e": "null",
    }
    assert all(len(value) < 200 for value in flat_params({"long": "y" * 6001}).values())


# ---- a run that stops, fails, or goes on ----


def test_a_resumed_run_continues_the_same_mlflow_runs(store: Path, tmp_path: Path) -> None:
    state = tmp_path / "tracking.json"
    first = written(store, tmp_path, state)
    first.start(HEADER)
    for record in RESULT["rounds"][:6]:
        first.round(record, 1000)
    first.checkpoint(RESULT["checkpoints"][0], 1000)  # round 4: all six rounds are written with it
    first.round(RESULT["rounds"][6], 1000)  # round 7 is known to nobody when the process is killed
    first.fail("KeyboardInterrupt")
    assert {run.info.status for run in runs_of(store).values()} == {"KILLED"}

    second = written(store, tmp_path, state)
    second.start(HEADER)
    for record in RESULT["rounds"][5:]:  # the run itself repeats from round 6
        second.round(record, 2000)
    second.finish(RESULT, tmp_path, 3000)
    run = runs_of(store)[RESULT["run_id"]]
    assert len(runs_of(store)) == 1 + len(RESULT["agencies"])
    assert run.info.status == "FINISHED"
    history = client(store).get_metric_history(run.info.run_id, "time/round_seconds")
    assert [(m.step, m.value) for m in history] == [(r["round"], r["seconds"]) for r in RESULT["rounds"]]
    steps = [m.step for m in client(store).get_metric_history(run.info.run_id, "overall/auc")]
    assert steps == [record["round"] for record in RESULT["checkpoints"]]


def test_state_of_another_store_starts_new_runs(store: Path, tmp_path: Path) -> None:
    state = tmp_path / "tracking.json"
    state.write_text(json.dumps({"": "0" * 32}))
    written(store, tmp_path, state).start(HEADER)
    assert RESULT["run_id"] in runs_of(store)


def test_a_failure_between_is_made_good_at_the_next_checkpoint(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = written(store, tmp_path)
    writer.start(HEADER)
    writer.round(RESULT["rounds"][0], 1000)
    with monkeypatch.context() as broken:
        broken.setattr(
            writer._client, "log_batch", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full"))
        )
        with pytest.raises(OSError, match="disk full"):
            writer.checkpoint(RESULT["checkpoints"][0], 1000)
    writer.checkpoint(RESULT["checkpoints"][1], 1100)
    run = runs_of(store)[RESULT["run_id"]].info.run_id
    assert [m.step for m in client(store).get_metric_history(run, "overall/auc")] == [4, 8]
    assert [m.step for m in client(store).get_metric_history(run, "time/round_seconds")] == [1]


def test_partial_results_are_tracked(store: Path, tmp_path: Path) -> None:
    bare = {
        "run_id": RESULT["run_id"],
        "status": "interrupted",
        "final": None,
        "checkpoints": None,
        "rounds": [],
    }
    writer = written(store, tmp_path)
    writer.start({"run_id": RESULT["run_id"]})
    writer.checkpoint({"round": 1, "part": "tune", "epsilon_busiest": None, "metrics": None}, 1000)
    writer.finish(bare, tmp_path, 2000)
    assert runs_of(store)[RESULT["run_id"]].info.status == "KILLED"


# ---- the writer process ----


def test_a_whole_run_through_the_writer_process(store: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    tracker = open_tracker(
        f"sqlite:///{store}", "early-help", tmp_path, artifacts=tmp_path / "files", warn=heard.append
    )
    tracker.start({key: value for key, value in HEADER.items() if key != "run_id"})
    for record in RESULT["rounds"]:
        tracker.round(record)
    tracker.checkpoint(RESULT["checkpoints"][0])
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    tracker.finish(RESULT, tmp_path)
    assert heard == []
    run = runs_of(store)[tmp_path.name]  # the run's folder is named after it
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test/overall/auc"] == RESULT["final"]["metrics"]["overall"]["auc"]["value"]
    assert json.loads((tmp_path / "tracking.json").read_text())[""] == run.info.run_id


def test_the_run_process_never_imports_mlflow() -> None:
    code = "import sys, federation.server.tracking; assert 'mlflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(tracking.__file__).parents[2])


def test_a_writer_that_dies_is_mentioned_once_and_at_the_end(store: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    tracker = MlflowTracker(f"sqlite:///{store}", "early-help", tmp_path, warn=heard.append)
    tracker._writer.kill()
    tracker.start(HEADER)
    until = time.monotonic() + 20
    while not heard and time.monotonic() < until:
        tracker.round(RESULT["rounds"][0])
        time.sleep(0.02)
    tracker.checkpoint(RESULT["checkpoints"][0])
    assert len(heard) == 1
    tracker.finish(RESULT, tmp_path)
    assert len(heard) == 2
    assert "result.json keeps everything" in heard[0]
    assert str(tmp_path / "result.json") in heard[1]


def test_a_writer_that_hangs_does_not_hold_the_run(store: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    tracker = MlflowTracker(
        f"sqlite:///{store}", "early-help", tmp_path, warn=heard.append, finish_seconds=0.5
    )
    os.kill(tracker._writer.pid, signal.SIGSTOP)
    started = time.monotonic()
    for _ in range(50):
        tracker.checkpoint(RESULT["checkpoints"][0])  # far more than a pipe holds
    tracker.finish(RESULT, tmp_path)
    assert time.monotonic() - started < 10
    assert "no answer within" in heard[-1]


def test_when_the_run_is_killed_its_mlflow_run_says_so(store: Path, tmp_path: Path) -> None:
    """The writer sees its input end without a last word."""
    opening = {
        "uri": f"sqlite:///{store}",
        "experiment": "early-help",
        "state": None,
        "artifacts": tmp_path.as_uri(),
    }
    messages = [{"do": "open", **opening}, {"do": "start", "header": HEADER}]
    messages.append({"do": "round", "record": RESULT["rounds"][0], "at": 1000})
    answers: list[str | None] = []
    process.serve(
        (json.dumps(message).encode() for message in messages), lambda trouble, page: answers.append(trouble)
    )
    assert answers == [None, None, None]
    run = runs_of(store)[RESULT["run_id"]]
    assert run.info.status == "KILLED"
    assert run.data.metrics["time/round_seconds"] == RESULT["rounds"][0]["seconds"]


def test_none_tracks_nothing(tmp_path: Path) -> None:
    for uri in (None, "none", ""):
        tracker = open_tracker(uri, "early-help", tmp_path)
        assert isinstance(tracker, NoTracker)
        tracker.start({})
        tracker.finish({}, tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---- addresses that cannot be used ----


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """A web server that answers everything with one status and text."""
    status, text = request.param

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Answer) as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()
        thread.join()


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_an_unreachable_server_is_one_sentence_within_seconds(scheme: str, closed_port: int) -> None:
    started = time.monotonic()
    with pytest.raises(TrackerError, match=r"tracking.uri: no .* answers at .* or use tracking=none$"):
        open_tracker(f"{scheme}://127.0.0.1:{closed_port}/base", "early-help")
    assert time.monotonic() - started < 6


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "CHECK_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(TrackerError, match="no MLflow"):
        open_tracker(f"http://127.0.0.1:{silent.getsockname()[1]}", "early-help")


@pytest.mark.parametrize(
    ("server", "sentence"),
    [
        ((401, ""), "MLFLOW_TRACKING_PASSWORD"),
        ((404, ""), "status 404"),
        ((200, "<html>"), "no MLflow server answers"),
    ],
    indirect=["server"],
)
def test_a_server_that_is_not_ours_to_use(server: str, sentence: str) -> None:
    with pytest.raises(TrackerError, match=sentence):
        open_tracker(server, "early-help")


def test_sqlite_files_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    with pytest.raises(TrackerError, match="cannot be written"):
        open_tracker(f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}", "early-help")
    with pytest.raises(TrackerError, match="cannot be written"):
        open_tracker(f"sqlite:///{tmp_path / 'file'}", "early-help")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE ledger (x)")
    other.close()
    with pytest.raises(TrackerError, match="not one of MLflow's"):
        open_tracker(f"sqlite:///{tmp_path / 'other.db'}", "early-help")
    assert (tmp_path / "file").read_text() == "a file, not a folder"


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "outputs/mlruns", "./mlruns"])
def test_plain_folders_are_refused_with_what_to_use(uri: str) -> None:
    with pytest.raises(TrackerError, match=r"use sqlite:///outputs/mlflow\.db"):
        open_tracker(uri, "early-help")


@pytest.mark.parametrize(
    ("uri", "instead"),
    [
        ("https://alice:hidden@mlflow.example", "MLFLOW_TRACKING_PASSWORD"),
        ("http://alice@127.0.0.1:5000", "MLFLOW_TRACKING_USERNAME"),
        ("http://:hidden@127.0.0.1:5000", "MLFLOW_TRACKING_PASSWORD"),
        ("postgresql://alice:hidden@127.0.0.1/mlflow", "PGPASSWORD"),
        ("postgresql+psycopg://alice@127.0.0.1/mlflow?password=hidden", "PGPASSWORD"),
        ("mysql://alice:hidden@127.0.0.1/mlflow", "MLflow server in front"),
    ],
)
def test_an_address_with_a_password_is_refused_and_not_repeated(uri: str, instead: str) -> None:
    with pytest.raises(TrackerError, match=instead) as refused:
        open_tracker(uri, "early-help")
    assert "alice" not in str(refused.value)
    assert "hidden" not in str(refused.value)
    with pytest.raises(TrackerError, match=r"^--uri must hold no"):
        address.check_address(uri, "--uri")


@pytest.mark.parametrize("uri", ["ftp://host/x", "sqlite://", "sqlite:///:memory:"])
def test_other_addresses_are_refused(uri: str) -> None:
    with pytest.raises(TrackerError, match=r"tracking\.uri must"):
        open_tracker(uri, "early-help")


def test_no_metric_is_nan_in_the_example() -> None:
    """The example holds what its tests need: numbers, and suppressed ones."""
    values = published_metrics(RESULT["final"]["metrics"])
    assert all(math.isfinite(value) for value in values.values())
    assert sum(name.endswith("_suppressed") for name in values) > 20


# ---- a map, a cohort and early signs: the same runs, with other numbers ----


@pytest.fixture(scope="module")
def tracked(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which one of each was tracked; files beside it."""
    at = tmp_path_factory.mktemp("tracked")
    shutil.copy(empty_store, at / "mlflow.db")
    for found in made().values():
        folder = at / found["kind"]
        put(found, folder)
        writer = Writer(f"sqlite:///{at / 'mlflow.db'}", "early-help", artifacts=(at / "files").as_uri())
        writer.start(header_of(found, folder))
        writer.finish(found, folder, 3000)
    return at


def demand_runs(store: Path) -> dict[str, Any]:
    """The runs of maps, cohorts and signs by kind."""
    mlflow = client(store / "mlflow.db")
    experiment = mlflow.get_experiment_by_name("early-help").experiment_id
    found = mlflow.search_runs([experiment], "tags.`fedrisk.run_id` LIKE '%'")
    return {run.data.tags["fedrisk.kind"]: run for run in found}


def test_each_is_a_finished_run_with_its_params_metrics_and_files(tracked: Path) -> None:
    found, known = made(), demand_runs(tracked)
    assert set(known) == set(found)
    assert {run.info.status for run in known.values()} == {"FINISHED"}
    drawn = known["map"].data
    assert drawn.params["kind"] == "map"
    assert drawn.params["privacy.epsilon"] == "0.5"
    assert drawn.params["privacy.mechanism"] == "local"
    assert drawn.params["workload.name"] == "first_day"
    assert drawn.params["workload.numbers"] == "412"
    assert drawn.params["public_size.county police"] == "42000"
    cells = [
        cell
        for query in found["map"]["queries"]
        for part in (query["together"]["cells"], *query["agencies"].values())
        for cell in part
    ]
    told = sum(cell["publishable"] for cell in cells)
    assert 0 < told < len(cells)
    assert drawn.metrics["demand/told"] == told
    assert drawn.metrics["demand/share_told"] == told / len(cells)
    assert drawn.metrics["privacy/epsilon_at_2_agencies"] == 0.74
    assert drawn.metrics["demand/people"] == found["map"]["people"]["value"]
    shared = found["cohort"]["pairs"][0]["shared"]
    name = "cohort/county police_and_city housing/shared"
    assert [known["cohort"].data.metrics[name + end] for end in ("", "_low", "_high")] == [
        shared["value"],
        shared["low"],
        shared["high"],
    ]
    assert known["signs"].data.metrics["signs/leads"] == 1
    for kind, run in known.items():
        at = tracked / "files" / run.info.run_id / "artifacts"
        names = {path.relative_to(at).as_posix() for path in at.rglob("*") if path.is_file()}
        assert names >= {f"{kind}.json", f"{kind}.html", "config.json", "environment.json"}
        assert (at / f"{kind}.html").read_bytes() == (tracked / kind / f"{kind}.html").read_bytes()
        assert "series.json" not in names
        assert ("csv/01-people.csv" in names) == (kind == "map")


def test_each_agency_has_a_run_with_what_it_spent(tracked: Path) -> None:
    mlflow = client(tracked / "mlflow.db")
    experiment = mlflow.get_experiment_by_name("early-help").experiment_id
    parent = demand_runs(tracked)["map"].info.run_id
    below = mlflow.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent}'")
    facts = made()["map"]["agencies"]
    assert {run.info.run_name for run in below} == set(facts)
    for run in below:
        own = facts[run.info.run_name]
        assert run.data.metrics["privacy/epsilon_total"] == own["epsilon"]
        assert run.data.tags["fedrisk.status"] == own["status"]
        assert run.info.status == ("FINISHED" if own["status"] == "counted" else "FAILED")
        shown = own["people"]["value"] if own["people"]["publishable"] else None
        assert run.data.metrics.get("demand/people") == shown


def test_no_number_that_may_not_be_published_is_in_a_file_of_mlflow(tracked: Path) -> None:
    files = [path for path in (tracked / "files").rglob("*") if path.is_file()]
    assert len(files) > 20
    assert not [path for path in files if "7654321" in path.read_text().replace(",", "")]
