"""Many tables from one release: exact without noise, of one piece with it, and as good as any linear release can be."""

import itertools
import math
from functools import reduce
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize  # type: ignore[import-untyped]

from models import marginals
from models.marginals import MOST_CELLS, STEPS, Strategy, WorkloadError, count, least_error, plan, subsets

FLAGS = {f"f{i}": 2 for i in range(10)}


@st.composite
def workloads(draw: st.DrawFn) -> tuple[dict[str, int], list[tuple[str, ...]]]:
    names = "abcd"[: draw(st.integers(1, 4))]
    sizes = {name: draw(st.integers(1, 4)) for name in names}
    every = subsets(tuple(sizes))
    return sizes, draw(st.lists(st.sampled_from(every), min_size=1, max_size=6))


def people(sizes: dict[str, int], n: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, size, n) for name, size in sizes.items()}


def rows_of(strategy: Strategy, sizes: dict[str, int]) -> np.ndarray:
    """The release as a matrix over the joint domain, by asking for one person at a time."""
    cells = list(itertools.product(*(range(size) for size in sizes.values())))
    columns = [
        strategy.measure({name: np.array([value]) for name, value in zip(sizes, cell, strict=True)}, 1)
        for cell in cells
    ]
    return np.stack(columns, axis=1).astype(np.float64)


def margin_of(of: tuple[str, ...], sizes: dict[str, int]) -> np.ndarray:
    """The table over `of` as a matrix over the joint domain."""
    cells = list(itertools.product(*(range(size) for size in sizes.values())))
    places = [list(sizes).index(name) for name in of]
    found = np.zeros((math.prod(sizes[name] for name in of), len(cells)))
    for column, cell in enumerate(cells):
        row = np.ravel_multi_index([cell[p] for p in places], [sizes[n] for n in of]) if of else 0
        found[row, column] = 1
    return found


