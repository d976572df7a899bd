"""The made-up town is what docs/pilot-population.md says: seeded, with planted overlaps, needs, a gradient and a lead."""

import itertools
import math
import re
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from command import fedrisk

from experiments.agencies import DataError
from experiments.datasets import CONTRACTS, prepare
from experiments.pilot import (
    AREAS,
    FIRST_MONTH,
    KINDS,
    KNOWN,
    LEAD,
    MALE,
    MONTHS,
    NAMES,
    NEEDS,
    RISK,
    ROWS,
    Options,
    Population,
    Truth,
    declared_size,
    population,
    tables,
    truth,
)
from models.contract import Contract, validate
from models.features import encode
from models.matchkey import match_keys

Tables = dict[str, dict[str, np.ndarray]]
PAGE = Path(__file__).resolve().parent.parent / "docs" / "pilot-population.md"


@pytest.fixture(scope="module")
def contract() -> Contract:
    return Contract.from_dict(yaml.safe_load((CONTRACTS / "pilot.yaml").read_text()))


@pytest.fixture(scope="module")
def made() -> tuple[Population, Tables, float]:
    """The town, its tables, and how many seconds of one processor they took."""
    start = time.process_time()
    people = population(Options(seed=7))
    found = tables(people)
    return people, found, time.process_time() - start


@pytest.fixture(scope="module")
def town(made: tuple[Population, Tables, float]) -> Population:
    return made[0]


@pytest.fixture(scope="module")
def told(town: Population) -> Truth:
    return truth(town)


@pytest.fixture(scope="module")
def held(made: tuple[Population, Tables, float]) -> Tables:
    return made[1]


