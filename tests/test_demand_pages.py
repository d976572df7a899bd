"""What a service manager reads of a map, a cohort and early signs: every number is the JSON's, and only those that may be shown.

FEDRISK_SCREENSHOTS=docs/images python -m pytest -m long tests/test_demand_pages.py   writes the pictures of the pages.
"""

import copy
import csv
import io
import itertools
import json
import math
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from fake_map import AREAS, ATTRIBUTES, QUERIES, fake_cohort, fake_map, fake_signs
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import sync_playwright
from rich.console import Console
from test_report import Outline, contrast
from test_site_browser import find_browser

from experiments.demand import show
from federation.panel.demand.heat import MOST_COLUMNS, crossed, heat
from federation.panel.demand.map import SECTIONS
from federation.panel.demand.pages import render_cohort, render_map, render_signs, write_map
from federation.panel.demand.pictures import bar, trend
from federation.panel.demand.said import (
    STEPS,
    TOGETHER,
    Told,
    cannot,
    ends,
    hundred,
    round_top,
    told,
)
from federation.panel.demand.standing_out import standing_out
from federation.panel.demand.tables import name_of, tables
from federation.panel.svg import Mark

FOUND = fake_map(sigma=60.0)
PAGE = render_map(FOUND)
ALONE = fake_map({"small trust": ("charity", 300)}, sigma=200.0, refused=False)
EMPTY = fake_map({}, (), {}, refused=False)
PAGES = {
    "map": PAGE,
    "rough": render_map(fake_map(sigma=300.0)),
    "masked": render_map(fake_map(shared=True)),
    "no privacy": render_map(fake_map(private=False)),
    "alone": render_map(ALONE),
    "empty": render_map(EMPTY),
    "cohort": render_cohort(fake_cohort()),
    "no cohort": render_cohort(fake_cohort(False, ["county police", "city housing"])),
    "signs": render_signs(fake_signs()),
    "no signs": render_signs(fake_signs(False)),
}
EVERY = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())
NUMBER = r"[+−]?\d[\d,]*(?:\.\d+)?%?"
TRIPLE = re.compile(rf"({NUMBER})\s+\(?({NUMBER}) to ({NUMBER})")
HUGE = 7_654_321.0  # no other number looks like it


# ---- the pages by themselves ----


