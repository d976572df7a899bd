"""What a panel reads: every number from the result, nothing that may not be shown, nothing from elsewhere."""

import copy
import itertools
import json
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fake_result import EVIDENCE, GROUPS, KINDS, SECRET, fake_compare, fake_result, whole_result
from hypothesis import given
from hypothesis import strategies as st

from federation.panel import charts, report, svg
from federation.panel.charts import Panel, Point
from federation.panel.report import ANCHORS, SECTIONS, render_report, write_compare, write_report
from federation.panel.sections import cost
from federation.panel.sections.compared import comparison
from federation.panel.sections.fair import BY_GROUP
from federation.panel.sections.numbers import MEASURES, cell, certainty, of_thousand, shown
from federation.panel.svg import Mark

VOID = {"meta", "link", "br", "hr", "img", "input"}
RESULT = fake_result()
PAGE = render_report(RESULT)
WHOLE = render_report(whole_result())


class Outline(HTMLParser):
    """Reads a page; fails on a tag that is not closed, or closed twice."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def compare_page(folder: Path) -> str:
    return write_compare(fake_compare(), folder / "compare.html").read_text(encoding="utf-8")


# ---- the page by itself ----


def test_who_left_is_said_with_what_of_it_is_in_the_model() -> None:
    left = {"agency": "police", "at": "2026-11-25T10:00:00+00:00", "round": 7, "back": None}
    for entry, says in [
        (left | {"run_id": "run-1"}, "trained with it before round 7, and without it from then on"),
        (left | {"run_id": "another"}, "this model was trained without it"),
        (left | {"run_id": "another", "back": "2026-12-01T09:00:00+00:00"}, "it came back on 2026-12-01"),
    ]:
        said = " ".join(render_report(fake_result() | {"run_id": "run-1", "departures": [entry]}).split())
        assert "police left the federation on 2026-11-25" in said
        assert says in said
        assert "stays released" in said


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    for page in (PAGE, compare_page(tmp_path), render_report(fake_result(private=False))):
        outline = Outline(page)
        assert not {tag for tag, _ in outline.tags} & {
            "script",
            "link",
            "img",
            "iframe",
            "object",
            "embed",
            "form",
        }
        for _, attrs in outline.tags:
            assert not [
                name for name in attrs if name.startswith("on") or name in ("src", "srcset", "action")
            ]
            assert (attrs.get("href") or "#").startswith("#")
        assert not re.search(r"https?:|url\(|@import|javascript:", page)
        assert len(page) < 1_500_000


def test_ids_are_unique_and_every_reference_meets_one() -> None:
    outline = Outline(PAGE)
    ids = [attrs["id"] for _, attrs in outline.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    wanted = [(attrs["href"] or "")[1:] for attrs in outline.named("a")]
    for _, attrs in outline.tags:
        wanted += (attrs.get("aria-labelledby") or "").split()
    assert set(wanted) <= set(ids)


@pytest.mark.parametrize("page", [PAGE, WHOLE, render_report({})], ids=["run", "whole", "empty"])
def test_headings_follow_each_other_and_every_part_has_its_id(page: str) -> None:
    outline = Outline(page)
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    ids = [attrs["id"] for tag, attrs in outline.tags if tag in ("h2", "h3") and "id" in attrs]
    assert [name for name in ids if name in dict(SECTIONS)] == [name for name, _ in SECTIONS]
    assert set(ANCHORS) <= set(ids)


@pytest.mark.parametrize("page", [PAGE, WHOLE], ids=["run", "whole"])
def test_pictures_speak_and_have_a_table_behind_them(page: str) -> None:
    outline = Outline(page)
    pictures = outline.named("svg")
    assert len(pictures) >= 8
    assert all(attrs["role"] == "img" and attrs["aria-labelledby"] for attrs in pictures)
    assert len(outline.named("title")) == 1 + len(pictures)
    assert len(outline.named("desc")) == len(pictures)
    for after in page.split("</svg>")[1:]:
        assert re.search(r"<table[ >]", after.split("<h2")[0])
    assert outline.named("html")[0]["lang"] == "en"
    assert len(outline.named("caption")) == len(outline.named("table"))
    assert all(attrs.get("scope") in ("row", "col", "rowgroup") for attrs in outline.named("th"))
    assert all(attrs.get("aria-label") for attrs in outline.named("figure"))


def test_a_technical_name_stands_in_brackets_once() -> None:
    """Gates are quoted as they were signed; the rest of the page says each such name once."""
    text = Outline(WHOLE).text
    for name in (
        "AUC",
        "Brier",
        "ECE",
        "O/E",
        "TPR",
        "FPR",
        "FNR",
        "PPV",
        "net benefit",
        "group multipliers",
    ):
        assert text.count(f"({name})") == 1
        assert text.count(name) <= 2
    assert not re.findall(r"\b(?:tpr|fpr|fnr|ppv|selection_rate|equalized_odds|demographic_parity)\b", text)


def many(agencies: int = 10, groups: int = 6) -> dict[str, Any]:
    """A result with so many agencies, and so many attributes that people are looked at by."""
    result = whole_result()
    names = [f"agency {number} of the north" for number in range(agencies)]
    result["agencies"] = dict.fromkeys(names, result["agencies"]["northgate police"])
    attributes = [*GROUPS, *(f"attribute {number}" for number in range(groups - len(GROUPS)))]
    for record in (*result["checkpoints"], result["final"]):
        metrics = record["metrics"]
        one = metrics["agencies"]["northgate police"]
        metrics["agencies"] = dict.fromkeys(names, one)
        metrics["agency_gaps"] = {
            "sex": dict.fromkeys(names, metrics["agency_gaps"]["sex"]["northgate police"])
        }
        for part in (metrics["groups"], metrics["gaps"], metrics["agency_gaps"], metrics["conflicts"]):
            part |= {name: part["sex"] for name in attributes if name not in part}
        levels = {
            f"{name} & attribute 0={level}": table
            for name, table in metrics["intersections"].items()
            for level in "abcd"
        }
        metrics["intersections"] = levels
    return result


def test_the_report_of_a_large_run_is_small() -> None:
    page = render_report(many())
    Outline(page)
    assert len(page.encode()) < 1_500_000
    assert page.count('id="group-') == 12  # titles and descriptions of six pictures
    assert "agency 9 of the north" in page


def test_the_most_intensive_users_are_the_last_level_that_was_declared() -> None:
    """A level for whoever's use is not known comes after it."""
    result = whole_result()
    share = cell(result["users"]["most_intensive_share_of_flagged"], "thousand")
    said = f"Of those flagged, {share.text} of 1,000 ({share.interval}) are already among the most intensive users"
    assert f"{said} (“three or more”)." in Outline(render_report(result)).text


