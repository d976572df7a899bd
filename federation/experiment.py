"""One experiment as a value: every setting typed and checked, with a canonical JSON and its SHA-256.

`Settings` is what `conf/` may say. `Experiment` adds what is read once from files: the data contract
and the agencies' public facts. Both are checked as a whole before any agency is asked; the same text
is decoded and checked again by the server that runs it, so nothing can drift on the way.
"""

import base64
import functools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator

from federation import masks
from federation.decision import DecisionError, Registration, Signed
from federation.plan import (
    Agreed,
    FairTraining,
    Fraction,
    Participant,
    PrivacyPlan,
    Retest,
    Slug,
    TrainPlan,
    UserCounts,
    sentences,
)
from federation.privacy import noise_for
from models import disclosure, risk
from models.contract import Contract
from models.disclosure import Disclosure
from models.features import layout
from models.scores import default_edges
from models.spec import ModelSpec

Model = TypeVar("Model", bound=Agreed)
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(gt=0, lt=1)]
OPERATIONAL = (  # settings that say how a run is done, and not what comes out of it
    *(
        "output",
        "tracking",
        "engine",
        "join_timeout",
        "round_timeout",
        "patience",
        "void_rounds",
        "reference",
    ),
)
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


# Flower's strategies that hold against m agencies which send anything, and b of the 2 m + b that it takes.
ROBUST: Mapping[str, int] = {"fedmedian": 1, "fedtrimmedavg": 1, "krum": 3, "multikrum": 3}


class SettingsError(ValueError):
    """A configuration that cannot run: one sentence for each problem."""