@EVERY
def test_a_page_is_whole_and_needs_nothing_from_elsewhere(page: str) -> None:
    outline = Outline(page)
    tags = {tag for tag, _ in outline.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "form"}
    for _, attrs in outline.tags:
        assert not [name for name in attrs if name.startswith("on") or name in ("src", "srcset", "action")]
        assert (attrs.get("href") or "#").startswith("#")
    assert not re.search(r"https?:|url\(|@import|javascript:", page)
    ids = [attrs["id"] for _, attrs in outline.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    wanted = [(attrs["href"] or "")[1:] for attrs in outline.named("a")]
    for _, attrs in outline.tags:
        wanted += (attrs.get("aria-labelledby") or "").split()
    assert set(wanted) <= set(ids)
    assert not {"None", "nan", "inf", "Undefined"} & set(outline.text.split())


@EVERY
def test_a_page_can_be_heard(page: str) -> None:
    outline = Outline(page)
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    pictures = [attrs for attrs in outline.named("svg") if attrs.get("aria-hidden") != "true"]
    assert all(attrs["role"] == "img" and attrs["aria-labelledby"] for attrs in pictures)
    assert len(outline.named("title")) == 1 + len(pictures)
    assert len(outline.named("desc")) == len(pictures)
    assert outline.named("html")[0]["lang"] == "en"
    assert len(outline.named("caption")) == len(outline.named("table"))
    assert all(attrs.get("scope") in ("row", "col") for attrs in outline.named("th"))
    for after in page.split("</figure>")[1:]:
        assert "<table" in after.split("<h3")[0].split("<h2")[0]


def test_the_sections_of_a_map_are_there_in_order_and_each_says_something() -> None:
    for found in (FOUND, ALONE, EMPTY):
        page = render_map(found)
        starts = [page.index(f'<h2 id="{key}">') for key, _ in SECTIONS]
        assert starts == sorted(starts)
        for start, end in itertools.pairwise([*starts, len(page)]):
            inside = re.sub(r"<[^>]*>", " ", page[start:end].partition("</h2>")[2])
            assert len(inside.split()) >= 4


def test_the_structure_of_a_map() -> None:
    """A golden of what stands where, made of the page once and read through: not of pixels."""
    outline = Outline(PAGE)
    counts = {kind: sum(kind in (attrs.get("class") or "").split() for _, attrs in outline.tags) for kind in
              ("heat", "bars", "multiples", "sentence", "legend")}  # fmt: skip
    # heat: 3 cross-tabs, each together and at 3 agencies; shares, numbers and 2 histograms by agency
    # multiples: 2 series; sentences: 8 questions of everybody, together and at 3 agencies
    assert counts == {"heat": 3 * 4 + 4, "bars": 2, "multiples": 2, "sentence": 8 * 4, "legend": 16}
    trends = [attrs for attrs in outline.named("svg") if attrs.get("role") == "img"]
    assert len(trends) == 4 + len(AREAS) - 1, "of one area the noise swallows too many months"
    assert "since fewer than two thirds of the months can be told: north" in outline.text


def test_equal_maps_make_equal_pages() -> None:
    assert render_map(copy.deepcopy(FOUND)) == PAGE
    assert render_map(json.loads(json.dumps(FOUND))) == PAGE


def test_another_kind_or_schema_is_refused() -> None:
    for found in (FOUND | {"kind": "cohort"}, FOUND | {"schema": 2}):
        with pytest.raises(ValueError, match="a map of schema 1 is needed, got a"):
            render_map(found)


# ---- every number is the JSON's ----


def estimates(value: Any, share: bool = False) -> Iterator[tuple[dict[str, Any], bool]]:
    """(estimate, whether it is a share), everywhere in a JSON file."""
    if isinstance(value, dict):
        share = share or value.get("kind") == "rate"
        if "publishable" in value:
            yield value, share
        for key, each in value.items():
            yield from estimates(each, share or key == "share_of")
    elif isinstance(value, list):
        for each in value:
            yield from estimates(each, share)


def texts(estimate: dict[str, Any], share: bool) -> set[tuple[str, str, str]]:
    """The ways of writing an estimate: worked out anew, with ends rounded outwards."""
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    places = 1 if high - low < 0.04 else 0
    if low == high:  # no noise
        ways = [f"{value:,.0f}"] if not share else [f"{100 * value:.1f}", f"{100 * value:.1f}%"]
        return {(way, way, way) for way in ways}
    if not share:
        return {(f"{value:,.0f}", f"{math.floor(low + 1e-6):,}", f"{math.ceil(high - 1e-6):,}")}
    scale = 10**places
    ends = (
        math.floor(100 * low * scale + 1e-6) / scale,
        math.ceil(100 * high * scale - 1e-6) / scale,
    )
    each = [f"{number:.{places}f}" for number in (100 * value, *ends)]
    return {(each[0], each[1], each[2]), (f"{each[0]}%", each[1], f"{each[2]}%")}


@pytest.mark.parametrize(
    ("page", "found"),
    [
        (PAGE, FOUND),
        (PAGES["masked"], fake_map(shared=True)),
        (PAGES["no privacy"], fake_map(private=False)),
        (PAGES["cohort"], fake_cohort()),
    ],
    ids=["map", "masked", "no privacy", "cohort"],
)
def test_every_number_with_an_interval_is_of_the_json(page: str, found: dict[str, Any]) -> None:
    known = {way for each, share in estimates(found) if each["publishable"] for way in texts(each, share)}
    colours = re.compile(r'<ul class="legend".*?</ul>|<th scope="col">0 to [^<]*</th>', re.DOTALL)
    read = Outline(colours.sub("", page)).text
    seen = set(TRIPLE.findall(read)) - {("34", "31", "37")}  # how to read an interval
    seen |= {(value, value, value) for value in re.findall(rf"({NUMBER}) \(?no noise\b", read)}
    assert len(seen) > 25
    assert seen <= known


def test_every_cell_that_a_map_shows_stands_in_its_row_and_column() -> None:
    query = next(query for query in FOUND["queries"] if query["name"] == "drug need by age and area")
    start = PAGE.index("drug need by age and area, together</caption>")
    table = PAGE[start : PAGE.index("</table>", start)]
    head = re.findall(r'<th scope="col">([^<]*)</th>', table)
    assert head == ["area by age band", *ATTRIBUTES["age_band"]["levels"]], (
        "the longer of the two stands in rows"
    )
    rows = re.findall(r'<th scope="row">([^<]*)</th>(.*?)</tr>', table, re.DOTALL)
    assert [name for name, _ in rows] == list(AREAS)
    cells = {tuple(cell["levels"]): cell for cell in query["together"]["cells"]}
    for area, row in rows:
        shown = re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)
        for band, text in zip(head[1:], shown, strict=True):
            said = " ".join(re.sub("<[^>]*>", " ", text).split())
            cell = cells[band, area]
            assert (said == "not told") != cell["publishable"]
            if cell["publishable"]:
                assert TRIPLE.findall(said)[0] in texts(cell, share=True)


