"""Start a run, resume it, submit it, or check the tables first."""

import contextlib
import logging
import secrets
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments.agencies import Agency, DataError
from experiments.config import CONF, Data, Study, agencies_of, check_settings, compose, read
from experiments.datasets import cautions
from federation.experiment import Experiment, Settings, SettingsError, checked
from federation.server.checkpoint import CheckpointError
from federation.server.rounds import RunError
from federation.server.tracking import Tracker, TrackerError, open_tracker

PROBLEMS = (SettingsError, DataError, RunError, CheckpointError, TrackerError)


def run_with_hydra(args: Sequence[str], *, quiet: bool) -> None:
    """Overrides alone are one run. Hydra's flags (`--help`, `--cfg job`, `--multirun` ...) are Hydra's.

    Whatever Hydra would say of a wrong override in several lines is said here first, in one sentence each.
    """
    if not any(arg.startswith("-") for arg in args):
        run_study(read(compose(args)), quiet=quiet)
        return
    overrides = [arg for arg in args if "=" in arg and not arg.startswith("-")]
    flags = [arg for arg in args if arg not in overrides]
    if any(arg.startswith(("--config-", "-cd", "-cn", "-cp")) for arg in flags):
        pass  # other files than conf/, which Hydra alone can find
    elif {"--multirun", "-m"} & set(flags):
        for job in jobs_of(overrides):
            check_settings(compose(job))
    elif {"--cfg", "-c"} & set(flags):
        compose(overrides)
    sys.argv = ["fedrisk run", *flags, *overrides]
    _hydra_main(quiet=quiet)


def _hydra_main(*, quiet: bool) -> None:
    import hydra

    from experiments.cli import guarded

    def task(config: Any) -> float | None:
        result = guarded(lambda: run_study(read(config), quiet=quiet))
        metrics = result["final"]["metrics"]  # None where no agency's table arrived
        return (
            metrics["overall"]["auc"]["value"]
            if metrics and metrics["overall"]["auc"]["publishable"]
            else None
        )

    hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(task)()


def jobs_of(overrides: Sequence[str]) -> Iterator[list[str]]:
    """Overrides of a sweep as single ones: the first value of each, then every other value once."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    values = []
    for override in overrides:
        try:
            (parsed,) = OverridesParser.create().parse_overrides([override])
            sweep = parsed.is_discrete_sweep() and [
                f"{parsed.get_key_element()}={value}" for value in parsed.sweep_string_iterator()
            ]
        except HydraException:
            sweep = []  # composing it says what is wrong
        values.append(sweep or [override])
    first = [options[0] for options in values]
    yield first
    for i, options in enumerate(values):
        yield from ([*first[:i], option, *first[i + 1 :]] for option in options[1:])


def run_study(study: Study, *, quiet: bool = False) -> dict[str, Any]:
    """A new run of `study` in its own folder; returns the result. What cannot start leaves no folder."""
    settings = study.experiment.settings
    must_be_simulated(study.experiment, "fedrisk submit SUPERLINK")
    folder = Path(settings.output) / new_run_id(settings.name)
    folder.mkdir(parents=True)
    try:
        (folder / "experiment.json").write_text(study.experiment.canonical)
        (folder / "data.json").write_text(study.data.canonical)
        nodes, tracker = prepare(study.experiment, study.data, study.agencies, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return start(study.experiment, study.data, study.agencies, folder, nodes, tracker, quiet=quiet)


def resume_run(folder: Path, *, quiet: bool = False) -> dict[str, Any]:
    """Go on with the run in `folder`; its configuration and data are the ones it began with."""
    if not (folder / "experiment.json").is_file():
        raise SettingsError(f"{folder} is not a run: `ls {folder.parent}` shows the runs there are")
    if (folder / "result.json").is_file():
        raise SettingsError(f"{folder} is finished: its result is in {folder}/result.json")
    experiment = checked(Experiment, (folder / "experiment.json").read_text())
    data = checked(Data, (folder / "data.json").read_text())
    agencies = agencies_of(data, experiment.settings.output)
    nodes, tracker = prepare(experiment, data, agencies, folder)
    return start(experiment, data, agencies, folder, nodes, tracker, quiet=quiet)


def resume_submitted(superlink: str, folder: Path) -> None:
    """Hand the deployed run in `folder` to a SuperLink again, to go on from its last whole round."""
    from experiments import engines

    if not (folder / "experiment.json").is_file():
        raise SettingsError(f"{folder} is not a run on this machine: it lies where the coordinator runs")
    if (folder / "result.json").is_file():
        raise SettingsError(f"{folder} is finished: its result is in {folder}/result.json")
    if (folder / "data.json").is_file():
        raise SettingsError(f"{folder} is a simulation: go on with `{resume_command(folder)}`")
    experiment = checked(Experiment, (folder / "experiment.json").read_text())
    number = engines.submit(superlink, experiment, folder.name)
    print(f"run     {folder.name}, which Flower now calls {number}, goes on from its last whole round")
    print(f"result  {folder}/result.json")


def prepare(
    experiment: Experiment, data: Data, agencies: Sequence[Agency], folder: Path
) -> tuple[list[Path], Tracker]:
    """Everything that can go wrong before an agency is asked: the nodes' folders, their tables, the tracker."""
    from experiments import engines

    settings = experiment.settings
    nodes = engines.make_node_folders(
        agencies, experiment.contract, folder / "nodes", seed=settings.seed, min_people=data.min_people
    )
    check_tables(nodes, experiment)
    return nodes, open_tracker(settings.tracking.uri, settings.name, folder, warn=_warn)


