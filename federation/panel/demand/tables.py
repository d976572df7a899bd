"""The numbers of a map as CSV, one file for each question, for a spreadsheet or a program.

A text that a spreadsheet would take for a formula gets an apostrophe before it (OWASP, "CSV Injection"). A number that
may not be published is an empty cell.
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from federation.panel.demand.said import asked, parts, question
from federation.panel.sections.numbers import shown

Json = Mapping[str, Any]
NUMBERS = ("value", "low", "high", "publishable", "planned_sd")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def tables(found: Json) -> dict[str, str]:
    """File name -> its text: a CSV for each query of `found`, and README.txt that says which is which."""
    names = [name_of(at, query["name"]) for at, query in enumerate(found["queries"], 1)]
    made = {name: as_csv(query) for name, query in zip(names, found["queries"], strict=True)}
    return {**made, "README.txt": "\n".join(_readme(found, names)) + "\n"}


def name_of(number: int, query: str) -> str:
    """A file name: the query's place, and as much of its name as every system takes."""
    plain = re.sub(r"[^a-z0-9]+", "-", query.lower()).strip("-")[:60].strip("-")
    return f"{number:02d}-{plain or 'question'}.csv"


def as_csv(query: Json) -> str:
    """agency (or "together"), a column for each attribute, and the number with its interval."""
    rows = [["agency", *query["by"], *NUMBERS]]
    for name, cells in parts(query):
        for cell in cells:
            mark = shown(cell)
            numbers: Sequence[Any] = ("", "", "") if mark is None else (mark.value, mark.low, mark.high)
            told = "true" if mark is not None else "false"
            rows.append([name, *map(str, cell["levels"]), *numbers, told, query["planned_sd"]])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([safe(value) for value in row] for row in rows)
    return text.getvalue()


def safe(value: Any) -> Any:
    """`value` so that no spreadsheet runs it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def _readme(found: Json, names: Sequence[str]) -> Iterator[str]:
    yield f"The numbers of the demand map {found['run_id']}. What they mean, and what they cost: ../map.html"
    yield ""
    yield "agency       whose people; together: the sum over agencies, where a person known to two counts twice"
    yield "value        people or records (a rate: a share from 0 to 1); empty where it may not be published"
    yield f"low, high    the {100 * found['level']:.10g}% interval of the noise"
    yield "publishable  whether it can be told"
    yield "planned_sd   standard deviation of one number of this question, as planned before anything was counted"
    yield "'            before a text that begins with = + - @ and the like: so that no spreadsheet runs it"
    yield ""
    for name, query in zip(names, asked(found), strict=True):
        yield f"{name}  {question(query, found['attributes'])}"
