"""One key per person, alike at every agency that recorded the same person: how names, dates and postcodes are written alike.

The rules, the normalisation with examples, and what each rule misses and confuses: docs/matching.md. Agencies compare
keys only as places in a histogram (`models.cohort`), under a secret that they share: `buckets_of`. A person whose key
lacks a part has none and is left out.
"""

import datetime
import hashlib
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.contract import Match, MatchRule
from models.table import texts

WORDS: Final[Mapping[MatchRule, str]] = MappingProxyType(
    {
        "identifier": "the same identifier",
        "initial-surname-born": "the same first initial, surname and date of birth",
        "name-born-postcode": "the same first forename, surname, date of birth and postcode",
    }
)
"""What "the same person" means by each rule."""

MISSED: Final[Mapping[MatchRule, float]] = MappingProxyType(
    {"identifier": 0.19, "initial-surname-born": 0.10, "name-born-postcode": 0.30}
)
"""Of people at two agencies, the share whose keys differ: in made-up records with assumed slips (docs/matching.md)."""

SECRET_BYTES: Final = (16, 64)  # least and most of a secret: BLAKE2b takes no more

_LETTERS = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ħ": "h", "ŧ": "t", "ı": "i"}
)  # what NFKD does not take apart; casefold has written ß as ss
_APOSTROPHES = re.compile("['’‘`´ʼʻʹ′]")
_BETWEEN_WORDS = re.compile(r"[\W\d_]+")
_TITLES = frozenset({"mr", "mrs", "ms", "miss", "mx", "dr", "prof", "professor", "rev", "sir", "dame"})
_SUFFIXES = frozenset({"jr", "jnr", "sr", "snr", "ii", "iii"})
_NO_NAME = frozenset({"unknown", "notknown", "notrecorded", "notstated", "unspecified"})

_MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_YEAR_FIRST = re.compile(r"(\d{4})([-/.]?)(\d{2})\2(\d{2})(?:[ T].*)?")
_DAY_FIRST = re.compile(r"(\d{1,2})([-/. ])(\d{1,2}|[a-z]{3,9})\2(\d{4})(?: \d.*)?")
_NOBODYS_DAY = frozenset({"1900-01-01", "1901-01-01", "1970-01-01"})  # what systems write for "not known"

_NO_POSTCODE = re.compile(r"ZZ99.*")  # the NHS's pseudo postcodes: no fixed abode, not known, abroad


def words(text: str) -> list[str]:
    """The words of a name in lower-case letters alone: without accents, apostrophes, a title before or a suffix behind.

    Hyphens and spaces part words. What is left of a letter that does not decompose is its usual spelling (ø is o, ß is
    ss). Letters of other scripts stay. [] for none, and for what says that it is not known.
    """
    plain = unicodedata.normalize("NFKD", _APOSTROPHES.sub("", text)).casefold()
    plain = _APOSTROPHES.sub("", unicodedata.normalize("NFKD", plain)).translate(_LETTERS)
    plain = "".join(c for c in plain if not unicodedata.category(c).startswith(("M", "Lm")))
    found = [word for word in _BETWEEN_WORDS.split(plain) if word]
    while len(found) > 1 and found[0] in _TITLES:
        found.pop(0)
    while len(found) > 1 and found[-1] in _SUFFIXES:
        found.pop()
    return [] if "".join(found) in _NO_NAME else found


def letters(text: str) -> str:
    """`words` as one: Smith-Jones, Smith Jones and SmithJones are "smithjones"; `letters(letters(x)) == letters(x)`."""
    return "".join(words(text))


def first_word(text: str) -> str:
    """The first of `words`, "" for none: of Sarah Jane and Sarah-Jane "sarah"."""
    return next(iter(words(text)), "")


def last_word(text: str) -> str:
    """The last of `words` where there are two or more, else "": the surname of a cell with the whole name."""
    return words(text)[-1] if len(words(text)) > 1 else ""