def test_warnings_about_the_data_come_first() -> None:
    text = Outline(render_report(whole_result() | {"cautions": ["Labels are <odd> here.", "Two."]})).text
    assert (
        text.index("Known flaws of these data")
        < text.index("Labels are <odd> here.")
        < text.index("Research: a simul")
    )
    assert "Known flaws" not in Outline(PAGE).text


def test_what_kinds_of_agency_added() -> None:
    text = Outline(PAGE).text
    assert "police 1 1 2,000 custody (also held by probation)" in text
    assert "health 1 1 3,000 care (held by no other kind)" in text
    assert (
        f"children's services 1 0 {500 * (3 + len(KINDS)):,} people, with the columns that all hold" in text
    )


@pytest.mark.parametrize(
    ("verdict", "says"),
    [
        (True, "So two wishes conflict here"),
        (None, "cannot be told, so it is not known whether the wishes conflict here"),
        (False, "the wishes need not conflict here"),
    ],
)
def test_which_wishes_conflict_is_said_in_words(verdict: bool | None, says: str) -> None:
    result = copy.deepcopy(whole_result())
    result["final"]["metrics"]["conflicts"]["sex"]["conflict"] = verdict
    text = Outline(render_report(result)).text
    paragraph = text[text.index("By sex: the share of people") :]
    assert says in paragraph[:400]
    assert "differs by 7.1 points (4.4 to 9.9)" in paragraph


