"""Section 1, what is it for: purpose, outcome, who took part and what each kind of agency added."""

import contextlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from federation.panel.sections.numbers import Json, given, join, number, real

STATUS = {
    "trained": "took part",
    "no label": "did not train: it does not hold the outcome",
    "unavailable": "was not available",
    "refused": "refused",
    "withdrawn": "withdrew from this plan",
    "not yet": "had not approved the plan in time",
    "closed": "was outside its working hours",
    "busy": "looked at no new plan, after many refusals",
    "left": "left the federation",
    "late": "did not answer in time",
    "rejected": "its reply could not be used",
}
REASONS = {
    "BUDGET": "its privacy budget would have been exceeded",
    "CONTRACT": "its policy does not allow this data contract",
    "MODEL": "its policy does not allow this model",
    "PRIVACY": "its policy asks for more privacy than the plan gives",
    "PURPOSE": "its policy does not allow this purpose",
    "VERSION": "it runs another version of the software",
    "WITHDRAWN": "a person there withdrew from the plan",
    "REGISTRATION": "its policy asks for a registration by its ethics panel",
    "NOT_YET": "nobody there had approved the plan yet",
    "CLOSED": "it was outside its working hours",
    "BUSY": "it looked at no new plan, after many refusals",
    "LEFT": "it has left the federation",
    "MALFORMED": "the order could not be read there",
    "UNAVAILABLE": "it could not take part, for a reason that stays with it",
    "INTERNAL": "something failed there; its own log says what",
}
PROTECTED = (  # Equality Act 2010, section 4
    "age",
    "disability",
    "gender reassignment",
    "marriage and civil partnership",
    "pregnancy and maternity",
    "race",
    "religion or belief",
    "sex",
    "sexual orientation",
)


def facts(result: Json) -> dict[str, Any]:
    """What the whole page asks of a run: its name, its status, whether anybody was protected."""
    contract, privacy = result.get("contract") or {}, result.get("privacy") or {}
    names = ("run_id", "status", "created", "purpose", "engine", "fedrisk_version")
    found: dict[str, Any] = {name: given(result.get(name)) for name in names}
    found |= {name: given(contract.get(name)) for name in ("label", "horizon", "description")}
    with contextlib.suppress(ValueError):
        made = datetime.fromisoformat(found["created"]).astimezone(UTC)
        found["created"] = f"{made.day} {made:%B %Y, %H:%M} UTC"
    return found | {
        "simulation": result.get("simulation") is not False,
        "private": privacy.get("mechanism") in ("local", "shared"),
        "finished": result.get("status") == "finished",
        "rows": str(privacy.get("unit", "")).startswith("row"),
        "cautions": [str(sentence) for sentence in result.get("cautions") or ()],
        "cautions_known": "cautions" in result,
        "fairness_known": "fairness_training" in result,
        "protected": PROTECTED,
    }


def agencies(result: Json) -> dict[str, Any]:
    """A row for each agency, a row for each kind, and how many took part."""
    found = {name: facts or {} for name, facts in (result.get("agencies") or {}).items()}
    rows = [_agency(name, facts) for name, facts in found.items()]
    return {
        "rows": rows,
        "kinds": _kinds(list(found.values())),
        "count": len(rows),
        "in": sum(row["in"] for row in rows),
    }


def _agency(name: str, facts: Json) -> dict[str, Any]:
    reason = facts.get("reason")
    holds = [str(block) for block in facts.get("holds") or ()]
    return {
        "name": name,
        "kind": given(facts.get("kind")),
        "status": STATUS.get(str(facts.get("status")), given(facts.get("status"))),
        "reason": REASONS.get(str(reason).upper(), str(reason)) if reason else "",
        "in": facts.get("status") == "trained",
        "size": number(facts.get("public_size"), ","),
        "weight": number(facts.get("weight"), ",.10g"),
        "holds": join(["what all hold", *holds]) if "holds" in facts else "not given",
        "label": {"True": "yes", "False": "no"}.get(str(facts.get("holds_label")), "not given"),
        "rounds": number(facts.get("rounds")),
    }


def _kinds(found: Sequence[Json]) -> list[dict[str, Any]]:
    """What each kind of agency brought that not every kind has."""
    kinds: dict[str, list[Json]] = {}
    for facts in found:
        kinds.setdefault(given(facts.get("kind")), []).append(facts)
    held = {kind: _blocks(group) for kind, group in kinds.items()}
    rows = []
    for kind, group in kinds.items():
        others = {block: [k for k in held if k != kind and block in held[k]] for block in held[kind]}
        added = [f"{block} ({_also(also)})" for block, also in others.items()]
        rows.append(
            {
                "kind": kind,
                "count": len(group),
                "in": sum(facts.get("status") == "trained" for facts in group),
                "size": _size(group),
                "added": join(added) if added else "people, with the columns that all hold",
            }
        )
    return rows


def _blocks(group: Sequence[Json]) -> list[str]:
    return list(dict.fromkeys(str(block) for facts in group for block in facts.get("holds") or ()))


def _also(kinds: Sequence[str]) -> str:
    return f"also held by {join(kinds)}" if kinds else "held by no other kind"


def _size(group: Sequence[Mapping[str, Any]]) -> str:
    sizes = [facts.get("public_size") for facts in group]
    return f"{sum(size for size in sizes if size):,}" if all(map(real, sizes)) else "not given"
