"""The noise of a plan, what it means for learning, and what other rounds and sample rates would need."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from federation.experiment import Experiment
from federation.plan import Participant, TrainPlan
from federation.privacy import SharedRelease, epsilon, noise_for
from federation.release import GaussianEvent
from models import risk
from models.features import layout

SAMPLE_RATES = (1.0, 0.5, 0.25, 0.1, 0.05)
TIMES = (0.25, 0.5, 1, 2, 4)  # of the configured rounds
MOST_ROUNDS = 100_000
EPSILONS = tuple(0.1 * 10 ** (i / 6) for i in range(13))  # 0.1 to 10
AS_GOOD = 1.001  # noise multipliers are rounded up at 4 decimals: what is this close is equal


@dataclass(frozen=True)
class TableNoise:
    """Noise std in a cell of one table, in people: of one agency alone (its share, where noise is
    shared), and in the sum over all agencies. `tables` is how many are taken."""

    tables: int
    own: float
    summed: float


@dataclass(frozen=True)
class Grid:
    """The whole numbers that shared noise is drawn on.

    `grain` is C / steps_per_norm, what a gradient is rounded to. `limit` is the most grid steps on a
    coordinate of one agency's numbers: `limit_norms` times C, `limit_people` people. `table_bytes` is what
    a table adds to a round.
    """

    steps_per_norm: int
    grain: float
    steps_per_person: int
    bits: int
    limit: int
    limit_norms: float
    limit_people: float
    table_bytes: int


@dataclass(frozen=True)
class Noise:
    """The noise and what it means for learning, if all agencies answer; std in units of C = max_grad_norm.

    `sum_noise` is on the sum of all agencies' gradients of a step, `mean_noise` on their mean (each weighted
    as the plan weighs it, over the declared people in training, `people`), `own_mean_noise` the same with
    each agency's own noise at the same ε. `round_bytes` is what an agency sends in a round of training,
    without headers.
    """

    noise_multiplier: float
    max_grad_norm: float
    sample_rate: float
    rounds: int
    local_steps: int
    people: float
    sum_noise: float
    mean_noise: float
    own_mean_noise: float
    tune: TableNoise
    test: TableNoise
    users: TableNoise
    round_bytes: int
    grid: Grid | None


@dataclass(frozen=True)
class Cell:
    """One choice of rounds and sample rate.

    `noise_multiplier` is the least that keeps the target (null: none does), or the configured one; `epsilon`
    its cost to the coordinator, or the target. `average_noise` is the std of the noise on the average of
    all steps' mean gradients, in units of C: mean_noise / sqrt(steps). `best`: no cell has less, but for
    rounding (only where there is a target).
    """

    rounds: int
    sample_rate: float
    noise_multiplier: float | None
    epsilon: float
    average_noise: float | None
    best: bool = False


@dataclass(frozen=True)
class Meets:
    """Rounds against sample rates; `cells` run over sample_rates within rounds. `what` was looked for."""

    what: str
    rounds: tuple[int, ...]
    sample_rates: tuple[float, ...]
    cells: tuple[Cell, ...]
    smallest: Cell | None


def members_of(experiment: Experiment) -> tuple[Participant, ...]:
    """The agencies that hold the label, by name: the others take no part in training and tables."""
    contract = experiment.data_contract
    holders = (p for p in experiment.participants if contract.holds_label(p.kind))
    return tuple(sorted(holders, key=lambda participant: participant.name))


# --- what the noise means for learning ----------------------------------------------------------------


def noise_of(experiment: Experiment, plan: TrainPlan) -> Noise:
    """The noise of `plan`, and what it does to gradients and tables."""
    privacy, members = plan.privacy, members_of(experiment)
    z, q = privacy.noise_multiplier, privacy.sample_rate
    parameters = risk.count_parameters(plan.model, len(layout(experiment.data_contract).names))
    return Noise(
        noise_multiplier=z,
        max_grad_norm=privacy.max_grad_norm,
        sample_rate=q,
        rounds=plan.rounds,
        local_steps=plan.local.steps,
        people=_people(plan, members),
        sum_noise=_sum_noise(plan, z, len(members)),
        mean_noise=mean_noise(plan, members, z, q),
        own_mean_noise=_own_mean_noise(plan, members, z, q),
        tune=_table_noise(plan.table_release("tune"), len(plan.checkpoints), len(members)),
        test=_table_noise(plan.table_release("test"), 1, len(members)),
        users=_table_noise(plan.table_release("test"), len(plan.users_releases()), len(members)),
        round_bytes=parameters * (privacy.shared.bits if privacy.shared else 32) // 8,
        grid=grid_of(plan),
    )


def mean_noise(
    plan: TrainPlan, members: Sequence[Participant], noise_multiplier: float, sample_rate: float
) -> float:
    """Noise std on the mean gradient of a step, in units of C, if all `members` answer."""
    if plan.privacy.shared is None:
        return _own_mean_noise(plan, members, noise_multiplier, sample_rate)
    return _sum_noise(plan, noise_multiplier, len(members)) / (sample_rate * _people(plan, members))


def _sum_noise(plan: TrainPlan, noise_multiplier: float, agencies: int) -> float:
    """Noise std on the sum of all agencies' gradients, in units of C.

    Own noise: sqrt(n) z. Shared: h shares are z sensitivities, so n are sqrt(n / h) z, and a sensitivity is
    C and what rounding adds.
    """
    shared = plan.privacy.shared
    if shared is None:
        return math.sqrt(agencies) * noise_multiplier
    sensitivity = shared.gradient_sensitivity
    share = shared.share_variance(noise_multiplier, sensitivity)
    return math.sqrt(agencies * share) / shared.steps_per_norm


def _own_mean_noise(
    plan: TrainPlan, members: Sequence[Participant], noise_multiplier: float, sample_rate: float
) -> float:
    """With own noise: the agencies' means, each with z / (q n_i), weighted as the plan weighs them."""
    total = sum(member.weight for member in members)
    each = (
        member.weight / total / (sample_rate * member.public_size * plan.train_fraction) for member in members
    )
    return noise_multiplier * math.hypot(*each)


