"""An agency's own noise on counts and statistics: whole steps, of the size that is charged, no matter what is counted."""

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MakeStudy

from clients import noise, randomness
from clients.draws import fresh_draw
from clients.evaluate import noised_table, table_counts
from clients.node import Node, Work, open_node
from clients.noise import Grid
from clients.randomness import Stream
from experiments import engines
from federation.masks import to_grid
from federation.plan import TrainPlan
from federation.protocol import RoundOrder, RoundReply
from models import quantiles, risk
from models.features import layout
from models.quantiles import CELLS, SENSITIVITY, STEPS
from models.scores import default_edges
from models.spec import ModelSpec

SIGMAS = [0.001, 0.3, 1.0, 1.2, 5.0, 7.667, 31.9, 32.0, 400.0]
LARGEST = 2.0**26  # of counts; of sums, the same number of steps

Make = Callable[[float], Grid]
either = pytest.mark.parametrize("make", [noise.of_counts, noise.of_sums])


def whole(values: np.ndarray, steps: int) -> bool:
    """Whether each is a whole number of 1 / steps, in float64 without any rounding."""
    return bool(np.all(np.rint(values * steps) == values * steps)) and steps & (steps - 1) == 0


def a_table(sigma: float, stream: Stream, people: int = 300) -> np.ndarray:
    """Of made-up people in two groups, by a made-up model."""
    rng = np.random.default_rng(5)
    x = torch.from_numpy(rng.normal(size=(people, 4)).astype(np.float32))
    y = torch.from_numpy(rng.integers(0, 2, people).astype(np.float32))
    module = risk.build(ModelSpec("logistic"), 4)
    of = {"edges": default_edges(), "n_groups": 2}
    return noised_table(module, x, y, rng.integers(0, 2, people), sigma=sigma, stream=stream, **of)  # type: ignore[arg-type]


def a_histogram(people: int = 5000) -> np.ndarray:
    return quantiles.tally(np.random.default_rng(6).lognormal(6, 2, people))


# --- the grid -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", SIGMAS)
def test_noise_is_at_least_what_is_charged_and_hardly_more(sigma: float) -> None:
    for made, moved in ((noise.of_counts(sigma), None), (noise.of_sums(sigma), SENSITIVITY)):
        sensitivity = Fraction(made.steps if moved is None else moved)
        assert made.variance >= (Fraction(sigma) * sensitivity) ** 2
        assert made.variance - 1 < (Fraction(sigma) * sensitivity) ** 2
        assert made.steps & (made.steps - 1) == 0


@pytest.mark.parametrize("sigma", SIGMAS)
def test_counts_have_the_coarsest_grid_that_is_fine_enough(sigma: float) -> None:
    steps = noise.of_counts(sigma).steps
    assert steps * sigma >= 32
    assert steps == 1 or steps * sigma < 64


def test_a_statistics_grid_costs_about_a_thousandth() -> None:
    assert 1000 * math.sqrt(CELLS) <= STEPS
    assert 1 < SENSITIVITY / STEPS < 1.0011
    assert quantiles.variance_of(7.4) == pytest.approx(noise.of_sums(7.4).variance / STEPS**2, rel=1e-9)


@either
@pytest.mark.parametrize("sigma", [0.0, -1.0, math.inf, math.nan])
def test_no_noise_is_no_grid(make: Make, sigma: float) -> None:
    with pytest.raises(ValueError, match="above 0 and finite"):
        make(sigma)


def test_the_most_that_can_be_drawn_is_drawn_and_more_is_refused() -> None:
    for make, most in ((noise.of_counts, LARGEST), (noise.of_sums, LARGEST / SENSITIVITY * (1 - 1e-12))):
        assert randomness.MAX_VARIANCE * (1 - 1e-9) <= make(most).variance <= randomness.MAX_VARIANCE
        with pytest.raises(ValueError, match="more than can be drawn"):
            make(most * 1.0001)


@either
def test_ten_million_people_have_room(make: Make) -> None:
    most = LARGEST if make is noise.of_counts else 2045.0
    for sigma in (0.001, 1.0, most):
        made = make(sigma)
        got = noise.noised(np.full(1000, 1e7), made, Stream.seeded("many"))
        assert whole(got, made.steps)
        std = math.sqrt(made.variance) / made.steps
        assert abs(got.mean() - 1e7) < 6 * std / math.sqrt(1000), "none is clamped"
        assert np.abs(got * made.steps).max() < 2**53


