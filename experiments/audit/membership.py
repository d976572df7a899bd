"""Membership inference on a final model, group by group: what an attacker with the model alone sees.

The loss-threshold attack (Yeom et al. 2018, arXiv:1709.01604): people whose loss is low are guessed to have been
trained on. Far weaker than canaries, and about real-looking people; reported with the true positive rate at a
false positive rate of 1%, because an average hides whom it succeeds on (Carlini et al. 2022, arXiv:2112.03570).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as logistic_loss

from clients.train import dp_fit
from experiments.audit.bounds import greatest_auc
from experiments.audit.mechanisms import FloatArray, seeded_noise, seeded_sampling
from federation.plan import LocalPlan, PrivacyPlan
from models import risk
from models.spec import ModelSpec

FEWEST = 20  # members and others of a group, below which nothing is said
FALSE_POSITIVES = 0.01


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Members were trained on, others are from the same tables and were not; `cell` is each one's place in the groups."""

    members: tuple[Tensor, Tensor, NDArray[np.int64]]  # x (n, d), y (n,), cell (n,)
    others: tuple[Tensor, Tensor, NDArray[np.int64]]
    groups: Mapping[str, tuple[int, ...]]  # name -> places


@dataclass(frozen=True)
class Attack:
    """How well the attack does on one group. Each low and high are an interval, two-sided, at the audit's confidence."""

    group: str
    members: int
    others: int
    auc: float
    auc_low: float
    auc_high: float
    true_positives: float
    true_positives_low: float
    true_positives_high: float
    allowed_auc: float
    ok: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def train(split: Split, spec: ModelSpec, plan: PrivacyPlan, steps: int, seed: int) -> nn.Module:
    """The model after `steps` steps of `dp_fit` on the members, as one agency would train it."""
    x, y, _ = split.members
    module = risk.build(spec, x.shape[1], seed)
    dp_fit(
        module,
        x,
        y,
        None,
        privacy=plan,
        local=LocalPlan(steps=steps, learning_rate=0.5),
        expected_batch=plan.sample_rate * len(x),
        sampling=seeded_sampling(seed),
        noise=seeded_noise(seed),
    )
    return module


def infer(module: nn.Module, split: Split, claim: float, delta: float, confidence: float) -> list[Attack]:
    """The attack on everyone and on each group with at least `FEWEST` of both."""
    inside, outside = _low_loss(module, *split.members[:2]), _low_loss(module, *split.others[:2])
    found = []
    for name, places in split.groups.items():
        mine, theirs = (
            score[np.isin(part[2], places)]
            for score, part in ((inside, split.members), (outside, split.others))
        )
        if min(mine.size, theirs.size) >= FEWEST:
            found.append(_attack(name, mine, theirs, greatest_auc(claim, delta), confidence))
    return found


def _low_loss(module: nn.Module, x: Tensor, y: Tensor) -> FloatArray:
    with torch.no_grad():
        return -logistic_loss(module(x), y, reduction="none").double().numpy()


def _attack(name: str, mine: FloatArray, theirs: FloatArray, allowed: float, confidence: float) -> Attack:
    auc, error = auc_and_error(mine, theirs)
    reach = float(stats.norm.ppf((1 + confidence) / 2)) * error
    cutoff = np.quantile(theirs, 1 - FALSE_POSITIVES, method="higher")
    caught = int((mine > cutoff).sum())
    rate = stats.binomtest(caught, mine.size).proportion_ci(confidence, "exact")
    low, high = max(0.0, auc - reach), min(1.0, auc + reach)
    return Attack(
        name,
        mine.size,
        theirs.size,
        auc,
        low,
        high,
        caught / mine.size,
        float(rate.low),
        float(rate.high),
        allowed,
        low <= allowed,
    )


def auc_and_error(mine: FloatArray, theirs: FloatArray) -> tuple[float, float]:
    """Area under the ROC curve (ties count half) and its standard error, by DeLong, DeLong, Clarke-Pearson 1988.

    V_i is the share of `theirs` below mine_i, W_j that of `mine` above theirs_j; error^2 = var V / n + var W / k.
    """
    everyone = stats.rankdata(np.concatenate([mine, theirs]))
    above = (everyone[: mine.size] - stats.rankdata(mine)) / theirs.size
    below = 1 - (everyone[mine.size :] - stats.rankdata(theirs)) / mine.size
    error = math.sqrt(above.var(ddof=1) / mine.size + below.var(ddof=1) / theirs.size)
    return float(above.mean()), error
