"""`fedrisk cohort`: how many people two or three agencies both know, simulated or over a SuperLink."""

import itertools
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
from experiments.demand import for_counting
from experiments.run import (
    explained,
    log_to_file,
    must_be_simulated,
    new_run_id,
    say_left_out,
    table_problems,
    with_whole_paths,
)
from federation.cohort import EPSILONS, CohortPlan, CohortRequest, columns_of, levels_of, why_not
from federation.experiment import Experiment, SettingsError, checked
from federation.server.app import run_cohort_job
from federation.server.cohort import CohortJob, planned
from federation.server.result import RunFacts
from federation.server.tracking import Tracker, open_tracker
from models import cohort
from models.matchkey import WORDS


def cohort_from(
    words: Sequence[str], *, epsilon: float = 1.0, by: str | None = None, as_json: bool = False
) -> dict[str, Any]:
    """Compose, say what it costs, ask the simulated agencies, write `cohort.json`, show it.

    `words`: names of agencies, and overrides. `SettingsError`, `DataError`, `RunError`.
    """
    names, overrides = names_and_overrides(words)
    study = read(compose(for_counting(overrides)))
    settings = study.experiment.settings
    must_be_simulated(study.experiment, "fedrisk cohort --superlink COORDINATOR")
    folder = Path(settings.output) / new_run_id(f"{settings.name[:37]}-cohort")
    plan = cohort_plan(study.experiment, folder.name, names, epsilon, by, simulation=True)
    if not as_json:
        before(plan, study.experiment)
    nodes, tracker = _prepare(study, folder, plan)
    facts = RunFacts(folder.name, settings.engine.name, True)
    job = CohortJob(study.experiment, facts, folder, CohortRequest(plan=plan), tracker)
    with Console(highlight=False, stderr=as_json).status(f"asking {' and '.join(plan.of)}"):
        found = _run(job, nodes)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        show(found, folder / "cohort.json")
    return found


def submit_cohort(
    superlink: str, words: Sequence[str], *, epsilon: float = 1.0, by: str | None = None
) -> None:
    """Compose, check, say what it costs, and hand over; nothing of a table is read here."""
    from experiments import engines

    names, overrides = names_and_overrides(words)
    study = read(compose([*for_counting(overrides), "engine=superlink"]), tables=False)
    settings = with_whole_paths(study.experiment.settings, engines.home_of(superlink))
    experiment = study.experiment.but(settings=settings)
    run_id = new_run_id(f"{settings.name[:37]}-cohort")
    plan = cohort_plan(experiment, run_id, names, epsilon, by, simulation=False)
    before(plan, experiment)
    handed = engines.submit(superlink, experiment, run_id, cohort=CohortRequest(plan=plan).encode())
    print(f"run     {run_id}, which Flower calls {handed}")
    print(f"result  {experiment.settings.output}/{run_id}/cohort.json, on the machine of the SuperLink")
    flwr, name = engines.flwr_of(superlink)
    print(f"watch   {flwr} log {handed} {name} --stream")