class Privacy(Agreed):
    """What a run may spend: either a target ε or a noise multiplier.

    `epsilon` is for one agency's training over all rounds; `evaluate_epsilon` for each of the tune and
    test parts (None: the same). People of different parts are different people, so a person's loss is
    the larger of the parts, not the sum. Under mechanism `shared` both are what the coordinator may learn
    together with any `colluders` agencies, while up to `dropouts` agencies fail in a round.
    """

    mechanism: Literal["local", "shared", "none"] = "local"
    epsilon: Positive | None = None
    noise_multiplier: Positive | None = None
    evaluate_epsilon: Positive | None = None
    delta: Probability = 1e-5
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    sample_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    colluders: Annotated[int, Field(ge=0)] = 1
    dropouts: Annotated[int, Field(ge=0)] = 1

    @model_validator(mode="after")
    def one_target(self) -> Self:
        private = self.mechanism != "none"
        if private and (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("needs exactly one of epsilon and noise_multiplier")
        if private and self.epsilon is None and self.evaluate_epsilon is None:
            raise ValueError("needs evaluate_epsilon where noise_multiplier takes the place of epsilon")
        if private and self.max_grad_norm == float("inf"):
            raise ValueError("needs a finite max_grad_norm unless mechanism is none, got inf")
        return self


class Local(Agreed):
    """One agency's work in one round: `steps` of SGD."""

    steps: Annotated[int, Field(ge=1, le=100_000)] = 1
    learning_rate: Positive = 1.0
    weight_decay: NotNegative = 0.0


class Strategy(Agreed):
    """Which of Flower's strategies combines the agencies' changes, and its settings.

    `dp_fedsgd` is one clipped and noised sum of gradients per agency and round. It and the robust ones
    (`ROBUST`), which hold while up to `malicious` agencies send anything, find one change; `optimizer` is the
    strategy of Flower's that then moves the weights. Columns that fewer agencies hold than a robust strategy needs
    are not defended by it: `thin_blocks` says whether their weights stay where they started (`leave`) or are
    combined all the same. A change longer (L2) than `norm_bound` is scaled down to it:
    `plan` is the longest that an honest agency can send (`federation.server.bounds`).
    """

    name: Literal[
        "fedavg",
        "fedavgm",
        "fedprox",
        "fedadam",
        "fedyogi",
        "dp_fedsgd",
        "fedmedian",
        "fedtrimmedavg",
        "krum",
        "multikrum",
    ] = "fedavg"
    optimizer: Literal["fedavg", "fedavgm", "fedadam", "fedyogi"] = "fedavgm"
    server_learning_rate: Positive = 1.0
    server_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    beta_1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta_2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    tau: Positive = 1e-3
    proximal_mu: NotNegative = 0.0
    malicious: Annotated[int, Field(ge=1)] = 1
    thin_blocks: Literal["leave", "combine"] = "leave"
    norm_bound: Literal["plan", "none"] | float = "plan"

    @field_validator("norm_bound", mode="before")
    @classmethod
    def known_bound(cls, value: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value not in ("plan", "none") and not (number and 0 < value < math.inf):
            raise ValueError(f"must be plan, none or a finite number above 0, got {value!r}")
        return value

    def least(self, caught: int = 0) -> int:
        """How many changes a round needs for the promise of the strategy, 0 where it makes none.

        `caught` agencies sent what cannot be used: they are of the `malicious`, so fewer are left among the others.
        """
        return 2 * max(0, self.malicious - caught) + ROBUST[self.name] if self.name in ROBUST else 0


class CustomDisclosure(Agreed):
    """A disclosure rule of one's own (`models.disclosure`)."""

    minimum: Annotated[int, Field(ge=1)]
    rounding: Annotated[int, Field(ge=1)] = 1


class Fairness(Agreed):
    """Training that tries to be fairer (docs/fairness.md, `federation.server.fair`); all of it follows from the tune tables.

    `group_multipliers`: people of a level of the audit group `by` that is behind count more, in [1 / `most`, `most`]. Each
    checkpoint moves a multiplier's logarithm by `rate` x its gap in the rates of `criterion`, by `step` at most. When
    accuracy or AUC falls by more than `floor`, they go back to 1. `qffl`: agencies count by loss^`q`.
    """

    method: Literal["none", "group_multipliers", "qffl"] = "none"
    by: str | None = None
    criterion: Literal["equalized_odds", "equal_opportunity"] = "equalized_odds"
    rate: Positive = 0.5
    step: Positive = 0.5
    most: Annotated[float, Field(ge=1, le=100)] = 3.0
    floor: Annotated[float, Field(gt=0, lt=1)] = 0.03
    q: Annotated[float, Field(ge=0, le=100)] = 1.0

    def plan(self) -> FairTraining | None:
        """The part that agencies see."""
        if self.method == "none":
            return None
        if self.method == "qffl":
            return FairTraining(method="qffl", q=self.q)
        return FairTraining(method="group_multipliers", by=self.by, most=self.most)


class Evaluation(Agreed):
    """Score tables: `checkpoints` on tune along the way, one on test at the end.

    `capacity`: the share of people that can be seen to; a second cutoff flags no more of them (None: no second).
    `disclosure`: what may be published of counts of people: a profile, or a minimum and a rounding.
    `users`: with the last one also the table of users, where the contract declares `intensity`, `lead_time` or
    `practice`; `evaluate_epsilon` then holds for both tables together.
    """

    bins: Annotated[int, Field(ge=4, le=200)] = 20
    cutoff: Probability = 0.5
    capacity: Probability | None = 0.1
    checkpoints: Annotated[int, Field(ge=0, le=50)] = 4
    users: bool = True
    disclosure: Literal["none", "uk-default"] | CustomDisclosure = "uk-default"

    @field_validator("disclosure", mode="before")
    @classmethod
    def known_profile(cls, value: Any) -> Any:
        if isinstance(value, CustomDisclosure):
            return value
        if isinstance(value, Mapping):
            try:
                return CustomDisclosure.model_validate(value)
            except ValidationError as error:
                raise ValueError("; ".join(sentences(error))) from None
        if value not in ("none", "uk-default"):
            raise ValueError(
                f"must be none, uk-default, or a minimum and a rounding as in {{minimum: 15, rounding: 5}}, got {value!r}"
            )
        return value

    @functools.cached_property
    def rule(self) -> Disclosure:
        """The disclosure rule as a value."""
        chosen = self.disclosure
        if isinstance(chosen, CustomDisclosure):
            return disclosure.custom(chosen.minimum, chosen.rounding)
        return disclosure.profile(chosen)


class Split(Agreed):
    """Declared shares of people held out for tuning and for the final test."""

    tune: Fraction = 0.2
    test: Fraction = 0.2

    @model_validator(mode="after")
    def leaves_some(self) -> Self:
        if self.tune + self.test >= 1:
            raise ValueError(f"tune + test must leave people to train on, got {self.tune} + {self.test}")
        return self


class Engine(Agreed):
    """Where the apps run. `poll_seconds` is how often the server looks for replies."""

    name: Literal["local", "ray", "superlink"] = "local"
    poll_seconds: Positive = 0.1


class Tracking(Agreed):
    """Any MLflow tracking URI, or `none`."""

    uri: str = "sqlite:///outputs/mlflow.db"


class Settings(Agreed):
    """Everything that `conf/` may say about a run, but for where the data comes from."""

    name: Slug
    purpose: Slug
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    rounds: Annotated[int, Field(ge=1, le=100_000)] = 10
    min_agencies: Annotated[int, Field(ge=1)] = 1
    join_timeout: Positive = 30.0
    round_timeout: Positive = 600.0
    patience: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 90.0
    void_rounds: Annotated[int, Field(ge=0)] = 3
    reference: bool = False
    output: str = "outputs"
    model: ModelSpec
    privacy: Privacy
    local: Local = Local()
    strategy: Strategy = Strategy()
    fairness: Fairness = Fairness()
    evaluation: Evaluation = Evaluation()
    split: Split = Split()
    engine: Engine = Engine()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def fits_together(self) -> Self:
        if self.evaluation.checkpoints > self.rounds:
            raise ValueError(
                f"evaluation.checkpoints must be at most rounds ({self.rounds}), got {self.evaluation.checkpoints}"
            )
        rule = self.evaluation.rule
        if self.privacy.mechanism == "none" and not rule.hides_differences:
            raise ValueError(
                f"evaluation.disclosure needs a rounding of at least half the minimum ({rule.minimum}) where there is no "
                f"noise, got {rule.rounding}: what is withheld would be the difference of what is published"
            )
        if self.strategy.name == "dp_fedsgd" and self.local.steps != 1:
            raise ValueError(
                f"local.steps must be 1 for strategy dp_fedsgd, which takes its steps at the coordinator, got "
                f"{self.local.steps}: set rounds instead"
            )
        if self.privacy.mechanism == "shared" and self.strategy.name != "dp_fedsgd":
            raise ValueError(
                f"strategy must be dp_fedsgd where privacy is shared, got {self.strategy.name}: behind masks there "
                "is only a sum, so nothing that needs each agency's own steps, loss or rank can be used"
                + ("; order statistics need each agency's own change" if self.strategy.name in ROBUST else "")
            )
        return self

    @model_validator(mode="after")
    def can_be_fairer(self) -> Self:
        method = self.fairness.method
        if method != "none" and not (self.evaluation.checkpoints and self.split.tune):
            raise ValueError(
                f"fairness.method {method} needs tables on the way, of which it learns who is behind: set "
                "evaluation.checkpoints to at least 1 and split.tune above 0"
            )
        if method == "qffl" and self.privacy.mechanism == "shared":
            raise ValueError(
                "fairness.method must not be qffl where privacy is shared: it needs each agency's own loss, and behind "
                "masks there is only a sum; use privacy=local or fairness=group_multipliers"
            )
        if method == "qffl" and self.strategy.name in ROBUST:
            raise ValueError(
                f"fairness.method must not be qffl for strategy {self.strategy.name}: it gives agencies with a large loss "
                "more weight, and that strategy ranks changes instead of weighing them; use strategy=fedavg"
            )
        return self

    @functools.cached_property
    def terms(self) -> dict[str, Any]:
        """The settings that decide the result, as a panel registers them."""
        return {key: value for key, value in json.loads(self.canonical).items() if key not in OPERATIONAL}

    @functools.cached_property
    def checkpoint_rounds(self) -> tuple[int, ...]:
        """Rounds after which the weights are evaluated on tune: evenly spaced, the last one included."""
        count = self.evaluation.checkpoints
        return tuple(sorted({round(self.rounds * (i + 1) / count) for i in range(count)}))

    def noise(self, test_tables: int = 1) -> "Noise":
        """The noise of every release; `SettingsError` where no noise keeps the target ε.

        `test_tables`: how many tables are taken of the test people, 2 with one of users (`Experiment.noise`).
        """
        privacy = self.privacy
        if privacy.mechanism == "none":
            return Noise(noise_multiplier=0, tune_sigma=0, test_sigma=0)
        sigma, shared = privacy.noise_multiplier, privacy.mechanism == "shared"
        steps = self.rounds * self.local.steps
        try:
            if sigma is None:
                assert privacy.epsilon is not None  # Privacy.one_target
                sigma = noise_for(privacy.epsilon, privacy.delta, privacy.sample_rate, steps, shared=shared)
            tables = privacy.evaluate_epsilon or privacy.epsilon
            assert tables is not None  # Privacy.one_target
            checkpoints = max(1, len(self.checkpoint_rounds))
            tune = noise_for(tables, privacy.delta, 1.0, checkpoints, shared=shared)
            test = noise_for(tables, privacy.delta, 1.0, test_tables, shared=shared)
        except ValueError as error:
            raise SettingsError(f"privacy: {error}") from None
        return Noise(noise_multiplier=sigma, tune_sigma=tune, test_sigma=test)


class Noise(NamedTuple):
    """Training's noise std / sensitivity, and the noise std of a cell of each table in people."""

    noise_multiplier: float
    tune_sigma: float
    test_sigma: float


class Experiment(Agreed):
    """A run, whole: settings, contract and agencies. `contract` is `Contract.to_dict()`.

    `registration`: what a panel signed before the run, which must be this run and no other.
    """

    settings: Settings
    contract: dict[str, Any]
    participants: Annotated[tuple[Participant, ...], Field(min_length=1)]
    registration: Signed | None = None

    @model_validator(mode="after")
    def agencies_fit(self) -> Self:
        contract = Contract.from_dict(self.contract)
        names = [participant.name for participant in self.participants]
        if len(set(names)) < len(names):
            raise ValueError("two agencies have the same name")
        if self.settings.min_agencies > len(names):
            raise ValueError(
                f"min_agencies must be at most the {len(names)} agencies listed, got {self.settings.min_agencies}"
            )
        for participant in self.participants:
            if contract.kinds and participant.kind not in contract.kinds:
                raise ValueError(
                    f"agency {participant.name}: kind must be one of {', '.join(contract.kinds)}, "
                    f"got {participant.kind!r}"
                )
        if not any(contract.holds_label(participant.kind) for participant in self.participants):
            raise ValueError(f"no agency listed holds the label {contract.label.column!r}")
        self._can_be_robust()
        fairness, groups = self.settings.fairness, [group.name for group in contract.groups]
        if fairness.method == "group_multipliers" and fairness.by not in groups:
            raise ValueError(
                f"fairness.by must be an audit group of the contract ({', '.join(groups) or 'it has none'}), got "
                f"{fairness.by!r}"
            )
        if self.registration is not None:
            self._is_what_was_registered(self.registration)
        return self

    def _is_what_was_registered(self, signed: Signed) -> None:
        """ValueError where this is another run than the registration is of: an edit after it voids it."""
        try:
            registered = signed.read(Registration)
        except DecisionError as error:
            raise ValueError(f"registration: {error}") from None
        contract = Contract.from_dict(self.contract)
        if not signed.signatures:
            raise ValueError("registration: nobody has signed it: a quorum of the panel does, before the run")
        label = contract.label
        told = {
            "experiment": self.settings.name,
            "purpose": self.settings.purpose,
            "outcome": label.description or label.column,
            "horizon": label.horizon,
        }
        differ = changed_keys({name: getattr(registered, name) for name in told}, told)
        differ += changed_keys(registered.terms, self.terms)
        if registered.contract_sha256 != contract.sha256:
            differ.append("contract")
        if registered.groups != tuple(group.name for group in contract.groups):
            differ.append("groups")
        if set(registered.agencies) != {participant.name for participant in self.participants}:
            differ.append("agencies")
        if differ:
            raise ValueError(
                f"registration: the panel registered another run, {', '.join(differ)} differ: an edit after the "
                "registration voids it; run what was registered, or have the new plan registered"
            )

    def _can_be_robust(self) -> None:
        """ValueError where the strategy cannot hold against `malicious` among those that train."""
        strategy = self.settings.strategy
        if len(self.members) < strategy.least():
            raise ValueError(
                f"strategy {strategy.name} against malicious={strategy.malicious} needs at least "
                f"2 x {strategy.malicious} + {ROBUST[strategy.name]} = {strategy.least()} agencies that train, got "
                f"{len(self.members)}: lower strategy.malicious, or use another strategy"
            )

    @functools.cached_property
    def terms(self) -> dict[str, Any]:
        """What a panel registers of a run beside its contract: the settings, and who takes part with which weight."""
        participants = [json.loads(participant.canonical) for participant in self.participants]
        return self.settings.terms | {"participants": participants}

    @functools.cached_property
    def data_contract(self) -> Contract:
        """The contract as a value."""
        return Contract.from_dict(self.contract)

    @functools.cached_property
    def members(self) -> tuple[Participant, ...]:
        """The agencies that can train: their kind holds the label."""
        contract = self.data_contract
        return tuple(p for p in self.participants if contract.holds_label(p.kind))

    @functools.cached_property
    def edges(self) -> tuple[float, ...]:
        """Edges of the score bins, the cutoff among them."""
        evaluation = self.settings.evaluation
        return tuple(float(edge) for edge in default_edges(evaluation.bins, (evaluation.cutoff,)))

    @functools.cached_property
    def users(self) -> UserCounts | None:
        """The table of users that the run takes; None where the contract declares nothing for one, or it is not wanted."""
        shape, evaluation = self.data_contract.users_shape, self.settings.evaluation
        if shape is None or not evaluation.users:
            return None
        return UserCounts(cutoff=evaluation.cutoff, cells=math.prod(shape))

    @functools.cached_property
    def noise(self) -> "Noise":
        """The noise of every release of this run: ε of the test people is that of all their tables together."""
        return self.settings.noise(test_tables=1 if self.users is None else 2)

    def privacy_plan(self) -> PrivacyPlan:
        """The noise of every release and, where it is shared, by whom; `SettingsError` where that cannot be."""
        privacy = self.settings.privacy
        values = {
            "mechanism": privacy.mechanism,
            "max_grad_norm": privacy.max_grad_norm,
            "sample_rate": privacy.sample_rate,
            "delta": privacy.delta,
            **self.noise._asdict(),
        }
        if privacy.mechanism == "shared":
            values["shared"] = self._shared_noise()
        return checked(PrivacyPlan, values, within=["privacy"])

    def _shared_noise(self) -> dict[str, Any]:
        """Who masks, and grids fine enough: `SharedNoise` says the rules."""
        privacy, contract, members = self.settings.privacy, self.data_contract, self.members
        parameters = risk.count_parameters(self.settings.model, len(layout(contract).names))
        noise = self.noise
        honest = max(1, len(members) - privacy.colluders - privacy.dropouts)
        steps_per_norm = math.ceil(1000 * math.sqrt(parameters))
        # a share of at least 32 steps, so that a table's noise is as good as a Gaussian
        coarsest = 32 * math.sqrt(honest) / min(noise.tune_sigma, noise.test_sigma)
        steps_per_person = 2 ** max(0, math.ceil(math.log2(coarsest)))
        people = 2 * max(p.public_size for p in members)  # twice the declared size is never clamped
        split = self.settings.split
        drawn, counted = privacy.sample_rate * (1 - split.tune - split.test), max(split.tune, split.test)
        share = max(
            noise.noise_multiplier * steps_per_norm,
            max(noise.tune_sigma, noise.test_sigma) * steps_per_person,
        ) / math.sqrt(honest)
        largest = people * max(steps_per_norm * drawn, steps_per_person * counted)
        return {
            "agencies": tuple(sorted(p.name for p in members)),
            "colluders": privacy.colluders,
            "dropouts": privacy.dropouts,
            "steps_per_norm": steps_per_norm,
            "steps_per_person": steps_per_person,
            "parameters": parameters,
            "cells": len(contract.group_names) * (len(self.edges) - 1) * 2,
            "bits": _bits(len(members), share, largest),
        }

    def plan_terms(self, run_id: str, *, simulation: bool) -> dict[str, Any]:
        """What every plan of this experiment says (`federation.plan.Terms`); the seed in a simulation only."""
        settings = self.settings
        return {
            "run_id": run_id,
            "experiment": settings.name,
            "purpose": settings.purpose,
            "contract_sha256": self.data_contract.sha256,
            "tune_fraction": settings.split.tune,
            "test_fraction": settings.split.test,
            "participants": self.participants,
            "seed": settings.seed if simulation else None,
        }

    def plan(self, run_id: str, *, simulation: bool) -> TrainPlan:
        """The part of the experiment that agencies see, with σ found for the target ε; `SettingsError` if it cannot be.

        In a simulation it carries the seed, in a deployment never.
        """
        settings = self.settings
        values = self.plan_terms(run_id, simulation=simulation) | {
            "model": settings.model,
            "strategy": settings.strategy.name,
            "privacy": self.privacy_plan(),
            "local": settings.local.model_dump() | {"proximal_mu": settings.strategy.proximal_mu},
            "rounds": settings.rounds,
            "checkpoints": settings.checkpoint_rounds,
            "edges": self.edges,
            "fairness": settings.fairness.plan(),
            "registration": None if self.registration is None else self.registration.registered,
            "users": self.users,
        }
        return checked(TrainPlan, values)

    def retest_plan(self, run_id: str, retest: Retest, *, simulation: bool) -> TrainPlan:
        """The plan of the run `run_id` that measures this experiment's model again: `plan` without any training."""
        return self.plan(run_id, simulation=simulation).of_retest(retest)

    def encode(self) -> str:
        """URL-safe base64 of the canonical JSON: one scalar that survives a Flower run config."""
        return base64.urlsafe_b64encode(self.canonical.encode()).decode()

    @classmethod
    def decode(cls, text: str) -> Self:
        """The inverse of `encode`, checked again as a whole; `SettingsError` when it does not fit."""
        try:
            return checked(cls, base64.urlsafe_b64decode(text.encode()).decode())
        except (UnicodeDecodeError, ValueError) as error:
            if isinstance(error, SettingsError):
                raise
            raise SettingsError("the run's configuration is not a fedrisk experiment in base64") from None


def unlike_registered(plan: TrainPlan, registration: Registration, contract: Contract) -> list[str]:
    """The keys of `plan` that are not what the registered terms make; [] where the panel registered this plan.

    An agency has the contract, so it makes the whole plan again from what was signed, and nothing in an order is taken
    on trust. A retest is that plan without its training. Noise may differ in its last bits between machines, by a millionth at most.
    """
    terms, texts = json.dumps(registration.terms), json.dumps(contract.to_dict())
    made = _plan_of_terms(terms, texts, plan.run_id, plan.seed is not None)
    if made is None:
        return ["registration"]
    if plan.retest is not None:
        made = made.of_retest(plan.retest)
    found, expected = (json.loads(each.but(registration=None).canonical) for each in (plan, made))
    for name in ("noise_multiplier", "tune_sigma", "test_sigma"):
        if math.isclose(found["privacy"][name], expected["privacy"][name], rel_tol=1e-6):
            expected["privacy"][name] = found["privacy"][name]
    return changed_keys(expected, found)


@functools.lru_cache(maxsize=64)  # every order of a run asks
def _plan_of_terms(terms: str, contract: str, run_id: str, simulation: bool) -> TrainPlan | None:
    """The plan that registered terms make (all JSON); None where they make none."""
    settings = json.loads(terms)
    participants = settings.pop("participants", None)
    whole = {"settings": settings, "contract": json.loads(contract), "participants": participants}
    try:
        return checked(Experiment, whole).plan(run_id, simulation=simulation)
    except SettingsError:
        return None


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys whose values differ between two mappings, in order."""
    found = []
    for key in sorted({*before, *after}):
        one, other = before.get(key), after.get(key)
        one, other = (_by_name(each) for each in (one, other))
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += changed_keys(one, other, f"{prefix}{key}.")
        elif one != other or (key in before) != (key in after):
            found.append(f"{prefix}{key}")
    return found


def _by_name(value: Any) -> Any:
    """A list of things that have a name, as a mapping; anything else as it is. Order counts: it is a key then."""
    if (
        isinstance(value, list)
        and value
        and all(isinstance(each, Mapping) and "name" in each for each in value)
    ):
        return {str(each["name"]): {"place": at, **each} for at, each in enumerate(value)}
    return value


def _bits(agencies: int, share_std: float, largest: float) -> int:
    """32 where sums of `agencies` numbers up to `largest` fit with their noise, else 64."""
    try:
        return 32 if masks.limit_for(32, agencies, share_std) >= largest else 64
    except ValueError:
        return 64


def checked(cls: type[Model], value: str | dict[str, Any], within: Sequence[str] = ()) -> Model:
    """`value` (JSON text or a mapping) as a `cls`; `SettingsError` with every problem in a sentence."""
    try:
        return cls.model_validate_json(value) if isinstance(value, str) else cls.model_validate(value)
    except ValidationError as error:
        raise SettingsError("\n".join(sentences(error, within))) from None
