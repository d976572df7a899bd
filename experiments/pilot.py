"""A made-up town, as up to five made-up agencies know it, with planted facts for the demand map, the cohort and the signs.

`population` draws the people, who is known to whom, their needs and their contacts; `tables` is what each agency holds;
`truth` counts it all by true identity, which no agency has. Every number that shapes it is declared here and explained
in docs/pilot-population.md.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Final, final

import numpy as np

from experiments.names import Errors, People, recorded
from experiments.names import population as named

FIRST_MONTH: Final = "2022-01"
MONTHS: Final = 36
END: Final = np.datetime64("2025-01-01")
ROWS: Final = 6  # of one person at one agency, at most: unit.rows of conf/contract/pilot.yaml
ROW_SHARES: Final = (0.02, 0.03, 0.05, 0.1, 0.2, 0.6)  # of the people with 1, 2, .. contacts
HORIZON: Final = 12  # months after a contact in which an incident makes its label 1

AREAS: Final = (
    "Larkhill Rise",
    "Orchard End",
    "Station Row",
    "Market Side",
    "Mill Lane",
    "Dock Street",
    "Quarry Bank",
    "Harbour East",
)
"""From the least deprived to the most."""
AREA_SHARES: Final = (0.14, 0.13, 0.13, 0.12, 0.12, 0.12, 0.12, 0.12)  # of the town's postcodes
AREA_PULL: Final = 0.08  # an area's people are known exp(0.08) times as often as those of the area before


@final
@dataclass(frozen=True)
class Kind:
    """A kind of agency. ages: of the people whom it knows, at the end of the 36 months.

    season: the amplitude of its year, and the month (from 0) in which it has most contacts.
    """

    name: str
    ages: tuple[int, int]
    errors: Errors
    season: tuple[float, int]


KINDS: Final = (
    Kind("police", (13, 120), Errors(nickname=0.04, moved=0.12), (0.2, 6)),
    Kind("health", (3, 120), Errors(dates="uk", no_number=0.02), (0.3, 0)),
    Kind("probation", (21, 120), Errors(moved=0.15), (0.0, 0)),
    Kind("housing", (21, 120), Errors(moved=0.03, middle_name=0.1), (0.15, 0)),
    Kind("children", (3, 17), Errors(other_surname=0.06), (0.2, 9)),
)
NAMES: Final = tuple(kind.name for kind in KINDS)

KNOWN: Final[Mapping[tuple[str, ...], int]] = MappingProxyType(
    {
        ("police",): 3550,
        ("health",): 5200,
        ("probation",): 800,
        ("housing",): 3200,
        ("children",): 1350,
        ("police", "health"): 900,
        ("police", "probation"): 500,
        ("police", "housing"): 500,
        ("police", "children"): 150,
        ("health", "probation"): 100,
        ("health", "housing"): 1000,
        ("health", "children"): 500,
        ("probation", "housing"): 200,
        ("police", "health", "probation"): 300,
        ("police", "probation", "housing"): 100,
    }
)
"""People known to exactly these agencies, where the option `people` is 1. Children are no tenants and not on probation."""

MALE: Final = MappingProxyType({"probation": 0.85, "police": 0.7})
"""The share of men among people of whom the first of these knows; half of the others."""


@final
@dataclass(frozen=True)
class Need:
    """A need. shares: of the people known to an agency alone who have it; whoever is known to several has the largest.

    women, men: what these shares are multiplied by. areas: likewise, at the least deprived area and at the most, evenly
    between. held_by: who records it.
    """

    shares: Mapping[str, float]
    women: float = 1.0
    men: float = 1.0
    areas: tuple[float, float] = (1.0, 1.0)
    held_by: tuple[str, ...] = NAMES


NEEDS: Final[Mapping[str, Need]] = MappingProxyType(
    {
        "mental_health_need": Need(
            {"police": 0.25, "health": 0.3, "probation": 0.35, "housing": 0.2, "children": 0.15}
        ),
        "substance_use": Need(
            {"police": 0.25, "health": 0.15, "probation": 0.4, "housing": 0.15, "children": 0.05},
            areas=(0.4, 1.6),
        ),
        "domestic_abuse": Need(
            {"police": 0.15, "health": 0.1, "probation": 0.1, "housing": 0.1, "children": 0.2},
            women=1.4,
            men=0.6,
            held_by=("police", "health", "children"),
        ),
        "arrears": Need({"housing": 0.35}, areas=(0.7, 1.3), held_by=("housing",)),
        "parent_left_prison": Need({"children": 0.18}, held_by=("children",)),
    }
)


@final
@dataclass(frozen=True)
class Lead:
    """Contacts of `leads` in an area go ahead of those of `follows` by `months`.

    log expected contacts of an area and month: `leads` has its season + waves z, `follows` its season + strength x the z
    of `months` before + a variation of its own. z is normal, independent in every area and month, of standard deviation `waves`.
    """

    leads: str = "housing"
    follows: str = "police"
    months: int = 3
    strength: float = 0.8
    waves: float = 1.0


LEAD: Final = Lead()
OWN: Final = (
    0.25  # standard deviation of what every agency but the leading one has of its own in an area and month
)

RISK: Final[Mapping[str, float]] = MappingProxyType(
    {
        "intercept": -2.3,
        "mental_health_need": 0.5,
        "substance_use": 0.9,
        "domestic_abuse": 0.5,
        "arrears": 0.6,
        "parent_left_prison": 0.6,
        "earlier": 0.35,
        "male": 0.3,
        "decades_from_40": -0.15,
    }
)
"""Log-odds of an incident within the horizon; `earlier` counts contacts before the 36 months, logged as log(1 + n)."""


@final
@dataclass(frozen=True)
class Options:
    """What a user may set. people: the size of everything, 1 is 6,000 people at the police; agencies: who takes part."""

    seed: int = 0
    people: float = 1.0
    agencies: tuple[str, ...] = NAMES

    def __post_init__(self) -> None:
        if type(self.seed) is not int or self.seed < 0:
            raise ValueError(f"seed must be a whole number, 0 or more, got {self.seed!r}")
        if type(self.people) not in (int, float) or not 0.05 <= self.people <= 100:
            raise ValueError(f"people must be a number from 0.05 to 100, got {self.people!r}")
        unknown = [name for name in self.agencies if name not in NAMES]
        if unknown or not self.agencies or len(set(self.agencies)) < len(self.agencies):
            raise ValueError(
                f"agencies must list some of {', '.join(NAMES)}, each once, got {', '.join(self.agencies) or 'none'}"
            )


@final
@dataclass(frozen=True, eq=False)
class Contacts:
    """One agency's rows: whose (R,), in which month from 0 (R,), on which day from 1 (R,)."""

    person: np.ndarray
    month: np.ndarray
    day: np.ndarray


