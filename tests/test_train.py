"""DP-SGD: laws (sensitivity, exact zeros), oracles (a per-person gradient loop, plain SGD), numbers (noise, q)."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from clients.randomness import Stream, gaussian, poisson_batches
from clients.train import (
    ROW_SLACK,
    Noise,
    Sampling,
    clipped_sum,
    dp_fit,
    dp_sum,
    simulated_noise,
    simulated_sampling,
)
from federation.plan import SUM_SLACK, LocalPlan, PrivacyPlan
from models.risk import Block, Stack, build, weights_of
from models.spec import ModelSpec

D = 5
SPECS = {
    "logistic": ModelSpec("logistic"),
    "mlp": ModelSpec("mlp", (7, 6)),
    "residual": ModelSpec("residual", (6, 6)),
}


def linear(fan_in: int, fan_out: int, bias: bool = True) -> nn.Linear:
    """Seeded by its shape, as nothing here may follow from the global generator."""
    layer, generator = (
        nn.Linear(fan_in, fan_out, bias=bias),
        torch.Generator().manual_seed(10 * fan_in + fan_out),
    )
    for p in layer.parameters():
        nn.init.uniform_(p, -0.6, 0.6, generator=generator)
    return layer


def used_twice() -> nn.Module:
    layer = linear(D, D)
    return Stack(layer, nn.ReLU(), layer, nn.ReLU(), linear(D, 1))


MODULES: dict[str, Callable[[], nn.Module]] = {
    **{name: lambda spec=spec: build(spec, D, seed=3) for name, spec in SPECS.items()},  # type: ignore[misc]
    "no bias": lambda: Stack(linear(D, 4, bias=False), nn.ReLU(), linear(4, 1, bias=False)),
    "a layer used twice": used_twice,
    "another activation": lambda: Stack(linear(D, 4), nn.Tanh(), linear(4, 1)),
}
every_module = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
every_model = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
every_shape = pytest.mark.parametrize("k", [1, 3], ids=["one row", "three rows"])

People = tuple[Tensor, Tensor, Tensor | None]


def people(n: int, k: int, seed: int = 0, d: int = D) -> People:
    """n made-up people; with k > 1 rows, some rows are absent and one person has none at all."""
    rng = np.random.default_rng(seed)
    shape = (n,) if k == 1 else (n, k)
    x = torch.from_numpy(rng.normal(size=(*shape, d)).astype(np.float32))
    y = torch.from_numpy(rng.integers(0, 2, shape).astype(np.float32))
    if k == 1:
        return x, y, None
    present = torch.from_numpy((rng.random(shape) < 0.7).astype(np.float32))
    present[0] = 0
    return x * present.unsqueeze(-1), y * present, present


def own_noise() -> Noise:
    """As a deployed node draws it."""
    return gaussian(Stream.fresh())


def own_sampling() -> Sampling:
    """As a deployed node draws it."""
    return poisson_batches(Stream.fresh())


def of(everyone: People, rows: Any) -> People:
    x, y, present = everyone
    return x[rows], y[rows], None if present is None else present[rows]


def privacy(**changes: Any) -> PrivacyPlan:
    values = {
        "mechanism": "local",
        "noise_multiplier": 1.0,
        "max_grad_norm": 1.0,
        "sample_rate": 0.5,
        "delta": 1e-5,
        "tune_sigma": 1.0,
        "test_sigma": 1.0,
    }
    return PrivacyPlan(**(values | changes))


def no_privacy(**changes: Any) -> PrivacyPlan:
    return privacy(mechanism="none", noise_multiplier=0, tune_sigma=0, test_sigma=0, **changes)


def fit(
    module: nn.Module, everyone: People, plan: PrivacyPlan, steps: int = 1, **changes: Any
) -> dict[str, np.ndarray]:
    """`dp_fit` with what a test does not care about filled in."""
    terms = {"learning_rate": 1.0} | {k: changes.pop(k) for k in list(changes) if k in LocalPlan.model_fields}
    given = {"expected_batch": 10.0, "sampling": simulated_sampling(0), "noise": simulated_noise(0)} | changes
    return dp_fit(module, *everyone, privacy=plan, local=LocalPlan(steps=steps, **terms), **given)


def flat(parts: dict[str, Any]) -> np.ndarray:
    return np.concatenate([np.asarray(part, dtype=np.float64).ravel() for part in parts.values()])


def per_person_gradients(module: nn.Module, x: Tensor, y: Tensor, present: Tensor | None) -> np.ndarray:
    """The slow way, (n, parameters): autograd on one person's loss after another, in float64."""
    gradients = []
    module = module.double()
    for i in range(len(x)):
        losses = binary_cross_entropy_with_logits(module(x[i].double()), y[i].double(), reduction="none")
        loss = losses if present is None else (losses * present[i]).sum()
        parts = torch.autograd.grad(loss, list(module.parameters()))
        gradients.append(torch.cat([part.reshape(-1) for part in parts]).numpy())
    module.float()
    return np.array(gradients)