@settings(max_examples=40, deadline=None)
@given(workloads(), st.integers(0, 2**31))
def test_without_noise_every_table_is_exact(workload: Any, seed: int) -> None:
    sizes, tables = workload
    strategy, codes = plan(sizes, tables), people(sizes, 50, seed)
    found = strategy.read(strategy.measure(codes, 50), 0.0)
    for of in {part for table in strategy.tables for part in subsets(table)}:
        np.testing.assert_allclose(found.table(of), count(codes, of, sizes, 50), atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(workloads(), st.integers(0, 2**31))
def test_noised_tables_agree_in_every_margin(workload: Any, seed: int) -> None:
    sizes, tables = workload
    strategy = plan(sizes, tables)
    found = strategy.read(np.random.default_rng(seed).normal(0, STEPS, strategy.numbers), 1.0)
    for of in strategy.tables:
        for part in subsets(of):
            away = tuple(axis for axis, name in enumerate(of) if name not in part)
            np.testing.assert_allclose(found.table(of).sum(away), found.table(part), atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(workloads())
def test_reading_is_least_squares_and_its_variance_is_the_matrix_formula(workload: Any) -> None:
    """The oracle is generalised least squares over the joint domain, by pseudo-inverse."""
    sizes, tables = workload
    strategy = plan(sizes, tables)
    a = rows_of(strategy, sizes)
    released, variance = np.random.default_rng(1).normal(0, STEPS, strategy.numbers), float(STEPS) ** 2
    found, inverse = strategy.read(released, variance), np.linalg.pinv(a, rcond=1e-9)
    for of in strategy.tables:
        m = margin_of(of, sizes)
        shape = found.table(of).shape
        np.testing.assert_allclose(found.table(of), (m @ inverse @ released).reshape(shape), atol=1e-6)
        covariance = variance * m @ inverse @ inverse.T @ m.T
        np.testing.assert_allclose(found.variance(of).ravel(), np.diag(covariance), rtol=1e-6)
        rng = np.random.default_rng(2)
        one, other = ([rng.normal(size=(2, levels)) for levels in shape] for _ in range(2))
        ours, theirs = (reduce(np.kron, rows, np.ones((1, 1))) for rows in (one, other))
        sums = ours @ m @ inverse @ released
        np.testing.assert_allclose(found.sums(of, one).ravel(), sums, rtol=1e-6, atol=1e-6)
        wanted = np.einsum("ij,jk,ik->i", ours, covariance, theirs)
        np.testing.assert_allclose(found.covariances(of, one, other).ravel(), wanted, rtol=1e-6, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(workloads())
def test_one_person_moves_a_release_by_its_sensitivity_at_most(workload: Any) -> None:
    sizes, tables = workload
    strategy = plan(sizes, tables)
    longest = np.sqrt((rows_of(strategy, sizes) ** 2).sum(0)).max()
    assert longest <= strategy.sensitivity <= longest * 1.001
    assert strategy.sensitivity == pytest.approx(STEPS, rel=0.01)
    assert plan(sizes, tables, rows=3).sensitivity == pytest.approx(3 * strategy.sensitivity)


def test_a_release_is_whole_and_adds_up() -> None:
    """What agencies send may be summed before it is read: behind masks nobody sees the parts."""
    sizes = {"need": 5, "area": 4, "month": 6}
    strategy = plan(sizes, [("need", "area"), ("month",)])
    ours, theirs = people(sizes, 300, 1), people(sizes, 200, 2)
    one, other = strategy.measure(ours, 300), strategy.measure(theirs, 200)
    assert one.dtype == np.int64
    both = {name: np.concatenate([ours[name], theirs[name]]) for name in sizes}
    np.testing.assert_array_equal(one + other, strategy.measure(both, 500))


def up_to_two(sizes: dict[str, int]) -> list[tuple[str, ...]]:
    return [(name,) for name in sizes] + list(itertools.combinations(sizes, 2))


@pytest.mark.parametrize("sizes", [dict.fromkeys("abcdef", 2), {"a": 4, "b": 3, "c": 5}], ids=str)
@pytest.mark.parametrize("by_cell", [True, False])
def test_the_error_is_the_least_that_a_linear_release_can_have(sizes: dict[str, int], by_cell: bool) -> None:
    """The oracle is the bound from the workload's singular values (Li and Miklau, ICDT 2013)."""
    tables = up_to_two(sizes)
    cells = {of: float(math.prod(sizes[name] for name in of)) for of in tables}
    strategy = plan(sizes, tables, cells if by_cell else None)
    found = strategy.read(np.zeros(strategy.numbers), strategy.sensitivity**2)
    per_cell = {of: 1 if by_cell else 1 / cells[of] for of in tables}
    margins = {of: margin_of(of, sizes) for of in tables}
    gram = np.sum([per_cell[of] * margins[of].T @ margins[of] for of in tables], axis=0)
    least = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0)).sum() ** 2 / len(gram)
    error = sum(per_cell[of] * found.variance(of).sum() for of in tables)
    assert error == pytest.approx(least, rel=1e-4)
    assert least_error(sizes, strategy.tables, cells if by_cell else None) == pytest.approx(least)


def test_ten_flags_cost_two_fifths_of_the_error_of_their_tables_one_by_one() -> None:
    tables = up_to_two(FLAGS)
    strategy = plan(FLAGS, tables)
    found = strategy.read(np.zeros(strategy.numbers), strategy.sensitivity**2)
    variances = np.concatenate([found.variance(of).ravel() for of in tables])
    assert math.sqrt(variances.mean() / len(tables)) == pytest.approx(0.411, abs=0.005)


def test_weights_move_the_error_to_the_tables_that_matter_less() -> None:
    sizes = {"need": 6, "area": 10}
    tables = [("need", "area"), ("area",)]
    even = plan(sizes, tables)
    uneven = plan(sizes, tables, {("area",): 100.0})

    def error(strategy: Strategy, of: tuple[str, ...]) -> float:
        read = strategy.read(np.zeros(strategy.numbers), strategy.sensitivity**2)
        return float(read.variance(of).mean())

    assert error(uneven, ("area",)) < error(even, ("area",))
    assert error(uneven, ("need", "area")) > error(even, ("need", "area"))


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ([], "a workload needs one table at least"),
        ([("need", "colour")], "no attribute 'colour' is known: known are need, area"),
        (
            [("need", "area")],
            f"the table over need x area has 1,000,000 cells, and {MOST_CELLS:,} is the most",
        ),
    ],
)
def test_what_cannot_be_asked_says_why(tables: list[tuple[str, ...]], sentence: str) -> None:
    with pytest.raises(WorkloadError, match=sentence):
        plan({"need": 1000, "area": 1000}, tables)


def test_contrasts_are_whole_orthogonal_and_sum_to_nothing() -> None:
    for levels in range(1, 9):
        found = marginals.contrasts(levels)
        gram = found @ found.T
        assert found.dtype == np.int64
        assert not found.sum(1).any()
        np.testing.assert_array_equal(gram, np.diag(np.diag(gram)))
        np.testing.assert_allclose(
            marginals.basis(levels) @ marginals.basis(levels).T, np.eye(levels - 1), atol=1e-12
        )


