"""Training that tries to be fairer: what multipliers may do at a node, and what the coordinator makes of tables."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import CONTRACT, MakeStudy, permits
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_federation import federate, last, ledger_of, same
from test_policy import POLICY, REFUSALS, at, deployed
from test_policy import ask as ask_node
from test_rounds import AGENCIES, FACTS, honest, scripted
from test_train import build, fit, flat, no_privacy, of, people, per_person_gradients

from clients import rules
from clients.desk import policy_words
from clients.node import open_node
from clients.policy import Policy
from clients.records.data import Part
from clients.train import clipped_sum, dp_sum, simulated_sampling
from experiments.baselines import _message
from experiments.benchmarks import fairness as comparison
from experiments.planning import _toml
from federation import multipliers, wire
from federation.experiment import Experiment, Fairness, SettingsError, Strategy
from federation.plan import Reason, TrainPlan
from federation.privacy import epsilon
from federation.protocol import Refusal, RoundOrder
from federation.server import fair, strategies
from federation.server.rounds import run_federation
from federation.server.strategies import Update
from models import calibration
from models.contract import Contract
from models.scores import ScoreTable, default_edges, tally
from models.spec import ModelSpec

SPECS = [ModelSpec("logistic"), ModelSpec("mlp", (4,)), ModelSpec("residual", (4,))]
every_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
every_shape = pytest.mark.parametrize("k", [1, 3], ids=["one row", "three rows"])
BY_RACE = {"method": "group_multipliers", "by": "race", "most": 3.0}
BY_SEX = ("fairness=group_multipliers", "fairness.by=sex")


# --- multipliers, as public numbers ---------------------------------------------------------------------


@given(
    values=arrays(np.float64, st.integers(2, 20), elements=st.floats(1e-6, 1e6)), most=st.floats(1.0, 20.0)
)
def test_multipliers_are_within_their_bounds_of_mean_one_and_keep_their_order(
    values: np.ndarray, most: float
) -> None:
    found = multipliers.bounded(values, most)
    assert found.min() >= 1 / most
    assert found.max() <= most
    assert found.mean() == pytest.approx(1, abs=1e-9)
    assert (np.diff(found[np.argsort(values)]) >= 0).all()


def test_multipliers_that_are_right_already_stay() -> None:
    given = [0.5, 1.5, 0.8, 1.2]
    np.testing.assert_allclose(multipliers.bounded(given, 3.0), given, rtol=1e-12)
    with pytest.raises(ValueError, match="finite numbers above 0"):
        multipliers.bounded([0.0, 2.0], 3.0)


@given(values=arrays(np.float64, 8, elements=st.floats(1e-3, 1e3)))
def test_whatever_the_coordinator_makes_the_nodes_take(values: np.ndarray) -> None:
    found = multipliers.bounded(values, 3.0).tolist()
    assert multipliers.problem(found, 3.0, 4) is None
    shares = multipliers.shares(found)
    assert shares.shape == (4, 2)
    assert shares.max() == 1.0
    assert shares.min() >= 1 / 9
    assert np.array_equal(multipliers.shares([1.0] * 8), np.ones((4, 2)))


WRONG = {
    "too few": ([1.0, 1.0], "two multipliers for each of 2 groups, or none, got 2"),
    "too large": ([3.5, 0.5, 0.0, 0.0], "not within 1/3 and 3"),
    "too small": ([0.1, 1.9, 1.0, 1.0], "not within 1/3 and 3"),
    "not a number": ([math.nan, 1.0, 1.0, 1.0], "not within"),
    "infinite": ([math.inf, 1.0, 1.0, 1.0], "not within"),
    "another mean": ([2.0, 1.0, 1.0, 1.0], "the mean of the multipliers is not 1"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_multipliers_that_break_a_rule_are_told(case: str) -> None:
    values, sentence = WRONG[case]
    assert sentence in (multipliers.problem(values, 3.0, 2) or "")


def test_people_of_one_level_count_alike_whatever_else_they_are() -> None:
    """A plan, and who approves it, says by which attribute people count: an order cannot single out another's."""
    by_sex = [(0, 1), (2, 3)]
    fine = [0.5, 1.5, 0.5, 1.5, 1.25, 0.75, 1.25, 0.75]
    assert multipliers.problem(fine, 3.0, 4, by_sex) is None
    by_race = [0.5, 1.5, 1.25, 0.75, 0.5, 1.5, 1.25, 0.75]
    assert multipliers.problem(by_race, 3.0, 4, [(0, 2), (1, 3)]) is None
    found = multipliers.problem(by_race, 3.0, 4, by_sex)
    assert found == "people of one level, with one outcome, have several multipliers"


