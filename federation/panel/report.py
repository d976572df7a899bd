"""The report of a run, for an ethics panel: one HTML file that needs nothing from elsewhere.

`write_report` reads `result.json` and nothing else, and computes nothing that is not a way of saying a number in
it: a rate per 1,000 people, an ε as the odds it allows. The words are in templates/report.html.j2, the pictures in
charts.py, and here the numbers become texts. A value without `publishable: true` never gets that far. Parts that a
result does not have are said to be missing; they are not left out.
"""

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from federation.panel import charts
from federation.panel.charts import Mark, Panel, Point
from federation.panel.registered import gates, registered

Json = Mapping[str, Any]

HIDDEN = "not shown"
GONE = "not computed"
SECTIONS = (
    ("about", "What is this, and what is it not for?"),
    ("works", "Does it work?"),
    ("groups", "For whom does it fail?"),
    ("cost", "What did it cost in privacy?"),
    ("compared", "Compared with what?"),
    ("happened", "What happened?"),
    ("next", "What next?"),
    ("identity", "Exactly which model is this about?"),
    ("words", "Words used here"),
)
# name in result.json -> (name here, what it says, unit)
MEASURES = {
    "auc": ("Ranking (AUC)", "share of pairs in the right order; 0.5 is a coin, 1 is perfect", "decimal"),
    "auc_bound": (
        "Rounding in the ranking",
        "how far the AUC may be off, because scores are counted in bands",
        "decimal",
    ),
    "brier": (
        "Distance from the truth (Brier)",
        "mean squared distance between score and outcome; 0 is perfect",
        "decimal",
    ),
    "log_loss": (
        "Surprise (log loss)",
        "how surprised the model is by what happens; 0 is perfect",
        "decimal",
    ),
    "observed_expected": (
        "Observed over expected",
        "outcomes that happened for each one expected; 1 is perfect",
        "decimal",
    ),
    "ece": (
        "Calibration error (ECE)",
        "how far scores are from the observed share, on average; 0 is perfect",
        "decimal",
    ),
    "base_rate": ("Had the outcome", "share of all people", "percent"),
    "selection_rate": ("Flagged", "share of all people", "percent"),
    "tpr": ("Found", "share flagged, of those who had the outcome (true positive rate)", "percent"),
    "fpr": ("Wrongly flagged", "share flagged, of those who did not (false positive rate)", "percent"),
    "ppv": (
        "Right if flagged",
        "share with the outcome, of those flagged (positive predictive value)",
        "percent",
    ),
    "accuracy": (
        "Right either way",
        "share of all people rightly flagged or rightly left (accuracy)",
        "percent",
    ),
    "net_benefit_gain": (
        "Worth over simple rules (net benefit)",
        "rightly flagged less the price of wrongly flagged, for each person, beyond the better of flagging everybody and nobody",
        "decimal",
    ),
    "people": ("People counted", "with noise, where there is privacy", "count"),
}
MARGINS = (
    ("selection_rate", "of all people flagged"),
    ("tpr", "found of those who had the outcome"),
    ("fpr", "wrongly flagged of those who did not"),
)
BY_GROUP = ("selection_rate", "tpr", "fpr", "ppv")
GAPS = {
    "demographic_parity": ("Flagged", "selection_rate", "demographic parity"),
    "equal_opportunity": ("Found", "tpr", "equal opportunity"),
    "predictive_parity": ("Right if flagged", "ppv", "predictive parity"),
    "equalized_odds": ("Found or wrongly flagged, whichever differs more", None, "equalised odds"),
}
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
KINDS = {
    "pooled": "all records in one place: a yardstick, not an option",
    "federated": "agencies together, no privacy noise",
    "private": "agencies together, with privacy noise",
    "shared": "agencies together, with privacy noise that they share",
    "alone": "one agency by itself",
    "sklearn": "a standard tool, all records in one place",
}


def write_report(result: Json, path: Path) -> Path:
    """Write the report of `result` (schema 1 of result.json) to `path`, whole or not at all."""
    return _write(render_report(result), path)


