"""`fedrisk retest`: a finished run's model measured again on the agencies' records of now, by one charged table."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.agencies import Agency
from experiments.config import Data, agencies_of
from experiments.run import check_tables, log_to_file, new_run_id, with_whole_paths
from federation import rereferral
from federation.decision import Decision, DecisionError, Signed, read_approval
from federation.experiment import Experiment, Settings, SettingsError, checked
from federation.panel import history
from federation.panel.binding import decision_on, draft_differences, false_entries
from federation.panel.files import PANEL, PanelError, read_panel
from federation.panel.runs import APPROVAL, FILES, MODEL, RESULT, Run, read_run
from federation.plan import Retest
from federation.protocol import weights_digest
from federation.retest import Decided, RetestRequest, Watched
from federation.scorecard import Measure
from federation.server.app import RETEST, run_retest_job
from federation.server.gates import at_of
from federation.server.result import RunFacts
from federation.server.retest import RetestJob, read_weights
from federation.server.tracking import open_tracker

DUE = 3  # the exit code, where it is asked for: 1 and 2 are other troubles
MAY_CHANGE = ("output", "tracking", "tracking.uri", "join_timeout", "round_timeout", "patience")


@dataclass(frozen=True)
class Subject:
    """The model that is measured again: its run's folder with what is in it, and the experiment that it came from."""

    run: Run
    experiment: Experiment

    @property
    def is_simulation(self) -> bool:
        return (self.run.folder / "data.json").is_file()


def retest_from(
    folder: Path,
    overrides: Sequence[str],
    *,
    decision: Path | None = None,
    thresholds: Sequence[str] = (),
    as_json: bool = False,
) -> bool | None:
    """Ask every simulated agency, write retest.json and retest.html, show them; whether re-referral is due.

    `SettingsError`, `DataError`, `RunError`.
    """
    subject = read_subject(folder)
    if not subject.is_simulation:
        raise SettingsError(f"{folder} was deployed: name its coordinator with --superlink")
    request = request_of(subject, decision, thresholds)
    found, at = _run(subject, request, overrides)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        show(found, at)
    is_due: bool | None = found["due"]
    return is_due


def submit_retest(
    superlink: str,
    folder: Path,
    overrides: Sequence[str],
    *,
    decision: Path | None = None,
    thresholds: Sequence[str] = (),
) -> None:
    """Check and hand over a retest of a deployed run; the model is read where the coordinator keeps that run."""
    from experiments import engines

    subject = read_subject(folder)
    if subject.is_simulation:
        raise SettingsError(f"{folder} is a simulation: leave out --superlink")
    request = request_of(subject, decision, thresholds)
    settings, data = changed(subject.experiment.settings, {}, overrides)
    if data:
        raise SettingsError(
            "data: the agencies' own nodes read their tables: leave data.* out with --superlink"
        )
    experiment = subject.experiment.but(settings=with_whole_paths(settings, engines.home_of(superlink)))
    run_id = _new_id(experiment)
    weights = read_weights(folder / FILES["weights_sha256"], request, experiment)
    retest = Retest(of=request.of, weights=weights_digest(weights))
    plan = experiment.retest_plan(run_id, retest, simulation=False)
    handed = engines.submit(superlink, experiment, run_id, retest=request.encode())
    place = f"{experiment.settings.output}/{run_id}"
    print(f"run     {run_id}, a retest of {request.of}, which Flower calls {handed}")
    print(f"plan    {plan.sha256}, by which agencies approve it")
    print(f"result  {place}/{RETEST} and retest.html, on the machine of the SuperLink")
    flwr, name = engines.flwr_of(superlink)
    print(f"watch   {flwr} log {handed} {name} --stream")


# --- which model, and what brings it back -------------------------------------------------------------


def read_subject(folder: Path) -> Subject:
    """The finished run in `folder`; `SettingsError` names each file that is missing, or is not of that run."""
    try:
        run = read_run(folder)
        for name in (RESULT, "experiment.json", FILES["card_sha256"], FILES["weights_sha256"]):
            if not (folder / name).is_file():
                raise PanelError(f"{folder / name} is missing: name the whole folder of a finished run")
        result, card, weights = run.result, run.card, run.hashes["weights_sha256"]
        if weights != card.weights_sha256:
            raise PanelError(
                f"{folder / FILES['weights_sha256']} is not the model that card.json is about "
                f"({card.weights_sha256[:12]}): its SHA-256 is {weights[:12]}; get the run's folder again"
            )
        experiment = checked(Experiment, (folder / "experiment.json").read_text())
        told = (result.get("run_id"), result.get("config_sha256"), experiment.data_contract.sha256)
        if told != (card.run_id, experiment.sha256, card.contract_sha256):
            raise PanelError(
                f"{folder}: {RESULT}, experiment.json and card.json are not of one run: get the run's folder again"
            )
    except PanelError as error:
        raise SettingsError(str(error)) from None
    return Subject(run, experiment)


