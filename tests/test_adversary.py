"""A coordinator chooses weights, clipping norm and rates to read a person. What one person moves stays within C.

Each attack was found in a review; each has its control: the same on the plain kernels, where it works.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from clients import blocks, train
from clients.evaluate import table_counts
from clients.train import ROUNDING, clipped_sum, dp_sum
from federation.plan import NORMS, SUM_SLACK, PrivacyPlan
from models.risk import build, load_weights
from models.spec import ModelSpec

SPECS = {
    "logistic": ModelSpec("logistic"),
    "mlp": ModelSpec("mlp", (8,)),
    "residual": ModelSpec("residual", (8, 8)),
}
every_model = pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))


def local_sum(module: torch.nn.Module, x: np.ndarray, y: np.ndarray, norm: float) -> np.ndarray:
    return torch.cat([v.flatten() for v in clipped_sum(module, x, y, None, norm).values()]).double().numpy()


def shared_sum(module: torch.nn.Module, x: np.ndarray, y: np.ndarray, norm: float) -> np.ndarray:
    return dp_sum(module, x, y, None, max_grad_norm=norm, sample_rate=1.0, sampling=lambda n, q: np.arange(n))


both_sums = pytest.mark.parametrize("sum_of", [local_sum, shared_sum])
Sum = Callable[[torch.nn.Module, np.ndarray, np.ndarray, float], np.ndarray]


def moved(sum_of: Sum, module: torch.nn.Module, x: np.ndarray, y: np.ndarray, norm: float) -> float:
    """The most by which leaving out the first, a middle or the last person moves the sum, in norms."""
    whole = sum_of(module, x, y, norm)
    without = [np.delete(np.arange(len(x)), i) for i in (0, len(x) // 2, len(x) - 1)]
    return max(float(np.linalg.norm(whole - sum_of(module, x[i], y[i], norm))) for i in without) / norm


# --- a clipping norm so small that squares vanish -------------------------------------------------------


@pytest.mark.parametrize("norm", [1e-35, 1e-200, 5e-324, NORMS[0] / 2, NORMS[1] * 2])
def test_a_plan_with_an_extreme_norm_is_none(norm: float) -> None:
    values: dict[str, Any] = {"noise_multiplier": 1.0, "sample_rate": 1.0, "delta": 1e-5}
    values |= {"tune_sigma": 5.0, "test_sigma": 5.0, "mechanism": "local"}
    PrivacyPlan(max_grad_norm=NORMS[0], **values)
    with pytest.raises(ValueError, match=r"max_grad_norm must be from 0\.001 to 1e\+06"):
        PrivacyPlan(max_grad_norm=norm, **values)


@both_sums
@pytest.mark.parametrize("bias", [-10.0, -54.0, -87.0, -103.0, -390.0, -700.0])
def test_a_gradient_whose_square_vanishes_is_still_within_the_norm(sum_of: Sum, bias: float) -> None:
    """At the smallest norm that a plan may have, for features up to the largest float."""
    module = build(SPECS["mlp"], 3)
    for scale in (1.0, 1e6, 1e12, 1e19, 1e30):
        weights = {name: np.zeros(p.shape, np.float32) for name, p in module.named_parameters()}
        weights["layers.0.weight"][0, 0] = scale
        weights["layers.2.bias"][:] = bias
        load_weights(module, weights)
        person = np.array([[1.0, 0.5, -1.0]], np.float32)
        found = sum_of(module, person, np.zeros(1, np.float32), NORMS[0])
        assert np.linalg.norm(found) <= NORMS[0] * (1 + SUM_SLACK)


# --- weights at which one person overflows --------------------------------------------------------------


def overflowing(spec: ModelSpec, target: int) -> torch.nn.Module:
    """Whoever has feature `target` overflows, nobody else."""
    module = build(spec, 6, seed=1)
    weights = {name: p.detach().numpy().copy() for name, p in module.named_parameters()}
    for values in weights.values():
        if values.ndim == 2:
            values[:, :] = np.where(np.abs(values) < 1e-3, values, np.sign(values) * 1e30)
    first = next(iter(weights))
    weights[first][:, :] = 0
    weights[first][:, target] = 3e38
    load_weights(module, weights)
    return module


@both_sums
@every_model
def test_a_person_who_overflows_adds_nothing_and_spoils_nothing(sum_of: Sum, spec: ModelSpec) -> None:
    rng = np.random.default_rng(0)
    x = (rng.random((40, 6)) < 0.5).astype(np.float32)
    x[:, 2], x[7, 2] = 0, 8  # one person has it
    y = (rng.random(40) < 0.5).astype(np.float32)
    module = overflowing(spec, 2)
    found = sum_of(module, x, y, 1.0)
    assert np.isfinite(found).all()
    rest = np.delete(np.arange(40), 7)
    assert np.linalg.norm(found - sum_of(module, x[rest], y[rest], 1.0)) <= 1 + SUM_SLACK
    group = np.zeros(40, np.int64)
    edges = np.linspace(0, 1, 6)
    tables = [
        table_counts(
            module,
            torch.from_numpy(x[i]),
            torch.from_numpy(y[i]),
            group[: len(i)],
            edges=edges,
            n_groups=1,
        )
        for i in (np.arange(40), rest)
    ]
    assert np.abs(tables[0] - tables[1]).sum() == 1


# --- weights that blow up the last bit of a row ---------------------------------------------------------


def cancelling(seed: int, spec: ModelSpec) -> tuple[torch.nn.Module, np.ndarray, np.ndarray]:
    """Everybody has the same three features, whose weights cancel but for the last bits of what is between."""
    rng = np.random.default_rng(seed)
    d, n = int(rng.integers(6, 64)), int(rng.integers(64, 700))
    x = rng.uniform(-1, 1, (n, d)).astype(np.float32)
    one, two, three = rng.permutation(d)[:3]
    x[:, [one, two, three]] = 1
    module = build(spec, d, seed=seed)
    weights = {name: p.detach().numpy().copy() for name, p in module.named_parameters()}
    first, bias = list(weights)[:2]
    weights[first] *= rng.choice([0.0, 1.0])
    weights[first][:, one], weights[first][:, two], weights[first][:, three] = 2.0**100, 1000, -(2.0**100)
    weights[bias][:] = -500
    load_weights(module, weights)
    return module, x, np.ones(n, np.float32)


@both_sums
@pytest.mark.parametrize("spec", [SPECS["logistic"], SPECS["mlp"]], ids=["logistic", "mlp"])
@pytest.mark.parametrize("seed", range(25))
def test_a_bit_that_weights_blow_up_moves_the_sum_by_no_more_than_the_norm(
    sum_of: Sum, spec: ModelSpec, seed: int
) -> None:
    module, x, y = cancelling(seed, spec)
    assert moved(sum_of, module, x, y, 1.0) <= 1 + SUM_SLACK


def test_on_plain_kernels_the_same_bit_moves_the_sum_by_far_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a block as large as the batch is what everybody computes."""
    monkeypatch.setattr(blocks, "filled", lambda size, *tensors: list(tensors))
    monkeypatch.setattr(blocks, "SIZE", 10_000)
    monkeypatch.setattr(train, "ALIGNED", 1)
    found = [
        moved(sum_of, *cancelling(seed, SPECS["logistic"]), 1.0)
        for seed in range(25)
        for sum_of in (local_sum, shared_sum)
    ]
    assert max(found) > 1.5


