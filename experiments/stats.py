"""`fedrisk stats`: noisy quantiles of a number whose bounds nobody knows, simulated or over a SuperLink."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.agencies import DataError
from experiments.config import Study, compose, read
from experiments.run import log_to_file, new_run_id, say_left_out, table_problems, with_whole_paths
from federation.experiment import Experiment, SettingsError, checked
from federation.privacy import noise_for
from federation.server.app import run_stats_job
from federation.server.result import RunFacts
from federation.server.stats import StatsJob
from federation.stats import StatsPlan, StatsRequest, why_not

QUANTILES = "0.01,0.25,0.5,0.75,0.99"
MANY = {"person": "people", "row": "rows"}  # the contract's unit -> several of them


def stats_from(
    column: str,
    overrides: Sequence[str],
    *,
    epsilon: float = 0.5,
    quantiles: str = QUANTILES,
    as_json: bool = False,
) -> dict[str, Any]:
    """Compose, ask every simulated agency, write `stats.json`, show it. `SettingsError`, `DataError`, `RunError`."""
    study = read(compose(overrides))
    folder = Path(study.experiment.settings.output) / new_run_id(study.experiment.settings.name)
    request = request_of(study.experiment, folder.name, column, epsilon, quantiles, simulation=True)
    nodes = _prepare(study, folder, column)
    found = _run(StatsJob(study.experiment, RunFacts(folder.name, "local", True), folder, request), nodes)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        show(found, folder / "stats.json")
    return found


def submit_stats(
    superlink: str, column: str, overrides: Sequence[str], *, epsilon: float = 0.5, quantiles: str = QUANTILES
) -> None:
    """Compose, check and hand over a statistic; nothing of a table is read here."""
    from experiments import engines

    study = read(compose([*overrides, "engine=superlink"]), tables=False)
    experiment = study.experiment.but(
        settings=with_whole_paths(study.experiment.settings, engines.home_of(superlink))
    )
    run_id = new_run_id(experiment.settings.name)
    request = request_of(experiment, run_id, column, epsilon, quantiles, simulation=False)
    handed = engines.submit(superlink, experiment, run_id, stats=request.encode())
    print(f"run     {run_id}, which Flower calls {handed}")
    print(f"result  {experiment.settings.output}/{run_id}/stats.json, on the machine of the SuperLink")
    flwr, name = engines.flwr_of(superlink)
    print(f"watch   {flwr} log {handed} {name} --stream")


def request_of(
    experiment: Experiment, run_id: str, column: str, epsilon: float, quantiles: str, *, simulation: bool
) -> StatsRequest:
    """What the coordinator is asked for; `SettingsError` where it cannot be asked."""
    shares = shares_of(quantiles)
    why = why_not(experiment.data_contract, column)
    if why is not None:
        raise SettingsError(why)
    plan = stats_plan(experiment, run_id, column, epsilon, simulation=simulation)
    return StatsRequest(plan=plan, shares=shares)


def shares_of(text: str) -> tuple[float, ...]:
    """--quantiles: shares of people, each in (0, 1), with commas between them, in order."""
    try:
        shares = sorted({float(word) for word in text.split(",")})
    except ValueError:
        shares = []
    if not shares or not all(0 < share < 1 for share in shares):
        raise SettingsError(f"--quantiles must be numbers between 0 and 1, as in {QUANTILES}, got {text!r}")
    return tuple(shares)


def stats_plan(
    experiment: Experiment, run_id: str, column: str, epsilon: float, *, simulation: bool
) -> StatsPlan:
    """What the agencies are asked, with the σ whose one release costs `epsilon`; a seed in simulations only."""
    settings = experiment.settings
    if not 0 < epsilon < math.inf:
        raise SettingsError(f"--epsilon must be above 0, got {epsilon}")
    try:
        sigma = noise_for(epsilon, settings.privacy.delta, 1.0, 1)
    except ValueError as error:
        raise SettingsError(f"--epsilon: {error}") from None
    values = experiment.plan_terms(run_id, simulation=simulation) | {
        "column": column,
        "sigma": sigma,
        "delta": settings.privacy.delta,
    }
    return checked(StatsPlan, values)


def _prepare(study: Study, folder: Path, column: str) -> list[Path]:
    """The agencies' folders, whose policies permit the column; what cannot start leaves no folder."""
    from experiments import engines

    try:
        nodes = engines.make_node_folders(
            study.agencies,
            study.experiment.contract,
            folder / "nodes",
            seed=study.experiment.settings.seed,
            min_people=study.data.min_people,
            stats_columns=[column],
        )
        _check(nodes, study.experiment, column)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return nodes