def test_epsilon_and_what_it_allows_are_said_for_each_agency_and_several() -> None:
    text = Outline(PAGE).text
    for name, facts in FOUND["agencies"].items():
        certain = math.ceil(1000 / (1 + math.exp(-facts["epsilon"]))) / 10
        assert re.search(rf"{name}[^.]* {facts['epsilon']:.2f} {certain:.1f} in 100", text)
    assert "one of county police, city housing and st anne health 0.50 62.3 in 100" in text
    for count, value in FOUND["privacy"]["epsilon_at_several_agencies"].items():
        assert count == "1" or f"{count} agencies, at worst {value:.2f}" in text
    assert "ε 0.50 is the price" in text
    assert "in each agency's own ledger" in text
    assert "together: ε = 3.12" in text
    assert "no limit on what may be learned" in Outline(PAGES["no privacy"]).text


def test_where_there_was_no_noise_no_interval_is_made_up() -> None:
    text = Outline(PAGES["no privacy"]).text
    assert "no noise) people are known to county police." in text
    own = {attrs.get("class") for attrs in Outline(PAGES["no privacy"]).named("line")}
    assert "over" not in own


def test_planned_errors_are_said() -> None:
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", PAGE[PAGE.index('id="told"') :], re.DOTALL)
    said = [Outline(row).text for row in rows[: len(QUERIES)]]
    for query, text in zip(FOUND["queries"], said, strict=True):
        assert text.startswith(query["name"].replace("_", " "))
        assert f"± {query['planned_sd']:,.1f}" in text
        assert f"± {query['at_one']['planned_sd']:,.1f} at one agency" in text
        cells = [cell for part in (query["together"]["cells"], *query["agencies"].values()) for cell in part]
        known = sum(cell["publishable"] for cell in cells)
        assert f"{known} of {len(cells)}" in text
        assert ("cannot be told at this budget" in text) == (known < len(cells))


# ---- and only what may be shown ----


@pytest.mark.parametrize("at", range(len(QUERIES)), ids=[str(query["name"]) for query in QUERIES])
@pytest.mark.parametrize("where", ["together", "county police"])
def test_a_number_whose_flag_is_taken_away_is_gone_from_page_and_csv(at: int, where: str) -> None:
    queries = (QUERIES[at],)
    found = fake_map(queries=queries)
    (query,) = found["queries"]
    cells = query["together"]["cells"] if where == "together" else query["agencies"][where]
    rate, two = query["kind"] == "rate", len(query["by"]) > 1
    own = cells[-1] if len(query["by"]) != 1 or query["by"][0] == "month" else cells[len(cells) - 1]
    number = 0.7654321 if rate else HUGE
    own |= {"value": number, "low": number, "high": number, "publishable": True}
    ways = ("76.5%", "76.5") if rate else (f"{HUGE:,.0f}", str(HUGE))
    page, files = render_map(found), tables(found)
    hidden_by_size = where != "together" and two and "month" in query["by"]
    assert any(way in page for way in ways) != hidden_by_size
    (name,) = [name for name in files if name.endswith(".csv")]
    assert str(number) in files[name]
    own["publishable"] = False
    page, files = render_map(found), tables(found)
    assert not [way for way in (*ways, str(number)[:6]) if way in page]
    assert str(number)[:6] not in "".join(files.values())
    assert "cannot be told at this budget" in page


def test_when_nothing_may_be_shown_no_number_is() -> None:
    for found, render in ((copy.deepcopy(FOUND), render_map), (fake_cohort(), render_cohort)):
        for each, _ in estimates(found):
            each["publishable"] = False
        text = Outline(render(found)).text
        assert set(TRIPLE.findall(text)) <= {("34", "31", "37")}
        assert "cannot be told at this budget" in text
    page = render_map(found := {**FOUND, "queries": []})
    assert "No question was asked" in page
    assert found["queries"] == []