def clipped_by_hand(gradients: np.ndarray, c: float) -> np.ndarray:
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    return (gradients * np.minimum(1, c / np.maximum(norms, 1e-300))).sum(0)


# --- the clipped sum ----------------------------------------------------------------------------------


@every_module
@every_shape
@pytest.mark.parametrize("clipped", [1.0, 0.5, 0.0])
def test_the_sum_is_that_of_a_per_person_gradient_loop(make, k, clipped):
    """Where everybody is clipped, half of them, nobody; to 3e-6 of what all of them add."""
    module, everyone = make(), people(40, k)
    gradients = per_person_gradients(module, *everyone)
    norms = np.linalg.norm(gradients, axis=1)
    for c in {1.0: [norms[norms > 0].min() / 2], 0.5: [np.median(norms)], 0.0: [norms.max() * 2, math.inf]}[
        clipped
    ]:
        expected = clipped_by_hand(gradients, c)
        found = flat(clipped_sum(module, *everyone, float(c)))
        np.testing.assert_allclose(found, expected, atol=3e-6 * np.minimum(norms, c).sum(), rtol=0)


@every_model
@every_shape
def test_splitting_the_people_changes_nothing(spec, k):
    module, everyone = build(spec, D), people(30, k)
    parts = [of(everyone, slice(0, 11)), of(everyone, slice(11, 11)), of(everyone, slice(11, 30))]
    total = sum(flat(clipped_sum(module, *part, 0.5)) for part in parts)
    np.testing.assert_allclose(total, flat(clipped_sum(module, *everyone, 0.5)), atol=1e-5)


@every_model
@every_shape
def test_absent_rows_and_nobody_add_exactly_nothing(spec, k):
    module = build(spec, D, seed=1)
    nobody = of(people(4, k), slice(0, 0))
    assert not flat(clipped_sum(module, *nobody, 1.0)).any()
    if k > 1:
        absent = of(people(4, k), slice(0, 1))
        assert not flat(clipped_sum(module, *absent, 1.0)).any()


EXTREME = st.sampled_from([0.0, 1.0, -1.0, 1e-6, 1e3, 1e6, -1e6])


@st.composite
def extreme_person(draw: st.DrawFn, k: int) -> People:
    """Huge, zero and opposite rows: `repeat` makes rows that cancel but for their rounding."""
    row = draw(st.lists(EXTREME, min_size=D, max_size=D))
    rows = [row if draw(st.booleans()) else draw(st.lists(EXTREME, min_size=D, max_size=D)) for _ in range(k)]
    y = torch.tensor(draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=k, max_size=k)))
    present = torch.tensor(draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=k, max_size=k)))
    if k == 1:
        return torch.tensor(rows), y, None
    return torch.tensor([rows]), y.unsqueeze(0), present.unsqueeze(0)


