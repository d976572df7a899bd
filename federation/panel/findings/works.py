"""How well it works, for everybody together, and against what."""

from federation.panel.facts import at, table
from federation.panel.findings.finding import (
    Finding,
    Json,
    decimal,
    listed,
    measured,
    metrics,
    percent,
)
from federation.panel.sections.numbers import MEASURES, real, shown


def _one(result: Json, words: str, say: str, *keys: str) -> Finding | None:
    found = measured(result, *keys)
    if found is None:
        return None
    number = percent(found[0]) if say == "percent" else decimal(found[0])
    return Finding(words.format(number), (found[1],))


def ranking(result: Json) -> Finding | None:
    """AUC."""
    words = "Of two people, one with the outcome and one without, it ranks the right one higher with a chance of {}."
    return _one(result, words, "decimal", "overall", "auc")


def brier(result: Json) -> Finding | None:
    """Brier score."""
    return _one(
        result, "Mean squared distance between score and outcome: {} (Brier).", "decimal", "overall", "brier"
    )


def calibration(result: Json) -> Finding | None:
    """Observed over expected."""
    words = "Outcomes that happened for each one expected: {}; 1 would be perfect."
    return _one(result, words, "decimal", "overall", "observed_expected")


def calibration_error(result: Json) -> Finding | None:
    """Expected calibration error."""
    words = "Mean distance of scores from the observed share: {} (ECE)."
    return _one(result, words, "decimal", "overall", "ece")


def errors(result: Json) -> Finding | None:
    """Both kinds of error at the operating cutoff."""
    found, wrong = measured(result, "overall", "tpr"), measured(result, "overall", "fpr")
    if found is None or wrong is None:
        return None
    text = f"It finds {percent(found[0])} of those who have the outcome and wrongly flags {percent(wrong[0])} of those who do not."
    return Finding(text, (found[1], wrong[1]))


def right_if_flagged(result: Json) -> Finding | None:
    """Positive predictive value."""
    return _one(result, "Of those flagged, {} have the outcome.", "percent", "overall", "ppv")


def base_rate(result: Json) -> Finding | None:
    """How common the outcome is."""
    return _one(result, "Of all people, {} have the outcome.", "percent", "overall", "base_rate")


def people(result: Json) -> Finding | None:
    """On how many it was judged."""
    found = measured(result, "overall", "people")
    if found is None:
        return None
    return Finding(f"Judged on about {max(found[0].value, 0):,.0f} people (a noised count).", (found[1],))


def benefit(result: Json) -> Finding | None:
    """Net benefit over the better of two simple rules."""
    words = "Worth for each person beyond the better of flagging everybody and nobody: {}."
    return _one(result, words, "decimal", "overall", "net_benefit_gain")


def cutoff(result: Json) -> Finding | None:
    """From which score a person is flagged."""
    source, found = metrics(result)
    if not real(found.get("cutoff")):
        return None
    return Finding(f"A person is flagged from a score of {found['cutoff']:g}.", (f"{source}/cutoff",))


def capacity(result: Json) -> Finding | None:
    """What it finds where only a share of people can be helped."""
    source, found = metrics(result)
    asked = table(found.get("capacity"))
    rate = measured(result, "capacity", "overall", "tpr")
    if rate is None or not real(asked.get("share")):
        return None
    text = f"If {100 * asked['share']:g}% of people can be helped, it finds {percent(rate[0])} of those who have the outcome."
    return Finding(text, (f"{source}/capacity/share", rate[1]))


def constant(result: Json) -> Finding | None:
    """What saying the same of everybody would score."""
    parts, sources = [], []
    for who in ("nobody", "everybody"):
        right = measured(result, "constant", who, "accuracy")
        if right is not None:
            parts.append(f"flagging {who} is right for {percent(right[0])}")
            sources.append(right[1])
    own = measured(result, "overall", "accuracy")
    if not parts or own is None:
        return None
    text = f"The model is right for {percent(own[0])} of people; {listed(parts)}, with no gap between any groups."
    return Finding(text, (own[1], *sources))


def compared(result: Json) -> Finding | None:
    """The rows that the run compared itself with, by mean AUC."""
    parts, sources = [], []
    for number, row in enumerate(at(result, "/reference/rows") or ()):
        mean = at(row, "/auc/mean")
        if real(mean):
            parts.append(f"{table(row).get('name')} {mean:.3f}")
            sources += [f"/reference/rows/{number}/{key}" for key in ("name", "auc/mean")]
    return Finding(f"Ranking, mean over seeds: {listed(parts)}.", tuple(sources)) if parts else None


def measures(result: Json) -> Finding | None:
    """Which measures were computed at all."""
    source, found = metrics(result)
    names = list(table(found.get("overall")))
    if not names:
        return None
    said = listed(words_of(name) for name in names)
    return Finding(f"Each with a 95% interval that knows the noise: {said}.", (f"{source}/overall",))


def words_of(name: str) -> str:
    """What the report calls a measure of result.json."""
    return MEASURES[name][0].lower() if name in MEASURES else name.replace("_", " ")


def set_aside(result: Json) -> Finding | None:
    """Who was kept apart for what."""
    shares = {part: at(result, f"/scoring/{part}_fraction") for part in ("tune", "test")}
    if not all(real(share) for share in shares.values()):
        return None
    text = (
        f"Of each agency's people {100 * shares['tune']:g}% were set aside for checkpoints and thresholds (tune), "
        f"{100 * shares['test']:g}% for the final test; the rest trained. Nobody is in two parts."
    )
    return Finding(text, ("/scoring/tune_fraction", "/scoring/test_fraction"))


def recalibration(result: Json) -> Finding | None:
    """That scores are recalibrated, where they are."""
    if not table(at(result, "/scoring/recalibration")):
        return None
    text = "All scores are corrected by one intercept and one slope, fitted on the noised tables of all agencies' tune people."
    return Finding(text, ("/scoring/recalibration",))


def super_users(result: Json) -> Finding | None:
    """How many of those flagged are already the most intensive users of services."""
    share = shown(at(result, "/users/most_intensive_share_of_flagged"))
    beyond = shown(at(result, "/users/found_beyond"))
    if share is None:
        return None
    text = f"Of those flagged, {percent(share)} are already the most intensive users of services."
    sources: tuple[str, ...] = ("/users/most_intensive_share_of_flagged",)
    if beyond is not None:
        text += f" Of those rightly flagged, {percent(beyond)} are not."
        sources += ("/users/found_beyond",)
    return Finding(text, sources)


def lead(result: Json) -> Finding | None:
    """How long after the flag the outcome comes, for half of those rightly flagged."""
    median, unit = table(at(result, "/users/lead/median")), at(result, "/users/declared/lead_time/unit")
    if not real(median.get("low")) or not unit:
        return None
    until = (
        f"{median['low']:g} to {median['high']:g}"
        if real(median.get("high"))
        else f"{median['low']:g} or more"
    )
    text = f"Of those rightly flagged whose time is known, the median from flag to outcome is {until} {unit}."
    return Finding(text, ("/users/lead/median", "/users/declared/lead_time/unit"))


def practice(result: Json) -> Finding | None:
    """What current practice finds, beside what the model finds."""
    rate, own = shown(at(result, "/users/practice/tpr")), measured(result, "overall", "tpr")
    if rate is None or own is None:
        return None
    text = (
        f"Current practice finds {percent(rate)} of those who have the outcome, the model {percent(own[0])}."
    )
    return Finding(text, ("/users/practice/tpr", own[1]))
