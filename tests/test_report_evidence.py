"""Every number of a report is read from the evidence: take one artefact away, and the page says so and shows none of it."""

import copy
import json
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import pytest
from fake_result import EVIDENCE, TERMS, whole_result
from panels import Signatories

from federation.panel.registered import ABOUT, NEXT
from federation.panel.report import render_report
from federation.panel.sections import changed, cost
from federation.panel.sections.numbers import Unit, of_mark, shown

PANEL = Signatories.of("alice", "bob", quorum=2)
GATES = {
    "simulation_allowed": True,
    "agencies_as_registered": False,
    "auc": 0.51,
    "gaps": {"equalized_odds": 0.4321},
}
UNITS: tuple[Unit, ...] = ("percent", "points", "decimal", "thousand", "benefit", "count")
ABSENT = re.compile(
    r"not (?:given|computed|measured|known|shown|declared|registered|done|tried)|none is known|cannot be told",
    re.IGNORECASE,
)
# a part of the result -> what the page says without it
SAYS = {
    "contract": "Within which time was not given",
    "model": "Model not given, hidden layers: not given",
    "strategy": "Strategy not given",
    "privacy": "Whether privacy protection was used is not given",
    "privacy.epsilon_at_several_agencies": "What a person loses who is known to several agencies is not given",
    "agencies": "No agencies are named in this result",
    "agencies.northgate police": "4 agencies",
    "agencies.northgate police.holds": "police took part not given",
    "agencies.northgate police.epsilon": "northgate police no limit no limit no limit",
    "rounds": "No rounds are recorded",
    "checkpoints": "Nothing was measured while it was trained",
    "final": "there is no final test",
    "final.metrics": "there is no final test",
    "final.metrics.overall": "How well it ranks may not be shown",
    "final.metrics.agencies": "Not measured agency by agency",
    "final.metrics.groups": "Nothing was measured by group",
    "final.metrics.gaps": "Flagged not computed nothing",
    "final.metrics.worst_gap": "The worst gap between groups may not be shown",
    "final.metrics.reliability": "Band by band this was not measured",
    "final.metrics.intersections": "nobody was looked at by two characteristics at once",
    "final.metrics.capacity": "no capacity was chosen for this run",
    "final.metrics.capacity.overall": "What happens to 1,000 people then may not be shown",
    "final.metrics.capacity.groups": "At the chosen capacity this was not measured by group",
    "final.metrics.agency_gaps": "Gaps within each agency were not measured",
    "final.metrics.between_agencies": "How much agencies differ from each other was not measured",
    "final.metrics.constant": "Not measured: what a rule would score that says the same of everyone",
    "final.metrics.constant.nobody": "Not measured: what a rule would score that flags nobody",
    "final.metrics.constant.everybody": "Not measured: what a rule would score that flags everybody",
    "final.metrics.constant.base_rate": "Not measured: what a rule would score that gives everyone the same score",
    "final.metrics.conflicts": "which wishes for fairness conflict here is not known",
    "reference": "This run was not compared with other ways of training",
    "reference.rows": "This run was not compared with other ways of training",
    "files": "Files of the run not given",
    "disclosure.minimum": "From how many people on a number is shown is not given",
    "disclosure": "Which rule for small numbers was in force is not given",
    "robustness": "Against agencies that send wrong changes not given",
    "analysis": "Other cutoffs were not tried in this run",
    "analysis.recalibration": "Correcting each agency's scores was not tried",
    "analysis.group_thresholds": "Cutoffs for each group were not tried",
    "users": "This cannot be answered: the data contract does not declare how intensively people use services",
    "users.declared": "not declared, so what needs it cannot be answered",
    "users.declared.intensity": "How intensively people use services not declared",
    "users.declared.lead_time": "How long after a flag the outcome came not declared",
    "users.declared.practice": "Who is flagged today not declared",
    "users.by_intensity": "How the model treats those who get most services was not measured",
    "users.lead": "how long before the outcome a flag comes is not known",
    "users.lead.bands": "Band by band this was not measured",
    "users.lead.median": "After what time half of those rightly flagged had the outcome is not shown",
    "users.practice": "whether the model is better than what is done today is not known",
    "cautions": "Whether these data have known flaws is not given",
    "fairness_training": "Whether fairness was part of the training is not given",
    "fairness_training.settings": "Its settings are not given",
    "fairness_training.history": "How much each group counted, round by round, is not given",
    "registration": "Not registered before it began.",
}
# what leaves nothing to say where it is missing, or is not on the page at all
SILENT = re.compile(
    r"schema|simulation|departures|strategy\.\w+|privacy\.(?:max_grad_norm|steps_per_round|sample_rate|noise_multiplier)"
    r"|agencies\.northgate police\.(?:releases|reason)|final\.(?:part|epsilon_busiest)|reference\.note|status"
    r"|robustness\.(?:malicious|masked|least_agencies)|users\.lead\.unknown|fairness_training\.stopped"
)
INTO = re.compile(
    r"(?:contract|model|strategy|privacy|agencies|agencies\.northgate police|final|final\.metrics|final\.metrics\.overall"
    r"|final\.metrics\.(?:capacity|constant|between_agencies)|reference|disclosure|robustness|analysis|users"
    r"|users\.(?:declared|lead|practice)|fairness_training)"
)
# estimates of groups and agencies that are in the evidence and not on the page
UNSHOWN = re.compile(
    r"(?:agencies|groups|intersections)\..*\.(?:people|auc|auc_bound|brier|log_loss|accuracy|base_rate)"
    r"|final\.metrics\.groups\..*\.auc|capacity\.overall\.(?:people|auc|auc_bound|brier|log_loss|observed_expected|ece)"
)


