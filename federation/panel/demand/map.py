"""`map.html`: what agencies learn on their first day, for the manager of a service. It reads map.json and nothing else.

An estimate without `publishable: true` never gets past `said.marks`.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from federation.panel.demand.about import agency, at, cost, unit
from federation.panel.demand.heat import ABSENT, MOST_COLUMNS, bars, crossed, heat
from federation.panel.demand.pictures import trend
from federation.panel.demand.said import (
    MANY,
    TOGETHER,
    asked,
    cannot,
    condition,
    ends,
    hundred,
    is_share,
    marks,
    parts,
    question,
    round_top,
    told,
    words,
)
from federation.panel.demand.standing_out import standing_out
from federation.panel.sections.cost import PROFILES
from federation.panel.sections.numbers import epsilon, join, real, shown
from federation.panel.svg import Mark

Json = Mapping[str, Any]
MOST_CELLS = 600  # of one question by agency: more are in its CSV alone, so that the page stays small
MOST_NAMES = 4  # of agencies in a sentence
FEW = 3  # agencies, up to which each has its own sentence in sight

SECTIONS = (
    ("headlines", "In short"),
    ("cost", "What it cost"),
    ("where", "Where it is, and who knows about it"),
    ("months", "Month by month"),
    ("spread", "How it is spread"),
    ("told", "How exact it was planned to be, and what is withheld"),
    ("not-asked", "What was not asked"),
    ("agencies", "Who is in it, and who is not"),
    ("reading", "How to read this page"),
    ("small-print", "Privacy: the small print"),
)


def view(found: Json) -> dict[str, Any]:
    """Everything that the page shows, as texts, tables and pictures."""
    queries, attributes = asked(found), found["attributes"]
    minimum, tabled = found["disclosure"]["minimum"], _tabled(queries, attributes)
    headlines = [each for query in queries for each in _headline(query, found)]
    return {
        "sections": SECTIONS,
        "facts": facts(found),
        "cost": cost(found) | _training(found["privacy"]),
        "out": standing_out(found),
        "headlines": headlines,
        "untold": _untold([each for each in headlines if not each["said"]]),
        "needs": _needs(found),
        "between": _between_agencies(found),
        "maps": [each for query in queries for each in _maps(query, attributes, minimum)],
        "trends": [
            each for at, query in enumerate(queries) if (each := _trends(at, query, attributes, minimum))
        ],
        "bars": [each for query in queries if (each := _bars(query, attributes, minimum, tabled))],
        "questions": [_asked(query, attributes, minimum) for query in queries],
        "not_asked": [(words(str(each["query"])), str(each["why"])) for each in found["not_asked"]],
        "agencies": [agency(name, each) for name, each in found["agencies"].items()],
        "print": _small_print(found),
    }


# --- what it is, and what it cost -------------------------------------------------------------------


def facts(found: Json) -> dict[str, Any]:
    """Whose people, when, and how much of what was asked is told."""
    counted = [name for name, each in found["agencies"].items() if each["status"] == "counted"]
    cells = [cell for query in asked(found) for _, part in parts(query) for cell in part]
    people = told(shown(found["people"]), share=False)
    return {
        **{key: found[key] for key in ("run_id", "experiment", "purpose", "simulation", "fedrisk_version")},
        "created": at(found["created"]),
        "finished": found["status"] == "finished",
        "private": found["privacy"]["mechanism"] != "none",
        "shared": found["privacy"]["mechanism"] == "shared",
        "counted": join(counted),
        "how_many": len(counted),
        "asked": len(found["agencies"]),
        "level": f"{100 * found['level']:.10g}",
        "months": _months(found["attributes"]),
        "people": people,
        "many": MANY[found["unit"]],
        "one": unit(found["unit"]),
        "others": any("other" in each["levels"] for each in found["attributes"].values()),
        "cells": f"{len(cells):,}",
        "told": f"{sum(shown(cell) is not None for cell in cells):,}",
    }


def _months(attributes: Json) -> str:
    """The months that its series are of, or ""."""
    found = [each["levels"] for each in attributes.values() if each["months"] and each["levels"]]
    if not found:
        return ""
    return f"{min(levels[0] for levels in found)} to {max(levels[-1] for levels in found)}"


def _training(privacy: Json) -> dict[str, Any]:
    together = privacy["epsilon_with_training"]
    return {
        "lifetime": privacy["ledger"] == "lifetime",
        "with_training": epsilon(together) if real(together) else None,
    }


# --- sentences --------------------------------------------------------------------------------------


def _headline(query: Json, found: Json) -> Iterator[dict[str, Any]]:
    """The sentences of a rate or a count of everybody, and of a flag: together, each agency, and what cannot be told."""
    attributes = found["attributes"]
    where: Json = query["where"]
    key: tuple[str, ...] = ()
    if query["by"]:
        levels = attributes[query["by"][0]]["levels"]
        if len(query["by"]) > 1 or sorted(levels) != ["no", "yes"]:
            return
        where, key = {**where, query["by"][0]: ["yes"]}, ("yes",)
    said, hidden = [], []
    for name, cells in parts(query):
        mark = marks(cells).get(key)
        if mark is None:
            hidden.append(name)
        else:
            said.append((name, _sentence(query, where, mark, _known_to(name, query), attributes)))
    agencies = [text for name, text in said if name != TOGETHER]
    first = [text for name, text in said if name == TOGETHER] or (agencies if len(agencies) == 1 else [])
    yield {
        "title": words(query["name"]),
        "said": bool(said),
        "first": first,
        "agencies": agencies if agencies != first else [],
        "open": len(agencies) <= FEW,
        "hidden": join("all of them together" if name == TOGETHER else name for name in hidden),
        "cannot": cannot(query, found["disclosure"]["minimum"], hidden),
    }


def _untold(headlines: Sequence[Json]) -> list[tuple[str, str]]:
    """Questions of which nothing is said, by the reason why."""
    reasons: dict[str, list[str]] = {}
    for each in headlines:
        reasons.setdefault(each["cannot"], []).append(each["title"])
    return [(join(titles), reason) for reason, titles in reasons.items()]


def _known_to(name: str, query: Json) -> str:
    names = query["together"]["agencies"] if name == TOGETHER else [name]
    if len(names) > MOST_NAMES:
        return f"the {len(names)} agencies together"
    return f"{join(names)} together" if name == TOGETHER else name


def _sentence(query: Json, where: Json, mark: Mark, known_to: str, attributes: Json) -> dict[str, str]:
    """Before the number, the number, its interval, and what comes after it."""
    many, who = MANY[query["counts"]], condition(where, attributes)
    if is_share(query):
        among = condition(query["among"] or {}, attributes)
        before = f"Of every 100 {many} known to {known_to}{f' with {among}' if among else ''}, about"
        number, after = hundred(mark), f"have: {who or 'any record'}."
    else:
        text = told(mark, share=False)
        assert text is not None  # noqa: S101 - of a mark comes a text
        number, before = text, "About"
        after = f"{many} known to {known_to} have: {who}." if who else f"{many} are known to {known_to}."
    return {
        "before": before,
        "value": number.value,
        "between": number.between,
        "after": after,
    }


# --- tables and pictures ----------------------------------------------------------------------------


def _needs(found: Json) -> list[dict[str, Any]]:
    """Need by area or group: all shares by the same attribute, of all agencies that hold them."""
    attributes, minimum = found["attributes"], found["disclosure"]["minimum"]
    made = []
    for by, queries in _by_one(asked(found), attributes).items():
        if len(queries) < 2:
            continue
        columns, cells = [], []
        for query in queries:
            name, part = next(parts(query), (TOGETHER, ()))
            alone = name != TOGETHER and len(found["agencies"]) > 1
            columns.append(_need(query, attributes) + (f", at {name}" if alone else ""))
            cells.append(marks(part))
        rows = [(level, [known.get((level,)) for known in cells]) for level in attributes[by]["levels"]]
        table = heat(
            f"Needs by {words(by)}, all agencies together", (words(by), "need"), columns, rows, share=True
        )
        made.append({"heat": table, "cannot": cannot(queries[0], minimum)})
    return made


def _by_one(queries: Sequence[Json], attributes: Json) -> dict[str, list[Json]]:
    """Shares by one attribute that is no month, by that attribute."""
    found: dict[str, list[Json]] = {}
    for query in queries:
        if is_share(query) and len(query["by"]) == 1 and not attributes[query["by"][0]]["months"]:
            found.setdefault(query["by"][0], []).append(query)
    return found


def _tabled(queries: Sequence[Json], attributes: Json) -> list[str]:
    """Names of shares whose numbers stand in a table of needs or of agencies."""
    needs = [each for each in _by_one(queries, attributes).values() if len(each) > 1]
    several = [query for query in queries if is_share(query) and len(query["agencies"]) > 1]
    return [query["name"] for query in itertools.chain(several, *needs)]


def _need(query: Json, attributes: Json) -> str:
    """What a share is of, shortly."""
    among = condition(query["among"] or {}, attributes)
    return (condition(query["where"], attributes) or "any record") + (f" (of: {among})" if among else "")


def _between_agencies(found: Json) -> list[dict[str, Any]]:
    """Agency by need: all shares of everybody in one table, all counts in one, then each question with one attribute."""
    attributes, minimum = found["attributes"], found["disclosure"]["minimum"]
    several = [query for query in asked(found) if len(query["agencies"]) > 1]
    made = []
    for share, caption in ((True, "Shares by agency"), (False, "Numbers by agency")):
        plain = [query for query in several if not query["by"] and is_share(query) == share]
        if plain:
            made.append({"cannot": cannot(plain[0], minimum)} | _plain(plain, caption, share))
    for query in several:
        if len(query["by"]) == 1 and not attributes[query["by"][0]]["months"]:
            levels, by = attributes[query["by"][0]]["levels"], words(query["by"][0])
            cells = {name: marks(part) for name, part in parts(query)}
            rows = ((name, [known.get((level,)) for level in levels]) for name, known in cells.items())
            sums = () if is_share(query) else (TOGETHER,)
            caption = f"{words(query['name'])}, agency by agency"
            table = heat(caption, ("agency", by), levels, rows, is_share(query), sums)
            made.append({"heat": table, "cannot": cannot(query, minimum, list(cells))})
    return made


def _plain(queries: Sequence[Json], caption: str, share: bool) -> dict[str, Any]:
    """A row for each agency and a column for each question; of one question bars."""
    names = list(dict.fromkeys(name for query in queries for name, _ in parts(query)))
    columns = [dict(parts(query)) for query in queries]
    if len(queries) == 1:
        only = [(name, marks(columns[0][name]).get(())) for name in names]
        return {"bars": bars(f"{words(queries[0]['name'])}, agency by agency", "agency", only, share)}
    rows = (
        (name, [marks(column[name]).get(()) if name in column else ABSENT for column in columns])
        for name in names
    )
    titles = [words(query["name"]) for query in queries]
    return {"heat": heat(caption, ("agency", "question"), titles, rows, share, () if share else (TOGETHER,))}


def _maps(query: Json, attributes: Json, minimum: float) -> Iterator[dict[str, Any]]:
    """A cross-tab: the sum, and each agency's own where that is not too much for a page."""
    by = query["by"]
    if len(by) < 2 or any(attributes[name]["months"] for name in by):
        return
    levels = [attributes[name]["levels"] for name in by]
    names, own = [words(name) for name in by], list(parts(query))
    few = sum(len(cells) for _, cells in own) <= MOST_CELLS
    yield {
        "title": words(query["name"]),
        "question": question(query, attributes),
        "cannot": cannot(query, minimum, [name for name, _ in own]),
        "left_out": not few and len(own) > 1,
        "parts": [
            crossed(words(query["name"]) + _at(name), names, levels, marks(cells), is_share(query))
            for name, cells in (own if few else own[:1])
        ],
    }