def test_signs_that_cannot_be_told_have_no_number() -> None:
    found = fake_signs()
    untold = [sign for sign in found["signs"] if sign["verdict"] == "cannot be told"]
    for sign in untold:
        sign["partial_correlation"] = {"value": 0.7654321, "low": 0.7654, "high": 0.7655}
    page = render_signs(found)
    assert "0.77" not in page
    assert "arrests" in page
    assert "missed rents and crisis contacts" in page


def test_signs_say_what_leads_by_how_long_and_that_it_is_no_cause() -> None:
    text = Outline(PAGES["signs"]).text
    assert "missed rents crisis contacts 2 months +0.46 +0.27 to +0.65" in text
    assert "It does not mean that one makes the other." in text
    assert "ε = 0.50" in text
    assert "It cost nothing further" in text
    assert PAGES["signs"].count('role="img"') == 1
    assert PAGES["signs"].count('class="dot"') == 6, "all lags"
    assert "all of them hold together : of 100 such pages" in text
    assert "95 or more name no sign, of all 6 pairs and 6 lags" in text
    assert "evictions and falls at home (has 36 months and needs 48)" in text
    several = fake_signs() | {"privacy": {"epsilon": [0.5, None], "costs": "nothing further"}}
    assert "ε = 0.50 and no limit" in Outline(render_signs(several)).text
    assert "Nothing stands out" in Outline(PAGES["no signs"]).text


def test_lags_that_stand_beside_a_sign_are_drawn_and_why_it_cannot_be_told_is_said() -> None:
    found = fake_signs()
    beside = [
        {"lag": lag, "value": lag / 10, "low": lag / 10 - 0.05, "high": lag / 10 + 0.05}
        for lag in range(1, 7)
    ]
    sign = next(sign for sign in found["signs"] if sign["verdict"] == "leads")
    untold = next(sign for sign in found["signs"] if sign["verdict"] == "cannot be told")
    found["signs"] = [sign | {"lags": beside, "why": None}, untold | {"lags": [], "why": "only 9 months"}]
    text = Outline(render_signs(found)).text
    for lag in range(1, 7):
        assert f"{lag} +0.{lag}0 " in text
    assert "only 9 months" in text


def test_a_cohort_says_who_paid_what_and_what_nobody_learned() -> None:
    text = Outline(PAGES["cohort"]).text
    assert "About 3,885 people (3,375 to 4,395) are known to both county police and city housing." in text
    assert "2 agencies 2.00 88.1 in 100" in text
    assert "ε = 2.00 for a person known to two" in text
    assert "16,384 scrambled boxes" in text
    assert "Known to all of county police, city housing and st anne health" in text
    assert Outline(PAGES["cohort"]).named("svg"), "bars, not circles"
    none = Outline(PAGES["no cohort"]).text
    assert "ε = 1.70 at each to tell one of 620 people, or an overlap of about 1,240 people" in none


def test_one_small_agency_reads_that_nothing_can_be_told_and_what_it_would_take() -> None:
    text = Outline(PAGES["alone"]).text
    assert "Nothing can be told at this budget." in text
    assert "it would take about 600 people, or ε = 0.92" in text
    assert "known to small trust" in text
    assert "together" not in re.findall(r'<th scope="row">([^<]*)<', PAGES["alone"])


def test_a_query_that_an_agency_does_not_hold_is_not_asked_there_which_is_not_withheld() -> None:
    found = fake_map()
    del found["queries"][1]["agencies"]["city housing"]
    page = render_map(found)
    assert page.count("<small>not asked</small>") == 1
    found["queries"][2] |= {
        "together": None,
        "agencies": {},
        "planned_sd": None,
        "least": None,
        "at_one": None,
    }
    text = Outline(render_map(found)).text
    assert "it would take an agency that holds what is asked" in text


def test_records_are_called_records_where_the_unit_is_one() -> None:
    rows = fake_map()["privacy"] | {"unit": "row at one agency"}
    text = Outline(render_map(fake_map() | {"unit": "row"})).text
    assert "Of every 100 records known to county police" in text
    assert "How many people" not in text
    assert "one record at one agency" in render_map(fake_map() | {"unit": "row", "privacy": rows})
    console = Console(record=True, file=io.StringIO(), width=200)
    show(console, fake_map() | {"unit": "row"}, Path("out"))
    said = console.export_text()
    assert "records at 3 of 4 agencies" in said
    assert "people" not in said


# ---- what is clearly apart ----


def cut(ends: dict[str, float], places: int = 0) -> str:
    """An interval of a share as a sentence has it, worked out anew."""
    low = math.floor(ends["low"] * 100 * 10**places + 1e-6) / 10**places
    high = math.ceil(ends["high"] * 100 * 10**places - 1e-6) / 10**places
    return f"{low:.{places}f} to {high:.{places}f}"