def day(text: str) -> str:
    """A date of birth as 1990-12-31; "" where it is no day, two years are possible, or systems write it for "not known".

    Read are the year first (1990-12-31, 1990/12/31, 19901231, with a time behind it) and the day first, as in the UK
    (31/12/1990, 31-12-1990, 31.12.1990, 31 Dec 1990). A year of two digits is refused: 05 is 1905 and 2005. Years are
    from 1900 to 2099.
    """
    plain = text.strip().casefold()
    if found := _YEAR_FIRST.fullmatch(plain.upper()):
        year, month, of_month = found[1], found[3], found[4]
    elif found := _DAY_FIRST.fullmatch(plain):
        year, month, of_month = found[4], found[3], found[1]
    else:
        return ""
    named = [i for i, name in enumerate(_MONTHS, start=1) if name.startswith(month)]
    try:
        iso = datetime.date(int(year), named[0] if named else int(month), int(of_month)).isoformat()
    except ValueError:
        return ""
    return iso if "1900" <= iso[:4] <= "2099" and iso not in _NOBODYS_DAY else ""


def postcode(text: str) -> str:
    """Upper-case letters and digits alone; "" where it has no digit or is a pseudo postcode (ZZ99). Any country's."""
    plain = _symbols(text)
    return plain if any(map(str.isdigit, plain)) and not _NO_POSTCODE.fullmatch(plain) else ""


def identifier(text: str) -> str:
    """Upper-case letters and digits alone, without zeros in front, which a column of numbers loses.

    "" where it has no digit, or is one digit over and over (000000, 9999999999), as systems write for "not known".
    """
    plain = _symbols(text).lstrip("0")
    digits = any(map(str.isdigit, plain))
    return plain if digits and (len(plain) < 3 or len(set(plain)) > 1) else ""


def match_keys(match: Match, columns: Mapping[str, np.ndarray]) -> list[str | None]:
    """One canonical text per row, None where a part of it is missing or not readable.

    columns: each of `match.columns`, (n,), objects of str or numbers. Each part has its length before it, so that
    texts of different people differ; the rule is the first.
    """
    parts = [_parts(columns[name], read) for name, read in _readers(match)]
    if match.rule == "initial-surname-born":
        parts[0] = [forename[:1] for forename in parts[0]]
    rule = _framed(match.rule)
    return [rule + "".join(map(_framed, each)) if all(each) else None for each in zip(*parts, strict=True)]


def buckets_of(keys: Sequence[str | None], secret: bytes, buckets: int) -> NDArray[np.int64]:
    """The bucket of each key in [0, buckets), int64, those without a key left out: BLAKE2b under `secret`, 64 bits.

    `ValueError` for a secret that is not of 16 to 64 bytes. Whoever has the secret can try names (docs/matching.md).
    """
    least, most = SECRET_BYTES
    if not least <= len(secret) <= most:
        raise ValueError(f"the secret must have {least} to {most} bytes, got {len(secret)}")
    keyed = hashlib.blake2b(key=secret, digest_size=8)
    found = bytearray()
    for key in keys:
        if key is not None:
            here = keyed.copy()
            here.update(key.encode())
            found += here.digest()
    return (np.frombuffer(bytes(found), ">u8") % np.uint64(buckets)).astype(np.int64)


def _readers(match: Match) -> list[tuple[str, Callable[[str], str]]]:
    """Each column with how its cells are read: forename, surname (which may be in one cell), then the others."""
    found: list[tuple[str | None, Callable[[str], str]]] = []
    if match.name:
        surname = letters if len(match.name) > 1 else last_word
        found = [(match.name[0], first_word), (match.name[-1], surname)]
    found += [(match.identifier, identifier), (match.born, day), (match.postcode, postcode)]
    return [(name, read) for name, read in found if name is not None]


def _parts(values: np.ndarray, read: Callable[[str], str]) -> list[str]:
    """Every cell as `read` writes it, "" for none; each distinct cell is read once."""
    known: dict[str | None, str] = {None: ""}
    cells: list[str | None] = texts(values).tolist()
    for cell in set(cells):
        known[cell] = "" if cell is None else read(cell)
    return [known[cell] for cell in cells]


def _symbols(text: str) -> str:
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).upper()))


def _framed(part: str) -> str:
    return f"{len(part)}:{part},"