# --- what a person moves ----------------------------------------------------------------------------------


@every_spec
@every_shape
def test_one_person_moves_the_sum_by_at_most_c_whatever_the_shares_are(spec: ModelSpec, k: int) -> None:
    """Neighbouring tables, huge rows among them, shares from 0 to 1: C is what the noise is scaled to."""
    rng, module = np.random.default_rng(5), build(spec, 5, seed=2)
    everyone = people(12, k, d=5)
    everyone[0][::3] *= 1e4
    c, share = 0.7, torch.from_numpy(rng.permutation([0.0, 1 / 9, 0.4, 1.0] * 3))
    whole = flat(clipped_sum(module, *everyone, c, share))
    exact = {"max_grad_norm": c, "sample_rate": 1.0, "sampling": simulated_sampling(0)}
    whole64 = dp_sum(module, *everyone, share=share, **exact)  # type: ignore[arg-type]
    for one in (0, 7):
        rest = [i for i in range(12) if i != one]
        moved = whole - flat(clipped_sum(module, *of(everyone, rest), c, share[rest]))
        assert np.linalg.norm(moved) <= c * float(share[one]) + 1e-5 * c
        moved = whole64 - dp_sum(module, *of(everyone, rest), share=share[rest], **exact)  # type: ignore[arg-type]
        assert np.linalg.norm(moved) <= c * float(share[one]) + 1e-9 * c