def _at(name: str) -> str:
    return f", {TOGETHER}" if name == TOGETHER else f", at {name}"


def _trends(number: int, query: Json, attributes: Json, minimum: float) -> dict[str, Any] | None:
    """A small picture for each agency, or for each level beside the months, of all agencies; the numbers in a table."""
    by = query["by"]
    month = next((name for name in by if attributes[name]["months"]), None)
    if month is None:
        return None
    months, others = attributes[month]["levels"], [name for name in by if name != month]
    axis = by.index(month)
    own, lines = list(parts(query)), []
    for name, cells in own[:1] if others else own:
        known = marks(cells)
        for levels in itertools.product(*(attributes[other]["levels"] for other in others)):
            keys = [(*levels[:axis], each, *levels[axis:]) for each in months]
            lines.append((", ".join(levels) or name, [known.get(key) for key in keys]))
    whole = len(lines) * (len(own) if others else 1)
    lines = lines[: max(1, MOST_CELLS // max(len(months), 1))]
    left_out, share = whole - len(lines), is_share(query)
    drawn = [line for line in lines if 3 * sum(value is not None for value in line[1]) >= 2 * len(months)]
    known_ones = [line for line in lines if any(value is not None for value in line[1])]
    sums = [values for name, values in drawn if name == TOGETHER and not others]
    tops = [_top(each, share) for each in (sums, [values for _, values in drawn if values not in sums])]
    return {
        "title": words(query["name"]),
        "question": question(query, attributes),
        "of": _at(own[0][0]) if others and own else "",
        "cannot": cannot(query, minimum, [name for name, _ in (own[:1] if others else own)]),
        "any": bool(known_ones),
        "kept": any(value is None for _, values in drawn for value in values),
        "pictures": [
            trend(f"trend-{number}-{at}", name, months, values, tops[values not in sums], share)
            for at, (name, values) in enumerate(drawn)
        ],
        "alike": len(drawn) - len(sums),
        "few": join(line[0] for line in known_ones if line not in drawn),
        "untold": join(line[0] for line in lines if line not in known_ones),
        "left_out": left_out,
        "blocks": [
            (
                [name for name, _ in part],
                [(each, [told(values[at], share) for _, values in part]) for at, each in enumerate(months)],
            )
            for part in (known_ones[at : at + MOST_COLUMNS] for at in range(0, len(known_ones), MOST_COLUMNS))
        ],
    }


def _top(lines: Sequence[Sequence[Mark | None]], share: bool) -> float:
    """The end of the axis that they have in common."""
    top = round_top(
        max((ends(mark)[1] for values in lines for mark in values if mark is not None), default=0.0)
    )
    return min(top, 1.0) if share else top


def _bars(query: Json, attributes: Json, minimum: float, tabled: Sequence[str]) -> dict[str, Any] | None:
    """Of one attribute that is no month: the sum as bars, or the only agency's own. tabled: shares that stand elsewhere."""
    if len(query["by"]) != 1 or attributes[query["by"][0]]["months"] or query["name"] in tabled:
        return None
    name, cells = next(parts(query), ("", ()))
    known, levels = marks(cells), attributes[query["by"][0]]["levels"]
    made = bars(
        words(query["name"]) + (_at(name) if name else ""),
        words(query["by"][0]),
        ((level, known.get((level,))) for level in levels),
        is_share(query),
    )
    return {
        "title": words(query["name"]),
        "question": question(query, attributes),
        "cannot": cannot(query, minimum, [name]),
        "bars": made,
    }


# --- what is withheld, who is in it, the small print ------------------------------------------------


def _asked(query: Json, attributes: Json, minimum: float) -> dict[str, Any]:
    """A question: its planned error, how many of its numbers are told, and why the others are not."""
    own, one = dict(parts(query)), query.get("at_one")
    cells = [shown(cell) for part in own.values() for cell in part]
    known = sum(mark is not None for mark in cells)
    return {
        "title": words(query["name"]),
        "question": question(query, attributes),
        "sd": _error(query),
        "at_one": "" if one is None or TOGETHER not in own else _error(one),
        "told": f"{known:,} of {len(cells):,}",
        "why": cannot(query, minimum, list(own)) if known < len(cells) or not cells else "",
    }


def _error(planned: Json) -> str:
    return f"± {planned['planned_sd']:,.1f}" if real(planned["planned_sd"]) else "not known"


def _small_print(found: Json) -> dict[str, Any]:
    privacy, disclosure, workload = found["privacy"], found["disclosure"], found["workload"]
    delta = privacy["delta"]
    return {
        "mechanism": privacy["mechanism"],
        "unit": unit(privacy["unit"]),
        "adjacency": privacy["adjacency"],
        "accountant": privacy["accountant"],
        "delta": f"{delta:.12f}".rstrip("0") if delta else "0",
        "one_in": f"{1 / delta:,.0f}" if delta else "",
        "noise": f"{privacy['noise_multiplier']:.4g}" if real(privacy["noise_multiplier"]) else "none",
        "rows": privacy["rows"],
        "profile": PROFILES.get(disclosure["profile"], disclosure["profile"]),
        "minimum": f"{disclosure['minimum']:,}",
        "rounding": disclosure["rounding"],
        "workload": words(workload["name"]),
        "queries": f"{workload['queries']:,}",
        "tables": f"{workload['tables']:,}",
        "numbers": f"{workload['numbers']:,}",
        "ratio": f"{100 * workload['ratio']:.0f}%" if real(workload["ratio"]) else "",
        "bound": f"{100 * workload['ratio_bound']:.0f}%" if real(workload["ratio_bound"]) else "",
        "contract": found["contract"],
        "plan": found["plan_sha256"],
        "engine": found["engine"],
        "run_id": found["run_id"],
    }