def test_only_what_is_apart_is_said_with_the_intervals_that_hold_together() -> None:
    """Every sentence is worked out anew: of each question, the two that are farthest apart, if they are at all."""
    found = fake_map(queries=[query for query in QUERIES if query["by"] == ["age_band", "area"]])
    (query,) = found["queries"]
    ((about, rest),) = standing_out(found)["together"]
    assert about == "Drug need"
    told = [cell for cell in query["together"]["cells"] if cell["wide"] is not None]
    high = max(told, key=lambda cell: cell["wide"]["low"])
    low = min(told, key=lambda cell: cell["wide"]["high"])
    assert high["wide"]["low"] > low["wide"]["high"]
    at = f"in {high['levels'][1]} where age band is “{high['levels'][0]}”"
    places = int(min(cell["wide"]["high"] - cell["wide"]["low"] for cell in (high, low)) < 0.04)
    assert f"{at} ({cut(high['wide'], places)} of every 100" in rest
    assert cut(low["wide"], places) in rest
    above = all(cell is high or cell["wide"]["high"] < high["wide"]["low"] for cell in told)
    assert rest.startswith("most common" if above else "more common")
    high["publishable"] = False  # a canary: what may not be shown is not named either
    assert cut(high["wide"], places) not in str(standing_out(found)["together"])
    for each in (cell for part in (query["together"]["cells"], *query["agencies"].values()) for cell in part):
        each["wide"] = {"low": 0.1, "high": 0.4}
    assert "No two areas, groups or agencies are clearly apart" in Outline(render_map(found)).text


@given(st.floats(0, 0.5), st.floats(0.001, 0.3), st.floats(0, 0.1), st.floats(0.001, 0.3))
def test_intervals_in_a_sentence_are_apart_as_written(
    low: float, wide: float, gap: float, other: float
) -> None:
    cells = [
        {"levels": [area], "value": first, "low": first, "high": last, "publishable": True,
         "wide": {"low": first, "high": last}}
        for area, first, last in (("a", low, low + wide), ("b", low + wide + gap, low + wide + gap + other))
    ]  # fmt: skip
    query = {"name": "q", "kind": "rate", "counts": "person", "by": ["area"], "where": {"debt_need": ["yes"]}}
    asked = [query | {"among": {}, "together": None, "agencies": {"x": cells}}]
    found = {"unit": "person", "attributes": ATTRIBUTES, "agencies": {"x": {}}, "queries": asked}
    for _, rest in standing_out(found)["together"]:
        ends = [float(end) for end in re.findall(r"\d+(?:\.\d+)?", rest.replace("every 100", ""))]
        assert ends[0] > ends[3]
        assert ends[0] <= 100 * (low + wide + gap) + 1e-6
        assert ends[3] >= 100 * (low + wide) - 1e-6


def test_where_nothing_differs_nothing_is_said_in_95_of_100_maps() -> None:
    """Four agencies and eight areas, all alike: the share of maps with a sentence is that of a false one, at most 0.05."""
    rng = np.random.default_rng(11)
    query = {"name": "q", "kind": "rate", "counts": "person", "by": ["area"], "where": {"debt_need": ["yes"]}}
    ends = NormalDist().inv_cdf(1 - 0.025 / 40) * 0.02
    false = 0
    for _ in range(400):
        parts = [
            [
                {"levels": [area], "value": x, "low": x, "high": x, "publishable": True,
                 "wide": {"low": x - ends, "high": x + ends}}
                for area, x in zip(AREAS, 0.3 + 0.02 * rng.normal(size=len(AREAS)), strict=True)
            ]
            for _ in range(5)
        ]  # fmt: skip
        own = {f"agency {at}": part for at, part in enumerate(parts[1:])}
        asked = [query | {"among": {}, "together": {"cells": parts[0]}, "agencies": own}]
        found = {"unit": "person", "attributes": ATTRIBUTES, "agencies": own, "queries": asked}
        said = standing_out(found)
        false += bool(said["together"] or said["agencies"] or said["own"])
    assert false <= 0.05 * 400 + 3 * math.sqrt(400 * 0.05 * 0.95)