@final
@dataclass(frozen=True, eq=False)
class Population:
    """N people as they are; arrays have shape (N,), `member` (N, agencies) in the order of KINDS.

    chance: need -> the planted chance that a person has it; needs: who does. incidents: (person, month), sorted; months
    are counted from FIRST_MONTH and go on after the end.
    """

    options: Options
    named: People
    born: np.ndarray
    male: np.ndarray
    area: np.ndarray
    member: np.ndarray
    chance: Mapping[str, np.ndarray]
    needs: Mapping[str, np.ndarray]
    earlier: np.ndarray
    incidents: np.ndarray
    contacts: Mapping[str, Contacts]

    @cached_property
    def age(self) -> np.ndarray:
        """In whole years at the end of the months."""
        return _age(self.born, np.full(len(self.born), END))

    def known_to(self, *agencies: str) -> np.ndarray:
        """Who is known to all of these, bool (N,)."""
        return np.asarray(self.member[:, [NAMES.index(name) for name in agencies]].all(axis=1))


def population(options: Options = Options()) -> Population:
    """The people of `options.seed`: the same options give the same people, whichever agencies take part."""
    names, traits, met, outcome, times = (np.random.default_rng([options.seed, i]) for i in range(5))
    known = {who: max(1, round(options.people * count)) for who, count in KNOWN.items()}
    people = named(max(2 * sum(known.values()), 8000), names)
    n = len(people["born"])
    born = people["born"].astype("datetime64[D]")
    places, of_place = np.unique(people["postcode"].astype(str), return_inverse=True)
    ends = np.cumsum(AREA_SHARES)
    area = np.minimum(np.searchsorted(ends, (of_place + 0.5) / len(places)), len(AREAS) - 1)
    male, earlier = traits.random(n) < 0.5, traits.poisson(1.0, n)
    member = _members(known, _age(born, np.full(n, END)), male, area, met)
    chance = {name: _chance(need, member, male, area) for name, need in NEEDS.items()}
    needs = {name: traits.random(n) < chance[name] for name in NEEDS}
    found = Population(
        options, people, born, male, area, member, chance, needs, earlier, np.zeros((0, 2)), {}
    )
    intensity = _intensity(times)
    contacts = {
        name: _contacts(np.flatnonzero(member[:, a]), area, intensity[name], [options.seed, 100 + a])
        for a, name in enumerate(NAMES)
    }
    return replace(found, incidents=_incidents(_risk(found), outcome), contacts=contacts)


