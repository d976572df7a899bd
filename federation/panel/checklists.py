"""Section 8 of the report: what others ask of such a tool, each line answered from evidence or left to people.

The lines are in checklists.yaml, in our words; what answers them in `findings`.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from federation.panel.findings.everything import FINDINGS
from federation.panel.findings.finding import Finding, supported

FILE = Path(__file__).with_suffix(".yaml")


def checklists(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each checklist: {"name", "source", "items"}; an item: {"id", "text", "answer", "anchor", "human"}.

    `answer` is what the result says, with its place in the report as `anchor` ("#id"). Where it says nothing both are
    None and `human` is True: `text` is then a question that people have to answer.
    """
    return [
        {
            "name": each["name"],
            "source": each["source"],
            "items": [_item(item, result) for item in each["items"]],
        }
        for each in _lines()
    ]


def found(names: Sequence[str], result: Mapping[str, Any], needs_all: bool = True) -> list[Finding]:
    """The findings of those names; none at all where one lacks and all are needed."""
    told = [supported(FINDINGS[name], result) for name in names]
    known = [finding for finding in told if finding is not None]
    return known if len(known) == len(told) or not needs_all else []


def _item(item: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    findings = found(item.get("from", ()), result, needs_all=not item.get("any"))
    answer = " ".join(finding.text for finding in findings) or None
    return {
        "id": str(item["id"]),
        "text": item["text"],
        "answer": answer,
        "anchor": None if answer is None else f"#{item['anchor']}",
        "human": answer is None,
    }


@cache
def _lines() -> Any:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))