def write_compare(compare: Json, path: Path) -> Path:
    """Write a page with only a comparison: {"note", "seeds", "rows"}, rows as in result["reference"]."""
    return _write(
        _template().render(page="compare", title="Comparison", comparison=comparison(compare)), path
    )


def render_report(result: Json) -> str:
    """The report as text."""
    return str(_template().render(page="report", sections=SECTIONS, **view(result)))


def _write(text: str, path: Path) -> Path:
    beside = path.with_name(path.name + ".writing")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
    return path


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).resolve().parent / "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.j2")


# ---- numbers as texts ----


@dataclass(frozen=True)
class Cell:
    """A number as the reader sees it. `hidden`: there is no number to see, and `text` says so."""

    text: str
    interval: str = ""
    hidden: bool = False


def cell(estimate: Json | None, unit: str) -> Cell:
    """An estimate as text with its interval, if it may be shown. unit: percent, points, decimal, count."""
    mark = shown(estimate)
    if mark is None:
        kept = estimate is not None and estimate.get("publishable") is not True
        return Cell(HIDDEN if kept else GONE, hidden=True)
    ends = ""
    if mark.low is not None and mark.high is not None:
        ends = f"{_say(mark.low, unit, bare=True)} to {_say(mark.high, unit, bare=True)}"
    return Cell(_say(mark.value, unit), ends)


def shown(estimate: Json | None) -> Mark | None:
    """The one gate between a result and the page: an estimate that may be published, or None."""
    if estimate is None or estimate.get("publishable") is not True or not _real(estimate.get("value")):
        return None
    low, high = (float(estimate[k]) if _real(estimate.get(k)) else None for k in ("low", "high"))
    return Mark(float(estimate["value"]), low, high)


def _real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _say(value: float, unit: str, bare: bool = False) -> str:
    if unit == "count":
        return f"{max(value, 0):,.0f}"
    if unit == "decimal":
        return f"{value:.3f}"
    return f"{100 * value:.1f}" + ("" if bare else "%" if unit == "percent" else " points")


def epsilon(value: Any) -> str:
    """ε to two places; a run without privacy has none to give."""
    return f"{value:.2f}" if _real(value) else "no limit"


def certainty(value: Any) -> str:
    """What ε lets an onlooker reach from an even guess, out of 100: 100 / (1 + exp(-ε)), rounded up."""
    if not _real(value):
        return "100 in 100"
    reached = math.ceil(1000 / (1 + math.exp(-value)) - 1e-9) / 10
    return "more than 99.9 in 100" if reached > 99.9 else f"{reached:.1f} in 100"


def of_thousand(overall: Json) -> dict[str, int] | None:
    """1,000 people as found, missed, wrongly flagged and rightly left; they add up. None if one may not be shown."""
    rates = [shown(overall.get(name)) for name in ("base_rate", "tpr", "fpr")]
    if None in rates:
        return None
    base, found, wrong = (min(max(rate.value, 0.0), 1.0) for rate in rates if rate is not None)
    exact = [
        1000 * base * found,
        1000 * base * (1 - found),
        1000 * (1 - base) * wrong,
        1000 * (1 - base) * (1 - wrong),
    ]
    whole = [math.floor(number) for number in exact]
    for at in sorted(range(4), key=lambda i: whole[i] - exact[i])[: 1000 - sum(whole)]:
        whole[at] += 1
    names = ("found", "missed", "wrong", "left")
    return dict(zip(names, whole, strict=True)) | {"flagged": whole[0] + whole[2], "had": whole[0] + whole[1]}


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _join(names: Iterable[str]) -> str:
    *most, last = list(names) or [""]
    return f"{', '.join(most)} and {last}" if most else last


# ---- the view: what the template needs, part by part ----


def view(result: Json) -> dict[str, Any]:
    """Everything that the template shows, as texts, tables and pictures."""
    final, records = result.get("final") or {}, list(result.get("checkpoints") or ())
    metrics, source = (
        final.get("metrics"),
        f"people set aside for the test, after round {_given(final.get('round'))}",
    )
    if not metrics and records and records[-1].get("metrics"):
        metrics = records[-1]["metrics"]
        source = f"people set aside for tuning, after round {_given(records[-1].get('round'))}: there is no final test"
    return {
        "title": str(result.get("experiment") or "a run"),
        "facts": _facts(result),
        "registered": registered(result),
        "gates": gates(result),
        "agencies": _agencies(result),
        "source": source if metrics else None,
        "works": _works(metrics, records) if metrics else None,
        "groups": _groups(metrics) if metrics else None,
        "cost": _cost(result),
        "comparison": comparison(result.get("reference")),
        "events": _events(result),
        "identity": _identity(result),
    }