def names_and_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words with = in them are overrides, the others two or three names of agencies."""
    names = [word for word in words if "=" not in word and not word.startswith(("-", "~", "+"))]
    if len(names) not in (2, 3) or len(set(names)) < len(names):
        raise SettingsError(
            "name two or three agencies, each once, as in fedrisk cohort police health experiment=own, got "
            f"{' '.join(names) or 'none'}"
        )
    return names, [word for word in words if word not in names]


def cohort_plan(
    experiment: Experiment,
    run_id: str,
    names: Sequence[str],
    epsilon: float,
    by: str | None,
    *,
    simulation: bool,
) -> CohortPlan:
    """What the agencies are asked; `SettingsError` where it cannot be asked. A seed in simulations only."""
    contract = experiment.data_contract
    sizes = {participant.name: participant.public_size for participant in experiment.participants}
    if unknown := [name for name in names if name not in sizes]:
        known = ", ".join(sorted(sizes))
        raise SettingsError(f"no agency is called {' or '.join(unknown)}; the agencies are {known}")
    least, most = EPSILONS
    if not least <= epsilon <= most:
        raise SettingsError(f"--epsilon must be from {least} to {most}, got {epsilon}")
    why = why_not(contract, by)
    if why is not None:
        raise SettingsError(why)
    of, levels = tuple(sorted(names)), len(levels_of(contract, by))
    values = experiment.plan_terms(run_id, simulation=simulation) | {
        "of": of,
        "epsilon": epsilon,
        "buckets": cohort.planned_buckets([sizes[name] for name in of], epsilon, levels),
        "by": by,
        "levels": levels,
    }
    return checked(CohortPlan, values)


def _prepare(study: Study, folder: Path, plan: CohortPlan) -> tuple[list[Path], Tracker]:
    """The folders of the agencies that are asked; what cannot start leaves no folder."""
    from experiments import engines

    contract = study.experiment.data_contract
    try:
        nodes = engines.make_node_folders(
            [agency for agency in study.agencies if agency.name in plan.of],
            study.experiment.contract,
            folder / "nodes",
            seed=study.experiment.settings.seed,
            min_people=study.data.min_people,
            map_columns=columns_of(contract, plan.by),
        )
        _check(nodes, plan)
        settings = study.experiment.settings
        tracker = open_tracker(settings.tracking.uri, settings.name, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return nodes, tracker


def _check(nodes: Sequence[Path], plan: CohortPlan) -> None:
    """Simulation only, where the person here is the agencies' person too: say whose table has no keys.

    They are left out; `DataError` where fewer than two would be left.
    """
    problems = table_problems(nodes, lambda node: node.check_matched(plan))
    if len(nodes) - len(problems) < 2:
        raise DataError(*(f"{name}: {line}" for name, lines in problems.items() for line in lines))
    say_left_out(problems)


def _run(job: CohortJob, nodes: Sequence[Path]) -> dict[str, Any]:
    from experiments.engines import simulate

    log_to_file(job.folder)
    with explained(job.folder):
        return simulate(lambda grid: run_cohort_job(grid, job), nodes, job.experiment.settings.engine.name)


# --- the screen ---------------------------------------------------------------------------------------


def before(plan: CohortPlan, experiment: Experiment) -> None:
    """What it will cost and how close it will be, before anything is spent."""
    console, match = Console(highlight=False), experiment.data_contract.match
    assert match is not None
    console.print(f"one person at two agencies: {WORDS[match.rule]}", soft_wrap=True)
    if experiment.settings.privacy.mechanism != "local":
        console.print(
            f"noise   each agency's own, always: privacy={experiment.settings.privacy.mechanism} is of maps and training",
            soft_wrap=True,
        )
    console.print(
        f"spends  ε = {plan.epsilon:g} at each agency, δ = 0, of everybody on its list; a person whom {len(plan.of)} of them "
        f"know spends {' + '.join([f'{plan.epsilon:g}'] * len(plan.of))} = {len(plan.of) * plan.epsilon:g}",
        soft_wrap=True,
    )
    for two in itertools.combinations(plan.of, 2):
        told, (one, other) = planned(plan, two), two
        example = told["example"]
        error = "" if not example["overlap"] else f" ({example['sd'] / example['overlap']:.0%})"
        console.print(
            f"expects {one} and {other}: of {example['overlap']:,.0f} people in common the number would be off by about "
            f"{math.ceil(example['sd']):,}{error}; fewer than {math.ceil(told['least']):,} cannot be told from none",
            soft_wrap=True,
        )


def show(found: Mapping[str, Any], path: Path) -> None:
    """The answer in words, by group where one was asked for, what it cost, and where the JSON is."""
    console = Console(highlight=False)
    console.print(f"[bold]{found['conclusion']}[/]", soft_wrap=True)
    for pair in found["pairs"]:
        if pair["groups"]:
            console.print(_groups_table(found["by"], pair))
    console.print(f"privacy {privacy_line(found['privacy'])}", soft_wrap=True)
    console.print(f"result  {path}", soft_wrap=True)
    if "report" in found["files"]:
        console.print(f"report  {path.with_name(found['files']['report'])}", soft_wrap=True)


def _groups_table(by: str, pair: Mapping[str, Any]) -> Table:
    one, other = pair["agencies"]
    table = Table()
    for name in (by, f"known to {one} and {other}", f"of {one}'s", f"of {other}'s"):
        table.add_column(name, justify="left" if name == by else "right")
    for level, found in pair["groups"].items():
        shared = found["shared"]
        number = "–"
        if shared["publishable"]:
            number = f"{shared['value']:,.0f} ({shared['low']:,.0f}–{shared['high']:,.0f})"
        table.add_row(level, number, *(_percents(found["share_of"][name]) for name in (one, other)))
    return table


def _percents(estimate: Mapping[str, Any]) -> str:
    if not estimate["publishable"]:
        return "–"
    return f"{estimate['value']:.0%} ({estimate['low']:.0%}–{estimate['high']:.0%})"


def privacy_line(privacy: Mapping[str, Any]) -> str:
    """The guarantee with its unit and adjacency."""
    several = privacy["epsilon_at_several_agencies"]
    others = "".join(f", {several[m]:.2f} if known to {m} of them" for m in ("2", "3") if m in several)
    return (
        f"ε = {privacy['epsilon']:.2f} for one {privacy['unit']}{others} ({privacy['adjacency']}, δ = 0, "
        f"{privacy['mechanism']} noise, {privacy['ledger']}); each agency's own noise. It adds to what else is released."
    )
