"""`fedrisk`: the data scientist's command. Bad input is one clear sentence and exit code 1."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import typer

from experiments.coordinator.cli import app as coordinator

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

Answer = TypeVar("Answer")
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
KEY_VALUE = "[OPTIONS] [KEY=VALUE]..."
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing but the last line.")]
PlanFile = Annotated[
    Path | None,
    typer.Option(help="Also write the plan that agencies are asked, for `fedrisk-node policy check`."),
]
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # else [overrides] is read as markup, and lines of a docstring are not joined
    help="Learn across agencies without linking anybody: map demand, count whom they both know, train one private risk "
    "model, and compare what it costs. New here? Try `fedrisk map experiment=pilot`, on a made-up town.",
)
app.add_typer(coordinator, name="coordinator")


@app.command(context_settings=PASS_ON)
def run(context: typer.Context, quiet: Quiet = False) -> None:
    """Run an experiment: fedrisk run experiment=heart privacy.epsilon=1 (see: fedrisk run --help)."""
    from experiments.run import run_with_hydra

    guarded(lambda: run_with_hydra(context.args, quiet=quiet))


@app.command()
def resume(
    run_id: Annotated[str, typer.Argument(help="The run's name: a folder under outputs/.")],
    output: Annotated[str, typer.Option(help="Where runs are kept.")] = "outputs",
    superlink: Annotated[
        str | None,
        typer.Option(help="Of a deployed run: the coordinator's folder, or a name in ~/.flwr/config.toml."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Go on with a run that was stopped, from its last whole round, to the same weights.

    Examples: fedrisk resume demo-20260101-120000-1a2b
    fedrisk resume pilot-20260101-120000-1a2b --superlink coordinator --output coordinator/outputs
    """
    from experiments.run import resume_run, resume_submitted

    if superlink is not None:
        guarded(lambda: resume_submitted(superlink, Path(output) / run_id))
        return
    guarded(lambda: resume_run(Path(output) / run_id, quiet=quiet))


@app.command()
def track(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    uri: Annotated[
        str | None, typer.Option("--uri", help="MLflow's address; by default the run's own tracking.uri.")
    ] = None,
) -> None:
    """Write a finished run into MLflow: where its server was down during the run, or for another MLflow.

    Name and password come from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, never from the address.

    Example: fedrisk track outputs/demo-20260101-120000-1a2b --uri https://mlflow.example.org
    """
    from experiments.track import track_run

    page = guarded(lambda: track_run(folder, uri))
    print(f"tracked  {folder.name}" + (f"; its experiment is {page}" if page else ""))


@app.command(context_settings=PASS_ON | {"help_option_names": ["--help"]})
def compare(context: typer.Context, quiet: Quiet = False) -> None:
    """Compare pooled, federated, private at several ε, each agency alone, and scikit-learn, over seeds.

    Example: fedrisk compare experiment=compas compare.seeds=5 'compare.epsilons=[1,3]'
    """
    from experiments.compare import compare_from

    guarded(lambda: compare_from(context.args, quiet=quiet))


@app.command(context_settings=PASS_ON | {"help_option_names": ["--help"]})
def submit(
    context: typer.Context,
    superlink: Annotated[
        str, typer.Argument(help="A running coordinator's folder, or a connection in ~/.flwr/config.toml.")
    ],
    plan_file: PlanFile = None,
) -> None:
    """Hand a run to a Flower SuperLink: fedrisk submit my-superlink experiment=own data.agencies=agencies.yaml

    The agencies' nodes read their own tables; only their names, kinds and public sizes are sent.
    """
    from experiments.run import submit_run

    guarded(lambda: submit_run(superlink, context.args, plan_file))