def _warn(sentence: str) -> None:
    logging.getLogger("fedrisk.tracking").warning(sentence)
    print(f"fedrisk: {sentence}", file=sys.stderr)


def start(
    experiment: Experiment,
    data: Data,
    agencies: Sequence[Agency],
    folder: Path,
    nodes: Sequence[Path],
    tracker: Tracker,
    *,
    quiet: bool,
) -> dict[str, Any]:
    """Run `experiment` in `folder` on its engine, from its last checkpoint if there is one."""
    from rich.console import Console

    from experiments import engines
    from experiments.screen import Screen
    from federation.server.app import Job, run_job
    from federation.server.result import RunFacts

    settings = experiment.settings
    log_to_file(folder)
    console = Console()
    facts = RunFacts(folder.name, settings.engine.name, simulation=True)
    with Screen(console, settings.rounds, quiet=quiet) as screen:
        add = _adder(experiment, data, agencies, screen)
        job = Job(experiment, facts, folder, tracker, (screen,), add)
        try:
            result = engines.simulate(lambda grid: run_job(grid, job), nodes, settings.engine.name)
        except KeyboardInterrupt:
            raise RunError(f"stopped; go on with: {resume_command(folder)}") from None
        except (RunError, CheckpointError) as error:
            raise RunError(f"{error}; go on with: {resume_command(folder)}") from None
        except OSError as error:
            raise RunError(f"{said(error, folder)}; then go on with: {resume_command(folder)}") from None
    _close(console, result, folder, settings.tracking.uri, tracker.page)
    return result


def resume_command(folder: Path) -> str:
    """What a person types to go on with the run in `folder`."""
    where = "" if folder.parent == Path("outputs") else f" --output {shlex.quote(str(folder.parent))}"
    return f"fedrisk resume {folder.name}{where}"


def said(error: Exception, folder: Path | None = None) -> str:
    """The sentences of a known problem; a system's error as one, with the file (or its folder) and what to do."""
    if not isinstance(error, OSError):
        return str(error)
    what = error.filename or folder or "a file"
    return f"{what} cannot be used ({error.strerror or type(error).__name__}): see to its permissions and free space"


def submit_run(superlink: str, overrides: Sequence[str], plan_file: Path | None = None) -> None:
    """Compose, check and hand over a run; nothing of a table is read here. `plan_file`: where its plan goes, too."""
    from experiments import engines

    study = read(compose([*overrides, "engine=superlink"]), tables=False)
    settings = with_whole_paths(study.experiment.settings, engines.home_of(superlink))
    run_id = new_run_id(settings.name)
    plan = study.experiment.plan(run_id, simulation=False)
    if plan_file is not None:
        plan_file.write_text(plan.canonical)
    number = engines.submit(superlink, study.experiment.but(settings=settings), run_id)
    print(f"run     {run_id}, which Flower calls {number}")
    print(f"plan    {plan.sha256}, by which agencies approve it")
    print(f"result  {settings.output}/{run_id}/result.json, on the machine of the SuperLink")
    flwr, name = engines.flwr_of(superlink)
    print(f"watch   {flwr} ls {name} --run-id {number}")
    print(f"        {flwr} log {number} {name} --stream")


def with_whole_paths(settings: Settings, home: Path) -> Settings:
    """`settings` whose relative paths lie under `home`: the ServerApp that reads them starts in another folder."""
    uri = settings.tracking.uri
    if uri.startswith("sqlite:///"):
        uri = f"sqlite:///{home / uri.removeprefix('sqlite:///')}"
    return settings.but(output=str(home / settings.output), tracking=settings.tracking.but(uri=uri))


def check_agencies(path: Path, min_people: int) -> None:
    """Check the contract and tables that `path` names, each agency by column and rule."""
    import tempfile

    from omegaconf import OmegaConf

    from experiments import engines

    config = compose(["experiment=own"])
    OmegaConf.update(config, "data", {"agencies": str(path), "min_people": min_people})
    study = read(config)
    with tempfile.TemporaryDirectory() as folder:
        nodes = engines.make_node_folders(
            study.agencies, study.experiment.contract, Path(folder), seed=0, min_people=min_people
        )
        check_tables(nodes, study.experiment)
    for agency in study.agencies:
        print(f"{agency.name}: fits the contract {study.experiment.data_contract.name}")


