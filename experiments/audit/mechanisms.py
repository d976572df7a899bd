"""What is audited: one round of training as it leaves, through the project's own code.

A mechanism takes people and a model and gives the vectors that leave in one round, in units of the clipping norm C:
one person must move each by at most `sensitivity`, and its noise must have std `noise_multiplier`. `Local` runs
`clients.train.dp_fit` as a node does, one step a round. `Shared` adds up what each agency's `clients.train.dp_sum`
gives on the plan's grid, with the shares of noise that the coordinator cannot take away: masks cancel, so they are
left out.
"""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, Self, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clients.randomness import Stream, discrete_gaussian, gaussian, poisson_batches
from clients.train import Noise, Sampling, dp_fit, dp_sum
from federation.masks import to_grid
from federation.plan import LocalPlan, PrivacyPlan, SharedNoise
from federation.privacy import noise_for

FloatArray = NDArray[np.float64]
Shares = Callable[[int, int, int], NDArray[np.int64]]  # (seed, n, variance) -> n draws of one share
CLIPPING = (
    8.0  # C of every audited plan. A plan's privacy does not depend on it; see `canaries` for why not 1
)


@final
@dataclass(frozen=True, eq=False, repr=False)  # repr: a traceback must not show people
class People:
    """x (n, d) float32, y (n,) in [0, 1], agency (n,): who holds each, from 0."""

    x: Tensor
    y: Tensor
    agency: NDArray[np.int64]

    def only(self, who: NDArray[np.bool_]) -> "People":
        """Those of `who`, (n,)."""
        at = torch.from_numpy(np.flatnonzero(who))
        return People(self.x[at], self.y[at], self.agency[who])

    def of(self, agency: int) -> tuple[Tensor, Tensor]:
        """(x, y) of one agency's people; looked up once, since every round asks."""
        if agency not in self._of:
            at = torch.from_numpy(np.flatnonzero(self.agency == agency))
            self._of[agency] = (self.x[at], self.y[at])
        return self._of[agency]

    @functools.cached_property
    def _of(self) -> dict[int, tuple[Tensor, Tensor]]:
        return {}


class Mechanism(Protocol):
    """One round of `people` at `module`'s weights; `seed` names the round. Draws anew for each seed."""

    @property
    def plan(self) -> PrivacyPlan:
        """What was agreed, and is claimed."""
        ...

    @property
    def sensitivity(self) -> float:
        """What one person may change a vector by, L2, in units of C: 1, and what a grid adds."""
        ...

    def __call__(self, module: nn.Module, people: People, seed: int) -> FloatArray:
        """The vectors that leave, (releases, p), in units of C."""
        ...

    def silent(self) -> Self:
        """The same without its noise, to look at what the noise must hide."""
        ...

    def at_rate(self, sample_rate: float) -> Self:
        """The same with another chance to be in a round."""
        ...


@final
@dataclass(frozen=True)
class Local:
    """Mechanism `local`: each of `agencies` sends its own noised sum, so a round has as many vectors.

    noise and sampling make a source from a seed; `stream` says which seed a (round, agency, purpose) has.
    """

    plan: PrivacyPlan
    agencies: int = 1
    noise: Callable[[int], Noise] = lambda seed: seeded_noise(seed)
    sampling: Callable[[int], Sampling] = lambda seed: seeded_sampling(seed)
    stream: Callable[[int, int, str], int] = lambda seed, agency, purpose: stream_seed(seed, agency, purpose)
    sensitivity: float = 1.0

    def __call__(self, module: nn.Module, people: People, seed: int) -> FloatArray:
        return np.stack(
            [self._sum(module, *people.of(agency), seed, agency) for agency in range(self.agencies)]
        )

    def _sum(self, module: nn.Module, x: Tensor, y: Tensor, seed: int, agency: int) -> FloatArray:
        """-change / C after one step with learning rate 1 and expected batch 1; the weights are put back."""
        before = [p.detach().clone() for p in module.parameters()]
        change = dp_fit(
            module,
            x,
            y,
            None,
            privacy=self.plan,
            local=LocalPlan(steps=1, learning_rate=1.0),
            expected_batch=1.0,
            sampling=self.sampling(self.stream(seed, agency, "sampling")),
            noise=self.noise(self.stream(seed, agency, "noise")),
        )
        for p, value in zip(module.parameters(), before, strict=True):
            p.data.copy_(value)
        flat = np.concatenate([value.reshape(-1) for value in change.values()]).astype(np.float64)
        return -flat / self.plan.max_grad_norm

    def silent(self) -> Self:
        return replace(self, noise=lambda seed: lambda n, std: torch.zeros(n))

    def at_rate(self, sample_rate: float) -> Self:
        return replace(self, plan=self.plan.but(sample_rate=sample_rate))


