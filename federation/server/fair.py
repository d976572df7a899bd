"""Training that tries to be fairer, at the coordinator: what follows from the noised tune tables, which are paid for.

Group multipliers. At each checkpoint the agencies' tune tables are added, and for each level a of one audit group

    g_{a,1} = TPR - TPR_a,    g_{a,0} = FPR_a - FPR,    log m_{a,y} += cut(rate x (2 g_{a,y} - g'_{a,y}))

with TPR and FPR those of everyone, g' the gap one checkpoint before and cut to [-step, step]; then `multipliers.bounded`.
So a level whose positives are missed, or whose negatives are flagged, more often than others' counts more. This is the
multiplicative update of a Lagrangian's multipliers (Agarwal et al., A Reductions Approach to Fair Classification, ICML
2018, arXiv:1803.02453), taken on a few looks at held-out people as in FairBatch (Roh et al., ICLR 2021, arXiv:2012.01696).
The model follows a few rounds behind, so multipliers that only add up gaps swing past the middle; 2 g - g' is the
optimistic step against that (Daskalakis et al., ICLR 2018, arXiv:1711.00141). A rate that cannot be told from noise has gap 0.

q-FFL (Li et al., Fair Resource Allocation in Federated Learning, ICLR 2020, arXiv:1905.10497), Algorithm 2, for agencies k
with public weights p_k, changes d_k = w_k - w of the round and losses F_k:

    w <- w + sum_k p_k F_k^q L d_k / sum_k p_k h_k,    h_k = q F_k^(q-1) |L d_k|^2 + L F_k^q,    L = 1 / learning rate.

F_k is the log loss of the agency's newest tune table: at most that of the worst score bin, as people are told apart by bins
whose centres are not 0 or 1; charged, as the table is; above `SMALLEST_LOSS`. The paper takes the loss on the round's
training people, which would be one release more in every round.

What counts how much is published, so all of it is made of numbers as the disclosure rule lets them out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from federation import multipliers
from federation.experiment import Experiment, Fairness
from federation.plan import TrainPlan
from federation.server.card import score_tables
from federation.server.strategies import Update
from models import calibration, scores
from models.disclosure import UNROUNDED, Disclosure
from models.scores import Estimate, ScoreTable

SMALLEST_LOSS = 0.05  # nats: below it an agency would not count at all
WATCHED = ("accuracy", "auc")

State = dict[
    str, Any
]  # JSON-clean: the multipliers or weights in force, their history, losses, first, stopped


def start(settings: Fairness) -> State | None:
    """The state of a run that has learned nothing yet; None without a method."""
    if settings.method == "none":
        return None
    return {"now": {}, "history": [], "gaps": {}, "losses": {}, "first": {}, "stopped": None}


def after(
    state: State, experiment: Experiment, plan: TrainPlan, measured: int, tables: Mapping[str, Any]
) -> State:
    """`state` with what the tune tables of the weights after round `measured` say; they count from two rounds later."""
    known = score_tables(plan, "tune", measured, tables)
    settings, contract = experiment.settings.fairness, experiment.data_contract
    if not known or state["stopped"]:
        return state
    rule = experiment.settings.evaluation.rule
    if settings.method == "qffl":
        found = losses(known, disclosure=rule)
        raised = {name: loss**settings.q for name, loss in found.items()}
        mean = sum(raised.values()) / len(raised)
        counts = {name: value / mean for name, value in raised.items()}
        return _noted(state, measured, counts) | {"losses": found}
    everyone = reduce(add, known.values())
    cutoff = experiment.settings.evaluation.cutoff
    lows = {name: low for name, low in _lows(everyone, cutoff, rule).items() if low is not None}
    first = lows | state["first"]
    fallen = [name for name in lows if lows[name] < first[name] - settings.floor]
    if fallen:
        name = fallen[0]
        stopped = (
            f"after round {measured} the lower end of the tune {name} was {lows[name]:.3f}, more than {settings.floor:g} "
            f"below the first checkpoint's {first[name]:.3f}: every multiplier is 1 again"
        )
        return {
            **_noted(state, measured, dict.fromkeys(state["now"], 1.0)),
            "first": first,
            "stopped": stopped,
        }
    levels = contract.group_margins[str(settings.by)]
    now = gaps(settings, everyone, levels, cutoff, disclosure=rule)
    moved = next_multipliers(settings, now, state["gaps"], state["now"])
    return {**_noted(state, measured, moved), "first": first, "gaps": now}


def _noted(state: State, measured: int, now: Mapping[str, float]) -> State:
    entry = {"round": measured + 2, "multipliers": dict(now)}
    return {**state, "now": dict(now), "history": [*state["history"], entry]}


def _lows(table: ScoreTable, cutoff: float, disclosure: Disclosure) -> dict[str, float | None]:
    found = {
        "accuracy": scores.accuracy(table, cutoff, disclosure=disclosure),
        "auc": scores.auc(table, disclosure=disclosure),
    }
    return {name: each.low if each.publishable else None for name, each in found.items()}


# --- group multipliers --------------------------------------------------------------------------------


def gaps(
    settings: Fairness,
    table: ScoreTable,
    levels: Mapping[str, Sequence[int]],
    cutoff: float,
    *,
    disclosure: Disclosure = UNROUNDED,
) -> dict[str, float]:
    """How far each level is behind everyone, in [-1, 1], by `key`, outcome 0 first; 0 for what `criterion` leaves alone."""
    rates = {0: scores.false_positive_rate, 1: scores.true_positive_rate}
    of_all = {outcome: rate(table.total(), cutoff, disclosure=disclosure) for outcome, rate in rates.items()}
    found = {}
    for level, groups in levels.items():
        for outcome, rate in rates.items():
            matters = outcome == 1 or settings.criterion == "equalized_odds"
            of_level = rate(table.pick(groups), cutoff, disclosure=disclosure)
            behind = _behind(of_level, of_all[outcome], outcome) if matters else 0.0
            found[key(settings.by, level, outcome)] = behind
    return found


def next_multipliers(
    settings: Fairness, now: Mapping[str, float], before: Mapping[str, float], held: Mapping[str, float]
) -> dict[str, float]:
    """The multipliers after gaps of `now`, by their keys; `before` and `held` (both {} at first) are the last ones'."""
    moves = {name: settings.rate * (2 * gap - before.get(name, gap)) for name, gap in now.items()}
    raw = [
        held.get(name, 1.0) * math.exp(min(max(move, -settings.step), settings.step))
        for name, move in moves.items()
    ]
    return dict(zip(moves, multipliers.bounded(raw, settings.most).tolist(), strict=True))