def request_of(subject: Subject, decision: Path | None, thresholds: Sequence[str]) -> RetestRequest:
    """What is asked for: the thresholds of the decision, then those that were typed.

    decision: an approval.json or a panel's folder; None: the run's own model/approval.json, if it is there.
    """
    run = subject.run
    beside = run.folder / MODEL / APPROVAL
    path = beside if decision is None and beside.is_file() else decision
    try:
        said, facts = (None, None) if path is None else _decided(run, path)
    except (PanelError, DecisionError) as error:
        raise SettingsError("\n".join(f"decision: {line}" for line in str(error).splitlines())) from None
    texts = [(text, True) for text in (() if said is None else said.rereferral)]
    texts += [(text, False) for text in thresholds]
    metrics = at_of(run.result, "final", "metrics") or {}
    values = {
        "of": run.card.run_id,
        "weights_sha256": run.card.weights_sha256,
        "result_sha256": run.hashes["result_sha256"],
        "decision": facts,
        "watched": [
            Watched(text=text, decided=decided, then=_then(text, metrics)) for text, decided in texts if text
        ],
    }
    return checked(RetestRequest, values)


def _decided(run: Run, path: Path) -> tuple[Decision, Decided]:
    """The decision on `run` in a panel's folder or in an approval.json; one of another model is a problem."""
    if (path / PANEL).is_file():
        panel, entries = read_panel(path), history.read(path)
        false = false_entries(entries, panel)
        if false:
            raise PanelError("\n".join(false))
        signed, verified = decision_on(entries, run).signed, True
    else:
        try:
            signed, verified = read_approval(path.read_text(encoding="utf-8")).decision, False
        except (OSError, UnicodeDecodeError):
            raise PanelError(f"{path} cannot be read: name an approval.json or a panel's folder") from None
    said: Decision = signed.read(Decision)
    differ = [line for line in draft_differences(run, signed.digest, said) if "gates.json" not in line]
    if differ:
        raise PanelError("\n".join(differ))
    return said, _facts(signed, said, verified)


def _facts(signed: Signed, said: Decision, verified: bool) -> Decided:
    same = ("panel", "verdict", "decided", "expires", "owner")
    return Decided(
        decision_sha256=signed.digest, verified=verified, **{name: getattr(said, name) for name in same}
    )


def _then(text: str, metrics: Mapping[str, Any]) -> Measure | None:
    """What the run's own test had of a threshold, if it may be shown."""
    estimate = rereferral.judge(text, metrics).estimate
    if estimate is None or not estimate["publishable"]:
        return None
    return Measure(**{end: estimate[end] for end in ("value", "low", "high")})


# --- a simulation ---------------------------------------------------------------------------------------


