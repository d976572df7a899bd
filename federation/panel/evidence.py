"""`evidence.json`: what report.html says, for machines and for people who quote it.

Keyed by the eight questions of the report. Each fact names where it stands in result.json (`facts`); what may not be
published is null, with the reason. evidence.schema.json beside this file describes it (JSON Schema 2020-12).
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from federation.panel.checklists import checklists
from federation.panel.facts import (
    REGISTRATION,
    Fact,
    answer_source,
    at,
    facts,
    metrics_source,
    pointer,
    table,
)
from federation.panel.registered import ABOUT, NEXT, gates, registration_of

Json = Mapping[str, Any]

FORMAT = 1
SOURCES = (
    "A source is a JSON pointer (RFC 6901) into result.json; what follows a # points into the JSON text that stands there. "
    "Numbers are copied, not rounded; low and high are the ends of a 95% interval."
)


def evidence(result: Json) -> dict[str, Any]:
    """The evidence of `result` (schema 1 of result.json), JSON-clean; the same result always gives the same evidence."""
    told = {key: list(find(result)) for key, (_, find) in QUESTIONS.items()}
    return {
        "format": FORMAT,
        "run_id": _text(result.get("run_id")),
        "sources": SOURCES,
        "sha256": {
            "result.json": result_sha256(result),
            "registration": _text(at(result, "/registration/sha256")),
            "contract": _text(at(result, "/contract/sha256")),
            **{name: _text(result.get(f"{name}_sha256")) for name in ("config", "plan", "code")},
        },
        "questions": {
            key: {"question": question, "anchor": f"#{key}", "facts": [_entry(fact) for fact in told[key]]}
            for key, (question, _) in QUESTIONS.items()
        },
        "checklists": checklists(result),
        "suppressed": [fact.source for each in told.values() for fact in each if fact.state == "suppressed"],
    }


def result_sha256(result: Json) -> str:
    """SHA-256 of result.json as a run writes it: `json.dumps(result, indent=1)` in UTF-8."""
    return hashlib.sha256(json.dumps(result, indent=1, allow_nan=False).encode()).hexdigest()


def _entry(fact: Fact) -> dict[str, Any]:
    entry = {"of": list(fact.of), "name": fact.name, "value": fact.value}
    if fact.low is not None or fact.high is not None:
        entry |= {"low": fact.low, "high": fact.high}
    entry |= {"source": fact.source, "state": fact.state}
    return entry if fact.reason is None else entry | {"reason": fact.reason}


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


# --- the eight questions --------------------------------------------------------------------------------------


def _about(result: Json) -> Iterator[Fact]:
    for key in ("experiment", "purpose", "simulation", "cautions"):
        yield from facts(result, f"/{key}", key)
    for key in ("name", "version", "label", "horizon", "description"):
        yield from facts(result, f"/contract/{key}", "contract", key)
    for key in ("outcome", "groups"):
        yield from facts(result, f"{REGISTRATION}#/{key}", "registered", key)
    for key in ("not_for", *ABOUT):
        yield from facts(result, answer_source(key), "answers", key)
    yield from _of_agencies(result, "kind", "public_size", "weight", "holds", "holds_label")


def _works(result: Json) -> Iterator[Fact]:
    yield from _measured(result, "overall", "cutoff", "reliability", "capacity", "constant", "agencies")
    yield from facts(result, "/reference", "reference")


def _fair(result: Json) -> Iterator[Fact]:
    yield from _measured(result, "groups", "intersections", "gaps", "worst_gap")
    yield from _measured(result, "agency_gaps", "between_agencies", "conflicts")
    for number, _ in enumerate(result.get("checkpoints") or ()):
        where = pointer("checkpoints", number)
        for key in (
            "round",
            "part",
            "metrics/overall/auc",
            "metrics/overall/brier",
            "metrics/gaps",
            "metrics/worst_gap",
        ):
            yield from facts(result, f"{where}/{key}", "checkpoints", str(number), *key.split("/"))
    for key in ("analysis", "fairness_training"):
        yield from facts(result, f"/{key}", key)


def _users(result: Json) -> Iterator[Fact]:
    yield from facts(result, "/users", "users")


def _cost(result: Json) -> Iterator[Fact]:
    yield from facts(result, "/privacy", "privacy")
    yield from _of_agencies(result, "epsilon", "epsilon_to")
    for key in ("tables", "disclosure"):
        yield from facts(result, f"/{key}", key)
    yield from facts(result, f"{REGISTRATION}#/evidence/audit", "audit")


def _happened(result: Json) -> Iterator[Fact]:
    for key in ("status", "created", "fedrisk_version", "engine", "seed", "rounds_planned"):
        yield from facts(result, f"/{key}", key)
    yield from _of_agencies(result, "status", "reason", "rounds", "rejected", "bounded")
    yield from _incidents(result)
    for key in ("model", "strategy", "robustness", "departures"):
        yield from facts(result, f"/{key}", key)
    yield from _gates(result)
    yield from facts(result, f"{REGISTRATION}#/evidence/replaces", "replaces")


def _next(result: Json) -> Iterator[Fact]:
    for key in NEXT:
        yield from facts(result, answer_source(key), "answers", key)
    yield from facts(result, f"{REGISTRATION}#/gates", "gates")


def _checklists(_: Json) -> Iterator[Fact]:
    yield from ()  # they have their own place, `checklists`


QUESTIONS: Mapping[str, tuple[str, Callable[[Json], Iterator[Fact]]]] = {
    "about": ("What is it for?", _about),
    "works": ("Does it work, for whom?", _works),
    "fair": ("Is it fair?", _fair),
    "users": ("Super-users: whom does it find, and how early?", _users),
    "cost": ("What did it cost?", _cost),
    "happened": ("What happened?", _happened),
    "next": ("What next?", _next),
    "checklists": ("Checklists", _checklists),
}


# --- parts ----------------------------------------------------------------------------------------------------


def _measured(result: Json, *parts: str) -> Iterator[Fact]:
    source = metrics_source(result) or "/final/metrics"
    for part in parts:
        yield from facts(result, f"{source}/{part}", part)


def _of_agencies(result: Json, *keys: str) -> Iterator[Fact]:
    names = list(table(result.get("agencies")))
    if not names:
        yield from facts(result, "/agencies", "agencies")
    for name in names:
        for key in keys:
            yield from facts(result, pointer("agencies", name, key), "agencies", name, key)


def _incidents(result: Json) -> Iterator[Fact]:
    """What went wrong, and who joined, round by round; a round without any of it says nothing."""
    for number, record in enumerate(result.get("rounds") or ()):
        for key in ("joined", "late", "refused", "rejected", "bounded", "void"):
            if table(record).get(key):
                yield from facts(
                    result, pointer("rounds", number, key), "rounds", str(table(record).get("round")), key
                )


def _gates(result: Json) -> Iterator[Fact]:
    """What each registered gate says, in words."""
    if registration_of(result) is None:
        yield from facts(result, f"{REGISTRATION}#/gates", "gates")
        return
    for name, asked, found, passed, _ in (gates(result) or {"rows": ()})["rows"]:
        for key, value in (("asked", asked), ("found", found), ("passed", passed)):
            yield Fact(("gates", name), key, f"{REGISTRATION}#/gates", value)
