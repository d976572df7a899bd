"""What may be published of counts of people: the disclosure rule of a run, chosen before it and one for all of it.

Statistical offices withhold small counts and round the others, so that nobody is found in a table or in the difference
of two tables (UK practice: Government Analysis Function, "Tabular data: disclosure control"; OpenSAFELY and NHS
England: suppress, then round to 5). Here it works on *noised* counts, on top of differential privacy, and at one place:
counts are withheld and rounded before any rate is formed of them (`models.scores.Noised`), and an estimate that may not
be published has no number in its JSON (`models.scores.Estimate.to_dict`).

- The minimum is of the people that a number is about (a rate's denominator), as they were counted; what is published is
  the rounded count. A numerator below the minimum is not withheld (a rate of 0 says something) but is rounded.
- Numbers that are no ratio of counts (AUC, Brier score, log loss, O/E, ECE) mix all bins, so no count can be had back
  from one of them. With a rounding above 1 they are published to `DECIMALS` places, since many exact digits of several
  such numbers are as good as the counts.
- A withheld count is the total less the published ones. Nothing else is withheld to hide it: each rounded count may be
  off by half the rounding, so one such difference of at least two is known no better than to within twice half the
  rounding on either side. Without noise the settings therefore ask for 2 x rounding >= minimum. With noise, noise hides it.
- Without noise that is all it does. The same people are counted in many ways (by outcome, by flag, at several cutoffs and
  checkpoints), each rounded anew, and all of them together narrow a withheld count down, now and then to one number; three
  decimals of several measures of ten people do as well. Rounding hides people from a reader, noise from an attacker.
"""

import math
from dataclasses import dataclass
from typing import Literal, final

Profile = Literal["none", "uk-default", "custom"]

DECIMALS = 3


@final
@dataclass(frozen=True)
class Disclosure:
    """Fewer than `minimum` people are not published; counts are rounded to multiples of `rounding` (1: not at all)."""

    profile: Profile
    minimum: int
    rounding: int

    def __post_init__(self) -> None:
        if not (_whole(self.minimum) and _whole(self.rounding)):
            raise ValueError(
                f"minimum and rounding must be whole numbers from 1, got {self.minimum!r} and {self.rounding!r}"
            )
        known = PROFILES.get(self.profile)
        if known is not None and known != (self.minimum, self.rounding):
            raise ValueError(
                f"the profile {self.profile} is a minimum of {known[0]} and a rounding of {known[1]}"
            )

    @property
    def hides_differences(self) -> bool:
        """Whether a withheld count stays in doubt by `minimum` people beside rounded ones that have no noise."""
        return 2 * self.rounding >= self.minimum

    @property
    def variance(self) -> float:
        """Variance of the error of a rounded count, people squared: of a uniform one, rounding^2 / 12."""
        return self.rounding**2 / 12 if self.rounding > 1 else 0.0

    def rounded(self, count: float) -> float:
        """The nearest multiple of the rounding."""
        return self.rounding * math.floor(count / self.rounding + 0.5) if self.rounding > 1 else count

    def outward(self, low: float, high: float) -> tuple[float, float]:
        """An interval of a count with multiples of the rounding as ends, no narrower."""
        if self.rounding == 1:
            return low, high
        return self.rounding * math.floor(low / self.rounding), self.rounding * math.ceil(
            high / self.rounding
        )

    def coarse(self, value: float, low: float, high: float) -> tuple[float, float, float]:
        """A number that is no ratio of counts, and its interval (no narrower), to `DECIMALS` places."""
        if self.rounding == 1:
            return value, low, high
        scale = 10**DECIMALS
        return round(value, DECIMALS), math.floor(low * scale) / scale, math.ceil(high * scale) / scale

    def to_dict(self) -> dict[str, str | int]:
        """The form in result.json."""
        return {"profile": self.profile, "minimum": self.minimum, "rounding": self.rounding}


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


PROFILES: dict[str, tuple[int, int]] = {"none": (1, 1), "uk-default": (10, 5)}


def profile(name: Literal["none", "uk-default"]) -> Disclosure:
    """The rule of that name."""
    return Disclosure(name, *PROFILES[name])


def custom(minimum: int, rounding: int = 1) -> Disclosure:
    """A rule of one's own; `ValueError` where a number is not whole or below 1."""
    return Disclosure("custom", minimum, rounding)


UNROUNDED = custom(10)  # what a pure function that is told nothing else applies
