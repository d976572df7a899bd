"""What a configuration costs, said before anything is spent, and what noise, rounds and sampling meet a budget.

It needs the settings, the contract and the agencies' public facts, so no record is read, no agency is asked and
no ledger is opened. `fedrisk plan --json` prints `Plan` as one object; what is infinite or undefined is null:

    experiment, mechanism, unit, adjacency, delta, accountant    what the numbers are about
    agencies            names of those that hold the label, and so train and are charged
    shared              colluders, dropouts, honest, threshold (null without shared noise)
    target_epsilon      of the training, to the coordinator (null where noise_multiplier was given)
    cost                by viewer: train, tune, test, total, at_agencies {"1": ε, "2": ε, "3": ε}
    pld_epsilon         total by a tighter accountant; valid only if the whole experiment was fixed beforehand
    noise               see `planning_noise.Noise`; its grid see `Grid`
    meets               what (noise_multiplier or epsilon), rounds, sample_rates, smallest, cells
                        [see `planning_noise.Cell`]
    curve               [{round, epsilon {viewer: ε}}] of the training
    noise_for_epsilon   [{epsilon, noise_multiplier}] for the training, at this many rounds and this sample rate
    policy              delta, life {viewer: ε}, toml: what a node's policy.toml must allow
    next                the command that runs it
Where the mechanism is none, cost, pld_epsilon, noise, meets and policy are null, and both curves are empty.
"""

import json
import math
import shlex
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from pydantic import ValidationError

from experiments.config import compose, read
from experiments.planning_noise import Meets, Noise, meeting, members_of, noise_curve, noise_of
from federation.experiment import Experiment, SettingsError
from federation.plan import TrainPlan, sentences
from federation.privacy import (
    VIEWERS,
    Event,
    Spending,
    Viewer,
    epsilon,
    epsilon_at_several,
)
from federation.renyi import filter_order, rdp_budget

MOST_POINTS = 50  # of the curve over rounds
MOST_PLD = 50.0  # beyond such an ε the other accountant is slow, and no number helps
PICTURES = (".svg", ".png")


@dataclass(frozen=True)
class Shared:
    """How the noise is shared: any `colluders` c of the n agencies may collude, `dropouts` d may fail in a
    round, `honest` h = n - c - d carry the noise that counts, `threshold` t = n - d must be in every sum."""

    colluders: int
    dropouts: int
    honest: int
    threshold: int


@dataclass(frozen=True)
class Cost:
    """ε to one viewer, if every round happens once: of each part, of the person who loses most (`total`: the
    largest, as nobody is in two parts), and of a person known to 1, 2 and 3 agencies."""

    train: float
    tune: float
    test: float
    total: float
    at_agencies: Mapping[str, float]


@dataclass(frozen=True)
class Limits:
    """The smallest `[budget] life` that admits the plan where nothing was spent before, at its filter's order."""

    delta: float
    life: Mapping[Viewer, float]
    toml: str


@dataclass(frozen=True)
class Plan:
    """The answer; its fields are those of `--json` (see the module)."""

    experiment: str
    mechanism: str
    unit: str
    adjacency: str
    delta: float
    accountant: str
    agencies: tuple[str, ...]
    shared: Shared | None
    target_epsilon: float | None
    cost: Mapping[Viewer, Cost] | None
    pld_epsilon: float | None
    noise: Noise | None
    meets: Meets | None
    curve: tuple[Mapping[str, Any], ...]
    noise_for_epsilon: tuple[Mapping[str, float], ...]
    policy: Limits | None
    next: str


