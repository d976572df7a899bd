"""What a statistic of one column is agreed to be: one noised table of values, charged as one release.

Each agency adds its own discrete Gaussian noise; noise shared behind masks is not offered for statistics. A person
counts once, by the most recent row, whichever part the person is in.
"""

from typing import Annotated

from pydantic import Field

from federation.plan import Carried, Terms
from federation.release import Release
from models.contract import Contract

Column = Annotated[str, Field(min_length=1, max_length=200)]
Share = Annotated[float, Field(gt=0, lt=1)]


class StatsPlan(Terms):
    """A table of the values of `column` (`models.quantiles`), as an agency needs it to say yes or no.

    `sigma` is the noise std on each cell, in people, to 0.1 % (`models.quantiles.variance_of`): one person moves the whole
    table by at most 1 (L2).
    `delta` is what ε is stated at. `tune_fraction` and `test_fraction` are those of the training that may
    follow: they name the split, so that the ledger knows both to be about the same people.
    """

    column: Column
    sigma: Annotated[float, Field(ge=0.001, allow_inf_nan=False)]
    delta: Annotated[float, Field(gt=0, lt=1)]

    @property
    def order_id(self) -> str:
        """Names the draw in the ledger."""
        return f"{self.run_id}/stats/{self.column}#{self.sha256}"

    def release(self) -> Release:
        """What it costs: one Gaussian release of sensitivity 1 over everybody."""
        return Release(kind="stats", part="all", noise_multiplier=self.sigma, sample_rate=1.0, steps=1)


class StatsRequest(Carried):
    """What a coordinator is asked for: the plan, and which quantiles to read off the sum of the tables."""

    plan: StatsPlan
    shares: Annotated[tuple[Share, ...], Field(min_length=1)]


def why_not(contract: Contract, column: str) -> str | None:
    """Why no statistic of `column` is taken, one sentence from the contract alone; None where it may be."""
    roles = {contract.unit.column: "the id of a person", contract.label.column: "the label"}
    roles |= {group.column: f"the column of the group {group.name}" for group in contract.groups}
    roles |= {contract.split: "the column of the split"}
    if column not in roles:
        return None
    return f"column {column!r} is {roles[column]} in the contract: statistics are of other columns only"


def holds(contract: Contract, kind: str | None, column: str) -> bool:
    """Whether agencies of this kind hold `column`, as far as the contract says; it need not know the column."""
    blocks = {known.name: known.block for known in contract.columns}
    return contract.holds(kind, blocks.get(column))