def _members(
    known: Mapping[tuple[str, ...], int],
    age: np.ndarray,
    male: np.ndarray,
    area: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Exactly as many as `known` for each set of agencies, and exactly the share of men; (N, agencies)."""
    member = np.zeros((len(age), len(KINDS)), dtype=bool)
    ages = {kind.name: kind.ages for kind in KINDS}
    # whoever is left last has the fewest to choose from: the narrowest ages first
    order = sorted(known, key=lambda who: min(ages[name][1] - ages[name][0] for name in who))
    for who in order:
        # the largest of these are a sample without replacement, with chances exp(pull)
        keys = AREA_PULL * area + rng.gumbel(size=len(age))
        low, high = max(ages[name][0] for name in who), min(ages[name][1] for name in who)
        men = round(known[who] * next((MALE[name] for name in MALE if name in who), 0.5))
        for sex, count in ((True, men), (False, known[who] - men)):
            free = (male == sex) & (age >= low) & (age <= high) & ~member.any(axis=1)
            chosen = np.argsort(np.where(free, -keys, np.inf), kind="stable")[:count]
            member[np.ix_(chosen, np.array([NAMES.index(name) for name in who]))] = True
    return member


def _chance(need: Need, member: np.ndarray, male: np.ndarray, area: np.ndarray) -> np.ndarray:
    """(N,), 0 for people known to nobody with a share of it."""
    largest = np.max([need.shares.get(name, 0.0) * member[:, a] for a, name in enumerate(NAMES)], axis=0)
    steps = np.linspace(*need.areas, len(AREAS))
    return np.asarray(np.minimum(largest * np.where(male, need.men, need.women) * steps[area], 0.95))


def _risk(people: Population) -> np.ndarray:
    """The chance of an incident in twelve months, (N,)."""
    logit = RISK["intercept"] + sum(RISK[name] * has for name, has in people.needs.items())
    logit = logit + RISK["earlier"] * np.log1p(people.earlier) + RISK["male"] * people.male
    return np.asarray(1 / (1 + np.exp(-(logit + RISK["decades_from_40"] * (people.age - 40) / 10))))


def _incidents(risk: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A Poisson process for each person until the horizon of the last month: (incidents, 2)."""
    length = MONTHS + HORIZON
    count = rng.poisson(-np.log1p(-risk) * length / HORIZON)
    person = np.repeat(np.arange(len(risk)), count)
    month = rng.uniform(0, length, len(person))
    order = np.lexsort((month, person))
    return np.column_stack([person, month])[order]


def _intensity(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Agency -> expected contacts of an area's person by month, up to a factor; (areas, MONTHS)."""
    before = np.arange(-LEAD.months, MONTHS)
    waves = LEAD.waves * rng.normal(size=(len(AREAS), len(before)))
    found = {}
    for kind in KINDS:
        amplitude, most = kind.season
        log = amplitude * np.cos(2 * np.pi * (np.arange(MONTHS) - most) / 12)
        own = OWN * rng.normal(size=(len(AREAS), MONTHS))
        if kind.name == LEAD.leads:
            own = waves[:, LEAD.months :]
        if kind.name == LEAD.follows:
            own = own + LEAD.strength * waves[:, :MONTHS]
        found[kind.name] = np.exp(log + own)
    return found


def _contacts(who: np.ndarray, area: np.ndarray, intensity: np.ndarray, seed: Sequence[int]) -> Contacts:
    """One to ROWS contacts of each person, on days that differ, in months drawn by the area's intensity."""
    rng = np.random.default_rng(seed)
    count = rng.choice(np.arange(1, ROWS + 1), len(who), p=ROW_SHARES)
    person = np.repeat(who, count)
    ends = np.cumsum(intensity / intensity.sum(axis=1, keepdims=True), axis=1)
    chance, month = rng.random(len(person)), np.zeros(len(person), np.int64)
    for a in range(len(AREAS)):
        rows = area[person] == a
        month[rows] = np.minimum(np.searchsorted(ends[a], chance[rows], side="right"), MONTHS - 1)
    place = np.arange(len(person)) - np.repeat(np.cumsum(count) - count, count)
    day = 1 + (np.repeat(rng.integers(0, 28, len(who)), count) + 5 * place) % 28
    return Contacts(person, month, day)


# --- what an agency holds -------------------------------------------------------------------------------


def tables(people: Population) -> dict[str, dict[str, np.ndarray]]:
    """One table per agency that takes part, by its name, which is that of its kind: columns as the contract wants them.

    Persons are numbered by each agency on its own, and named as it wrote them down. Rows are in no order; `date` tells.
    """
    return {name: _table(people, name) for name in people.options.agencies}


def _table(people: Population, agency: str) -> dict[str, np.ndarray]:
    a = NAMES.index(agency)
    rng = np.random.default_rng([people.options.seed, 200 + a])
    contacts, who = people.contacts[agency], np.flatnonzero(people.member[:, a])
    written = recorded({name: values[who] for name, values in people.named.items()}, rng, KINDS[a].errors)
    numbers = np.array([f"{agency}-{i:06d}" for i in rng.permutation(len(who))], dtype=object)
    mine = np.searchsorted(who, contacts.person)
    dates = _dates(contacts)
    columns: dict[str, np.ndarray] = {
        "person_id": numbers[mine],
        **{name: values[mine] for name, values in written.items()},
        "date": dates.astype(str).astype(object),
        "sex": np.where(people.male, "male", "female").astype(object)[contacts.person],
        "age": _age(people.born[contacts.person], dates).astype(float),
        "area": np.array(AREAS, dtype=object)[people.area[contacts.person]],
        "contacts_before": (people.earlier[contacts.person] + _place(contacts.person, dates)).astype(float),
    }
    columns |= {
        name: people.needs[name][contacts.person].astype(float)
        for name, need in NEEDS.items()
        if agency in need.held_by
    }
    columns["incident_12m"] = _label(people, contacts)
    order = rng.permutation(len(mine))
    return {name: column[order] for name, column in columns.items()}


def _dates(contacts: Contacts) -> np.ndarray:
    months = np.datetime64(FIRST_MONTH) + contacts.month
    return np.asarray(months.astype("datetime64[D]") + (contacts.day - 1))


def _age(born: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Birthdays by then, whole years."""
    years = at.astype("datetime64[Y]").astype(int) - born.astype("datetime64[Y]").astype(int)
    this_year = [dates - dates.astype("datetime64[Y]") for dates in (at, born)]
    return np.asarray(years - (this_year[0] < this_year[1]))


def _place(person: np.ndarray, dates: np.ndarray) -> np.ndarray:
    """How many of the person's rows are earlier, (R,)."""
    order = np.lexsort((dates, person))
    first = np.searchsorted(person[order], person[order])
    place = np.empty(len(person), np.int64)
    place[order] = np.arange(len(person)) - first
    return place


def _label(people: Population, contacts: Contacts) -> np.ndarray:
    """1.0 where an incident falls within the horizon after the day of the contact, (R,)."""
    apart = MONTHS + 2 * HORIZON  # so that one number tells person and time
    at = contacts.person * apart + contacts.month + contacts.day / 31
    incidents = people.incidents @ np.array([apart, 1.0])
    before = [np.searchsorted(incidents, at + months, side="right") for months in (0, HORIZON)]
    return np.asarray((before[1] > before[0]).astype(float))


def declared_size(agency: str, people: float) -> int:
    """The people that an agency says it serves, to two significant digits: declared, never counted from a table."""
    nominal = people * sum(count for who, count in KNOWN.items() if agency in who)
    unit = 10.0 ** max(0, math.floor(math.log10(nominal)) - 1)
    return int(round(nominal / unit) * unit)


# --- what is true of it ---------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Share:
    """Of `people`, those with a need: as planted (the mean of their chances) and as it came out, in the tables."""

    people: int
    planted: float
    found: float


@final
@dataclass(frozen=True, eq=False)
class Truth:
    """What a map, a cohort and the signs of a population should find. Counts are exact, of the tables and by true identity."""

    population: Population

    @property
    def lead(self) -> Lead:
        """What goes ahead of what, by how long and how strongly."""
        return LEAD

    def people(self, *agencies: str, within: np.ndarray | None = None) -> int:
        """How many people all of these know: of one its people, of several their overlap. within: of these people, bool (N,)."""
        return int((self.population.known_to(*agencies) & self._within(within)).sum())

    def share(self, need: str, agency: str, within: np.ndarray | None = None) -> Share:
        """Of the people known to an agency that records the need. within: of these people, bool (N,)."""
        if agency not in NEEDS[need].held_by:
            raise ValueError(f"{agency} does not record {need}")
        who = self.population.known_to(agency) & self._within(within)
        chance, has = self.population.chance[need][who], self.population.needs[need][who]
        return Share(int(who.sum()), float(chance.mean()), float(has.mean()))

    def series(self, agency: str) -> np.ndarray:
        """Contacts by area and month, int64 (areas, MONTHS)."""
        contacts = self.population.contacts[agency]
        at = self.population.area[contacts.person] * MONTHS + contacts.month
        return np.bincount(at, minlength=len(AREAS) * MONTHS).reshape(len(AREAS), MONTHS)

    def _within(self, within: np.ndarray | None) -> np.ndarray:
        return np.ones(len(self.population.male), dtype=bool) if within is None else within


def truth(people: Population) -> Truth:
    """What was planted in these people and what is in their tables."""
    return Truth(people)
