"""A made-up population whose true risk is known, seen through five made-up agencies.

`population` draws people, `tables` shows what each agency holds of them, `true_risk` tells the chance that the
model should find. Every number below that shapes the population is declared here and explained in docs/synthetic.md.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

HORIZON: Final = 12  # months after a row's month in which an incident makes its label 1
LAST_MONTH: Final = 36  # the newest rows lie in months 25 to 36

INTERCEPT: Final = 0.05
COEFFICIENTS: Final[Mapping[str, float]] = MappingProxyType(
    {
        "age": -0.25,
        "deprivation": 0.25,
        "prior_contacts": 0.65,
        "earlier_incident": 0.4,
        "employment=education": -0.3,
        "employment=unemployed": 0.4,
        "employment=inactive": 0.2,
        "household=alone": 0.3,
        "household=lone parent": 0.4,
        "household=with children": -0.3,
        "household=with parents": -0.4,
        "household=shared": 0.2,
        "household=hostel": 0.8,
        "household=no fixed home": 1.0,
        "moves": 0.3,
        "months_known": 0.0,
        "arrests": 0.6,
        "breach": 0.6,
        "emergency_visits": 0.6,
        "substance_use": 0.4,
        "arrears": 0.8,
        "notice_served": 0.7,
        "absence": 0.6,
        "safeguarding_referrals": 0.7,
        "male": 0.4,
    }
)
"""True logistic coefficients, by the name of the encoded feature (`male` is never a feature of a model)."""


@dataclass(frozen=True)
class Disparities:
    """What differs between groups, by construction.

    deprivation_shift: the minority's circumstances are worse by so many standard deviations (base rates differ).
    over_recording: each contact of a minority person is recorded 1 + over_recording times on average, although
        only the contacts that happened raise the risk (measurement bias: recorded contacts overstate the risk).
    male_logit: men's log-odds are higher by so much at equal circumstances, and sex is not a feature.
    """

    deprivation_shift: float = 0.6
    over_recording: float = 0.5
    male_logit: float = COEFFICIENTS["male"]


DISPARITIES: Final = Disparities()


@dataclass(frozen=True)
class Practice:
    """How agencies pick people today, by construction: a rule on what they record, and not everybody is looked at.

    contacts: a person is on the list with so many recorded contacts, or with an earlier incident. looked_at: the chance
    that somebody went through the person's record at all. no_date: of people with an incident, those whose day of it
    was not written down.
    """

    contacts: int = 6
    looked_at: float = 0.9
    no_date: float = 0.04


PRACTICE: Final = Practice()


@dataclass(frozen=True)
class Scale:
    """How a number becomes a feature: the same bounds as conf/contract/synthetic.yaml (a test compares them)."""

    low: float
    high: float
    log: bool = False
    center: float | None = None
    spread: float | None = None

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Encoded values, same shape; [-1, 1] without a declared center."""
        if self.center is not None and self.spread is not None:
            return np.asarray((np.clip(values, self.low, self.high) - self.center) / self.spread)
        part = np.clip(values, self.low, self.high) - self.low
        width = self.high - self.low
        return np.asarray(2 * (np.log1p(part) / np.log1p(width) if self.log else part / width) - 1)


SCALES: Final[Mapping[str, Scale]] = MappingProxyType(
    {
        "age": Scale(16, 90, center=40, spread=15),
        "deprivation": Scale(1, 10),
        "prior_contacts": Scale(0, 20, log=True),
        "moves": Scale(0, 8, log=True),
        "months_known": Scale(0, 120),
        "arrests": Scale(0, 12, log=True),
        "emergency_visits": Scale(0, 12, log=True),
        "arrears": Scale(0, 26, log=True),
        "absence": Scale(0, 60),
        "safeguarding_referrals": Scale(0, 8, log=True),
    }
)
EMPLOYMENT: Final = ("employed", "education", "unemployed", "inactive")
HOUSEHOLD: Final = (
    "couple",
    "alone",
    "lone parent",
    "with children",
    "with parents",
    "shared",
    "hostel",
    "no fixed home",
)
SUBSTANCE_USE: Final = ("none", "some", "dependent")
FLAGS: Final = ("earlier_incident", "breach", "notice_served")

SHARED: Final = (
    "age",
    "deprivation",
    "prior_contacts",
    "earlier_incident",
    "employment",
    "household",
    "moves",
    "months_known",
)
BLOCKS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "custody": ("arrests", "breach"),
        "care": ("emergency_visits", "substance_use"),
        "tenancy": ("arrears", "notice_served"),
        "family": ("absence", "safeguarding_referrals"),
    }
)


