"""A model measured again: one order for one charged table of the agencies' test people, and nothing that trains.

The result is `retest.json` (schema 1), JSON-clean: METRICS as in result.json, ε per agency, and each sentence of the
decision that says what brings the model back to its panel, with what was found (`federation.rereferral`).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid
from safetensors import SafetensorError, safe_open

from federation import installed, rereferral
from federation.experiment import Experiment
from federation.plan import Reason, Retest, TrainPlan
from federation.protocol import RoundOrder, Weights, weights_digest
from federation.rereferral import Found
from federation.retest import RetestRequest, Watched
from federation.scorecard import WEIGHTS
from federation.server.exchange import Federation, Round, RunError, meet, quorum, status_of, too_few
from federation.server.joining import Departures
from federation.server.result import RunFacts, agency_facts, checkpoint_record, privacy_facts, run_header
from federation.server.rounds import Asker, Heads, charged
from federation.server.tracking import Tracker

MEASURED = 0  # the round after which the weights are measured: a retest has none


@dataclass(frozen=True)
class RetestJob:
    """One retest to do: of which experiment's model, what else is asked, and the folder where it is kept.

    `model` is the model.safetensors of the run that the request names.
    """

    experiment: Experiment
    facts: RunFacts
    folder: Path
    request: RetestRequest
    model: Path
    tracker: Tracker


def run_retest(grid: Grid, job: RetestJob) -> dict[str, Any]:
    """Ask every agency on `grid` for one table; what retest.json holds.

    A deployed coordinator keeps ledgers' heads and departures beside the job's folder, as in a run. `RunError` where the
    model is not the one that was asked for, or too few agencies sent a table: what was charged stays charged.
    """
    experiment, facts = job.experiment, job.facts
    weights = read_weights(job.model, job.request, experiment)
    retest = Retest(of=job.request.of, weights=weights_digest(weights))
    plan = experiment.retest_plan(facts.run_id, retest, simulation=facts.simulation)
    home = job.folder if facts.simulation else job.folder.parent
    heads, departures = Heads(home), Departures(home)
    federation = meet(grid, experiment, plan, heads.read())
    job.tracker.start(
        run_header(experiment, plan, facts, federation.status) | {"retest_of": retest.of, "resumed_at": 0}
    )
    got = Asker(grid, experiment, federation, job.folder).ask(RoundOrder(plan, 1, weights, False, ("test",)))
    heads.keep(federation.heads)
    departures.note(federation.status, facts.run_id, 1)
    if len(got.replied) < quorum(experiment, len(got.rejected)) or not got.tables:
        raise RunError(got.void or too_few(experiment, federation, "the retest"))
    return _result(job, plan, federation, got) | {"departures": departures.of(plan)}


def read_weights(path: Path, request: RetestRequest, experiment: Experiment) -> Weights:
    """The model of the run that `request` names; `RunError` where the file is not that one, or of another contract."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(
            f"{path} cannot be read ({error.strerror}): the model of run {request.of} must lie where the run was made"
        ) from None
    if hashlib.sha256(content).hexdigest() != request.weights_sha256:
        raise RunError(
            f"{path} is not the {WEIGHTS} that was asked for: it was changed; get the run's folder again"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            told = file.metadata() or {}
    except (SafetensorError, OSError):
        raise RunError(f"{path} is not a model as a run writes it") from None
    if (told.get("run_id"), told.get("contract_sha256")) != (request.of, experiment.data_contract.sha256):
        raise RunError(f"{path} is the model of another run or contract than {request.of}")
    return weights


def judged(watched: Watched, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """One sentence of the decision held against METRICS, for retest.json."""
    found = rereferral.judge(watched.text, metrics)
    threshold = found.threshold
    return {
        "text": watched.text,
        "decided": watched.decided,
        "threshold": None if threshold is None else asdict(threshold) | {"reads": str(threshold)},
        "then": None if watched.then is None else json.loads(watched.then.canonical),
        "found": None if found.estimate is None else dict(found.estimate),
        "verdict": found.verdict,
        "may_be_noise": found.may_be_noise,
        "sentence": found.sentence,
    }


def _became(federation: Federation, got: Round) -> dict[str, dict[str, Any]]:
    """What became of each agency: `counted`, or why it is not in the sum."""
    found = dict(federation.status)
    found |= {name: {"status": "counted", "reason": None} for name in got.replied}
    found |= {name: {"status": "late", "reason": "did not answer"} for name in got.late}
    found |= {name: {"status": status_of(Reason(why)), "reason": why} for name, why in got.refused.items()}
    return found | {name: {"status": "rejected", "reason": why} for name, why in got.rejected.items()}


def _result(job: RetestJob, plan: TrainPlan, federation: Federation, got: Round) -> dict[str, Any]:
    experiment, facts, request = job.experiment, job.facts, job.request
    contract, status = experiment.data_contract, _became(federation, got)
    tables = {f"test/{MEASURED}/{whose}": table for whose, table in got.tables["test"].items()}
    orders = {name: {"train": 0, "tune": 0, "test": 1, "rounds": 0} for name in charged(got)}
    final = checkpoint_record(experiment, plan, "test", MEASURED, tables, orders)
    found: list[Found] = [rereferral.judge(watched.text, final["metrics"]) for watched in request.watched]
    return {
        "schema": 1,
        "run_id": facts.run_id,
        "retest_of": request.of,
        "status": "finished",
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "fedrisk_version": installed.version(),
        "code_sha256": installed.code_sha256(),
        "experiment": plan.experiment,
        "purpose": plan.purpose,
        "engine": facts.engine,
        "simulation": facts.simulation,
        "plan_sha256": plan.sha256,
        "weights_sha256": request.weights_sha256,
        "result_sha256": request.result_sha256,
        "registration_sha256": None if plan.registration is None else plan.registration.digest,
        "contract": {"name": contract.name, "version": contract.version, "sha256": contract.sha256},
        "decision": None if request.decision is None else json.loads(request.decision.canonical),
        "thresholds": [judged(watched, final["metrics"]) for watched in request.watched],
        "due": rereferral.due(found),
        "conclusion": rereferral.conclusion(found),
        "privacy": privacy_facts(experiment, plan, facts, orders),
        "agencies": {
            participant.name: agency_facts(experiment, plan, participant.name, status, orders)
            for participant in plan.participants
        },
        "final": final | {"rejected": got.rejected},
        "files": {"report": "retest.html"},
    }