def _facts(result: Json) -> dict[str, Any]:
    contract, privacy = result.get("contract") or {}, result.get("privacy") or {}
    names = ("run_id", "status", "created", "purpose", "engine", "fedrisk_version")
    facts: dict[str, Any] = {name: _given(result.get(name)) for name in names}
    facts |= {name: _given(contract.get(name)) for name in ("label", "horizon", "description")}
    with contextlib.suppress(ValueError):
        made = datetime.fromisoformat(facts["created"]).astimezone(UTC)
        facts["created"] = f"{made.day} {made:%B %Y, %H:%M} UTC"
    return facts | {
        "simulation": result.get("simulation") is not False,
        "private": privacy.get("mechanism") in ("local", "shared"),
        "finished": result.get("status") == "finished",
        "rows": str(privacy.get("unit", "")).startswith("row"),
    }


def _agencies(result: Json) -> dict[str, Any]:
    rows = []
    for name, facts in (result.get("agencies") or {}).items():
        facts = facts or {}
        reason = facts.get("reason")
        holds = [str(block) for block in facts.get("holds") or ()]
        rows.append(
            {
                "name": name,
                "kind": _given(facts.get("kind")),
                "status": STATUS.get(str(facts.get("status")), _given(facts.get("status"))),
                "reason": REASONS.get(str(reason).upper(), str(reason)) if reason else "",
                "in": facts.get("status") == "trained",
                "size": f"{facts['public_size']:,}" if _real(facts.get("public_size")) else "not given",
                "weight": f"{facts['weight']:g}" if _real(facts.get("weight")) else "not given",
                "holds": _join(["what all hold", *holds]),
                "label": "yes" if facts.get("holds_label") else "no",
                "rounds": _given(facts.get("rounds")),
            }
        )
    return {"rows": rows, "count": len(rows), "in": sum(row["in"] for row in rows)}


def _works(metrics: Json, records: Sequence[Json]) -> dict[str, Any]:
    overall = metrics.get("overall") or {}
    people, points = of_thousand(overall), _reliability(metrics)
    auc, ratio, base = (shown(overall.get(name)) for name in ("auc", "observed_expected", "base_rate"))
    return {
        "pairs": None if auc is None else _hundred(auc),
        "coin": auc is not None and auc.low is not None and auc.low <= 0.5,
        "margins": [(words, cell(overall.get(name), "percent")) for name, words in MARGINS],
        "expected": None if ratio is None else _hundred(ratio),
        "brier": cell(overall.get("brier"), "decimal"),
        "constant": None if base is None else f"{base.value * (1 - base.value):.3f}",
        "cutoff": f"{metrics['cutoff']:.2f}" if _real(metrics.get("cutoff")) else "not given",
        "people": people,
        "bar": _bar(people) if people else None,
        "table": [
            (*MEASURES[name][:2], cell(overall[name], MEASURES[name][2]))
            for name in MEASURES
            if name in overall
        ],
        "bands": [
            (f"{low:.2f} to {high:.2f}", f"{centre:.2f}", cell(observed, "percent"))
            for low, high, centre, observed in _bands(metrics)
        ],
        "calibration": charts.calibration("calibration", "What the model said, and what happened", points)
        if points
        else None,
        "time": _over_time(records),
    }


def _hundred(mark: Mark) -> Cell:
    ends = (
        f"{100 * mark.low:.0f} to {100 * mark.high:.0f}"
        if mark.low is not None and mark.high is not None
        else ""
    )
    return Cell(f"{100 * mark.value:.0f}", ends)