def test_a_table_is_longer_than_wide_and_what_is_empty_takes_no_place() -> None:
    one = Mark(1.0)
    rows = [("a", [one] * 11 + [None]), ("b", [one] * 5 + [None] * 7), ("c", [None] * 12)]
    made = heat("t", ("agency", "area"), [f"x{at}" for at in range(12)], rows, share=False)
    assert made.corner == "area by agency"
    assert made.nothing == "“c” and “x11”"
    ((columns, cells),) = made.blocks
    assert columns == ["a", "b"]
    assert [name for name, _ in cells] == [f"x{at}" for at in range(11)]
    assert sum(cell is not None for _, row in cells for cell in row) == 16


def test_a_question_with_more_levels_than_agencies_has_them_as_rows() -> None:
    """A page is longer than it is wide: what is beyond its edge nobody sees."""
    alone = fake_map({"police": ("police", 5000), "health": ("health", 6000)}, sigma=60.0, refused=False)
    heads = re.findall(r'<table class="heat">.*?<tr>(.*?)</tr>', render_map(alone), re.DOTALL)
    columns = [re.findall(r'<th scope="col">([^<]*)</th>', head)[1:] for head in heads]
    by_agency = [names for names in columns if "together" in names]
    assert by_agency
    assert all(names == ["together", "police", "health"] for names in by_agency)
    assert max(map(len, columns)) <= 6


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_wide_table_is_cut_into_tables_that_fit_and_lose_nothing(down: int, across: int) -> None:
    names = [f"x{at}" for at in range(across)]
    rows = [(f"y{at}", [Mark(float(at * across + x)) for x in range(across)]) for at in range(down)]
    made = heat("t", ("y", "x"), names, rows, share=False)
    assert all(len(columns) <= MOST_COLUMNS for columns, _ in made.blocks)
    assert sum(len(columns) for columns, _ in made.blocks) == min(down, across)
    cells = [
        cell.value for _, part in made.blocks for _, row in part for cell in row if isinstance(cell, Told)
    ]
    assert sorted(cells) == sorted(f"{at:,}" for at in range(down * across))


def test_no_epsilon_is_proposed_that_nobody_would_spend() -> None:
    query = FOUND["queries"][9] | {"epsilon_for_minimum": 178.59}
    text = cannot(query, 10, [TOGETHER, "county police"])
    assert "178" not in text
    assert "together about 312 people (more of them or a longer period: no sensible ε would do)" in text
    assert "at one agency about 180 people, or ε = 0.92" in text.replace("\u00a0", " ")


def test_a_cohort_says_how_many_more_it_may_be_for_those_whom_keys_miss() -> None:
    found = fake_cohort(names=["county police", "city housing"])
    shared = found["pairs"][0]["shared"]
    high = math.ceil(shared["high"] / 0.7)
    text = Outline(render_cohort(found)).text
    assert (
        f"30 in 100 if your records are as our made-up ones: {math.floor(shared['low']):,} to {high:,}."
        in text
    )
    found["pairs"][0]["shared"]["publishable"] = False
    assert f"{high:,}" not in render_cohort(found)


# ---- names are only names ----

HOSTILE = '<script>alert("x")</script><img src=x onerror=y>\'&"'


