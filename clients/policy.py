"""The agency's own rules, as they stand in policy.toml. The coordinator never sees this file and cannot change it.

`clients.rules` holds a plan against them: docs/policy.md explains every key.
"""

import re
import tomllib
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from clients.budget import Budget, Limit, Span
from federation.plan import Agreed, FairMethod, Slug, sentences
from federation.release import VIEWERS, Kind, Viewer


class PolicyError(ValueError):
    """A policy file that cannot be used: one sentence for each problem. The node does not start."""


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown, not a name, or a folder of names
        raise ValueError(
            f"must be a time zone that this machine knows, as Europe/London, got {name!r}"
        ) from None
    return name


def _sha256(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError(
            f"must be a contract's SHA-256, 64 small hexadecimal digits, as `fedrisk-node policy show` prints it; got "
            f"{text!r}"
        )
    return text


Epsilon = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Above0 = Annotated[float, Field(gt=0)]
Sha256 = Annotated[str, AfterValidator(_sha256)]
Zone = Annotated[str, AfterValidator(_known_zone)]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = get_args(Day)


class EpsilonTo(Agreed):
    """The most ε to each viewer. A bare number is the same for all three; what is left out is as `coordinator`.

    `public`: whoever sees sums and results. `coordinator`: the coordinator, told everything by as many
    agencies as a plan withstands. `everybody`: all other agencies and the coordinator together, against whom
    only this agency's own share of noise counts. With an agency's own noise the three are one.
    """

    coordinator: Epsilon
    public: Epsilon | None = None
    everybody: Epsilon | None = None

    @model_validator(mode="before")
    @classmethod
    def from_number(cls, value: object) -> object:
        return {"coordinator": value} if isinstance(value, int | float) else value

    def limit(self, span: Span, name: str | None, delta: float) -> Limit:
        """As the ledger takes it."""
        return Limit(span, name, delta, {viewer: self.to(viewer) for viewer in VIEWERS})

    def to(self, viewer: Viewer) -> float:
        """The most ε to `viewer`."""
        return float(getattr(self, viewer) or self.coordinator)


class BudgetRules(Agreed):
    """What all plans together may spend on one person of this agency: for life, and in narrower spans.

    `year`: any 365 days. `experiment`: each experiment by itself. `purpose`: by name. `order`: what the releases
    of any one order would cost if there were no others.
    """

    delta: Annotated[float, Field(gt=0, lt=1)]
    life: EpsilonTo
    year: EpsilonTo | None = None
    experiment: EpsilonTo | None = None
    order: EpsilonTo | None = None
    purpose: dict[Slug, EpsilonTo] = Field(default_factory=dict)

    def limits(self) -> Budget:
        """Every limit that the ledger keeps; a plan must keep all."""
        spans: list[tuple[Span, EpsilonTo | None]] = [
            ("life", self.life),
            ("year", self.year),
            ("experiment", self.experiment),
        ]
        found = [rule.limit(span, None, self.delta) for span, rule in spans if rule is not None]
        found += [rule.limit("purpose", name, self.delta) for name, rule in self.purpose.items()]
        return tuple(found)


class Purpose(Agreed):
    """Why the law lets this agency's records be used for it, up to which day, and whether a person is asked each time.

    `expires` is the last day. `ask` None: as the policy says for all purposes.
    """

    legal_basis: Annotated[str, Field(min_length=1, max_length=400)] | None = None
    expires: date | None = None
    ask: bool | None = None


class Hours(Agreed):
    """When orders are answered: from `opens` (`from` in the file) to before `closes` (`to`), on these days.

    A window that ends before it begins goes past midnight and belongs to the day on which it begins.
    """

    model_config = ConfigDict(populate_by_name=True)

    timezone: Zone
    days: tuple[Day, ...] = DAYS
    opens: Annotated[time, Field(alias="from")]
    closes: Annotated[time, Field(alias="to")]

    @model_validator(mode="after")
    def is_a_window(self) -> Self:
        if self.opens.tzinfo is not None or self.closes.tzinfo is not None:
            raise ValueError("from and to must be as 08:00: `timezone` says where")
        if not self.days:
            raise ValueError("days must list one at least: leave it out for all seven")
        if self.opens == self.closes:
            raise ValueError(
                "from and to must differ: leave [hours] out where orders are answered at any time"
            )
        return self

    def include(self, now: datetime) -> bool:
        """Whether orders are answered at `now`, by the clock on the wall in `timezone`."""
        local = now.astimezone(ZoneInfo(self.timezone))
        clock, today = local.time(), DAYS[local.weekday()] in self.days
        if self.opens < self.closes:
            return today and self.opens <= clock < self.closes
        yesterday = DAYS[(local - timedelta(days=1)).weekday()] in self.days
        return (today and clock >= self.opens) or (yesterday and clock < self.closes)


class ProbingRules(Agreed):
    """`[probing]`: after so many refusals in so many hours no new plan is looked at (`clients.probing`).

    `refusals` of all experiments together, `per_experiment` of one.
    """

    refusals: Annotated[int, Field(ge=1, le=100_000)] = 20
    per_experiment: Annotated[int, Field(ge=1, le=100_000)] = 10
    hours: Annotated[float, Field(gt=0, le=8784)] = 24


class Policy(Agreed):
    """What a plan must satisfy. The defaults permit nothing: an agency writes what it agrees to.

    `contracts`, `strategies`, `fairness` and `releases`: what is left out (None) permits anything in a simulation and nothing
    elsewhere. `never_columns`: a contract that has one of them is refused, whichever agencies hold it.
    `max_...` None: no ceiling. `max_steps` counts the optimiser steps of one order, `max_rounds` a plan's rounds.
    `min_colluders` is the smallest c that a plan with shared noise must withstand, `max_honest` the largest
    number h of other agencies' honesty that this agency's privacy may rest on (0: no shared noise).
    `min_reply_seconds` makes every reply take at least that long, so that its time says less.
    `stats_columns` are the columns whose quantiles may be asked for (`fedrisk stats`).
    `map_columns` are the columns that a map or a cohort may count by.
    `cohort_peers` are the agencies with which a common number of people may be counted (`fedrisk cohort`).
    `registration_required`: the panel pinned in node.toml must have registered a training before it began.
    `ask`: a person approves each plan before it runs (`clients.approvals`).
    `simulation` may be true only where the records are synthetic or public: it lets a plan carry a
    seed, and go without noise.
    """

    purposes: dict[Slug, Purpose] = Field(default_factory=dict)
    contracts: tuple[Sha256, ...] | None = None
    never_columns: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    strategies: tuple[str, ...] | None = None
    fairness: tuple[FairMethod, ...] | None = None
    releases: tuple[Kind, ...] | None = None
    stats_columns: tuple[str, ...] = ()
    map_columns: tuple[str, ...] = ()
    cohort_peers: tuple[Slug, ...] = ()
    max_rounds: Annotated[int, Field(ge=1)] | None = None
    max_steps: Annotated[int, Field(ge=1)] | None = None
    masks_required: bool = False
    registration_required: bool = False
    max_grad_norm: Above0 | None = None
    max_sample_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    min_noise_multiplier: Annotated[float, Field(ge=0)] = 0.3
    min_table_sigma: Annotated[float, Field(ge=0)] = 1.0
    max_delta: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    min_people: Annotated[int, Field(ge=1)] = 50
    min_agencies: Annotated[int, Field(ge=1)] = 1
    min_colluders: Annotated[int, Field(ge=0)] = 1
    max_honest: Annotated[int, Field(ge=0)] = 0
    min_reply_seconds: Annotated[float, Field(ge=0, le=600)] = 0.0
    budget: BudgetRules | None = None
    ask: bool = False
    hours: Hours | None = None
    probing: ProbingRules = ProbingRules()
    simulation: bool = False

    @field_validator("purposes", mode="before")
    @classmethod
    def from_names(cls, value: Any) -> Any:
        names = isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
        return {name: Purpose() for name in value} if names else value

    @model_validator(mode="after")
    def purposes_are_lawful(self) -> Self:
        bare = [name for name, purpose in self.purposes.items() if purpose.legal_basis is None]
        if bare and not self.simulation:
            raise ValueError(
                f"purposes: {', '.join(bare)} must say why the law permits it: write [purposes.{bare[0]}] and under it "
                'legal_basis = "...". Only a simulation lists purposes by name alone'
            )
        return self

    def asks(self, purpose: str) -> bool:
        """Whether a person must approve each plan for `purpose`."""
        of_purpose = self.purposes[purpose].ask if purpose in self.purposes else None
        return self.ask if of_purpose is None else of_purpose

    def today(self, now: datetime) -> date:
        """The day of `now` where the agency's hours are told, else UTC."""
        return now.astimezone(ZoneInfo(self.hours.timezone) if self.hours else UTC).date()


def read_policy(path: Path) -> Policy:
    """The policy in `path` (TOML). `PolicyError` names every key and rule; a missing file is one too."""
    try:
        return Policy.model_validate(tomllib.loads(path.read_text()))
    except FileNotFoundError:
        raise PolicyError(f"{path} is missing: a node without a policy does not start") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"{path} cannot be read ({type(error).__name__})") from None
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"{path} is not TOML: {error}") from None
    except ValidationError as error:
        raise PolicyError("\n".join(f"{path.name}: {line}" for line in sentences(error))) from None