def test_an_audit_that_broke_the_claim_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    for lower, says in ((1.87, "The claim was not broken."), (3.5, "the claim is wrong")):
        audit = EVIDENCE["audit"] | {"lower_bound": lower}
        monkeypatch.setattr(cost, "evidence_of", lambda _, audit=audit: {"audit": audit})
        text = Outline(render_report(RESULT)).text
        assert f"ε is at least {lower:.2f} " in text
        assert "at most 3.07 was claimed" in text
        assert says in text


def test_an_audit_of_other_noise_or_with_a_failed_check_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    audit = EVIDENCE["audit"] | {"mechanisms": ("shared",), "failed": ("local, 3 agencies: membership",)}
    monkeypatch.setattr(cost, "evidence_of", lambda _: {"audit": audit})
    text = Outline(render_report(RESULT)).text
    assert "The attack was on another kind of noise (shared) than this run used" in text
    assert "More was found than is claimed in: local, 3 agencies: membership." in text
    monkeypatch.setattr(
        cost, "evidence_of", lambda _: {"audit": audit | {"mechanisms": ["local"], "failed": []}}
    )
    text = Outline(render_report(RESULT)).text
    assert "another kind of noise" not in text
    assert "More was found" not in text


def test_behind_masks_nothing_is_said_of_one_agency() -> None:
    result = whole_result() | {"tables": "summed"}
    result["privacy"] |= {
        "mechanism": "shared",
        "shared": {"agencies": list(KINDS), "threshold": 3, "honest": 3, "colluders": 1, "dropouts": 1},
    }
    for record in (*result["checkpoints"], result["final"]):
        record["metrics"] |= {"agencies": {}, "agency_gaps": {}, "between_agencies": {}}
    text = Outline(render_report(result)).text
    assert text.count("Not known: behind masks only the agencies' counts together can be read.") == 2
    assert "only their sum could be read" in text


def test_an_answer_of_a_checklist_links_into_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [
        {"id": "a", "text": "Is it lawful?", "answer": None, "anchor": None, "human": True},
        {
            "id": "b",
            "text": "Is it accurate?",
            "answer": "77 of 100 pairs.",
            "anchor": "#works",
            "human": False,
        },
        {"id": "c", "text": "Is it nowhere?", "answer": "An answer.", "anchor": "#nowhere", "human": False},
        {"id": "d", "text": "Is it known?", "answer": None, "anchor": None, "human": False},
    ]
    lists = [{"name": "ALGO-CARE", "source": "A paper.", "items": items}]
    monkeypatch.setattr(report, "checklists", lambda _: lists)
    page = render_report(RESULT)
    text = Outline(page).text
    assert "Is it lawful? For people to answer." in text
    assert "Is it accurate? 77 of 100 pairs. Does it work, and for whom?" in text
    assert "Is it known? not in the evidence" in text
    assert "#nowhere" not in page


def test_equal_results_make_equal_pages() -> None:
    assert render_report(json.loads(json.dumps(whole_result()))) == WHOLE


def test_it_says_so_in_plain_words() -> None:
    text = Outline(PAGE).text
    for words in (
        "In 76 of 100 such pairs",
        "would flag 456 of 1,000 people. 266 of them had the outcome; 190 did not.",
        "It would miss 118 of the 384",
        "who had the outcome are found 692 between 673 and 711",
        "at most 95.3 in 100 sure",
        "one in 100,000",
        "It protects one person at one agency",
        "4 of 5 agencies took part",
        "refused: its privacy budget would have been exceeded",
        "cannot be told from noise",
        "more than noise",
        "Not shown: other .",
        "Research: a simulation.",
        "4 March 2026, 10:17 UTC",
        RESULT["plan_sha256"],
    ):
        assert words in text


