"""Folders of a map, a cohort and early signs as a run leaves them, for the tests of what goes to MLflow."""

import json
from pathlib import Path
from typing import Any

from fake_map import fake_cohort, fake_map, fake_signs

from federation.panel.demand.pages import write_cohort, write_map, write_signs

SECRET = 7_654_321.0
WRITE = {"map": write_map, "cohort": write_cohort, "signs": write_signs}


def made() -> dict[str, dict[str, Any]]:
    """One of each kind; in the map a number that may not be published."""
    drawn = fake_map(sigma=300.0)
    cell = next(
        cell for query in drawn["queries"] for cell in query["together"]["cells"] if not cell["publishable"]
    )
    cell |= {"value": SECRET, "low": SECRET, "high": SECRET}
    return {"map": drawn, "cohort": fake_cohort(), "signs": fake_signs()}


def put(found: dict[str, Any], folder: Path) -> None:
    """`found`, its page and tables, and another file, as a run's folder has them."""
    folder.mkdir()
    files = WRITE[found["kind"]](found, folder)
    (folder / "series.json").write_text('{"series": 7654321}')
    found["files"] = {"series": "series.json", **files}
    (folder / f"{found['kind']}.json").write_text(json.dumps(found))