@app.command(context_settings=PASS_ON | {"help_option_names": ["--help"]})
def plan(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw the curves, into a file.svg or file.png.")
    ] = None,
    plan_file: PlanFile = None,
) -> None:
    """Say what a configuration costs, before anything is spent, and what noise, rounds and sampling meet a budget.

    No record is read and no agency is asked. Without arguments it plans the demo.

    Example: fedrisk plan strategy=dp_fedsgd privacy=shared privacy.epsilon=1 --plot plan.svg
    """
    from experiments.planning import plan_from

    guarded(lambda: plan_from(context.args, as_json=as_json, plot=plot, plan_file=plan_file))


@app.command(context_settings=PASS_ON | {"help_option_names": ["--help"]})
def draft(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="The new YAML file.")] = Path("registration.yaml"),
    audit: Annotated[
        Path | None, typer.Option(help="What `fedrisk audit` wrote: what it found is signed with the rest.")
    ] = None,
    replaces: Annotated[
        Path | None,
        typer.Option(metavar="RUN_FOLDER", help="The run whose model stands until now, to be compared with."),
    ] = None,
) -> None:
    """Write down a run before it begins, for an ethics panel to complete and sign (fedrisk-panel register).

    No record is read. Once it is signed, fedrisk run and submit take registration=registration.json, and run
    exactly that: an edit after the registration voids it.

    Example: fedrisk draft experiment=own data.agencies=agencies.yaml gates=default --out registration.yaml
    """
    from experiments.drafting import draft_from

    guarded(lambda: draft_from(context.args, out, audit, replaces))


@app.command(context_settings=PASS_ON | {"help_option_names": ["--help"]})
def stats(
    context: typer.Context,
    column: Annotated[
        str, typer.Argument(help="A number in the agencies' tables; the contract need not have it.")
    ],
    epsilon: Annotated[float, typer.Option(help="What it costs a person (or row), beside training.")] = 0.5,
    quantiles: Annotated[
        str, typer.Option(help="Shares of people; more of them cost nothing more.")
    ] = "0.01,0.25,0.5,0.75,0.99",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    superlink: Annotated[
        str | None,
        typer.Option(help="Ask deployed agencies: a coordinator's folder, or a name in ~/.flwr/config.toml."),
    ] = None,
) -> None:
    """Noisy quantiles of a column, to write its min and max into a contract without opening a table.

    One release, which each agency noises by itself (privacy=shared is not offered here) and charges: it adds to
    what training costs. Over simulated agencies; with --superlink over deployed ones, whose policy.toml must list
    the column in stats_columns.

    Example: fedrisk stats rent experiment=own data.agencies=agencies.yaml --epsilon 0.5
    """
    from experiments.stats import stats_from, submit_stats

    if superlink is not None:
        guarded(lambda: submit_stats(superlink, column, context.args, epsilon=epsilon, quantiles=quantiles))
        return
    guarded(lambda: stats_from(column, context.args, epsilon=epsilon, quantiles=quantiles, as_json=as_json))


@app.command("map", context_settings=PASS_ON | {"help_option_names": ["--help"]}, options_metavar=KEY_VALUE)
def demand_map(
    context: typer.Context,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what would be known and what it costs; ask nobody.")
    ] = False,
    plan_file: PlanFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    superlink: Annotated[
        str | None,
        typer.Option(help="Ask deployed agencies: a coordinator's folder, or a name in ~/.flwr/config.toml."),
    ] = None,
) -> None:
    """Map demand over the agencies from noisy counts: needs, areas, rates, months; nobody is linked, no model trained.

    All queries of a workload (conf/map) are one charged release of each agency. Before anything is spent it says how
    exactly each answer will be known and what that costs. Writes map.json, map.html and a CSV for each answer.

    Examples: fedrisk map experiment=pilot --plan

    fedrisk map experiment=pilot map.epsilon=0.5

    fedrisk map experiment=own data.agencies=agencies.yaml map=own map.workload=workload.yaml

    The same of deployed agencies, one of which may not be asked for a column: add
    --superlink coordinator "map.without={police: [sex]}"
    """
    from experiments.demand import map_from, submit_map

    if superlink is not None:
        guarded(lambda: submit_map(superlink, context.args, plan_only=plan, plan_file=plan_file))
        return
    guarded(lambda: map_from(context.args, plan_only=plan, plan_file=plan_file, as_json=as_json))