@settings(max_examples=25, deadline=None)
@given(workloads(), st.integers(0, 2**31))
def test_fitted_tables_have_no_negative_cell_and_still_agree(workload: Any, seed: int) -> None:
    sizes, tables = workload
    strategy, rng = plan(sizes, tables), np.random.default_rng(seed)
    exact = strategy.measure(people(sizes, 30, seed), 30)
    raw = strategy.read(
        exact + rng.normal(0, 5 * strategy.sensitivity, strategy.numbers), 25 * strategy.sensitivity**2
    )
    fitted = raw.fitted()
    for of in strategy.tables:
        below = 0.02 * math.prod(sizes.values()) / math.prod(sizes[name] for name in of)
        assert (fitted.table(of) >= -below).all()
        for part in subsets(of):
            away = tuple(axis for axis, name in enumerate(of) if name not in part)
            np.testing.assert_allclose(fitted.table(of).sum(away), fitted.table(part), atol=1e-6)
    if all((raw.table(of) >= 0).all() for of in strategy.tables):
        assert fitted is raw


def test_fitting_is_the_projection_onto_tables_with_the_margins_fitted_before() -> None:
    """The oracles: of one attribute, the projection onto a simplex; of two, a general solver."""
    sizes = {"a": 3, "b": 4}
    strategy, rng = plan(sizes, [("a", "b"), ("a",)]), np.random.default_rng(4)
    noise = rng.normal(0, 20 * STEPS, strategy.numbers)
    noise[0] += 60 * strategy.scales[()]  # sixty people
    raw = strategy.read(noise, 400.0 * STEPS**2)
    found = raw.fitted(tolerance=1e-4)
    everybody = raw.table(()).item()
    assert found.table(()).item() == pytest.approx(everybody)
    for name in sizes:
        table = raw.table((name,))
        level = brentq(lambda shift, table=table: np.maximum(table - shift, 0).sum() - everybody, -1e3, 1e3)
        np.testing.assert_allclose(found.table((name,)), np.maximum(table - level, 0), atol=0.01)
    own = raw.values[("a", "b")]
    sd = np.sqrt(raw.variances[("a", "b")])

    def cells(residual: np.ndarray) -> np.ndarray:
        values = {**found.values, ("a", "b"): residual.reshape(own.shape)}
        return marginals.Tables(strategy, values, raw.variances).table(("a", "b")).ravel()

    start = cells(np.zeros(own.size))
    slopes = np.stack([cells(unit) - start for unit in np.eye(own.size)], axis=1)
    best = minimize(
        lambda z: float((((z - own.ravel()) / sd.ravel()) ** 2).sum()),
        np.zeros(own.size),
        jac=lambda z: 2 * (z - own.ravel()) / sd.ravel() ** 2,
        constraints={"type": "ineq", "fun": lambda z: start + slopes @ z, "jac": lambda z: slopes},
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-12},
    )
    np.testing.assert_allclose(found.table(("a", "b")).ravel(), cells(best.x), atol=0.05)


def test_fitting_swells_no_margin() -> None:
    """Many cells are empty, and their noise must not show in the counts of areas: least squares of all at once puts
    half of these beyond their own 95 % interval."""
    sizes, rng = {"need": 8, "area": 20, "month": 25}, np.random.default_rng(0)
    strategy = plan(sizes, [("need", "area"), ("area", "month"), ("area",)])
    codes = {name: np.minimum(rng.geometric(0.5, 1000) - 1, size - 1) for name, size in sizes.items()}
    exact, noise = strategy.measure(codes, 1000), 5 * strategy.sensitivity
    truth, errors, beyond = count(codes, ("area",), sizes, 1000), [], []
    for _ in range(10):
        raw = strategy.read(exact + rng.normal(0, noise, strategy.numbers), noise**2)
        before, after = raw.table(("area",)), raw.fitted().table(("area",))
        errors.append([((table - truth) ** 2).mean() for table in (before, after)])
        beyond.append((abs(after - before) > 1.96 * np.sqrt(raw.variance(("area",)))).mean())
    before, after = np.mean(errors, axis=0)
    assert after < before
    assert np.mean(beyond) < 0.06


def test_fitting_brings_empty_cells_closer_to_the_truth() -> None:
    sizes, rng = {"need": 6, "area": 12}, np.random.default_rng(5)
    strategy = plan(sizes, [("need", "area")])
    codes = {"need": rng.integers(0, 2, 400), "area": rng.integers(0, 3, 400)}
    truth, noise = count(codes, ("need", "area"), sizes, 400), 8 * strategy.sensitivity
    raw = strategy.read(strategy.measure(codes, 400) + rng.normal(0, noise, strategy.numbers), noise**2)
    before, after = (((tables.table(("need", "area")) - truth) ** 2).mean() for tables in (raw, raw.fitted()))
    assert after < 0.7 * before