def renamed(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {renamed(k, old, new): renamed(v, old, new) for k, v in value.items()}
    if isinstance(value, list):
        return [renamed(each, old, new) for each in value]
    return value.replace(old, new) if isinstance(value, str) else value


@pytest.mark.parametrize(
    "name", ["county police", "harbour", "area", "debt among", "2024-01", "early-help", "BUDGET", "first_day"]
)
def test_markup_in_a_name_stays_text(name: str) -> None:
    page = render_map(renamed(FOUND, name, HOSTILE))
    assert not {tag for tag, _ in Outline(page).tags} & {"script", "img"}
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_markup_stays_text_in_cohorts_and_signs() -> None:
    for render, found, names in (
        (render_cohort, fake_cohort(), ("county police", "under 18", "forename", "age_band")),
        (render_signs, fake_signs(), ("missed rents", "city housing", "crisis contacts", HEAD_RUN)),
    ):
        for name in names:
            page = render(renamed(found, name, HOSTILE))
            assert "<script" not in page
            assert "&lt;script&gt;" in page
            Outline(page)


HEAD_RUN = FOUND["run_id"]


# ---- CSV ----


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_csv_has_every_cell_with_the_json_s_own_numbers(tmp_path: Path) -> None:
    files = write_map(FOUND, tmp_path)
    assert files == {"report": "map.html", "tables": "csv"}
    assert (tmp_path / "map.html").read_text(encoding="utf-8") == PAGE
    for number, query in enumerate(FOUND["queries"], 1):
        rows = read_csv((tmp_path / "csv" / name_of(number, query["name"])).read_text(encoding="utf-8"))
        parts = {"together": query["together"]["cells"], **query["agencies"]}
        cells = [(name, cell) for name, part in parts.items() for cell in part]
        assert len(rows) == len(cells)
        for row, (name, cell) in zip(rows, cells, strict=True):
            assert list(row) == ["agency", *query["by"], "value", "low", "high", "publishable", "planned_sd"]
            assert row["agency"] == name
            assert [row[attribute] for attribute in query["by"]] == cell["levels"]
            assert row["publishable"] == json.dumps(cell["publishable"])
            for key in ("value", "low", "high"):
                assert row[key] == ("" if cell[key] is None else repr(cell[key]))
            assert float(row["planned_sd"]) == query["planned_sd"]
    readme = (tmp_path / "csv" / "README.txt").read_text(encoding="utf-8")
    assert all(name_of(at, query["name"]) in readme for at, query in enumerate(FOUND["queries"], 1))


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝"])
def test_a_csv_runs_nothing_in_a_spreadsheet(start: str) -> None:
    evil = f'{start}HYPERLINK("x")'
    found = renamed(fake_map(), "harbour", evil)
    found = renamed(found, "county police", evil)
    for name, text in tables(found).items():
        if name.endswith(".csv"):
            for row in csv.reader(io.StringIO(text, newline="")):
                assert not [cell for cell in row if cell.startswith(start)]
    crossed_file = next(text for name, text in tables(found).items() if "area-by-age" in name)
    assert f"'{start}HYPERLINK" in crossed_file


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("Housing need, by area", "07-housing-need-by-area.csv"),
        ("../../etc/passwd", "07-etc-passwd.csv"),
        ("", "07-question.csv"),
        ("é%\0/", "07-question.csv"),
        ("a" * 59 + " b", f"07-{'a' * 59}.csv"),
    ],
)
def test_a_file_s_name_is_one_on_every_system(query: str, name: str) -> None:
    assert name_of(7, query) == name


# ---- numbers as texts, pictures ----


@given(st.floats(0, 0.999), st.floats(0, 0.5), st.floats(1e-6, 0.5))
def test_what_is_read_is_no_narrower_than_what_was_found(value: float, below: float, above: float) -> None:
    mark = Mark(value, max(value - below, 0.0), min(value + above, 1.0))
    said, of_hundred = told(mark, share=True), hundred(mark)
    assert said is not None
    for each in (said, of_hundred):
        low, middle, high = (float(text.rstrip("%")) for text in (each.low, each.value, each.high))
        assert low <= 100 * ends(mark)[0] + 1e-6
        assert high >= 100 * ends(mark)[1] - 1e-6
        assert low <= middle <= high


def test_a_rough_number_has_no_colour() -> None:
    rough, plain = (told(Mark(40, 40 - half, 40 + half), share=False, top=50) for half in (21, 19))
    assert (rough.rough, rough.step) == (True, 0)  # type: ignore[union-attr]
    assert (plain.rough, plain.step) == (False, 4)  # type: ignore[union-attr]


@given(st.floats(1e-6, 1e9), st.floats(0, 1))
def test_darker_is_more_and_the_largest_is_in_a_colour(most: float, part: float) -> None:
    top = round_top(most)
    assert most * (1 - 1e-6) <= top <= most * 2
    steps = [told(Mark(value), share=False, top=top) for value in (part * most, most)]
    assert all(step is not None for step in steps)
    assert steps[0].step <= steps[1].step <= STEPS  # type: ignore[union-attr]
    assert steps[1].step >= 1  # type: ignore[union-attr]


def test_a_bar_is_as_long_as_its_number_and_the_whisker_as_its_interval() -> None:
    drawn = bar(Mark(40, 30, 60), 100)
    assert 'rect width="40.0%"' in drawn
    assert 'class="over" x1="30.0%" x2="60.0%"' in drawn
    assert bar(None, 100) == ""
    assert "line" not in bar(Mark(40, 40, 40), 100), "without noise there is no interval"


def test_months_that_cannot_be_told_are_hatched_and_no_line_goes_through_them() -> None:
    values = [Mark(5, 4, 6), Mark(6, 5, 7), None, Mark(2, 1, 3), None, Mark(3, 2, 4), Mark(3, 2, 4)]
    months = [f"2024-{at:02d}" for at in range(1, 8)]
    drawn = trend("key", "title", months, values, 10, share=False)
    assert drawn.count('class="hatch"') == 2
    lines = re.findall(r'class="trend" points="([^"]*)"', drawn)
    assert [len(points.split()) for points in lines] == [2, 2]
    assert drawn.count('class="dot"') == 1, "a month by itself is a dot"
    assert "5 of 7 months can be told" in drawn


