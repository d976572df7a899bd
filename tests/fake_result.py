"""A made-up but consistent `result.json`, for the tests of what shows it: MLflow, the report, the screen.

People are drawn, scored and counted with numpy, so rates, gaps and intervals fit each other. SECRET values
stand in every estimate that may not be published: a test that finds one somewhere has found a leak.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

Table = dict[str, dict[str, Any]]
People = Mapping[str, np.ndarray]

SECRET = (7.7731469, 7.6629137, 7.8843591)  # no rate is above 1, so nothing else reads like these
CUTOFF = 0.4
KINDS = {
    "northgate police": "police",
    "riverside probation": "probation",
    "st anne health": "health",
    "eastholme housing": "housing",
    "harbour children's services": "children's services",
}
GROUPS = {
    "sex": {"female": 0.42, "male": 0.575, "other": 0.005},
    "age band": {"under 25": 0.3, "25-44": 0.45, "45 and over": 0.249, "other": 0.001},
}
USE = {"no service": 0.35, "one or two": 0.4, "three or more": 0.25}
USERS_BY = ("people", "share_of_flagged", "selection_rate", "tpr", "base_rate")
LEAD = [(0.0, 30.0, 0.2), (30.0, 90.0, 0.3), (90.0, 180.0, 0.3), (180.0, None, 0.2)]


def fake_result(private: bool = True, checkpoints: int = 5, seed: int = 7) -> dict[str, Any]:
    """A finished run of five agencies, one of which refused and one of which was late in round 7.

    It has none of the parts that a run may lack: `whole_result` has all of them.
    """
    rng = np.random.default_rng(seed)
    rounds = [_round(number, rng) for number in range(1, 21)]
    at = [round(20 * (i + 1) / checkpoints) for i in range(checkpoints)]
    epsilons = [2.8 * math.sqrt(number / 20) if private else None for number in at]
    records = [
        {
            "round": number,
            "part": "tune",
            "epsilon_busiest": cost,
            "metrics": _metrics(_people(rng, number / 20)),
        }
        for number, cost in zip(at, epsilons, strict=True)
    ]
    busiest = 3.0 if private else None
    final = {"round": 20, "part": "test", "epsilon_busiest": busiest, "metrics": _metrics(_people(rng, 1.0))}
    return {
        "schema": 1,
        "run_id": "20260304-101500-early-help",
        "status": "finished",
        "created": "2026-03-04T10:17:42+00:00",
        "fedrisk_version": "0.1.0",
        "experiment": "early-help",
        "purpose": "early-warning",
        "seed": 7,
        "engine": "local",
        "simulation": True,
        "config_sha256": "c0" * 32,
        "plan_sha256": "91" * 32,
        "code_sha256": "5e" * 32,
        "contract": {
            "name": "early_help",
            "version": 1,
            "sha256": "ab" * 32,
            "label": "crisis_within_a_year",
            "horizon": "12 months",
            "description": "People known to local services, and whether they met a crisis within a year.",
        },
        "model": {"name": "logistic", "hidden": [], "features": 31, "parameters": 32},
        "strategy": {"name": "fedavgm", "server_learning_rate": 1.0, "momentum": 0.9},
        "rounds_planned": 20,
        "privacy": _privacy(private, busiest),
        "agencies": {name: _agency(name, kind, private) for name, kind in KINDS.items()},
        "rounds": rounds,
        "checkpoints": records,
        "final": final,
        "reference": fake_reference(),
        "files": {
            "report": "report.html",
            "evidence": "evidence.json",
            "model_card": "model-card.json",
            "atrs": "atrs.json",
            "model": "model/model.safetensors",
            "checkpoints": "checkpoints",
        },
    }


def whole_result(private: bool = True, seed: int = 7) -> dict[str, Any]:
    """The same run with every part that a report can show, for a panel that wants all of it."""
    rng = np.random.default_rng(seed + 1)
    result = fake_result(private, seed=seed)
    for record in (*result["checkpoints"], result["final"]):
        people = _people(rng, record["round"] / 20)
        record["metrics"] = _metrics(people) | _more_metrics(people)
    return result | {
        "disclosure": {"profile": "uk-default", "minimum": 10, "rounding": 5},
        "tables": "per_agency",
        "analysis": _analysis(result["final"]["metrics"]),
        "users": _users(_people(rng, 1.0), rng),
        "cautions": ["The outcome is missing for 7 in 100 people of the riverside probation."],
        "robustness": {"malicious": 0, "norm_bound": "plan", "masked": False, "least_agencies": 1},
        "departures": [],
        "fairness_training": {
            "method": "group_multipliers",
            "settings": {"step": 0.25, "largest": 3.5},
            "history": [
                {"round": number, "multipliers": {"female": 1 + number / 64, "male": 1 - number / 64}}
                for number in (4, 8, 12)
            ],
            "stopped": "accuracy had fallen below its floor of 0.61 after round 12.",
        },
        "files": result["files"]
        | {"evidence": "evidence.json", "model_card": "model-card.json", "atrs": "atrs.json"},
    }


EVIDENCE = {
    "audit": {
        "sha256": "ad" * 32,
        "claimed_epsilon": 3.07,
        "lower_bound": 1.87,
        "confidence": 0.95,
        "attack": "gradient canary",
        "what": "The noise of this plan was attacked with a planted person.",
    },
    "replaces": {
        "run_id": "20250910-090000-early-help",
        "decision_sha256": "de" * 32,
        "weights_sha256": "1e" * 32,
        "contract_sha256": "ab" * 32,
        "terms": {"rounds": 17, "privacy": {"epsilon": 4.5}, "model": {"name": "logistic"}},
        "measures": {
            "auc": {"value": 0.7213, "low": 0.7013, "high": 0.7413},
            "worst_gap": {"value": 0.1371, "low": 0.0571, "high": 0.2171},
        },
    },
}
TERMS = {"rounds": 20, "privacy": {"epsilon": 3.0}, "model": {"name": "logistic"}}


def fake_reference() -> dict[str, Any]:
    """The rows that a run compares itself with."""
    rows = [
        ("pooled", "pooled", 0.751, 0.171, 0.090, None),
        ("federated", "federated", 0.748, 0.172, 0.094, None),
        ("private federated", "private", 0.737, 0.176, 0.097, 3.0),
        ("northgate police alone", "alone", 0.712, 0.183, 0.121, None),
        ("st anne health alone", "alone", 0.694, 0.188, 0.134, None),
        ("HistGradientBoosting pooled", "sklearn", 0.755, 0.170, 0.101, None),
    ]
    return {
        "note": "Mean and standard deviation over 5 seeds, on test people.",
        "rows": [_row(*row) for row in rows],
    }


def fake_compare() -> dict[str, Any]:
    """A comparison over seeds, with the private model at several ε."""
    private = [
        ("private federated", "private", auc, 0.17 + 0.1 * (0.748 - auc), 0.1, e) for e, auc in EPSILON_AUC
    ]
    rows = [*fake_reference()["rows"][:2], *(_row(*row) for row in private), *fake_reference()["rows"][3:]]
    return {"note": "Mean and standard deviation over 5 seeds.", "seeds": [0, 1, 2, 3, 4], "rows": rows}


EPSILON_AUC = ((0.5, 0.671), (1.0, 0.712), (3.0, 0.737), (8.0, 0.745))


def estimates(value: Any) -> list[dict[str, Any]]:
    """Every estimate inside `value`, at any depth."""
    if isinstance(value, Mapping):
        own = [dict(value)] if "publishable" in value else []
        return own + [found for entry in value.values() for found in estimates(entry)]
    return [found for entry in value for found in estimates(entry)] if isinstance(value, list) else []


def _row(name: str, kind: str, auc: float, brier: float, gap: float, epsilon: float | None) -> dict[str, Any]:
    spread = {"auc": (auc, 0.006), "brier": (brier, 0.002), "worst_gap": (gap, 0.015)}
    return {"name": name, "kind": kind, "epsilon": epsilon} | {
        k: {"mean": m, "sd": s} for k, (m, s) in spread.items()
    }


def _round(number: int, rng: np.random.Generator) -> dict[str, Any]:
    late = ["eastholme housing"] if number == 7 else []
    rejected = {"riverside probation": "layer.weight has NaN or infinite values"} if number == 12 else {}
    out = {"harbour children's services", *late, *rejected}
    return {
        "round": number,
        "seconds": float(0.8 + 0.2 * rng.random()),
        "replied": [name for name in KINDS if name not in out],
        "late": late,
        "refused": {"harbour children's services": "BUDGET"} if number == 1 else {},
        "rejected": rejected,
    }


def _privacy(private: bool, busiest: float | None) -> dict[str, Any]:
    several = {"1": 3.0, "2": 4.63, "3": 6.02} if private else {"1": None, "2": None, "3": None}
    return {
        "mechanism": "local" if private else "none",
        "unit": "person at one agency",
        "adjacency": "add-or-remove",
        "accountant": "RDP (dp-accounting)",
        "delta": 1e-5,
        "noise_multiplier": 1.9 if private else 0.0,
        "max_grad_norm": 1.0 if private else None,
        "sample_rate": 0.1,
        "steps_per_round": 10,
        "tune_sigma": 12.0 if private else 0.0,
        "test_sigma": 6.0 if private else 0.0,
        "ledger": "this run alone",
        "epsilon_busiest": busiest,
        "epsilon_at_several_agencies": several,
    }


def _agency(name: str, kind: str, private: bool) -> dict[str, Any]:
    refused = kind == "children's services"
    costs = (0.0, 0.0, 0.0) if refused else (2.31, 1.42, 3.0 if kind == "police" else 2.88)
    spent = costs if private else (None, None, None)
    return {
        "kind": kind,
        "public_size": 500 * (4 + list(KINDS).index(name)),
        "weight": 500.0 * (4 + list(KINDS).index(name)),
        "holds": {"police": ["custody"], "probation": ["custody"], "health": ["care"]}.get(kind, []),
        "holds_label": True,
        "status": "refused" if refused else "trained",
        "reason": "BUDGET" if refused else None,
        "rounds": 0 if refused else 19 if kind in ("housing", "probation") else 20,
        "epsilon": dict(zip(("train", "evaluate", "total"), spent, strict=True)),
        "releases": [
            {"kind": "train", "part": "train", "noise_multiplier": 1.9, "sample_rate": 0.1, "steps": 200}
        ],
    }


def _people(rng: np.random.Generator, skill: float, n: int = 6000) -> dict[str, np.ndarray]:
    columns = {key: rng.choice(list(shares), n, p=list(shares.values())) for key, shares in GROUPS.items()}
    true = (
        rng.normal(-0.9, 1.2, n)
        + 0.35 * (columns["sex"] == "male")
        + 0.4 * (columns["age band"] == "under 25")
    )
    seen = skill * true + rng.normal(0, 0.35, n) + (skill - 1)
    y = rng.random(n) < 1 / (1 + np.exp(-true))
    present = [name for name, kind in KINDS.items() if kind != "children's services"]
    return {**columns, "agency": rng.choice(present, n), "score": 1 / (1 + np.exp(-seen)), "y": y}


def _metrics(people: People) -> dict[str, Any]:
    groups = {
        attribute: {level: _describe(_pick(people, people[attribute] == level)) for level in levels}
        for attribute, levels in GROUPS.items()
    }
    gaps = {attribute: _gaps(list(tables.values())) for attribute, tables in groups.items()}
    worst = max(gaps, key=lambda attribute: gaps[attribute]["equalized_odds"]["value"])
    names = [name for name in KINDS if (people["agency"] == name).any()]
    return {
        "overall": _describe(people),
        "agencies": {name: _describe(_pick(people, people["agency"] == name)) for name in names},
        "groups": groups,
        "gaps": gaps,
        "worst_gap": {"attribute": worst, "gap": "equalized_odds", **gaps[worst]["equalized_odds"]},
        "reliability": _reliability(people),
        "cutoff": CUTOFF,
    }


def _more_metrics(people: People) -> dict[str, Any]:
    """What a newer run measures beside the rest: intersections, a capacity, gaps within agencies, a constant predictor."""
    share = 0.1
    cutoff = float(np.quantile(people["score"], 1 - share))
    names = [name for name in KINDS if (people["agency"] == name).any()]
    y = people["y"]
    worth = _signed(float(y.mean() - (~y).mean() * CUTOFF / (1 - CUTOFF)), 0.011)
    overall = _describe(people)
    return {
        "intersections": {
            f"sex={sex} & age band={age}": _describe(
                _pick(people, (people["sex"] == sex) & (people["age band"] == age))
            )
            for sex in GROUPS["sex"]
            for age in GROUPS["age band"]
        },
        "capacity": {
            "share": share,
            "cutoff": cutoff,
            "chosen_on": "tune",
            "overall": _describe(people, cutoff) | {"net_benefit": _signed(0.0617, 0.0071)},
            "groups": {
                attribute: {
                    level: {
                        rate: _describe(_pick(people, people[attribute] == level), cutoff)[rate]
                        for rate in ("selection_rate", "tpr", "fpr", "fnr", "ppv")
                    }
                    for level in levels
                }
                for attribute, levels in GROUPS.items()
            },
        },
        "agency_gaps": {
            attribute: {
                name: _gaps(
                    [
                        _describe(_pick(people, (people["agency"] == name) & (people[attribute] == level)))
                        for level in levels
                    ]
                )
                for name in names
            }
            for attribute, levels in GROUPS.items()
        },
        "between_agencies": {
            rate: _estimate(0.031 + 0.013 * at, 0.027 + 0.003 * at, hidden=False)
            for at, rate in enumerate(("selection_rate", "tpr", "fpr", "ppv", "base_rate"))
        },
        "constant": {
            "nobody": {
                "accuracy": _rate(~y, hidden=False),
                "tpr": _estimate(0.0, 0.0, hidden=False),
                "fpr": _estimate(0.0, 0.0, hidden=False),
                "net_benefit": _estimate(0.0, 0.0, hidden=False),
            },
            "everybody": {
                "accuracy": _rate(y, hidden=False),
                "tpr": _estimate(1.0, 0.0, hidden=False),
                "fpr": _estimate(1.0, 0.0, hidden=False),
                "net_benefit": worth,
            },
            "base_rate": {"brier": _estimate(float(y.mean() * (1 - y.mean())), 0.0047, hidden=False)},
        },
        "conflicts": {
            "sex": {"base_rate_gap": _estimate(0.0713, 0.0277, hidden=False), "conflict": True},
            "age band": {"base_rate_gap": _estimate(0.0237, 0.0337, hidden=False), "conflict": None},
        },
    } | {"overall": overall | _worth(people, worth)}


def _worth(people: People, everybody: Mapping[str, Any]) -> Table:
    """Net benefit of the model, of flagging everybody, and of the model over the better simple rule."""
    chosen, y = people["score"] >= CUTOFF, people["y"]
    own = float((chosen & y).mean() - (chosen & ~y).mean() * CUTOFF / (1 - CUTOFF))
    return {
        "net_benefit": _signed(own, 0.0093),
        "net_benefit_all": dict(everybody),
        "net_benefit_gain": _signed(own - max(float(everybody["value"]), 0.0), 0.0087),
    }


def _signed(value: float, spread: float) -> dict[str, Any]:
    return {"value": value, "low": value - spread, "high": value + spread, "publishable": True}


def _analysis(metrics: Mapping[str, Any]) -> dict[str, Any]:
    def fit(at: int) -> dict[str, Any]:
        return {
            name: _estimate(value + 0.0017 * at, 0.0123, hidden=False)
            for name, value in (("observed_expected", 0.913), ("ece", 0.043), ("brier", 0.187))
        }

    return {
        "label": "analysis only, not used in any score",
        "recalibration": {
            name: {
                "intercept": 0.14 + at / 9,
                "slope": 0.81 + at / 9,
                "before": fit(at),
                "after": fit(at + 11),
            }
            for at, name in enumerate(metrics["agencies"])
        },
        "group_thresholds": {
            "sex": {
                "target": "tpr",
                "cutoffs": {"female": 0.367, "male": 0.423},
                "before": {"equal_opportunity": _estimate(0.0873, 0.0411, hidden=False)},
                "after": {"equal_opportunity": _estimate(0.0197, 0.0391, hidden=False)},
                "accuracy_before": _estimate(0.7077, 0.0119, hidden=False),
                "accuracy_after": _estimate(0.7031, 0.0121, hidden=False),
            }
        },
    }


def _users(people: People, rng: np.random.Generator) -> dict[str, Any]:
    chosen, y = people["score"] >= CUTOFF, people["y"]
    use = rng.choice(list(USE), len(y), p=list(USE.values()))
    flagged_today = rng.random(len(y)) < 0.3
    most = list(USE)[-1]
    return {
        "declared": {
            "intensity": {
                "column": "use",
                "levels": list(USE),
                "description": "services used in the year before",
            },
            "lead_time": {
                "column": "lead",
                "unit": "days",
                "edges": [30, 90, 180],
                "description": "days from the day of the score to the outcome",
            },
            "practice": {"column": "flagged_today", "description": "referred by a case worker"},
        },
        "sigma": 6.25,
        "part": "test",
        "by_intensity": {
            level: {
                "people": _estimate(float((use == level).sum()), 15.0, hidden=False),
                "share_of_flagged": _rate(use[chosen] == level, hidden=False),
                "selection_rate": _rate(chosen[use == level], hidden=False),
                "tpr": _rate(chosen[(use == level) & y], hidden=False),
                "base_rate": _rate(y[use == level], hidden=False),
            }
            for level in USE
        }
        | {"other": dict.fromkeys(USERS_BY, _estimate(math.nan, 0.0, hidden=True))},
        "most_intensive_share_of_flagged": _rate(use[chosen] == most, hidden=False),
        "found_beyond": _rate(use[chosen & y] != most, hidden=False),
        "lead": {
            "bands": [
                {"low": low, "high": high, "share": _rate(rng.random(1700) < share, hidden=False)}
                for low, high, share in LEAD
            ],
            "unknown": _rate(rng.random(1700) < 0.07, hidden=False),
            "median": {"low": 30.0, "high": 90.0},
        },
        "practice": {
            "selection_rate": _rate(flagged_today, hidden=False),
            "tpr": _rate(flagged_today[y], hidden=False),
            "fpr": _rate(flagged_today[~y], hidden=False),
            "ppv": _rate(y[flagged_today], hidden=False),
            "net_benefit": _signed(-0.0127, 0.0083),
            "agreement": _rate(flagged_today == chosen, hidden=False),
            "found_only_by_model": _rate((chosen & ~flagged_today)[y], hidden=False),
            "found_only_by_practice": _rate((~chosen & flagged_today)[y], hidden=False),
        },
    }


def _pick(people: People, at: np.ndarray) -> dict[str, np.ndarray]:
    return {key: column[at] for key, column in people.items()}


def _describe(people: People, cutoff: float = CUTOFF) -> Table:
    score, y = people["score"], people["y"]
    chosen, n = score >= cutoff, len(y)
    hidden = n < 60
    if n == 0:
        score, y, chosen, n = np.full(1, 0.5), np.zeros(1, bool), np.zeros(1, bool), 1
    wins = (score[y][:, None] > score[~y][None, :]).mean() if y.any() and (~y).any() else float("nan")
    log_loss = -np.where(y, np.log(score), np.log1p(-score)).mean() if n else float("nan")
    numbers = {
        "people": (float(n), 14.0),
        "auc": (wins, 0.6 / math.sqrt(n + 1)),
        "auc_bound": (0.006, 0.0),
        "brier": (((score - y) ** 2).mean(), 0.2 / math.sqrt(n + 1)),
        "log_loss": (log_loss, 0.4 / math.sqrt(n + 1)),
        "observed_expected": (y.sum() / max(score.sum(), 1e-9), 2.0 / math.sqrt(n + 1)),
        "ece": (abs(score.mean() - y.mean()) + 0.01, 0.01),
    }
    rates = {
        "base_rate": y,
        "selection_rate": chosen,
        "tpr": chosen[y],
        "fnr": ~chosen[y],
        "fpr": chosen[~y],
        "ppv": y[chosen],
        "accuracy": chosen == y,
    }
    out = {name: _estimate(value, spread, hidden) for name, (value, spread) in numbers.items()}
    return out | {name: _rate(hits, hidden) for name, hits in rates.items()}


def _rate(hits: np.ndarray, hidden: bool) -> dict[str, Any]:
    n = len(hits)
    value = float(hits.mean()) if n else float("nan")
    found = _estimate(value, 1.96 * math.sqrt(max(value * (1 - value), 0.01) / max(n, 1)), hidden or n < 30)
    return found | {"high": min(found["high"], 1.0)} if found["publishable"] else found


def _estimate(value: float, spread: float, hidden: bool) -> dict[str, Any]:
    if hidden or not math.isfinite(value):
        return dict(zip(("value", "low", "high"), SECRET, strict=True)) | {"publishable": False}
    return {
        "value": float(value),
        "low": max(0.0, value - spread),
        "high": value + spread,
        "publishable": True,
    }


def _gaps(tables: Sequence[Table]) -> Table:
    one = {
        "demographic_parity": ["selection_rate"],
        "equal_opportunity": ["tpr"],
        "predictive_parity": ["ppv"],
    }
    out = {}
    for name, rates in {**one, "equalized_odds": ["tpr", "fpr"]}.items():
        found = []
        for rate in rates:
            shown = [table[rate] for table in tables if table[rate]["publishable"]]
            if len(shown) < 2:
                break
            values = [e["value"] for e in shown]
            found.append((max(values) - min(values), max(e["high"] - e["low"] for e in shown)))
        gap, width = max(found, default=(math.nan, 0.0))
        out[name] = _estimate(gap, width, hidden=False)
    return out


def _reliability(people: People) -> list[dict[str, Any]]:
    edges = [0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    rows = []
    for low, high in pairwise(edges):
        inside = (people["score"] >= low) & (people["score"] < high)
        observed = _rate(people["y"][inside], bool(inside.sum() < 60))
        rows.append({"low": low, "high": high, "mean_score": (low + high) / 2, "observed": observed})
    return rows
