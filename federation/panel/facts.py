"""Facts of a result, each with where it stands: what the papers beside the report are made of.

A fact's `source` is a JSON pointer (RFC 6901) into result.json. What the panel registered is JSON inside a text there, so
that exactly what was signed stays readable: such a source goes on, after a `#`, with a pointer into that text. Numbers
pass one gate, `shown`: an estimate without `publishable: true` has no number here.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

from federation.panel.registered import registration_of
from federation.panel.sections.numbers import shown

Json = Mapping[str, Any]
State = Literal["shown", "suppressed", "missing"]

REGISTRATION = "/registration/signed/statement"
SUPPRESSED = "too few people, or too much noise, to publish it"
MISSING = "it is not in the result"
NOT_GIVEN = "nobody gave an answer"
NOT_COMPUTED = "it could not be computed"


@final
@dataclass(frozen=True)
class Fact:
    """One fact: `name` of what, `value` None where there is nothing to show; `reason` then says why.

    of: the keys between the paper's part and the fact, such as ("groups", "sex", "female").
    low, high: ends of a 95% interval; None where the value is no estimate.
    """

    of: tuple[str, ...]
    name: str
    source: str
    value: Any = None
    low: float | None = None
    high: float | None = None
    state: State = "shown"
    reason: str | None = None


def pointer(*keys: str | int) -> str:
    """A JSON pointer of `keys`."""
    return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in keys)


def at(value: Any, source: str) -> Any:
    """What stands at `source` in a result, or None."""
    outer, _, inner = source.partition("#")
    for key in outer.split("/")[1:]:
        value = _step(value, key.replace("~1", "/").replace("~0", "~"))
    if not inner:
        return value
    try:
        return at(json.loads(value), inner)
    except (TypeError, ValueError):
        return None


def _step(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(key)
    if isinstance(value, Sequence) and not isinstance(value, str) and key.isdigit() and int(key) < len(value):
        return value[int(key)]
    return None


def is_estimate(value: Any) -> bool:
    """Whether `value` is {"value", "low", "high", "publishable"}."""
    return isinstance(value, Mapping) and "publishable" in value


def table(value: Any) -> Json:
    """`value` if it is an object, else an empty one: a result may lack any part."""
    return value if isinstance(value, Mapping) else {}


def facts(result: Json, source: str, *of: str) -> Iterator[Fact]:
    """Every fact at and below `source`, which is called `of` here; where nothing is there, one that says so."""
    yield from _facts(at(result, source), source, of, NOT_GIVEN if "#/answers" in source else MISSING)


def _facts(value: Any, source: str, of: tuple[str, ...], missing: str) -> Iterator[Fact]:
    *above, name = of
    if is_estimate(value):
        yield from _estimate(value, source, of)
    elif isinstance(value, Mapping) and value:
        for key, entry in value.items():
            yield from _facts(entry, source + pointer(key), (*of, str(key)), missing)
    elif isinstance(value, list | tuple) and not all(isinstance(entry, str | int | float) for entry in value):
        for number, entry in enumerate(value):
            yield from _facts(entry, source + pointer(number), (*of, str(number)), missing)
    elif value in (None, "", {}) or (isinstance(value, float) and not math.isfinite(value)):
        yield Fact(tuple(above), name, source, state="missing", reason=missing)
    else:
        yield Fact(tuple(above), name, source, list(value) if isinstance(value, list | tuple) else value)


def _estimate(estimate: Json, source: str, of: tuple[str, ...]) -> Iterator[Fact]:
    *above, name = of
    number = shown(estimate)
    if number is not None:
        yield Fact(tuple(above), name, source, number.value, number.low, number.high)
        for key in (key for key in estimate if key not in ("value", "low", "high", "publishable")):
            yield from _facts(estimate[key], source + pointer(key), (*of, str(key)), MISSING)
    elif estimate["publishable"] is True:
        yield Fact(tuple(above), name, source, state="missing", reason=NOT_COMPUTED)
    else:
        yield Fact(tuple(above), name, source, state="suppressed", reason=SUPPRESSED)


def answered(result: Json, key: str) -> str | None:
    """What people answered to the question `key` before the run, if they did."""
    registration = registration_of(result)
    return None if registration is None else getattr(registration.answers, key)


def answer_source(key: str) -> str:
    """Where that answer stands."""
    return f"{REGISTRATION}#/answers/{key}"


def metrics_source(result: Json) -> str | None:
    """Where the metrics stand that a report shows: of the final test, else of the last checkpoint that has any."""
    records = at(result, "/checkpoints")
    last = len(records) - 1 if isinstance(records, list) else -1
    for source in ("/final/metrics", f"/checkpoints/{last}/metrics"):
        if table(at(result, source)):
            return source
    return None