# --- what a person can change -------------------------------------------------------------------------


def test_rounded_sums_move_by_no_more_than_is_accounted() -> None:
    everybody = a_histogram()

    def steps(counts: np.ndarray) -> np.ndarray:
        return to_grid(quantiles.weighted(counts), STEPS, noise.LIMIT)

    moved = [np.linalg.norm(steps(everybody + one) - steps(everybody)) for one in np.eye(CELLS)]
    assert 0.9 * STEPS < max(moved) <= SENSITIVITY
    assert max(moved) > STEPS, "the control: rounding does move them further"


def test_float64_moves_the_sums_by_less_than_the_slack() -> None:
    people = 2**28
    rng = np.random.default_rng(7)
    for counts in (rng.multinomial(people, rng.dirichlet(np.ones(CELLS))), np.eye(CELLS)[0] * people):
        root = quantiles._root().astype(np.longdouble)
        exact = root @ counts[:-1].astype(np.longdouble) / np.sqrt(np.square(root[:, 0]).sum())
        wrong = np.linalg.norm(quantiles.weighted(counts.astype(np.float64))[:-1] - exact)
        assert 2 * wrong * STEPS <= 2.0**-14 * STEPS


@pytest.mark.parametrize("sigma", [0.3, 1.0, 5.0, 40.0])
def test_one_person_loses_no_more_than_with_gaussian_noise(sigma: float) -> None:
    """The Rényi divergence of a count's noise, added up in float64, at some orders, in both directions alike."""
    made = noise.of_counts(sigma)
    reach = made.steps * 130 + 12 * math.isqrt(made.variance) + 100
    y = np.arange(-reach, reach + 1, dtype=np.float64)
    log_p, log_q = (-np.square(y - shift) / (2 * made.variance) for shift in (0, made.steps))
    total = np.log(np.exp(log_p).sum())
    for order in (1.5, 2, 4, 16, 64, 128):
        terms = order * log_p + (1 - order) * log_q - total
        most = terms.max()
        divergence = (most + np.log(np.exp(terms - most).sum())) / (order - 1)
        assert 0.99 * order / (2 * sigma**2) <= divergence <= order / (2 * sigma**2) * (1 + 1e-9)


# --- what leaves --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", SIGMAS)
def test_every_cell_of_a_table_is_a_whole_number_of_steps(sigma: float) -> None:
    steps = noise.of_counts(sigma).steps
    for seed in range(5):
        table = a_table(sigma, Stream.seeded(str(seed)))
        assert table.dtype == np.float64
        assert whole(table, steps)
    assert steps == 1 or not whole(np.stack([a_table(sigma, Stream.fresh()) for _ in range(3)]), 1)


@pytest.mark.parametrize("sigma", [0.001, 1.0, 7.4, 2000.0])
def test_every_cell_of_a_statistic_is_a_whole_number_of_steps(sigma: float) -> None:
    sums = quantiles.weighted(a_histogram())
    assert not whole(sums, STEPS), "the control: they are not to begin with"
    for seed in range(5):
        got = noise.noised(sums, noise.of_sums(sigma), Stream.seeded(str(seed)))
        assert got.dtype == np.float64
        assert whole(got, STEPS)


def test_without_privacy_a_table_is_exact() -> None:
    table = a_table(0.0, Stream.fresh())
    assert whole(table, 1)
    assert table.sum() == 300


@either
@pytest.mark.parametrize("sigma", [0.5, 5.0, 100.0])
def test_the_noise_has_the_variance_that_is_said(make: Make, sigma: float) -> None:
    """To within 5 standard errors of 40 000 draws."""
    n = 40_000
    drawn = noise.noised(np.full(n, 7.0), make(sigma), Stream.seeded(f"size {sigma}")) - 7
    said = sigma**2 if make is noise.of_counts else quantiles.variance_of(sigma)
    assert drawn.var() == pytest.approx(said, rel=5 * math.sqrt(2 / n) + 1e-3)
    assert abs(drawn.mean()) <= 5 * sigma / math.sqrt(n)


# --- the attack ---------------------------------------------------------------------------------------


def could_be(sent: np.ndarray, candidate: np.ndarray) -> bool:
    """Mironov's attack: is what was added to `candidate` a float32 in every cell?"""
    added = sent - candidate
    return bool(np.all(np.abs(added - added.astype(np.float32)) <= 2.0**-40))