def _people(plan: TrainPlan, members: Sequence[Participant]) -> float:
    return sum(member.public_size for member in members) * plan.train_fraction


def _table_noise(release: GaussianEvent, tables: int, agencies: int) -> TableNoise:
    if isinstance(release, SharedRelease):
        own = math.sqrt(release.share_variance) / release.sensitivity
    else:
        own = release.noise_multiplier
    return TableNoise(tables, own, own * math.sqrt(agencies))


def grid_of(plan: TrainPlan) -> Grid | None:
    """The whole numbers of shared noise."""
    shared = plan.privacy.shared
    if shared is None:
        return None
    limit = plan.privacy.limit
    return Grid(
        steps_per_norm=shared.steps_per_norm,
        grain=plan.privacy.max_grad_norm / shared.steps_per_norm,
        steps_per_person=shared.steps_per_person,
        bits=shared.bits,
        limit=limit,
        limit_norms=limit / shared.steps_per_norm,
        limit_people=limit / shared.steps_per_person,
        table_bytes=shared.cells * shared.bits // 8,
    )


# --- what meets the budget ----------------------------------------------------------------------------


def meeting(plan: TrainPlan, members: Sequence[Participant], target: float | None) -> Meets:
    """Rounds against sample rates: the noise that keeps `target`, or the ε of the configured noise."""
    scaled = (max(1, math.ceil(plan.rounds * times)) for times in TIMES)
    rounds = tuple(sorted({number for number in scaled if number <= MOST_ROUNDS}))
    rates = tuple(sorted({*SAMPLE_RATES, plan.privacy.sample_rate}, reverse=True))
    cells = [_cell(plan, members, target, number, rate) for number in rounds for rate in rates]
    known = [cell for cell in cells if cell.average_noise is not None] if target else []
    smallest = min(known, key=lambda cell: cell.average_noise or 0.0, default=None)
    if smallest is not None:
        most = AS_GOOD * (smallest.average_noise or 0.0)
        cells = [replace(c, best=c.average_noise is not None and c.average_noise <= most) for c in cells]
        smallest = replace(smallest, best=True)
    return Meets("noise_multiplier" if target else "epsilon", rounds, rates, tuple(cells), smallest)


def _cell(
    plan: TrainPlan, members: Sequence[Participant], target: float | None, rounds: int, rate: float
) -> Cell:
    now = (rounds, rate) == (plan.rounds, plan.privacy.sample_rate)
    steps = rounds * plan.local.steps
    z: float | None = plan.privacy.noise_multiplier
    if target is None:
        release = replace(plan.train_release(), sample_rate=rate, steps=steps)
        cost = epsilon([release], plan.privacy.delta)
    else:
        z, cost = z if now else least_noise(plan, target, rate, steps), target
    noise = None if z is None else mean_noise(plan, members, z, rate) / math.sqrt(steps)
    return Cell(rounds, rate, z, cost, noise)


def least_noise(plan: TrainPlan, target: float, rate: float, steps: int) -> float | None:
    """The noise multiplier that keeps `target` over `steps` draws; None where there is none.

    An agency's own noise is accounted at fractions of orders too, which takes half a second for one number
    where rate < 1. There only whole orders are used, as for shared noise: never too little noise, and
    up to ε = 8 at most 2% too much.
    """
    whole = plan.privacy.shared is not None or rate < 1
    try:
        return noise_for(target, plan.privacy.delta, rate, steps, shared=whole)
    except ValueError:
        return None


def noise_curve(plan: TrainPlan, target: float | None) -> tuple[Mapping[str, float], ...]:
    """The noise multiplier that each of `EPSILONS` (and the target) takes, with the plan's rounds and rate."""
    rate, steps = plan.privacy.sample_rate, plan.rounds * plan.local.steps
    found = {e: least_noise(plan, e, rate, steps) for e in EPSILONS}
    if target is not None:
        found[target] = plan.privacy.noise_multiplier
    return tuple({"epsilon": e, "noise_multiplier": z} for e, z in sorted(found.items()) if z is not None)
