"""`fedrisk track`: a run that MLflow missed is there afterwards as if it had been tracked; and addresses keep no password."""

import json
from pathlib import Path

import pytest
from command import fedrisk, files_under, small_run
from mlflow import MlflowClient

from federation.server.archive.names import published_metrics

# MLflow calls SQLAlchemy in ways that SQLAlchemy has deprecated; nothing here can change that.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_a_finished_run_is_tracked_later_and_only_once(folder: Path) -> None:
    assert fedrisk(*small_run(folder)).code == 0
    (run,) = (folder / "outputs").glob("small-*")
    kept = files_under(run)
    result = json.loads((run / "result.json").read_text())
    result["code_sha256"] = "0" * 64  # the code has changed since
    (run / "result.json").write_text(json.dumps(result))
    uri = f"sqlite:///{folder}/mlflow.db"
    for _ in range(2):
        done = fedrisk("track", str(run), "--uri", uri)
        assert done.code == 0, done.err
        assert done.out.startswith(f"tracked  {run.name}; its experiment is #/experiments/1/")
    mlflow = MlflowClient(tracking_uri=uri)
    found = {each.info.run_name: each for each in mlflow.search_runs(["1"])}
    assert sorted(found) == ["clinic", "north", run.name, "south"]
    whole = found[run.name]
    assert whole.info.status == "FINISHED"
    assert whole.data.params["rounds"] == "4"
    assert whole.data.tags["fedrisk.code_sha256"] == "0" * 64
    final = {f"test/{name}": value for name, value in published_metrics(result["final"]["metrics"]).items()}
    assert {name: value for name, value in whole.data.metrics.items() if name.startswith("test/")} == final
    steps = [point.step for point in mlflow.get_metric_history(whole.info.run_id, "overall/cutoff")]
    assert steps == [record["round"] for record in result["checkpoints"]]
    names = {each.path for each in mlflow.list_artifacts(whole.info.run_id)}
    assert names >= {"config.json", "contract.json", "plan.json", "result.json", "report.html"}
    added = files_under(run).keys() - kept.keys()
    assert {path.name for path in added} == {"tracking.json", "tracking.log"}


def test_what_is_no_finished_run_is_a_sentence(tmp_path: Path) -> None:
    done = fedrisk("track", str(tmp_path), "--uri", f"sqlite:///{tmp_path}/mlflow.db")
    assert done.code == 1
    assert done.problems == [
        f"{tmp_path} is not a finished run (it has no experiment.json): name the folder of one"
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["run"], ["submit", "nowhere"], ["plan"]], ids=lambda words: str(words[0]))
def test_a_password_in_the_address_stops_every_command_and_is_written_nowhere(
    folder: Path, words: list[str]
) -> None:
    before = files_under(folder)
    settings = small_run(folder, "tracking.uri='https://alice:hidden@mlflow.example'")[1:]
    done = fedrisk(*words, *settings)
    assert done.code == 1
    (sentence,) = done.problems
    assert sentence.startswith("tracking.uri must hold no name and no password")
    assert "hidden" not in done.out + done.err
    assert files_under(folder) == before