def test_a_ranking_that_may_be_chance_is_called_a_coin() -> None:
    result = copy.deepcopy(RESULT)
    result["final"]["metrics"]["overall"]["auc"] = {
        "value": 0.57,
        "low": 0.39,
        "high": 0.75,
        "publishable": True,
    }
    assert "In 57 of 100 such pairs" in (text := Outline(render_report(result)).text)
    assert "(39 to 75). A coin would manage 50: this model cannot be told from a coin." in text
    assert "cannot be told from a coin" not in PAGE


def test_a_run_without_privacy_says_so_in_red() -> None:
    page = render_report(fake_result(private=False))
    assert '<div class="banner alarm" role="note"><strong>No privacy protection was used in this run.' in page
    assert "There is no limit on what may be learned" in page
    assert "No privacy protection" not in PAGE


def test_rows_as_unit_and_real_runs_are_named_as_what_they_are() -> None:
    result = copy.deepcopy(RESULT)
    result["privacy"]["unit"], result["simulation"] = "row at one agency", False
    result["privacy"]["ledger"] = "lifetime"
    text = Outline(render_report(result)).text
    assert "What is protected here is a record, not a person" in text
    assert "a simulation" not in text
    assert "everything the agency ever released" in text


# ---- every number comes from the result, and only those that may be shown ----


def leaked(page: str) -> list[str]:
    """How a suppressed value could be written, where the page has it."""
    ways = [way for value in SECRET for way in (f"{value:.2f}", f"{100 * value:.1f}", f"{100 * value:.0f}%")]
    return [way for way in ways if way in page]


def test_no_suppressed_value_is_on_the_page() -> None:
    assert leaked(PAGE) == []
    assert 'class="hatch"' in PAGE
    assert 'class="none">not shown' in PAGE


def suppressed(value: Any) -> Any:
    """A copy of a result in which no estimate may be published."""
    if isinstance(value, dict):
        kept = {key: suppressed(entry) for key, entry in value.items()}
        return (
            kept | dict(zip(("value", "low", "high"), SECRET, strict=True), publishable=False)
            if "publishable" in value
            else kept
        )
    return [suppressed(entry) for entry in value] if isinstance(value, list) else value


def test_when_nothing_may_be_shown_nothing_is() -> None:
    page = render_report(suppressed(RESULT))
    text = Outline(page).text
    assert leaked(page) == []
    assert 'class="dot"' not in page[: page.index('id="comparison-title"')]
    assert "How well it ranks may not be shown" in text
    assert "The worst gap between groups may not be shown" in text
    assert text.count("not shown") > 40


@pytest.mark.parametrize("name", ["auc", "brier", "selection_rate", "tpr", "fpr", "ppv"])
def test_each_overall_number_is_the_results_own(name: str) -> None:
    estimate = RESULT["final"]["metrics"]["overall"][name]
    words, _, unit = MEASURES[name]
    text = Outline(PAGE).text
    row = text[text.index("Everyone together") :]
    row = row[row.index(words) :]
    numbers = cell(estimate, unit)
    assert row.index(f"{numbers.text} {numbers.interval}") < 160


