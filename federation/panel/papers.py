"""The papers beside a result: the report for people to read, and the same evidence as JSON for those who quote or complete it.

Each is made of result.json and nothing else, so whoever has the release that made a run can make them again and compare.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from federation.durable import write_whole
from federation.panel.atrs import atrs
from federation.panel.evidence import evidence
from federation.panel.model_card import model_card
from federation.panel.report import render_report

Json = Mapping[str, Any]


def as_read(result: Json) -> dict[str, Any]:
    """`result` as whoever reads result.json gets it; ValueError where it holds what JSON does not."""
    read: dict[str, Any] = json.loads(json.dumps(result, allow_nan=False))
    return read


def write_papers(result: Json, folder: Path) -> list[Path]:
    """Write the papers of `result` (schema 1 of result.json) into `folder`, each whole, none before all are made."""
    read = as_read(result)
    made = {folder / name: make(read) for name, make in PAPERS.items()}
    for path, content in made.items():
        write_whole(path, content, mode=0o644)
    return list(made)


def _as_json(make: Callable[[Json], Json]) -> Callable[[Json], bytes]:
    return lambda result: (
        json.dumps(make(result), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    ).encode()


PAPERS: Mapping[
    str, Callable[[Json], bytes]
] = {  # file in the run's folder -> what makes its bytes of a result
    "report.html": lambda result: render_report(result).encode(),
    "evidence.json": _as_json(evidence),
    "model-card.json": _as_json(model_card),
    "atrs.json": _as_json(atrs),
}