def _bar(people: Mapping[str, int]) -> str:
    parts = [
        ("found: flagged, and had the outcome", people["found"], "part-found"),
        ("missed: not flagged, but had the outcome", people["missed"], "part-missed"),
        ("wrongly flagged: did not have the outcome", people["wrong"], "part-wrong"),
        ("rightly left: not flagged, no outcome", people["left"], "part-left"),
    ]
    return charts.frequency_bar("thousand", "1,000 people, by what the model and life did", parts)


def _bands(metrics: Json) -> list[tuple[float, float, float, Json | None]]:
    rows = metrics.get("reliability") or ()
    return [
        (row["low"], row["high"], row["mean_score"], row.get("observed"))
        for row in rows
        if _real(row.get("mean_score"))
    ]


def _reliability(metrics: Json) -> list[Point]:
    return [Point(centre, shown(observed)) for _, _, centre, observed in _bands(metrics)]


def _over_time(records: Sequence[Json]) -> dict[str, Any] | None:
    measured = [record for record in records if record.get("metrics")]
    if not measured:
        return None
    auc = [shown((record["metrics"].get("overall") or {}).get("auc")) for record in measured]
    gap = [shown(record["metrics"].get("worst_gap")) for record in measured]
    every = math.ceil(len(measured) / 8)
    labels = [
        f"round {record['round']}\nε {epsilon(record.get('epsilon_busiest'))}" if at % every == 0 else ""
        for at, record in enumerate(measured)
    ]
    series = [
        (
            name,
            [Point(float(r["round"]), m, words) for r, m, words in zip(measured, marks, labels, strict=True)],
            ends,
            percent,
        )
        for name, marks, ends, percent in (
            ("Ranking (AUC): higher is better", auc, charts.spread(auc, (0, 1)), False),
            (
                "Worst gap between groups: lower is better",
                gap,
                charts.spread([*gap, Mark(0.0)], (0, 1)),
                True,
            ),
        )
    ]
    rows = [
        (
            record["round"],
            epsilon(record.get("epsilon_busiest")),
            cell((record["metrics"].get("overall") or {}).get("auc"), "decimal"),
            cell((record["metrics"].get("overall") or {}).get("brier"), "decimal"),
            cell(record["metrics"].get("worst_gap"), "points"),
        )
        for record in measured
    ]
    return {
        "chart": charts.over_time("time", "Ranking and worst gap over the training", series),
        "rows": rows,
    }


def _groups(metrics: Json) -> dict[str, Any]:
    overall = metrics.get("overall") or {}
    groups = {name: _tables(levels) for name, levels in (metrics.get("groups") or {}).items()}
    attributes = [
        {
            "name": name,
            "table": _table(levels, BY_GROUP),
            "chart": _dots(f"group-{at}", f"By {name}", levels, overall, BY_GROUP),
            "gaps": _gaps((metrics.get("gaps") or {}).get(name) or {}, levels),
            "hidden": [
                level for level, table in levels.items() if all(shown(table.get(m)) is None for m in BY_GROUP)
            ],
        }
        for at, (name, levels) in enumerate(groups.items())
    ]
    agencies = _tables(metrics.get("agencies"))
    names = ("auc", *BY_GROUP[:3])
    return {
        "attributes": attributes,
        "worst": _worst(metrics.get("worst_gap") or {}),
        "agencies": _table(agencies, (*names, "observed_expected")),
        "agencies_chart": _dots("agencies", "By agency", agencies, overall, names) if agencies else None,
    }


def _tables(tables: Mapping[str, Json | None] | None) -> dict[str, Json]:
    return {name: table or {} for name, table in (tables or {}).items()}


def _worst(gap: Json) -> dict[str, Any] | None:
    mark = shown(gap)
    if mark is None:
        return None
    return {
        "attribute": gap.get("attribute") or "the groups",
        "cell": cell(gap, "points"),
        "noise": _noise(mark),
    }


def _noise(mark: Mark) -> bool:
    """Whether the interval of a difference includes 0."""
    return mark.low is not None and mark.low <= 0


def _table(levels: Mapping[str, Json], names: Sequence[str]) -> dict[str, Any]:
    rows = [(level, [cell(table.get(n), MEASURES[n][2]) for n in names]) for level, table in levels.items()]
    return {"head": [MEASURES[name][0] for name in names], "rows": rows}