def test_a_table_of_groups_has_the_results_numbers() -> None:
    text = Outline(PAGE).text
    for attribute, levels in RESULT["final"]["metrics"]["groups"].items():
        rows = text[text.index(f"Rates by {attribute}") :]
        for level, table in levels.items():
            said = [cell(table[name], MEASURES[name][2]) for name in BY_GROUP]
            assert f"{level} {' '.join(f'{c.text} {c.interval}'.strip() for c in said)}" in rows


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (None, "not computed"),
        ({"value": 0.5, "low": 0.4, "high": 0.6}, "not shown"),
        ({"value": 0.5, "low": 0.4, "high": 0.6, "publishable": 1}, "not shown"),
        ({"value": None, "low": None, "high": None, "publishable": True}, "not computed"),
        ({"value": float("nan"), "low": None, "high": None, "publishable": True}, "not computed"),
        ({"value": 0.5, "low": None, "high": None, "publishable": True}, "50.0%"),
    ],
)
def test_only_what_says_publishable_is_shown(estimate: dict[str, Any] | None, text: str) -> None:
    assert cell(estimate, "percent").text == text
    assert (shown(estimate) is None) == (text != "50.0%")


def test_a_thousand_people_add_up() -> None:
    def table(*rates: float) -> dict[str, Any]:
        names = ("base_rate", "tpr", "fpr")
        return {
            n: {"value": r, "low": r, "high": r, "publishable": True}
            for n, r in zip(names, rates, strict=True)
        }

    steps = [0.0, 0.001, 1 / 3, 0.5, 0.777, 1.0, 1.2, -0.1]
    for rates in itertools.product(steps, repeat=3):
        people = of_thousand(table(*rates))
        assert people is not None
        assert sum(people[k] for k in ("found", "missed", "wrong", "left")) == 1000
        assert min(people.values()) >= 0
    assert of_thousand(table(0.3, 0.5, 0.1)) == {
        "found": 150, "missed": 150, "wrong": 70, "left": 630, "flagged": 220, "had": 300,
    }  # fmt: skip
    hidden = table(0.3, 0.5, 0.1)
    hidden["tpr"]["publishable"] = False
    assert of_thousand(hidden) is None


def test_how_many_flags_are_right_is_not_said_where_it_may_not_be_shown() -> None:
    result = whole_result()
    rates = result["final"]["metrics"]["capacity"]["overall"]
    assert "So few are flagged" not in Outline(render_report(result)).text
    rates["ppv"] = {"value": None, "low": None, "high": None, "publishable": False}
    text = Outline(render_report(result)).text
    (said,) = re.findall(r"the model would then flag about (.*?) It would miss", text)
    assert "So few are flagged that how many of them had the outcome is not shown" in said
    assert "of them had the outcome;" not in said


def test_a_cutoff_for_each_group_names_the_group_apart_from_its_number() -> None:
    result = whole_result()
    group = next(iter(result["analysis"]["group_thresholds"].values()))
    group["cutoffs"] = {"under 25": 0.5, "25 and over": 0.39}
    text = Outline(render_report(result)).text
    assert "more alike: 0.50 for “under 25” and 0.39 for “25 and over”." in text
    group["cutoffs"] = {"under 25": 0.5, "25 and over": 0.5}
    text = Outline(render_report(result)).text
    assert "no cutoffs were found that make “found” more alike: 0.50 for “under 25” and" in text


def test_certainty_is_the_posterior_of_an_even_bet_and_never_too_low() -> None:
    assert certainty(0.0) == "50.0 in 100"
    assert certainty(math.log(3)) == "75.0 in 100"  # odds of 1 become odds of 3
    assert certainty(3.0) == "95.3 in 100"  # 95.257, rounded up
    assert certainty(9.0) == "more than 99.9 in 100"
    assert certainty(None) == "100 in 100"


# ---- names are only names ----