@every_model
@pytest.mark.parametrize("seed", range(8))
def test_a_score_does_not_depend_on_who_else_is_scored(spec: ModelSpec, seed: int) -> None:
    module, x, _ = cancelling(seed, spec)
    whole = blocks.logits(module, torch.from_numpy(x))
    for rest in (x[1:], x[:-1], x[: len(x) // 2]):
        place = slice(1, None) if len(rest) == len(x) - 1 and (rest[0] == x[1]).all() else slice(len(rest))
        assert torch.equal(
            blocks.logits(module, torch.from_numpy(rest.copy())), whole[place]
        ) or torch.allclose(
            blocks.logits(module, torch.from_numpy(rest.copy())), whole[place], rtol=0, atol=0, equal_nan=True
        )


@both_sums
@every_model
def test_where_places_differ_people_are_computed_one_by_one(
    sum_of: Sum, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert blocks.size_for(lambda x: [x.sum(1)], (5,), torch.float32) == blocks.SIZE
    uneven = lambda x: [x.sum(1) + torch.arange(len(x)) * 1e-3]  # noqa: E731
    assert blocks.size_for(uneven, (5,), torch.float32) == 1
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 5)).astype(np.float32), (rng.random(200) < 0.5).astype(np.float32)
    module = build(spec, 5, seed=2)
    in_blocks = sum_of(module, x, y, 1.0)
    train._size_for.cache_clear()
    monkeypatch.setattr(blocks, "size_for", lambda *_: 1)
    np.testing.assert_allclose(sum_of(module, x, y, 1.0), in_blocks, rtol=0, atol=2e-4)
    train._size_for.cache_clear()


def test_nobody_is_a_block_of_nobody() -> None:
    (block,) = blocks.filled(16, torch.ones(0, 3))
    assert torch.equal(block, torch.zeros(16, 3))
    module = build(SPECS["logistic"], 3)
    assert shared_sum(module, np.zeros((0, 3), np.float32), np.zeros(0, np.float32), 1.0).tolist() == [0] * 4


def test_clipping_leaves_room_for_rounding() -> None:
    assert 0 < ROUNDING < 1e-5
