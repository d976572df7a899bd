"""What a demand map is agreed to be: a workload of queries, answered from one charged release of each agency.

Each agency counts its people by the levels that the workload names (`models.design`: one vector of whole numbers whose
sensitivity is computed), adds noise, and sends the vector. The noise is its own, or shared behind masks: then nobody sees
more than the sum. An agency answers what its kind of agency holds, less the columns that the plan leaves out for it.
"""

import functools
import json
import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from federation import masks
from federation.plan import SMALLEST_SHARE, Agreed, Carried, Circle, Reason, Refused, Slug, Terms
from federation.release import Event, Release, SharedRelease
from models.contract import Contract
from models.design import Design, design
from models.marginals import WorkloadError
from models.workload import Workload
from models.workload import read as read_workload

Column = Annotated[str, Field(min_length=1, max_length=200)]
MOST_TEXT = 200_000  # characters of a workload
MOST_SAID = 4_000  # characters of what is wrong with one


class MapCircle(Circle):
    """Who shares the noise of a map: the vector has `numbers` numbers, which one person moves by `sensitivity` steps (L2)."""

    numbers: Annotated[int, Field(ge=1)]
    sensitivity: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class MapPlan(Terms):
    """A workload, as an agency needs it to say yes or no.

    `workload` is its JSON, in the order in which its attributes were written (`models.workload.read`).
    `noise_multiplier` is noise std / sensitivity, dimensionless, 0 for none (simulations alone): of an agency's own noise,
    or of all honest shares together. `delta` is what ε is stated at. `without`: by agency, the columns that it is not
    asked for. `circle` is given where mechanism is shared.
    """

    workload: Annotated[str, Field(max_length=MOST_TEXT)]
    mechanism: Literal["local", "shared", "none"]
    noise_multiplier: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    without: dict[Slug, tuple[Column, ...]] = Field(default_factory=dict)
    circle: MapCircle | None = None

    @model_validator(mode="after")
    def noise_or_none(self) -> Self:
        if (self.mechanism == "none") != (self.noise_multiplier == 0):
            raise ValueError("noise_multiplier must be above 0, and 0 where mechanism is none")
        if (self.mechanism == "shared") != (self.circle is not None):
            raise ValueError("circle must be given where mechanism is shared, and nowhere else")
        if self.circle is not None and self.without:
            raise ValueError(
                "without must be empty behind masks, where all send the same numbers: use privacy=local"
            )
        names = {participant.name for participant in self.participants}
        if self.circle is not None and not set(self.circle.agencies) <= names:
            raise ValueError("circle.agencies must be participants")
        event = self.release()
        if isinstance(event, SharedRelease) and event.share_variance < SMALLEST_SHARE**2:
            raise ValueError(
                f"the grid is too coarse: a share of noise must be at least {SMALLEST_SHARE} steps"
            )
        return self

    @property
    def masked_draws(self) -> int:
        """How many masked vectors the plan takes from an agency."""
        return 1

    @functools.cached_property
    def limit(self) -> int:
        """Largest grid steps on a number of an agency's vector, so that the sum does not wrap around."""
        assert self.circle is not None  # noqa: S101 - asked of shared plans alone
        event = self.release()
        assert isinstance(event, SharedRelease)  # noqa: S101 - as the circle says
        return masks.limit_for(self.circle.bits, len(self.circle.agencies), math.sqrt(event.share_variance))

    def release(self) -> Event:
        """What it costs an agency: one Gaussian release over everybody."""
        if self.circle is None:
            return Release("map", "all", self.noise_multiplier, sample_rate=1.0, steps=1)
        circle = self.circle
        return SharedRelease(
            "map",
            "all",
            sensitivity=circle.sensitivity,
            share_variance=circle.share_variance(self.noise_multiplier, circle.sensitivity),
            dimension=circle.numbers,
            agencies=len(circle.agencies),
            colluders=circle.colluders,
            dropouts=circle.dropouts,
            sample_rate=1.0,
            steps=1,
        )

    def each_release(self) -> tuple[Event, ...]:
        """One of each release that the plan may ask for."""
        return (self.release(),)

    def releases(self) -> tuple[Event, ...]:
        """Everything that this plan may take from one agency."""
        return (self.release(),)

    def asked(self, contract: Contract) -> Workload:
        """The whole workload; `Refused(MALFORMED)` where it does not fit the contract."""
        return _asked(self.workload, contract)

    def asked_of(self, contract: Contract, name: str) -> Workload:
        """What agency `name` answers of the workload: the queries whose columns its kind holds, less `without`."""
        return self._held(contract, name)[0]

    def design_of(self, contract: Contract, name: str) -> Design | None:
        """The release of agency `name`, None where it holds nothing that is asked for."""
        return self._held(contract, name)[1]

    def _held(self, contract: Contract, name: str) -> tuple[Workload, Design | None]:
        participant = self.participant(name)
        self.asked(contract)  # or it does not fit
        text, columns = json.dumps(contract.to_dict()), self.without.get(name, ())
        return _of_kind(self.workload, text, participant.kind, columns)


class NotAsked(Agreed):
    """A query that was left out before anybody was asked, and why."""

    query: str
    why: str


class MapRequest(Carried):
    """What a coordinator is asked for: the plan, and what somebody wanted and no agency is asked."""

    plan: MapPlan
    not_asked: tuple[NotAsked, ...] = ()


@functools.lru_cache(maxsize=8)
def _read(text: str, contract: str) -> Workload:
    return read_workload(json.loads(text), Contract.from_dict(json.loads(contract)))


def _asked(text: str, contract: Contract) -> Workload:
    try:
        return _read(text, json.dumps(contract.to_dict()))
    except (WorkloadError, ValueError, TypeError, AttributeError, RecursionError) as error:
        said = "it is not a workload in JSON"
        if isinstance(error, WorkloadError):
            said = "; ".join(str(error).splitlines())[:MOST_SAID]
            said = "".join(letter if letter.isprintable() else "?" for letter in said)  # it goes into logs
        raise Refused(Reason.MALFORMED, f"workload: {said}") from None


@functools.lru_cache(maxsize=64)  # agencies of a kind are asked alike, and planning may take seconds
def _of_kind(
    text: str, contract: str, kind: str | None, without: tuple[str, ...]
) -> tuple[Workload, Design | None]:
    agreed = Contract.from_dict(json.loads(contract))
    held = _read(text, contract).held_by(agreed, kind, without)
    try:
        return held, design(held, agreed.unit.rows) if held.queries else None
    except WorkloadError as error:
        raise Refused(Reason.MALFORMED, f"workload: {error}") from None