def registered(result: dict[str, Any], **registration: Any) -> dict[str, Any]:
    """The result of a run that was registered, all questions answered."""
    answers = dict.fromkeys([*ABOUT, *NEXT, "not_for"], "An answer in words.")
    given = {
        "registered": datetime.fromisoformat(result["created"]) - timedelta(days=1),
        "gates": GATES,
        "answers": answers,
        "terms": TERMS,
    }
    signed = PANEL.signed(PANEL.registration(**(given | registration)))
    return result | {"registration": {"sha256": signed.digest, "signed": json.loads(signed.canonical)}}


RESULT: dict[str, Any] = json.loads(json.dumps(registered(whole_result())))


def words(page: str) -> str:
    """The text of a page, blanks in one."""
    body = re.sub(r"<style>.*?</style>", " ", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).replace("&#39;", "'").replace("&amp;", "&").split())


@cache
def whole_text() -> str:
    return words(render_report(RESULT))


@cache
def elsewhere() -> str:
    """What may be on a page without the result."""
    return json.dumps(EVIDENCE) + words(render_report({}))


@pytest.fixture(autouse=True)
def attached(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is attached to the registration, for a test to change."""
    evidence = copy.deepcopy(EVIDENCE)
    for module in (cost, changed):
        monkeypatch.setattr(module, "evidence_of", lambda _: evidence)
    return evidence


# ---- one artefact at a time ----


def artefacts(value: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of the parts that INTO names; of the agencies the first stands for all."""
    for key, entry in value.items():
        if path == ("agencies",) and key != "northgate police":
            continue
        yield (*path, key)
        if isinstance(entry, dict) and INTO.fullmatch(".".join((*path, key))):
            yield from artefacts(entry, (*path, key))


def without(value: Any, path: tuple[str, ...]) -> tuple[Any, Any]:
    """A copy of `value` that lacks what is at `path`, and what that was."""
    own = copy.copy(value)
    key = path[0]
    if len(path) == 1:
        return own, own.pop(key)
    own[key], removed = without(own[key], path[1:])
    return own, removed


def estimates(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict) and "publishable" in value:
        yield path, value
    elif isinstance(value, dict | list):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from estimates(entry, f"{path}.{key}".lstrip("."))


def said(value: Any) -> set[str]:
    """The ways in which the intervals inside `value` can stand on a page: long enough to be nobody else's."""
    marks = [mark for _, each in estimates(value) if (mark := shown(each)) is not None]
    cells = [of_mark(mark, unit) for mark in marks for unit in UNITS]
    forms = ("{0} {1}", "{0} ({1})", "{0} of 1,000 ({1})")
    return {form.format(each.text, each.interval) for each in cells if each.interval for form in forms}


def facts(value: Any) -> set[str]:
    """Numbers and names inside `value` that are no estimates, as they can stand on a page."""
    if isinstance(value, dict) and "publishable" in value:
        return set()
    if isinstance(value, dict | list):
        entries = value.values() if isinstance(value, dict) else value
        return set().union(*map(facts, entries))
    if isinstance(value, float) and round(value, 1) != value:
        return {f"{value:.2f}", f"{value:g}"}
    return {value} if isinstance(value, str) and len(value) > 9 else set()


def times(fact: str, text: str) -> int:
    if fact not in text:
        return 0
    return len(re.findall(rf"(?<![\w.]){re.escape(fact)}(?!\w|\.\d)", text))


@pytest.mark.parametrize("path", list(artefacts(RESULT)), ids=".".join)
def test_what_is_taken_away_is_said_to_be_missing_and_is_not_shown(path: tuple[str, ...]) -> None:
    name, (rest, removed) = ".".join(path), without(RESULT, path)
    text, whole = words(render_report(rest)), whole_text()
    assert "None" not in text
    assert "nan" not in text.split()
    if name in SAYS:
        assert SAYS[name] in text
        assert SAYS[name] not in whole
    elif not SILENT.fullmatch(name):
        assert len(ABSENT.findall(text)) > len(ABSENT.findall(whole)), f"nothing says that {name} is missing"

    still = {each for each in said(removed) if each in text}
    assert not still or still <= said(rest)
    still = {fact for fact in facts(removed) if times(fact, text) >= max(times(fact, whole), 1)}
    assert not still or all(fact in json.dumps(rest) + elsewhere() for fact in still), still


def test_every_estimate_that_may_be_shown_is_on_the_page() -> None:
    """But for the few that no table has; so what the test above misses cannot be what is there."""
    missing = [
        name
        for name, each in estimates({key: RESULT[key] for key in ("final", "users", "analysis")})
        if shown(each) is not None and not UNSHOWN.search(name)
        if not [way for way in said({"only": each}) if way in whole_text()] and said({"only": each})
    ]
    assert missing == []


@pytest.mark.parametrize(
    "path",
    [("audit",), ("replaces",), *((part, key) for part in EVIDENCE for key in EVIDENCE[part])],
    ids=lambda path: ".".join(map(str, path)),
)
def test_what_is_not_attached_to_the_registration_is_said(
    path: tuple[str, ...], attached: dict[str, Any]
) -> None:
    whole = words(render_report(RESULT))
    rest, removed = without(EVIDENCE, path)
    attached.clear()
    attached.update(rest)
    text = words(render_report(RESULT))
    if len(path) == 1:
        assert {"audit": "No audit was attached", "replaces": "No earlier approved model was named"}[
            path[0]
        ] in text
    else:
        assert len(ABSENT.findall(text)) > len(ABSENT.findall(whole))
    for fact in facts(removed):
        if fact not in json.dumps(rest) + json.dumps(RESULT):
            assert fact not in text


def test_without_a_registration_its_answers_gates_and_evidence_are_missing(attached: dict[str, Any]) -> None:
    attached.clear()
    rest = {key: value for key, value in RESULT.items() if key != "registration"}
    text = words(render_report(rest))
    for sentence in (
        "Not registered before it began.",
        "Nobody signed answers for this run",
        "no gates were registered for this run",
        "No audit was attached to the registration.",
        "No earlier approved model was named in the registration.",
        "No ceiling for a gap was registered",
        "SHA-256 of the registration not registered",
    ):
        assert sentence in text
    assert "An answer in words." not in text
    assert "at most 43.2 points" not in text