@app.command(
    context_settings=PASS_ON | {"help_option_names": ["--help"]},
    options_metavar=f"AGENCY AGENCY [AGENCY] {KEY_VALUE}",
)
def cohort(
    context: typer.Context,
    epsilon: Annotated[
        float, typer.Option(help="What it costs a person at each agency, beside all else.")
    ] = 1.0,
    by: Annotated[
        str | None, typer.Option(metavar="GROUP", help="An audit group, to tell its levels apart.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    superlink: Annotated[
        str | None,
        typer.Option(help="Ask deployed agencies: a coordinator's folder, or a name in ~/.flwr/config.toml."),
    ] = None,
) -> None:
    """How many people two or three agencies both know, with an interval.

    No identifier is shared and nobody is matched: each agency sends one noised histogram of hashes under a secret
    that the agencies agree and the coordinator never has. The contract's `match` says who is the same person. What it
    spends, and how close the number will be, is printed first. Deployed agencies must list the columns in map_columns
    and each other in cohort_peers of policy.toml.

    Examples: fedrisk cohort police health experiment=pilot

    fedrisk cohort police health experiment=own data.agencies=agencies.yaml --epsilon 1 --by sex
    """
    from experiments.cohort import cohort_from, submit_cohort

    if superlink is not None:
        guarded(lambda: submit_cohort(superlink, context.args, epsilon=epsilon, by=by))
        return
    guarded(lambda: cohort_from(context.args, epsilon=epsilon, by=by, as_json=as_json))


@app.command(context_settings=PASS_ON | {"help_option_names": ["--help"]})
def retest(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="The folder of a finished run.")],
    decision: Annotated[
        Path | None,
        typer.Option(
            help="Whose thresholds are measured: an approval.json, or the panel's folder, which also checks the "
            "signatures. Default: RUN_FOLDER/model/approval.json, if it is there."
        ),
    ] = None,
    threshold: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help='One more, as "AUC below 0.70". Repeatable.')
    ] = None,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit code 3 where re-referral is due.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    superlink: Annotated[
        str | None,
        typer.Option(help="Of a deployed run: the coordinator's folder, or a name in ~/.flwr/config.toml."),
    ] = None,
) -> None:
    """Measure a finished run's model again, on the agencies' records of now, and say whether it must go back to its panel.

    Each agency charges one table of its test people, and nothing is trained. Writes retest.json and retest.html.

    Examples: fedrisk retest outputs/own-20310304-120000-1a2b data.agencies=this-year/agencies.yaml --threshold "AUC below 0.70"

    fedrisk retest coordinator/outputs/pilot-20310304-120000-1a2b --superlink coordinator --decision panel
    """
    from experiments.retest import DUE, retest_from, submit_retest

    asked = (folder, context.args)
    if superlink is not None:
        guarded(lambda: submit_retest(superlink, *asked, decision=decision, thresholds=threshold or []))
        return
    due = guarded(lambda: retest_from(*asked, decision=decision, thresholds=threshold or [], as_json=as_json))
    if exit_code and due:
        raise typer.Exit(DUE)


