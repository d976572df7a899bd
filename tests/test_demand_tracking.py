"""A map, a cohort and early signs are tracked later, or not at all. What MLflow gets of them: test_tracking.py."""

import json
from pathlib import Path

import pytest
from demand_folders import made, put

from experiments.track import track_run
from federation.experiment import SettingsError
from federation.server.archive.demand import demand_files, demand_metrics
from federation.server.tracking import NoTracker, finish_demand

# MLflow calls SQLAlchemy in ways that SQLAlchemy has deprecated; nothing here can change that.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_a_table_outside_of_the_folder_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "secret.csv").write_text("x")
    (tmp_path / "run").mkdir()
    assert demand_files({"kind": "map", "files": {"tables": "../other"}}, tmp_path / "run") == []


def test_the_epsilon_of_signs_is_the_largest_of_their_maps_or_none() -> None:
    signs = made()["signs"]
    for epsilon, busiest in (([0.5, 0.7], 0.7), ([0.5, None], None), (0.5, 0.5)):
        found = demand_metrics(signs | {"privacy": {"epsilon": epsilon}})
        assert found.get("privacy/epsilon_busiest") == busiest


def test_a_training_has_none_of_these_metrics() -> None:
    assert demand_metrics({"final": None}) == {}


@pytest.mark.long
def test_a_folder_is_tracked_later_and_only_once(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    store = tmp_path / "mlflow.db"
    folder = tmp_path / "later"
    found = made()["map"]
    put(found, folder)
    found["run_id"] = "later"
    (folder / "map.json").write_text(json.dumps(found))
    for _ in range(2):
        page = track_run(folder, f"sqlite:///{store}")
        assert page is not None
        assert page.startswith("#/experiments/")
    client = MlflowClient(tracking_uri=f"sqlite:///{store}")
    experiment = client.get_experiment_by_name("early-help").experiment_id
    assert len(client.search_runs([experiment], "tags.`fedrisk.run_id` = 'later'")) == 1
    with pytest.raises(SettingsError, match="say where with --uri"):
        track_run(folder, None)


def test_without_a_tracker_nothing_is_asked(tmp_path: Path) -> None:
    finish_demand(NoTracker(), made()["map"], tmp_path)
    assert list(tmp_path.iterdir()) == []
