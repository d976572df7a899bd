"""Checklists that ethics panels know, each line answered from a result or left to people."""

from collections.abc import Mapping
from typing import Any


def checklists(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """[{"name", "source", "items": [{"id", "text", "answer": str or None, "anchor": "#section" or None, "human": bool}]}].

    human: a line that only people can answer. anchor: where in the report the evidence is. Empty here: none is written yet.
    """
    return []