def _dots(key: str, title: str, levels: Mapping[str, Json], overall: Json, names: Sequence[str]) -> str:
    panels = []
    for name in names:
        marks = [shown(table.get(name)) for table in levels.values()]
        whole, percent = shown(overall.get(name)), MEASURES[name][2] == "percent"
        reference = None if whole is None else whole.value
        panels.append(Panel(MEASURES[name][0], marks, percent=percent, reference=reference))
    return charts.dots(key, title, list(levels), charts.comparable(panels))


def _gaps(gaps: Mapping[str, Json], levels: Mapping[str, Json]) -> list[dict[str, Any]]:
    rows = []
    for name, (words, measure, technical) in GAPS.items():
        mark = shown(gaps.get(name))
        between = ""
        if mark is not None and measure is not None:
            seen = {
                level: m.value
                for level, table in levels.items()
                if (m := shown(table.get(measure))) is not None
            }
            if len(seen) > 1:
                between = f"{max(seen, key=lambda k: seen[k])} most, {min(seen, key=lambda k: seen[k])} least"
        verdict = "" if mark is None else "cannot be told from noise" if _noise(mark) else "more than noise"
        gap = cell(gaps.get(name), "points")
        rows.append(
            {"name": words, "technical": technical, "cell": gap, "between": between, "verdict": verdict}
        )
    return rows


def _colluders(shared: Json) -> str:
    count = int(shared.get("colluders") or 0)
    told = f"{count} {'agency' if count == 1 else 'agencies'} that {'tells' if count == 1 else 'tell'} it everything"
    return f"the coordinator, together with {told}" if count else "the coordinator"


def _who(shared: Json | None) -> str:
    return "someone who sees everything that an agency sent" if shared is None else _colluders(shared)


def _whom(shared: Json | None) -> str:
    if shared is None:
        return "everyone who sees what leaves an agency, the coordinator included"
    return f"{_colluders(shared)}; what it is against others is in the table below"


def _viewers(privacy: Json, shared: Json) -> list[tuple[str, str, str]]:
    """Against whom, ε, and what an even bet becomes."""
    words = {
        "public": "whoever sees the sums and results",
        "coordinator": _colluders(shared),
        "everybody": "all other agencies and the coordinator together",
    }
    spent = privacy.get("epsilon_to") or {}
    return [(words[to], epsilon(spent[to]), certainty(spent[to])) for to in words if _real(spent.get(to))]


def _cost(result: Json) -> dict[str, Any]:
    privacy = result.get("privacy") or {}
    rows = []
    for name, facts in (result.get("agencies") or {}).items():
        spent = (facts or {}).get("epsilon") or {}
        each = [epsilon(spent.get(kind)) for kind in ("train", "evaluate", "total")]
        rows.append((name, *each, certainty(spent.get("total"))))
    several = privacy.get("epsilon_at_several_agencies") or {}
    busiest = privacy.get("epsilon_busiest")
    shared = privacy.get("shared")
    return {
        "shared": shared,
        "who": _who(shared),
        "viewers": _viewers(privacy, shared) if shared else [],
        "private": privacy.get("mechanism") in ("local", "shared"),
        "rows": rows,
        "several": [
            (count, epsilon(value), certainty(value)) for count, value in several.items() if _real(value)
        ],
        "busiest": epsilon(busiest),
        "busiest_certainty": certainty(busiest),
        "delta": f"{privacy['delta']:.12f}".rstrip("0") if _real(privacy.get("delta")) else "not given",
        "one_in": f"{1 / privacy['delta']:,.0f}"
        if _real(privacy.get("delta")) and privacy["delta"] > 0
        else None,
        "unit": str(privacy.get("unit") or "not given"),
        "adjacency": str(privacy.get("adjacency") or "not given"),
        "accountant": str(privacy.get("accountant") or "not given"),
        "whom": _whom(shared),
        "alone": privacy.get("ledger") != "lifetime",
        "settings": [
            (words, f"{privacy[name]:g}")
            for name, words in (
                ("noise_multiplier", "training noise, in clipping norms"),
                ("max_grad_norm", "clipping norm of one person's gradient"),
                ("sample_rate", "chance that a person is in a step"),
                ("steps_per_round", "steps in a round"),
                ("tune_sigma", "noise on each count of a checkpoint, in people"),
                ("test_sigma", "noise on each count of the test, in people"),
            )
            if _real(privacy.get(name))
        ],
    }