def _check(nodes: Sequence[Path], experiment: Experiment, column: str) -> None:
    """Simulation only, where the person here is the agencies' person too: say whose table has no such number.

    They are left out; `DataError` where that is everybody.
    """
    from federation.stats import holds

    kinds = {participant.name: participant.kind for participant in experiment.participants}
    asked = [n for n in nodes if holds(experiment.data_contract, kinds[n.name], column)]
    problems = table_problems(asked, lambda node: node.check_values(column))
    if len(problems) == len(asked):
        alike = dict.fromkeys(line for lines in problems.values() for line in lines)
        raise DataError(*(f"no agency's table can be used: {line}" for line in alike))
    say_left_out(problems)


def _run(job: StatsJob, nodes: Sequence[Path]) -> dict[str, Any]:
    from experiments.engines import simulate

    log_to_file(job.folder)
    return simulate(lambda grid: run_stats_job(grid, job), nodes)


# --- the screen ---------------------------------------------------------------------------------------


def show(found: Mapping[str, Any], path: Path) -> None:
    """Quantiles, a suggestion for the contract, what it cost, and where the JSON is."""
    console = Console(highlight=False)
    many = MANY[found["unit"]]
    counted = [name for name, facts in found["agencies"].items() if facts["status"] == "counted"]
    console.print(
        f"[bold]{found['column']}[/]: {_whole(found['people'])} {many} at {len(counted)} of "
        f"{len(found['agencies'])} agencies; without a number {_percents(found['missing'])}",
        soft_wrap=True,
    )
    for name, facts in found["agencies"].items():
        if facts["status"] != "counted":
            console.print(f"  [yellow]{name} is not in it[/]: {facts['reason']}")
    console.print(_quantile_table(found["quantiles"]))
    if not all(row["publishable"] for row in found["quantiles"]):
        console.print(
            f"–: too few {many} beyond it to be told from the noise; more ε or more agencies show it."
        )
    console.print(_suggestion(found["suggestion"], many), soft_wrap=True)
    console.print(f"privacy {privacy_line(found['privacy'])}", soft_wrap=True)
    console.print(f"result  {path}", soft_wrap=True)


def _quantile_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table()
    for name in ("quantile", "value", "95% interval"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        value = number(row["value"]) if row["publishable"] else "–"
        ends = f"{number(row['low'])} to {number(row['high'])}" if row["publishable"] else "–"
        table.add_row(f"{row['share']:g}", value, ends)
    return table


def _suggestion(bounds: Mapping[str, Any] | None, many: str) -> str:
    if bounds is None:
        return f"No min and max can be suggested: too few {many} or too much noise, or nearly all have one value."
    return (
        f"for the contract  [bold]min: {bounds['min']:.15g}, max: {bounds['max']:.15g}[/]  would clip about "
        f"{bounds['clipped']:.1%} of {many}, at most {bounds['clipped_at_most']:.1%}"
    )


def privacy_line(privacy: Mapping[str, Any]) -> str:
    """The guarantee with its unit, adjacency, δ and accountant, and that it adds to what training costs."""
    several = privacy["epsilon_at_several_agencies"]
    others = "".join(f", {several[m]:.2f} if known to {m} agencies" for m in ("2", "3") if m in several)
    together = privacy["epsilon_with_training"]
    adds = "" if together is None else f": ε = {together:.2f} with one run of these settings"
    return (
        f"ε = {privacy['epsilon']:.2f} at most for one {privacy['unit']}{others} ({privacy['adjacency']}, "
        f"δ = {privacy['delta']:g}, {privacy['accountant']}, {privacy['ledger']}); each agency's own noise. "
        f"It adds to what training costs the same {MANY[privacy['unit'].split()[0]]}{adds}."
    )


def number(value: float | None) -> str:
    """Three significant digits, without an exponent where there are few zeros."""
    if value is None:
        return "–"
    return f"{value:.3g}" if value == 0 or not 100 <= abs(value) < 1e9 else f"{float(f'{value:.3g}'):,.0f}"


def _whole(estimate: Mapping[str, Any]) -> str:
    if not estimate["publishable"]:
        return "too few"
    return f"about {number(estimate['value'])} ({number(estimate['low'])} to {number(estimate['high'])})"


def _percents(estimate: Mapping[str, Any]) -> str:
    if not estimate["publishable"]:
        return "–"
    return f"{estimate['value']:.1%} ({estimate['low']:.1%} to {estimate['high']:.1%})"
