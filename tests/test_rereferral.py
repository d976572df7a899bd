"""What brings a model back: which sentences a machine can measure, and what it says of them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation import rereferral
from federation.rereferral import GAPS, NUMBERS, SHARES, Threshold, judge, read
from models.metrics import describe
from models.scores import ScoreTable

NAMES = st.text("abcdefghijklmnopqrstuvwxyz_-0123456789", min_size=1, max_size=12)
LEVELS = st.text(
    st.characters(codec="utf-8", exclude_categories=("Z", "C"), exclude_characters="="),
    min_size=1,
    max_size=12,
)
SIDES = st.sampled_from(["below", "above"])
WITHIN = st.decimals(0, 1, places=4).map(float)


def estimate(value: float, low: float, high: float, publishable: bool = True) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "publishable": publishable}


@st.composite
def thresholds(draw: st.DrawFn) -> Threshold:
    if draw(st.booleans()):
        return Threshold(draw(st.sampled_from(list(GAPS))), draw(SIDES), draw(WITHIN), attribute=draw(LEVELS))
    measure, side = draw(st.sampled_from([*SHARES, *NUMBERS])), draw(SIDES)
    number = draw(WITHIN if measure in SHARES else st.integers(-1000, 100_000).map(float))
    where = draw(
        st.one_of(
            st.just({}),
            st.fixed_dictionaries({"agency": NAMES}),
            st.fixed_dictionaries({"attribute": LEVELS, "level": LEVELS}),
        )
    )
    return Threshold(measure, side, number, **where)


# --- laws -------------------------------------------------------------------------------------------------


@given(thresholds())
def test_what_a_threshold_says_reads_as_that_threshold(threshold: Threshold) -> None:
    assert read(str(threshold)) == threshold


@given(thresholds(), st.sampled_from([str.upper, str.title, str.lower]))
def test_capitals_of_the_grammar_and_spaces_do_not_matter(threshold: Threshold, case: Any) -> None:
    words = f"{threshold.measure}".replace("_", "  ")
    text = str(threshold).replace(threshold.measure, case(words), 1)
    for word in (" below ", " above "):
        head, _, tail = text.rpartition(word)
        text = f"{head}{case(word)}{tail}" if head else text
    assert read(f" {text}. ") == threshold


@given(st.text(max_size=400))
def test_any_text_is_a_threshold_or_a_sentence_for_people(text: str) -> None:
    found = judge(text, {})
    assert found.verdict in ("judged by people", "cannot be told")
    assert (found.threshold is None) == (found.verdict == "judged by people")


def test_a_long_text_is_not_looked_at_for_long() -> None:
    assert read("gap a of " * 2000 + "=" * 2000 + " below 0.5") is None


@given(thresholds(), st.lists(WITHIN, min_size=3, max_size=3).map(sorted))
def test_a_threshold_is_due_where_the_number_itself_crosses_it(
    threshold: Threshold, ends: list[float]
) -> None:
    low, value, high = ends
    found = judge(str(threshold), placed(threshold, estimate(value, low, high)))
    crossed = value < threshold.number if threshold.side == "below" else value > threshold.number
    assert found.verdict == ("due" if crossed else "not due")
    both = {threshold.crossed_by(end) for end in (low, value, high)}
    assert found.may_be_noise == (len(both) > 1)
    hidden = judge(str(threshold), placed(threshold, estimate(value, low, high, publishable=False)))
    assert hidden.verdict == "cannot be told"
    assert hidden.estimate is not None
    assert hidden.estimate["value"] is None, "what may not be published is nowhere"


@given(thresholds(), WITHIN)
def test_an_exact_number_at_the_threshold_is_not_due(threshold: Threshold, value: float) -> None:
    exactly = Threshold(
        threshold.measure, threshold.side, value, threshold.attribute, threshold.level, threshold.agency
    )
    found = judge(str(exactly), placed(exactly, estimate(value, value, value)))
    assert (found.verdict, found.may_be_noise) == ("not due", False)


def placed(threshold: Threshold, value: dict[str, Any]) -> dict[str, Any]:
    """METRICS that hold nothing but `value`, where the threshold looks."""
    table = {threshold.measure: value}
    if threshold.agency is not None:
        return {"agencies": {threshold.agency: table}}
    if threshold.is_gap:
        return {"gaps": {threshold.attribute: table}}
    if threshold.attribute is not None:
        return {"groups": {threshold.attribute: {threshold.level: table}}}
    return {"overall": table}


# --- oracles and numbers ----------------------------------------------------------------------------------


def test_every_measure_is_one_that_a_result_has() -> None:
    """But for `fnr`, and the net benefit of flagging everybody, which no model can change."""
    table = describe(ScoreTable([0, 0.5, 1], [[[40, 10], [10, 40]]]), 0.5)
    assert {*SHARES, *NUMBERS} - {"fnr"} == set(table) - {"auc_bound", "net_benefit_all", "fnr"}


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        ("AUC below 0.70", "auc below 0.7"),
        ("auc below .7", "auc below 0.7"),
        ("tpr of sex=female below 50%", "tpr of sex=female below 0.5"),
        ("tpr of age band = 25 to 44 below 50 %", "tpr of age band=25 to 44 below 0.5"),
        ("gap equalized odds of race above 0.15", "gap equalized_odds of race above 0.15"),
        ("Selection rate at agency north above 0.3.", "selection_rate at agency north above 0.3"),
        ("people below 500", "people below 500"),
        ("net_benefit_gain below -0.01", "net_benefit_gain below -0.01"),
        ("tpr of age=25 below 30 below 0.2", "tpr of age=25 below 30 below 0.2"),
    ],
)
def test_what_people_write(text: str, reads: str) -> None:
    assert str(read(text)) == reads


@pytest.mark.parametrize(
    "text",
    [
        *(
            "a new law",
            "AUC",
            "AUC below",
            "below 0.7",
            "AUC below about 0.7",
            "AUC falls below 0.7",
            "AUC = 0.7",
        ),
        *("AUC below 70", "AUC below -0.1", "people below 5%", "crime above 0.3", "auc of race above 0.1"),
        *(
            "equalized_odds of race above 0.1",
            "gap auc of race above 0.1",
            "gap tpr above 0.1",
            "AUC below 0.7 or so",
        ),
        *("gap equalized_odds of race=black above 0.1", "gap equalized_odds above 0.1", "AUC below 1e-3"),
        "AUC below 0.7, or a complaint",
    ],
)
def test_what_is_left_to_people(text: str) -> None:
    assert read(text) is None


def test_capitals_of_a_level_matter_only_where_two_are_alike() -> None:
    one = {"groups": {"sex": {"Female": {"tpr": estimate(0.4, 0.3, 0.5)}}}}
    assert judge("tpr of SEX=female below 0.5", one).verdict == "due"
    two = {"groups": {"sex": {"Female": {}, "FEMALE": {}}}}
    assert judge("tpr of sex=female below 0.5", two).verdict == "cannot be told"


def test_the_sentence_never_reads_as_the_other_verdict() -> None:
    found = judge("auc below 0.7", {"overall": {"auc": estimate(0.69999, 0.69, 0.70001)}})
    assert found.sentence == (
        "The ranking (AUC) is 0.69999 (0.69000 to 0.70001), below 0.7 (this may be noise: the interval reaches back over it)."
    )


def test_the_conclusion_names_what_is_due_and_never_hides_what_cannot_be_told() -> None:
    metrics = {
        "overall": {
            "auc": estimate(0.6, 0.5, 0.65),
            "ppv": estimate(0.4, 0.3, 0.5),
            "tpr": estimate(0, 0, 1, False),
        }
    }

    def of(*texts: str) -> tuple[bool | None, str]:
        found = [judge(text, metrics) for text in texts]
        return rereferral.due(found), rereferral.conclusion(found)

    assert of("auc below 0.7", "tpr below 0.5", "a new law") == (
        True,
        "Re-referral is due because the ranking (AUC) is 0.600 (0.500 to 0.650), below 0.7. "
        "Still for people to judge: a new law.",
    )
    is_due, says = of("ppv below 0.2", "tpr below 0.5")
    assert is_due is None
    assert says.startswith("Whether re-referral is due cannot be told: the share found")
    assert of("ppv below 0.2") == (
        False,
        "Re-referral is not due: no threshold that can be measured is crossed.",
    )
    assert of("a new law")[0] is None
    assert of("a new law")[1].endswith("none of the thresholds can be measured.")
    assert of()[0] is None
