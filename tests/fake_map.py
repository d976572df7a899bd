"""Made-up but consistent `map.json`, `cohort.json` and `signs.json`, for the tests of what shows them.

People are drawn with numpy and counted, with noise; so values, intervals and flags fit each other.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

Estimate = dict[str, Any]
NOTHING: Estimate = {"value": None, "low": None, "high": None, "publishable": False}

AREAS = ("harbour", "hill", "market", "moor", "north", "old town", "river", "south")
NEEDS = ("housing_need", "mental_health_need", "drug_need", "debt_need")
BANDS = ("under 18", "18 to under 25", "25 to under 45", "45 or more")
ATTRIBUTES = {
    "area": {"column": "area", "levels": list(AREAS), "months": False},
    "age_band": {"column": "age", "levels": list(BANDS), "months": False},
    "month": {
        "column": "last_contact",
        "levels": [f"{2024 + at // 12}-{at % 12 + 1:02d}" for at in range(18)],
        "months": True,
    },
    **{need: {"column": need, "levels": ["no", "yes"], "months": False} for need in NEEDS},
}
AGENCIES = {
    "county police": ("police", 42_000),
    "city housing": ("housing", 18_500),
    "st anne health": ("health", 61_000),
}
YES = ["yes"]
NUMBERS = 404  # compared with each other
WIDE = NormalDist().inv_cdf(1 - 0.025 / NUMBERS)
SEVERAL = {"1": 0.5, "2": 0.74, "3": 0.93}
QUERIES: tuple[dict[str, Any], ...] = (
    {"name": "people", "kind": "count", "by": [], "where": {}},
    *(
        {"name": f"share with {need}", "kind": "rate", "by": [], "where": {need: YES}, "among": {}}
        for need in NEEDS
    ),
    {
        "name": "debt among those with a housing need",
        "kind": "rate",
        "by": [],
        "where": {"debt_need": YES},
        "among": {"housing_need": YES},
    },
    {
        "name": "housing and drugs",
        "kind": "count",
        "by": [],
        "where": {"housing_need": YES, "drug_need": YES},
    },
    {"name": "housing_need", "kind": "histogram", "by": ["housing_need"], "where": {}},
    {"name": "age_band", "kind": "histogram", "by": ["age_band"], "where": {}},
    {"name": "area by age_band", "kind": "crosstab", "by": ["area", "age_band"], "where": {}},
    {"name": "housing need by area", "kind": "crosstab", "by": ["area", "housing_need"], "where": {}},
    {
        "name": "drug need by age and area",
        "kind": "rate",
        "by": ["age_band", "area"],
        "where": {"drug_need": YES},
        "among": {},
    },
    {
        "name": "housing_need by month",
        "kind": "series",
        "by": ["month"],
        "where": {"housing_need": YES},
        "counts": "row",
    },
    {"name": "contacts by month and area", "kind": "series", "by": ["month", "area"], "where": {}},
)
HEADER = {
    "schema": 1,
    "run_id": "20260304-101500-early-help-map",
    "status": "finished",
    "created": "2026-03-04T10:17:42+00:00",
    "fedrisk_version": "0.6.0",
    "experiment": "early-help",
    "purpose": "see where housing and health needs meet",
    "engine": "local",
    "simulation": False,
    "plan_sha256": "5e" * 32,
    "contract": {"name": "early_help", "version": 3, "sha256": "a1" * 32},
    "unit": "person",
    "level": 0.95,
}


def estimate(value: float, sd: float, minimum: float = 10, share: bool = False) -> Estimate:
    """A noised number with its 95% interval, null where it may not be published."""
    margin = 1.959964 * sd
    low, high = max(value - margin, 0.0), value + margin
    if share:
        told = high - low < 1 and sd < 0.3
        return _told(min(max(value, 0), 1), low, min(high, 1.0)) if told else dict(NOTHING)
    return _told(value, low, high) if value >= max(minimum, 3 * sd) else dict(NOTHING)


def _told(value: float, low: float, high: float) -> Estimate:
    return {"value": value, "low": low, "high": high, "publishable": True}


def fake_map(
    agencies: Mapping[str, tuple[str, int]] = AGENCIES,
    queries: Sequence[Mapping[str, Any]] = QUERIES,
    attributes: Mapping[str, Any] = ATTRIBUTES,
    *,
    sigma: float = 8.0,
    shared: bool = False,
    private: bool = True,
    refused: bool = True,
    seed: int = 7,
) -> dict[str, Any]:
    """A map of `agencies` (name -> kind and people), one more of which refused."""
    rng = np.random.default_rng(seed)
    sigma = sigma if private else 0.0
    facts = {name: _agency(kind, size, sigma, rng, shared) for name, (kind, size) in agencies.items()}
    if refused:
        facts["o'neill trust"] = {
            **_agency("charity", 900, sigma, rng, True),
            "status": "refused",
            "reason": "BUDGET",
            "epsilon": 0.0,
            "releases": [],
        }
    total = sum(size for _, size in agencies.values())
    return {
        **HEADER,
        "kind": "map",
        "disclosure": {"profile": "uk-default", "minimum": 10, "rounding": 5},
        "privacy": {
            "mechanism": "none" if not private else "shared" if shared else "local",
            "unit": "person at one agency",
            "adjacency": "add-or-remove",
            "accountant": "RDP (dp-accounting)",
            "delta": 1e-6,
            "epsilon": 0.5 if private else None,
            "epsilon_at_several_agencies": {
                m: e for m, e in SEVERAL.items() if private and int(m) <= len(agencies)
            },
            "noise_multiplier": 8.0 if private else None,
            "rows": 4,
            "epsilon_with_training": 3.12 if private else None,
            "ledger": "lifetime",
        },
        "workload": {
            "name": "first_day",
            "queries": len(queries),
            "tables": 9,
            "numbers": 412,
            "ratio": 0.47,
            "ratio_bound": 0.41,
        },
        "attributes": dict(attributes),
        "agencies": facts,
        "people": estimate(total, sigma * 2),
        "compared": {"numbers": NUMBERS, "level": 1 - 0.05 / NUMBERS},
        "queries": [_query(query, agencies, attributes, sigma, shared, rng) for query in queries],
        "not_asked": [
            {"query": "parent_left_prison by area", "why": "no agency here holds parent_left_prison"}
        ],
        "files": {"report": "map.html", "tables": "csv"},
    }


def _agency(kind: str, size: int, sigma: float, rng: np.random.Generator, hidden: bool) -> dict[str, Any]:
    people = estimate(size * 0.97 + rng.normal(0, sigma), sigma)
    return {
        "kind": kind,
        "public_size": size,
        "status": "counted",
        "reason": None,
        "epsilon": 0.5 if sigma else None,
        "releases": [{"kind": "map", "part": "all"}],
        "people": dict(NOTHING) if hidden else people,
    }


def _query(
    query: Mapping[str, Any],
    agencies: Mapping[str, tuple[str, int]],
    attributes: Mapping[str, Any],
    sigma: float,
    shared: bool,
    rng: np.random.Generator,
) -> dict[str, Any]:
    levels = list(itertools.product(*(attributes[name]["levels"] for name in query["by"])))
    weight = rng.dirichlet(np.full(len(levels), 1.2)) if levels != [()] else np.ones(1)
    rate = query["kind"] == "rate"
    share = (
        rng.uniform(0.04, 0.45, len(levels))
        if rate
        else weight * (0.97 if not query["by"] and not query["where"] else 0.8)
    )
    own = {name: _cells(levels, share, size, sigma, rate, rng) for name, (_, size) in agencies.items()}
    total = sum(size for _, size in agencies.values())
    noise = sigma * math.sqrt(1 if shared else len(agencies))
    return {
        "counts": "person",
        "among": None,
        **query,
        "planned_sd": noise,
        "least": 3 * noise,
        "epsilon_for_minimum": 1.183 if sigma else None,
        "at_one": None
        if shared
        else {
            "planned_sd": sigma,
            "least": 3 * sigma,
            "epsilon_for_minimum": 0.911 if sigma else None,
        },
        "together": {"agencies": list(agencies), "cells": _cells(levels, share, total, noise, rate, rng)}
        if agencies
        else None,
        "agencies": {} if shared else own,
    }


def _cells(
    levels: Sequence[tuple[str, ...]],
    shares: np.ndarray,
    size: int,
    sigma: float,
    rate: bool,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    made = []
    for each, share in zip(levels, shares, strict=True):
        if rate:
            base = size / len(levels)
            sd = sigma / base
            found = estimate(float(share + rng.normal(0, 1) * sd), sd, share=True)
        else:
            sd = sigma
            found = estimate(float(5 * round((size * share + rng.normal(0, sd)) / 5)), sd)
        made.append({"levels": list(each), **found, "sd": sd, "wide": _wide(found, sd, rate)})
    return made


def _wide(found: Estimate, sd: float, share: bool) -> dict[str, float] | None:
    """The interval that holds with those of all other numbers."""
    if not found["publishable"]:
        return None
    margin = WIDE * sd
    low, high = found["value"] - margin, found["value"] + margin
    return {"low": max(low, 0.0), "high": min(high, 1.0) if share else high}


def fake_cohort(told: bool = True, names: Sequence[str] = tuple(AGENCIES)) -> dict[str, Any]:
    """How many people `names` share; `told`: whether an overlap can be told."""
    sizes = {name: AGENCIES[name][1] for name in names}
    sd = 260.0 if told else 9e9
    pairs = []
    for one, other in itertools.combinations(names, 2):
        both = 0.21 * min(sizes[one], sizes[other])
        pairs.append(_pair(one, other, both, sizes, sd) | {"groups": _groups(one, other, both, sizes, sd)})
    return {
        **HEADER,
        "kind": "cohort",
        "run_id": "20260304-111500-early-help-cohort",
        "disclosure": {"profile": "uk-default", "minimum": 10, "rounding": 5},
        "privacy": {
            "mechanism": "discrete-laplace",
            "epsilon": 1.0,
            "delta": 0,
            "unit": "person at one agency",
            "adjacency": "add-or-remove",
            "epsilon_at_several_agencies": {str(m): float(m) for m in range(1, len(names) + 1)},
        },
        "agencies": {
            name: {
                "kind": AGENCIES[name][0],
                "public_size": size,
                "status": "counted",
                "reason": None,
                "epsilon": 1.0,
                "releases": [{"kind": "cohort", "part": "all"}],
                "people": estimate(size + 30.0, 140.0),
            }
            for name, size in sizes.items()
        },
        "match": {
            "rule": "the same first forename, surname, date of birth and postcode",
            "columns": ["forename", "surname", "born", "postcode"],
        },
        "by": "age_band",
        "buckets": 16_384,
        "pairs": pairs,
        "core": {"agencies": list(names), "shared": estimate(1_150.0, sd)} if len(names) > 2 else None,
        "least": 1_240.0,
        "conclusion": "About a fifth of the smaller list is known to the other agency too."
        if told
        else "How many people they share cannot be told at this budget.",
        "files": {"report": "cohort.html"},
    }


def _pair(one: str, other: str, both: float, sizes: Mapping[str, int], sd: float) -> dict[str, Any]:
    shared = estimate(both, sd)
    share_of = {
        name: estimate(both / sizes[name], sd / sizes[name], share=True)
        if shared["publishable"]
        else dict(NOTHING)
        for name in (one, other)
    }
    needs = {"overlap": 620.0, "epsilon": 1.7}
    return {
        "agencies": [one, other],
        "shared": shared,
        "share_of": share_of,
        "least": 1_240.0,
        "needs": needs,
        "with_missed": None
        if not shared["publishable"]
        else {"low": shared["low"], "high": shared["high"] / 0.7, "missed": 0.3},
    }


def _groups(one: str, other: str, both: float, sizes: Mapping[str, int], sd: float) -> dict[str, Any]:
    groups = {}
    for level, part in zip(BANDS, (0.02, 0.3, 0.48, 0.2), strict=True):
        found = _pair(one, other, both * part, {name: round(size * part) for name, size in sizes.items()}, sd)
        for key in ("agencies", "least", "needs", "with_missed"):
            del found[key]
        groups[level] = found
    return groups


def fake_signs(leads: bool = True) -> dict[str, Any]:
    """Three series, one of which goes ahead of another by two months."""
    names = ("missed rents", "crisis contacts", "arrests")
    rng = np.random.default_rng(5)
    signs = []
    for one, other in itertools.permutations(names, 2):
        values = rng.normal(0, 0.06, 6)
        strong, untold = leads and (one, other) == names[:2], one == "arrests"
        values[1] = 0.46 if strong else values[1]
        beside = [
            {"lag": lag, "value": float(value), "low": float(value) - 0.19, "high": float(value) + 0.19}
            for lag, value in enumerate(values, 1)
        ]
        clearest = beside[1] if strong else max(beside, key=lambda each: abs(each["value"]))
        numbers = {key: None if untold else clearest[key] for key in ("value", "low", "high")}
        signs.append(
            {
                "leads": one,
                "follows": other,
                "lag": None if untold else clearest["lag"],
                "partial_correlation": numbers,
                "verdict": "cannot be told" if untold else "leads" if strong else "no sign",
                "why": "too much noise in one of the two to tell its own past" if untold else None,
                "lags": [] if untold else beside,
            }
        )
    return {
        "schema": 1,
        "kind": "signs",
        "created": "2026-03-05T09:00:00+00:00",
        "fedrisk_version": "0.6.0",
        "maps": [HEADER["run_id"]],
        "privacy": {"epsilon": 0.5, "costs": "nothing further"},
        "agencies": list(AGENCIES),
        "areas": 8,
        "months": 36,
        "max_lag": 6,
        "level": 0.95,
        "left_out": [
            {"name": name, "why": "has 36 months and needs 48"} for name in ("evictions", "falls at home")
        ],
        "series": [
            {"name": name, "agency": agency, "query": f"{name} by month and area", "noise_share": share}
            for name, agency, share in zip(names, AGENCIES, (0.12, 0.31, 0.88), strict=True)
        ],
        "signs": signs,
        "conclusion": "Missed rents go ahead of crisis contacts by two months."
        if leads
        else "Nothing stands out.",
        "files": {"report": "signs.html"},
    }
