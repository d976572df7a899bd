"""The disclosure rule: what it withholds and rounds, and that nothing of a result goes round it."""

import ast
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.experiment import Evaluation, SettingsError, checked
from federation.server.analysis import analysis
from federation.server.card import recalibration_map
from models import disclosure, metrics
from models.capacity import Capacity
from models.disclosure import DECIMALS, PROFILES, Disclosure, custom, profile
from models.scores import Noised, ScoreTable, default_edges, people, proportion, tally

ROOT = Path(__file__).resolve().parent.parent
EDGES = [0.0, 0.1, 0.3, 0.5, 0.7, 1.0]
MARGINS = {"sex": {"female": (0, 1, 2), "male": (3, 4, 5)}, "age": {"a": (0, 3), "b": (1, 4), "c": (2, 5)}}
RULES = [profile("none"), profile("uk-default"), custom(20, 7), custom(30, 1)]
rules = st.sampled_from(RULES)
counts_of_people = st.lists(st.integers(0, 40), min_size=60, max_size=60).map(
    lambda flat: np.array(flat, float).reshape(6, 5, 2)
)


def tables(counts: np.ndarray, sigma: float, seed: int = 0) -> dict[str, ScoreTable]:
    """Three agencies with these people each, one of them with few."""
    rng = np.random.default_rng(seed)
    shares = {"police": 1.0, "health": 0.5, "council": 0.1}
    return {
        name: ScoreTable(EDGES, np.floor(share * counts) + rng.normal(0, sigma, counts.shape), sigma**2)
        for name, share in shares.items()
    }


def everything(counts: np.ndarray, sigma: float, rule: Disclosure) -> dict[str, Any]:
    """Whatever a run writes of its tables."""
    test, tune = tables(counts, sigma), tables(counts, sigma, seed=1)
    found = metrics.summarise(test, MARGINS, 0.5, rule, capacity=Capacity(0.1, 0.7, "tune"))
    return found | {"analysis": analysis(tune, test, MARGINS, 0.5, rule, per_agency=True)}


