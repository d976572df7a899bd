"""Which risk model a plan asks for: a name and widths, without the libraries that build it."""

from dataclasses import dataclass
from typing import ClassVar

NAMES = ("logistic", "mlp", "residual")
WIDEST, DEEPEST = 4096, 8


@dataclass(frozen=True)
class ModelSpec:
    """Which model: `name` is one of `NAMES`, `hidden` the widths of its hidden layers.

    logistic has none; mlp one or more; residual one or more of the same width, one block each.
    Raises ValueError with the key, the rule and what was found.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # in a plan, a misspelt key is an error

    name: str
    hidden: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        hidden = tuple(self.hidden)
        object.__setattr__(self, "hidden", hidden)
        if self.name not in NAMES:
            raise ValueError(f"name must be one of {', '.join(NAMES)}, got {self.name!r}")
        if len(hidden) > DEEPEST or not all(type(width) is int and 1 <= width <= WIDEST for width in hidden):
            raise ValueError(
                f"hidden must be at most {DEEPEST} whole numbers from 1 to {WIDEST}, got {list(hidden)}"
            )
        if self.name == "logistic" and hidden:
            raise ValueError(f"hidden must be empty for logistic, got {list(hidden)}")
        if self.name != "logistic" and not hidden:
            raise ValueError(f"hidden must list at least one width for {self.name}, got []")
        if self.name == "residual" and len(set(hidden)) > 1:
            raise ValueError(f"hidden must repeat one width for residual, got {list(hidden)}")
