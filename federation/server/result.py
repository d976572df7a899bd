"""`result.json`: the evidence of a run, schema 1, documented in docs/result.md.

Everything in it is public, agreed, or came out of noised tables. ε is computed from the orders that
were sent: a reply that got lost was charged at the agency all the same.
"""

import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce
from operator import add
from typing import Any, Literal

import numpy as np

from federation import installed
from federation.experiment import Experiment
from federation.plan import Terms
from federation.privacy import VIEWERS, Viewer, epsilon_at_several, epsilon_by_kind
from federation.protocol import TrainPlan
from federation.release import GaussianEvent
from federation.server import bounds, fair
from federation.server.analysis import analysis
from federation.server.card import score_tables, scoring
from federation.server.checkpoint import Checkpoint
from federation.server.users import users_of
from models.capacity import Capacity, cutoff_within
from models.contract import Contract
from models.features import layout
from models.metrics import summarise

CHOOSING: tuple[Literal["tune", "test"], ...] = (
    "tune",
    "test",
)  # whose table chooses a cutoff, if it is there

Orders = Mapping[str, Mapping[str, int]]

_epsilon_by_kind = functools.lru_cache(maxsize=1024)(epsilon_by_kind)  # most agencies are asked as often


@dataclass(frozen=True)
class RunFacts:
    """What the entry point knows of a run: its name, engine, and whose ledgers were charged."""

    run_id: str
    engine: str
    simulation: bool


def run_header(
    experiment: Experiment, plan: TrainPlan, facts: RunFacts, status: Mapping[str, Any]
) -> dict[str, Any]:
    """What is known when a run starts, for those who watch it: hashes, settings, contract, plan, agencies."""
    return {
        "run_id": facts.run_id,
        "fedrisk_version": installed.version(),
        "experiment": experiment.settings.name,
        "purpose": experiment.settings.purpose,
        "engine": facts.engine,
        "config_sha256": experiment.sha256,
        "plan_sha256": plan.sha256,
        "code_sha256": installed.code_sha256(),
        "config": json.loads(experiment.settings.canonical),
        "contract": experiment.data_contract.to_dict(),
        "plan": json.loads(plan.canonical),
        "agencies": {p.name: json.loads(p.canonical) for p in plan.participants},
        "status": dict(status),
    }


def asked_header(contract: Contract, plan: Terms, facts: RunFacts) -> dict[str, Any]:
    """How the answer to one question begins (a statistic, a map, a cohort): when, what for, under which contract and plan."""
    return {
        "schema": 1,
        "run_id": facts.run_id,
        "status": "finished",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "fedrisk_version": installed.version(),
        "experiment": plan.experiment,
        "purpose": plan.purpose,
        "engine": facts.engine,
        "simulation": facts.simulation,
        "plan_sha256": plan.sha256,
        "contract": {"name": contract.name, "version": contract.version, "sha256": contract.sha256},
        "unit": contract.unit.kind,
    }


