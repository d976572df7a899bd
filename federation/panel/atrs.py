"""`atrs.json`: a draft of the record that UK bodies publish of an algorithmic tool (ATRS), answered from evidence.

Fields and their reference numbers are in atrs.yaml. What no result can know (who is responsible, whom to write to) is
null and listed under `to_complete_by_people`; so is every field whose evidence lacks.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from federation.panel.checklists import found

FILE = Path(__file__).with_suffix(".yaml")
STANDARD = "Algorithmic Transparency Recording Standard, version 3.0 (March 2024)"
DRAFT = (
    "A draft, made from result.json alone: people check every field, complete those that are null, and publish it. A source is "
    "a JSON pointer into result.json; what follows a # points into the JSON text that stands there."
)


def atrs(result: Mapping[str, Any]) -> dict[str, Any]:
    """The record of `result`. A field is {"reference", "answer", "sources"}, or null where people must answer."""
    record = {tier: _answered(fields, result) for tier, fields in _template().items()}
    return {
        "standard": STANDARD,
        "note": DRAFT,
        "run_id": result.get("run_id"),
        **record,
        "to_complete_by_people": list(_open(record)),
    }


def _answered(part: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of fields, or fields: a field is what has a reference number."""
    return {
        key: _field(entry, result) if "ref" in entry else _answered(entry, result)
        for key, entry in part.items()
    }


def _field(field: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any] | None:
    findings = found(field.get("from", ()), result, needs_all=not field.get("any"))
    if not findings:
        return None
    sources = dict.fromkeys(source for finding in findings for source in finding.sources)
    return {
        "reference": str(field["ref"]),
        "answer": " ".join(finding.text for finding in findings),
        "sources": list(sources),
    }


def _open(part: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Fields without an answer, as `tier_2.owner_and_responsibility.team`."""
    for key, entry in part.items():
        if entry is None:
            yield prefix + key
        elif "answer" not in entry:
            yield from _open(entry, f"{prefix}{key}.")


@cache
def _template() -> Any:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))
