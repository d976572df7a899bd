"""Metric names in MLflow, and the finite numbers that go under them.

Names, with step = round. A checkpoint on `tune` writes `overall/auc`, `agencies/NAME/auc`, `groups/sex/female/tpr`,
`gaps/sex/equalized_odds`; the end, on `test`, writes the same behind `test/`. Intervals are `..._low` and `..._high`. What may not be
published is never sent: `..._suppressed` = 1 stands in its place.

What is logged is listed here. Whatever else METRICS holds (score bins, intersections, gaps within agencies, constant predictors,
conflicts, analyses) is in result.json alone: MLflow's pages are for comparing runs, and a metric is a row for each step.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

MEASURES = (
    "people",
    "base_rate",
    "auc",
    "auc_bound",
    "brier",
    "log_loss",
    "observed_expected",
    "ece",
    "selection_rate",
    "tpr",
    "fpr",
    "fnr",
    "ppv",
    "accuracy",
    "net_benefit",
    "net_benefit_all",
    "net_benefit_gain",
)
GAPS = ("demographic_parity", "equal_opportunity", "equalized_odds", "predictive_parity")
BETWEEN = ("selection_rate", "tpr", "fpr", "ppv", "base_rate")
USERS = ("most_intensive_share_of_flagged", "found_beyond")


def published_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """METRICS of result.json as MLflow names and finite numbers; what may not be published is a flag of 1."""
    out = estimates("overall", metrics.get("overall"))
    for agency, table in (metrics.get("agencies") or {}).items():
        out |= estimates(f"agencies/{part(agency)}", table)
    for attribute, levels in (metrics.get("groups") or {}).items():
        for level, table in levels.items():
            out |= estimates(f"groups/{part(attribute)}/{part(level)}", table)
    for attribute, table in (metrics.get("gaps") or {}).items():
        out |= estimates(f"gaps/{part(attribute)}", table, GAPS)
    out |= estimates("between_agencies", metrics.get("between_agencies"), BETWEEN)
    out |= estimates("overall", {"worst_gap": metrics.get("worst_gap")}, ("worst_gap",))
    capacity = metrics.get("capacity") or {}
    out |= estimates("capacity", capacity.get("overall"))
    out |= finite({f"capacity/{name}": capacity.get(name) for name in ("share", "cutoff")})
    return out | finite({"overall/cutoff": metrics.get("cutoff")})


def user_metrics(users: Mapping[str, Any] | None) -> dict[str, float]:
    """Of result["users"], measured on `test`: who is flagged already has most services, and who is found beyond them."""
    return estimates("test/users", users, USERS)


def estimates(
    prefix: str, table: Mapping[str, Any] | None, measures: Sequence[str] = MEASURES
) -> dict[str, float]:
    """Those of `measures` that `table` has, as value and ends of the interval, or as a flag that it is suppressed."""
    out: dict[str, float] = {}
    for name in measures:
        estimate, key = (table or {}).get(name), f"{prefix}/{name}"
        if estimate is None:
            continue
        if isinstance(estimate, Mapping) and estimate.get("publishable") is True:
            ends = {f"{key}_low": estimate.get("low"), f"{key}_high": estimate.get("high")}
            out |= finite({key: estimate.get("value"), **ends})
        else:
            out[f"{key}_suppressed"] = 1.0
    return out


def epsilons(spent: Mapping[str, Any] | float | None) -> dict[str, Any]:
    """{"train", "evaluate", "total"} as `privacy/epsilon_...`, one number as its total; None stays None, for `finite` to leave out."""
    if isinstance(spent, int | float):
        return {"privacy/epsilon_total": spent}
    return {f"privacy/epsilon_{kind}": (spent or {}).get(kind) for kind in ("train", "evaluate", "total")}


def finite(values: Mapping[str, Any]) -> dict[str, float]:
    """The real, finite ones: MLflow would keep NaN, and an infinity ruins its charts."""
    real = {k: v for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return {name: float(value) for name, value in real.items() if math.isfinite(value)}


def part(name: str) -> str:
    """`name` as one part of a metric's name; if it had to change it ends in a hash: "<25" is not ">25"."""
    clean = re.sub(r"[^A-Za-z0-9_. -]", "_", name).strip()[:60]
    if clean == name and clean.strip("."):
        return name
    return f"{clean.strip('.')}_{hashlib.blake2b(name.encode(), digest_size=2).hexdigest()}"