@every_model
@every_shape
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_one_person_more_moves_the_sum_by_at_most_c(spec, k, data):
    person, c = data.draw(extreme_person(k)), data.draw(st.sampled_from([1e-3, 1.0, 30.0]))
    module, others = build(spec, D, seed=2), people(6, k)
    both = tuple(None if a is None else torch.cat([a, b]) for a, b in zip(others, person, strict=True))
    alone = np.linalg.norm(flat(clipped_sum(module, *person, c)))
    assert alone <= c
    moved = flat(clipped_sum(module, *both, c)) - flat(clipped_sum(module, *others, c))  # type: ignore[arg-type]
    assert np.linalg.norm(moved) <= c * (1 + 1e-5)  # float32 adds up seven people to about 1e-7 each


@every_model
def test_a_person_far_above_c_adds_c(spec):
    x, y = torch.full((1, D), 1e6), torch.ones(1)
    module = build(spec, D, seed=2)
    if bool(module(x) > 0):  # the wrong label, so that the gradient is large
        y = torch.zeros(1)
    norm = np.linalg.norm(flat(clipped_sum(module, x, y, None, 0.3)))
    assert 0.3 * (1 - 1e-5) < norm <= 0.3


@pytest.mark.parametrize("name", ["logistic", "mlp"])
@pytest.mark.parametrize("apart", [0, 1e-6, 1e-5, 1e-4, 1e-3])
def test_rows_that_cancel_are_not_let_through_by_rounding(name, apart):
    """Opposite labels on nearly the same huge row: the gradient is a small difference of huge terms."""
    module, rng = build(SPECS[name], D, seed=2), np.random.default_rng(0)
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(1e-9)  # logits near 0, so that the rows do cancel
    for c in (1e-3, 1.0) * 30:
        row = rng.uniform(-1e6, 1e6, D)
        x = np.stack([row, row * (1 + apart * rng.normal(size=D)), row])[None]
        y, present = np.array([[0.0, 1.0, 0.0]]), np.array([[1.0, 1.0, 0.0]])
        assert np.linalg.norm(flat(clipped_sum(module, x, y, present, c))) <= c