def comparison(reference: Json | None) -> dict[str, Any] | None:
    """Rows of means with their spread over seeds, and the pictures; None where there is nothing to compare."""
    rows = list((reference or {}).get("rows") or ())
    if reference is None or not rows:
        return None
    seeds = list(reference.get("seeds") or ())
    names = [_row_name(row) for row in rows]
    columns = (("auc", "Ranking (AUC)"), ("brier", "Brier"), ("worst_gap", "Worst gap"))
    panels = []
    for key, words in columns:
        marks = [_spread_mark(row.get(key)) for row in rows]
        within = [*marks, Mark(0.0)] if key == "worst_gap" else marks
        panels.append(Panel(words, marks, charts.spread(within, (0, 1), 0.04), percent=key == "worst_gap"))
    return {
        "note": str(reference.get("note") or ""),
        "seeds": len(seeds),
        "rows": [
            (
                row.get("name"),
                KINDS.get(str(row.get("kind")), str(row.get("kind") or "")),
                _own_epsilon(row),
                *(
                    _mean_sd(row.get(key), "points" if key == "worst_gap" else "decimal")
                    for key, _ in columns
                ),
            )
            for row in rows
        ],
        "chart": charts.dots("comparison", "Each way of training, by mean and spread", names, panels),
        "curve": _curve(rows),
    }


def _row_name(row: Json) -> str:
    own = _own_epsilon(row)
    return f"{row.get('name')}, ε {own}" if own else str(row.get("name"))


def _own_epsilon(row: Json) -> str:
    return f"{row['epsilon']:g}" if _real(row.get("epsilon")) else ""


def _spread_mark(value: Json | None) -> Mark | None:
    if value is None or not _real(value.get("mean")):
        return None
    mean, sd = float(value["mean"]), value.get("sd")
    return Mark(mean) if sd is None or not _real(sd) else Mark(mean, mean - sd, mean + sd)


def _mean_sd(value: Json | None, unit: str) -> str:
    mark = _spread_mark(value)
    if value is None or mark is None:
        return GONE
    sd = f" ± {_say(float(value['sd']), unit, bare=True)}" if _real(value.get("sd")) else ""
    return f"{_say(mark.value, unit, bare=True)}{sd}" + (" points" if unit == "points" else "")


def _curve(rows: Sequence[Json]) -> str | None:
    """AUC against ε, where there are at least two private rows of the same name's kind."""
    private = [
        row
        for row in rows
        if _real(row.get("epsilon")) and row["epsilon"] > 0 and _spread_mark(row.get("auc"))
    ]
    if len({row["epsilon"] for row in private}) < 2:
        return None
    points = [
        Point(row["epsilon"], _spread_mark(row.get("auc")), f"{row['epsilon']:g}")
        for row in sorted(private, key=lambda row: float(row["epsilon"]))
    ]
    levels = [
        (str(row.get("name")), m.value)
        for row in rows
        if row not in private and (m := _spread_mark(row.get("auc")))
    ]
    ends = charts.spread([*(p.mark for p in points), *(Mark(level) for _, level in levels)], (0, 1), 0.04)
    return charts.cost_curve("curve", "Ranking (AUC) against privacy cost", points, levels, ends)