def build_result(
    experiment: Experiment, plan: TrainPlan, facts: RunFacts, status: Mapping[str, Any], state: Checkpoint
) -> dict[str, Any]:
    """The result of a finished run, JSON-clean."""
    settings, contract = experiment.settings, experiment.data_contract
    orders: Orders = state.history["orders"]
    features = len(layout(contract).names)
    records = state.history["checkpoints"]
    final = next(record for record in reversed(records) if record["part"] == "test")
    return {
        "schema": 1,
        "run_id": facts.run_id,
        "status": "finished",
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "fedrisk_version": installed.version(),
        "experiment": settings.name,
        "purpose": settings.purpose,
        "seed": settings.seed,
        "engine": facts.engine,
        "simulation": facts.simulation,
        "config_sha256": experiment.sha256,
        "plan_sha256": plan.sha256,
        "code_sha256": installed.code_sha256(),
        "registration": None
        if experiment.registration is None
        else {
            "sha256": experiment.registration.digest,
            "signed": json.loads(experiment.registration.canonical),
        },
        "contract": {
            "name": contract.name,
            "version": contract.version,
            "sha256": contract.sha256,
            "label": contract.label.column,
            "horizon": contract.label.horizon,
            "description": contract.description,
        },
        "model": {
            "name": settings.model.name,
            "hidden": list(settings.model.hidden),
            "features": features,
            "parameters": int(sum(value.size for value in state.weights.values())),
        },
        "strategy": settings.strategy.model_dump(),
        "robustness": bounds.facts(experiment, plan),
        "rounds_planned": plan.rounds,
        "privacy": privacy_facts(experiment, plan, facts, orders),
        "agencies": {
            participant.name: agency_facts(experiment, plan, participant.name, status, orders)
            | trouble(participant.name, state.history["rounds"])
            for participant in plan.participants
        },
        "rounds": state.history["rounds"],
        "checkpoints": [record for record in records if record["part"] == "tune"],
        "final": final,
        "disclosure": settings.evaluation.rule.to_dict(),
        "tables": "per_agency" if plan.privacy.shared is None else "summed",
        "analysis": _analysis(experiment, plan, final["round"], state),
        "scoring": scoring(experiment, plan, final["round"], state.tables),
        "users": users_of(experiment, plan, final["round"], state.tables),
        "reference": None,
        "cautions": [],
        "fairness_training": fair.facts(settings.fairness, state.history.get("fairness")),
        "files": {
            "report": "report.html",
            "evidence": "evidence.json",
            "model_card": "model-card.json",
            "atrs": "atrs.json",
            "model": "model/model.safetensors",
            "checkpoints": "checkpoints",
        },
    }


def releases_of(plan: TrainPlan, counts: Mapping[str, int]) -> list[GaussianEvent]:
    """The releases that `counts` orders of each kind were charged as."""
    made = [plan.train_release()] * counts.get("train", 0)
    made += [plan.table_release("tune")] * counts.get("tune", 0)
    return made + [plan.table_release("test"), *plan.users_releases()] * counts.get("test", 0)


def checkpoint_record(
    experiment: Experiment,
    plan: TrainPlan,
    part: str,
    measured: int,
    tables: Mapping[str, np.ndarray],
    orders: Orders,
) -> dict[str, Any]:
    """Metrics of the weights after round `measured`, from the noised tables of all agencies."""
    contract = experiment.data_contract
    known = score_tables(plan, part, measured, tables)
    settings = experiment.settings.evaluation
    metrics = None
    if known:
        metrics = summarise(
            known,
            contract.group_margins,
            settings.cutoff,
            settings.rule,
            capacity=_capacity(settings.capacity, plan, part, measured, tables),
            per_agency=plan.privacy.shared is None,
        )
    return {
        "round": measured,
        "part": part,
        "epsilon_busiest": busiest(plan, orders),
        "epsilon": {name: agency_epsilon(plan, counts) for name, counts in sorted(orders.items())},
        "metrics": metrics,
    }


def _capacity(
    share: float | None, plan: TrainPlan, part: str, measured: int, tables: Mapping[str, np.ndarray]
) -> Capacity | None:
    """The cutoff for a capacity of `share`, chosen on tune people where they were counted; None: there is none."""
    for chosen_on in CHOOSING:
        known = score_tables(plan, chosen_on, measured, tables)
        if share is not None and known and chosen_on in ("tune", part):
            cutoff = cutoff_within(reduce(add, known.values()), share)
            return None if cutoff is None else Capacity(share, cutoff, chosen_on)
    return None


def _analysis(
    experiment: Experiment, plan: TrainPlan, measured: int, state: Checkpoint
) -> dict[str, Any] | None:
    """What the tables of the weights after round `measured` say of other thresholds."""
    settings = experiment.settings.evaluation
    return analysis(
        score_tables(plan, "tune", measured, state.tables),
        score_tables(plan, "test", measured, state.tables),
        experiment.data_contract.group_margins,
        settings.cutoff,
        settings.rule,
        per_agency=plan.privacy.shared is None,
    )


def busiest(plan: TrainPlan, orders: Orders, viewer: Viewer = "coordinator") -> float | None:
    """ε to `viewer` of the agency that was asked most so far; None where there is no privacy."""
    if plan.privacy.mechanism == "none":
        return None
    spent = [agency_epsilon(plan, counts, viewer)["total"] or 0.0 for counts in orders.values()]
    return max(spent, default=0.0)