def test_a_cross_tab_of_three_is_a_table_for_each_level_of_the_first() -> None:
    names, levels = ["x", "y", "z"], [["a", "b"], ["c", "d", "e"], ["f", "g"]]
    found = {key: Mark(float(at + 1)) for at, key in enumerate(itertools.product(*levels))}
    made = crossed("t", names, levels, found, share=False)
    assert [heat.caption for heat in made] == ["t, x a", "t, x b"]
    ((columns, rows),) = made[1].blocks
    assert columns == ["f", "g"]
    values = [[cell.value for cell in cells] for _, cells in rows]  # type: ignore[union-attr]
    assert values == [["7", "8"], ["9", "10"], ["11", "12"]]


def test_contrast_is_wcag_aa_on_every_colour_of_a_table() -> None:
    style = PAGE[PAGE.index("<style>") : PAGE.index("</style>")]
    colours = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})[;}]", style))
    grounds = re.findall(r"\.h(\d) \{ background: var\(--([a-z]+)\);?( color: var\(--paper\);)?", style)
    assert [int(step) for step, *_ in grounds] == list(range(STEPS + 1))
    for step, ground, light in grounds:
        ink = colours["paper" if light else "ink"]
        assert contrast(ink, colours[ground]) >= 4.5, step
    lightness = [contrast("#000000", colours[ground]) for _, ground, _ in grounds]
    assert lightness == sorted(lightness, reverse=True), "each is darker than the one before"
    assert contrast(colours["alarm"], colours["heata"]) >= 3
    assert not re.findall(r"(?:color|fill|stroke|background): ?#", style)


def test_a_map_of_ten_agencies_and_thirty_questions_is_small_and_quickly_made(tmp_path: Path) -> None:
    agencies = {f"agency {at}": ("police", 5_000 * (at + 1)) for at in range(10)}
    queries = [
        query | {"name": f"{query['name']} {at}"}
        for at, query in enumerate([*QUERIES, *QUERIES, *QUERIES][:30])
    ]
    found = fake_map(agencies, queries)
    start = time.process_time()
    write_map(found, tmp_path)
    assert time.process_time() - start < 2
    assert (tmp_path / "map.html").stat().st_size < 1_500_000


# ---- in a browser ----


@pytest.mark.long
@pytest.mark.parametrize("width", [1100, 390, 320])
def test_pages_in_a_browser_fit_its_width(tmp_path: Path, width: int) -> None:
    """Nothing but a table scrolls sideways; with FEDRISK_SCREENSHOTS the top of each page is written there as a picture."""
    pictures = os.environ.get("FEDRISK_SCREENSHOTS")
    found = find_browser()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        for name, text in PAGES.items():
            path = tmp_path / f"{name.replace(' ', '-')}.html"
            path.write_text(text, encoding="utf-8")
            page = browser.new_page(viewport={"width": width, "height": 1400})
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            cut = page.evaluate(
                "[...document.querySelectorAll('svg text')].filter(e => { const b = e.getBBox(); "
                "const v = e.ownerSVGElement.viewBox.baseVal; return b.x < -1 || b.x + b.width > v.width + 1 })"
                ".map(e => e.textContent)"
            )
            assert cut == [], f"{name}: these words are cut off"
            shot = tmp_path / f"{path.stem}-{width}.png"
            page.screenshot(path=shot)
            assert shot.stat().st_size > 10_000, name
            if pictures and name in ("map", "cohort") and width == 1100:
                _pictures(page, Path(__file__).resolve().parent.parent / pictures, name)
            page.close()
        browser.close()


def _pictures(page: Any, folder: Path, name: str) -> None:
    """The top of a page, and of a map its heat map."""
    folder.mkdir(parents=True, exist_ok=True)
    page.set_viewport_size({"width": 1000, "height": 1280 if name == "map" else 820})
    page.screenshot(path=folder / f"demand-{name}.png")
    if name == "map":
        page.set_viewport_size({"width": 1000, "height": 760})
        page.locator("h3", has_text="drug need by age and area").evaluate("each => each.scrollIntoView()")
        page.screenshot(path=folder / "demand-heat.png")
