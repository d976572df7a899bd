"""Why a score is what it is, for additive models alone: what each contract column adds to the logit.

A column's contribution is weight . (its features - the reference's), so contributions add up exactly to the
person's logit minus the reference's. The reference is nobody: each number at its center, each flag "no", each
ordered column in its middle, each category the plain mean of its declared levels, nothing missing. It comes from
the contract alone, so no population is in it.
"""

import math
from dataclasses import dataclass
from typing import Literal, final

import numpy as np

from models.contract import FLAG_LEVELS, Category, Column, Contract, Flag, Number, Ordinal
from models.features import layout
from models.table import canonical

TOP = 4
LEAST = 0.05  # of a log-odds: less is not worth a line
STRONG, CLEAR = math.log(2), math.log(1.25)  # doubles, or changes by a quarter, the odds
Direction = Literal["raises", "lowers"]
Strength = Literal["strongly", "clearly", "slightly"]


@final
@dataclass(frozen=True, repr=False)  # repr=False: it shows a cell
class Reason:
    """One column's part in one person's score. `contribution`: in log-odds of the calibrated probability.

    marks: what the reader must know before acting on it; () for most.
    """

    column: str
    label: str
    value: str
    usual: str
    contribution: float
    marks: tuple[str, ...]

    @property
    def direction(self) -> Direction:
        """Whether it makes the outcome look more or less likely than the reference."""
        return "raises" if self.contribution > 0 else "lowers"

    @property
    def strength(self) -> Strength:
        """In words: by the factor on the odds."""
        size = abs(self.contribution)
        return "strongly" if size >= STRONG else "clearly" if size >= CLEAR else "slightly"


def reference(contract: Contract, kind: str | None) -> np.ndarray:
    """The encoded reference, float64 (d,); blocks that `kind` does not hold are as in everybody's record there."""
    parts = []
    for column in contract.columns:
        part = np.zeros(len(column.features))
        if isinstance(column, Category) and contract.holds(kind, column.block):
            declared = [column.encoded_levels.index(level) for level in column.levels]
            part[declared] = 1 / len(declared)
        parts.append(part)
    parts.append(np.array([float(not contract.holds(kind, block.name)) for block in contract.blocks]))
    return np.concatenate(parts)


def contributions(weights: np.ndarray, x: np.ndarray, contract: Contract, kind: str | None) -> np.ndarray:
    """What each contract column adds to the logit, (n, columns), beside the reference's; x is (n, d).

    The "not held" features belong to no column: at one agency they are the reference's own, so they add nothing.
    """
    if len(weights) != len(layout(contract).names):
        raise ValueError("the weights must be as many as the contract's features")
    each = (x.astype(np.float64) - reference(contract, kind)) * weights
    ends = np.cumsum([len(column.features) for column in contract.columns])
    starts = [0, *ends[:-1].tolist()]
    return np.add.reduceat(each[:, : ends[-1]], starts, axis=1)


def top_reasons(
    contract: Contract,
    row: np.ndarray,
    cells: dict[str, object],
    scale: float = 1.0,
    top: int = TOP,
) -> tuple[Reason, ...]:
    """The largest of one person's contributions `row` (columns,), times `scale`, each at least `LEAST`."""
    sizes = [abs(part) * scale for part in row.tolist()]
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))  # equals in the contract's order
    found = []
    for i in [i for i in order if sizes[i] >= LEAST][:top]:
        column = contract.columns[i]
        value = value_text(column, cells.get(column.name))
        found.append(
            Reason(
                column.name,
                label_of(column),
                value,
                usual_text(column),
                float(row[i] * scale),
                marks(contract, column),
            )
        )
    return tuple(found)


def label_of(column: Column) -> str:
    """The column in words: the contract's description, else its name."""
    return column.about.description or _words(column.name)


def marks(contract: Contract, column: Column) -> tuple[str, ...]:
    """Whether the column is protected, or stands for what is, and whether nobody can change it."""
    own = [group.name for group in contract.groups if group.column == column.name]
    found = [f"protected ({_words(name)})" for name in own]
    if column.about.proxy_for is not None and column.about.proxy_for not in own:
        found.append(f"may stand for a protected characteristic ({_words(column.about.proxy_for)})")
    if not column.about.actionable:
        found.append("nobody can change this")
    return tuple(found)


def value_text(column: Column, cell: object) -> str:
    """A cell as the reader of a case sees it."""
    if canonical(cell) is None:
        return "not recorded"
    match column:
        case Number():
            return _with_unit(column, float(str(cell)))
        case Flag():
            return "yes" if FLAG_LEVELS.get(str(canonical(cell))) == 1 else "no"
        case _:
            text = str(canonical(cell))
            return text if text in column.levels else "a value that the contract does not list"


def usual_text(column: Column) -> str:
    """What the value is compared with: the reference, in words."""
    match column:
        case Number():
            low, high = column.range
            center = (low + high) / 2 if column.center is None else column.center
            if column.log:
                center = column.min + math.expm1(center * math.log1p(column.max - column.min))
            return _with_unit(column, center)
        case Ordinal():
            return "the middle of its levels"
        case Category():
            return "the average of its levels"
        case Flag():
            return "no"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _with_unit(column: Number, value: float) -> str:
    number = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if column.unit in ("", "count"):
        return number
    return f"{number}%" if column.unit == "percent" else f"{number} {column.unit}"
