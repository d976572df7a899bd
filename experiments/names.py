"""Made-up people, and how agencies write them down: for tests, the match keys' error rates, and the pilot's population.

`population` draws people; `recorded` is one agency's record of some of them, with the slips that make two records of
one person differ. Names are common ones of several origins, and surnames composed of old English parts; how often each
is drawn falls with its place in the list, so that two people share a surname once in about a thousand pairs. No
postcode here exists (no area begins with X), and no person number was ever given out (none begins with 8).
"""

import itertools
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

People = dict[str, np.ndarray]

FORENAMES: Final = tuple(
    """
John David Sarah Michael Margaret Paul Susan James Emma Andrew Laura Peter Claire Mark Julie Robert Karen Stephen Emily
Christopher Jacqueline Daniel Rebecca Matthew Helen Richard Nicola Thomas Olivia William Amanda Jack Charlotte Anthony Lisa
Joshua Jessica George Patricia Mohammed Elizabeth Lewis Michelle Ryan Hannah Adam Lauren Luke Sophie Samuel Deborah Kevin
Gemma Simon Amy Ian Lucy Gary Jane Philip Natalie Benjamin Alice Martin Joanne Harry Victoria Oliver Katie Graham Grace
Alan Linda Craig Tracey Kyle Chloe Liam Mary Dean Ruth Colin Barbara Nathan Angela Aaron Kelly Lee Wendy Connor Megan
Alexander Georgia Jordan Leanne Sean Siân Darren Zoë Wayne Chloé Neil Anne-Marie Stuart Donna Keith Carol Barry Jean Scott
Dorothy Kenneth Joan Ronald Eileen Derek Sheila Ahmed Fatima Muhammad Aisha Ali Ayesha Imran Zainab Hassan Maryam Ibrahim
Khadija Omar Amina Yusuf Hafsa Bilal Nadia Tariq Samina Raj Priya Amit Anjali Sanjay Deepa Harpreet Jaswinder Gurpreet
Manjit Sunil Kavita Ravi Meera Arjun Lakshmi Piotr Agnieszka Krzysztof Małgorzata Tomasz Katarzyna Paweł Anna Michał
Magdalena Łukasz Joanna Wojciech Ewa Andrei Ioana Mihai Elena Ștefan Maria Jürgen Björn Søren Zoltán François Hélène
José María João Inês Giovanni Chiara Luca Giulia Seán Niamh Ciarán Siobhán Pádraig Aoife Eoin Róisín Declan Gráinne
Chinedu Ngozi Oluwaseun Adaeze Emeka Folake Kwame Akosua Kofi Abena Tendai Chipo Blessing Precious Tyrone Shanice Leroy
Marcia Wei Mei Jun Xiu Hiroshi Yuki Minh Linh Thi-Lan Abdi Hodan Hamza Ifrah Mehmet Ayşe Mustafa Zeynep Dmitri Olga
Mary-Jane Jean-Paul Sarah-Jane Lee-Ann Jo-Anne Billie-Jo D'Arcy Ze'ev Åsa Þór Æsa Đorđe
""".split()  # noqa: SIM905
)
SURNAMES: Final = tuple(
    """
Smith Jones Taylor Brown Williams Wilson Johnson Davies Patel Robinson Wright Thompson Evans Walker White Roberts Green
Hall Thomas Clarke Jackson Wood Harris Khan Edwards Turner Martin Cooper Hill Ward Hughes Moore Clark King Harrison Lewis
Baker Lee Allen Morris Scott Watson Davis Singh Parker James Bennett Young Phillips Hussain Richardson Mitchell Bailey
Carter Cook Shaw Bell Collins Morgan Kelly Begum Miller Cox Ali Hussein Marshall Simpson Price Anderson Adams Ahmed
Wilkinson Foster Ellis Murphy Chapman Mason Gray Richards Webb Rogers Hunt Mills Holmes Palmer Kaur Matthews O'Brien
O'Neill O'Connor O'Sullivan O'Reilly O'Keefe McDonald MacKenzie McCarthy McGrath Fitzgerald D'Souza D'Angelo Nowak
Kowalski Wiśniewski Wójcik Kamiński Lewandowski Zieliński Szymański Woźniak Dąbrowski Popescu Ionescu Müller Schröder
Weiß Nuñez García Gonçalves Sørensen Łukaszewski Đoković Yılmaz Öztürk Mohamed Abdi Warsame Osman Okafor Adeyemi Okonkwo
Mensah Boateng Owusu Moyo Ndlovu Chukwu Campbell Grant Francis Chen Wang Li Nguyen Tran Sharma Gupta Chowdhury Rahman
Islam Miah Akhtar Iqbal Malik Shah Mahmood Desai Sandhu Gill Dhillon Fernandes Silva Santos Rossi Ferrari Kovács Novák
""".split()  # noqa: SIM905
)
_STEMS = """
Ash Black Brad Brook Bur Cal Chad Clif Cold Crom Dal Dun East Ed Ell Far Fen Gar Gold Grim Had Hal Hart Haw Hol Ing Kem
Kirk Lang Lin Lock Mar Mel Mid Nor Oak Old Pen Pol Rad Red Rish Roth Sel Shel Stan Stoke Sut Thorn Tre Up Wal Wen West
Whit Win Wood Wyn
""".split()  # noqa: SIM905
_ENDS = """
acre bourne bridge brook bury by combe cote croft dale den don field ford gate ham hurst ington land ley low man mere
mond more ridge sett shaw stead stock ter ton tree wall ward way well wick wood worth
""".split()  # noqa: SIM905
ALL_SURNAMES: Final = (*SURNAMES, *(stem + end for end, stem in itertools.product(_ENDS, _STEMS)))
NICKNAMES: Final[Mapping[str, str]] = dict(
    pair.split(":")
    for pair in """
Michael:Mike David:Dave Margaret:Maggie Susan:Sue James:Jim Andrew:Andy Peter:Pete Robert:Bob Stephen:Steve Emily:Em
Christopher:Chris Jacqueline:Jackie Daniel:Dan Rebecca:Becky Matthew:Matt Richard:Dick Nicola:Nicky Thomas:Tom
William:Bill Amanda:Mandy Charlotte:Lottie Anthony:Tony Joshua:Josh Jessica:Jess Patricia:Pat Elizabeth:Liz
Michelle:Shell Samuel:Sam Deborah:Debbie Benjamin:Ben Victoria:Vicky Oliver:Ollie Katie:Kate Nathan:Nate Barbara:Babs
Alexander:Alex Jordan:Jordy Kenneth:Ken Ronald:Ron Dorothy:Dot Mohammed:Mo Muhammad:Mo Katarzyna:Kasia Agnieszka:Aga
Małgorzata:Gosia Krzysztof:Kris Oluwaseun:Seun Ibrahim:Ibby Yusuf:Joseph
""".split()  # noqa: SIM905
)
FORENAME_SKEW: Final = 0.5  # a name's weight is its place in the list to the power of minus this
SURNAME_SKEW: Final = 0.55
DOUBLE: Final = 0.03  # people with two surnames
TWINS: Final = 0.015  # people who have surname, birthday and postcode of the person before them
PER_POSTCODE: Final = 40  # people
FIRST_DAY, DAYS = np.datetime64("1930-01-01"), 34_698  # up to 2024-12-30
_UNIT = "ABDEFGHJLNPQRSTUWXYZ"  # letters of the second half of a postcode


