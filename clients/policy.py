"""The agency's own rules. The coordinator never sees this file and cannot change it.

`review` accepts a plan or refuses it with the line that decides; it never adjusts one.
"""

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from clients.budget import Budget, Limit, Span
from federation.plan import Agreed, Reason, Refused, Slug, Terms, TrainPlan, sentences
from federation.release import VIEWERS
from federation.stats import StatsPlan


class PolicyError(ValueError):
    """A policy file that cannot be used: one sentence for each problem. The node does not start."""


Epsilon = Annotated[float, Field(gt=0, allow_inf_nan=False)]


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
        to = {viewer: getattr(self, viewer) or self.coordinator for viewer in VIEWERS}
        return Limit(span, name, delta, to)


class BudgetRules(Agreed):
    """What all plans together may spend on one person of this agency: for life, and in narrower spans.

    `year`: any 365 days. `experiment`: each experiment by itself. `purpose`: by name.
    """

    delta: Annotated[float, Field(gt=0, lt=1)]
    life: EpsilonTo
    year: EpsilonTo | None = None
    experiment: EpsilonTo | None = None
    purpose: dict[Slug, EpsilonTo] = Field(default_factory=dict)

    def limits(self) -> Budget:
        """Every limit; a plan must keep all."""
        spans: list[tuple[Span, EpsilonTo | None]] = [
            ("life", self.life),
            ("year", self.year),
            ("experiment", self.experiment),
        ]
        found = [rule.limit(span, None, self.delta) for span, rule in spans if rule is not None]
        found += [rule.limit("purpose", name, self.delta) for name, rule in self.purpose.items()]
        return tuple(found)


class Policy(Agreed):
    """What a plan must satisfy. The defaults permit nothing: an agency writes what it agrees to.

    `min_colluders` is the smallest c that a plan with shared noise must withstand, `max_honest` the largest
    number h of other agencies' honesty that this agency's privacy may rest on (0: no shared noise).
    `min_reply_seconds` makes every reply take at least that long, so that its time says less.
    `stats_columns` are the columns whose quantiles may be asked for (`fedrisk stats`).
    `simulation` may be true only where the records are synthetic or public: it lets a plan carry a
    seed, and go without noise.
    """

    purposes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    stats_columns: tuple[str, ...] = ()
    min_noise_multiplier: Annotated[float, Field(ge=0)] = 0.3
    min_table_sigma: Annotated[float, Field(ge=0)] = 1.0
    max_delta: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    min_people: Annotated[int, Field(ge=1)] = 50
    min_agencies: Annotated[int, Field(ge=1)] = 1
    min_colluders: Annotated[int, Field(ge=0)] = 1
    max_honest: Annotated[int, Field(ge=0)] = 0
    min_reply_seconds: Annotated[float, Field(ge=0, le=600)] = 0.0
    budget: BudgetRules | None = None
    simulation: bool = False

    def review(self, plan: TrainPlan) -> None:
        """Return if the plan is permitted; `Refused` with the class and the deciding line if not."""
        self._review_terms(plan)
        if plan.model.name not in self.models:
            raise Refused(Reason.MODEL, f"models: the plan's model {plan.model.name!r} is not listed")
        if self.simulation:
            return
        self._review_shared_noise(plan)
        if plan.privacy.mechanism == "none":
            raise Refused(Reason.PRIVACY, "simulation: a plan without privacy runs on simulated data only")
        if plan.privacy.noise_multiplier < self.min_noise_multiplier:
            raise Refused(
                Reason.PRIVACY, f"min_noise_multiplier: the plan has less than {self.min_noise_multiplier}"
            )
        self._review_spending(min(plan.privacy.tune_sigma, plan.privacy.test_sigma), plan.privacy.delta)

    def review_stats(self, plan: StatsPlan) -> None:
        """`review` for a table of the values of one column; the noise on its cells is that of a table."""
        self._review_terms(plan)
        if plan.column not in self.stats_columns:
            raise Refused(Reason.CONTRACT, f"stats_columns: the plan's column {plan.column!r} is not listed")
        if not self.simulation:
            self._review_spending(plan.sigma, plan.delta)

    def _review_terms(self, plan: Terms) -> None:
        if plan.purpose not in self.purposes:
            raise Refused(Reason.PURPOSE, f"purposes: the plan's purpose {plan.purpose!r} is not listed")
        if len(plan.participants) < self.min_agencies:
            raise Refused(
                Reason.CONTRACT, f"min_agencies: the plan lists fewer than {self.min_agencies} agencies"
            )
        if plan.seed is not None and not self.simulation:
            raise Refused(
                Reason.PRIVACY, "simulation: a plan with a seed would make the noise known to others"
            )

    def _review_spending(self, sigma: float, delta: float) -> None:
        if sigma < self.min_table_sigma:
            raise Refused(Reason.PRIVACY, f"min_table_sigma: the plan has less than {self.min_table_sigma}")
        if delta > self.max_delta:
            raise Refused(Reason.PRIVACY, f"max_delta: the plan has more than {self.max_delta}")
        if self.budget is None:
            raise Refused(Reason.BUDGET, "budget: the policy states none, so nothing can be spent")

    def _review_shared_noise(self, plan: TrainPlan) -> None:
        shared = plan.privacy.shared
        if shared is None:
            return
        if shared.colluders < self.min_colluders:
            raise Refused(
                Reason.PRIVACY,
                f"min_colluders: the plan withstands {shared.colluders}, the least is {self.min_colluders}",
            )
        if shared.honest > self.max_honest:
            raise Refused(
                Reason.PRIVACY,
                f"max_honest: the plan rests on {shared.honest} honest agencies, the most is {self.max_honest}",
            )


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
