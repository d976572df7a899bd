"""Match keys: what one person's records have alike, what other people's have not, and what a contract says of them."""

import hashlib
from collections import Counter
from typing import Any

import numpy as np
import pytest
from conftest import CONTRACT
from hypothesis import given
from hypothesis import strategies as st

from experiments.names import NO_ERRORS, Errors, population, recorded
from models.contract import Contract, ContractError, Match
from models.matchkey import buckets_of, day, first_word, identifier, last_word, letters, match_keys, postcode

BY_NAME = Match("initial-surname-born", name=("forename", "surname"), born="born")
BY_PLACE = Match("name-born-postcode", name=("forename", "surname"), born="born", postcode="postcode")
BY_NUMBER = Match("identifier", identifier="person_number")
RULES = (BY_NAME, BY_PLACE, BY_NUMBER)
SECRET = bytes(range(32))
DAYS = st.dates(min_value=np.datetime64("1902-01-01").item()).filter(
    lambda date: date.year < 2100 and date.isoformat() != "1970-01-01"
)


def column(*cells: str | None) -> np.ndarray:
    found = np.empty(len(cells), dtype=object)
    found[:] = cells
    return found


def keys(match: Match, *people: tuple[str | None, ...]) -> list[str | None]:
    """The keys of people whose cells are in the order of the rule's columns."""
    return match_keys(match, dict(zip(match.columns, map(column, *people), strict=True)))


# --- laws -----------------------------------------------------------------------------------------------


@given(st.text(max_size=40))
def test_what_is_written_alike_stays_as_it_is(text: str) -> None:
    for read in (letters, first_word, day, postcode, identifier):
        assert read(read(text)) == read(text)


@given(st.text(max_size=30), st.sampled_from("\u0300\u0301\u0308\u0327'’ʼ"), st.data())
def test_accents_and_apostrophes_change_no_name(text: str, mark: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(text)))
    assert letters(f"{text[:at]}{mark}{text[at:]}") == letters(text)
    assert letters(f"  {text}\t") == letters(text)


@given(
    st.text("abcdefghijklmnopqrstuvwxyzéøłßñçåïæ", min_size=1, max_size=15),
    st.text("- ", min_size=1, max_size=3),
)
def test_capitals_and_hyphens_change_no_name(text: str, between: str) -> None:
    assert letters(text.upper()) == letters(text.title()) == letters(text)
    assert letters(f"{text}{between}quirk") == letters(f"{text}quirk")


@given(DAYS)
def test_every_way_of_writing_a_day_is_one(date: Any) -> None:
    iso = date.isoformat()
    ways = (
        "%d/%m/%Y",
        "%d-%m-%Y",
        "%d.%m.%Y",
        "%d %B %Y",
        "%d-%b-%Y",
        "%Y/%m/%d",
        "%Y%m%d",
        "%Y-%m-%dT00:00:00",
    )
    assert {day(date.strftime(way)) for way in ways} == {day(f"{iso} 00:00:00.000")} == {iso}
    assert day(f"{date.day}/{date.month}/{date.year}") == iso


PARTS = st.tuples(
    st.sampled_from(["Al", "AL Bo", "A'l-bo", "Bo", "", "1"]),
    st.sampled_from(["Bo", "bö", "B", "oX", ""]),
    st.sampled_from(["1990-12-31", "31/12/1990", "1990-12-30", "1990"]),
    st.sampled_from(["X1", "x 1", "X11", "1", "-"]),
)


@given(PARTS, PARTS)
def test_keys_are_alike_where_and_only_where_every_part_is(
    one: tuple[str, ...], other: tuple[str, ...]
) -> None:
    found = keys(BY_PLACE, one, other)
    read = [(first_word(a), letters(b), day(c), postcode(d)) for a, b, c, d in (one, other)]
    assert [key is None for key in found] == [not all(parts) for parts in read]
    if None not in found:
        assert (found[0] == found[1]) == (read[0] == read[1])


def test_the_key_of_a_row_depends_on_no_other_row() -> None:
    people = recorded(population(300, np.random.default_rng(1)), np.random.default_rng(2), Errors())
    for match in RULES:
        together = match_keys(match, people)
        alone = [
            match_keys(match, {name: cells[i : i + 1] for name, cells in people.items()})[0]
            for i in range(300)
        ]
        assert together == alone


def test_keys_of_one_rule_are_none_of_another() -> None:
    people = population(50, np.random.default_rng(1))
    found = [key for match in RULES for key in match_keys(match, people)]
    assert len(set(found)) == 150