def plan_from(
    overrides: Sequence[str],
    *,
    as_json: bool = False,
    plot: Path | None = None,
    plan_file: Path | None = None,
) -> Plan:
    """Compose, work out and show (or print as JSON, or draw). `SettingsError`, `DataError` as for a run.

    `plan_file` gets what agencies would be asked. A submitted run has another run id, and so another SHA-256.
    """
    if plot is not None and plot.suffix.lower() not in PICTURES:
        raise SettingsError(f"--plot must name a file that ends in {' or '.join(PICTURES)}, got {plot}")
    experiment = experiment_of(overrides)
    found = planned(experiment, overrides)
    if plan_file is not None:
        plan_file.write_text(train_plan(experiment).canonical)
    from experiments import planning_screen

    if plot is not None and found.curve:  # without privacy there is nothing to draw
        planning_screen.draw(found, plot)
    if as_json:
        print(json.dumps(json_of(found), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        planning_screen.show(found, plot)
    return found


def experiment_of(overrides: Sequence[str]) -> Experiment:
    """The experiment as a run would have it. A bundled data set is written to a folder that is then removed."""
    config = compose(overrides)
    with tempfile.TemporaryDirectory(prefix="fedrisk-plan-") as folder:
        OmegaConf.update(config, "output", folder)
        return read(config, tables=False).experiment


def planned(experiment: Experiment, overrides: Sequence[str] = ()) -> Plan:
    """The whole answer for `experiment`."""
    plan, privacy = train_plan(experiment), experiment.settings.privacy
    members, shared = members_of(experiment), plan.privacy.shared
    private = privacy.mechanism != "none"
    target = privacy.epsilon if private else None
    cost = costs(plan, len(members)) if private else None
    return Plan(
        experiment=experiment.settings.name,
        mechanism=privacy.mechanism,
        unit=f"{experiment.data_contract.unit.kind} at one agency",
        adjacency="add-or-remove",
        delta=privacy.delta,
        accountant="RDP (dp-accounting)" if shared is None else "RDP at whole orders (fedrisk)",
        agencies=tuple(member.name for member in members),
        shared=Shared(shared.colluders, shared.dropouts, shared.honest, shared.threshold) if shared else None,
        target_epsilon=target,
        cost=cost,
        pld_epsilon=pld(plan, cost["public"].total) if cost else None,
        noise=noise_of(experiment, plan) if private else None,
        meets=meeting(plan, members, target) if private else None,
        curve=curve(plan) if private else (),
        noise_for_epsilon=noise_curve(plan, target) if private else (),
        policy=limits(plan) if private else None,
        next=shlex.join(["fedrisk", "run", *overrides]),
    )


def train_plan(experiment: Experiment) -> TrainPlan:
    """The plan that agencies would see; `SettingsError` where there can be none."""
    try:
        return experiment.plan("plan", simulation=False)
    except ValidationError as error:
        raise SettingsError("\n".join(sentences(error))) from None
    except SettingsError:
        raise
    except ValueError as error:  # noise that fits no grid
        raise SettingsError(f"privacy: {error}") from None


# --- what it costs a person ---------------------------------------------------------------------------


def events_of(plan: TrainPlan) -> tuple[Event, ...]:
    """`plan.releases()`, equal ones merged: training, the tune tables if there are any, the test table."""
    return tuple(each for event, n in Counter(plan.releases()).items() for each in event.repeated(n))


def costs(plan: TrainPlan, agencies: int) -> dict[Viewer, Cost]:
    """What `plan` costs to each viewer; a person is known to at most `agencies` of them."""
    if plan.privacy.shared is None:  # an agency's own noise is the same to all
        return dict.fromkeys(VIEWERS, _cost(plan, "coordinator", agencies))
    return {viewer: _cost(plan, viewer, agencies) for viewer in VIEWERS}


def _cost(plan: TrainPlan, viewer: Viewer, agencies: int) -> Cost:
    events, delta = events_of(plan), plan.privacy.delta
    parts = {
        part: epsilon([e for e in events if e.part == part], delta, viewer=viewer)
        for part in ("train", "tune", "test")
    }
    several = {str(m): epsilon_at_several([events] * m, delta, m, viewer) for m in (1, 2, 3) if m <= agencies}
    return Cost(**parts, total=epsilon(events, delta, viewer=viewer), at_agencies=several)


def pld(plan: TrainPlan, rdp: float) -> float | None:
    """ε by privacy loss distributions; None where noise is shared, or `rdp`, the other accountant's, is large."""
    if plan.privacy.shared is not None or rdp > MOST_PLD:
        return None
    return epsilon(events_of(plan), plan.privacy.delta, "pld")


def curve(plan: TrainPlan) -> tuple[Mapping[str, Any], ...]:
    """ε of the training to each viewer after each of up to `MOST_POINTS` rounds, evenly spaced, the last too."""
    count = min(MOST_POINTS, plan.rounds)
    return tuple(
        {"round": number, "epsilon": _train_epsilon(plan, number)}
        for number in (round(plan.rounds * (i + 1) / count) for i in range(count))
    )


def _train_epsilon(plan: TrainPlan, rounds: int) -> dict[Viewer, float]:
    release = [plan.privacy.gradient_release(rounds * plan.local.steps)]
    if plan.privacy.shared is None:
        return dict.fromkeys(VIEWERS, epsilon(release, plan.privacy.delta))
    return {viewer: epsilon(release, plan.privacy.delta, viewer=viewer) for viewer in VIEWERS}


# --- what a node must allow ---------------------------------------------------------------------------


def limits(plan: TrainPlan) -> Limits:
    """The lines of a policy.toml, all but its purposes, that admit `plan` where nothing was spent, and no looser ones."""
    events, delta = events_of(plan), plan.privacy.delta
    if plan.privacy.shared is None:
        life = dict.fromkeys(VIEWERS, life_limit(events, delta, "coordinator"))
    else:
        life = {viewer: life_limit(events, delta, viewer) for viewer in VIEWERS}
    return Limits(plan.privacy.delta, life, _toml(plan, life))


def life_limit(events: Sequence[Event], delta: float, viewer: Viewer) -> float:
    """The smallest ε, to 2 decimals, whose filter admits `events` into an empty ledger.

    A filter counts at one order that ε and δ fix beforehand (`renyi.filter_order`), so this may be a bit
    more than the ε that is reported, at the best order.
    """

    def fits(hundredths: int) -> bool:
        order = filter_order(hundredths / 100, delta)
        spent = max(float(c.max()) for c in Spending(viewer, (order,)).plus(events).people())
        return spent <= rdp_budget(hundredths / 100, delta, order)

    return _first(fits) / 100


def _first(holds: Callable[[int], bool]) -> int:
    """The smallest whole number from 1 that `holds`, where all above it do too."""
    high = 1
    while not holds(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _toml(plan: TrainPlan, life: Mapping[Viewer, float]) -> str:
    from clients.policy import Policy

    privacy, rules, shared = plan.privacy, Policy(), plan.privacy.shared
    lines = _shared_lines(shared.colluders, shared.honest) if shared else []
    if privacy.noise_multiplier < rules.min_noise_multiplier:
        lines.append(f"min_noise_multiplier = {_down(privacy.noise_multiplier)}")
    if min(privacy.tune_sigma, privacy.test_sigma) < rules.min_table_sigma:
        lines.append(f"min_table_sigma = {_down(min(privacy.tune_sigma, privacy.test_sigma))}")
    if privacy.delta > rules.max_delta:
        lines.append(f"max_delta = {privacy.delta!r}")
    to = ", ".join(f"{viewer} = {life[viewer]:.2f}" for viewer in ("coordinator", "public", "everybody"))
    text = f"{{{to}}}" if shared else f"{life['coordinator']:.2f}"
    listed = [
        f'contracts = ["{plan.contract_sha256}"]',
        f'models = ["{plan.model.name}"]',
        f'strategies = ["{plan.strategy}"]',
        *([] if plan.fairness is None else [f'fairness = ["{plan.fairness.method}"]']),
        f"releases = {json.dumps(list(dict.fromkeys(event.kind for event in plan.each_release())))}",
    ]
    return "\n".join([*listed, *lines, "[budget]", f"delta = {privacy.delta!r}", f"life = {text}"])


def _shared_lines(colluders: int, honest: int) -> list[str]:
    return [
        f"min_colluders = {colluders}  # so many agencies may tell the coordinator all they know",
        f"max_honest = {honest}  # so many must be honest for the ε to hold",
    ]


def _down(value: float) -> float:
    return math.floor(value * 10_000) / 10_000


# --- JSON ---------------------------------------------------------------------------------------------


def json_of(found: Plan) -> dict[str, Any]:
    """`found` as JSON-clean values: null for what is infinite or undefined."""
    clean = _clean(asdict(found))
    assert isinstance(clean, dict)
    return clean


def _clean(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _clean(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