def test_the_low_bits_of_a_statistic_tell_nothing() -> None:
    """A histogram, and all others with one person more, told apart by low bits: before, and no longer."""
    truth = a_histogram()
    candidates = [truth, *(truth + one for one in np.eye(CELLS)[:: CELLS // 40])]
    sums = [quantiles.weighted(counts) for counts in candidates]
    float32 = randomness.gaussian(Stream.fresh())(CELLS, 7.4).double().numpy()
    assert [could_be(sums[0] + float32, each) for each in sums] == [True] + [False] * (len(sums) - 1)

    for actual in (sums[0], sums[-1]):
        sent = noise.noised(actual, noise.of_sums(7.4), Stream.fresh())
        assert not any(could_be(sent, each) for each in sums), "the truth no more than the others"
        added = [sent * STEPS - to_grid(each, STEPS, noise.LIMIT) for each in sums]
        assert all(whole(each, 1) for each in added), (
            "whole noise leads from every one of them to what was sent"
        )


def test_the_low_bits_of_a_table_tell_nothing() -> None:
    """A cell and the same with one person more: what either can send is every multiple of 1 / K near it."""
    made = noise.of_counts(1.2)
    possible = []
    for count in (3.0, 4.0):
        sent = noise.noised(np.full(60_000, count), made, Stream.seeded(f"{count}"))
        possible.append(set((sent * made.steps).astype(int)))
    span = range(1 * made.steps, 6 * made.steps)
    assert all(found.issuperset(span) for found in possible)


# --- nodes --------------------------------------------------------------------------------------------


@pytest.fixture
def nodes(make_study: MakeStudy, tmp_path: Path) -> tuple[TrainPlan, list[Node]]:
    study = make_study()
    homes = engines.make_node_folders(
        study.agencies, study.experiment.contract, tmp_path / "nodes", seed=0, min_people=50
    )
    return study.experiment.plan("run-1", simulation=True), [open_node(home) for home in homes[:2]]


def tables(node: Node, plan: TrainPlan, number: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """What the node sends of its tune and test parts, and what the noise is, in grid steps of the tune part."""
    module = risk.build(plan.model, len(layout(node.contract).names))
    order = RoundOrder(plan, number, risk.weights_of(module), False, ("tune", "test"))
    reply = node.round(order)
    assert isinstance(reply, RoundReply)
    x, y, _, group = node._records(plan).part("tune")
    of = {"edges": np.asarray(plan.edges), "n_groups": len(node.contract.group_names)}
    added = reply.tables["tune"] - table_counts(module, x, y, group, **of)  # type: ignore[arg-type]
    return np.stack(list(reply.tables.values())), added * noise.of_counts(plan.privacy.tune_sigma).steps


def test_a_simulated_nodes_tables_repeat_with_the_seed_and_differ_between_agencies(
    nodes: tuple[TrainPlan, list[Node]],
) -> None:
    plan, (north, clinic) = nodes
    sent, added = tables(north, plan)
    again, _ = tables(north, plan)
    np.testing.assert_array_equal(sent, again)
    assert whole(sent, noise.of_counts(min(plan.privacy.tune_sigma, plan.privacy.test_sigma)).steps)
    assert whole(added, 1)
    others = [
        tables(clinic, plan)[1],
        tables(north, plan, 2)[1],
        tables(north, plan.but(seed=plan.seed + 1))[1],  # type: ignore[operator]
        tables(north, plan.but(seed=None))[1],
        tables(north, plan.but(seed=None))[1],
    ]
    for i, one in enumerate(others):
        for other in [added, *others[:i]]:
            assert np.mean(one == other) < 0.2


def test_a_node_takes_its_own_stream_for_each_table(nodes: tuple[TrainPlan, list[Node]]) -> None:
    plan, (north, _) = nodes
    privacy = plan.privacy.but(test_sigma=plan.privacy.tune_sigma)
    order = RoundOrder(plan.but(privacy=privacy), 1, {}, False, ("tune", "test"))
    work = Work(order, north._records(order.plan), torch.nn.Module(), fresh_draw())
    drawn = [north._stream(work, f"{part} noise").bytes(64) for part in ("tune", "test")]
    assert drawn[0] != drawn[1]
    fresh = replace(work, order=replace(order, plan=order.plan.but(seed=None)))
    drawn = [
        north._stream(each, "tune noise").bytes(64) for each in (fresh, replace(fresh, draw=fresh_draw()))
    ]
    assert drawn[0] != drawn[1]