def agency_epsilon(
    plan: TrainPlan, counts: Mapping[str, int], viewer: Viewer = "coordinator"
) -> dict[str, float | None]:
    """ε of one agency to `viewer`, by kind and in total; None where there is no privacy."""
    if plan.privacy.mechanism == "none":
        return {"train": None, "evaluate": None, "total": None}
    steps = Counter(releases_of(plan, counts))
    merged = tuple(each for release, times in steps.items() for each in release.repeated(times))
    return dict(_epsilon_by_kind(merged, plan.privacy.delta, viewer))


def privacy_facts(experiment: Experiment, plan: TrainPlan, facts: RunFacts, orders: Orders) -> dict[str, Any]:
    """The guarantee with its unit, adjacency, δ and accountant next to it."""
    shared = plan.privacy.shared
    unit = experiment.data_contract.unit.kind
    return {
        "mechanism": plan.privacy.mechanism,
        "unit": f"{unit} at one agency",
        "adjacency": "add-or-remove",
        "accountant": "RDP (dp-accounting)" if shared is None else "RDP at whole orders (fedrisk)",
        "delta": plan.privacy.delta,
        "noise_multiplier": plan.privacy.noise_multiplier,
        "max_grad_norm": plan.privacy.max_grad_norm if np.isfinite(plan.privacy.max_grad_norm) else None,
        "sample_rate": plan.privacy.sample_rate,
        "steps_per_round": plan.local.steps,
        "tune_sigma": plan.privacy.tune_sigma,
        "test_sigma": plan.privacy.test_sigma,
        "ledger": "this run alone" if facts.simulation else "lifetime",
        "epsilon_busiest": busiest(plan, orders),
        "epsilon_to": {viewer: busiest(plan, orders, viewer) for viewer in VIEWERS},
        "epsilon_at_several_agencies": at_several(plan, orders, "coordinator"),
        "epsilon_at_several_to": {viewer: at_several(plan, orders, viewer) for viewer in VIEWERS},
        "shared": None
        if shared is None
        else shared.model_dump(mode="json") | {"honest": shared.honest, "threshold": shared.threshold},
    }


def at_several(plan: TrainPlan, orders: Orders, viewer: Viewer) -> dict[str, float | None]:
    """ε to `viewer` of a person at one, two and three of the agencies, as far as there are so many."""
    if plan.privacy.mechanism == "none":
        return {"1": None, "2": None, "3": None}
    each = [releases_of(plan, counts) for counts in orders.values()]
    known = [m for m in (1, 2, 3) if m <= len(each)]
    return {str(m): epsilon_at_several(each, plan.privacy.delta, m, viewer) for m in known}


def agency_facts(
    experiment: Experiment, plan: TrainPlan, name: str, status: Mapping[str, Any], orders: Orders
) -> dict[str, Any]:
    """One agency's public facts, what became of it, and what it spent in this run."""
    contract = experiment.data_contract
    participant = plan.participant(name)
    counts = orders.get(name, {})
    spent = releases_of(plan, counts)
    return {
        "kind": participant.kind,
        "public_size": participant.public_size,
        "weight": participant.weight,
        "holds": [block.name for block in contract.blocks if contract.holds(participant.kind, block.name)],
        "holds_label": contract.holds_label(participant.kind),
        **status[name],
        "rounds": counts.get("rounds", 0),
        "epsilon": agency_epsilon(plan, counts),
        "epsilon_to": {viewer: agency_epsilon(plan, counts, viewer)["total"] for viewer in VIEWERS},
        "releases": [
            {**release.to_dict(), "times": times}
            for release, times in {r: spent.count(r) for r in dict.fromkeys(spent)}.items()
        ],
    }


def trouble(name: str, rounds: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """In how many rounds an agency's reply was rejected, and its change scaled down to its norm bound."""
    return {kind: sum(name in record.get(kind, ()) for record in rounds) for kind in ("rejected", "bounded")}