@every_spec
@every_shape
@pytest.mark.parametrize("c", [0.3, math.inf])
def test_the_sum_is_of_clipped_gradients_times_shares(spec: ModelSpec, k: int, c: float) -> None:
    """The slow way: autograd on one person after another."""
    module, everyone = build(spec, 5, seed=2), people(20, k, d=5)
    share = torch.rand(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    found = flat(clipped_sum(module, *everyone, c, share))
    gradients = per_person_gradients(module, *everyone)
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    clipped = gradients * np.minimum(1, c / np.maximum(norms, 1e-12))
    np.testing.assert_allclose(found, share.numpy().astype(float) @ clipped, atol=2e-4)


@every_spec
@every_shape
def test_shares_of_one_change_no_bit(spec: ModelSpec, k: int) -> None:
    one, other = (build(spec, 5, seed=2) for _ in range(2))
    plain = fit(one, people(40, k, d=5), no_privacy(max_grad_norm=0.5), steps=3)
    shared = fit(other, people(40, k, d=5), no_privacy(max_grad_norm=0.5), steps=3, share=np.ones(40))
    for name, value in plain.items():
        assert np.array_equal(value, shared[name])


@pytest.mark.parametrize("share", [np.full(7, 0.5), np.array([1.5, *[1.0] * 7]), np.full(8, np.nan)])
def test_shares_that_do_not_fit_are_refused(share: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"share must be \(n,\), each in \[0, 1\]"):
        fit(build(SPECS[0], 5, seed=2), people(8, 1, d=5), no_privacy(), share=share)


# --- what the tables say ------------------------------------------------------------------------------------

EDGES = default_edges(8, (0.5,))
LEVELS = {"one": (0,), "two": (1,)}


def table(rates: dict[tuple[int, int], float], sigma: float = 0.0, n: int = 1000) -> ScoreTable:
    """n people of each (group, outcome), so many of whom are flagged."""
    of, y = np.array([(g, o) for g, o in rates for _ in range(n)]).T
    score = np.concatenate([np.where(np.arange(n) < n * rate, 0.9, 0.1) for rate in rates.values()])
    exact = tally(EDGES, of, score, y, 2)
    return ScoreTable(EDGES, exact.counts, sigma**2)


BEHIND = {(0, 0): 0.1, (0, 1): 0.4, (1, 0): 0.3, (1, 1): 0.8}


def test_the_gaps_are_those_of_the_rates() -> None:
    """TPR 0.4 and 0.8, so 0.6 of all; FPR 0.1 and 0.3, so 0.2 of all."""
    found = fair.gaps(Fairness(by="g"), table(BEHIND), LEVELS, 0.5)
    assert found == {
        "g=one, outcome 0": pytest.approx(-0.1),
        "g=one, outcome 1": pytest.approx(0.2),
        "g=two, outcome 0": pytest.approx(0.1),
        "g=two, outcome 1": pytest.approx(-0.2),
    }
    only = fair.gaps(Fairness(by="g", criterion="equal_opportunity"), table(BEHIND), LEVELS, 0.5)
    assert [only[name] for name in found] == pytest.approx([0.0, 0.2, 0.0, -0.2])


def test_who_is_behind_counts_more_and_a_gap_that_closes_brakes() -> None:
    settings = Fairness(by="g", rate=1.0, step=0.5)
    gaps = fair.gaps(settings, table(BEHIND), LEVELS, 0.5)
    first = fair.next_multipliers(settings, gaps, {}, {})
    assert first["g=one, outcome 1"] > 1 > first["g=two, outcome 1"]
    assert first["g=two, outcome 0"] > first["g=one, outcome 0"]
    ratio = math.log(first["g=one, outcome 1"] / first["g=two, outcome 1"])
    assert ratio == pytest.approx(0.4)  # rate x the difference of the gaps
    half = {name: gap / 2 for name, gap in gaps.items()}
    again = fair.next_multipliers(settings, half, gaps, first)
    assert again == pytest.approx(first)  # 2 x half - whole is nothing


@given(gaps=st.lists(st.floats(-1, 1), min_size=4, max_size=4), rate=st.floats(0.01, 100))
def test_no_step_is_longer_than_said(gaps: list[float], rate: float) -> None:
    settings = Fairness(by="g", rate=rate, step=0.3, most=100.0)
    names = [fair.key("g", level, y) for level in LEVELS for y in (0, 1)]
    found = list(fair.next_multipliers(settings, dict(zip(names, gaps, strict=True)), {}, {}).values())
    assert max(found) / min(found) <= math.exp(0.6) * (1 + 1e-9)


def test_what_cannot_be_told_from_noise_moves_nothing() -> None:
    found = fair.gaps(Fairness(by="g"), table(BEHIND, sigma=300.0), LEVELS, 0.5)
    assert set(found.values()) == {0.0}


def test_the_floor_stops_them_for_good(make_study: MakeStudy) -> None:
    experiment = make_study(*BY_SEX, "evaluation.bins=8").experiment
    plan = experiment.plan("run-1", simulation=True).but(privacy=NO_NOISE)
    state = fair.start(experiment.settings.fairness)
    assert state is not None

    def after(state: fair.State, measured: int, rates: dict[tuple[int, int], float]) -> fair.State:
        counts = table(rates).counts
        return fair.after(state, experiment, plan, measured, {f"tune/{measured}/north": counts})

    state = after(state, 1, BEHIND)
    assert fair.of_order(state, experiment) != ()
    state = after(state, 2, {**BEHIND, (0, 0): 0.12})  # accuracy 0.695 instead of 0.7: within the floor
    assert state["stopped"] is None
    state = after(state, 3, {**BEHIND, (0, 0): 0.5})
    assert state["stopped"].startswith("after round 3 the lower end of the tune accuracy was 0.")
    assert fair.of_order(state, experiment) == (1.0,) * 4
    assert after(state, 4, BEHIND) == state
    told = fair.facts(experiment.settings.fairness, state)
    assert told is not None
    assert told["stopped"] == state["stopped"]
    assert [entry["round"] for entry in told["history"]] == [3, 4, 5]


@pytest.mark.parametrize("method", ["group_multipliers", "qffl"])
def test_what_counts_how_much_follows_from_what_may_be_published(method: str, make_study: MakeStudy) -> None:
    """`history` is in result.json: tables of which the same is published must not be told apart by it."""
    more = ("fairness.by=sex",) if method == "group_multipliers" else ()

    def history(few: int, rule: str) -> Any:
        """One agency has many people, the other as many of one level and `few` of the other, all with the outcome and missed."""
        study = make_study("evaluation.bins=8", f"fairness={method}", *more, f"evaluation.disclosure={rule}")
        plan = study.experiment.plan("run-1", simulation=True).but(privacy=NO_NOISE)
        start, many = fair.start(study.experiment.settings.fairness), table(BEHIND).counts * 100
        south = np.zeros_like(many)
        south[0], south[1, 0, 1] = many[0], few
        if method == "group_multipliers":
            many = many * [[[1.0]], [[0.0]]]  # nobody else of that level
        assert start is not None
        return fair.after(start, study.experiment, plan, 1, {"tune/1/north": many, "tune/1/south": south})[
            "history"
        ]

    for one, other in ((28, 29), (48, 49)):  # fewer than the minimum, and rounded alike
        assert history(one, "none") != history(other, "none")
        assert history(one, "{minimum: 40, rounding: 20}") == history(other, "{minimum: 40, rounding: 20}")


NO_NOISE = no_privacy(max_grad_norm=1.0)


# --- q-FFL ------------------------------------------------------------------------------------------------


def weighed_step(
    experiment: Experiment, losses: dict[str, float], deltas: dict[str, np.ndarray]
) -> np.ndarray:
    """The change of FedAvg on what `fair.weighed` makes of the agencies' changes, of weights 1, 2, 3."""
    state = {"losses": losses, "now": losses}
    updates = [
        Update(_message(), {"w": delta.astype(np.float32)}, weight, {}, name)
        for weight, (name, delta) in enumerate(deltas.items(), start=1)
    ]
    weights = {"w": np.zeros(2, np.float32)}
    combiner = strategies.build(Strategy(name="fedavg"))
    return strategies.combine(combiner, 1, weights, fair.weighed(state, experiment, updates))["w"]


DELTAS = {"a": np.array([0.3, -0.1]), "b": np.array([-0.2, 0.5]), "c": np.array([0.1, 0.1])}
LOSSES = {"a": 0.4, "b": 0.9, "c": 0.6}


@pytest.mark.parametrize("q", [0.0, 0.5, 1.0, 3.0])
def test_a_step_of_q_ffl_is_that_of_the_paper(q: float, make_study: MakeStudy) -> None:
    """Algorithm 2 by hand: Delta_k = L F^q d_k, h_k = q F^(q-1) |L d_k|^2 + L F^q, each with its public weight."""
    experiment = make_study("fairness=qffl", f"fairness.q={q}", "local.learning_rate=0.25").experiment
    top, bottom = np.zeros(2), 0.0
    for p, name in enumerate(DELTAS, start=1):
        f, d = LOSSES[name], DELTAS[name] / 0.25
        top += p * f**q * d
        bottom += p * (q * f ** (q - 1) * (d @ d) + f**q / 0.25)
    np.testing.assert_allclose(weighed_step(experiment, LOSSES, DELTAS), top / bottom, rtol=1e-5)


def test_no_table_makes_a_loss_that_no_model_has() -> None:
    """An agency may send cells below 0, as noise makes them; a liar's few people then had a loss of 40 nats."""
    lie = np.zeros((2, 8, 2))
    lie[0, 0] = [
        -900.0,
        1000.0,
    ]  # all but 100 of those who have the outcome and the lowest score are taken away again
    claimed = calibration.log_loss(ScoreTable(EDGES, lie))
    assert claimed.publishable
    assert claimed.value is not None
    worst = -math.log(EDGES[1] / 2)
    assert claimed.value > 5 * worst
    honest = np.zeros((2, 8, 2))
    honest[0, 0, 1] = 500.0
    found = fair.losses({"liar": ScoreTable(EDGES, lie), "worst": ScoreTable(EDGES, honest)})
    assert found == {"liar": pytest.approx(worst), "worst": pytest.approx(worst)}


def test_q_0_is_plain_averaging_and_so_are_rounds_before_the_first_tables(make_study: MakeStudy) -> None:
    plain = sum(p * d for p, d in enumerate(DELTAS.values(), start=1)) / 6
    for q, losses in ((0, LOSSES), (2, {})):
        experiment = make_study("fairness=qffl", f"fairness.q={q}").experiment
        np.testing.assert_allclose(weighed_step(experiment, losses, DELTAS), plain, rtol=1e-5)


def test_losses_are_those_of_the_tables_and_never_nothing() -> None:
    right = {(0, 0): 0.0, (0, 1): 1.0, (1, 0): 0.0, (1, 1): 1.0}  # everybody scored 0.9 or 0.1 as they are
    found = fair.losses(
        {"good": table(right), "bad": table({cell: 1 - rate for cell, rate in right.items()})}
    )
    bins = {"low": int(np.searchsorted(EDGES, 0.1)) - 1, "high": int(np.searchsorted(EDGES, 0.9)) - 1}
    centre = {side: (EDGES[i] + EDGES[i + 1]) / 2 for side, i in bins.items()}
    assert found["good"] == pytest.approx(-(math.log(1 - centre["low"]) + math.log(centre["high"])) / 2)
    assert found["bad"] == pytest.approx(-(math.log(centre["low"]) + math.log(1 - centre["high"])) / 2)
    sure = ScoreTable(EDGES, np.pad(np.full((2, 1, 1), 500.0), ((0, 0), (0, 7), (0, 1))))
    assert fair.losses({"sure": sure}) == {"sure": fair.SMALLEST_LOSS}
    lost = ScoreTable(EDGES, table(right).counts, 500.0**2)
    mixed = fair.losses({"good": table(right), "lost": lost})
    assert mixed["lost"] == pytest.approx(mixed["good"])  # as everyone: its own is noise


# --- a whole run ------------------------------------------------------------------------------------------


def test_multipliers_that_are_all_one_give_the_same_bits_as_none(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    common = ("privacy.sample_rate=0.5",)
    federate(make_study(*common), tmp_path / "plain")
    result = federate(make_study(*common, *BY_SEX, "fairness.most=1"), tmp_path / "ones")
    same(last(tmp_path / "plain"), last(tmp_path / "ones"))
    history = result["fairness_training"]["history"]
    assert [entry["round"] for entry in history] == [4]  # the tables of 2; those of the end move nothing
    assert all(set(entry["multipliers"].values()) == {1.0} for entry in history)


def test_a_fairer_run_is_repeated_by_its_seed_and_costs_no_more(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    common = ("privacy.sample_rate=0.5", "evaluation.bins=4")
    fairer = (*common, "privacy.epsilon=50", *BY_SEX, "fairness.rate=5")
    one, two = (federate(make_study(*fairer), tmp_path / name) for name in "ab")
    same(last(tmp_path / "a"), last(tmp_path / "b"))
    assert one["fairness_training"] == two["fairness_training"]
    (*_, newest) = one["fairness_training"]["history"]
    assert set(newest["multipliers"]) == {
        f"sex={level}, outcome {y}" for level in ("female", "male") for y in (0, 1)
    }
    assert len(set(newest["multipliers"].values())) > 1
    plain = federate(make_study(*common, "privacy.epsilon=50"), tmp_path / "plain")
    assert plain["fairness_training"] is None
    assert one["privacy"] == plain["privacy"]
    for name, agency in one["agencies"].items():
        assert agency["epsilon"] == plain["agencies"][name]["epsilon"]
        charged = epsilon(ledger_of(tmp_path / "a", name).releases(), 1e-5)
        assert agency["epsilon"]["total"] == pytest.approx(charged)
    assert any((last(tmp_path / "a")[n] != last(tmp_path / "plain")[n]).any() for n in last(tmp_path / "a"))


def test_q_ffl_weighs_agencies_by_their_own_tables_and_costs_no_more(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    common = ("privacy.epsilon=50", "evaluation.bins=4")
    result = federate(make_study(*common, "fairness=qffl", "fairness.q=2"), tmp_path / "q")
    plain = federate(make_study(*common), tmp_path / "plain")
    history = result["fairness_training"]["history"]
    assert [set(entry["multipliers"]) for entry in history] == [set(AGENCIES)]
    assert all(np.mean(list(entry["multipliers"].values())) == pytest.approx(1) for entry in history)
    assert result["fairness_training"]["settings"] == {"q": 2.0}
    assert result["privacy"] == plain["privacy"]
    assert any((last(tmp_path / "q")[n] != last(tmp_path / "plain")[n]).any() for n in last(tmp_path / "q"))


def test_a_run_that_was_stopped_goes_on_with_its_multipliers(make_study: MakeStudy, tmp_path: Path) -> None:
    seen: list[tuple[float, ...]] = []

    def answer(order: RoundOrder, name: str) -> Any:
        seen.append(order.multipliers)
        reply = honest(order, name)
        tables = {part: counts * np.array([[[1, 3]], [[3, 1]]]) for part, counts in reply.tables.items()}
        return replace(reply, tables=tables)

    study = make_study(*BY_SEX, "rounds=6", "evaluation.checkpoints=3", "evaluation.bins=4", "privacy=none")
    grid = scripted(dict.fromkeys(AGENCIES, answer))
    whole = run_federation(grid, study.experiment, FACTS, tmp_path)
    sent = [seen[i] for i in range(0, len(seen), len(AGENCIES))]
    assert [bool(each) for each in sent] == [False, False, False, True, True, True, False]
    (tmp_path / "checkpoints" / "round-00006.safetensors").unlink()
    again = run_federation(grid, study.experiment, FACTS, tmp_path)
    assert again["fairness_training"] == whole["fairness_training"]
    assert seen[-2 * len(AGENCIES)] == sent[5]


# --- what a node and a plan permit ------------------------------------------------------------------------


@pytest.fixture
def plan(make_study: MakeStudy) -> TrainPlan:
    study = make_study("rounds=2", "evaluation.checkpoints=1", *BY_SEX)
    return study.experiment.plan("run-1", simulation=False)


def order_of(plan: TrainPlan, **changes: Any) -> RoundOrder:
    from test_policy import zero_weights

    return replace(RoundOrder(plan, 1, zero_weights(), True, ("tune",)), **changes)


def test_an_order_carries_its_multipliers_and_is_another_without_them(plan: TrainPlan) -> None:
    order = order_of(plan, multipliers=(0.5, 1.5, 1.25, 0.75))
    read = wire.read_round_order(wire.pack_round_order(order, 1))
    assert read.multipliers == order.multipliers
    assert read.digest == order.digest != order_of(plan).digest


def test_wrong_multipliers_are_refused_before_anything_is_charged(tmp_path: Path, plan: TrainPlan) -> None:
    folder = deployed(tmp_path / "node", POLICY | {"fairness": ["group_multipliers"]})
    fine = (0.5, 1.5, 1.25, 0.75)
    orders = [order_of(plan, multipliers=tuple(values)) for values, _ in WRONG.values()]
    orders += [order_of(plan.but(fairness=None), multipliers=fine)]
    orders += [order_of(plan, multipliers=fine, train=False)]
    orders += [order_of(plan.but(fairness=BY_RACE), multipliers=fine)]
    for order in orders:
        found = ask_node(folder, lambda node, order=order: wire.pack_round_order(order, node))  # type: ignore[misc]
        assert found == Refusal("north", Reason.MALFORMED)
    node = open_node(folder)
    assert [entry.action for entry in node.ledger.entries()] == ["people"]
    control = ask_node(folder, lambda node: wire.pack_round_order(order_of(plan, multipliers=fine), node))
    assert control == Refusal("north", Reason.UNAVAILABLE)  # its table is not there: nothing else was wrong


def test_an_order_cannot_single_out_by_an_attribute_that_its_plan_does_not_name(
    tmp_path: Path, plan: TrainPlan
) -> None:
    groups = CONTRACT["groups"] | {"age": {"column": "age", "edges": [40], "levels": ["young", "old"]}}
    two = CONTRACT | {"groups": groups}
    contract = Contract.from_dict(two)
    given = permits(two, budget={"life": 20.0, "delta": 1e-5}, fairness=["group_multipliers"])
    folder = deployed(tmp_path / "node", given)
    (folder / "contract.yaml").write_text(yaml.safe_dump(two, sort_keys=False))
    by_sex, by_age = np.ones((len(contract.group_names), 2)), np.ones((len(contract.group_names), 2))
    for found, name in ((by_sex, "sex"), (by_age, "age")):
        first, second, *_ = contract.group_margins[name].values()
        found[list(first)], found[list(second)] = (0.5, 1.5), (1.25, 0.75)
    replies = [
        ask_node(folder, lambda node, order=order: wire.pack_round_order(order, node))  # type: ignore[misc]
        for values in (by_age, by_sex)
        for order in [
            order_of(plan.but(contract_sha256=contract.sha256), multipliers=tuple(values.ravel().tolist()))
        ]
    ]
    assert replies[0] == Refusal("north", Reason.MALFORMED)
    assert replies[1] == Refusal(
        "north", Reason.UNAVAILABLE
    )  # its table is not there: nothing else was wrong


@pytest.mark.parametrize("method", ["group_multipliers", "qffl"])
def test_a_policy_says_how_training_may_be_made_fairer(method: str, make_study: MakeStudy) -> None:
    more = ["fairness.by=sex"] if method == "group_multipliers" else []
    plan = make_study(f"fairness={method}", *more).experiment.plan("run-1", simulation=False)

    def verdict(policy: Policy, plan: TrainPlan = plan) -> Reason | None:
        (found,) = [each for each in rules.explain(policy, plan, at()) if each.rule == "fairness"]
        return found.reason

    assert verdict(Policy()) is Reason.MODEL
    assert verdict(Policy(fairness=())) is Reason.MODEL
    assert verdict(Policy(fairness=(method,))) is None  # type: ignore[arg-type]
    assert verdict(Policy(simulation=True)) is None
    assert verdict(Policy(), plan.but(fairness=None)) is None
    assert f'fairness = ["{method}"]' in _toml(plan, {"coordinator": 1.0, "public": 1.0, "everybody": 1.0})
    words = policy_words._fairness(Policy(fairness=(method,)))  # type: ignore[arg-type]
    assert ("people" in words) == (method == "group_multipliers")
    assert any(deciding.startswith("fairness") for *_, deciding in REFUSALS.values())


IMPOSSIBLE = {
    "q-FFL behind masks": (
        ("fairness=qffl", "privacy=shared", "strategy=dp_fedsgd", "privacy.dropouts=0"),
        "fairness.method must not be qffl where privacy is shared",
    ),
    "q-FFL with ranks": (
        ("fairness=qffl", "strategy=fedmedian"),
        "fairness.method must not be qffl for strategy fedmedian",
    ),
    "q that no number holds": (
        ("fairness=qffl", "fairness.q=500"),  # 4.6^500 overflows: one liar's table would end the run
        "fairness.q should be less than or equal to 100",
    ),
    "no tables": ((*BY_SEX, "evaluation.checkpoints=0"), "needs tables on the way"),
    "nobody to tune on": ((*BY_SEX, "split.tune=0"), "needs tables on the way"),
    "no group": (("fairness=group_multipliers",), "must be an audit group of the contract (sex), got None"),
    "another group": (
        ("fairness=group_multipliers", "fairness.by=race"),
        "must be an audit group of the contract (sex), got 'race'",
    ),
}


@pytest.mark.parametrize("case", list(IMPOSSIBLE))
def test_what_cannot_be_is_refused_with_a_sentence(case: str, make_study: MakeStudy) -> None:
    overrides, sentence = IMPOSSIBLE[case]
    with pytest.raises(SettingsError) as caught:
        make_study(*overrides)
    assert sentence in str(caught.value)


def test_a_plan_behind_masks_cannot_say_q_ffl_either(make_shared: MakeStudy) -> None:
    plan = make_shared("fairness=group_multipliers", "fairness.by=sex").experiment.plan("r", simulation=False)
    assert plan.fairness is not None
    with pytest.raises(ValueError, match="behind masks there is only a sum"):
        plan.but(fairness={"method": "qffl", "q": 1.0})
    with pytest.raises(ValueError, match="group_multipliers has by and most, qffl has q"):
        plan.but(fairness={"method": "group_multipliers", "q": 1.0})


def test_multipliers_behind_masks_that_are_all_one_change_no_bit(
    make_shared: MakeStudy, tmp_path: Path
) -> None:
    common = ("rounds=4", "evaluation.checkpoints=2", "round_timeout=5", "join_timeout=5")
    federate(make_shared(*common), tmp_path / "plain")
    result = federate(make_shared(*common, *BY_SEX, "fairness.most=1"), tmp_path / "ones")
    same(last(tmp_path / "plain"), last(tmp_path / "ones"))
    assert [entry["round"] for entry in result["fairness_training"]["history"]] == [4]


# --- the comparison ---------------------------------------------------------------------------------------


def test_the_comparison_measures_what_it_says() -> None:
    """Group 0 at 0.5: TPR 1/2, FPR 1/2, accuracy 1/2. Group 1 at 0.5: TPR 1, FPR 0, accuracy 1."""
    y = np.array([1, 1, 0, 0, 1, 0], np.float32)
    score = np.array([0.9, 0.2, 0.7, 0.1, 0.8, 0.3])
    part = Part(score[:, None].astype(np.float32), y, np.ones(6, np.float32), np.array([0, 0, 0, 0, 1, 1]))
    bench: Any = SimpleNamespace(model=lambda weights: lambda x: x[:, 0], people={"a": {"test": part}})
    state: Any = SimpleNamespace(weights={})
    found = comparison.measures(bench, state, (0.5, 0.5))
    assert found == pytest.approx(
        {
            "accuracy": 4 / 6,
            "auc": 7 / 9,
            "parity_gap": 0.0,
            "tpr_gap": 0.5,
            "fpr_gap": 0.5,
            "worst_accuracy": 0.5,
            "flagged": 0.5,
        }
    )
    assert comparison.measures(bench, state, (0.15, 0.5))["tpr_gap"] == 0.0
    row = comparison.table("made up", "none", [{"plain": found | {"stopped": True}}]).splitlines()[-1]
    assert row == "| plain | 0.667 | 0.778 | 0.000 | 0.500 | 0.500 | 0.500 | 0.500 | 1 of 1 |"
