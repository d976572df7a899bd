"""Promotion gates: each on the unfavourable end, what is missing fails, and no model is approved for being fair alone."""

import copy
import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fake_result import SECRET, fake_result
from hypothesis import given, settings
from hypothesis import strategies as st
from panels import Signatories

from experiments.audit.attacks import bound
from experiments.audit.checks import check
from federation.server.gates import Gate, GateReport, Gates, GatesError, judge, read_gates
from models.metrics import summarise
from models.scores import ScoreTable, default_edges, tally

CONF = Path(__file__).resolve().parent.parent / "conf" / "gates"
PANEL = Signatories.of("alice", "bob", quorum=2)
NONE: dict[str, Any] = yaml.safe_load((CONF / "none.yaml").read_text())
DEFAULT: dict[str, Any] = yaml.safe_load((CONF / "default.yaml").read_text())
CREATED = datetime(2031, 6, 1, tzinfo=UTC).isoformat()


def estimate(value: float, low: float, high: float, publishable: bool = True) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "publishable": publishable}


def rates(shift: float = 0.0, people: float = 500.0) -> dict[str, Any]:
    return {
        "people": estimate(people, people - 40, people + 40),
        "tpr": estimate(0.5 + shift, 0.44 + shift, 0.57 + shift),
        "ppv": estimate(0.6 + shift, 0.51 + shift, 0.68 + shift),
        "fpr": estimate(0.1 + shift, 0.07 + shift, 0.14 + shift),
        "fnr": estimate(0.5 - shift, 0.43 - shift, 0.56 - shift),
    }


def registered(**changes: Any) -> dict[str, Any]:
    signed = PANEL.signed(PANEL.registration(**changes))
    return {"sha256": signed.digest, "signed": json.loads(signed.canonical)}


def good() -> dict[str, Any]:
    """A result that passes the default gates."""
    gaps = ("demographic_parity", "equal_opportunity", "equalized_odds", "predictive_parity")
    return {
        "schema": 1,
        "run_id": "demo-1",
        "created": CREATED,
        "simulation": False,
        "registration": registered(),
        "privacy": {
            "mechanism": "local",
            "delta": 1e-5,
            "epsilon_to": {"public": 3.0, "coordinator": 3.5, "everybody": 3.75},
        },
        "agencies": {
            "police": {"status": "trained"},
            "health": {"status": "trained"},
            "council": {"status": "refused"},
        },
        "final": {
            "part": "test",
            "metrics": {
                "overall": {
                    "auc": estimate(0.74, 0.72, 0.76),
                    "accuracy": estimate(0.8, 0.77, 0.83),
                    "net_benefit_gain": estimate(0.05, 0.03, 0.07),
                    "observed_expected": estimate(1.0, 0.9, 1.1),
                    "ece": estimate(0.03, 0.01, 0.05),
                    "brier": estimate(0.17, 0.16, 0.18),
                },
                "groups": {
                    "sex": {"female": rates(), "male": rates(0.05)},
                    "age": {"under 25": rates(-0.05, people=90.0), "over": rates()},
                },
                "gaps": {
                    "sex": {name: estimate(0.05, 0.0, 0.12) for name in gaps},
                    "age": {name: estimate(0.1, 0.02, 0.19) for name in gaps},
                },
                "intersections": {
                    "sex=female & age=under 25": rates(-0.1, people=45.0),
                    "sex=male & age=over": rates(),
                },
                "agency_gaps": {
                    "sex": {
                        "police": {name: estimate(0.05, 0.0, 0.15) for name in gaps},
                        "health": {name: estimate(0.1, 0.0, 0.25) for name in gaps},
                    },
                },
            },
        },
    }


def asking(changes: Mapping[str, Any]) -> Gates:
    """Gates of which only `changes` are asked."""
    return read_gates(NONE | dict(changes))


def nested(path: str, value: Any) -> dict[str, Any]:
    group, _, name = path.partition(".")
    return {group: NONE[group] | {name: value}} if name else {path: value}


def only(report: GateReport) -> Gate:
    (gate,) = report.gates
    return gate