@dataclass(frozen=True)
class Kind:
    """A kind of agency: what it holds, how large it is, whom it meets and how often its fields are empty.

    people: about how many it knows where the option `people` is 1. draws: log-odds of being known to it, by
    standardised trait. gaps: its rate of missing values as a multiple of the option `missing`.
    """

    name: str
    block: str
    people: int
    draws: Mapping[str, float]
    gaps: float


KINDS: Final = (
    Kind("children", "family", 600, {"age": -0.9, "absence": 0.6, "safeguarding_referrals": 0.8}, 1.5),
    Kind("probation", "custody", 1200, {"arrests": 1.0, "breach": 0.8, "age": -0.2}, 0.5),
    Kind("housing", "tenancy", 3000, {"deprivation": 0.7, "arrears": 0.5, "moves": 0.3}, 1.0),
    Kind("health", "care", 4800, {"age": 0.7, "emergency_visits": 0.6, "substance_use": 0.3}, 0.7),
    Kind("police", "custody", 5400, {"arrests": 0.5, "prior_contacts": 0.6, "age": -0.4}, 1.2),
)
"""In the order in which they meet people, the smallest first."""
PEOPLE: Final = sum(kind.people for kind in KINDS)
MAY_BE_MISSING: Final = ("deprivation", "employment", "household", "moves", "substance_use", "absence")


@dataclass(frozen=True)
class Options:
    """What a user may set. people: the size of everything, 1 is 3,000 people per agency on average.

    The rest are shares from 0 to 0.5. known_to_several: of the people known to any agency, those known to more
    than one (a quarter of them to three). repeated: of an agency's people, those with one to three older rows
    as well. missing: of the cells that may be empty, those that are, on average.
    """

    seed: int = 0
    people: float = 1.0
    known_to_several: float = 0.2
    repeated: float = 0.35
    missing: float = 0.06

    def __post_init__(self) -> None:
        if type(self.seed) is not int or self.seed < 0:
            raise ValueError(f"seed must be a whole number, 0 or more, got {self.seed!r}")
        shares = dict.fromkeys(("known_to_several", "repeated", "missing"), (0.0, 0.5))
        for name, (low, high) in {"people": (0.05, 100.0), **shares}.items():
            value = getattr(self, name)
            if type(value) not in (int, float) or not low <= value <= high:
                raise ValueError(f"{name} must be a number from {low:g} to {high:g}, got {value!r}")


@dataclass(frozen=True)
class Population:
    """N people as they are; arrays have shape (N,), `member` (N, agencies) in the order of KINDS.

    truth: every column's true value. recorded_contacts: `prior_contacts` as the agencies record them.
    months_to_incident: positive, counted from `month`, the person's newest month in any table.
    """

    options: Options
    person_id: np.ndarray
    male: np.ndarray
    minority: np.ndarray
    truth: Mapping[str, np.ndarray]
    recorded_contacts: np.ndarray
    month: np.ndarray
    months_to_incident: np.ndarray
    member: np.ndarray

    @property
    def label(self) -> np.ndarray:
        """1.0 where an incident falls within the horizon after `month`, shape (N,)."""
        return (self.months_to_incident <= HORIZON).astype(float)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-z)))


def population(options: Options = Options()) -> Population:
    """The people of `options.seed`: the same options give the same people."""
    people, traits, outcome, met, names = (np.random.default_rng([options.seed, i]) for i in range(5))
    known = round(PEOPLE * options.people / (1 + 1.25 * options.known_to_several))
    n = round(1.6 * known)  # the others are known to nobody
    male, minority = people.random(n) < 0.5, people.random(n) < 0.25
    truth, recorded = _traits(n, minority, traits)
    risk = _risk(truth, male)
    return Population(
        options=options,
        person_id=np.array([f"p{i:07d}" for i in names.permutation(n)], dtype=object),
        male=male,
        minority=minority,
        truth=truth,
        recorded_contacts=recorded,
        month=people.integers(LAST_MONTH - 11, LAST_MONTH + 1, n),
        months_to_incident=_months(risk, outcome),
        member=_members(truth, known, options.known_to_several, met),
    )


