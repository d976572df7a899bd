"""Start a run, resume it, submit it, or check the tables first."""

import logging
import secrets
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments.config import CONF, Data, Study, compose, participant_of, read
from experiments.datasets import Agency, DataError, read_agencies
from federation.experiment import Experiment, Settings, SettingsError, checked
from federation.server.checkpoint import CheckpointError
from federation.server.rounds import RunError
from federation.server.tracking import TrackerError

PROBLEMS = (SettingsError, DataError, RunError, CheckpointError, TrackerError)


def run_with_hydra(args: Sequence[str], *, quiet: bool) -> None:
    """Hydra's own command line (`--help`, `--cfg job`, `--multirun`, overrides) around `run_study`."""
    import hydra

    def task(config: Any) -> float | None:
        try:
            result = run_study(read(config), quiet=quiet)
        except PROBLEMS as error:
            from experiments.cli import stop

            stop(str(error))
        auc = result["final"]["metrics"]["overall"]["auc"]
        return auc["value"] if auc["publishable"] else None

    sys.argv = ["fedrisk run", *args]
    hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(task)()


def run_study(study: Study, *, quiet: bool = False) -> dict[str, Any]:
    """A new run of `study` in its own folder; returns the result."""
    settings = study.experiment.settings
    if settings.engine.name == "superlink":
        raise SettingsError("engine=superlink runs on a deployed federation: use `fedrisk submit SUPERLINK`")
    folder = Path(settings.output) / new_run_id(settings.name)
    folder.mkdir(parents=True)
    (folder / "experiment.json").write_text(study.experiment.canonical)
    (folder / "data.json").write_text(study.data.canonical)
    return start(study.experiment, study.data, study.agencies, folder, quiet=quiet)


def resume_run(folder: Path, *, quiet: bool = False) -> dict[str, Any]:
    """Go on with the run in `folder`; its configuration and data are the ones it began with."""
    if not (folder / "experiment.json").is_file():
        raise SettingsError(f"{folder} is not a run: `ls {folder.parent}` shows the runs there are")
    if (folder / "result.json").is_file():
        raise SettingsError(f"{folder} is finished: its result.json is there")
    experiment = checked(Experiment, (folder / "experiment.json").read_text())
    data = checked(Data, (folder / "data.json").read_text())
    from experiments.config import agencies_of

    return start(experiment, data, agencies_of(data, experiment.settings.output), folder, quiet=quiet)


def start(
    experiment: Experiment, data: Data, agencies: Sequence[Agency], folder: Path, *, quiet: bool
) -> dict[str, Any]:
    """Run `experiment` in `folder` on its engine, from its last checkpoint if there is one."""
    from rich.console import Console

    from experiments import engines
    from experiments.screen import Screen
    from federation.server.app import Job
    from federation.server.result import RunFacts
    from federation.server.tracking import open_tracker

    settings = experiment.settings
    console = Console()
    log_to_file(folder)
    nodes = engines.make_node_folders(
        agencies, experiment.contract, folder / "nodes", seed=settings.seed, min_people=data.min_people
    )
    check_tables(nodes, experiment)
    tracker = open_tracker(settings.tracking.uri, settings.name, folder)
    facts = RunFacts(folder.name, settings.engine.name, simulation=True)
    with Screen(console, settings.rounds, quiet=quiet) as screen:
        add = _reference_adder(experiment, data, agencies, screen) if settings.reference else _unchanged
        job = Job(experiment, facts, folder, tracker, (screen,), add)
        try:
            result = (engines.run_ray if settings.engine.name == "ray" else engines.run_local)(job, nodes)
        except KeyboardInterrupt:
            raise RunError(f"stopped; go on with: fedrisk resume {folder.name}") from None
    _close(console, result, folder, settings.tracking.uri)
    return result


def submit_run(superlink: str, overrides: Sequence[str]) -> None:
    """Compose, check and hand over a run; nothing of a table is read here."""
    from experiments import engines

    study = read(compose([*overrides, "engine=superlink"]), tables=False)
    settings = _with_whole_paths(study.experiment.settings)
    run_id = new_run_id(settings.name)
    number = engines.submit(superlink, study.experiment.but(settings=settings), run_id)
    print(f"run     {run_id}, which Flower calls {number}")
    print(f"result  {settings.output}/{run_id}/result.json, on the machine of the SuperLink")
    print(f"watch   flwr ls {superlink} --run-id {number}")
    print(f"        flwr log {number} {superlink} --stream")


def _with_whole_paths(settings: Settings) -> Settings:
    """`settings` without relative paths: the ServerApp that reads them starts in another folder."""
    uri = settings.tracking.uri
    if uri.startswith("sqlite:///"):
        uri = f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
    return settings.but(output=str(Path(settings.output).absolute()), tracking=settings.tracking.but(uri=uri))


def check_agencies(path: Path, min_people: int) -> None:
    """Check the contract and tables that `path` names, each agency by column and rule."""
    import tempfile

    study = read(compose(["experiment=own", f"data.agencies={path}", f"data.min_people={min_people}"]))
    from experiments import engines

    with tempfile.TemporaryDirectory() as folder:
        nodes = engines.make_node_folders(
            study.agencies, study.experiment.contract, Path(folder), seed=0, min_people=min_people
        )
        check_tables(nodes, study.experiment)
    _, agencies = read_agencies(path)
    for agency in agencies:
        print(f"{agency.name}: fits the contract {study.experiment.data_contract.name}")
    assert [participant_of(agency) for agency in agencies]


def check_tables(nodes: Sequence[Path], experiment: Experiment) -> None:
    """Simulation only, where the person at this machine is the agencies' person too: say what is wrong."""
    from clients.node import DataError as NodeDataError
    from clients.node import open_node

    problems = []
    for folder in nodes:
        try:
            open_node(folder).check_data(experiment.settings.split.tune, experiment.settings.split.test)
        except NodeDataError as error:
            problems += [f"{folder.name}: {line}" for line in str(error).splitlines()]
    if problems:
        raise DataError("\n".join(problems))


def new_run_id(name: str) -> str:
    """A run's name: experiment, UTC time, and four random hex digits."""
    return f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _unchanged(result: dict[str, Any]) -> dict[str, Any]:
    return result


def _reference_adder(experiment: Experiment, data: Data, agencies: Sequence[Agency], screen: Any) -> Any:
    from experiments.compare import reference

    def add(result: dict[str, Any]) -> dict[str, Any]:
        return result | {"reference": reference(experiment, data, agencies, result, screen)}

    return add


def log_to_file(folder: Path) -> None:
    """Flower's and our own log lines go to the run's folder, not to the screen."""
    handler = logging.FileHandler(folder / "run.log", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    for name in ("flwr", "fedrisk"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _close(console: Any, result: dict[str, Any], folder: Path, uri: str) -> None:
    from experiments.screen import reference_table

    if result["reference"] is not None:
        console.print(reference_table(result["reference"]["rows"], "What federation and privacy cost"))
        console.print(result["reference"]["note"], highlight=False)
    console.print(f"result  {folder}/result.json\nreport  {folder}/report.html", highlight=False)
    if uri != "none":
        console.print(f"MLflow  mlflow ui --backend-store-uri {uri}", highlight=False)