# --- what is written alike ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("O'Neil", "O’Neil", "Oʼneil", "O`NEIL", "ONeil", "o neil"), "oneil"),
        (("Smith-Jones", "Smith Jones", "SMITH–JONES", "SmithJones"), "smithjones"),
        (("Siân", "SIAN", "Sia\u0302n"), "sian"),
        (("Łukasz", "Lukasz", "ŁUKASZ"), "lukasz"),
        (("Søren", "Soren"), "soren"),
        (("Weiß", "WEISS", "WEIẞ"), "weiss"),
        (("Đoković", "Dokovic"), "dokovic"),
        (("Þór", "Thor"), "thor"),
        (("Ægir", "Aegir"), "aegir"),
        (("Yılmaz", "YILMAZ", "Yilmaz", "İlmaz Y"), None),
        (("McDonald", "Mc Donald", "MCDONALD"), "mcdonald"),
        (("Dr. Sarah", "Mrs Sarah", "Prof Dr Sarah", "Sarah"), "sarah"),
        (("Jones Jr.", "Jones III", "Jones"), "jones"),
        (("Dr", "dr."), "dr"),
        (("Ｓｍｉｔｈ", "Smith"), "smith"),
        (("Олена", "олена"), "олена"),
        (("", " ", "-", "123", "?", "Unknown", "NOT KNOWN"), ""),
    ],
)
def test_names(texts: tuple[str, ...], expected: str | None) -> None:
    if expected is None:
        assert [letters(text) for text in texts] == ["yilmaz", "yilmaz", "yilmaz", "ilmazy"]
    else:
        assert {letters(text) for text in texts} == {expected}


def test_a_forename_is_its_first_word_and_one_cell_may_hold_the_whole_name() -> None:
    assert {first_word(text) for text in ("Sarah Jane", "Sarah-Jane", "Miss Sarah", "SARAH")} == {"sarah"}
    assert [last_word(text) for text in ("Sarah Jane O'Neil", "Dr Sarah", "")] == ["oneil", "", ""]
    whole = Match("initial-surname-born", name=("name",), born="born")
    assert keys(whole, ("Sarah Jane O'Neil", "1990-12-31")) == keys(
        BY_NAME, ("Sarah", "O’NEIL", "31/12/1990")
    )


@pytest.mark.parametrize(
    "text",
    [
        *("1990-02-31", "31/02/1990", "1990-13-01", "12/31/1990", "0000-00-00", "1990-00-10"),
        *(
            "31/12/90",
            "90-12-31",
            "1990",
            "12/1990",
            "33238",
            "31//12/1990",
            "31/12-1990",
            "3112199",
            "31 Dez 1990",
        ),
        *("1900-01-01", "01/01/1901", "1970-01-01", "1899-12-30", "9999-12-31", "2100-01-01", "", "n/a"),
    ],
)
def test_what_is_no_day_of_birth_makes_no_key(text: str) -> None:
    assert day(text) == ""
    assert keys(BY_NAME, ("Sarah", "Jones", text)) == [None]


def test_postcodes_and_identifiers() -> None:
    assert {postcode(text) for text in ("xa1 2bc", "XA12BC", " XA1-2bc ")} == {"XA12BC"}
    assert [postcode(text) for text in ("50309-1234", "ZZ99 3VZ", "zz993wz", "unknown", "")] == [
        "503091234",
        "",
        "",
        "",
        "",
    ]
    assert {identifier(text) for text in ("943 476 5919", "943-476-5919", "09434765919")} == {"9434765919"}
    assert [identifier(text) for text in ("ab 12c", "0000000000", "999999", "pending", "")] == [
        "AB12C",
        "",
        "",
        "",
        "",
    ]
    numbers = {"person_number": np.array([9434765919.0, np.nan, 12.0])}
    assert match_keys(BY_NUMBER, numbers) == keys(BY_NUMBER, ("9434765919",), (None,), ("0012",))


def test_a_person_without_a_part_has_no_key() -> None:
    whole = ("Sarah", "Jones", "1990-12-31", "XA1 2BC")
    assert keys(BY_PLACE, whole) != [None]
    for i in range(4):
        assert keys(BY_PLACE, (*whole[:i], None, *whole[i + 1 :])) == [None]


# --- made-up people -------------------------------------------------------------------------------------


