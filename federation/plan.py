"""What a run may do at an agency: the plan that it says yes or no to, and the reasons for a no.

A plan is one frozen value with a canonical JSON text and a SHA-256. It rides whole in every order, so an
agency never acts on a promise that it has not seen.
"""

import base64
import functools
import hashlib
import json
import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from federation import masks
from federation.release import GaussianEvent, Release, SharedRelease
from models.contract import MAX_USER_CELLS
from models.spec import ModelSpec

VERSION = "5"

Part = Literal["train", "tune", "test"]
FairMethod = Literal["group_multipliers", "qffl"]
_SLUG, _SHA256 = r"^[a-z0-9][a-z0-9_-]{0,63}$", r"^[0-9a-f]{64}$"
_PATTERNS = {
    _SLUG: "must be small letters, digits, - and _, at most 64",
    _SHA256: "must be a SHA-256, 64 small hexadecimal digits",
}
Slug = Annotated[str, Field(pattern=_SLUG)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[int, Field(ge=1)]
Sha256 = Annotated[str, Field(pattern=_SHA256)]

# The clipped gradients of a batch, up to MOST_ROWS rows, are added in float64 (`clients.train.dp_sum`). Adding
# n numbers is off by at most n 2^-53 of the sum of their sizes, n C: at most 2^-13 C, in each of two
# neighbouring tables.
MOST_ROWS = 2**20
SUM_SLACK = 2.0**-12
NORMS = (1e-3, 1e6)  # of max_grad_norm: far from where squares of gradients vanish or overflow
LARGEST_WEIGHT = 1e6  # of an order; models with larger ones overflow for some people and not for others
SMALLEST_SHARE = 8  # grid steps: the sum of shares is then a discrete Gaussian to exp(-600)


class Reason(StrEnum):
    """Why an agency said no. Specific only where the cause cannot depend on its records."""

    VERSION = "VERSION"  # another protocol version
    MALFORMED = "MALFORMED"  # the order does not decode
    CONTRACT = "CONTRACT"  # another data contract than this agency agreed to
    MODEL = "MODEL"  # a model, strategy, size or kind of release that its policy does not permit
    PURPOSE = "PURPOSE"  # a purpose that its policy does not permit
    PRIVACY = "PRIVACY"  # too little noise, no privacy, or a seed where the node is not a simulation
    BUDGET = "BUDGET"  # the privacy budget would be exceeded
    REPLAYED = "REPLAYED"  # this draw has been made, or this list signed, before
    MASKS = "MASKS"  # keys, survivor lists or signatures of the masking do not check
    LEDGER = "LEDGER"  # its ledger is not the newest that others have seen of it
    WITHDRAWN = "WITHDRAWN"  # a person there has withdrawn from this plan
    NOT_YET = "NOT_YET"  # a person there must approve the plan first
    CLOSED = "CLOSED"  # outside its working hours
    BUSY = "BUSY"  # too many plans were refused there lately: no new one is looked at for now
    LEFT = "LEFT"  # the agency has left the federation
    REGISTRATION = "REGISTRATION"  # no panel that it has pinned registered the run before it began
    UNAVAILABLE = "UNAVAILABLE"  # everything else, and everything that may depend on data


NOT_NOW = frozenset({Reason.NOT_YET, Reason.CLOSED, Reason.BUSY})  # the same order may be permitted later


class Refused(Exception):
    """A refusal: `reason` may leave the agency, `sentence` stays on its machine."""

    def __init__(self, reason: Reason, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.sentence = sentence


class Agreed(BaseModel):
    """A frozen value with a canonical form. Unknown keys are errors, ±Inf is written as a string."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_inf_nan="strings", allow_inf_nan=True, protected_namespaces=()
    )

    @functools.cached_property
    def canonical(self) -> str:
        """The one JSON text of this value: sorted keys, no spaces."""
        return json.dumps(json.loads(self.model_dump_json()), sort_keys=True, separators=(",", ":"))

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256 of `canonical`, hex."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()

    def but(self, **changes: Any) -> Self:
        """This value with `changes`, checked again (pydantic's `model_copy` checks nothing)."""
        return type(self).model_validate(
            {name: getattr(self, name) for name in type(self).model_fields} | changes
        )


class Carried(Agreed):
    """What a coordinator is asked for: it goes to it as one value of a Flower run config."""

    def encode(self) -> str:
        """URL-safe base64 of the canonical JSON: one scalar that survives a Flower run config."""
        return base64.urlsafe_b64encode(self.canonical.encode()).decode()

    @classmethod
    def decode(cls, text: str) -> Self:
        """The inverse of `encode`; ValueError where it does not fit."""
        return cls.model_validate_json(base64.urlsafe_b64decode(text.encode()).decode())


class Participant(Agreed):
    """What everybody may know about an agency. `public_size` is declared, never counted."""

    name: Slug
    kind: str | None = None
    public_size: Annotated[int, Field(ge=1)]
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Registered(Agreed):
    """A panel's registration of a run, as it rides in the plan: the text that was signed, and who signed it.

    `federation.decision` says what a registration is, and verifies it against the keys that an agency has pinned.
    """

    statement: Annotated[str, Field(max_length=200_000)]
    signatures: dict[Slug, str]

    @property
    def digest(self) -> str:
        """SHA-256 of the text, hex: what is signed, and what a journal keeps."""
        return hashlib.sha256(self.statement.encode()).hexdigest()


class Circle(Agreed):
    """Who shares the noise of a plan behind masks. All of it is public.

    `agencies` (n of them) mask their integers, of which up to `colluders` c may tell the coordinator all
    they know and up to `dropouts` d may fail in a round; h = n - c - d honest agencies carry the whole noise.
    Sums are taken modulo 2^`bits`.
    """

    agencies: tuple[Slug, ...]
    colluders: Annotated[int, Field(ge=0)]
    dropouts: Annotated[int, Field(ge=0)]
    bits: Literal[32, 64]

    @model_validator(mode="after")
    def can_be_masked(self) -> Self:
        n, c, d = len(self.agencies), self.colluders, self.dropouts
        if list(self.agencies) != sorted(set(self.agencies)):
            raise ValueError("agencies must be names in order, each once")
        if n < 3:
            raise ValueError(
                f"noise can be shared by at least 3 agencies, got {n}: of two, each learns the other's sum by "
                "taking away its own; use privacy=local"
            )
        if n <= 2 * d + c:
            raise ValueError(
                f"noise can be shared by more than 2 x dropouts + colluders = {2 * d + c} agencies, got {n}: "
                "lower privacy.dropouts or privacy.colluders, or use privacy=local"
            )
        return self

    @property
    def threshold(self) -> int:
        """t = n - d: how many agencies must be in a sum, sign its list and open their shares."""
        return len(self.agencies) - self.dropouts

    @property
    def honest(self) -> int:
        """h = n - c - d: how many shares are the whole noise."""
        return len(self.agencies) - self.colluders - self.dropouts

    def share_variance(self, noise_multiplier: float, sensitivity: float) -> int:
        """Variance of one share, grid steps squared: h of them are at least (noise_multiplier x sensitivity)^2."""
        return math.ceil((noise_multiplier * sensitivity) ** 2 / self.honest)


class SharedNoise(Circle):
    """Who shares the noise of a training, and the whole numbers that it is drawn on.

    A gradient is rounded to `steps_per_norm` grid steps per `max_grad_norm`, a count is `steps_per_person`
    steps. `parameters` and `cells` are how many numbers a model and a score table have.
    """

    steps_per_norm: Annotated[int, Field(ge=1)]
    steps_per_person: Annotated[int, Field(ge=1)]
    parameters: Annotated[int, Field(ge=1)]
    cells: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def is_fine_enough(self) -> Self:
        if self.steps_per_norm < 1000 * math.sqrt(self.parameters):
            raise ValueError(
                f"steps_per_norm must be at least 1000 x sqrt(parameters) = "
                f"{math.ceil(1000 * math.sqrt(self.parameters))}, got {self.steps_per_norm}"
            )
        return self

    @property
    def gradient_sensitivity(self) -> float:
        """Grid steps (L2) that one person changes an agency's rounded sum by, at most.

        C of clipping, SUM_SLACK C of float64 summation, and half a step of rounding on each of p coordinates in
        each of the two sums: K (1 + SUM_SLACK) + sqrt(p), for K grid steps to C.
        """
        return self.steps_per_norm * (1 + SUM_SLACK) + math.sqrt(self.parameters)


class PrivacyPlan(Agreed):
    """The noise of every release of a run. All of it is public.

    `mechanism` local: each agency's own noise, Gaussian or, on tables, discrete Gaussian. shared: discrete
    Gaussian shares behind secure aggregation; every noise here is then that of the h shares together, which the coordinator faces with
    c colluders. `noise_multiplier` is noise std / sensitivity, dimensionless; the sensitivity is
    `max_grad_norm`, rounding included. `sample_rate` is the chance that a person is in a step. `tune_sigma`
    and `test_sigma` are the noise std of one cell of a score table, in people (sensitivity 1); a table of users has
    `test_sigma` too.
    """

    mechanism: Literal["local", "shared", "none"]
    noise_multiplier: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    max_grad_norm: Annotated[float, Field(gt=0)]
    sample_rate: Annotated[float, Field(gt=0, le=1)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    tune_sigma: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    test_sigma: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    shared: SharedNoise | None = None

    @model_validator(mode="after")
    def noise_or_none(self) -> Self:
        noised = self.noise_multiplier > 0 and self.tune_sigma > 0 and self.test_sigma > 0
        if self.mechanism != "none" and not (noised and np.isfinite(self.max_grad_norm)):
            raise ValueError(
                f"mechanism {self.mechanism} needs a finite max_grad_norm and noise above 0 everywhere"
            )
        if self.mechanism != "none" and not NORMS[0] <= self.max_grad_norm <= NORMS[1]:
            raise ValueError(
                f"max_grad_norm must be from {NORMS[0]:g} to {NORMS[1]:g}, got {self.max_grad_norm:g}"
            )
        if self.mechanism == "none" and self.noise_multiplier + self.tune_sigma + self.test_sigma > 0:
            raise ValueError("mechanism none must say 0 for every noise")
        if (self.mechanism == "shared") != (self.shared is not None):
            raise ValueError("shared must be given where mechanism is shared, and nowhere else")
        events = [self.gradient_release(1), self.table_release("tune"), self.table_release("test")]
        if any(isinstance(e, SharedRelease) and e.share_variance < SMALLEST_SHARE**2 for e in events):
            raise ValueError(
                f"the grid is too coarse: a share of noise must be at least {SMALLEST_SHARE} steps"
            )
        return self

    @functools.cached_property
    def limit(self) -> int:
        """Largest grid steps on a coordinate of an agency's integers, so that their sum does not wrap around."""
        assert self.shared is not None  # noqa: S101 - asked of shared plans alone
        events = [self.gradient_release(1), self.table_release("tune"), self.table_release("test")]
        variance = max(event.share_variance for event in events if isinstance(event, SharedRelease))
        return masks.limit_for(self.shared.bits, len(self.shared.agencies), math.sqrt(variance))

    def gradient_release(self, steps: int) -> GaussianEvent:
        """What `steps` clipped and noised sums of gradients cost."""
        common: dict[str, Any] = {"kind": "train", "part": "train", "sample_rate": self.sample_rate}
        if self.shared is None:
            return Release(noise_multiplier=self.noise_multiplier, steps=steps, **common)
        sensitivity = self.shared.gradient_sensitivity
        return self._shared(sensitivity, self.noise_multiplier, self.shared.parameters, steps, **common)

    def table_release(self, part: Part) -> GaussianEvent:
        """What one table of counts over `part` costs: one release of sensitivity 1 person."""
        sigma = self.tune_sigma if part == "tune" else self.test_sigma
        common: dict[str, Any] = {"kind": "evaluate", "part": part, "sample_rate": 1.0}
        if self.shared is None:
            return Release(noise_multiplier=sigma, steps=1, **common)
        return self._shared(float(self.shared.steps_per_person), sigma, self.shared.cells, 1, **common)

    def users_release(self, cells: int) -> GaussianEvent:
        """What one table of users over test people costs, of `cells` cells: as a score table, charged beside it."""
        common: dict[str, Any] = {"kind": "users", "part": "test", "sample_rate": 1.0}
        if self.shared is None:
            return Release(noise_multiplier=self.test_sigma, steps=1, **common)
        return self._shared(float(self.shared.steps_per_person), self.test_sigma, cells, 1, **common)

    def _shared(
        self, sensitivity: float, noise_multiplier: float, dimension: int, steps: int, **common: Any
    ) -> SharedRelease:
        assert self.shared is not None  # noqa: S101 - the callers' case
        return SharedRelease(
            sensitivity=sensitivity,
            share_variance=self.shared.share_variance(noise_multiplier, sensitivity),
            dimension=dimension,
            agencies=len(self.shared.agencies),
            colluders=self.shared.colluders,
            dropouts=self.shared.dropouts,
            steps=steps,
            **common,
        )


class LocalPlan(Agreed):
    """What one agency does in one round: `steps` optimiser steps from the round's weights."""

    steps: Annotated[int, Field(ge=1)]
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    proximal_mu: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class UserCounts(Agreed):
    """The table of users that is taken with the test table: test people by flag, practice, intensity and lead.

    People with a score at or above `cutoff`, one of the plan's edges, are flagged. `cells` is how many numbers the
    contract's `users_shape` makes; each person is in one of them.
    """

    cutoff: Annotated[float, Field(gt=0, lt=1)]
    cells: Annotated[int, Field(ge=4, le=MAX_USER_CELLS)]


class FairTraining(Agreed):
    """How a run tries to be fairer while it trains (docs/fairness.md); no agency can check the coordinator's part of it.

    `group_multipliers`: orders bring numbers in [1 / `most`, `most`] by which people's clipped gradients count, by level of
    the audit group `by` and by outcome (`federation.multipliers`). `qffl`: the coordinator weighs agencies by loss^`q`,
    of which the agencies' tune tables tell it.
    """

    method: FairMethod
    by: str | None = None
    most: Annotated[float, Field(ge=1, le=100)] | None = None
    q: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def says_its_own(self) -> Self:
        given = tuple(value is not None for value in (self.by, self.most, self.q))
        if given != ((True, True, False) if self.method == "group_multipliers" else (False, False, True)):
            raise ValueError("fairness: group_multipliers has by and most, qffl has q")
        return self


class Terms(Agreed):
    """What every plan says: what it is for, under which contract, among whom, and how people are dealt into parts.

    `seed` is set in simulations only: it makes every draw repeatable, so a node that guards real
    records refuses a plan that carries one.
    """

    version: str = VERSION
    run_id: Slug
    experiment: Slug
    purpose: Slug
    contract_sha256: str
    tune_fraction: Fraction
    test_fraction: Fraction
    participants: tuple[Participant, ...]
    seed: int | None = None

    def participant(self, name: str) -> Participant:
        """The declared facts of agency `name`; `Refused(CONTRACT)` if the plan does not list it."""
        if name not in self._by_name:
            raise Refused(Reason.CONTRACT, f"the plan does not list the agency {name!r}")
        return self._by_name[name]

    @functools.cached_property
    def _by_name(self) -> dict[str, Participant]:
        return {participant.name: participant for participant in self.participants}


class Retest(Agreed):
    """Which model a plan measures again, and no more: that of the run `of`.

    `weights` is the SHA-256 of its parameters (`federation.protocol.weights_digest`): an agency measures these or none.
    """

    of: Slug
    weights: Sha256


class TrainPlan(Terms):
    """The whole of a run as an agency needs it to say yes or no. It rides in every order.

    `strategy` names how the coordinator says that it combines the agencies' changes; no agency can check that it does.
    `registration`: what a panel signed before the run, if it did; each agency writes its hash down with each order.
    `retest`: nothing is trained; the plan is that of a finished run with 0 rounds, and takes one table of test people.
    `users`: the second table of the test people, None where the contract declares nothing for it, or it is not asked for.
    """

    model: ModelSpec
    strategy: Slug
    privacy: PrivacyPlan
    local: LocalPlan
    rounds: Annotated[int, Field(ge=0, le=100_000)]
    checkpoints: tuple[int, ...]
    edges: tuple[float, ...]
    fairness: FairTraining | None = None
    registration: Registered | None = None
    users: UserCounts | None = None
    retest: Retest | None = Field(default=None, exclude_if=lambda retest: retest is None)

    @model_validator(mode="after")
    def trains_or_measures(self) -> Self:
        if (self.retest is None) != (self.rounds > 0):
            raise ValueError(f"rounds must be 1 or more, and 0 for a retest, got {self.rounds}")
        if self.retest is not None and self.checkpoints:
            raise ValueError("checkpoints must be empty for a retest, which takes one table of test people")
        if self.retest is not None and self.users is not None:
            raise ValueError("users must be null for a retest, which takes one table of test people")
        return self

    @model_validator(mode="after")
    def one_linear_sum(self) -> Self:
        shared = self.privacy.shared
        if shared is None:
            return self
        if self.fairness is not None and self.fairness.method == "qffl":
            raise ValueError(
                "fairness: qffl needs each agency's own loss, and behind masks there is only a sum"
            )
        if self.local.steps != 1 or self.local.proximal_mu:
            raise ValueError(
                "shared noise needs local.steps = 1 and no proximal term: others' noise never reaches a step "
                "that an agency takes by itself; use strategy=dp_fedsgd, or privacy=local"
            )
        sizes = {p.name: p.public_size for p in self.participants}
        if not set(shared.agencies) <= set(sizes):
            raise ValueError("privacy.shared.agencies must be participants")
        if len({p.weight / p.public_size for p in self.participants if p.name in shared.agencies}) > 1:
            raise ValueError(
                "shared noise weighs every person alike: each agency's weight must be its public_size"
            )
        return self

    @model_validator(mode="after")
    def flags_at_an_edge(self) -> Self:
        if self.users is not None and self.users.cutoff not in self.edges:
            raise ValueError(f"users.cutoff must be one of edges, got {self.users.cutoff}")
        return self

    @property
    def circle(self) -> Circle | None:
        """Who masks what leaves, None where nobody does."""
        return self.privacy.shared

    @property
    def masked_draws(self) -> int:
        """How many masked vectors the plan takes from an agency where no round is void."""
        return self.rounds + 1

    @property
    def train_fraction(self) -> float:
        """The declared share of people in the train part, (0, 1]."""
        return 1 - self.tune_fraction - self.test_fraction

    def train_release(self) -> GaussianEvent:
        """What one round of training costs."""
        return self.privacy.gradient_release(self.local.steps)

    def table_release(self, part: Part) -> GaussianEvent:
        """What one score table on `part` costs."""
        return self.privacy.table_release(part)

    def users_releases(self) -> tuple[GaussianEvent, ...]:
        """What the table of users costs that goes with one test table: one release, or none where there is no such."""
        return () if self.users is None else (self.privacy.users_release(self.users.cells),)

    def expected_batch(self, name: str) -> float:
        """q x the declared number of people that agency `name` trains on: what its sums are divided by."""
        return self.privacy.sample_rate * self.participant(name).public_size * self.train_fraction

    def of_retest(self, retest: Retest) -> Self:
        """This plan without its training: one table of test people, and no more."""
        return self.but(rounds=0, checkpoints=(), users=None, fairness=None, retest=retest)

    def each_release(self) -> tuple[GaussianEvent, ...]:
        """One of each release that the plan may ask for: training, a table of tune and of test people, one of users."""
        if self.retest is not None:
            return (self.table_release("test"),)
        tables = self.table_release("tune"), self.table_release("test")
        return (self.train_release(), *tables, *self.users_releases())

    def releases(self) -> tuple[GaussianEvent, ...]:
        """Everything that this plan may take from one agency, if every round happens once: of a retest, one table."""
        train = [self.train_release()] * self.rounds
        tune = [self.table_release("tune")] * len(self.checkpoints)
        return (*train, *tune, self.table_release("test"), *self.users_releases())


def sentences(error: ValidationError, within: Sequence[str] = ()) -> list[str]:
    """A pydantic error as sentences: the key, the rule and what was found."""
    found = []
    for item in error.errors(include_url=False):
        key = ".".join([*within, *(str(part) for part in item["loc"])])
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            found.append(f"{key} is not a known setting")
        elif item["type"] == "missing":
            found.append(f"{key} is missing")
        elif item["type"] in ("model_type", "dataclass_type"):
            found.append(f"{key or 'this'} must be a group of settings, got {item['input']!r}")
        elif item["type"] in ("string_too_short", "literal_error") and item["input"] == "":
            found.append(f"{key} must not be empty")
        elif item["type"] == "string_pattern_mismatch":
            rule = _PATTERNS.get(item["ctx"]["pattern"], f"must be as {item['ctx']['pattern']}")
            found.append(f"{key} {rule}, got {item['input']!r}")
        else:
            rule = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
            got = "" if item["type"] == "value_error" else f", got {item['input']!r}"
            found.append(f"{key} {rule}{got}" if key else rule)
    return found
