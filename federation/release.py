"""The events that a ledger keeps: what was drawn, never what it means.

`federation.privacy` turns events into ε, so a better accountant can re-read an old ledger. A stored field
never changes its meaning, and a new mechanism is a new type with its own `mechanism` text.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from numbers import Real
from typing import Any, ClassVar, Literal, Self, get_args

Kind = Literal["train", "evaluate", "users", "stats", "map", "cohort"]
Part = Literal["train", "tune", "test", "all"]
Viewer = Literal["public", "coordinator", "everybody"]
VIEWERS: tuple[Viewer, ...] = get_args(Viewer)
LEAST_EPSILON = 1e-6  # of a Laplace release: its noise has an sd of a million people


@dataclass(frozen=True)
class Release:
    """`steps` draws of the Poisson-subsampled Gaussian mechanism over the people of `part`.

    The noise is the agency's own, so the loss is the same to the public, to the coordinator with any
    colluders, and to everybody else together. `noise_multiplier` is noise std / sensitivity (the clipping
    norm), dimensionless, at least 0.001; 0 says that there was no noise, and costs an infinite ε.
    `sample_rate` is the chance that a person is in a step, (0, 1]. `split_id` names the split that `part`
    belongs to (a name, never its secret). A wrong value is a ValueError: which, the rule, what was found.
    """

    mechanism: ClassVar[str] = "poisson-gaussian"

    kind: Kind
    part: Part
    noise_multiplier: float
    sample_rate: float
    steps: int
    split_id: str = ""

    def __post_init__(self) -> None:
        _check_common(self)
        _check_steps(self)
        noise = self.noise_multiplier
        require(
            isinstance(noise, Real) and (noise == 0 or 0.001 <= noise < math.inf),
            "noise_multiplier",
            "0 (no noise) or at least 0.001",
            noise,
        )

    def one_step(self) -> Self:
        """One draw of it."""
        return replace(self, steps=1)

    def repeated(self, times: int) -> tuple[Self, ...]:
        """The same `times` times over, as one event."""
        return (replace(self, steps=self.steps * times),)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `mechanism` names the type of event, so that a later type cannot be mistaken for it."""
        return {"mechanism": self.mechanism, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. ValueError for another mechanism, a missing, unknown or wrong value."""
        return cls(**_values_of(cls, values))


@dataclass(frozen=True)
class SharedRelease:
    """`steps` draws of a Poisson-subsampled sum over agencies, behind secure aggregation.

    Each agency adds to its own integers one share of discrete Gaussian noise N_Z(0, share_variance) on
    each of `dimension` coordinates, and only the sum of at least `agencies - dropouts` agencies is ever
    unmasked. `sensitivity` is what one person at one agency changes the rounded integers by, L2, at most;
    it and `share_variance` count grid steps (and their square). `agencies` n, `colluders` c and
    `dropouts` d are the plan's, n > 2d + c.
    """

    mechanism: ClassVar[str] = "poisson-discrete-gaussian-sum"

    kind: Kind
    part: Part
    sensitivity: float
    share_variance: int
    dimension: int
    agencies: int
    colluders: int
    dropouts: int
    sample_rate: float
    steps: int
    split_id: str = ""

    def __post_init__(self) -> None:
        _check_common(self)
        _check_steps(self)
        finite = isinstance(self.sensitivity, Real) and 0 < self.sensitivity < math.inf
        require(finite, "sensitivity", "above 0 and finite", self.sensitivity)
        for name in ("share_variance", "dimension", "agencies"):
            value = getattr(self, name)
            require(type(value) is int and value >= 1, name, "a whole number from 1", value)
        for name in ("colluders", "dropouts"):
            value = getattr(self, name)
            require(type(value) is int and value >= 0, name, "a whole number from 0", value)
        require(
            self.agencies > 2 * self.dropouts + self.colluders,
            "agencies",
            f"more than 2 x dropouts + colluders ({2 * self.dropouts + self.colluders})",
            self.agencies,
        )

    @property
    def honest(self) -> int:
        """h = n - c - d: how many honest agencies' shares are in every sum that is unmasked."""
        return self.agencies - self.colluders - self.dropouts

    def shares(self, viewer: Viewer) -> int:
        """How many shares of noise `viewer` can never take away from a sum."""
        return {"public": self.agencies - self.dropouts, "coordinator": self.honest, "everybody": 1}[viewer]

    def noise_multiplier_to(self, viewer: Viewer) -> float:
        """Std of the noise that `viewer` faces / sensitivity, dimensionless."""
        return math.sqrt(self.shares(viewer) * self.share_variance) / self.sensitivity

    def one_step(self) -> Self:
        """One draw of it."""
        return replace(self, steps=1)

    def repeated(self, times: int) -> tuple[Self, ...]:
        """The same `times` times over, as one event."""
        return (replace(self, steps=self.steps * times),)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with `mechanism`."""
        return {"mechanism": self.mechanism, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. ValueError for another mechanism, a missing, unknown or wrong value."""
        return cls(**_values_of(cls, values))


@dataclass(frozen=True)
class LaplaceRelease:
    """One histogram of whole numbers over the people of `part`, with the agency's own discrete Laplace noise.

    One person is in one cell, once: adding or removing them moves that cell by 1 and no other (L1 sensitivity 1).
    Each cell gets noise P(k) = tanh(epsilon/2) exp(-epsilon |k|) of its own (Ghosh, Roughgarden, Sundararajan 2009,
    arXiv:0811.2841), so the whole histogram is `epsilon`-DP at δ = 0, however many cells it has. `epsilon` is a
    parameter of the noise, from `LEAST_EPSILON`; what it means beside other releases is for the accountant to say.
    """

    mechanism: ClassVar[str] = "discrete-laplace"
    steps: ClassVar[int] = 1  # a second histogram is a second event

    kind: Kind
    part: Part
    epsilon: float
    split_id: str = ""

    def __post_init__(self) -> None:
        _check_common(self)
        require(
            isinstance(self.epsilon, Real) and LEAST_EPSILON <= self.epsilon < math.inf,
            "epsilon",
            f"at least {LEAST_EPSILON:g} and finite",
            self.epsilon,
        )

    def one_step(self) -> Self:
        """Itself: it is one draw."""
        return self

    def repeated(self, times: int) -> tuple[Self, ...]:
        """The same `times` times over."""
        return (self,) * times

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with `mechanism`."""
        return {"mechanism": self.mechanism, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. ValueError for another mechanism, a missing, unknown or wrong value."""
        return cls(**_values_of(cls, values))


GaussianEvent = Release | SharedRelease
Event = GaussianEvent | LaplaceRelease
_TYPES: Mapping[str, type[Event]] = {cls.mechanism: cls for cls in (Release, SharedRelease, LaplaceRelease)}


def event_from_dict(values: Mapping[str, Any]) -> Event:
    """The event that `to_dict` of any type wrote; ValueError for anything else."""
    mechanism = values.get("mechanism")
    require(
        isinstance(mechanism, str) and mechanism in _TYPES, "mechanism", f"one of {sorted(_TYPES)}", mechanism
    )
    return _TYPES[str(mechanism)].from_dict(values)


def require(holds: bool, name: str, rule: str, found: object) -> None:
    """ValueError with the one sentence that all values here are refused by."""
    if not holds:
        raise ValueError(f"{name} must be {rule}, got {found!r}")


def _check_common(event: Event) -> None:
    require(event.kind in get_args(Kind), "kind", f"one of {get_args(Kind)}", event.kind)
    require(event.part in get_args(Part), "part", f"one of {get_args(Part)}", event.part)
    require(type(event.split_id) is str, "split_id", "text", event.split_id)


def _check_steps(event: GaussianEvent) -> None:
    rate = event.sample_rate
    require(isinstance(rate, Real) and 0 < rate <= 1, "sample_rate", "in (0, 1]", rate)
    require(type(event.steps) is int and event.steps >= 1, "steps", "a whole number from 1", event.steps)


def _values_of(cls: type[Event], values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that `to_dict` wrote, all there and none else (`split_id` may be left out)."""
    rest = dict(values)
    mechanism = rest.pop("mechanism", None)
    require(mechanism == cls.mechanism, "mechanism", f"{cls.mechanism!r}", mechanism)
    known = {field.name for field in fields(cls)}
    if not known - {"split_id"} <= set(rest) <= known:
        raise ValueError(f"a release has other values than {sorted(known)}")
    return rest
