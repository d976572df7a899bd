"""How it treats groups and agencies."""

from collections.abc import Iterator

from federation.panel.facts import Fact, facts, pointer, table
from federation.panel.findings.finding import (
    Finding,
    Json,
    decimal,
    listed,
    measured,
    metrics,
    per_level,
    points,
)
from federation.panel.sections.numbers import shown

GAPS = {
    "demographic_parity": "share flagged",
    "equal_opportunity": "share found",
    "equalized_odds": "share found or wrongly flagged",
    "predictive_parity": "share right if flagged",
}


def worst_gap(result: Json) -> Finding | None:
    """The largest gap between groups, of any attribute."""
    source, found = metrics(result)
    gap = shown(found.get("worst_gap"))
    if gap is None:
        return None
    named = table(found["worst_gap"])
    noise = " It cannot be told from noise." if gap.low is not None and gap.low <= 0 else ""
    text = f"The largest gap between groups is {points(gap)}: {GAPS.get(named.get('gap', ''), 'gap')}, by {named.get('attribute')}.{noise}"
    return Finding(text, tuple(f"{source}/worst_gap{key}" for key in ("", "/gap", "/attribute")))


def gaps(result: Json) -> Finding | None:
    """Every gap of every attribute, those that may be shown."""
    source, found = metrics(result)
    parts, sources = [], []
    for attribute, each in table(found.get("gaps")).items():
        for name, words in GAPS.items():
            gap = shown(table(each).get(name))
            if gap is not None:
                parts.append(f"by {attribute}, {words}: {points(gap)}")
                sources.append(source + pointer("gaps", attribute, name))
    text = f"Gaps with intervals that hold together: {'; '.join(parts)}."
    return Finding(text, tuple(sources)) if parts else None


def by_group(result: Json) -> Finding | None:
    """How many are found, and wrongly flagged, in each group."""
    return _by(result, "groups")


def intersections(result: Json) -> Finding | None:
    """How many are found in each combined group."""
    source, _ = metrics(result)
    said, sources = per_level(result, f"{source}/intersections", "tpr") if source else ("", ())
    return (
        Finding(f"Found, of those with the outcome, in combined groups: {said}.", sources) if said else None
    )


def _by(result: Json, part: str) -> Finding | None:
    source, found = metrics(result)
    texts: list[str] = []
    sources: list[str] = []
    for attribute in table(found.get(part)):
        for name, words in (("tpr", "found"), ("fpr", "wrongly flagged")):
            said, where = per_level(result, source + pointer(part, attribute), name)
            texts += [f"{words} by {attribute}: {said}"] if said else []
            sources += where
    return Finding(f"{'; '.join(texts).capitalize()}.", tuple(sources)) if texts else None


def characteristics(result: Json) -> Finding | None:
    """How common the outcome is in each group."""
    source, found = metrics(result)
    texts: list[str] = []
    sources: list[str] = []
    for attribute in table(found.get("groups")):
        said, where = per_level(result, source + pointer("groups", attribute), "base_rate")
        texts += [f"by {attribute}: {said}"] if said else []
        sources += where
    return Finding(f"Had the outcome, {'; '.join(texts)}.", tuple(sources)) if texts else None


def hidden(result: Json) -> Finding | None:
    """Groups that are too small or too noisy to be shown."""
    source, found = metrics(result)
    names = [
        f"{level} of {attribute}"
        for attribute, levels in table(found.get("groups")).items()
        for level in table(levels)
        if is_hidden(facts(result, source + pointer("groups", attribute, level), level))
    ]
    if not table(found.get("groups")):
        return None
    text = (
        f"Too small or too noisy to judge: {listed(names)}."
        if names
        else "No group was too small or too noisy to judge."
    )
    return Finding(text, (f"{source}/groups",))


def is_hidden(of_level: Iterator[Fact]) -> bool:
    """Whether none of a level's rates may be shown."""
    rates = [fact for fact in of_level if fact.name in ("selection_rate", "tpr", "fpr", "ppv")]
    return bool(rates) and all(fact.state == "suppressed" for fact in rates)


def by_agency(result: Json) -> Finding | None:
    """The AUC at each agency."""
    source, found = metrics(result)
    marks = {name: shown(table(each).get("auc")) for name, each in table(found.get("agencies")).items()}
    known = {name: mark for name, mark in marks.items() if mark is not None}
    if not known:
        return None
    said = listed(f"{name} {decimal(mark)}" for name, mark in known.items())
    return Finding(
        f"Ranking at each agency: {said}.", tuple(source + pointer("agencies", name, "auc") for name in known)
    )


def between_agencies(result: Json) -> Finding | None:
    """The largest differences between agencies."""
    parts, sources = [], []
    for name, words in (("tpr", "found"), ("fpr", "wrongly flagged"), ("selection_rate", "flagged")):
        gap = measured(result, "between_agencies", name)
        if gap is not None:
            parts.append(f"{words} {points(gap[0])}")
            sources.append(gap[1])
    return (
        Finding(f"Largest difference between agencies: {listed(parts)}.", tuple(sources)) if parts else None
    )


def conflicts(result: Json) -> Finding | None:
    """Whether calibration and equal error rates can both hold here."""
    source, found = metrics(result)
    told = {name: table(each).get("conflict") for name, each in table(found.get("conflicts")).items()}
    yes = [name for name, conflict in told.items() if conflict is True]
    if not told:
        return None
    if yes:
        text = (
            f"Base rates differ by {listed(yes)} beyond noise, so equal calibration and equal error rates cannot both be had: "
            "which matters more here is a choice that people make."
        )
    else:
        text = "No conflict between calibration and equal error rates is shown by these numbers."
    return Finding(text, (f"{source}/conflicts",))


def fairness_training(result: Json) -> Finding | None:
    """What was done about fairness in training."""
    used = table(result.get("fairness_training"))
    if "fairness_training" not in result:
        return None
    if not used:
        source, _ = metrics(result)
        return Finding("The training did nothing for fairness; gaps were measured only.", (f"{source}/gaps",))
    text = f"Fairness-aware training by {str(used.get('method')).replace('_', ' ')}."
    if not used.get("stopped"):
        return Finding(text, ("/fairness_training/method",))
    text += f" It stopped: {used['stopped']}"
    return Finding(text, ("/fairness_training/method", "/fairness_training/stopped"))


TRIED = {"recalibration": "a correction for each agency", "group_thresholds": "a cutoff for each group"}


def analysis(result: Json) -> Finding | None:
    """Adjustments that were analysed only."""
    found = table(result.get("analysis"))
    if not found:
        return None
    tried = [name for name in TRIED if found.get(name)]
    if not tried:
        return None
    text = f"{listed(TRIED[name] for name in tried).capitalize()}: {found.get('label')}."
    return Finding(text, tuple(f"/analysis/{name}" for name in (*tried, "label")))
