"""`fedrisk track`: a finished run into MLflow, where its server was down, or another MLflow is to have it too."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from federation.experiment import Experiment, SettingsError, checked
from federation.server.archive.demand import KINDS
from federation.server.result import RunFacts, run_header
from federation.server.tracking import TrackerError, finish_demand, open_tracker

SAME = ("fedrisk_version", "config_sha256", "plan_sha256", "code_sha256")  # of the run, not of today's code


def track_run(folder: Path, uri: str | None) -> str | None:
    """Write the finished run in `folder` into MLflow at `uri`, by default where the run was to be tracked; the page of its charts.

    What MLflow has of the run already is completed, not doubled, as long as the folder's tracking.json is of that MLflow.
    `SettingsError` where the folder is no finished run, `TrackerError` where MLflow does not take all of it.
    """
    demand = next((folder / f"{kind}.json" for kind in KINDS if (folder / f"{kind}.json").exists()), None)
    if demand is not None:
        return _track_demand(folder, demand, uri)
    try:
        experiment = checked(Experiment, (folder / "experiment.json").read_text())
        result = json.loads((folder / "result.json").read_text())
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        raise SettingsError(
            f"{folder} is not a finished run (it has no {missing}): name the folder of one"
        ) from None
    except ValueError:
        raise SettingsError(f"{folder}/result.json is not JSON: it was changed after the run") from None
    where = uri or experiment.settings.tracking.uri
    if where == "none":
        raise SettingsError("the run was not to be tracked: say where with --uri, as in tracking.uri")
    said: list[str] = []
    tracker = open_tracker(where, experiment.settings.name, folder, warn=said.append)
    tracker.start(header_of(experiment, result))
    tracker.finish(result, folder)
    if said:
        raise TrackerError(said[-1])
    return tracker.page


def _track_demand(folder: Path, file: Path, uri: str | None) -> str | None:
    """A demand map, a cohort or early signs, whose folder does not say where its MLflow is."""
    if uri is None:
        raise SettingsError(f"{file.name} does not say where it is tracked: say where with --uri")
    try:
        found = json.loads(file.read_text())
    except ValueError:
        raise SettingsError(f"{file} is not JSON: it was changed after the run") from None
    said: list[str] = []
    tracker = open_tracker(uri, found.get("experiment", "signs"), folder, warn=said.append)
    finish_demand(tracker, found, folder)
    if said:
        raise TrackerError(said[-1])
    return tracker.page


def header_of(experiment: Experiment, result: Mapping[str, Any]) -> dict[str, Any]:
    """What the tracker was told when the run began; without its plan, where today's code would make another one."""
    facts = RunFacts(result["run_id"], result["engine"], simulation=result["simulation"])
    plan = experiment.plan(facts.run_id, simulation=facts.simulation)
    header = run_header(experiment, plan, facts, {})
    if plan.sha256 != result["plan_sha256"]:
        del header["plan"]
    return header | {name: result[name] for name in SAME}