def changed(
    settings: Settings, data: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[Settings, dict[str, Any]]:
    """How the retest is done, and whose data it takes; `SettingsError` where an override would change the model's run."""
    from omegaconf import OmegaConf

    wrong = [each for each in overrides if "=" not in each or not _may_change(each.partition("=")[0])]
    if wrong:
        raise SettingsError(
            "\n".join(
                f"{each!r} cannot be used: a retest measures the model as it was agreed, and takes data.*=... and "
                f"{', '.join(f'{name}=...' for name in MAY_CHANGE)} alone"
                for each in wrong
            )
        )
    given: Any = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    if isinstance(given.get("tracking"), str):
        given["tracking"] = {"uri": given["tracking"]}
    elsewhere = given.pop("data", {})
    merged: Any = OmegaConf.to_container(OmegaConf.merge(dict(data), elsewhere))
    return checked(Settings, {**json.loads(settings.canonical), **given}), merged


def _may_change(key: str) -> bool:
    return key in MAY_CHANGE or key.startswith("data.")


def _run(subject: Subject, request: RetestRequest, overrides: Sequence[str]) -> tuple[dict[str, Any], Path]:
    folder = subject.run.folder
    at_home = subject.experiment.settings.but(output=str(folder.parent))
    given = json.loads((folder / "data.json").read_text())
    settings, values = changed(at_home, given, overrides)
    data, experiment = checked(Data, values), subject.experiment.but(settings=settings)
    agencies = as_agreed(agencies_of(data, settings.output), experiment)
    at = Path(settings.output) / _new_id(experiment)
    at.mkdir(parents=True)
    try:
        job, nodes = _prepare(experiment, data, agencies, RetestFacts(subject, request, at))
    except BaseException:
        shutil.rmtree(at, ignore_errors=True)
        raise
    log_to_file(at)
    return _ask(job, nodes), at


@dataclass(frozen=True)
class RetestFacts:
    """Of which model, what is asked, and where the answer goes."""

    subject: Subject
    request: RetestRequest
    at: Path


def _prepare(
    experiment: Experiment, data: Data, agencies: Sequence[Agency], told: RetestFacts
) -> tuple[RetestJob, list[Path]]:
    """Everything that can go wrong before an agency is asked."""
    from experiments import engines

    seed = experiment.settings.seed
    nodes = engines.make_node_folders(
        agencies, experiment.contract, told.at / "nodes", seed=seed, min_people=data.min_people
    )
    check_tables(nodes, experiment)
    tracker = open_tracker(experiment.settings.tracking.uri, experiment.settings.name, told.at)
    model = told.subject.run.folder / FILES["weights_sha256"]
    facts = RunFacts(told.at.name, "local", simulation=True)
    return RetestJob(experiment, facts, told.at, told.request, model, tracker), nodes


def _ask(job: RetestJob, nodes: Sequence[Path]) -> dict[str, Any]:
    from experiments.engines import simulate

    return simulate(lambda grid: run_retest_job(grid, job), nodes)


def as_agreed(agencies: Sequence[Agency], experiment: Experiment) -> tuple[Agency, ...]:
    """The tables of now under the kinds, sizes and weights that the run agreed on; the same agencies, no other."""
    by_name = {agency.name: agency for agency in agencies}
    agreed = {participant.name: participant for participant in experiment.participants}
    if set(by_name) != set(agreed):
        differ = ", ".join(sorted(set(by_name) ^ set(agreed)))
        raise SettingsError(
            f"data: the agencies are not those of the run, {differ} differ: a retest asks the agencies that agreed to it"
        )
    return tuple(
        replace(by_name[name], kind=p.kind, public_size=p.public_size, weight=p.weight)
        for name, p in agreed.items()
    )


def _new_id(experiment: Experiment) -> str:
    return new_run_id(f"{experiment.settings.name[:35]}-retest")


# --- the screen -----------------------------------------------------------------------------------------


def show(found: Mapping[str, Any], at: Path) -> None:
    """Each threshold with what was found, what it cost, where the files are, and the conclusion last."""
    from experiments.screen import privacy_line

    console = Console(highlight=False)
    console.print(
        f"[bold]{found['experiment']}[/]: the model of {found['retest_of']}, measured again", soft_wrap=True
    )
    for name, facts in found["agencies"].items():
        if facts["status"] != "counted":
            console.print(f"  [yellow]{name} is not in it[/]: {facts['reason']}")
    decision = found["decision"]
    if decision is not None:
        checked_ = "" if decision["verified"] else "; signatures not checked (--decision PANEL_FOLDER does)"
        ends = "never" if decision["expires"] is None else decision["expires"][:10]
        console.print(
            f"decision {decision['decision_sha256'][:12]} of {escape(decision['panel'])}, ends {ends}{checked_}",
            soft_wrap=True,
        )
    if found["thresholds"]:
        console.print(_thresholds(found["thresholds"]))
    console.print(f"privacy {privacy_line(found['privacy'])}", soft_wrap=True)
    console.print(f"result  {at}/{RETEST}\nreport  {at}/{found['files']['report']}", soft_wrap=True)
    console.print(escape(found["conclusion"]), style="bold red" if found["due"] else "bold", soft_wrap=True)


def _thresholds(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table()
    for name in ("it goes back if", "then", "now", "95% interval", ""):
        table.add_column(name, justify="right" if name in ("then", "now") else "left", overflow="fold")
    for row in rows:
        now = row["found"] if row["found"] is not None and row["found"]["publishable"] else None
        verdict = row["verdict"] + (", may be noise" if row["may_be_noise"] else "")
        ends = "–" if now is None else f"{_number(now['low'])} to {_number(now['high'])}"
        values = ["–" if each is None else _number(each["value"]) for each in (row["then"], now)]
        style = "red" if row["verdict"] == "due" else ""
        text = row["text"] + ("" if row["decided"] else " (not by the decision)")
        table.add_row(escape(text), *values, ends, verdict, style=style)
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3f}"
