"""Reading a mapping that a person wrote: every mistake becomes a sentence, and the reading goes on.

`Section` hands out one key at a time. What is absent or of the wrong type adds a sentence to a shared
list and gives a neutral value back ("" or NaN or ()), so one reading finds every problem at once.
"""

import difflib
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar, final

from models.table import canonical

Choice = TypeVar("Choice", bound=str)
SLUG = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
QUOTE_IT = "must be text; write it in quotes (YAML reads a bare yes, no, on or off as true or false)"


@final
class Section:
    """One mapping at the path `where` ("" is the top). Call `close` last: it reports unknown keys."""

    def __init__(self, value: object, where: str, problems: list[str]) -> None:
        self.where = where
        self.problems = problems
        self._asked: set[str] = set()
        self._values: dict[str, object] = {}
        if isinstance(value, Mapping):
            self._values = {str(key): item for key, item in value.items()}
        else:
            problems.append(f"{where or 'the contract'} must be a mapping of settings")
            self.problems = []  # said once: what is not there cannot be wrong as well

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def say(self, key: str, rule: str) -> None:
        """Add the sentence `path.key rule`."""
        self.problems.append(f"{self._path(key)} {rule}")

    def take(self, key: str) -> object:
        """The raw value, or None."""
        self._asked.add(key)
        return self._values.get(key)

    def section(self, key: str) -> "Section":
        """A mapping that must be there; where it is not, that is all that is reported of it."""
        if key in self:
            return Section(self.take(key), self._path(key), self.problems)
        self.take(key)
        self.say(key, "is required")
        return Section({}, self._path(key), [])

    def named(self, key: str) -> Iterator[tuple[str, object, str]]:
        """Named items as (name, value, path), from `{age: {...}}` or from `[{name: age, ...}]`.

        The second form keeps its order where JSON or YAML sorts the keys. A bare text is a name alone.
        """
        value = self.take(key)
        if isinstance(value, Mapping):
            items = [(name, item) for name, item in value.items()]
        elif isinstance(value, Sequence) and not isinstance(value, str):
            items = [self._name_first(item) for item in value]
        else:
            items = []
            if value is not None:
                self.say(key, "must be a mapping from names to settings")
        yield from self._distinct(key, items)

    def text(self, key: str) -> str:
        """Text that must be there."""
        found = self.optional_text(key)
        if found == "" or key not in self:
            self.say(key, "is required")
        return found or ""

    def optional_text(self, key: str) -> str | None:
        """Text, or None where the key is absent."""
        value = self.take(key)
        if value is None:
            return None
        text = as_level(value)
        if text is None:
            self.say(key, QUOTE_IT)
        return text

    def slug(self, key: str) -> str:
        """A short lower-case name that is safe in a path."""
        text = self.text(key)
        if text and not SLUG.fullmatch(text):
            self.say(key, f"must be lower-case letters, digits, - and _, at most 64, got {text!r}")
        return text

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of distinct texts that must be there and not be empty; 1, 1.0 and "1.0" become "1"."""
        value = self.take(key)
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            self.say(key, "must be a list with at least one entry")
            return ()
        found = [canonical(as_level(item)) for item in value]
        if None in found or "" in found:
            self.say(key, QUOTE_IT)
        texts = [text for text in found if text]
        for text in sorted({text for text in texts if texts.count(text) > 1}):
            self.say(key, f"lists {text!r} twice")
        return tuple(dict.fromkeys(texts))

    def number(self, key: str) -> float:
        """A finite number that must be there; NaN where it is not."""
        if key not in self:
            self.say(key, "is required")
        found = self.optional_number(key)
        return math.nan if found is None else found

    def optional_number(self, key: str) -> float | None:
        """A finite number, or None where the key is absent."""
        value = self.take(key)
        if value is None:
            return None
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not abs(value) <= sys.float_info.max
        ):
            self.say(key, f"must be a number, got {value!r}")
            return math.nan
        return float(value)

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of numbers, () where the key is absent."""
        value = self.take(key)
        if value is None:
            return ()
        items = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        each = Section({str(i): item for i, item in enumerate(items)}, self._path(key), self.problems)
        return tuple(each.number(str(i)) for i in range(len(items)))

    def whole(self, key: str, default: int) -> int:
        """A whole number, 1 or more."""
        value = self.take(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.say(key, f"must be a whole number, 1 or more, got {value!r}")
            return default
        return value

    def boolean(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.take(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.say(key, f"must be true or false, got {value!r}")
            return default
        return value

    def choice(self, key: str, options: Sequence[Choice]) -> Choice | None:
        """One of `options`; None where the key is absent (that is not reported) or wrong (that is)."""
        value = self.take(key)
        for option in options:
            if value == option:
                return option
        if value is not None:
            self.say(key, f"must be {' or '.join(options)}, got {value!r}")
        return None

    def close(self) -> None:
        """Report the keys that nobody asked for."""
        for key in self._values:
            if key not in self._asked:
                near = difflib.get_close_matches(key, self._asked, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(sorted(self._asked))}"
                self.say(key, f"is not a known setting ({hint})")

    def _path(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def _name_first(self, item: object) -> tuple[object, object]:
        if isinstance(item, Mapping):
            return item.get("name"), {key: value for key, value in item.items() if key != "name"}
        return item, {}

    def _distinct(
        self, key: str, items: Sequence[tuple[object, object]]
    ) -> Iterator[tuple[str, object, str]]:
        seen: set[str] = set()
        for raw, value in items:
            name = as_level(raw)
            if not name:
                self.say(key, f"has a name that {QUOTE_IT}")
            elif name in seen:
                self.say(key, f"lists {name!r} twice")
            else:
                seen.add(name)
                yield name, value, f"{self._path(key)}.{name}"


def as_level(value: object) -> str | None:
    """Text as it is, a number as its shortest digits (1 and 1.0 are "1"); None for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(int(value)) if isinstance(value, int) or value.is_integer() else str(value)
    return None