def test_made_up_people_are_the_same_for_one_seed_and_no_others() -> None:
    one, same, other = (population(500, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert all((one[name] == same[name]).all() for name in one)
    assert (one["born"] != other["born"]).mean() > 0.9
    assert len(set(one["person_number"])) == 500
    assert all(place.startswith("X") for place in one["postcode"])
    for number in one["person_number"]:  # the check of an NHS number, which begins with another digit
        digits = [int(digit) for digit in number]
        assert number[0] == "8"
        assert sum(d * w for d, w in zip(digits, range(10, 0, -1), strict=True)) % 11 == 0
    for name in population(0, np.random.default_rng(1)).values():
        assert len(name) == 0


def test_no_spelling_and_no_format_of_dates_changes_a_key() -> None:
    people = population(3000, np.random.default_rng(3))
    plain = recorded(people, np.random.default_rng(4), NO_ERRORS)
    assert all((plain[name] == people[name]).all() for name in people)
    other = recorded(
        people, np.random.default_rng(5), Errors(**(vars(NO_ERRORS) | {"spelling": 1.0, "dates": "uk"}))
    )
    assert (other["surname"] != people["surname"]).mean() > 0.3
    for match in RULES:
        differ = [a != b for a, b in zip(match_keys(match, plain), match_keys(match, other), strict=True)]
        lost = [
            "-" in name for name in people["forename"][differ]
        ]  # a first word once its hyphen is left out
        assert all(lost)
        assert sum(lost) <= (20 if match == BY_PLACE else 0)


def test_keys_of_different_people_differ_but_for_chance_and_twins() -> None:
    """Of 20,000 people about 300 are twins; 1 in 15 pairs of twins shares the initial, 1 in 150 the forename."""
    people = population(20_000, np.random.default_rng(6))
    for match, most in ((BY_NUMBER, 0), (BY_PLACE, 12), (BY_NAME, 80)):
        alike = sum(n - 1 for n in Counter(match_keys(match, people)).values())
        assert alike <= most


# --- buckets --------------------------------------------------------------------------------------------


def test_buckets_are_keyed_hashes_in_order_without_those_who_have_no_key() -> None:
    found = buckets_of(["a", None, "é"], SECRET, 1000)
    expected = [
        int.from_bytes(hashlib.blake2b(text.encode(), key=SECRET, digest_size=8).digest(), "big") % 1000
        for text in "aé"
    ]
    assert found.tolist() == expected
    assert found.dtype == np.int64
    assert buckets_of([None], SECRET, 5).shape == (0,)


def test_another_secret_is_another_hash_and_buckets_are_equally_full() -> None:
    people = [str(i) for i in range(20_000)]
    one, other = buckets_of(people, SECRET, 50), buckets_of(people, SECRET[::-1], 50)
    assert (one == other).mean() == pytest.approx(1 / 50, abs=0.006)
    full = np.bincount(one, minlength=50)
    assert ((full - 400) ** 2 / 400).sum() < 95  # chi-squared, 49 degrees of freedom: 1 in 10,000 above


@pytest.mark.parametrize("secret", [b"", b"short", b"x" * 65])
def test_a_secret_of_another_length_is_refused(secret: bytes) -> None:
    with pytest.raises(ValueError, match=f"must have 16 to 64 bytes, got {len(secret)}"):
        buckets_of(["a"], secret, 10)


# --- the contract ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"identifier": "nhs"}, Match("identifier", identifier="nhs")),
        ({"identifier": "person"}, Match("identifier", identifier="person")),
        ({"name": ["f", "s"], "born": "b"}, Match("initial-surname-born", name=("f", "s"), born="b")),
        ({"name": ["whole"], "born": "b"}, Match("initial-surname-born", name=("whole",), born="b")),
        (
            {"name": ["f", "s"], "born": "b", "postcode": "p"},
            Match("name-born-postcode", None, ("f", "s"), "b", "p"),
        ),
    ],
)
def test_a_contract_says_how_people_are_matched(section: dict[str, Any], expected: Match) -> None:
    contract = Contract.from_dict(CONTRACT | {"match": section})
    assert contract.match == expected
    assert Contract.from_dict(contract.to_dict()) == contract
    assert contract.match_columns == expected.columns
    plain = Contract.from_dict(CONTRACT)
    assert contract.sha256 != plain.sha256
    for kind in CONTRACT["kinds"]:  # training needs none of it
        assert contract.needs(kind) == plain.needs(kind)


def test_a_contract_without_it_is_hashed_as_it_was() -> None:
    """The hash is that of the version before there was a `match`."""
    assert "match" not in Contract.from_dict(CONTRACT).to_dict()
    assert Contract.from_dict(CONTRACT).sha256.startswith("de9676c456dbaad5")


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({}, "match must name an identifier, or name and born, with a postcode or without"),
        ({"postal": "p"}, "match.postal is not a known setting"),
        ("nhs", "match must be a mapping of settings"),
        ({"name": ["f", "s"]}, "match.born is required by the rule initial-surname-born"),
        (
            {"name": ["f", "m", "s"], "born": "b"},
            "match.name must list two columns, forenames and surname, or one",
        ),
        ({"name": "f", "born": "b"}, "match.name must be a list with at least one entry"),
        ({"name": ["f", "f"], "born": "b"}, "match.name lists 'f' twice"),
        ({"name": ["f", "b"], "born": "b"}, "match: the column 'b' must not be another part of it too"),
        (
            {"identifier": "nhs", "born": "b"},
            "match.born must be left out: the rule identifier reads identifier alone",
        ),
        (
            {"rule": "name-born-postcode", "name": ["f", "s"], "born": "b"},
            "match.postcode is required by the rule",
        ),
        (
            {"rule": "soundex", "identifier": "nhs"},
            "match.rule must be identifier or initial-surname-born or",
        ),
        ({"identifier": "age"}, "match: the column 'age' must not be a feature too"),
        ({"identifier": "sex"}, "match: the column 'sex' must not be the column of the group sex too"),
        ({"identifier": "outcome"}, "match: the column 'outcome' must not be the column of label too"),
        (
            {"name": ["f", "person"], "born": "b"},
            "match: the column 'person' must not be the column of unit too",
        ),
    ],
)
def test_problems_of_a_match_are_sentences(section: object, problem: str) -> None:
    with pytest.raises(ContractError) as refused:
        Contract.from_dict(CONTRACT | {"match": section})
    assert any(found.startswith(problem) for found in refused.value.problems), refused.value.problems