def _traits(
    n: int, minority: np.ndarray, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """True values by column, and the contacts as recorded."""
    age = np.floor(16 + 74 * rng.beta(1.6, 3.2, n))
    hardship = rng.normal(0, 1, n) + DISPARITIES.deprivation_shift * minority
    strain = rng.normal(0.3 * hardship, 1)  # what contacts, arrests and moves have in common
    health = rng.normal(0.2 * hardship + 0.1 * strain, 1)
    young = (40 - age) / 15

    def count(log_mean: np.ndarray, most: float) -> np.ndarray:
        return np.asarray(np.minimum(rng.poisson(np.exp(np.clip(log_mean, -6, 4))), most), dtype=float)

    def flag(logit: np.ndarray) -> np.ndarray:
        return (rng.random(n) < sigmoid(logit)).astype(float)

    contacts = count(0.5 + 0.6 * strain + 0.15 * hardship + 0.15 * young, 20)
    truth = {
        "age": age,
        "deprivation": np.clip(np.floor(5.5 + 2.6 * hardship + 0.5), 1, 10),
        "prior_contacts": contacts,
        "earlier_incident": flag(-1.4 + 0.7 * strain),
        "employment": _employment(age, hardship, rng),
        "household": _household(age, hardship, strain, rng),
        "moves": count(-0.2 + 0.3 * strain + 0.3 * young, 8),
        "months_known": np.floor(rng.uniform(0, 121, n)),
        "arrests": count(-0.3 + 0.7 * strain + 0.2 * young, 12),
        "breach": flag(-1.5 + 0.6 * strain),
        "emergency_visits": count(0.0 + 0.7 * health, 12),
        "substance_use": np.array(SUBSTANCE_USE, dtype=object)[
            np.digitize(health + rng.normal(0, 1, n), [0.4, 1.7])
        ],
        "arrears": count(0.3 + 0.6 * hardship + 0.5 * rng.normal(0, 1, n), 26),
        "notice_served": flag(-1.7 + 0.6 * hardship),
        "absence": np.floor(60 * sigmoid(-1.4 + 0.4 * strain + 0.7 * rng.normal(0, 1, n))),
        "safeguarding_referrals": count(-0.5 + 0.5 * strain + 0.2 * hardship, 8),
    }
    extra = rng.poisson(DISPARITIES.over_recording * contacts)
    return truth, contacts + np.where(minority, extra, 0)


def _employment(age: np.ndarray, hardship: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    utility = [
        0.9 - 0.4 * hardship,
        1.5 - 0.25 * (age - 16),
        -0.4 + 0.5 * hardship,
        -1.5 + 0.05 * (age - 30) + 0.2 * hardship,
    ]
    return _choice(EMPLOYMENT, np.stack(utility), rng)


def _household(
    age: np.ndarray, hardship: np.ndarray, strain: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    zero = np.zeros(len(age))
    utility = [
        0.3 - 0.2 * strain,
        0.02 * (age - 40),
        -0.6 + 0.3 * hardship,
        zero,
        2 - 0.2 * (age - 16),
        -0.3 - 0.02 * (age - 40),
        -1.7 + 0.4 * strain,
        -2.2 + 0.3 * strain + 0.3 * hardship,
    ]
    return _choice(HOUSEHOLD, np.stack(utility), rng)


def _choice(levels: tuple[str, ...], utility: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The level with the largest noisy utility (a multinomial logit); utility (levels, N) -> (N,)."""
    noisy = utility + rng.gumbel(size=utility.shape)
    return np.asarray(np.array(levels, dtype=object)[np.argmax(noisy, axis=0)])


def encode_truth(truth: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """True values on the scale of the contract's features, by feature name; each (N,)."""
    features = {name: scale(truth[name]) for name, scale in SCALES.items()}
    features |= {name: truth[name] for name in FLAGS}
    for name, levels in (("employment", EMPLOYMENT), ("household", HOUSEHOLD)):
        features |= {f"{name}={level}": (truth[name] == level).astype(float) for level in levels[1:]}
    features["substance_use"] = np.select(
        [truth["substance_use"] == level for level in SUBSTANCE_USE], [-1.0, 0.0, 1.0]
    )
    return features


def latent_features(people: Population) -> np.ndarray:
    """What the outcome truly depends on, columns in the order of COEFFICIENTS, shape (N, d)."""
    features = encode_truth(people.truth) | {"male": people.male.astype(float)}
    return np.column_stack([features[name] for name in COEFFICIENTS])


def true_risk(people: Population) -> np.ndarray:
    """The chance of an incident within the horizon, shape (N,), in (0, 1)."""
    return _risk(people.truth, people.male)


def _risk(truth: Mapping[str, np.ndarray], male: np.ndarray) -> np.ndarray:
    features = encode_truth(truth) | {"male": male.astype(float)}
    logit = INTERCEPT + sum(value * features[name] for name, value in COEFFICIENTS.items())
    return sigmoid(np.asarray(logit))


def _months(risk: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Months to the incident under a constant hazard that makes P(months <= HORIZON) the risk, shape (N,)."""
    return np.asarray(rng.exponential(1.0, risk.shape) * -HORIZON / np.log1p(-risk))


def _members(
    truth: Mapping[str, np.ndarray], known: int, several: float, rng: np.random.Generator
) -> np.ndarray:
    """Who is known to whom, (N, agencies): each known person has a first agency, some a second and a third."""
    n = len(truth["age"])
    features = encode_truth(truth)
    traits = {name: (x - x.mean()) / x.std() for name, x in features.items()}
    liking = np.stack([sum(w * traits[t] for t, w in kind.draws.items()) for kind in KINDS], axis=1)
    member = np.zeros((n, len(KINDS)), dtype=bool)
    ends = np.round(np.cumsum([kind.people for kind in KINDS]) / PEOPLE * known).astype(int)
    for a, size in enumerate(np.diff(ends, prepend=0)):
        # the largest of these keys are a sample without replacement, with chances exp(liking)
        keys = liking[:, a] + rng.gumbel(size=n)
        keys[member.any(axis=1)] = -np.inf
        member[np.argsort(-keys, kind="stable")[:size], a] = True
    met = rng.permutation(np.flatnonzero(member.any(axis=1)))
    also = met[: round(several * known)]
    size = np.log([kind.people for kind in KINDS]) - np.log(np.exp(liking[met]).mean(axis=0))
    for who in (also, also[: len(also) // 4]):
        keys = liking[who] + size + rng.gumbel(size=(len(who), len(KINDS)))
        keys[member[who]] = -np.inf
        member[who, np.argmax(keys, axis=1)] = True
    return member


def declared_size(kind: Kind, people: float) -> int:
    """The people that an agency says it serves, to two significant digits: declared, never counted from a table."""
    nominal = kind.people * people
    unit = 10.0 ** max(0, math.floor(math.log10(nominal)) - 1)
    return int(round(nominal / unit) * unit)


def tables(people: Population) -> dict[str, dict[str, np.ndarray]]:
    """One table per agency, by its name (the name of its kind): columns as the contract wants them.

    Rows of one person are in no order; `month` tells. Newest rows show the present, older ones an earlier state.
    """
    return {kind.name: _table(people, a, kind) for a, kind in enumerate(KINDS)}


def _table(people: Population, a: int, kind: Kind) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([people.options.seed, 100 + a])
    newest = np.flatnonzero(people.member[:, a])
    who, back = _rows(newest, people.options.repeated, rng)
    columns: dict[str, np.ndarray] = {
        "person_id": people.person_id[who],
        "month": (people.month[who] - back).astype(float),
        "sex": np.where(people.male[who], "male", "female").astype(object),
        "ethnicity": np.where(people.minority[who], "minority", "majority").astype(object),
    }
    values = dict(people.truth) | {"prior_contacts": people.recorded_contacts}
    columns |= {name: _as_of(name, values[name][who], back, rng) for name in SHARED + BLOCKS[kind.block]}
    columns["incident_12m"] = (people.months_to_incident[who] + back <= HORIZON).astype(float)
    for name in MAY_BE_MISSING:
        if name in columns:
            empty = rng.random(len(who)) < kind.gaps * people.options.missing
            columns[name][empty] = None if columns[name].dtype == object else np.nan
    columns |= _users(people, a, columns, people.months_to_incident[who] + back)
    order = rng.permutation(len(who))
    return {name: column[order] for name, column in columns.items()}


def _users(
    people: Population, a: int, columns: Mapping[str, np.ndarray], months: np.ndarray
) -> dict[str, np.ndarray]:
    """What no model sees: how long until the incident, where there was one, and whether people are listed today.

    Their stream is their own, so that every other column is the same as without them.
    """
    rng = np.random.default_rng([people.options.seed, 200 + a])
    dated = (columns["incident_12m"] == 1) & (rng.random(len(months)) >= PRACTICE.no_date)
    rule = (columns["prior_contacts"] >= PRACTICE.contacts) | (columns["earlier_incident"] == 1)
    listed = rule & (rng.random(len(months)) < PRACTICE.looked_at)
    return {"months_to_incident": np.where(dated, months, np.nan), "on_list": listed.astype(float)}


def _rows(newest: np.ndarray, repeated: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The person of each row, and how many months before the person's newest month it lies."""
    some = rng.permutation(newest)[: round(repeated * len(newest))]
    older = rng.integers(1, 4, len(some))
    who = np.concatenate([newest, np.repeat(some, older)])
    place = np.concatenate([np.zeros(len(newest)), *(np.arange(1, k + 1) for k in older)])
    return who, np.where(place > 0, 4 * place + rng.integers(0, 4, len(who)) - 1, 0).astype(int)


def _as_of(name: str, values: np.ndarray, back: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Values as they stood `back` months before: counts were lower, people younger, fewer months known."""
    if name in ("prior_contacts", "moves", "arrests", "emergency_visits", "safeguarding_referrals"):
        return rng.binomial(values.astype(int), np.exp(-0.04 * back)).astype(float)
    if name == "months_known":
        return np.asarray(np.maximum(values - back, 0))
    if name == "age":
        return np.asarray(np.maximum(np.floor(values - back / 12), 16))
    return values.copy()
