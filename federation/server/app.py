"""The coordinator's Flower ServerApp: decode the experiment, run the rounds, write the evidence.

The same app runs under every engine. What differs is given to `make_app`: where the run's facts and
folder come from, and who watches. A run may be a statistic instead, a cohort, or a retest: no rounds.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from federation.cohort import CohortRequest
from federation.demand import MapRequest
from federation.experiment import Experiment
from federation.retest import RetestRequest
from federation.scorecard import CARD, WEIGHTS
from federation.server import checkpoint
from federation.server.card import score_card
from federation.server.cohort import CohortJob, run_cohort
from federation.server.demand import MAP, SERIES, MapJob, run_map
from federation.server.result import RunFacts
from federation.server.retest import RetestJob, run_retest
from federation.server.rounds import RunError, Watcher, run_federation
from federation.server.stats import StatsJob, run_stats
from federation.server.tracking import Tracker, finish_demand, open_tracker
from federation.server.waiting import wait_briefly
from federation.stats import StatsRequest

RETEST = "retest.json"


@dataclass(frozen=True)
class Job:
    """One run to do: what, where to, and who watches."""

    experiment: Experiment
    facts: RunFacts
    folder: Path
    tracker: Tracker
    watchers: Sequence[Watcher] = ()
    add: Callable[[dict[str, Any]], dict[str, Any]] = lambda result: result


AnyJob = Job | StatsJob | CohortJob | RetestJob | MapJob


def make_app(find_job: Callable[[Context], AnyJob]) -> ServerApp:
    """A ServerApp that runs the job that `find_job` finds."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        job = find_job(context)
        if isinstance(job, StatsJob):
            run_stats_job(grid, job)
        elif isinstance(job, CohortJob):
            run_cohort_job(grid, job)
        elif isinstance(job, RetestJob):
            run_retest_job(grid, job)
        elif isinstance(job, MapJob):
            run_map_job(grid, job)
        else:
            run_job(grid, job)

    return app


def run_stats_job(grid: Grid, job: StatsJob) -> dict[str, Any]:
    """Take the statistic `job` on `grid`; its folder then holds stats.json."""
    found = run_stats(grid, job)
    write_json(found, job.folder / "stats.json")
    return found


def run_cohort_job(grid: Grid, job: CohortJob) -> dict[str, Any]:
    """Count the cohort `job` on `grid`; its folder then holds cohort.json, and its page."""
    from federation.panel.demand.pages import write_cohort

    with only_one(job.folder):
        try:
            found = run_cohort(grid, job)
            found["files"] |= write_cohort(found, job.folder)
            write_json(found, job.folder / "cohort.json")
            finish_demand(job.tracker, found, job.folder)
            return found
        except BaseException as error:
            job.tracker.fail(type(error).__name__)
            raise


def run_retest_job(grid: Grid, job: RetestJob) -> dict[str, Any]:
    """Measure the model of `job` again on `grid`; its folder then holds retest.json and retest.html."""
    from federation.panel.retested import write_retest

    with only_one(job.folder):
        try:
            found = run_retest(grid, job)
            write_json(found, job.folder / RETEST)
            write_retest(found, job.folder / found["files"]["report"])
            job.tracker.finish(found, job.folder)
            return found
        except BaseException as error:
            job.tracker.fail(type(error).__name__)
            raise


def run_map_job(grid: Grid, job: MapJob) -> dict[str, Any]:
    """Draw the map of `job` on `grid`; its folder then holds map.json, series.json, the page and the tables."""
    from federation.panel.demand.pages import write_map

    with only_one(job.folder):
        try:
            found, series = run_map(grid, job)
            write_json(series, job.folder / SERIES)
            found["files"] |= write_map(found, job.folder)
            write_json(found, job.folder / MAP)
            finish_demand(job.tracker, found, job.folder)
            return found
        except BaseException as error:
            job.tracker.fail(type(error).__name__)
            raise


def run_job(grid: Grid, job: Job) -> dict[str, Any]:
    """Run `job` on `grid`; its folder then holds result.json, model/, and the report and the other papers."""
    with only_one(job.folder):
        return _run(grid, job)


def _run(grid: Grid, job: Job) -> dict[str, Any]:
    try:
        result = run_federation(grid, job.experiment, job.facts, job.folder, [job.tracker, *job.watchers])
        result = job.add(result)
        _write_model(job, result)
        write_json(result, job.folder / "result.json")
        _write_papers(result, job.folder)
        job.tracker.finish(result, job.folder)
        return result
    except BaseException as error:
        job.tracker.fail(type(error).__name__)
        raise


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the run's folder: a run that is resumed while it still goes on must not be run twice."""
    handle = os.open(folder / "run.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise RunError(
            f"{folder.name} goes on in another process: wait for it, or stop that one first"
        ) from None
    try:
        yield
    finally:
        os.close(handle)


def write_json(value: Mapping[str, Any], path: Path) -> None:
    """Write `value` beside `path` and move it there; NaN and ±Inf are errors, never written."""
    beside = path.with_suffix(".writing")
    with beside.open("w") as file:
        json.dump(value, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _write_model(job: Job, result: Mapping[str, Any]) -> None:
    state = checkpoint.read_last(job.folder / "checkpoints")
    if state is not None:
        facts = {
            "model": json.dumps(result["model"]),
            "contract_sha256": result["contract"]["sha256"],
            "run_id": job.facts.run_id,
            "plan_sha256": result["plan_sha256"],
        }
        path = checkpoint.write_model(state.weights, facts, job.folder / "model" / WEIGHTS)
        card = score_card(result, hashlib.sha256(path.read_bytes()).hexdigest())
        write_json(json.loads(card.canonical), path.with_name(CARD))


def _write_papers(result: Mapping[str, Any], folder: Path) -> None:
    from federation.panel.papers import write_papers

    write_papers(result, folder)


def job_from_config(context: Context) -> AnyJob:
    """A deployed run's job: everything comes in base64 values of the run config."""
    config = context.run_config
    if not config.get("experiment") or not config.get("run-id"):
        raise RunError("the run carries no experiment: start it with `fedrisk submit`, not with `flwr run`")
    experiment = Experiment.decode(str(config["experiment"]))
    settings, run_id = experiment.settings, str(config["run-id"])
    folder = Path(settings.output) / run_id
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"output: {folder} cannot be made on this machine ({error.strerror})") from None
    _log_to_file(folder)
    wait_briefly()
    facts = RunFacts(run_id, "superlink", simulation=False)
    if config.get("stats"):
        return StatsJob(experiment, facts, folder, StatsRequest.decode(str(config["stats"])))
    tracker = open_tracker(settings.tracking.uri, settings.name, folder)
    if config.get("cohort"):
        return CohortJob(experiment, facts, folder, CohortRequest.decode(str(config["cohort"])), tracker)
    if config.get("map"):
        return MapJob(experiment, facts, folder, MapRequest.decode(str(config["map"])), tracker)
    if config.get("retest"):
        request = RetestRequest.decode(str(config["retest"]))
        model = Path(settings.output) / request.of / "model" / WEIGHTS
        return RetestJob(experiment, facts, folder, request, model, tracker)
    (folder / "experiment.json").write_text(experiment.canonical)  # for `fedrisk resume`
    return Job(experiment, facts, folder, tracker)


def _log_to_file(folder: Path) -> None:
    """What Flower and we log, the reason of a failed run too, is also kept with the run."""
    handler = logging.FileHandler(folder / "run.log", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    for name in ("flwr", "fedrisk"):
        logging.getLogger(name).addHandler(handler)


app = make_app(job_from_config)
