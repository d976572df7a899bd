"""What each rule of a match key misses and confuses: two agencies' records of made-up people, with slips and moves.

    python -m experiments.benchmarks --only matching

Missed is the share of people in both lists whose keys differ, or who lack one at either agency. Pairs of different people
whose keys are alike are counted, and told as a share of the people in both lists. `experiments.names.Errors` has the
rates of every slip at each agency: they are assumed, none is measured on real records. SOUNDEX is no rule of a contract: the
surname by how it sounds (US patent 1,261,167), the usual remedy against typos, to see what it would be worth.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np

from experiments.names import NO_ERRORS, Errors, People, population, recorded
from models.contract import Match
from models.matchkey import letters, match_keys

NAME: Final = ("forename", "surname")
SOUNDEX: Final = "initial-soundex-born"
RULES: Final[Mapping[str, Match]] = {
    "identifier": Match("identifier", identifier="person_number"),
    "initial-surname-born": Match("initial-surname-born", name=NAME, born="born"),
    "name-born-postcode": Match("name-born-postcode", name=NAME, born="born", postcode="postcode"),
    SOUNDEX: Match("initial-surname-born", name=("forename", "sound"), born="born"),
}
SHARED: Final = 0.2  # of each list


@dataclass(frozen=True)
class Row:
    """One rule on two lists of `n`, means over seeds. marked: missed, of people with an accent, apostrophe, hyphen or space in the surname."""

    rule: str
    n: int
    errors: str
    missed: float
    marked: float
    false_pairs: float
    false_share: float
    without: float


def rows(
    people: People,
    n: int,
    errors: Errors,
    named: str,
    seeds: Sequence[int],
    rules: Sequence[str] = tuple(RULES),
) -> Iterator[Row]:
    """Each rule on two lists of n of these people, `SHARED` of whom are on both."""
    found: dict[str, list[tuple[float, ...]]] = {rule: [] for rule in rules}
    for seed in seeds:
        rng = np.random.default_rng((seed, n))
        order, both = rng.permutation(len(people["born"])), int(SHARED * n)
        places = (order[:n], np.r_[order[:both], order[n : 2 * n - both]])
        lists = [
            recorded({name: cells[place] for name, cells in people.items()}, rng, errors) for place in places
        ]
        marked = np.array(
            [not name.isascii() or not name.isalpha() for name in people["surname"][places[0][:both]]]
        )
        for each in lists:
            each["sound"] = _sounds(each["surname"])
        for rule in rules:
            one, other = (match_keys(RULES[rule], each) for each in lists)
            hit = np.array([a is not None and a == b for a, b in zip(one[:both], other[:both], strict=True)])
            false = _pairs(one, other) - int(hit.sum())
            lacks = one.count(None) / n
            found[rule].append((1 - hit.mean(), 1 - hit[marked].mean(), false, false / both, lacks))
    for rule, numbers in found.items():
        yield Row(rule, n, named, *np.mean(numbers, axis=0).tolist())


def each_error(people: People, n: int, seeds: Sequence[int]) -> Iterator[Row]:
    """As `rows`, with one kind of slip at a time."""
    for kind in fields(Errors):
        if kind.name != "dates":
            alone = Errors(**(asdict(NO_ERRORS) | {kind.name: kind.default}))
            yield from rows(people, n, alone, f"{kind.name} {kind.default:g}", seeds, tuple(RULES))


def measure(
    folder: Path, *, people: int = 1_000_000, sizes: Sequence[int] = (10_000, 100_000), seeds: int = 5
) -> dict[str, Any]:
    """All rows; no target was set."""
    everyone = population(people, np.random.default_rng(0))
    found = [row for n in sizes for row in rows(everyone, n, Errors(dates="uk"), "all", range(seeds))]
    alone = list(each_error(everyone, sizes[0], range(seeds)))
    return {
        "people": people,
        "rows": [asdict(row) for row in found],
        "alone": [asdict(row) for row in alone],
        "targets": [],
    }


def shown(result: Mapping[str, Any]) -> list[str]:
    """Two tables: every slip together, and each alone."""
    heads = f"{'missed':>9}{'marked':>9}{'false pairs':>13}{'of shared':>11}{'no key':>9}"
    title = f"lists out of {result['people']:,}"
    lines = [f"  {title:<34}{heads}"]
    for row in result["rows"]:
        lines.append(
            f"  {row['rule']:<22}{row['n']:>10,}  {row['missed']:>9.3f}{row['marked']:>9.3f}{row['false_pairs']:>13.1f}"
            f"{row['false_share']:>11.4f}{row['without']:>9.4f}"
        )
    lines += ["", f"  {'missed by one slip alone':<26}" + "".join(f"{rule:>22}" for rule in RULES)]
    for named in dict.fromkeys(row["errors"] for row in result["alone"]):
        own = {row["rule"]: row["missed"] for row in result["alone"] if row["errors"] == named}
        lines.append(f"  {named:<26}" + "".join(f"{own[rule]:>22.4f}" for rule in RULES))
    return lines


def _pairs(one: Sequence[str | None], other: Sequence[str | None]) -> int:
    """Pairs of a person of one list and one of the other whose keys are alike."""
    counts = Counter(key for key in other if key is not None)
    return sum(counts[key] for key in one if key is not None)


def _sounds(surnames: np.ndarray) -> np.ndarray:
    found = np.empty(len(surnames), dtype=object)
    known = {name: None if name is None else _soundex(letters(name)) for name in set(surnames.tolist())}
    found[:] = [known[name] for name in surnames.tolist()]
    return found


def _soundex(name: str) -> str:
    """The first letter, then letters that stand for Soundex's six classes, as many as there are."""
    found, last = name[:1], _CLASS.get(name[:1], "")
    for letter in name[1:]:
        sound = _CLASS.get(letter, "")
        found += sound if sound != last else ""
        last = last if letter in "hw" else sound
    return found


_CLASS: Final = {
    letter: named
    for named, letters_of in zip("bcdlmr", ("bfpv", "cgjkqsxz", "dt", "l", "mn", "r"), strict=True)
    for letter in letters_of
}
