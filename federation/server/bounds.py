"""How long an honest agency's change can be, and what becomes of a longer one. From public values alone.

A bound does not find a liar: it says how much one agency can move the model in a round, which without it is
anything. What is left to a liar within it is for the strategy (docs/poisoned.md).
"""

import math
from collections.abc import Mapping

import numpy as np

from federation.experiment import Experiment
from federation.plan import LARGEST_WEIGHT, Participant, TrainPlan
from federation.protocol import Weights

MOST_PEOPLE = 2.0  # times its declared size: more people than that an honest agency does not have
CHANCE = 1e-6  # that an honest agency's change is longer than its bound
ROUNDED = 2.0**-22  # of float32's rounding in a step, relative to the weights: two roundings of a half 2^-23
TABLE_TAIL = 12.0  # noise std on a cell: P(|noise| > 12 std) <= 2 exp(-72)


def plan_bound(plan: TrainPlan, agency: str, weights: Weights, held: Mapping[str, np.ndarray]) -> float:
    """The longest change (L2) of `agency` in a round from `weights`, but for a chance below `CHANCE`; inf without a clip.

    A node takes T steps from w_0 (`clients.train`). With c = 1 - lr (mu + decay) and d_t = w_t - w_0,

        d_{t+1} = c d_t - lr (s_t / L + (sigma C / L) z_t + decay w_0),     z_t ~ N(0, I_p),

    so d_T is the sum over k = 0 .. T-1, k = T-1-t, of c^k times the bracket. Three parts, by the triangle inequality:

    1. The sums. |s_t| <= C B_t, whatever the people and the weights are, for B_t people drawn; B_t is binomial
       of N people at rate q, N <= MOST_PEOPLE x declared size x train fraction by premise. q = 1: B_t = N.
       Else Bernstein: P(B_t > q N + y/3 + sqrt((y/3)^2 + 2 y q (1 - q) N)) <= exp(-y); with
       y = log(2 T / CHANCE) it holds in all T steps but for CHANCE / 2. Part: lr C B / L x sum |c|^k.
    2. Decay towards 0: lr decay |w_0| x sum |c|^k.
    3. The noise: Gaussian, of std (lr sigma C / L) sqrt(sum c^2k) in each of the p coordinates that the agency
       holds (the others stay 0). Its squared length over that variance is chi-squared with p degrees:
       P(chi2 > p + 2 sqrt(p x) + 2 x) <= exp(-x) (Laurent and Massart, 2000, lemma 1); x = log(2 / CHANCE).

    s_t may depend on earlier noise: part 1 does not ask. Each step rounds weights to float32, which adds at
    most ROUNDED x (|w_0| + bound).
    """
    privacy, local, steps = plan.privacy, plan.local, plan.local.steps
    if not math.isfinite(privacy.max_grad_norm):
        return math.inf
    start, free = _held(weights, held)
    contraction = 1 - local.learning_rate * (local.proximal_mu + local.weight_decay)
    expected = plan.expected_batch(agency)
    sums = privacy.max_grad_norm * _most_drawn(plan, agency) / expected + local.weight_decay * start
    x = math.log(2 / CHANCE)
    length = math.sqrt(free + 2 * math.sqrt(free * x) + 2 * x)
    noise = privacy.noise_multiplier * privacy.max_grad_norm / expected * length
    bound = local.learning_rate * (
        _geometric(abs(contraction), steps) * sums + math.sqrt(_geometric(contraction**2, steps)) * noise
    )
    return bound + steps * ROUNDED * (start + bound)


def _held(weights: Weights, held: Mapping[str, np.ndarray]) -> tuple[float, int]:
    """(L2 norm, number) of the weights that an agency holds."""
    ones = {name: np.broadcast_to(held.get(name, 1.0), value.shape) for name, value in weights.items()}
    start = math.sqrt(
        sum(float(np.square(value * ones[name], dtype=np.float64).sum()) for name, value in weights.items())
    )
    return start, int(sum(mask.sum() for mask in ones.values()))


def _most_drawn(plan: TrainPlan, agency: str) -> float:
    rate = plan.privacy.sample_rate
    people = MOST_PEOPLE * plan.participant(agency).public_size * plan.train_fraction
    y = math.log(2 * plan.local.steps / CHANCE)
    tail = y / 3 + math.sqrt((y / 3) ** 2 + 2 * y * rate * (1 - rate) * people)
    return people if rate == 1 else min(people, rate * people + tail)


def _geometric(ratio: float, count: int) -> float:
    """The sum of ratio^k over k = 0 .. count - 1, for a ratio >= 0; inf where it overflows."""
    if ratio == 1:
        return float(count)
    with np.errstate(over="ignore"):
        return float((np.float64(ratio) ** count - 1) / (ratio - 1))


def bound_of(experiment: Experiment, plan: TrainPlan, agency: str, weights: Weights, held: Weights) -> float:
    """The bound of `strategy.norm_bound` on an agency's change; inf where there is none."""
    setting = experiment.settings.strategy.norm_bound
    if setting == "none":
        return math.inf
    return plan_bound(plan, agency, weights, held) if setting == "plan" else float(setting)


def bounded(delta: Weights, bound: float) -> tuple[Weights, float]:
    """`delta`, scaled down to the L2 norm `bound` if it is longer, and how many times `bound` it was."""
    norm = math.sqrt(sum(float(np.square(value, dtype=np.float64).sum()) for value in delta.values()))
    if norm <= bound:
        return delta, norm / bound if bound > 0 else 0.0
    scaled = {name: (value * (bound / norm)).astype(np.float32) for name, value in delta.items()}
    return scaled, norm / bound


def cannot_be(delta: Weights, weights: Weights, held: Mapping[str, np.ndarray]) -> str | None:
    """The rule that a change breaks whatever its length, or None. `held`: 0 where the agency holds no such column."""
    for name, mask in held.items():
        if (delta[name] * (np.broadcast_to(mask, delta[name].shape) == 0)).any():
            return f"delta/{name} moves weights of a block that this agency does not hold"
    for name, value in delta.items():
        if (np.abs(weights[name].astype(np.float64) + value) > LARGEST_WEIGHT).any():
            return f"delta/{name} takes a weight beyond ±{LARGEST_WEIGHT:g}, with which no agency trains"
    return None


def table_bound(plan: TrainPlan, table: str, participant: Participant) -> float:
    """The most that a cell of an honest agency's `table` can say, in people, its noise included."""
    sigma = plan.privacy.tune_sigma if table == "tune" else plan.privacy.test_sigma
    return MOST_PEOPLE * participant.public_size + TABLE_TAIL * sigma


def facts(experiment: Experiment, plan: TrainPlan) -> dict[str, object]:
    """`robustness` of result.json: against how many agencies the strategy holds, where it does not, and the bound."""
    strategy, contract, masked = experiment.settings.strategy, experiment.data_contract, plan.privacy.shared
    least = strategy.least()
    holders = {
        block.name: sum(contract.holds(member.kind, block.name) for member in experiment.members)
        for block in contract.blocks
    }
    none = masked is not None or (
        strategy.norm_bound == "plan" and not math.isfinite(plan.privacy.max_grad_norm)
    )
    return {
        "malicious": strategy.malicious if least else 0,
        "least_agencies": least,
        "thin_blocks": [name for name, count in holders.items() if least and count < least],
        "thin_blocks_are": strategy.thin_blocks,
        "norm_bound": "none" if none else strategy.norm_bound,
        "masked": masked is not None,
    }
