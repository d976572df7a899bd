"""A workload as one release: its sensitivity by brute force, its split, its answers over agencies, its honest intervals."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.benchmarks import demand
from experiments.benchmarks.demand import NONE, UK
from models.contract import Contract
from models.design import Counted, Design, Reading, answer, design, low_of_shown, merged
from models.disclosure import UNROUNDED, custom
from models.marginals import STEPS, WorkloadError
from models.scores import Noised
from models.workload import Query, Workload, read


def contract(rows: int = 1, columns: Any = None) -> Contract:
    return Contract.from_dict(
        {
            "name": "needs",
            "purpose": "planning",
            "unit": {"kind": "person", "column": "id", "rows": rows, "order_by": "seen"},
            "kinds": ["police", "health"],
            **({} if columns else {"blocks": {"care": {"held_by": ["health"]}}}),
            "columns": columns
            or {
                "offender": {"type": "flag"},
                "need": {"type": "category", "levels": ["housing", "health"]},
                "visits": {"type": "ordinal", "levels": ["few", "many"], "block": "care"},
            },
            "label": {"column": "label", "positive": ["1"], "horizon": "a year"},
        }
    )


MONTH = {"month": {"column": "seen", "first": "2024-01", "months": 2}}
QUERIES: list[dict[str, Any]] = [
    {"count": "everybody"},
    {"rate": {"of": {"need": "health"}, "among": {"offender": True}}},
    {"crosstab": ["need", "offender"]},
    {"series": {"by": "month", "of": {"need": "housing"}}, "name": "housing"},
    {"crosstab": ["need", "visits"]},
]


def workload(rows: int = 1, queries: list[dict[str, Any]] | None = None) -> Workload:
    return read({"name": "first", "attributes": MONTH, "queries": queries or QUERIES}, contract(rows))


def counted(asked: Workload, people: list[tuple[dict[str, int], list[dict[str, int]]]]) -> Counted:
    """From each person's most recent row and the rows that count."""
    rows = [row for _, own in people for row in own]
    person, row = ({name for of in asked.tables(counts) for name in of} for counts in ("person", "row"))
    return Counted(
        {name: np.array([latest[name] for latest, _ in people], np.int64) for name in person},
        len(people),
        {name: np.array([each[name] for each in rows], np.int64) for name in row},
        len(rows),
    )


@pytest.mark.parametrize("rows", [1, 3])
def test_nobody_moves_a_release_by_more_than_its_sensitivity(rows: int) -> None:
    """All people there can be: any most recent row, with up to k counted rows anywhere."""
    asked = workload(3, [QUERIES[1], {"series": {"by": "month", "of": {"offender": True}}, "name": "s"}])
    found = design(asked, rows)
    domain = [
        dict(zip(asked.sizes, cell, strict=True))
        for cell in itertools.product(*(range(size) for size in asked.sizes.values()))
    ]
    seen = sorted({tuple(row[name] for of in asked.tables("row") for name in of) for row in domain})
    names = [name for of in asked.tables("row") for name in of]
    most = 0.0
    for latest in domain:
        for k in range(rows + 1):
            for own in itertools.combinations_with_replacement(seen, k):
                person = counted(asked, [(latest, [dict(zip(names, row, strict=True)) for row in own])])
                most = max(most, float(np.linalg.norm(found.measure(person))))
    assert most <= found.sensitivity <= 1.001 * most
    assert found.sensitivity == pytest.approx(STEPS, rel=0.01)


def error(found: Design, shares: dict[str, float]) -> float:
    """Sum of mean squared errors at sensitivity 1 where the blocks have `shares` of its square."""
    total = 0.0
    for counts, strategy in found.blocks.items():
        tables = strategy.read(np.zeros(strategy.numbers), strategy.sensitivity**2)
        total += sum(float(tables.variance(of).mean()) for of in strategy.tables) / shares[counts]
    return total


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.floats(0.05, 0.95))
def test_no_other_split_between_people_and_rows_has_less_error(rows: int, share: float) -> None:
    found = design(workload(4), rows)
    squares = {counts: strategy.sensitivity**2 for counts, strategy in found.blocks.items()}
    ours = {counts: square / sum(squares.values()) for counts, square in squares.items()}
    assert set(ours) == {"person", "row"}
    assert error(found, ours) <= error(found, {"person": share, "row": 1 - share}) * 1.001
    assert found.ratio**2 * found._separate**2 == pytest.approx(error(found, ours), rel=1e-3)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 6))