@dataclass(frozen=True)
class Errors:
    """How often an agency's record of a person differs from the person, each a share of its records in [0, 1].

    What no key can survive: typos (one letter replaced, dropped or swapped with the next), a nickname, a second
    forename in the forename's column, an earlier surname, an earlier address, a date whose day and month are swapped
    (where both are at most 12) or one of whose digits is wrong, and cells that are missing. `spelling` is what a key
    should survive: capitals, no accents, no apostrophe, a space for a hyphen, spaces around. dates: how the agency writes them.
    """

    forename_typo: float = 0.01
    surname_typo: float = 0.015
    nickname: float = 0.03
    middle_name: float = 0.05
    other_surname: float = 0.02
    moved: float = 0.08
    postcode_typo: float = 0.01
    day_month: float = 0.005
    born_typo: float = 0.005
    number_typo: float = 0.003
    no_name: float = 0.001
    no_born: float = 0.005
    no_postcode: float = 0.02
    no_number: float = 0.1
    spelling: float = 0.3
    dates: Literal["iso", "uk"] = "iso"


NO_ERRORS: Final = Errors(**dict.fromkeys([name for name in Errors.__annotations__ if name != "dates"], 0.0))  # type: ignore[arg-type]


def population(n: int, rng: np.random.Generator) -> People:
    """n people: forename, surname, born (1990-12-31), postcode, person_number (distinct, ten digits); (n,), objects of str."""
    surname, born, place = _names(n, ALL_SURNAMES, SURNAME_SKEW, rng), _days(n, rng), _places(n, rng)
    double = np.flatnonzero(rng.random(n) < DOUBLE)
    second = _names(len(double), ALL_SURNAMES, SURNAME_SKEW, rng)
    between = np.where(rng.random(len(double)) < 2 / 3, "-", " ").astype(object)
    surname[double] = surname[double] + between + second
    twins = 1 + np.flatnonzero(rng.random(max(n - 1, 0)) < TWINS)
    for values in (surname, born, place):
        values[twins] = values[twins - 1]
    return {
        "forename": _names(n, FORENAMES, FORENAME_SKEW, rng),
        "surname": surname,
        "born": born,
        "postcode": place,
        "person_number": _numbers(n, rng),
    }