def _events(result: Json) -> dict[str, Any]:
    rounds = list(result.get("rounds") or ())
    seconds = [record["seconds"] for record in rounds if _real(record.get("seconds"))]
    happened: dict[tuple[str, str], list[int]] = {}
    for record in rounds:
        number = record.get("round", 0)
        for name in record.get("joined") or ():
            happened.setdefault((name, "joined the run, after others had begun"), []).append(number)
        for name in record.get("late") or ():
            happened.setdefault((name, "was late; the round went on without it"), []).append(number)
        for name, reason in (record.get("refused") or {}).items():
            words = REASONS.get(str(reason).upper(), str(reason))
            happened.setdefault((name, f"refused: {words}"), []).append(number)
        for name, sentence in (record.get("rejected") or {}).items():
            happened.setdefault((name, f"its reply was not used: {sentence}"), []).append(number)
        for name in record.get("bounded") or ():
            words = "its change was longer than its norm bound, and was scaled down to it"
            happened.setdefault((name, words), []).append(number)
    return {
        "done": len(rounds),
        "planned": result.get("rounds_planned") or "not given",
        "total": _duration(sum(seconds)) if seconds else "",
        "median": _duration(median(seconds)) if seconds else "",
        "incidents": [(name, words, _numbers(at)) for (name, words), at in sorted(happened.items())],
        "departures": [
            _departure(entry, str(result.get("run_id"))) for entry in result.get("departures") or ()
        ],
    }


def _departure(entry: Json, run_id: str) -> str:
    """Since when an agency is gone, and what of it is in this model."""
    name, day, round_ = str(entry["agency"]), str(entry["at"])[:10], int(entry["round"])
    here = entry["run_id"] == run_id
    if here and round_ > 1:
        what = f"this model was trained with it before round {round_}, and without it from then on"
    else:
        what = "this model was trained without it"
    if entry["back"] is not None:
        what = f"it came back on {str(entry['back'])[:10]}"
    return f"{name} left the federation on {day}; {what}. What it had released until then stays released."


def _numbers(rounds: Sequence[int]) -> str:
    listed = ", ".join(str(number) for number in rounds[:10])
    return f"{listed} and {len(rounds) - 10} more" if len(rounds) > 10 else listed


def _identity(result: Json) -> list[tuple[str, str]]:
    contract, model, strategy = (result.get(name) or {} for name in ("contract", "model", "strategy"))
    layers = _join(str(size) for size in model.get("hidden") or ()) or "none"
    server = [f"{name} {value}" for name, value in strategy.items() if name != "name" and value is not None]
    return [
        ("Run", _given(result.get("run_id"))),
        ("Software", f"fedrisk {_given(result.get('fedrisk_version'))}"),
        ("Engine and seed", f"{_given(result.get('engine'))}, {_given(result.get('seed'))}"),
        ("Model", f"{_given(model.get('name'))}, hidden layers: {layers}"),
        ("Features; numbers learned", f"{_given(model.get('features'))}; {_given(model.get('parameters'))}"),
        ("Strategy", ", ".join([_given(strategy.get("name")), *server])),
        ("Against agencies that send wrong changes", _robustness(result.get("robustness") or {})),
        ("Data contract", f"{_given(contract.get('name'))}, version {_given(contract.get('version'))}"),
        ("SHA-256 of the contract", _given(contract.get("sha256"))),
        ("SHA-256 of the registration", (result.get("registration") or {}).get("sha256") or "not registered"),
        ("SHA-256 of the configuration", _given(result.get("config_sha256"))),
        ("SHA-256 of the plan the agencies saw", _given(result.get("plan_sha256"))),
        ("SHA-256 of the code", _given(result.get("code_sha256"))),
    ]


def _robustness(facts: Json) -> str:
    """What the run would have survived."""
    if facts.get("masked"):
        return "not defended: behind masks only the sum of all changes is seen"
    bound = facts.get("norm_bound")
    limits = {"plan": "each is cut to the longest that the plan makes possible", "none": "no norm bound"}
    words = [limits.get(str(bound), f"each is cut to a length of {bound}")]
    if facts.get("malicious"):
        words.insert(0, f"the strategy holds while at most {facts['malicious']} agencies send any")
    else:
        words.insert(0, "the strategy averages, so one agency can pull the model as far as its bound lets it")
    if facts.get("thin_blocks"):
        left = facts.get("thin_blocks_are") == "leave"
        what = "nothing was learned from" if left else "it does not hold for"
        words.append(
            f"{what} the columns of {_join(facts['thin_blocks'])}, which too few agencies hold for that"
        )
    return "; ".join(words) if facts else _given(None)


def _given(value: Any) -> str:
    return "not given" if value is None or value == "" else str(value)