def test_one_release_is_never_worse_than_one_for_each_table_and_near_its_bound(rows: int) -> None:
    found = design(workload(4), rows)
    assert found.ratio_bound * 0.9999 <= found.ratio <= found.ratio_bound * 1.01
    assert found.ratio <= 1.001


def people(asked: Workload, n: int, seed: int = 0) -> Counted:
    rng = np.random.default_rng(seed)
    codes = {name: rng.integers(0, size, n) for name, size in asked.sizes.items()}
    return Counted(codes, n, codes, n)


def test_answers_of_agencies_that_hold_different_columns_are_the_sums_of_theirs() -> None:
    """Without noise: each query is summed over whoever holds it, and merging agencies of one design changes nothing."""
    whole, rules = workload(2), contract(2)
    police, health = whole.held_by(rules, "police"), whole.held_by(rules, "health")
    assert health == whole
    assert [query.name for query in police.queries] == [query.name for query in whole.queries[:-1]]
    assert police.held_by(rules, "police", ["need"]).queries == whole.queries[:1]
    readings = [
        found.read(found.measure(people(found.workload, n, n)), 0.0)
        for found, n in ((design(police, 2), 50), (design(health, 2), 70), (design(police, 2), 90))
    ]
    assert len(merged(readings)) == 2
    for query in whole.queries:
        each = [answer(query, [one]) for one in readings if query in one.design.workload.queries]
        for together in (answer(query, readings), answer(query, merged(readings))):
            if query.among is None:
                values = np.array([[cell.estimate.value for cell in cells] for cells in each], float)
                np.testing.assert_allclose(
                    [cell.estimate.value for cell in together], values.sum(0), atol=1e-6
                )
    with pytest.raises(ValueError, match="no reading has the query 'need by visits'"):
        answer(whole.queries[-1], readings[:1])
    with pytest.raises(ValueError, match="different designs cannot be added"):
        _ = readings[0] + readings[1]


def numerators(query: Query, reading: Reading) -> np.ndarray:
    """Of each cell as it came: of the query without its `among`, where there is one."""
    tables, sizes = reading.tables[query.counts], reading.design.workload.sizes
    of = tuple(name for name in sizes if name in query.table)
    table, by = tables.table(of), [name for name in of if name in query.by]
    conditions = {**query.where, **(query.among or {})}
    for axis, name in enumerate(of):
        names = reading.design.workload.attributes[name].level_names
        counts = [level in conditions.get(name, names) for level in names]
        table = table * np.array(counts).reshape([-1 if i == axis else 1 for i in range(len(of))])
    table = table.sum(tuple(axis for axis, name in enumerate(of) if name not in by))
    return np.asarray(
        table[:2] if by == ["month"] else table.transpose([by.index(n) for n in query.by])
    ).ravel()


def test_the_error_is_known_before_anything_is_spent() -> None:
    """What is expected is what is answered, and what the noise does."""
    found, rng = design(workload(2), 2), np.random.default_rng(3)
    variance = (5 * found.sensitivity) ** 2
    for query in found.workload.queries:
        expected = found.expected(query, variance)
        noise = rng.normal(0, math.sqrt(variance), (150, found.numbers))
        values = [numerators(query, found.read(each, variance)) for each in noise]
        np.testing.assert_allclose(np.std(values, axis=0), expected, rtol=0.25)
        if query.among is None:
            cells = answer(query, [found.read(noise[0], variance)])
            np.testing.assert_allclose([cell.sd for cell in cells], expected)
    for query in (found.workload.queries[0], found.workload.queries[1]):
        least = found.least(query, variance, custom(10))
        assert least.people > 10
        assert least.factor == pytest.approx(least.people / 10)
        quiet = found.least(query, variance / least.factor**2 * 0.999, custom(10))
        assert (quiet.people, quiet.factor) == (pytest.approx(10), None)


def test_a_rate_whose_denominator_is_noise_is_not_shown() -> None:
    found, rng = design(workload(2), 2), np.random.default_rng(3)
    rate, deviation = found.workload.queries[1], 30 * found.sensitivity
    shown = 0
    for _ in range(25):
        reading = found.read(rng.normal(0, deviation, found.numbers), deviation**2)
        cell = answer(rate, [reading])[0]
        shown += cell.estimate.publishable
        assert cell.estimate.publishable is False or cell.estimate.to_dict()["value"] is not None
    assert shown <= 1  # of a normal number, 0.13 % are beyond three standard deviations


