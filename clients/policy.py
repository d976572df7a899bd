"""The agency's own rules. The coordinator never sees this file and cannot change it.

`review` accepts a plan or refuses it with the line that decides; it never adjusts one.
"""

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from federation.protocol import Agreed, Reason, Refused, TrainPlan, sentences


class PolicyError(ValueError):
    """A policy file that cannot be used: one sentence for each problem. The node does not start."""


class BudgetRule(Agreed):
    """What all plans together may spend on one person of this agency."""

    epsilon: Annotated[float, Field(gt=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]


class Policy(Agreed):
    """What a plan must satisfy. The defaults permit nothing: an agency writes what it agrees to.

    `simulation` may be true only where the records are synthetic or public: it lets a plan carry a
    seed, and go without noise.
    """

    purposes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    min_noise_multiplier: Annotated[float, Field(ge=0)] = 0.3
    min_table_sigma: Annotated[float, Field(ge=0)] = 1.0
    max_delta: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    min_people: Annotated[int, Field(ge=1)] = 50
    min_agencies: Annotated[int, Field(ge=1)] = 1
    budget: BudgetRule | None = None
    simulation: bool = False

    def review(self, plan: TrainPlan) -> None:
        """Return if the plan is permitted; `Refused` with the class and the deciding line if not."""
        if plan.purpose not in self.purposes:
            raise Refused(Reason.PURPOSE, f"purposes: the plan's purpose {plan.purpose!r} is not listed")
        if plan.model.name not in self.models:
            raise Refused(Reason.MODEL, f"models: the plan's model {plan.model.name!r} is not listed")
        if len(plan.participants) < self.min_agencies:
            raise Refused(
                Reason.CONTRACT, f"min_agencies: the plan lists fewer than {self.min_agencies} agencies"
            )
        if self.simulation:
            return
        if plan.seed is not None:
            raise Refused(
                Reason.PRIVACY, "simulation: a plan with a seed would make the noise known to others"
            )
        if plan.privacy.mechanism == "none":
            raise Refused(Reason.PRIVACY, "simulation: a plan without privacy runs on simulated data only")
        if plan.privacy.noise_multiplier < self.min_noise_multiplier:
            raise Refused(
                Reason.PRIVACY, f"min_noise_multiplier: the plan has less than {self.min_noise_multiplier}"
            )
        if min(plan.privacy.tune_sigma, plan.privacy.test_sigma) < self.min_table_sigma:
            raise Refused(Reason.PRIVACY, f"min_table_sigma: the plan has less than {self.min_table_sigma}")
        if plan.privacy.delta > self.max_delta:
            raise Refused(Reason.PRIVACY, f"max_delta: the plan has more than {self.max_delta}")
        if self.budget is None:
            raise Refused(Reason.BUDGET, "budget: the policy states none, so nothing can be spent")


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
