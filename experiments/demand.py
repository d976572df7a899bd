"""`fedrisk map`: a demand map over simulated agencies, or over those of a SuperLink."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.agencies import DataError
from experiments.config import MapSettings, Study, compose, read
from experiments.run import (
    explained,
    log_to_file,
    must_be_simulated,
    new_run_id,
    say_left_out,
    table_problems,
    where_tracked,
    why_absent,
    with_whole_paths,
)
from experiments.stats import number
from federation.demand import MapPlan, MapRequest, NotAsked
from federation.experiment import Experiment, SettingsError, checked
from federation.plan import Refused
from federation.privacy import epsilon_at_several, noise_for
from federation.server.app import run_map_job
from federation.server.demand import MAP, MapJob, promises
from federation.server.result import RunFacts
from federation.server.tracking import open_tracker
from models.design import design
from models.workload import Workload
from models.workload import read as read_workload

BITS = 64
TOO_LITTLE = (
    "map.epsilon={:g} is too little: no agency can draw as much noise as that takes; ask for more, as 0.1"
)
ONE = {"person": "person", "row": "record"}  # what is protected
MANY = {"person": "known people", "row": "records"}


def map_from(
    overrides: Sequence[str],
    *,
    plan_only: bool = False,
    plan_file: Path | None = None,
    as_json: bool = False,
) -> dict[str, Any] | None:
    """Compose, say what will be known and what it costs, ask every simulated agency, write map.json and the page, show
    them; None where only the plan was asked for. `SettingsError`, `DataError`, `RunError`.
    """
    study = read(compose(for_counting(overrides)))
    must_be_simulated(study.experiment, "fedrisk map --superlink COORDINATOR")
    folder = Path(study.experiment.settings.output) / new_run_id(f"{study.experiment.settings.name[:40]}-map")
    request = request_of(study, folder.name, simulation=True)
    console = Console(highlight=False, stderr=as_json)
    show_plan(console, study.experiment, request, plan_file)
    if plan_only:
        if as_json:
            print(json.dumps(planned(study.experiment, request), indent=2, ensure_ascii=False))
        return None
    job, nodes = _prepare(study, folder, request)
    with console.status(f"asking {len(nodes)} agencies, and reading their answers"):
        found = _run(job, nodes)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        show(console, found, folder)
        for line in where_tracked(study.experiment.settings.tracking.uri, job.tracker.page):
            console.print(line, soft_wrap=True)
    return found


def submit_map(
    superlink: str, overrides: Sequence[str], *, plan_only: bool = False, plan_file: Path | None = None
) -> None:
    """Compose, check, say what it will cost, and hand over a map; nothing of a table is read here."""
    from experiments import engines

    study = read(compose([*for_counting(overrides), "engine=superlink"]), tables=False)
    experiment = study.experiment.but(
        settings=with_whole_paths(study.experiment.settings, engines.home_of(superlink))
    )
    run_id = new_run_id(f"{experiment.settings.name[:40]}-map")
    request = request_of(study, run_id, simulation=False)
    show_plan(Console(highlight=False), experiment, request, plan_file)
    if plan_only:
        return
    handed = engines.submit(superlink, experiment, run_id, map=request.encode())
    place = f"{experiment.settings.output}/{run_id}"
    print(f"run     {run_id}, which Flower calls {handed}")
    print(f"plan    {request.plan.sha256}, by which agencies approve it")
    print(f"result  {place}/{MAP} and map.html, on the machine of the SuperLink")
    flwr, name = engines.flwr_of(superlink)
    print(f"watch   {flwr} log {handed} {name} --stream")


# --- the plan -----------------------------------------------------------------------------------------


def for_counting(overrides: Sequence[str]) -> list[str]:
    """With what privacy=shared asks of a training, where no strategy is named: here nothing is trained."""
    shared = "privacy=shared" in overrides and not any(each.startswith("strategy=") for each in overrides)
    return [*overrides, *(["strategy=dp_fedsgd", "local.steps=1"] if shared else [])]


def request_of(study: Study, run_id: str, *, simulation: bool) -> MapRequest:
    """What the coordinator is asked for; `SettingsError` where it cannot be asked."""
    experiment, whole = study.experiment, study.workload()
    assert study.map is not None
    wanted = study.map
    values, not_asked = _answerable(experiment, wanted, whole)
    plan = map_plan(experiment, wanted, values, run_id, simulation=simulation)
    return MapRequest(plan=plan, not_asked=not_asked)


def map_plan(
    experiment: Experiment, wanted: MapSettings, workload: Mapping[str, Any], run_id: str, *, simulation: bool
) -> MapPlan:
    """What the agencies are asked, with the noise whose one release costs `wanted.epsilon`; a seed in simulations only."""
    settings = experiment.settings
    privacy, shared = settings.privacy, settings.privacy.mechanism == "shared"
    noise = 0.0
    if privacy.mechanism != "none":
        try:
            noise = noise_for(wanted.epsilon, privacy.delta, 1.0, 1, shared=shared)
        except ValueError:
            raise SettingsError(TOO_LITTLE.format(wanted.epsilon)) from None
    values = experiment.plan_terms(run_id, simulation=simulation) | {
        "workload": json.dumps(workload),
        "mechanism": privacy.mechanism,
        "noise_multiplier": noise,
        "delta": privacy.delta,
        "without": {} if shared else wanted.without,
    }
    if shared:
        values["circle"] = _circle(experiment, workload)
    plan = checked(MapPlan, values)
    _must_be_drawn(plan, experiment, wanted)
    return plan


def _must_be_drawn(plan: MapPlan, experiment: Experiment, wanted: MapSettings) -> None:
    """`SettingsError` where every agency would refuse: a workload that is too large, or noise that nobody can draw."""
    from clients import counting

    contract = experiment.data_contract
    try:
        held = [p.name for p in experiment.participants if plan.design_of(contract, p.name) is not None]
    except Refused as refused:
        raise SettingsError(f"map.{refused.sentence}") from None
    try:
        for name in held:
            counting.design_of(plan, contract, name)
    except Refused:
        raise SettingsError(TOO_LITTLE.format(wanted.epsilon)) from None


def _circle(experiment: Experiment, workload: Mapping[str, Any]) -> dict[str, Any]:
    contract, privacy = experiment.data_contract, experiment.settings.privacy
    made = design(read_workload(workload, contract), contract.unit.rows)
    return {
        "agencies": tuple(sorted(p.name for p in experiment.participants)),
        "colluders": privacy.colluders,
        "dropouts": privacy.dropouts,
        "bits": BITS,
        "numbers": made.numbers,
        "sensitivity": made.sensitivity,
    }


def _answerable(
    experiment: Experiment, wanted: MapSettings, whole: Workload
) -> tuple[dict[str, Any], tuple[NotAsked, ...]]:
    """The workload with the queries that some agency can answer (behind masks: every one), and why not the others."""
    contract = experiment.data_contract
    shared = experiment.settings.privacy.mechanism == "shared"
    holders: dict[str, list[str]] = {query.name: [] for query in whole.queries}
    for participant in experiment.participants:
        columns = wanted.without.get(participant.name, ())
        for query in whole.held_by(contract, participant.kind, columns).queries:
            holders[query.name].append(participant.name)
    everybody = len(experiment.participants)
    asked, not_asked = [], []
    for query, raw in zip(whole.queries, wanted.workload["queries"], strict=True):
        names = holders[query.name]
        if names and not (shared and len(names) < everybody):
            asked.append(raw)
            continue
        why = "no agency holds all of its columns, or may be asked for them"
        if names:
            why = f"only {', '.join(names)} can answer it, and behind masks there is a sum of all alone: use privacy=local"
        not_asked.append(NotAsked(query=query.name, why=why))
    if not asked:
        raise SettingsError("\n".join(f"map.workload: {each.query}: {each.why}" for each in not_asked))
    return {**wanted.workload, "queries": asked}, tuple(not_asked)


# --- a simulation -------------------------------------------------------------------------------------


def _prepare(study: Study, folder: Path, request: MapRequest) -> tuple[MapJob, list[Path]]:
    """Everything that can go wrong before an agency is asked; what cannot start leaves no folder."""
    from experiments import engines

    experiment, plan = study.experiment, request.plan
    settings = experiment.settings
    folder.mkdir(parents=True)
    try:
        nodes = engines.make_node_folders(
            study.agencies,
            experiment.contract,
            folder / "nodes",
            seed=settings.seed,
            min_people=study.data.min_people,
            map_columns=plan.asked(experiment.data_contract).columns,
        )
        _check(nodes, experiment, plan)
        tracker = open_tracker(settings.tracking.uri, settings.name, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    facts = RunFacts(folder.name, settings.engine.name, simulation=True)
    return MapJob(experiment, facts, folder, request, tracker), nodes


def _check(nodes: Sequence[Path], experiment: Experiment, plan: MapPlan) -> None:
    """Simulation only, where the person here is the agencies' person too: say whose table cannot be counted.

    They are left out; `DataError` where that is everybody.
    """
    asked = [node for node in nodes if plan.asked_of(experiment.data_contract, node.name).queries]
    problems = table_problems(asked, lambda node: node.check_people(plan))
    if len(problems) == len(asked):
        alike = dict.fromkeys(line for lines in problems.values() for line in lines)
        raise DataError(*(f"no agency's table can be counted: {line}" for line in alike))
    say_left_out(problems)


def _run(job: MapJob, nodes: Sequence[Path]) -> dict[str, Any]:
    from experiments.engines import simulate

    log_to_file(job.folder)
    with explained(job.folder):
        return simulate(lambda grid: run_map_job(grid, job), nodes, job.experiment.settings.engine.name)


# --- the screen ---------------------------------------------------------------------------------------


def show_plan(
    console: Console, experiment: Experiment, request: MapRequest, plan_file: Path | None = None
) -> None:
    """What each answer will be known to, and what it costs, before anything is spent. `plan_file`: where the plan goes."""
    plan = request.plan
    many = "people" if experiment.data_contract.unit.kind == "person" else "records"
    if plan_file is not None:
        plan_file.write_text(plan.canonical)
    table = Table(title=f"What {plan.experiment} would be told, before anything is spent")
    table.add_column("answer", overflow="fold", ratio=1)
    for name in ("asked of", "numbers", "± at one", "± of all", "told from"):
        table.add_column(name, justify="right", no_wrap=True)
    for promise in promises(experiment, plan):
        one = "–" if promise.one is None else f"{1.96 * promise.one:,.0f}"
        of = promise.agencies[0] if len(promise.agencies) == 1 else f"{len(promise.agencies)} agencies"
        sizes = (f"{promise.cells:,}", one, f"{1.96 * promise.together:,.0f}", f"{promise.least:,.0f}")
        table.add_row(escape(promise.query.name), of, *sizes)
    console.print(table)
    console.print(
        f"±: 95 of 100 numbers are off by no more {many} (of a share: in its numerator), at one agency and of all together; "
        f"told from: so many {many} must be in a number of all for it to be told",
        style="dim",
        soft_wrap=True,
    )
    for each in request.not_asked:
        console.print(f"  [yellow]not asked[/]: {escape(each.query)}: {escape(each.why)}", soft_wrap=True)
    console.print(_price(experiment, plan), soft_wrap=True)
    whole = design(plan.asked(experiment.data_contract), experiment.data_contract.unit.rows)
    if whole.ratio < 0.995 and plan.mechanism != "none":
        console.print(
            f"gain    asked as one release, they are off by {whole.ratio:.0%} of what separate releases of the same total ε "
            f"would be (no release could do better than {whole.ratio_bound:.0%})",
            soft_wrap=True,
        )


def planned(experiment: Experiment, request: MapRequest) -> dict[str, Any]:
    """The same as JSON: each answer by its keys in map.json, before anything is spent."""
    plan = request.plan
    price = None if plan.mechanism == "none" else epsilon_at_several([list(plan.releases())], plan.delta, 1)
    return {
        "kind": "map-plan",
        "plan_sha256": plan.sha256,
        "epsilon": price,
        "queries": [
            {
                "name": promise.query.name,
                "agencies": list(promise.agencies),
                "numbers": promise.cells,
                "planned_sd": promise.together,
                "least": promise.least,
                "epsilon_for_minimum": promise.needs,
            }
            for promise in promises(experiment, plan)
        ],
        "not_asked": [json.loads(each.canonical) for each in request.not_asked],
    }


def _price(experiment: Experiment, plan: MapPlan) -> str:
    if plan.mechanism == "none":
        return (
            "privacy none: the counts are exact, and nobody's record is protected; simulations alone do that"
        )
    events = [list(plan.releases())] * len(plan.participants)
    several = [
        f"{epsilon_at_several(events, plan.delta, m):.2f} if known to {m}"
        for m in (2, 3)
        if m <= len(plan.participants)
    ]
    one = epsilon_at_several(events, plan.delta, 1)
    more = f", {', '.join(several)}" if several else ""
    whose = "noise shared behind masks" if plan.circle is not None else "each agency's own noise"
    return (
        f"price   ε = {one:.2f} for one {ONE[experiment.data_contract.unit.kind]} at one agency{more} (δ = {plan.delta:g}; "
        f"{whose}), for all answers together"
    )


def show(console: Console, found: Mapping[str, Any], folder: Path) -> None:
    """Who was counted, how much could be told, what it cost, and where the page is."""
    counted = [name for name, facts in found["agencies"].items() if facts["status"] == "counted"]
    people, many = found["people"], MANY[found["unit"]]
    about = (
        f"about {number(people['value'])} ({number(people['low'])} to {number(people['high'])}) {many}"
        if people["publishable"]
        else many
    )
    console.print(
        f"\n[bold]{found['experiment']}[/]: {about} at {len(counted)} of {len(found['agencies'])} agencies",
        soft_wrap=True,
    )
    for name, facts in found["agencies"].items():
        if facts["status"] != "counted":
            console.print(f"  [yellow]{name} is not in it[/]: {why_absent(facts)}", soft_wrap=True)
    cells = [cell for query in found["queries"] for cell in (query["together"] or {"cells": []})["cells"]]
    told = sum(cell["publishable"] for cell in cells)
    rest = "" if told == len(cells) else "; the page says what the others would take"
    console.print(f"told    {told:,} of {len(cells):,} numbers{rest}", soft_wrap=True)
    privacy = found["privacy"]
    if privacy["epsilon"] is not None:
        console.print(
            f"spent   ε = {privacy['epsilon']:.2f} at each agency that was counted ({privacy['ledger']})",
            soft_wrap=True,
        )
    console.print(f"result  {folder}/{MAP}\npage    {folder}/{found['files']['report']}", soft_wrap=True)