def test_no_query_and_a_million_cells_are_one_sentence() -> None:
    with pytest.raises(WorkloadError, match="a workload needs one query at least"):
        design(Workload("none", {}, ()))
    columns = {
        name: {"type": "category", "levels": [str(i) for i in range(999)]} for name in ("need", "area")
    }
    asked = read({"name": "large", "queries": [{"crosstab": ["need", "area"]}]}, contract(1, columns))
    with pytest.raises(WorkloadError, match="the table over need x area has 1,000,000 cells"):
        design(asked)


def test_records_are_told_apart_by_their_digest_and_never_shown() -> None:
    asked = workload(2)
    one, same, other = (people(asked, 20, seed) for seed in (1, 1, 2))
    assert one.digest == same.digest != other.digest
    assert len(one.digest) == 32
    assert "array" not in repr(one)


def test_the_default_rule_is_unrounded() -> None:
    found = design(workload())
    reading = found.read(found.measure(people(found.workload, 40)), 0.0)
    query = found.workload.queries[0]
    assert answer(query, [reading])[0].estimate == answer(query, [reading], disclosure=UNROUNDED)[0].estimate


@pytest.fixture(scope="module")
def maps() -> list[demand.Row]:
    """Of cells with 0, 3, 12 and more people at two agencies, of which one lacks a column; loud and still."""
    return [row for case in ((0.5, UK), (2.0, NONE), (6.0, UK)) for row in demand.intervals(*case, 8)]


def coverage(rows: list[demand.Row]) -> tuple[float, float]:
    """Of all intervals, and of those that are shown."""
    cells = sum(row.cells for row in rows)
    shown = sum(row.shown * row.cells for row in rows)
    right = sum(row.shown * row.cells * (row.covered_shown or 0.0) for row in rows)
    return sum(row.covered * row.cells for row in rows) / cells, right / shown if shown else 1.0


def test_intervals_hold_the_truth_after_fitting_in_cells_of_any_size(maps: list[demand.Row]) -> None:
    """By query, and by the number of people; of those that are shown in all: hardly any of the small ones are."""
    queries, sizes = {row.query for row in maps}, {row.people for row in maps}
    assert {query.partition(" ")[0] for query in queries} == {
        "count",
        "rate",
        "histogram",
        "cross-tab",
        "series",
    }
    assert sizes == {"0", "3", "12", "more", "shares"}
    for name in queries | sizes:
        own = [row for row in maps if name in (row.query, row.people)]
        assert coverage(own)[0] >= 0.93, name
    assert coverage(maps)[1] >= 0.93


def test_intervals_are_no_wider_than_the_noise_and_the_rounding_make_them(maps: list[demand.Row]) -> None:
    for row in maps:
        if "rate" not in row.query:
            assert row.width <= 1.25 * row.before + (10 + 5 if row.profile == "uk-default" else 0), row
        if row.people == "0" and row.sigma > 1:
            assert row.width < 0.75 * row.before


def test_one_release_has_the_error_that_was_planned_and_less_than_separate_ones() -> None:
    """41 % for ten flags, 77 % for five columns: the singular values' bound, and by real draws of discrete noise."""
    ten, five = demand.releases(seeds=5)
    assert (ten["tables"], ten["bound"]) == (55, pytest.approx(0.4103, abs=1e-4))
    assert (five["tables"], five["bound"]) == (10, pytest.approx(0.7698, abs=1e-4))
    for found in (ten, five):
        assert found["planned"] == pytest.approx(found["bound"], rel=1e-4)
        assert found["ratio"] == pytest.approx(found["planned"], rel=0.15)
    assert ten["ratio"] <= 0.6


@pytest.mark.long
@pytest.mark.parametrize("case", demand.CASES, ids=str)
def test_intervals_hold_the_truth_in_each_case(case: Any) -> None:
    rows = list(demand.intervals(*case, 200))
    assert {(row.query, row.people): row.covered for row in rows if row.covered < 0.93} == {}
    assert coverage(rows)[1] >= 0.93


def test_what_is_shown_covers_though_empty_cells_come_out_as_people() -> None:
    """The oracle is simulation: a cell of few people, or none, is shown where its noise is large, and only there."""
    rng, sd = np.random.default_rng(0), 5.0
    for people in (0.0, 3.0, 12.0, 30.0):
        seen = [Noised(x, sd**2) for x in rng.normal(people, sd, 100_000)]
        seen = [found for found in seen if found.reaches(10)][:400]
        low = np.array([low_of_shown(found, 10, 0.95) for found in seen])
        assert (low <= people).mean() >= 0.965
        usual = np.array([found.count - 1.96 * sd for found in seen])
        assert (low <= usual + 0.01).all()
        far = [found.count > 6.5 * sd for found in seen]
        np.testing.assert_allclose(low[far], usual[far], atol=0.05 * sd)