@final
@dataclass(frozen=True)
class Shared:
    """Mechanism `shared`: one vector a round, the sum of all agencies' grid steps and of `honest` shares of noise.

    released = (C / K) [ sum over agencies of round(K s / C) + sum over h shares of N_Z(0, v) ] / C, with the plan's
    K = steps_per_norm, share variance v and h = n - c - d: what is left when c colluders have taken theirs away
    and d have failed.
    """

    plan: PrivacyPlan
    sampling: Callable[[int], Sampling] = lambda seed: seeded_sampling(seed)
    share: Shares = lambda seed, n, variance: seeded_share(seed, n, variance)

    def __call__(self, module: nn.Module, people: People, seed: int) -> FloatArray:
        steps = self._agreed.steps_per_norm
        sums = [
            self._steps(module, *people.of(agency), seed, agency)
            for agency in range(len(self._agreed.agencies))
        ]
        total = np.stack([*sums, self._noise(seed, len(sums[0]))]).sum(0, keepdims=True)
        return np.asarray(total / steps, np.float64)

    @property
    def sensitivity(self) -> float:
        return self._agreed.gradient_sensitivity / self._agreed.steps_per_norm

    @property
    def _agreed(self) -> SharedNoise:
        if self.plan.shared is None:
            raise ValueError("a shared mechanism needs a plan with mechanism shared")
        return self.plan.shared

    def _steps(self, module: nn.Module, x: Tensor, y: Tensor, seed: int, agency: int) -> NDArray[np.int64]:
        """One agency's clipped sum in grid steps, without noise."""
        norm = self.plan.max_grad_norm
        total = dp_sum(
            module,
            x,
            y,
            None,
            max_grad_norm=norm,
            sample_rate=self.plan.sample_rate,
            sampling=self.sampling(stream_seed(seed, agency, "sampling")),
        )
        return to_grid(total, self._agreed.steps_per_norm / norm, self.plan.limit)

    def _noise(self, seed: int, n: int) -> NDArray[np.int64]:
        """The shares that stay, added up."""
        release = self.plan.gradient_release(1)
        variance = getattr(release, "share_variance", 0)
        shares = [
            self.share(stream_seed(seed, agency, "noise"), n, variance)
            for agency in range(self._agreed.honest)
        ]
        return np.asarray(np.sum(shares, axis=0, dtype=np.int64))

    def silent(self) -> Self:
        return replace(self, share=lambda seed, n, variance: np.zeros(n, np.int64))

    def at_rate(self, sample_rate: float) -> Self:
        return replace(self, plan=self.plan.but(sample_rate=sample_rate))


def seeded_noise(seed: int) -> Noise:
    """A deployed node's Gaussian noise, from a key that `seed` repeats."""
    return gaussian(Stream.seeded(f"noise {seed}"))


def seeded_sampling(seed: int) -> Sampling:
    """A deployed node's batches, from a key that `seed` repeats."""
    return poisson_batches(Stream.seeded(f"sampling {seed}"))


def seeded_share(seed: int, n: int, variance: int) -> NDArray[np.int64]:
    """A deployed node's share of discrete noise, from a key that `seed` repeats."""
    return discrete_gaussian(Stream.seeded(f"share {seed}"), n, variance)


def stream_seed(seed: int, agency: int, purpose: str) -> int:
    """The seed of one stream: of (round's seed, agency, purpose), as a simulated node has it."""
    return int.from_bytes(hashlib.blake2b(f"{seed}|{agency}|{purpose}".encode(), digest_size=8).digest()) >> 1


# --- plans --------------------------------------------------------------------------------------------


def local_plan(epsilon: float, delta: float, sample_rate: float, rounds: int) -> PrivacyPlan:
    """A plan of mechanism `local` with as little noise as costs at most `epsilon` over `rounds` sums."""
    noise = noise_for(epsilon, delta, sample_rate, rounds)
    return _plan("local", noise, delta, sample_rate, None)


def shared_plan(
    epsilon: float,
    delta: float,
    sample_rate: float,
    rounds: int,
    parameters: int,
    agencies: int = 8,
    away: int = 2,
    cells: int = 1,
) -> PrivacyPlan:
    """The same for mechanism `shared`: `agencies` n of which `away` collude or fail, so that h = n - away."""
    noise = noise_for(epsilon, delta, sample_rate, rounds, shared=True)
    agreed = SharedNoise(
        agencies=tuple(f"agency-{i:02}" for i in range(agencies)),
        colluders=away - away // 2,
        dropouts=away // 2,
        steps_per_norm=2000 * (int(parameters**0.5) + 1),
        steps_per_person=1000,
        parameters=parameters,
        cells=cells,
        bits=64,
    )
    return _plan("shared", noise, delta, sample_rate, agreed)


def _plan(
    mechanism: str, noise: float, delta: float, sample_rate: float, shared: SharedNoise | None
) -> PrivacyPlan:
    return PrivacyPlan.model_validate(
        {
            "mechanism": mechanism,
            "noise_multiplier": noise,
            "max_grad_norm": CLIPPING,
            "sample_rate": sample_rate,
            "delta": delta,
            "tune_sigma": noise,
            "test_sigma": noise,
            "shared": shared,
        }
    )