def put(result: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """`result` with `value` at the slashes of `path`; ... takes away what is there."""
    changed = copy.deepcopy(result)
    *parents, last = path.split("/")
    at = changed
    for key in parents:
        at = at[key]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return changed


# --- at the bound, on the unfavourable end ----------------------------------------------------------------

OVERALL = "final/metrics/overall"
GROUPS = "final/metrics/groups"
# gate -> (the number that it is held against, whether it is a floor, where that number's estimate is)
NUMBERS: dict[str, tuple[float, bool, str]] = {
    "auc": (0.72, True, f"{OVERALL}/auc"),
    "accuracy": (0.77, True, f"{OVERALL}/accuracy"),
    "ece": (0.05, False, f"{OVERALL}/ece"),
    "brier": (0.18, False, f"{OVERALL}/brier"),
    "worst_group.tpr": (0.44 - 0.05, True, f"{GROUPS}/age/under 25/tpr"),
    "worst_group.ppv": (0.51 - 0.05, True, f"{GROUPS}/age/under 25/ppv"),
    "worst_group.fpr": (0.14 + 0.05, False, f"{GROUPS}/sex/male/fpr"),
    "worst_group.fnr": (0.56 + 0.05, False, f"{GROUPS}/age/under 25/fnr"),
    "agency_gaps.equal_opportunity": (0.25, False, "final/metrics/agency_gaps/sex/health/equal_opportunity"),
    "gaps.demographic_parity": (0.19, False, "final/metrics/gaps/age/demographic_parity"),
    "gaps.equal_opportunity": (0.19, False, "final/metrics/gaps/age/equal_opportunity"),
    "gaps.equalized_odds": (0.19, False, "final/metrics/gaps/age/equalized_odds"),
    "gaps.predictive_parity": (0.19, False, "final/metrics/gaps/age/predictive_parity"),
    "epsilon.public": (3.0, False, "privacy/epsilon_to/public"),
    "epsilon.coordinator": (3.5, False, "privacy/epsilon_to/coordinator"),
    "epsilon.everybody": (3.75, False, "privacy/epsilon_to/everybody"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_passes_at_its_bound_and_fails_just_beyond_it(name: str) -> None:
    end, floor, _ = NUMBERS[name]
    beyond = math.nextafter(end, math.inf if floor else -math.inf)
    at, past = (only(judge(asking(nested(name, number)), good())) for number in (end, beyond))
    assert (at.name, past.name) == (name, name)
    assert (at.passed, past.passed) == (True, False)
    assert (at.bound, past.bound) == (end, beyond)
    assert at.sentence.endswith(": passed.")
    assert past.sentence.endswith(": failed.")


def test_the_gain_must_be_above_its_floor() -> None:
    """At the floor is not above it: a model that is as good as flagging nobody gains exactly 0."""
    for floor, passed in ((0.03, False), (math.nextafter(0.03, 0), True), (None, False)):
        assert judge(asking({"net_benefit_gain": floor}), good()).passed is passed
    nothing = put(good(), f"{OVERALL}/net_benefit_gain", estimate(0.0, 0.0, 0.0))
    assert not judge(asking({"net_benefit_gain": 0.0}), nothing).passed


@pytest.mark.parametrize(
    ("ends", "passed"), [((0.9, 1.1), True), ((0.91, 1.1), False), ((0.9, 1.09), False), ((0.5, 2.0), True)]
)
def test_the_whole_interval_lies_within(ends: tuple[float, float], passed: bool) -> None:
    gate = only(judge(asking({"observed_expected": ends}), good()))
    assert (gate.passed, gate.bound) == (passed, ends)


@pytest.mark.parametrize(("least", "passed"), [(50, True), (51, False)])
def test_people_of_the_smallest_published_group(least: int, passed: bool) -> None:
    gate = only(judge(asking({"min_people": least}), good()))
    assert gate.passed is passed
    assert "published (age: under 25) is 90 (50 to 130); it must be at least" in gate.sentence


@pytest.mark.parametrize(("least", "passed"), [(2, True), (3, False)])
def test_agencies_that_trained(least: int, passed: bool) -> None:
    gate = only(judge(asking({"min_agencies": least}), good()))
    assert (gate.passed, gate.value) == (passed, 2.0)


def test_sentences_are_for_a_panel() -> None:
    said = {gate.name: gate.sentence for gate in judge(read_gates(DEFAULT), good()).gates}
    assert said["auc"] == (
        "The ranking (AUC) is 0.740 (0.720 to 0.760); it must be at least 0.65 even at the low end: passed."
    )
    assert said["worst_group.tpr"] == (
        "The share found of those who had the outcome (true positive rate), where it is worst (age: under 25), is "
        "45.0% (39.0 to 52.0); it must be at least 20% even at the low end: passed."
    )
    assert said["gaps.equalized_odds"] == (
        "The gap in who is found or who is wrongly flagged, whichever is larger (equalised odds), where it is worst "
        "(age), is 10.0 points (2.0 to 19.0); it must be at most 30 points even at the high end: passed."
    )
    assert said["epsilon.coordinator"] == (
        "ε to the coordinator is 3.50 at δ = 1e-05; it must be at most 4: passed."
    )
    assert said["observed_expected"].endswith("it must be from 0.8 to 1.25 from end to end: passed.")
    assert said["registered"] == (
        "The run was registered by Test panel on 2 February 2031; it must be registered before the run: passed."
    )


@given(st.floats(0, 1), st.floats(0, 0.2), st.floats(0, 1), st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_number_never_reads_as_if_the_verdict_were_another(
    value: float, width: float, asked: float, floor: bool
) -> None:
    name = "auc" if floor else "ece"
    found = estimate(value, max(value - width, 0.0), min(value + width, 1.0))
    gate = only(judge(asking({name: asked}), put(good(), f"{OVERALL}/{name}", found)))
    end = found["low"] if floor else found["high"]
    assert gate.passed is (end >= asked if floor else end <= asked)
    inside = gate.found.partition("(")[2].strip(")").split(" to ")
    read = float((inside if len(inside) == 2 else [gate.found] * 2)[0 if floor else 1])
    if abs(end - asked) > 1e-11:
        assert gate.passed is (read >= asked if floor else read <= asked)


@given(st.dictionaries(st.sampled_from(sorted(NUMBERS)), st.floats(0.01, 1.0)), st.floats(0.0, 1.0))
@settings(max_examples=100, deadline=None)
def test_a_stricter_gate_never_passes_more(bounds: dict[str, float], harder: float) -> None:
    loose = judge(_all(bounds), good())
    stricter = {
        name: value + (1 - value) * harder if NUMBERS[name][1] else max(value * (1 - harder), 1e-9)
        for name, value in bounds.items()
    }
    strict = judge(_all(stricter), good())
    before = {gate.name: gate.passed for gate in loose.gates}
    assert all(before[gate.name] for gate in strict.gates if gate.passed)
    assert loose.passed or not strict.passed


def _all(bounds: Mapping[str, float]) -> Gates:
    asked = copy.deepcopy(NONE)
    for path, value in bounds.items():
        group, _, name = path.partition(".")
        if name:
            asked[group][name] = value
        else:
            asked[path] = value
    return read_gates(asked)


# --- what is missing, and what may not be shown -----------------------------------------------------------


@pytest.mark.parametrize("name", [*NUMBERS, "net_benefit_gain", "observed_expected"])
@pytest.mark.parametrize("gone", [..., None, math.nan, 10**400, "0.9"])
def test_a_number_that_is_missing_fails(name: str, gone: Any) -> None:
    _, floor, path = NUMBERS.get(name, (0, True, f"{OVERALL}/{name}"))
    easiest: Any = 0.0 if floor else 1.0 if not name.startswith("epsilon") else 1e6
    gates = asking(nested(name, [0.0, 9.0] if name == "observed_expected" else easiest))
    result = put(good(), path, gone)
    if path.startswith(GROUPS):  # the other groups are judged
        for level in ("sex/female", "sex/male", "age/under 25", "age/over"):
            result = put(result, f"{GROUPS}/{level}", {})
    gate = only(judge(gates, result))
    assert not gate.passed
    assert (gate.value, gate.low, gate.high) == (None, None, None)
    assert "nan" not in gate.sentence.lower()
    if name == "auc":
        assert gate.sentence == "The ranking (AUC) is not in the result; it must be at least 0: failed."


def test_a_number_that_may_not_be_published_fails_and_is_not_repeated() -> None:
    result = good()
    for table in (
        *[result["final"]["metrics"]["overall"]],
        *[level for levels in result["final"]["metrics"]["groups"].values() for level in levels.values()],
        *result["final"]["metrics"]["gaps"].values(),
        *result["final"]["metrics"]["agency_gaps"]["sex"].values(),
    ):
        for name in table:
            table[name] = dict(zip(("value", "low", "high"), SECRET, strict=True)) | {"publishable": False}
    everything = _all({name: 0.5 for name in NUMBERS if not name.startswith("epsilon")}).but(
        min_people=1, every_group_published=True, net_benefit_gain=-1.0, observed_expected=(0.0, 9.0)
    )
    report = judge(everything, result)
    assert not any(gate.passed for gate in report.gates)
    assert len(report.gates) == 17
    assert "cannot be told from noise" in report.gates[0].sentence
    assert not any(str(number)[:5] in report.canonical for number in SECRET)


def test_unshown_groups_fail_only_where_every_group_must_be_published() -> None:
    hidden = put(
        good(), f"{GROUPS}/age/under 25", {k: v | {"publishable": False} for k, v in rates().items()}
    )
    for asked in (nested("worst_group.tpr", 0.44), {"min_people": 400}):
        assert judge(asking(asked), hidden).passed, "it is not in the published groups"
        report = judge(asking(asked | {"every_group_published": True}), hidden)
        assert [gate.passed for gate in report.gates] == [True, False]
        assert report.gates[1].found == "not published: age: under 25"
    assert judge(asking({"every_group_published": True}), good()).passed
    assert not judge(asking({"every_group_published": True}), put(good(), GROUPS, {})).passed


def test_a_rate_that_the_worst_group_is_asked_for_must_be_published_too() -> None:
    hidden = put(good(), f"{GROUPS}/age/under 25/tpr", estimate(0.1, 0.0, 0.2, publishable=False))
    asked = {"every_group_published": True}
    assert judge(asking(asked), hidden).passed
    assert not judge(asking(asked | nested("worst_group.tpr", 0.1)), hidden).passed


def test_people_behind_a_published_rate_must_be_published() -> None:
    odd = put(good(), f"{GROUPS}/sex/male/people", estimate(9, 5, 14, publishable=False))
    gate = only(judge(asking({"min_people": 1}), odd))
    assert not gate.passed
    assert "(sex: male) cannot be told from noise" in gate.sentence


def test_combinations_of_groups_count_where_they_are_asked_for() -> None:
    """The worst group is then young and female, of whom there are 5 at the low end of the noise."""
    asked = _all({"worst_group.tpr": 0.35, "worst_group.fnr": 0.62, "min_people": 50})
    assert judge(asked, good()).passed
    report = judge(asked.but(intersections=True), good())
    assert {gate.name: gate.passed for gate in report.gates} == dict.fromkeys(
        ("worst_group.tpr", "worst_group.fnr", "min_people"), False
    )
    assert all("sex=female & age=under 25" in gate.sentence for gate in report.gates)
    old = put(good(), "final/metrics/intersections", ...)
    assert "is not in the result" in judge(asked.but(intersections=True), old).gates[0].found
    assert not judge(asked.but(intersections=True), old).passed
    no_combinations = put(good(), "final/metrics/intersections", {})
    assert judge(asked.but(intersections=True), no_combinations).passed


def test_gaps_within_agencies_fail_where_only_sums_are_known() -> None:
    asked = _all({"agency_gaps.equal_opportunity": 1.0})
    assert judge(asked, good()).passed
    report = judge(asked, put(good(), "final/metrics/agency_gaps", {}))
    assert "is not in the result" in only(report).sentence


def test_an_attribute_whose_gap_cannot_be_told_fails() -> None:
    """It may be the one with the largest gap, so a small gap elsewhere does not pass."""
    odd = put(good(), "final/metrics/gaps/age/equalized_odds", estimate(0.0, 0.0, 0.0, publishable=False))
    gate = only(judge(asking(nested("gaps.equalized_odds", 0.5)), odd))
    assert not gate.passed
    assert "by age cannot be told from noise" in gate.sentence


def test_without_a_final_test_nothing_passes() -> None:
    numbers = {name: NUMBERS[name][0] for name in NUMBERS if not name.startswith("epsilon")}
    for result in (put(good(), "final", None), put(good(), "final/metrics", None), {}):
        assert not any(gate.passed for gate in judge(_all(numbers), result).gates)


def test_without_privacy_every_ceiling_of_epsilon_fails() -> None:
    result = put(good(), "privacy/epsilon_to", dict.fromkeys(("public", "coordinator", "everybody")))
    report = judge(_all({f"epsilon.{viewer}": 1e6 for viewer in result["privacy"]["epsilon_to"]}), result)
    assert [gate.passed for gate in report.gates] == [False] * 3
    assert "has no limit" in report.gates[0].sentence


def test_a_result_of_an_older_version_fails_and_raises_nothing() -> None:
    report = judge(read_gates(DEFAULT), fake_result())
    failed = {gate.name for gate in report.gates if not gate.passed}
    assert {"net_benefit_gain", "epsilon.public", "registered", "simulation"} <= failed
    assert not judge(read_gates(DEFAULT), {}).passed


# --- fair and useless -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.0, 5.0])
@pytest.mark.parametrize("says", [0.2, 0.6], ids=["flags nobody", "flags everybody"])
def test_a_model_that_says_the_same_of_everybody_has_no_gap_and_fails(says: float, sigma: float) -> None:
    rng = np.random.default_rng(0)
    group, edges = rng.integers(0, 2, 8000), default_edges(20, (0.4,))
    y = (rng.random(8000) < 0.3).astype(int)
    exact = tally(edges, group, np.full(8000, says), y, 2)
    table = ScoreTable(edges, exact.counts + rng.normal(0, sigma, exact.counts.shape), sigma**2)
    metrics = summarise({"all": table}, {"sex": {"female": (0,), "male": (1,)}}, 0.4)
    if sigma == 0:
        assert metrics["gaps"]["sex"]["equalized_odds"]["value"] == 0
    fair = _all({"gaps.demographic_parity": 0.1, "gaps.equalized_odds": 0.1}).but(net_benefit_gain=0.0)
    passed = {gate.name: gate.passed for gate in judge(fair, put(good(), "final/metrics", metrics)).gates}
    assert passed == {"net_benefit_gain": False, "gaps.demographic_parity": True, "gaps.equalized_odds": True}


def test_a_model_that_tells_people_apart_passes() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(-0.8, 1.5, 8000)
    score, edges = 1 / (1 + np.exp(-z)), default_edges(20, (0.4,))
    table = tally(edges, rng.integers(0, 2, 8000), score, (rng.random(8000) < score).astype(int), 2)
    metrics = summarise({"all": table}, {"sex": {"female": (0,), "male": (1,)}}, 0.4)
    report = judge(read_gates(DEFAULT), put(good(), "final/metrics", metrics))
    assert report.passed, [gate.sentence for gate in report.gates if not gate.passed]


# --- the audit --------------------------------------------------------------------------------------------


def audit(
    level: float = 3.2, claim: float = 4.0, check_ok: bool = True, name: str = "local"
) -> dict[str, Any]:
    """As `fedrisk audit` writes it (experiments/audit/command.py), of its own findings."""
    findings = [
        check("sensitivity", True, 0.999, "holds", "breaks", {}).to_dict(),
        check("noise", check_ok, 0.999, "holds", "breaks", {}).to_dict(),
        bound("alone", 0.4, claim, 0.95).to_dict(),
        bound("Gaussian pair", level, claim, 0.95).to_dict(),
    ]
    ok = all(finding["ok"] for finding in findings)
    settings = [{"name": f"{name}, logistic, q = 0.1", "findings": findings, "ok": ok}]
    return {
        "schema": 1,
        "settings": settings,
        "membership": [{"group": "everyone", "ok": True}],
        "exceeded": [] if ok else ["something"],
        "ok": ok,
    }


def test_an_audit_passes_up_to_its_claim_and_where_every_check_holds() -> None:
    gates = asking({"audit_required": True})
    gate = only(judge(gates, good(), audit=audit()))
    assert (gate.passed, gate.value, gate.bound) == (True, 3.2, 4.0)
    assert gate.sentence.startswith(
        "The strongest attack of the audit (local, logistic, q = 0.1: Gaussian pair) shows an ε of at least 3.20, and 4 "
        "is claimed; "
    )
    assert judge(gates, good(), audit=audit(level=4.0)).passed
    assert not judge(gates, good(), audit=audit(level=math.nextafter(4.0, 5.0))).passed
    fails = only(judge(gates, good(), audit=audit(check_ok=False)))
    assert not fails.passed
    assert "failed at local, logistic, q = 0.1: noise" in fails.sentence


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (None, "No audit was given"),
        (audit(name="shared"), "did not try the run's own mechanism, local noise"),
        ({}, "no audit that can be read"),
        ({"schema": 2, "settings": []}, "no audit that can be read"),
        (audit() | {"settings": "everything"}, "no audit that can be read"),
        (audit() | {"membership": [{"group": "everyone", "ok": False}]}, "failed at membership, everyone"),
        (audit() | {"ok": False}, "is claimed"),
        (put(audit(), "settings", [{"name": "local, x", "findings": [{"kind": "bound"}]}]), "can be read"),
    ],
)
def test_an_audit_that_does_not_show_it_fails(given: dict[str, Any] | None, why: str) -> None:
    gate = only(judge(asking({"audit_required": True}), good(), audit=given))
    assert not gate.passed
    assert why in gate.sentence


def test_one_bound_above_its_claim_is_not_hidden_by_another_of_its_name() -> None:
    """Whatever the file says of it: the numbers are compared again."""
    given = audit()
    worse = bound("alone", 4.5, 4.0, 0.95).to_dict() | {"ok": True}
    given["settings"][0]["findings"].insert(0, worse)
    gate = only(judge(asking({"audit_required": True}), good(), audit=given))
    assert (gate.passed, gate.value) == (False, 4.5)


def test_an_audit_that_is_given_is_judged_though_none_is_required() -> None:
    gates = asking({"min_agencies": 1})
    assert [gate.name for gate in judge(gates, good()).gates] == ["min_agencies"]
    assert judge(gates, good(), audit=audit()).passed
    assert not judge(gates, good(), audit=audit(level=9.0)).passed


def test_there_is_nothing_to_audit_without_privacy() -> None:
    gate = only(
        judge(asking({"audit_required": True}), put(good(), "privacy/mechanism", "none"), audit=audit())
    )
    assert not gate.passed
    assert "without privacy" in gate.sentence


# --- whose run it was -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("registration", "why"),
    [
        (..., "has no registration;"),
        (None, "has no registration;"),
        ({"sha256": "0" * 64, "signed": {}}, "cannot be read"),
        (registered() | {"sha256": "0" * 64}, "another registration than its SHA-256 names"),
        (registered(registered=datetime(2031, 6, 1, tzinfo=UTC)), "not older than the result"),
        (put(registered(), "signed/signatures", {}), "that nobody signed"),
        (
            registered() | {"signed": json.loads(PANEL.signed(PANEL.status("0" * 64)).canonical)},
            "cannot be read",
        ),
    ],
)
def test_a_registration_that_does_not_count_fails(registration: Any, why: str) -> None:
    gate = only(judge(asking({"registered": True}), put(good(), "registration", registration)))
    assert not gate.passed
    assert why in gate.sentence
    assert not judge(
        asking({"agencies_as_registered": True}), put(good(), "registration", registration)
    ).passed


def test_a_registered_run_passes_and_so_do_its_agencies() -> None:
    report = judge(asking({"registered": True, "agencies_as_registered": True}), good())
    assert [gate.name for gate in report.gates] == ["registered", "agencies_as_registered"]
    assert report.passed


def test_only_registered_agencies_train() -> None:
    asked = asking({"agencies_as_registered": True})
    gate = only(judge(asked, put(good(), "agencies/council/status", "trained")))
    assert not gate.passed
    assert "not registered: council" in gate.sentence
    assert not judge(asked, put(good(), "agencies", {})).passed


@pytest.mark.parametrize(
    ("simulation", "passed"), [(False, True), (True, False), (None, False), (..., False)]
)
def test_a_simulation_fails_unless_it_is_allowed(simulation: Any, passed: bool) -> None:
    result = put(good(), "simulation", simulation)
    assert only(judge(asking({"simulation_allowed": False}), result)).passed is passed
    assert judge(asking({"min_agencies": 1}), result).passed, "none.yaml allows it"


def test_where_nothing_is_asked_nothing_is_passed() -> None:
    report = judge(asking({}), good())
    assert not report.passed
    assert only(report).sentence.startswith("Nothing is asked of this model")


# --- the report binds what was asked and what was found ---------------------------------------------------


def test_a_report_is_bound_by_its_hash_and_reads_back() -> None:
    report = judge(read_gates(DEFAULT), good(), audit=audit())
    again = GateReport.model_validate_json(report.canonical)
    assert (again, again.sha256) == (report, report.sha256)
    assert judge(read_gates(DEFAULT), copy.deepcopy(good()), audit=audit()).sha256 == report.sha256
    assert json.loads(report.canonical)["asked"]["auc"] == 0.65


def test_its_hash_changes_with_every_gate_and_every_finding() -> None:
    hashes = [judge(read_gates(DEFAULT), good()).sha256]
    everything = _all({name: end for name, (end, _, _) in NUMBERS.items()})
    hashes += [judge(everything, good()).sha256]
    hashes += [judge(everything.but(**change), good()).sha256 for change in _other_gates()]
    base = [judge(everything, put(good(), path, value)).sha256 for path, value in _other_findings()]
    assert len({*hashes, *base}) == len(hashes) + len(base)
    assert (
        judge(everything, good(), audit=audit()).sha256 != judge(everything, good(), audit=audit(3.1)).sha256
    )


def _other_gates() -> list[dict[str, Any]]:
    others: list[dict[str, Any]] = [
        {name: 0.5} for name in ("auc", "accuracy", "net_benefit_gain", "ece", "brier")
    ]
    for group in ("worst_group", "gaps", "agency_gaps", "epsilon"):
        others += [{group: NONE[group] | {name: 0.5}} for name in NONE[group]]
    others += [{"observed_expected": (0.1, 2.0)}, {"min_people": 7}, {"min_agencies": 1}]
    flags = (
        "audit_required",
        "intersections",
        "every_group_published",
        "registered",
        "agencies_as_registered",
    )
    return [*others, *({flag: True} for flag in flags), {"simulation_allowed": False}]


def _other_findings() -> list[tuple[str, Any]]:
    spent = [(path, 2.5) for _, _, path in NUMBERS.values() if path.startswith("privacy")]
    shown = [
        (path, estimate(end, end, end)) for end, _, path in NUMBERS.values() if not path.startswith("privacy")
    ]
    return [("run_id", "demo-2"), *spent, *shown]


@given(st.dictionaries(st.sampled_from(sorted(good())), st.none() | st.integers() | st.text(max_size=3)))
@settings(max_examples=100, deadline=None)
def test_no_result_raises_and_every_report_reads_back(odd: dict[str, Any]) -> None:
    report = judge(read_gates(DEFAULT | {"audit_required": True}), good() | odd)
    assert GateReport.model_validate_json(report.canonical).sha256 == report.sha256
    assert not report.passed, "no audit was given"


# --- the files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["default", "none"])
def test_the_files_of_conf_say_everything_that_can_be_asked(name: str) -> None:
    given = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    gates = read_gates(given)
    assert json.loads(gates.canonical) == given
    assert read_gates(json.loads(gates.canonical)).sha256 == gates.sha256


def test_what_is_asked_where_nothing_is_said() -> None:
    assert [gate.name for gate in judge(read_gates({}), good()).gates] == [
        "net_benefit_gain", "registered", "agencies_as_registered", "simulation",
    ]  # fmt: skip
    assert judge(read_gates({}), good()).passed


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"no such gate": 1}, "no such gate is not a known setting"),
        ({"worst_group": {"auc": 0.5}}, "worst_group.auc is not a known setting"),
        ({"gaps": None}, "gaps must be a group of settings, got None"),
        ({"auc": 1.5}, "auc should be less than or equal to 1, got 1.5"),
        ({"auc": math.nan}, "auc should be"),
        ({"net_benefit_gain": math.inf}, "net_benefit_gain should be"),
        ({"epsilon": {"public": 0}}, "epsilon.public should be greater than 0, got 0"),
        ({"epsilon": {"public": math.inf}}, "epsilon.public should be a finite number"),
        ({"min_people": 0}, "min_people should be greater than or equal to 1, got 0"),
        (
            {"observed_expected": [1.2, 0.8]},
            "observed_expected must be two numbers from 0, the smaller first",
        ),
        ({"observed_expected": 1.0}, "observed_expected should be a valid tuple, got 1.0"),
        ([], "this must be a group of settings, got []"),
    ],
)
def test_gates_that_cannot_be_are_sentences(given: Any, sentence: str) -> None:
    with pytest.raises(GatesError) as refusal:
        read_gates(given)
    assert sentence in str(refusal.value)


def test_every_problem_has_its_line() -> None:
    with pytest.raises(GatesError) as refusal:
        read_gates({"auc": -1, "brier": 2, "min_people": "many"})
    assert len(str(refusal.value).splitlines()) == 3


def test_a_group_that_nobody_can_judge_is_named_beside_the_worst_that_was() -> None:
    result = good()
    levels = result["final"]["metrics"]["groups"]
    attribute = next(iter(levels))
    level = next(iter(levels[attribute]))
    levels[attribute][level]["tpr"]["publishable"] = False
    gate = only(judge(asking({"worst_group": {"tpr": 0.01}}), result))
    assert f"Not judged, because their numbers are not published: {attribute}: {level}" in gate.sentence
