"""Canaries: made-up people whose gradients point where nobody else's does, and what is seen of them.

The model gets m more features; canary j alone has a value there, everybody else 0. The gradient of canary j in the
first layer's weights for feature j is then its own: whatever a released sum has there, beyond noise, is canary j.
They go through everything: sampling, clipping, summing, noise.

    quiet   raw gradient of norm C: clipping changes nothing, so only noise and sampling are looked at
    loud    raw gradient of norm 1,000 C: what an extreme record is, so clipping is looked at as well

The statistic of canary j in a round is t = <released, u_j> / rho_j, with u_j the direction of its gradient in those
weights and rho_j how much of its length lies there (near 1: a bias has the rest, which is why C is 8). If it took
part, t is 1 and noise, else noise alone, and the noise has std `noise_multiplier` / rho_j.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as logistic_loss

from experiments.audit.mechanisms import CLIPPING, FloatArray, Mechanism, People
from models import risk
from models.spec import ModelSpec

QUIET, LOUD = 1.0, 1000.0  # raw gradient norm / C


@final
@dataclass(frozen=True, eq=False, repr=False)
class Canaries:
    """People of whom the last `count` are canaries, all of them at agency 0, and the model that they are planted for.

    direction: (m, hidden), unit vectors in the first layer's weights for each canary's feature. rho: (m,), in (0, 1].
    """

    people: People
    module: nn.Module
    direction: FloatArray
    rho: FloatArray

    @property
    def count(self) -> int:
        return len(self.rho)

    def with_canaries(self, included: NDArray[np.bool_]) -> People:
        """Everybody else, and the canaries of `included`, (m,)."""
        others = np.ones(len(self.people.y) - self.count, bool)
        return self.people.only(np.concatenate([others, included]))

    def statistic(self, released: FloatArray) -> FloatArray:
        """t of each canary, (m,), from one released vector (p,)."""
        weight = self.module.get_parameter(risk.input_weight(self.module))
        layer = released[: weight.numel()].reshape(weight.shape)[:, -self.count :]
        return np.asarray(np.einsum("jh,hj->j", self.direction, layer) / self.rho)


def plant(people: People, spec: ModelSpec, count: int, loudness: float = LOUD, seed: int = 0) -> Canaries:
    """`count` canaries among `people`, for a model of `spec` with first weights of `seed`."""
    n, d = people.x.shape
    module = risk.build(spec, d + count, seed)
    x = torch.zeros(n + count, d + count)
    x[:n, :d] = people.x
    x[n:, d:] = 2 * loudness * CLIPPING * torch.eye(count)
    with torch.no_grad():
        unlikely = (module(x[n:]) <= 0).float()  # the outcome that the model finds less likely
    y = torch.cat([people.y, unlikely])
    agency = np.concatenate([people.agency, np.zeros(count, np.int64)])
    direction, rho = _directions(module, x[n:], y[n:], d)
    return Canaries(People(x, y, agency), module, direction, rho)


def _directions(
    module: nn.Module, x: torch.Tensor, y: torch.Tensor, first: int
) -> tuple[FloatArray, FloatArray]:
    """By autograd, one canary at a time: nothing of it comes from the code that is audited."""
    names, parameters = zip(*module.named_parameters(), strict=True)
    assert names[0] == risk.input_weight(module)  # `statistic` takes the first numbers of a vector
    own, rho = [], []
    for j in range(len(x)):
        gradient = torch.autograd.grad(logistic_loss(module(x[j]), y[j]), parameters)
        column = gradient[0][:, first + j]
        length = torch.sqrt(sum((g.square().sum() for g in gradient), start=torch.zeros(())))
        own.append((column / column.norm()).numpy())
        rho.append(float(column.norm() / length))
    return np.array(own, np.float64), np.array(rho)


@final
@dataclass(frozen=True, eq=False)
class Seen:
    """What an audit sees of all rounds with the same canaries in.

    included: (m,). own: (rounds, m), t in the vector that agency 0's people are in. apart: the same of that vector
    less the next agency's, None where there is one vector: whoever has both may subtract.
    """

    included: NDArray[np.bool_]
    own: FloatArray
    apart: FloatArray | None


def watch(mechanism: Mechanism, canaries: Canaries, rounds: int, seed: int) -> Seen:
    """`rounds` rounds at the same weights, each canary in all of them or in none by a fair coin."""
    included = np.random.default_rng([seed, 1]).random(canaries.count) < 0.5
    people = canaries.with_canaries(included)
    own, apart = [], []
    for number in range(rounds):
        released = mechanism(canaries.module, people, round_seed(seed, number))
        own.append(canaries.statistic(released[0]))
        if len(released) > 1:
            apart.append(canaries.statistic(released[0] - released[1]))
    return Seen(included, np.array(own), np.array(apart) if apart else None)


def round_seed(seed: int, number: int) -> int:
    """The seed of round `number`, from 0."""
    return int.from_bytes(hashlib.blake2b(f"{seed}|round {number}".encode(), digest_size=8).digest()) >> 1


def bystanders(n: int, features: int, agencies: Sequence[int] = (0,), seed: int = 0) -> People:
    """`n` made-up people at each of `agencies`, whose outcome depends on their features."""
    rng = np.random.default_rng([seed, 2])
    x = rng.normal(size=(n * len(agencies), features)).astype(np.float32)
    y = rng.random(len(x)) < 1 / (1 + np.exp(-x.sum(1)))
    return People(
        torch.from_numpy(x), torch.from_numpy(y.astype(np.float32)), np.repeat(agencies, n).astype(np.int64)
    )