def estimates(value: Any, at: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every estimate inside `value`, by the name that it has there."""
    if isinstance(value, dict) and "publishable" in value:
        yield at, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from estimates(inner, f"{at}/{name}")
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from estimates(inner, f"{at}/{place}")


# --- laws ---------------------------------------------------------------------------------------------


@given(counts_of_people, st.sampled_from([0.0, 3.0]), rules)
@settings(max_examples=6, deadline=None)
def test_no_number_is_written_that_may_not_be_published_and_no_count_below_the_minimum(
    counts: np.ndarray, sigma: float, rule: Disclosure
) -> None:
    found = list(estimates(everything(counts, sigma, rule)))
    assert len(found) > 300
    for where, estimate in found:
        numbers = [estimate[name] for name in ("value", "low", "high")]
        if not estimate["publishable"]:
            assert numbers == [None] * 3, where
        elif where.endswith("/people"):
            assert numbers[0] >= rule.minimum - rule.rounding / 2, where
            if rule.rounding > 1:
                assert all(number % rule.rounding == 0 for number in numbers), where


@given(counts_of_people, rules)
@settings(max_examples=6, deadline=None)
def test_who_is_fewer_than_the_minimum_has_no_number_at_all(counts: np.ndarray, rule: Disclosure) -> None:
    """Without noise the true count is the one that is judged."""
    everyone = sum(counts.sum() * 0 + table.counts for table in tables(counts, 0.0).values())
    found = everything(counts, 0.0, rule)
    for attribute, levels in MARGINS.items():
        for level, groups in levels.items():
            shown = [e["publishable"] for _, e in estimates(found["groups"][attribute][level])]
            if everyone[list(groups)].sum() < rule.minimum:
                assert not any(shown)
    for group, (name, described) in enumerate(found["intersections"].items()):
        small = everyone[group].sum() < rule.minimum
        assert described["people"]["publishable"] is not small, name
        assert not small or not any(e["publishable"] for _, e in estimates(described)), name


@given(
    st.integers(0, 400),
    st.integers(0, 400),
    st.sampled_from([rule for rule in RULES if rule.rounding > 1]),
)
def test_a_rate_is_one_of_rounded_counts_and_its_interval_holds_the_true_one(
    hits: int, misses: int, rule: Disclosure
) -> None:
    found = proportion(Noised(hits, 0.0), Noised(misses, 0.0), disclosure=rule)
    assert found.publishable is (hits + misses >= rule.minimum and found.value is not None) or found.high == 1
    if found.value is not None and found.low is not None and found.high is not None:
        shown_hits, shown_misses = rule.rounded(hits), rule.rounded(misses)
        assert found.value == shown_hits / (shown_hits + shown_misses)
        assert found.low <= hits / max(hits + misses, 1) <= found.high, (
            "rounding alone never leaves the interval"
        )


@given(st.floats(-50, 5000), rules)
def test_rounding_is_to_the_nearest_and_changes_nothing_twice(count: float, rule: Disclosure) -> None:
    once = rule.rounded(count)
    assert abs(once - count) <= (rule.rounding / 2 if rule.rounding > 1 else 0)
    assert rule.rounded(once) == once


@given(st.integers(0, 9), st.integers(10, 500))
def test_what_is_withheld_is_not_the_difference_of_what_is_published(few: int, many: int) -> None:
    """uk-default, no noise: each difference is that of several counts of the withheld, `minimum` of them or more apart."""
    rule = profile("uk-default")
    shown = rule.rounded(few + many) - rule.rounded(many)
    fits = [
        count
        for count in range(20)
        if any(rule.rounded(count + others) - rule.rounded(others) == shown for others in range(10, 30))
    ]
    assert few in fits
    assert len([count for count in fits if abs(count - shown) < rule.rounding]) >= rule.rounding


def test_only_one_function_writes_an_estimate() -> None:
    """`Estimate.to_dict`, which knows no way to write what may not be published."""
    writers = [
        path.relative_to(ROOT).as_posix()
        for package in ("models", "federation")
        for path in sorted((ROOT / package).rglob("*.py"))
        if "publishable" in path.read_text()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Dict)
        and "publishable" in {key.value for key in node.keys if isinstance(key, ast.Constant)}
    ]
    assert writers == ["models/scores.py"]


# --- what follows from the profile --------------------------------------------------------------------


def test_the_profiles() -> None:
    assert PROFILES == {"none": (1, 1), "uk-default": (10, 5)}
    assert profile("uk-default").to_dict() == {"profile": "uk-default", "minimum": 10, "rounding": 5}
    assert custom(15, 5).to_dict() == {"profile": "custom", "minimum": 15, "rounding": 5}


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (("custom", 0, 5), "whole numbers from 1"),
        (("custom", 10, 2.5), "whole numbers from 1"),
        (("custom", True, 1), "whole numbers from 1"),
        (("uk-default", 5, 5), "is a minimum of 10 and a rounding of 5"),
    ],
)
def test_no_rule_is_called_what_it_is_not(values: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Disclosure(*values)


def test_counts_are_judged_before_they_are_rounded() -> None:
    """8 people would be rounded to 10, which is published; 12 are published as 10."""
    table = [ScoreTable([0, 0.5, 1], [[[n, 0], [0, 0]]]) for n in (8, 12)]
    found = [people(each, disclosure=profile("uk-default")) for each in table]
    assert [(each.value, each.publishable) for each in found] == [(10, False), (10, True)]


def test_numbers_of_all_bins_have_few_digits_where_counts_are_rounded() -> None:
    counts = np.random.default_rng(0).integers(0, 40, (6, 5, 2)).astype(float)
    exact, coarse = (
        everything(counts, 0.0, rule)["overall"] for rule in (profile("none"), profile("uk-default"))
    )
    for name in ("auc", "brier", "log_loss", "observed_expected", "ece"):
        low, value, high = (coarse[name][end] for end in ("low", "value", "high"))
        assert value == round(exact[name]["value"], DECIMALS) != exact[name]["value"]
        assert low <= exact[name]["low"] < exact[name]["high"] <= high
        assert high - low < exact[name]["high"] - exact[name]["low"] + 3 * 10**-DECIMALS


def test_the_map_of_the_card_has_few_digits_too_and_is_no_surer_for_it() -> None:
    rng = np.random.default_rng(2)
    score = rng.beta(2, 3, 3000)
    table = tally(default_edges(), np.zeros(3000, int), score, rng.random(3000) < score, 1)
    exact = recalibration_map(table, profile("none"))
    coarse = recalibration_map(table, profile("uk-default"))
    assert exact is not None
    assert coarse is not None
    assert coarse.intercept == round(exact.intercept, DECIMALS) != exact.intercept
    assert coarse.slope == round(exact.slope, DECIMALS) != exact.slope
    assert all(float(f"{each:.3g}") == each for each in coarse.covariance)
    for logit in np.linspace(-6, 6, 25):
        variances = [
            aa + 2 * ab * logit + bb * logit**2 for aa, ab, bb in (exact.covariance, coarse.covariance)
        ]
        assert variances[0] <= variances[1] <= 1.05 * variances[0]
    assert recalibration_map(table, custom(3001)) is None


def test_noise_is_still_noise_where_nothing_is_withheld() -> None:
    assert not people(
        ScoreTable([0, 0.5, 1], [[[4.0, 3], [2, 5]]], 25.0), disclosure=profile("none")
    ).publishable


# --- the setting --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ("none", profile("none")),
        ("uk-default", profile("uk-default")),
        ({"minimum": 15, "rounding": 5}, custom(15, 5)),
        ({"minimum": 15}, custom(15, 1)),
    ],
)
def test_the_setting_is_a_profile_or_a_rule_of_ones_own(given: Any, rule: Disclosure) -> None:
    evaluation = Evaluation(disclosure=given)
    assert evaluation.rule == rule
    again = Evaluation.model_validate_json(evaluation.canonical)
    assert again.rule == rule
    assert again.sha256 == evaluation.sha256
    assert (evaluation.sha256 == Evaluation().sha256) is (rule == profile("uk-default"))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("uk", "disclosure must be none, uk-default, or a minimum and a rounding as in"),
        (None, "disclosure must be none, uk-default"),
        ({"minimum": 0}, "disclosure minimum should be greater than or equal to 1, got 0"),
        ({"rounding": 5}, "disclosure minimum is missing"),
        ({"minimum": 10, "round": 5}, "disclosure round is not a known setting"),
    ],
)
def test_a_setting_that_cannot_be_is_one_sentence(given: Any, sentence: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        checked(Evaluation, {"disclosure": given})
    assert str(refusal.value).startswith(sentence)
    assert "\n" not in str(refusal.value)


def test_the_json_of_a_result_reads_back() -> None:
    counts = np.random.default_rng(0).integers(0, 40, (6, 5, 2)).astype(float)
    found = everything(counts, 3.0, profile("uk-default"))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert all(math.isfinite(e["value"]) for _, e in estimates(found) if e["publishable"])
    assert disclosure.UNROUNDED.rounding == 1