def renamed(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {renamed(k, old, new): renamed(v, old, new) for k, v in value.items()}
    if isinstance(value, list):
        return [renamed(entry, old, new) for entry in value]
    return value.replace(old, new) if isinstance(value, str) else value


NAMES = (
    "northgate police",
    "sex",
    "under 25",
    "crisis_within_a_year",
    "riverside probation",
    "layer.weight",
    "early-help",
    "12 months",
    "People known",
    "custody",
    "pooled",
    "Mean and",
    "logistic",
    "BUDGET",
    "fedavgm",
)


@pytest.mark.parametrize("name", NAMES)
def test_markup_in_a_name_stays_text(name: str) -> None:
    canary = '<script>alert("x")</script><img src=x onerror=y>\'&"'
    page = render_report(renamed(RESULT, name, canary))
    outline = Outline(page)
    assert not {tag for tag, _ in outline.tags} & {"script", "img"}
    assert "<script" not in page
    assert "&lt;script&gt;" in page


# ---- a result with parts missing ----


def holes(value: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, replacement): each part of the result, gone or None, but not inside agencies, groups and estimates."""
    for key, entry in value.items():
        yield (*path, key), None
        other_agency = path == ("agencies",) and key != "northgate police"
        if (
            isinstance(entry, dict)
            and len(path) < 3
            and key not in ("groups", "gaps", "overall")
            and not other_agency
        ):
            yield from holes(entry, (*path, key))


@pytest.mark.parametrize("path", [path for path, _ in holes(RESULT)], ids=".".join)
def test_any_part_may_be_null(path: tuple[str, ...]) -> None:
    """That it may be gone: test_report_evidence.py."""
    result = copy.copy(RESULT)
    at: dict[str, Any] = result
    for key in path[:-1]:
        at[key] = copy.copy(at[key])
        at = at[key]
    at[path[-1]] = None
    text = Outline(render_report(result)).text
    assert "None" not in text
    assert "nan" not in text.split()


def test_what_is_missing_is_said() -> None:
    text = Outline(render_report({})).text
    for words in (
        "This run has no measurements",
        "Whether the model treats groups alike is not known",
        "not compared with other ways",
        "No rounds are recorded",
        "No agencies are named",
        "did not finish",
        "Whether anybody's privacy was protected is not given",
        "Legal basis not given",
    ):
        assert words in text


def test_without_a_test_the_last_checkpoint_stands_in_and_says_so() -> None:
    text = Outline(render_report({**RESULT, "final": None})).text
    assert "Measured on people set aside for tuning, after round 20: there is no final test" in text


# ---- the comparison ----


def test_the_comparison_shows_every_row_and_the_curve(tmp_path: Path) -> None:
    page = compare_page(tmp_path)
    text = Outline(page).text
    for row in fake_compare()["rows"]:
        assert row["name"] in text
        assert f"{row['auc']['mean']:.3f} ± {row['auc']['sd']:.3f}" in text
        assert f"{100 * row['worst_gap']['mean']:.1f} ± {100 * row['worst_gap']['sd']:.1f} points" in text
    assert 'id="curve-title"' in page
    assert 'id="curve-title"' not in PAGE  # one ε is no curve
    assert comparison({"rows": []}) is None


def test_a_comparison_may_lack_spreads_and_measures() -> None:
    rows = [
        {"name": "pooled", "kind": "pooled", "auc": {"mean": 0.7, "sd": None}, "brier": None},
        {"name": "private", "kind": "private", "epsilon": 1.0, "auc": {"mean": 0.6, "sd": 0.1}},
        {"name": "private", "kind": "private", "epsilon": 3.0, "auc": None},
    ]
    found = comparison({"note": None, "rows": rows})
    assert found is not None
    assert found["rows"][0][3:] == ("0.700", "not computed", "not computed")
    assert found["curve"] is None


# ---- how it looks ----


def luminance(colour: str) -> float:
    """WCAG 2 relative luminance of #rrggbb."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_wcag_aa_on_every_ground() -> None:
    style = PAGE[PAGE.index("<style>") : PAGE.index("</style>")]
    colours = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6});", style))
    written = set(re.findall(r"(?<![-a-z])color: var\(--([a-z]+)\)", style))
    written |= set(re.findall(r"svg text[^{]*\{[^}]*fill: var\(--([a-z]+)\)", style))
    grounds = set(re.findall(r"background: var\(--([a-z]+)\)", style))
    assert written == {"ink", "soft", "accent", "alarm"}
    assert grounds == {"paper", "card", "note", "warn", "rule"}  # rule: only lines between tiles
    for text, ground in itertools.product(written, grounds - {"rule"}):
        assert contrast(colours[text], colours[ground]) >= 4.5, f"{text} on {ground}"
    for part in ("accent", "alarm", "second"):  # numbers on the bar are in the paper's colour
        assert contrast(colours["paper"], colours[part]) >= 4.5
    assert contrast(colours["ink"], colours["rule"]) >= 4.5
    for line in ("accent", "mid", "alarm"):  # dots, whiskers, dashed lines, hatching and what was asked
        assert contrast(colours[line], colours["paper"]) >= 3
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert not re.findall(r"(?:color|fill|stroke|background): ?#", style)


