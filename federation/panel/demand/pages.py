"""What a service manager reads of a map, a cohort and early signs: one HTML file each that needs nothing from elsewhere, and CSVs.

Each is made of its JSON alone, so whoever has the two can compare them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from federation.durable import write_whole
from federation.panel.demand import cohort, signs
from federation.panel.demand import map as demand_map
from federation.panel.demand.tables import tables
from federation.panel.report import template

Json = Mapping[str, Any]


def write_map(found: Json, folder: Path) -> dict[str, str]:
    """Write map.html and csv/ of `found` (schema 1 of map.json) into `folder`; what is where, for its `files`."""
    page, files = render_map(found), tables(found)
    (folder / "csv").mkdir(exist_ok=True)
    for name, text in files.items():
        write_whole(folder / "csv" / name, text.encode(), mode=0o644)
    write_whole(folder / "map.html", page.encode(), mode=0o644)
    return {"report": "map.html", "tables": "csv"}


def write_cohort(found: Json, folder: Path) -> dict[str, str]:
    """Write cohort.html of `found` (schema 1 of cohort.json) into `folder`; what is where, for its `files`."""
    write_whole(folder / "cohort.html", render_cohort(found).encode(), mode=0o644)
    return {"report": "cohort.html"}


def write_signs(found: Json, folder: Path) -> dict[str, str]:
    """Write signs.html of `found` (schema 1 of signs.json) into `folder`; what is where, for its `files`."""
    write_whole(folder / "signs.html", render_signs(found).encode(), mode=0o644)
    return {"report": "signs.html"}


def render_map(found: Json) -> str:
    """The page of a map as text: of equal maps equal texts. `ValueError` where `found` is no map."""
    check(found, "map")
    return str(template("map.html.j2").render(**demand_map.view(found)))


def render_cohort(found: Json) -> str:
    """The page of a cohort as text, as `render_map`."""
    check(found, "cohort")
    return str(template("cohort.html.j2").render(**cohort.view(found)))


def render_signs(found: Json) -> str:
    """The page of early signs as text, as `render_map`."""
    check(found, "signs")
    return str(template("signs.html.j2").render(**signs.view(found)))


def check(found: Json, kind: str) -> None:
    """`ValueError` unless `found` is of this kind and of a schema that the pages know."""
    if found["kind"] != kind or found["schema"] != 1:
        raise ValueError(
            f"a {kind} of schema 1 is needed, got a {found['kind']} of schema {found['schema']}: "
            "make the page with the release that made the file"
        )