def test_a_layer_that_mixes_people_is_refused():
    module = Stack(nn.Linear(D, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    with pytest.raises(NotImplementedError, match="BatchNorm"):
        clipped_sum(module, *people(4, 1), 1.0)


# --- a step -------------------------------------------------------------------------------------------


class Recorder:
    """Hands on the batches and keeps them."""

    def __init__(self, seed: int) -> None:
        self.inner, self.batches = simulated_sampling(seed), []  # type: ignore[var-annotated]

    def __call__(self, n: int, rate: float) -> np.ndarray:
        self.batches.append(self.inner(n, rate))
        return self.batches[-1]


@every_module
@every_shape
def test_without_privacy_it_is_plain_sgd_on_the_same_batches(make, k):
    module, everyone, recorder = make(), people(30, k), Recorder(1)
    start = weights_of(module)
    reference = make()
    reference.load_state_dict(module.state_dict())
    delta = fit(
        module,
        everyone,
        no_privacy(max_grad_norm=math.inf),
        steps=6,
        learning_rate=0.2,
        weight_decay=0.1,
        sampling=recorder,
    )
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.2, weight_decay=0.1)
    for batch in recorder.batches:
        x, y, present = of(everyone, torch.from_numpy(batch))
        losses = binary_cross_entropy_with_logits(reference(x), y, reduction="none")
        optimizer.zero_grad()
        ((losses if present is None else losses * present).sum() / 10.0).backward()
        optimizer.step()
    assert len(recorder.batches) == 6
    for name, value in weights_of(reference).items():
        np.testing.assert_allclose(start[name] + delta[name], value, atol=2e-6)
        np.testing.assert_array_equal(weights_of(module)[name] - start[name], delta[name])


@every_model
def test_without_privacy_clipping_still_happens_and_no_noise_is_drawn(spec):
    module, everyone = build(spec, D, seed=1), people(20, 1)
    s = flat(clipped_sum(module, *everyone, 0.1))

    def forbidden(n: int, std: float) -> Tensor:
        raise AssertionError("noise was drawn")

    delta = fit(module, everyone, no_privacy(max_grad_norm=0.1, sample_rate=1.0), noise=forbidden)
    np.testing.assert_allclose(flat(delta), -s / 10.0, atol=1e-7)


@every_model
@every_shape
def test_a_step_is_clip_sum_noise_divide_then_terms(spec, k):
    """w1 = w0 - lr ((s(w0) + z) / L + decay w0); the proximal term is 0 at the first step."""
    module, everyone = build(spec, D, seed=1), people(20, k)
    s, w = flat(clipped_sum(module, *everyone, 0.5)), flat(weights_of(module))
    z = simulated_noise(7)(len(w), 0.5 * 2.0).numpy()
    plan = privacy(noise_multiplier=2.0, max_grad_norm=0.5, sample_rate=1.0)
    delta = fit(
        module,
        everyone,
        plan,
        learning_rate=0.3,
        weight_decay=4.0,
        proximal_mu=9.0,
        expected_batch=8.0,
        noise=simulated_noise(7),
    )
    np.testing.assert_allclose(flat(delta), -0.3 * ((s + z) / 8.0 + 4.0 * w), atol=1e-5)


def test_prox_and_decay_come_after_the_noise_and_are_not_clipped():
    """No gradient, and noise of a constant: what remains is the recursion itself."""
    module = build(SPECS["mlp"], D, seed=1)
    plan, w0 = privacy(max_grad_norm=1e-3, noise_multiplier=1.0), flat(weights_of(module))
    nobody = of(people(4, 1), slice(0, 0))
    lr, mu, decay, noise_mean = 0.1, 2.0, 3.0, 0.5 / 10.0
    w = w0.copy()
    for _ in range(4):
        w -= lr * (noise_mean + mu * (w - w0) + decay * w)
    delta = fit(
        module,
        nobody,
        plan,
        steps=4,
        learning_rate=lr,
        proximal_mu=mu,
        weight_decay=decay,
        noise=lambda n, std: torch.full((n,), 0.5),
    )
    np.testing.assert_allclose(flat(delta), w - w0, atol=1e-6)


def test_the_proximal_term_pulls_back_to_the_start():
    everyone, plan = people(50, 1), no_privacy(sample_rate=1.0)
    free_run = fit(build(SPECS["logistic"], D), everyone, plan, steps=30)
    held = fit(build(SPECS["logistic"], D), everyone, plan, steps=30, proximal_mu=0.9)
    assert np.linalg.norm(flat(held)) < 0.8 * np.linalg.norm(flat(free_run))


# --- the noise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [lambda: simulated_noise(4), own_noise], ids=["simulated", "os"])
@pytest.mark.parametrize("expected_batch", [4.0, 64.0])
def test_the_noise_of_a_step_is_sigma_c_over_the_expected_batch(source, expected_batch):
    """Nobody is there, so the change is the noise: mean 0, std lr sigma C / L in every coordinate."""
    d = 40_000
    nobody = (torch.zeros(0, d), torch.zeros(0), None)
    plan = privacy(noise_multiplier=1.7, max_grad_norm=0.4)
    delta = fit(build(SPECS["logistic"], d), nobody, plan, expected_batch=expected_batch, noise=source())
    draws = flat(delta) * expected_batch / (1.7 * 0.4)
    assert stats.kstest(draws, "norm").pvalue > 1e-7
    assert draws.std() == pytest.approx(1, rel=0.02)


@every_model
def test_every_parameter_gets_its_own_noise(spec):
    n = sum(value.size for value in weights_of(build(spec, D)).values())
    delta = fit(build(spec, D), of(people(4, 1), slice(0, 0)), privacy())
    assert np.unique(flat(delta)).size == n


def test_noise_repeats_for_a_seed_and_for_no_other():
    def draw(seed: int) -> Tensor:
        return simulated_noise(seed)(1000, 1.0)

    assert torch.equal(draw(5), draw(5))
    for other in (6, 5 + 2**32, 5 + 2**62, 5 + 2**200):  # PyTorch alone would keep the low 32 bits
        assert abs(np.corrcoef(draw(5), draw(other))[0, 1]) < 0.2
    noise = simulated_noise(5)
    assert not torch.equal(noise(1000, 1.0), noise(1000, 1.0))


def test_two_agencies_of_a_simulation_do_not_share_noise():
    nobody = of(people(4, 1), slice(0, 0))
    one, same, two = (
        flat(fit(build(SPECS["mlp"], D), nobody, privacy(), noise=simulated_noise(seed)))
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert (one != two).all()


@pytest.mark.parametrize("n", [1, 2, 61, 1000])
def test_noise_from_the_operating_system_is_flat_finite_and_never_repeats(n):
    one, two = own_noise()(n, 2.0), own_noise()(n, 2.0)
    assert one.shape == (n,)
    assert one.dtype == torch.float32
    assert torch.isfinite(one).all()
    assert not torch.equal(one, two)


def test_box_muller_pairs_are_independent():
    draws = own_noise()(200_000, 3.0).numpy().astype(np.float64)
    first, second = draws[:100_000], draws[100_000:]
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.02
    assert abs(np.corrcoef(first**2, second**2)[0, 1]) < 0.02
    assert stats.kstest(draws / 3.0, "norm").pvalue > 1e-7


def test_os_sampling_does_not_repeat():
    assert not np.array_equal(own_sampling()(1000, 0.5), own_sampling()(1000, 0.5))


@every_model
def test_an_empty_batch_still_draws_noise_and_moves_the_weights(spec):
    drawn = []

    def noise(n: int, std: float) -> Tensor:
        drawn.append(n)
        return torch.full((n,), std)

    module, plan = build(spec, D, seed=1), privacy(sample_rate=1e-9, noise_multiplier=3.0, max_grad_norm=0.5)
    before = flat(weights_of(module))
    delta = fit(module, people(20, 1), plan, steps=5, noise=noise)
    assert drawn == [before.size] * 5
    np.testing.assert_allclose(flat(delta), -5 * 3.0 * 0.5 / 10.0, rtol=1e-5)


# --- sampling and sizes -------------------------------------------------------------------------------


def members(n: int, q: float, draws: int, sampling: Sampling) -> np.ndarray:
    """Who was in each batch, (draws, n): person i owns feature i, so only their own presence moves it."""
    everyone = (torch.eye(n), torch.ones(n), None)
    plan = no_privacy(max_grad_norm=math.inf, sample_rate=q)
    deltas = [
        fit(build(SPECS["logistic"], n), everyone, plan, sampling=sampling)["layers.0.weight"]
        for _ in range(draws)
    ]
    return np.concatenate(deltas) != 0


@pytest.mark.parametrize("source", [lambda: simulated_sampling(3), own_sampling], ids=["simulated", "os"])
def test_the_realised_sample_rate_is_the_accounted_one(source):
    """Every person is in with chance q, alone and in pairs, whatever the sizes before: Poisson sampling."""
    n, q, draws = 40, 0.15, 1000
    inside = members(n, q, draws, source())
    assert stats.binomtest(int(inside.sum()), n * draws, q).pvalue > 1e-7
    each = inside.sum(0)
    assert min(stats.binomtest(int(count), draws, q).pvalue for count in each) > 1e-8
    sizes = inside.sum(1)
    assert len(set(sizes)) > 5
    spread = sizes.var() * draws / (n * q * (1 - q))  # chi squared if the size is binomial
    assert 1e-7 < stats.chi2.cdf(spread, draws - 1) < 1 - 1e-7
    pairs = int((inside[:, ::2] & inside[:, 1::2]).sum())
    assert stats.binomtest(pairs, draws * n // 2, q * q).pvalue > 1e-7


def test_at_rate_one_everybody_is_in_every_batch():
    assert members(20, 1.0, 3, simulated_sampling(0)).all()


def test_steps_draw_their_batches_one_by_one():
    recorder = Recorder(2)
    fit(build(SPECS["logistic"], D), people(200, 1), privacy(sample_rate=0.2), steps=50, sampling=recorder)
    sizes = [len(batch) for batch in recorder.batches]
    assert len(sizes) == 50
    assert len(set(sizes)) > 5
    assert all(len(set(batch)) == len(batch) for batch in recorder.batches)


@every_model
@every_shape
def test_the_true_number_of_people_scales_nothing(spec, k):
    """Ninety more people whose gradient is zero: same sum, same noise, same change to the last bit."""
    module, everyone = build(spec, D, seed=1), people(30, k)
    absent = tuple(None if v is None else torch.zeros(90, *v.shape[1:]) for v in everyone)
    more = tuple(None if a is None else torch.cat([a, b]) for a, b in zip(everyone, absent, strict=True))
    if (
        k == 1
    ):  # without a row axis nobody is absent: even odds against a label of one half is a zero gradient
        module = build(SPECS["logistic"], D)
        more = (more[0], torch.cat([everyone[1], torch.full((90,), 0.5)]), None)
    few = fit(module, everyone, privacy(sample_rate=1.0))
    again = build(SPECS["logistic"] if k == 1 else spec, D, seed=1)
    many = fit(again, more, privacy(sample_rate=1.0))  # type: ignore[arg-type]
    np.testing.assert_allclose(flat(few), flat(many), atol=1e-6)


# --- columns that are not held here -------------------------------------------------------------------


@every_model
@every_shape
def test_what_is_not_held_here_does_not_move_by_a_bit(spec, k):
    module, everyone = build(spec, D, seed=1), people(20, k)
    name = next(iter(weights_of(module)))
    mask = torch.ones_like(dict(module.named_parameters())[name])
    mask[..., 1:3] = 0
    held = torch.tensor([1.0, 0, 0, 1, 1])
    x, y, present = everyone
    terms = {"weight_decay": 0.5, "proximal_mu": 0.7, "steps": 4}
    delta = fit(module, (x * held, y, present), privacy(), free={name: mask}, **terms)
    assert (delta[name][..., 1:3] == 0.0).all()
    assert (delta[name][..., [0, 3, 4]] != 0.0).all()
    assert all((value != 0).all() for other, value in delta.items() if other != name)


def test_a_mask_of_ones_is_no_mask():
    masks = {name: torch.ones_like(p) for name, p in build(SPECS["mlp"], D).named_parameters()}
    with_mask, without = (
        fit(build(SPECS["mlp"], D), people(20, 1), privacy(), steps=3, free=free) for free in (masks, None)
    )
    np.testing.assert_array_equal(flat(with_mask), flat(without))


@pytest.mark.parametrize(
    "free",
    [
        {"layers.9.weight": torch.ones(1, D)},
        {"layers.0.weight": torch.ones(D)},
        {"layers.0.weight": torch.full((1, D), 0.5)},
    ],
    ids=["name", "shape", "value"],
)
def test_a_mask_that_does_not_fit_is_refused(free):
    module = build(SPECS["logistic"], D)
    with pytest.raises(ValueError, match="must be 0s and 1s in the shape of a parameter"):
        fit(module, people(4, 1), privacy(), free=free)
    assert not flat(weights_of(module)).any()


# --- repeatable, and refused --------------------------------------------------------------------------


@every_model
def test_the_global_generators_are_neither_read_nor_moved(spec):
    def run(seed: int) -> np.ndarray:
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index,union-attr]  # noqa: NPY002
        delta = fit(build(spec, D, seed=1), people(20, 1), privacy(), steps=3)
        assert torch.equal(torch.get_rng_state(), before[0])
        np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]  # noqa: NPY002
        return flat(delta)

    np.testing.assert_array_equal(run(1), run(2))


@every_model
def test_the_module_ends_at_the_new_weights_in_its_own_memory(spec):
    module = build(spec, D, seed=1)
    start, places = weights_of(module), [p.data_ptr() for p in module.parameters()]
    delta = fit(module, people(20, 1), privacy(), steps=2)
    assert [p.data_ptr() for p in module.parameters()] == places
    assert not hasattr(next(module.parameters()), "grad_sample")
    for name, value in weights_of(module).items():
        np.testing.assert_array_equal(value - start[name], delta[name])
        assert delta[name].dtype == np.float32


def test_arrays_and_tensors_give_the_same():
    x, y, _ = people(20, 1)
    frozen = x.numpy().astype(np.float64)
    frozen.setflags(write=False)
    one = fit(build(SPECS["logistic"], D), (x, y, None), privacy())
    two = fit(build(SPECS["logistic"], D), (frozen, y.numpy(), None), privacy())  # type: ignore[arg-type]
    np.testing.assert_array_equal(flat(one), flat(two))


def test_logits_of_shape_n_1_are_refused():
    """The trap: against y of shape (n,) they broadcast to (n, n), and Opacus' ghost clipping would not clip."""
    column = nn.Sequential(nn.Linear(D, 1))
    before = flat(weights_of(column))
    with pytest.raises(ValueError, match=r"one logit per row.*\(2, 5\) the shape \(2,\), got \(2, 1\)"):
        fit(column, people(20, 1), privacy())
    np.testing.assert_array_equal(flat(weights_of(column)), before)


@pytest.mark.parametrize(
    ("x", "y", "present", "rule"),
    [
        ((4,), (4,), None, "x must have 2 axes"),
        ((4, D), (4, 1), None, "y must be"),
        ((4, D), (3,), None, "y must be"),
        ((4, 3, D), (4,), (4, 3), "y must be"),
        ((4, 3, D), (4, 3), None, "present must be"),
        ((4, 3, D), (4, 3), (4,), "present must be"),
        ((4, D), (4,), (4,), "present must be"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(x, y, present, rule):
    people_of = (torch.zeros(x), torch.zeros(y), None if present is None else torch.zeros(present))
    with pytest.raises(ValueError, match=rule) as refusal:
        fit(build(SPECS["logistic"], D), people_of, privacy())
    assert "4" not in str(refusal.value)  # the sentence says no count


@pytest.mark.parametrize("expected_batch", [0.0, -1.0, math.inf, math.nan])
def test_an_expected_batch_that_cannot_divide_is_refused(expected_batch):
    with pytest.raises(ValueError, match="expected_batch must be above 0"):
        fit(build(SPECS["logistic"], D), people(4, 1), privacy(), expected_batch=expected_batch)


def test_weights_that_are_no_longer_finite_are_refused_and_the_module_keeps_the_old_ones():
    module = build(SPECS["mlp"], D, seed=1)
    before = flat(weights_of(module))
    with pytest.raises(ValueError, match=r"lower local\.learning_rate"):
        fit(module, people(20, 1), no_privacy(), steps=200, learning_rate=1e9, weight_decay=1.0)
    np.testing.assert_array_equal(flat(weights_of(module)), before)


def test_it_learns():
    """A weight of 3 on one column is found again, with privacy, from four thousand people."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (4000, D)).astype(np.float32)
    y = (rng.random(4000) < 1 / (1 + np.exp(-3 * x[:, 0]))).astype(np.float32)
    module = build(SPECS["logistic"], D)
    plan = privacy(sample_rate=0.1, max_grad_norm=2.5)  # above the largest norm, so without clipping bias
    delta = fit(module, (x, y, None), plan, steps=300, learning_rate=2.0, expected_batch=400.0)  # type: ignore[arg-type]
    assert delta["layers.0.weight"][0] == pytest.approx([3, 0, 0, 0, 0], abs=0.4)


def test_a_block_is_not_a_stack_of_linear_layers():
    """Guards the tests above: the residual model does go the way of hooks."""
    assert any(isinstance(layer, Block) for layer in build(SPECS["residual"], D).modules())


# --- one exact sum, for noise that is added in whole numbers --------------------------------------------


def exact_sum(make: Any, everyone: People, **changes: Any) -> np.ndarray:
    given = {"max_grad_norm": 0.7, "sample_rate": 1.0, "sampling": simulated_sampling(0)} | changes
    return dp_sum(make(), *everyone, **given)


@every_module
@every_shape
def test_the_exact_sum_is_the_sum_of_clipped_gradients_in_float64(make, k):
    """To 1e-6 of the slow way; with several rows each person may be ROW_SLACK x their rows further inside C."""
    everyone = people(40, k)
    found = exact_sum(make, everyone)
    assert found.dtype == np.float64
    gradients = per_person_gradients(make(), *everyone)
    norms = np.linalg.norm(gradients, axis=1)
    off = 40 * 0.7 * 1e-5
    if k > 1:
        x, y, present = everyone
        rows = per_person_gradients(make(), x.flatten(0, 1), y.flatten(), None)
        sizes = (np.linalg.norm(rows, axis=1) * present.flatten().numpy()).reshape(40, k).sum(1)
        off += (0.7 * ROW_SLACK * sizes / np.maximum(norms, 1e-9)).sum()
    assert np.linalg.norm(found - clipped_by_hand(gradients, 0.7)) <= off


@every_module
@every_shape
def test_a_person_moves_the_exact_sum_by_no_more_than_clipping_and_the_slack(make, k):
    """Whoever is added, whatever stands in their rows: C (1 + SUM_SLACK) is what the noise is scaled to."""
    everyone = people(60, k)
    x, y, present = everyone
    x = x.clone()
    x[::7] *= 1e4  # huge rows: the raw gradients are far above C
    for person in (0, 7, 59):
        rest = [i for i in range(60) if i != person]
        moved = exact_sum(make, (x, y, present)) - exact_sum(make, of((x, y, present), rest))
        assert np.linalg.norm(moved) <= 0.7 * (1 + SUM_SLACK)


def test_chunks_of_rows_add_up_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    everyone, make = people(50, 4), lambda: build(SPECS["mlp"], D, seed=3)
    whole = exact_sum(make, everyone)
    monkeypatch.setattr("clients.train.CHUNK", 16)
    np.testing.assert_allclose(exact_sum(make, everyone), whole, rtol=0, atol=1e-13)


def test_the_order_of_people_changes_a_sum_by_float64_rounding_alone() -> None:
    """In float32 too, whose own rounding would be 1e-6 here: each person's gradient has the same bits in any batch."""
    everyone, order = people(4000, 1), np.random.default_rng(5).permutation(4000)
    make = lambda: build(SPECS["mlp"], D, seed=3)  # noqa: E731
    shuffled = of(everyone, torch.from_numpy(order))
    in_order = exact_sum(make, everyone, sampling=lambda n, q: np.arange(n))
    assert np.abs(exact_sum(make, shuffled, sampling=lambda n, q: np.arange(n)) - in_order).max() < 1e-10
    rough, again = (flat(clipped_sum(make(), *p, 0.7)) for p in (everyone, shuffled))
    assert np.abs(rough - again).max() < 1e-10


def test_an_agency_with_more_rows_than_the_bound_is_refused_whatever_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("clients.train.MOST_ROWS", 99)
    make = lambda: build(SPECS["logistic"], D)  # noqa: E731
    exact_sum(make, people(99, 1))
    exact_sum(make, people(33, 3))
    for everyone in (people(100, 1), people(34, 3)):
        with pytest.raises(ValueError, match="at most 99 rows at one agency"):
            exact_sum(make, everyone, sample_rate=0.01)