def recorded(people: People, rng: np.random.Generator, errors: Errors) -> People:
    """One agency's record of these people, in their order: the same columns, (n,), objects of str, None where missing."""
    n = len(people["born"])
    found = {name: values.copy() for name, values in people.items()}

    def some(share: float) -> np.ndarray:
        return np.flatnonzero(rng.random(n) < share)

    def change(name: str, share: float, how: Callable[[str], str]) -> None:
        rows = some(share)
        found[name][rows] = [how(text) for text in found[name][rows].tolist()]

    change("forename", errors.nickname, lambda text: NICKNAMES.get(text, text))
    rows = some(errors.middle_name)
    found["forename"][rows] = found["forename"][rows] + " " + _names(len(rows), FORENAMES, FORENAME_SKEW, rng)
    rows = some(errors.other_surname)
    found["surname"][rows] = _names(len(rows), ALL_SURNAMES, SURNAME_SKEW, rng)
    rows = some(errors.moved)
    found["postcode"][rows] = people["postcode"][rng.integers(0, max(n, 1), len(rows))]
    change("born", errors.day_month, _day_and_month_swapped)
    change("born", errors.born_typo, lambda text: _wrong_digit(text, rng))
    change("person_number", errors.number_typo, lambda text: _wrong_digit(text, rng))
    change("forename", errors.forename_typo, lambda text: _typo(text, rng))
    change("surname", errors.surname_typo, lambda text: _typo(text, rng))
    change("postcode", errors.postcode_typo, lambda text: _wrong_digit(text, rng))
    if errors.spelling:
        for name in ("forename", "surname"):
            rows, manner = some(errors.spelling), rng.integers(0, len(_MANNERS), n)
            found[name][rows] = [
                _MANNERS[how](text)
                for how, text in zip(manner[rows], found[name][rows].tolist(), strict=True)
            ]
    if errors.dates == "uk":
        found["born"] = _looked_up(found["born"], lambda text: f"{text[8:]}/{text[5:7]}/{text[:4]}")
    for name, share in (
        *(("forename", errors.no_name), ("surname", errors.no_name), ("born", errors.no_born)),
        *(("postcode", errors.no_postcode), ("person_number", errors.no_number)),
    ):
        found[name][some(share)] = None
    return found


