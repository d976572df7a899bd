"""What a cohort is agreed to be: how many people two or three agencies both know, from one noised histogram of each.

Each agency drops its people into buckets by a hash of their match key (`models.matchkey`) under a secret that these
agencies agree and the coordinator never has (`federation.pact`), by level of an audit group if one is asked for, and adds
its own discrete Laplace noise. A person is in one cell, so the histogram is one release of pure epsilon; somebody whom two of
them know spends it at both.
"""

from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, model_validator

from federation.plan import Carried, Slug, Terms
from federation.release import LaplaceRelease
from models import cohort
from models.contract import MAX_GROUPS, Contract

EPSILONS = (0.01, 10.0)  # least and most of one cohort
MOST_CELLS = 2**25


class CohortPlan(Terms):
    """How many people the agencies `of` know in common, as an agency needs it to say yes or no.

    `epsilon` is what each agency's histogram costs a person, pure (delta 0). `buckets` are those of each level, from the
    sizes that the agencies declare. `by`: the audit group whose `levels` are told apart; None: 1 level, of everybody.
    """

    of: tuple[Slug, ...]
    epsilon: Annotated[float, Field(ge=EPSILONS[0], le=EPSILONS[1], allow_inf_nan=False)]
    buckets: Annotated[int, Field(ge=cohort.LEAST_BUCKETS, le=cohort.MOST_BUCKETS)]
    by: str | None = None
    levels: Annotated[int, Field(ge=1, le=MAX_GROUPS)] = 1

    @model_validator(mode="after")
    def is_of_few(self) -> Self:
        names = [participant.name for participant in self.participants]
        if list(self.of) != sorted(set(self.of)) or len(self.of) not in (2, 3):
            raise ValueError(f"of must be two or three names in order, each once, got {', '.join(self.of)}")
        if missing := [name for name in self.of if name not in names]:
            raise ValueError(f"of must be participants, and {', '.join(missing)} is none")
        if self.by is None and self.levels != 1:
            raise ValueError(f"levels must be 1 where nothing is told apart, got {self.levels}")
        planned = cohort.planned_buckets(self.sizes, self.epsilon, self.levels)
        if abs(self.buckets - planned) > 1:  # machines may round the last bit of a logarithm otherwise
            raise ValueError(f"buckets must be what the declared sizes make, {planned}, got {self.buckets}")
        if self.buckets * self.levels > MOST_CELLS:
            raise ValueError(
                f"a histogram must have at most {MOST_CELLS} cells, got {self.buckets * self.levels}"
            )
        return self

    @property
    def sizes(self) -> tuple[int, ...]:
        """The declared sizes of the agencies `of`, in their order."""
        declared = {participant.name: participant.public_size for participant in self.participants}
        return tuple(declared[name] for name in self.of)

    @property
    def order_id(self) -> str:
        """Names the draw in the ledger."""
        return f"{self.run_id}/cohort#{self.sha256}"

    @property
    def shape(self) -> tuple[int, int]:
        """Of each agency's histogram: (levels, buckets)."""
        return self.levels, self.buckets

    @property
    def dtype(self) -> np.dtype[Any]:
        """The shortest whole numbers that hold 4 times the people of a bucket that has all of a level, and its noise."""
        most = 4 * max(self.sizes) / self.buckets + 60 / self.epsilon + 30
        names = ("int8", "int16", "int32")
        return np.dtype(next((name for name in names if most <= np.iinfo(name).max), "int32"))

    def release(self) -> LaplaceRelease:
        """What it costs: one histogram with discrete Laplace noise, over everybody."""
        return LaplaceRelease(kind="cohort", part="all", epsilon=self.epsilon)


class CohortRequest(Carried):
    """What a coordinator is asked for."""

    plan: CohortPlan


def why_not(contract: Contract, by: str | None) -> str | None:
    """Why no cohort is counted, one sentence from the contract alone; None where it may be."""
    if contract.match is None:
        return (
            "the contract says not who is the same person at two agencies: add `match` to it, as in "
            "match: {identifier: COLUMN} or match: {name: [COLUMN, COLUMN], born: COLUMN}"
        )
    groups = [group.name for group in contract.groups]
    if by is not None and by not in groups:
        return f"the contract has no audit group {by!r}; it has {', '.join(groups) or 'none'}"
    return None


def columns_of(contract: Contract, by: str | None) -> tuple[str, ...]:
    """The columns that a cohort is counted by: those of the match key, and the group's."""
    own = [group.column for group in contract.groups if group.name == by]
    return (*contract.match_columns, *own)


def levels_of(contract: Contract, by: str | None) -> tuple[str, ...]:
    """The levels that are told apart; one without a name where nothing is."""
    return next((group.level_names for group in contract.groups if group.name == by), ("",))