def check_tables(nodes: Sequence[Path], experiment: Experiment) -> None:
    """Simulation only, where the person at this machine is the agencies' person too: say what is wrong."""
    from clients.ledger import LedgerError
    from clients.node import DataError as NodeDataError
    from clients.node import NodeError, open_node
    from clients.policy import PolicyError

    problems = []
    for folder in nodes:
        try:
            open_node(folder).check_data(experiment.settings.split.tune, experiment.settings.split.test)
        except NodeDataError as error:
            heading, *each = str(error).splitlines()
            problems += [_to_put_right(folder.name, heading, line) for line in each] or [
                f"{folder.name}: {heading}"
            ]
        except (NodeError, PolicyError, LedgerError) as error:
            problems += [f"{folder.name}: {line}" for line in str(error).splitlines()]
    if problems:
        raise DataError(*problems)


def table_problems(nodes: Sequence[Path], check: Callable[[Any], None]) -> dict[str, list[str]]:
    """Simulation only: by agency what is wrong with its table, as `check` finds on the node; nothing where it fits."""
    from clients.node import DataError as NodeDataError
    from clients.node import open_node

    problems: dict[str, list[str]] = {}
    for folder in nodes:
        try:
            check(open_node(folder))
        except NodeDataError as error:
            heading, *each = str(error).splitlines()
            problems[folder.name] = [line.removeprefix("- ") for line in each] or [heading]
    return problems


def say_left_out(problems: Mapping[str, Sequence[str]]) -> None:
    """Agencies that are not asked, because of their tables."""
    for name, lines in problems.items():
        print(f"fedrisk: {name} is left out: {'; '.join(lines)}", file=sys.stderr)


def _to_put_right(agency: str, heading: str, line: str) -> str:
    """One problem of a table, as the person who can put it right needs it."""
    table = heading.partition(" does not fit ")[0]
    problem = line.removeprefix("- ")
    return f"{agency}: {problem}: correct {table} or the contract, or leave {agency} out of agencies.yaml"


def must_be_simulated(experiment: Experiment, command: str) -> None:
    """`SettingsError` where the settings ask for deployed agencies, which `command` reaches."""
    if experiment.settings.engine.name == "superlink":
        raise SettingsError(f"engine=superlink runs on a deployed federation: use `{command}`")


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Of a simulation that trains nothing: what went wrong, where its agencies' logs are, and that what they charged stays."""
    try:
        yield
    except KeyboardInterrupt:
        raise RunError(f"stopped; what the agencies had charged is in {folder}/nodes: ask again") from None
    except RunError as error:
        raise RunError(f"{error} (here: {folder}/nodes/AGENCY/log/node.log)") from None


def why_absent(facts: Mapping[str, Any]) -> str:
    """Why an agency is not in a result, as a person reads it; a code is its own log's to explain."""
    status, reason = str(facts["status"]), facts["reason"]
    if reason is None or not reason.isupper():
        return status if reason is None else str(reason)
    return f"{status}{'' if reason == status.upper() else f' ({reason})'}; its own log says why"


def new_run_id(name: str) -> str:
    """A run's name: experiment, UTC time, and four random hex digits."""
    return f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _adder(experiment: Experiment, data: Data, agencies: Sequence[Agency], screen: Any) -> Any:
    """What a simulation adds to a result: the flaws of its public data that are known, and `reference` if asked."""

    def add(result: dict[str, Any]) -> dict[str, Any]:
        known = [] if data.source == "own" else cautions(agencies[0].table.parent)
        result = result | {"cautions": known}
        if not experiment.settings.reference:
            return result
        from experiments.compare import reference

        return result | {"reference": reference(experiment, data, agencies, result, screen)}

    return add


def log_to_file(folder: Path) -> None:
    """Flower's and our own log lines go to the run's folder, not to the screen."""
    logging.raiseExceptions = False  # a log on a full disk is no reason for a traceback
    handler = logging.FileHandler(folder / "run.log", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    for name in ("flwr", "fedrisk"):
        logger = logging.getLogger(name)
        for old in logger.handlers:
            old.close()
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _close(console: Any, result: dict[str, Any], folder: Path, uri: str, page: str | None) -> None:
    from experiments.screen import privacy_line, reference_table

    if result["reference"] is not None:
        console.print(reference_table(result["reference"]["rows"], "What federation and privacy cost"))
        console.print(result["reference"]["note"], highlight=False)
    console.print(f"privacy {privacy_line(result['privacy'])}", highlight=False, soft_wrap=True)
    console.print(f"result  {folder}/result.json\nreport  {folder}/report.html", highlight=False)
    console.print(
        f"papers  {folder}/evidence.json, model-card.json, atrs.json", highlight=False, soft_wrap=True
    )
    for line in where_tracked(uri, page):
        console.print(line, highlight=False, soft_wrap=True)


def where_tracked(uri: str, page: str | None) -> list[str]:
    """How a person looks at the run in MLflow; `page` is behind its address, or unknown where MLflow failed."""
    if uri == "none":
        return []
    server = uri.startswith("http")
    lines = [f"MLflow  {uri}" if server else f"MLflow  mlflow ui --backend-store-uri {uri}"]
    if page is not None:
        lines.append(f"charts  {uri.rstrip('/') if server else 'http://127.0.0.1:5000'}/{page}")
    return lines
