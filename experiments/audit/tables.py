"""The noised score table, audited by a pair: the same people with one person more, whose cell is known."""

from dataclasses import asdict, dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import nn

from clients.evaluate import noised_table, table_counts
from clients.randomness import Stream
from experiments.audit.attacks import Finding, bound, fit
from experiments.audit.bounds import epsilon_of_noise
from experiments.audit.canaries import round_seed
from experiments.audit.checks import SLACK, check
from experiments.audit.mechanisms import FloatArray, seeded_share, stream_seed
from federation.masks import to_grid
from federation.plan import SharedNoise
from models import risk
from models.scores import default_edges
from models.spec import ModelSpec


@dataclass(frozen=True, eq=False, repr=False)
class HeldOut:
    """Held-out people: x (n, d), y (n,), group (n,) from 0 to groups - 1."""

    x: torch.Tensor
    y: torch.Tensor
    group: np.ndarray
    groups: int = 2

    def first(self, n: int) -> "HeldOut":
        return HeldOut(self.x[:n], self.y[:n], self.group[:n], self.groups)


class TableMechanism(Protocol):
    """One table of `people`, (groups, bins, 2), with noise of std `sigma` from the seed."""

    def __call__(self, module: nn.Module, people: HeldOut, sigma: float, seed: int) -> FloatArray: ...


def as_it_is(module: nn.Module, people: HeldOut, sigma: float, seed: int) -> FloatArray:
    """Mechanism `local`: `clients.evaluate.noised_table`. sigma 0 is without noise."""
    return np.asarray(
        noised_table(
            module,
            people.x,
            people.y,
            people.group,
            edges=default_edges(),
            n_groups=people.groups,
            sigma=sigma,
            stream=Stream.seeded(f"noise {seed}"),
        )
    )


def behind_masks(shared: SharedNoise) -> TableMechanism:
    """Mechanism `shared`: counts in grid steps and the h shares that stay, as a table of people.

    [round(K counts) + sum over h shares of N_Z(0, v)] / K with K = steps_per_person, v = ceil((sigma K)^2 / h).
    The other agencies' counts are known to the attacker, so they are left out.
    """
    steps = shared.steps_per_person

    def table(module: nn.Module, people: HeldOut, sigma: float, seed: int) -> FloatArray:
        edges, groups = default_edges(), people.groups
        counts = table_counts(module, people.x, people.y, people.group, edges=edges, n_groups=groups)
        total = to_grid(counts, steps, 2**62)
        if sigma > 0:
            variance = shared.share_variance(sigma, float(steps))
            for agency in range(shared.honest):
                share = seeded_share(stream_seed(seed, agency, "test noise"), counts.size, variance)
                total = total + share.reshape(counts.shape)
        return np.asarray(total / steps)

    return table


@dataclass(frozen=True)
class TableSetting:
    """One table at noise `sigma` is claimed to cost ε `claim` at `delta`."""

    sigma: float
    claim: float
    delta: float
    mechanism: TableMechanism = field(default=as_it_is)
    people: int = 60


def audit_table(setting: TableSetting, confidence: float, runs: int, seed: int) -> list[Finding]:
    """The exact change that one person makes, and the pair of Gaussians over `runs` tables with and without them."""
    people, module = _made_up(setting.people + 1, seed)
    fewer = people.first(setting.people)
    exact = setting.mechanism(module, people, 0.0, 0) - setting.mechanism(module, fewer, 0.0, 0)
    moved = float(np.sqrt(np.square(exact).sum()))
    found = check(
        "table sensitivity",
        moved <= 1 + SLACK,
        confidence,
        f"one person more moves the table by {moved:.4f}",
        f"one person more moves the table by {moved:.4g}, 1 is accounted for",
        {"moved": moved, "allowed": 1.0},
    )
    return [found, _pair(setting, module, people, fewer, exact, confidence, runs, seed)]


def _pair(
    setting: TableSetting,
    module: nn.Module,
    people: HeldOut,
    fewer: HeldOut,
    exact: FloatArray,
    confidence: float,
    runs: int,
    seed: int,
) -> Finding:
    """The shift along the change that the person makes; the noise from all cells of the tables without them."""
    direction = exact / max(1e-12, float(np.sqrt(np.square(exact).sum())))
    known = setting.mechanism(module, fewer, 0.0, 0)

    def residuals(who: HeldOut, first: int) -> FloatArray:
        seeds = (round_seed(seed, first + i) for i in range(runs))
        return np.array([setting.mechanism(module, who, setting.sigma, each) - known for each in seeds])

    inside, outside = residuals(people, 0), residuals(fewer, runs)
    moved, still = ((of * direction).sum((1, 2, 3)) for of in (inside, outside))
    found = fit(moved, still, 1.0, confidence, noise_alone=outside.ravel())
    at = (1.0, 1, setting.delta)
    level, estimate = epsilon_of_noise(found.multiplier_most, *at), epsilon_of_noise(found.multiplier, *at)
    return bound("Gaussian pair", level, setting.claim, confidence, estimate, asdict(found))


def _made_up(n: int, seed: int) -> tuple[HeldOut, nn.Module]:
    rng = np.random.default_rng([seed, 3])
    x = torch.from_numpy(rng.normal(size=(n, 5)).astype(np.float32))
    y = torch.from_numpy((rng.random(n) < 0.5).astype(np.float32))
    return HeldOut(x, y, rng.integers(0, 2, n)), risk.build(ModelSpec("mlp", (8,)), 5, seed)