def _names(n: int, pool: Sequence[str], skew: float, rng: np.random.Generator) -> np.ndarray:
    weight = np.arange(1, len(pool) + 1) ** -skew
    places = np.searchsorted(np.cumsum(weight / weight.sum()), rng.random(n), side="right")
    return np.asarray(np.array(pool, dtype=object)[np.minimum(places, len(pool) - 1)])


def _days(n: int, rng: np.random.Generator) -> np.ndarray:
    """Birthdays: as many in every year from 1955 on, fewer the earlier before."""
    all_days = FIRST_DAY + np.arange(DAYS)
    weight = np.minimum(np.arange(DAYS) / (25 * 365), 1.0) + 0.05
    places = np.searchsorted(np.cumsum(weight / weight.sum()), rng.random(n), side="right")
    return np.asarray(all_days.astype(str).astype(object)[np.minimum(places, DAYS - 1)])


def _places(n: int, rng: np.random.Generator) -> np.ndarray:
    """Postcodes as XB12 3CD, of about `PER_POSTCODE` people each."""
    number = np.arange(max(1, n // PER_POSTCODE))
    letters = [
        f"X{_UNIT[i // 80_000 % 20]}{i // 4000 % 20 + 1} {i // 400 % 10}{_UNIT[i // 20 % 20]}{_UNIT[i % 20]}"
        for i in number.tolist()
    ]
    return np.asarray(np.array(letters, dtype=object)[rng.integers(0, len(number), n)])


def _numbers(n: int, rng: np.random.Generator) -> np.ndarray:
    """Distinct numbers of ten digits, the first 8, the last the check digit of an NHS number."""
    tried = int(1.15 * n) + 40  # one in eleven has no check digit
    middle = (np.arange(tried, dtype=np.int64) * 61_803_399 + rng.integers(10**8)) % 10**8
    nine = 8 * 10**8 + middle
    digits = nine[:, None] // 10 ** np.arange(8, -1, -1) % 10
    check = (11 - digits @ np.arange(10, 1, -1) % 11) % 11
    return np.asarray((nine * 10 + check)[check < 10][:n].astype(str).astype(object))


def _looked_up(values: np.ndarray, change: Callable[[str], str]) -> np.ndarray:
    known = {value: change(value) for value in set(values.tolist())}
    found = np.empty(len(values), dtype=object)
    found[:] = [known[value] for value in values.tolist()]
    return found


def _typo(text: str, rng: np.random.Generator) -> str:
    """One letter replaced, dropped, or swapped with the next."""
    at, how = int(rng.integers(len(text))), int(rng.integers(3))
    if how == 0 or len(text) < 3:
        return text[:at] + chr(97 + int(rng.integers(26))) + text[at + 1 :]
    if how == 1:
        return text[:at] + text[at + 1 :]
    return text[:at] + text[at + 1 : at + 2] + text[at] + text[at + 2 :]


def _wrong_digit(text: str, rng: np.random.Generator) -> str:
    at = int(rng.choice([i for i, c in enumerate(text) if c.isdigit()]))
    return text[:at] + str((int(text[at]) + 1 + int(rng.integers(9))) % 10) + text[at + 1 :]


def _day_and_month_swapped(text: str) -> str:
    year, month, day = text.split("-")
    return f"{year}-{day}-{month}" if int(day) <= 12 else text


def _without_accents(text: str) -> str:
    plain = unicodedata.normalize("NFD", text)
    return "".join(c for c in plain if not unicodedata.combining(c)).translate(_PLAIN)


_PLAIN = str.maketrans(
    {
        "ø": "o",
        "Ø": "O",
        "ł": "l",
        "Ł": "L",
        "đ": "d",
        "Đ": "D",
        "ß": "ss",
        "æ": "ae",
        "Æ": "Ae",
        "Þ": "Th",
        "ı": "i",
    }
)
_MANNERS: Final[tuple[Callable[[str], str], ...]] = (
    str.upper,
    str.lower,
    _without_accents,
    lambda text: text.replace("'", "’"),
    lambda text: text.replace("'", ""),
    lambda text: text.replace("-", " "),
    lambda text: text.replace("-", ""),
    lambda text: f" {text} ",
)