def key(by: str | None, level: str, outcome: int) -> str:
    """How a multiplier is called in result.json."""
    return f"{by}={level}, outcome {outcome}"


def _behind(rate: Estimate, of_all: Estimate, outcome: int) -> float:
    """How much worse a level's rate is than everyone's; 0 where it cannot be told from noise."""
    if not (rate.publishable and of_all.publishable) or rate.value is None or of_all.value is None:
        return 0.0
    return of_all.value - rate.value if outcome else rate.value - of_all.value


def of_order(state: State | None, experiment: Experiment) -> tuple[float, ...]:
    """The multipliers of the next order, two for each cell of the contract's groups; () where all count alike."""
    settings = experiment.settings.fairness
    if state is None or settings.method != "group_multipliers" or not state["now"]:
        return ()
    contract = experiment.data_contract
    found = np.ones((len(contract.group_names), 2))
    for level, groups in contract.group_margins[str(settings.by)].items():
        for outcome in (0, 1):
            found[list(groups), outcome] = state["now"][key(settings.by, level, outcome)]
    return tuple(found.ravel().tolist())


# --- q-FFL --------------------------------------------------------------------------------------------


def losses(tables: Mapping[str, ScoreTable], *, disclosure: Disclosure = UNROUNDED) -> dict[str, float]:
    """F_k, nats; that of all agencies together where an agency's cannot be told from noise.

    From `SMALLEST_LOSS` to that of a model that is wrong about everybody in its most certain bin: noise, or a liar whose
    table has cells far below 0, reaches beyond.
    """
    everyone = calibration.log_loss(reduce(add, tables.values()), disclosure=disclosure)
    together = math.log(2) if everyone.value is None else everyone.value
    found = {name: calibration.log_loss(table, disclosure=disclosure) for name, table in tables.items()}
    centres = calibration.centres(next(iter(tables.values())))
    largest = -math.log(min(float(centres[0]), 1 - float(centres[-1])))
    return {
        name: min(
            max(SMALLEST_LOSS, loss.value if loss.publishable and loss.value is not None else together),
            largest,
        )
        for name, loss in found.items()
    }


def weighed(state: State | None, experiment: Experiment, updates: Sequence[Update]) -> list[Update]:
    """`updates` as q-FFL weighs them; as they are under any other method, and before the first tables.

    Update k gets the weight p_k F_k^q, so their weighted mean is sum p_k F_k^q d_k / sum p_k F_k^q, and each change is
    multiplied by L sum p_k F_k^q / sum p_k h_k: together the step above, which Flower's strategy then makes.
    """
    settings = experiment.settings.fairness
    if state is None or settings.method != "qffl" or not state["losses"] or not updates:
        return list(updates)
    middle = float(np.mean(list(state["losses"].values())))
    loss = np.array([state["losses"].get(update.agency, middle) for update in updates])
    public = np.array([update.weight for update in updates])
    squared = np.array(
        [sum(float(np.square(d, dtype=np.float64).sum()) for d in u.delta.values()) for u in updates]
    )
    lipschitz = 1 / experiment.settings.local.learning_rate
    raised = loss**settings.q
    h = settings.q * loss ** (settings.q - 1) * lipschitz**2 * squared + lipschitz * raised
    shrink = np.float32(lipschitz * (public @ raised) / (public @ h))
    return [
        replace(
            update,
            weight=float(weight),
            delta={name: value * shrink for name, value in update.delta.items()},
        )
        for update, weight in zip(updates, public * raised, strict=True)
    ]


def facts(settings: Fairness, state: State | None) -> dict[str, Any] | None:
    """`fairness_training` of result.json: the method, its settings, what counted how much from which round on."""
    if state is None:
        return None
    used = ("q",) if settings.method == "qffl" else ("by", "criterion", "rate", "step", "most", "floor")
    return {
        "method": settings.method,
        "settings": {name: getattr(settings, name) for name in used},
        "history": state["history"],
        "stopped": state["stopped"],
    }
