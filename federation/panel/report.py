"""The report of a run, for an ethics panel: one HTML file that needs nothing from elsewhere.

`render_report` reads `result.json` and nothing else, so that whoever has the two can compare them byte for byte. What
is read is in `sections/`, a module for each section of the page; the words are in `templates/`, the pictures in
`charts.py`. A value without `publishable: true` never gets that far (`sections.numbers.shown`). Parts that a result
does not have are said to be missing; they are not left out.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from federation.panel.checklists import checklists
from federation.panel.registered import gates, registered
from federation.panel.sections.about import agencies, facts
from federation.panel.sections.benefit import benefit
from federation.panel.sections.between import between, over_time
from federation.panel.sections.changed import changed
from federation.panel.sections.compared import comparison
from federation.panel.sections.cost import cost
from federation.panel.sections.fair import groups
from federation.panel.sections.happened import events, identity
from federation.panel.sections.tensions import analysis, conflicts, constant, training
from federation.panel.sections.users import users
from federation.panel.sections.works import measured, works

Json = Mapping[str, Any]

SECTIONS = (
    ("about", "What is it for?"),
    ("works", "Does it work, and for whom?"),
    ("fair", "Is it fair?"),
    ("users", "Super-users: who already gets most services?"),
    ("cost", "What did it cost in privacy?"),
    ("happened", "What happened?"),
    ("next", "What next?"),
    ("checklists", "Checklists"),
    ("words", "Words used here"),
)
# Parts of sections: their ids do not change, so that other pages may link to them. Each is on every report.
PARTS = {
    "registered": "What people answered for it",
    "missing": "Protected characteristics",
    "agencies": "Who took part",
    "kinds": "What each kind of agency added",
    "people": "Of 1,000 people",
    "capacity": "If only so many can be seen",
    "benefit": "Is it worth it?",
    "calibration": "Can its numbers be believed?",
    "by-agency": "At each agency",
    "training": "While it was trained",
    "compared": "Compared with what?",
    "groups": "Group by group",
    "intersections": "People in several groups at once",
    "between": "Between agencies, and within each",
    "over-time": "Gaps while it was trained, beside what was asked",
    "constant": "What saying the same of everyone would score",
    "conflicts": "Which wishes conflict here",
    "fairness-training": "Was fairness part of the training?",
    "analysis": "What other cutoffs would do: analysis only",
    "lead": "How early is a flag?",
    "practice": "Next to today's practice",
    "several": "A person whom several agencies know",
    "audit": "Was the promise attacked?",
    "disclosure": "Small numbers",
    "incidents": "Round by round",
    "gates": "What was asked of it before the run",
    "changed": "What changed since the last approved model",
    "identity": "Exactly which model is this about?",
    "referral": "What brings it back",
}
ANCHORS = {**dict(SECTIONS), **PARTS}


def write_report(result: Json, path: Path) -> Path:
    """Write the report of `result` (schema 1 of result.json) to `path`, whole or not at all."""
    return _write(render_report(result), path)


def write_compare(compare: Json, path: Path) -> Path:
    """Write a page with only a comparison: {"note", "seeds", "rows"}, rows as in result["reference"]."""
    page = template("compare.html.j2").render(title="Comparison", comparison=comparison(compare))
    return _write(page, path)


def render_report(result: Json) -> str:
    """The report as text: of equal results equal texts."""
    page = template("report.html.j2")
    return str(page.render(sections=SECTIONS, parts=PARTS, anchors=ANCHORS, **view(result)))


def view(result: Json) -> dict[str, Any]:
    """Everything that the templates show, as texts, tables and pictures. None: it is not in the result."""
    metrics, source = measured(result)
    return {
        "title": str(result.get("experiment") or "A run whose name is not given"),
        "facts": facts(result),
        "registered": registered(result),
        "agencies": agencies(result),
        "source": source,
        "works": works(metrics, result) if metrics else None,
        "benefit": benefit(metrics or {}, result),
        "comparison": comparison(result.get("reference")),
        "groups": groups(metrics, result) if metrics else None,
        "between": between(metrics or {}),
        "gaps": over_time(result),
        "constant": constant(metrics or {}),
        "conflicts": conflicts(metrics or {}),
        "training": training(result),
        "analysis": analysis(metrics or {}, result),
        "users": users(result, metrics),
        "cost": cost(result),
        "events": events(result),
        "gates": gates(result),
        "changed": changed(result, metrics),
        "identity": identity(result),
        "checklists": checklists(result),
    }


def _write(text: str, path: Path) -> Path:
    beside = path.with_name(path.name + ".writing")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
    return path


@cache
def template(name: str) -> Any:
    """A page of templates/: escaped, and an error where a name is not given."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).resolve().parent / "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)