@app.command()
def signs(
    maps: Annotated[
        list[Path], typer.Argument(metavar="MAP...", help="Folders of finished maps, or their map.json.")
    ],
    max_lag: Annotated[int, typer.Option(help="The longest lag, in months.")] = 6,
    output: Annotated[
        Path | None, typer.Option(help="The folder for signs.json; by default that of the first map.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Early-warning signs: which counts by area and month at one agency go ahead of which at another, and by how long.

    It reads what maps released, asks nobody and spends nothing. A sign is no cause, and says nothing about a person.

    Example: fedrisk signs outputs/map-20310304-120000-1a2b --max-lag 6
    """
    from experiments.signs import signs_from

    guarded(lambda: signs_from(maps, max_lag=max_lag, output=output, as_json=as_json))


@app.command()
def check(
    agencies: Annotated[str, typer.Argument(help="Your agencies.yaml.")],
    min_people: Annotated[int, typer.Option(help="Fewest people that an agency may have.")] = 50,
) -> None:
    """Check a contract and every agency's table, before any run: fedrisk check path/to/agencies.yaml"""
    from experiments.run import check_agencies

    guarded(lambda: check_agencies(Path(agencies), min_people))


@app.command("pilot-data")
def pilot_data(
    folder: Annotated[Path, typer.Argument(help="An empty folder, or one that is not there yet.")],
    agencies: Annotated[
        str, typer.Option(help="Some of police, health, probation, housing, children, with commas.")
    ] = "police,health",
    people: Annotated[
        float, typer.Option(help="The size of everything: 1 is 6,000 people at the police.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Which town.")] = 7,
) -> None:
    """Write made-up tables of two agencies or more, their contract and what to ask, to try all of it with nobody's data.

    Examples: fedrisk pilot-data town

    fedrisk pilot-data town --agencies police,health,housing --people 0.5
    """
    from experiments.pilot_data import write_pilot_data

    names = [name.strip() for name in agencies.split(",")]
    for path in guarded(lambda: write_pilot_data(folder, names, people=people, seed=seed)):
        print(path)


@app.command()
def audit(
    epsilon: Annotated[float, typer.Option(help="The claim: noise is chosen for this ε.")] = 4.0,
    delta: Annotated[float, typer.Option(help="The δ of the claim.")] = 1e-5,
    mechanism: Annotated[str, typer.Option(help="local, shared or both.")] = "both",
    model: Annotated[str, typer.Option(help="logistic or mlp.")] = "logistic",
    sample_rate: Annotated[float, typer.Option(help="q, the chance that a person is in a step.")] = 0.1,
    rounds: Annotated[int, typer.Option(help="Rounds that the claim covers.")] = 200,
    canaries: Annotated[int, typer.Option(help="Planted people of each setting, 100 to 8000.")] = 2000,
    confidence: Annotated[float, typer.Option(help="Of each lower bound by itself.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Repeats the audit.")] = 0,
    copy: Annotated[
        Path | None, typer.Option(help="agencies.yaml of a COPY, for membership inference on its people.")
    ] = None,
    this_is_a_copy: Annotated[bool, typer.Option(help="Declares that --copy is no node's data.")] = False,
    out: Annotated[Path, typer.Option(help="The JSON file.")] = Path("outputs/audit.json"),
    quiet: Quiet = False,
) -> None:
    """Try to break the privacy claim, on made-up people; exit code 1 where a bound exceeds its claim.

    Canaries are planted among made-up people and sent through the project's own training and tables; what
    leaves is attacked by somebody who knows all but who was in. Each bound is what ε is at least. No ledger is
    charged, so it takes no node's folder: only a declared copy that lies outside of every one.

    Example: fedrisk audit --epsilon 1 --mechanism shared --model mlp
    """
    from experiments.audit.command import AuditOptions, audit_command

    given = (epsilon, delta, mechanism, model, sample_rate, rounds, canaries, confidence, seed)
    options = AuditOptions(*given, copy, this_is_a_copy, out, quiet)  # type: ignore[arg-type]
    raise typer.Exit(guarded(lambda: audit_command(options)))


def guarded(act: Callable[[], Answer]) -> Answer:
    """Run `act`; a known problem is printed as its sentences, with exit code 1."""
    from experiments.run import PROBLEMS, said

    try:
        return act()
    except (*PROBLEMS, OSError) as error:
        stop(said(error))


def stop(sentences: str) -> NoReturn:
    """Print each line of `sentences` to stderr and leave with exit code 1."""
    for sentence in sentences.splitlines():
        print(f"fedrisk: {sentence}", file=sys.stderr)
    raise SystemExit(1)


def main() -> None:
    """The console entry point."""
    app()


if __name__ == "__main__":
    main()