def positions(svg: str, attribute: str) -> list[float]:
    return [float(value) for value in re.findall(rf'class="dot"[^>]* {attribute}="([-0-9.]+)"', svg)]


def test_dots_stand_where_their_numbers_are() -> None:
    marks = [Mark(0.2, 0.1, 0.3), None, Mark(0.6, 0.5, 0.9)]
    svg = charts.dots("k", "title", ["a", "b", "c"], [Panel("p", marks, (0.0, 1.0))])
    low, high = positions(svg, "cx")
    left = charts.dots("k", "title", ["a"], [Panel("p", [Mark(0.0)], (0.0, 1.0))])
    assert high - low == pytest.approx(
        2 * (low - positions(left, "cx")[0]), abs=0.2
    )  # 0.2 to 0.6 is twice 0 to 0.2
    assert svg.count('class="hatch"') == 1
    assert svg.index('class="hatch"') < svg.rindex('class="dot"')


def test_panels_that_are_compared_have_axes_of_one_length() -> None:
    panels = [Panel("a", [Mark(0.1, 0.05, 0.2)]), Panel("b", [Mark(0.7, 0.4, 0.99)]), Panel("c", [None])]
    lengths = {round(p.ends[1] - p.ends[0], 9) for p in charts.comparable(panels)}
    assert len(lengths) == 1
    for panel in charts.comparable(panels):
        assert 0 <= panel.ends[0] < panel.ends[1] <= 1 + 1e-9
        for mark in panel.marks:
            assert mark is None or panel.ends[0] <= mark.value <= panel.ends[1]


@pytest.mark.parametrize("marks", [[], [None], [Mark(0.5)], [Mark(0.7, 0.7, 0.7)], [Mark(0.0), Mark(1.0)]])
def test_axes_hold_what_is_on_them(marks: list[Mark | None]) -> None:
    low, high = charts.spread(marks, (0, 1))
    assert 0 <= low < high <= 1
    assert all(low <= m.value <= high for m in marks if m is not None)


def test_a_better_point_is_higher_and_dearer_to_the_right() -> None:
    points = [Point(0.5, Mark(0.6), "0.5"), Point(1.0, Mark(0.7), "1"), Point(8.0, Mark(0.75), "8")]
    svg = charts.cost_curve("k", "t", points, [("pooled", 0.76), ("far away", 0.1)], (0.5, 0.8))
    xs, ys = positions(svg, "cx"), positions(svg, "cy")
    assert xs == sorted(xs)
    assert ys == sorted(ys, reverse=True)
    assert (xs[2] - xs[1]) == pytest.approx(3 * (xs[1] - xs[0]), abs=0.3)  # log axis: 8 is three doublings
    assert "far away" not in svg


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_report(RESULT, tmp_path / "report.html")
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report({}, path)
    assert path.read_text(encoding="utf-8") == PAGE
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


@given(st.floats(-100, 100), st.floats(1e-3, 200))
def test_every_axis_has_two_to_six_round_marks_inside_its_ends(low: float, length: float) -> None:
    marks = svg.ticks((low, low + length))
    assert 2 <= len(marks) <= 7
    assert all(low - 1e-6 * length <= mark <= low + length * (1 + 1e-6) for mark in marks)