def newest(table: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The most recent row of each person."""
    order = np.lexsort((table["date"], table["person_id"]))
    ids = table["person_id"][order]
    last = order[np.r_[ids[1:] != ids[:-1], True]]
    return {name: values[last] for name, values in table.items()}


def same(one: Tables, other: Tables) -> bool:
    return one.keys() == other.keys() and all(
        one[name].keys() == other[name].keys()
        and all(np.array_equal(one[name][column], other[name][column]) for column in one[name])
        for name in one
    )


def test_the_same_seed_has_the_same_people_whoever_takes_part() -> None:
    five, two = (tables(population(Options(3, 0.05, agencies))) for agencies in (NAMES, ("health", "police")))
    assert same(five, tables(population(Options(3, 0.05))))
    assert list(two) == ["health", "police"]
    assert same(two, {name: five[name] for name in two})
    assert not same(five, tables(population(Options(4, 0.05))))


def test_every_table_fits_the_contract(contract: Contract, held: Tables) -> None:
    match = contract.match
    assert match is not None
    for kind in KINDS:
        table = held[kind.name]
        assert validate(contract, table, kind.name, min_people=50) == ()
        assert np.isfinite(encode(contract, table, kind.name).x).all()
        keys = match_keys(match, newest(table))
        assert 0.9 < sum(key is not None for key in keys) / len(keys) < 1


def test_it_is_there_in_a_moment(made: tuple[Population, Tables, float]) -> None:
    assert made[2] < 3


def test_a_person_has_at_most_so_many_rows_and_never_two_on_a_day(held: Tables) -> None:
    for table in held.values():
        of_person = Counter(table["person_id"].tolist())
        assert max(of_person.values()) == ROWS
        assert min(of_person.values()) == 1
        assert len(set(zip(table["person_id"], table["date"], strict=True))) == len(table["date"])


def test_overlaps_are_exactly_those_that_are_declared(town: Population, told: Truth, held: Tables) -> None:
    for size in (1, 2, 3):
        for who in itertools.combinations(NAMES, size):
            planted = sum(count for agencies, count in KNOWN.items() if set(who) <= set(agencies))
            assert told.people(*who) == planted
    assert told.people("police", "health") == 0.2 * told.people("police")
    for name, table in held.items():
        assert len(set(table["person_id"])) == told.people(name)
        assert table["person_id"].tolist()[0].startswith(name)  # no number says who somebody is elsewhere
    by_sex = [told.people("police", "health", within=town.male == sex) for sex in (True, False)]
    assert by_sex == [round(300 * MALE["probation"]) + round(900 * MALE["police"]), 45 + 270]


def test_keys_find_most_of_who_is_in_common_and_nobody_else(
    contract: Contract, told: Truth, held: Tables
) -> None:
    match = contract.match
    assert match is not None
    keys = {name: set(filter(None, match_keys(match, newest(table)))) for name, table in held.items()}
    for one, other in itertools.combinations(NAMES, 2):
        shared = told.people(one, other)
        assert 0.85 * shared <= len(keys[one] & keys[other]) <= shared
    assert len(keys["police"] & keys["health"]) == 1084  # docs/pilot-population.md


def test_needs_are_as_often_as_planted_and_the_tables_say_so(
    town: Population, told: Truth, held: Tables
) -> None:
    rows_of = {name: newest(table) for name, table in held.items()}
    for need, agency in itertools.product(NEEDS, NAMES):
        recent = rows_of[agency]
        if agency not in NEEDS[need].held_by:
            assert need not in recent
            continue
        groups = [(town.male == (sex == "male"), recent["sex"] == sex) for sex in ("male", "female")]
        groups += [(town.area == a, recent["area"] == area) for a, area in enumerate(AREAS)]
        for within, rows in groups:
            share = told.share(need, agency, within)
            assert (share.people, share.found) == (rows.sum(), recent[need][rows].mean())
            error = math.sqrt(share.planted * (1 - share.planted) / share.people)
            assert abs(share.found - share.planted) < 4.5 * error


def test_one_need_rises_with_deprivation_and_another_differs_between_men_and_women(
    town: Population, told: Truth
) -> None:
    by_area = [told.share("substance_use", "health", town.area == a).planted for a in range(len(AREAS))]
    assert by_area == sorted(by_area)
    assert by_area[-1] > 3 * by_area[0]
    flat = [told.share("mental_health_need", "health", town.area == a).planted for a in range(len(AREAS))]
    assert max(flat) - min(flat) < 0.02
    women, men = (told.share("domestic_abuse", "health", town.male == sex).planted for sex in (False, True))
    assert women > 2 * men


def test_only_people_of_its_ages_are_known_to_an_agency(town: Population) -> None:
    for kind in KINDS:
        ages = town.age[town.known_to(kind.name)]
        assert kind.ages[0] <= ages.min() <= ages.max() <= kind.ages[1]


def test_series_are_the_tables_by_area_and_month(told: Truth, held: Tables) -> None:
    for name, table in held.items():
        months = table["date"].astype("datetime64[M]").astype(int) - np.datetime64(FIRST_MONTH).astype(int)
        areas = np.array([AREAS.index(area) for area in table["area"]])
        counted = np.zeros((len(AREAS), MONTHS), np.int64)
        np.add.at(counted, (areas, months), 1)
        np.testing.assert_array_equal(told.series(name), counted)
        assert counted.min() > 0


def without_what_is_common(counts: np.ndarray) -> np.ndarray:
    """log counts less each area's and each month's mean."""
    logged = np.log(counts)
    return np.asarray(logged - logged.mean(0) - logged.mean(1, keepdims=True) + logged.mean())


def test_housing_goes_ahead_of_the_police_by_three_months_and_nothing_else_does(told: Truth) -> None:
    left = {name: without_what_is_common(told.series(name)) for name in NAMES}
    found = {}
    for one, other in itertools.permutations(NAMES, 2):
        for lag in range(1, 7):
            pairs = left[one][:, :-lag].ravel(), left[other][:, lag:].ravel()
            found[one, other, lag] = float(np.corrcoef(*pairs)[0, 1])
    strongest = max(found, key=lambda key: abs(found[key]))
    assert strongest == (LEAD.leads, LEAD.follows, LEAD.months)
    assert found.pop(strongest) > 0.8
    assert max(map(abs, found.values())) < 0.3
    ahead = left["housing"][:, : -LEAD.months].ravel()
    slope = ahead @ left["police"][:, LEAD.months :].ravel() / (ahead @ ahead)
    assert slope == pytest.approx(LEAD.strength, abs=0.1)


def test_whoever_is_more_at_risk_has_more_incidents(town: Population, held: Tables) -> None:
    for table in held.values():
        label, used = table["incident_12m"] == 1, table["substance_use"] == 1
        assert 0.1 < label.mean() < 0.35
        assert label[used].mean() > 1.4 * label[~used].mean()
    assert town.incidents[:, 1].max() > MONTHS


def test_the_smallest_town_has_agencies_that_may_take_part() -> None:
    small = truth(population(Options(people=0.05)))
    assert 295 <= small.people("police") <= 305
    assert min(small.people(name) for name in NAMES) >= 50
    assert all((small.series(name).sum(1) > 0).all() for name in NAMES)


WRONG: list[tuple[dict[str, object], str]] = [
    ({"people": 0}, "option people must be a number from 0.05 to 100, got 0"),
    ({"seed": -1}, "option seed must be a whole number, 0 or more, got -1"),
    (
        {"agencies": ["police", "court"]},
        "option agencies must list some of police, health, probation, housing, children, each once, got police, court",
    ),
    ({"agencies": []}, "option agencies must list some of"),
    ({"agencies": ["police", "police"]}, "option agencies must list some of"),
    ({"agencies": "police"}, "option agencies must list some of"),
    ({"agencies": 2}, "option agencies must list some of"),
    ({"colour": 1}, "option of pilot: colour is not a known key"),
]


@pytest.mark.parametrize(("options", "rule"), WRONG)
def test_an_option_that_cannot_be_is_a_sentence(
    options: dict[str, object], rule: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=re.escape(rule)):
        prepare("pilot", options, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_agencies_may_be_chosen(tmp_path: Path) -> None:
    path = prepare("pilot", {"people": 0.05, "agencies": ["police", "health"]}, tmp_path)
    listed = yaml.safe_load(path.read_text())["agencies"]
    assert [(one["name"], one["public_size"]) for one in listed] == [("police", 300), ("health", 400)]
    assert declared_size("children", 1.0) == 2000


def test_a_folder_to_try_it_with_is_written_by_a_command(tmp_path: Path) -> None:
    done = fedrisk("pilot-data", str(tmp_path / "town"), "--people", "0.05", "--agencies", "police,housing")
    assert done.code == 0, done.err
    written = {Path(line).name for line in done.out.splitlines()}
    assert written == {"police.csv", "housing.csv", "contract.yaml", "agencies.yaml", "workload.yaml"}
    asked = yaml.safe_load((tmp_path / "town" / "workload.yaml").read_text())
    assert [name for name in NEEDS if name in str(asked)] == [
        name for name in NEEDS if name != "parent_left_prison"
    ]
    checked = fedrisk("check", str(tmp_path / "town" / "agencies.yaml"))
    assert checked.out.splitlines() == [f"{name}: fits the contract pilot" for name in ("police", "housing")]
    again = fedrisk("pilot-data", str(tmp_path / "town"))
    assert (again.code, again.err.strip()) == (
        1,
        f"fedrisk: {tmp_path / 'town'} is not an empty folder: name another",
    )


def test_the_page_has_every_planted_number() -> None:
    text = PAGE.read_text()
    for who, count in KNOWN.items():
        assert f"| {', '.join(who)} | {count:,} |" in text
    for name, need in NEEDS.items():
        shares = " | ".join(f"{need.shares[agency]:.2f}" if agency in need.shares else "" for agency in NAMES)
        assert f"| `{name}` | {shares} |".replace("|  |", "| |").replace("|  |", "| |") in text
    for area in AREAS:
        assert area in text
    for name, value in RISK.items():
        assert f"{name} {value:g}".replace("-", "−") in text
