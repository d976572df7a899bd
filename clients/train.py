"""DP-SGD at an agency: each person's gradient is clipped, summed, noised, and only then used.

Abadi et al., Deep Learning with Differential Privacy, CCS 2016 (arXiv:1607.00133), Algorithm 1:

    B ~ Poisson(q);  s = sum_{i in B} g_i min(1, C / |g_i|);  u = (s + sigma C N(0, I)) / L
    w <- w - lr (u + mu (w - w_0) + decay w)

g_i is the gradient of one person's loss: the sum over their present rows of the logistic loss. L is
the *expected* batch, q x a declared public size, so neither the number drawn nor the true number of
people scales anything that leaves. FedProx and weight decay see no record, so they come after the noise.

The sum s comes from book-keeping where the model is a stack of Linear and ReLU: for a linear layer
with input a and output gradient g, |g_i|^2 = |a|^2 |g|^2 (Goodfellow, arXiv:1510.01799), so a person's
gradient is never written out (Bu et al., arXiv:2210.00038). Any other model goes through Opacus' hooks.
Opacus' optimizer takes s, adds the noise, divides and steps.

Where a plan has group multipliers (`federation.multipliers`), each clipped gradient is multiplied by the person's share,
at most 1, before they are summed.

Whatever the weights, one person moves s by no more than C: each is computed in a block of one shape
(`clients.blocks`), and whoever has a gradient that is not finite adds nothing, since one person's overflow must
neither show as an error nor spread to the others' sum.
"""

import copy
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizerFastGradientClipping
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.nn.functional import binary_cross_entropy_with_logits as logistic_loss
from torch.nn.functional import linear, pad

from clients import blocks
from federation.plan import MOST_ROWS, LocalPlan, PrivacyPlan
from models.risk import Stack

Noise = Callable[[int, float], Tensor]  # (n, std) -> n Gaussian draws, flat float32
Sampling = Callable[[int, float], np.ndarray]  # (n, q) -> indices of those drawn, each with chance q
Batch = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # x, y, present, share
ClippedSum = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]  # of a batch: s, flat float64
# Of each layer: its input a, the gradient g of its output, and whether there is a bias.
Kept = list[tuple[Tensor, Tensor, bool]]
# (x, y, weight of each row, share of each person) -> everybody's clipped gradient, as g a^T of each layer.
Gradients = Callable[[Tensor, Tensor, Tensor, Tensor], Kept]
# Of each layer: its weight's shape, and whether there is a bias.
Shapes = tuple[tuple[tuple[int, ...], bool], ...]
Values = np.ndarray | Tensor

# float32 rounds what one person adds by less than this part of the size of their rows' gradients;
# people are clipped that much inside C, so that nobody adds more than C. Sums are in float64.
ROUNDING = 2e-6

# `dp_sum` takes everything in float64, where a person's rows count more, at most C / ROW_SLACK in all, so that what
# cancels between rows cannot hide a rounding error. Added up by chunks of CHUNK rows, 2^20 rows are then off by at most
# (CHUNK + 2^20 / CHUNK) 2^-53 2^20 C / ROW_SLACK = 2^-13 C: half of SUM_SLACK, which counts two such sums.
ROW_SLACK = 2.0**-9
CHUNK = 1024

ALIGNED = 8  # numbers of float64 in a line of memory


def dp_fit(
    module: nn.Module,
    x: Values,
    y: Values,
    present: Values | None,
    *,
    privacy: PrivacyPlan,
    local: LocalPlan,
    expected_batch: float,
    share: Values | None = None,
    free: Mapping[str, Tensor] | None = None,
    sampling: Sampling,
    noise: Noise,
) -> dict[str, np.ndarray]:
    """Take `local.steps` steps of DP-SGD from the module's weights; leave it at the new ones.

    x (n, d) or (n, k, d) has one entry per person, k rows each; y (n,) or (n, k) in [0, 1]; present
    (n, k), 0 where a person has no such row, None without a row axis. `expected_batch` is
    q x the declared public number of people. `share` (n,) in [0, 1] is what each clipped gradient counts, None: 1. `free` masks parameters by name: an entry of 0 is not
    held here, gets no noise and no decay, and its change is exactly 0.0.

    Returns the change of each parameter, float32. With mechanism `none` the noise is exactly zero and
    the rest the same; `max_grad_norm` may then be inf, which clips nothing. An empty batch is a step.
    Raises ValueError for shapes that do not fit and when the weights are no longer finite.
    """
    x, y, present, share = _resident(x, y, present, share)
    _check_logits(module, x)
    start = _flatten({name: p.detach() for name, p in module.named_parameters()})
    weights = nn.Parameter(start.clone())
    clipped_sum = _summer(module, weights.data, privacy.max_grad_norm)
    weights.grad = torch.zeros_like(weights)
    optimizer = _Optimizer(weights, noise, privacy, local.learning_rate, expected_batch)
    optimizer.attach_step_hook(_after_noise(weights, start, local, _flat_mask(module, free)))
    with torch.inference_mode(_linear_layers(module) is not None):  # book-keeping needs no autograd
        for _ in range(local.steps):
            batch = _drawn(x, y, present, share, sampling(len(x), privacy.sample_rate))
            optimizer.batch_sum = clipped_sum(*batch)
            optimizer.step()
    return _finish(module, start, weights.data)


def dp_sum(
    module: nn.Module,
    x: Values,
    y: Values,
    present: Values | None,
    *,
    max_grad_norm: float,
    sample_rate: float,
    share: Values | None = None,
    sampling: Sampling,
) -> np.ndarray:
    """One Poisson batch's clipped sum s at the module's weights, float64, flat in the module's order.

    No noise is in it: it must not leave. All of it is computed in float64. Adding up to `MOST_ROWS` rows
    rounds by less than half of `federation.plan.SUM_SLACK` x C. ValueError for an agency with more rows (whatever
    the batch: the coordinator chooses who may be in one), and for shapes that do not fit.
    """
    x, y, present, share = _resident(x, y, present, share)
    _check_logits(module, x)
    if math.prod(x.shape[:-1]) > MOST_ROWS:
        raise ValueError(f"shared noise is for at most {MOST_ROWS} rows at one agency")
    weights = _flatten({name: p.detach().double() for name, p in module.named_parameters()})
    total = _summer(module, weights, max_grad_norm)
    with torch.inference_mode(_linear_layers(module) is not None):
        x, y, *others = _drawn(x, y, present, share, sampling(len(x), sample_rate))
        rows, shares = (None if t is None else t.double() for t in others)
        return total(x.double(), y.double(), rows, shares).numpy()


def clipped_sum(
    module: nn.Module,
    x: Values,
    y: Values,
    present: Values | None,
    max_grad_norm: float,
    share: Values | None = None,
) -> dict[str, Tensor]:
    """s, the sum of the clipped gradients of everyone in x, by parameter, float64: what the noise must hide.

    Sensitivity: with one person more it moves by at most `max_grad_norm` in L2.
    """
    x, y, present, share = _resident(x, y, present, share)
    _check_logits(module, x)
    weights = _flatten({name: p.detach() for name, p in module.named_parameters()})
    return _unflatten(module, _summer(module, weights, max_grad_norm)(x, y, present, share))


def _drawn(x: Tensor, y: Tensor, present: Tensor | None, share: Tensor | None, batch: np.ndarray) -> Batch:
    at = torch.from_numpy(batch)
    rows, shares = (None if t is None else t.index_select(0, at) for t in (present, share))
    return x.index_select(0, at), y.index_select(0, at), rows, shares


# --- repeatable randomness, for simulations only -------------------------------------------------------


def simulated_noise(seed: int) -> Noise:
    """Noise that `seed` repeats: PyTorch's generator keeps 32 bits of a seed.

    All bits of `seed` (any size, >= 0) enter, so streams that differ only high up differ. A deployed node
    has `clients.randomness` instead.
    """
    folded = int(np.random.SeedSequence(seed).generate_state(1)[0])
    generator = torch.Generator().manual_seed(folded)
    return lambda n, std: torch.empty(n).normal_(0.0, std, generator=generator)


def simulated_sampling(seed: int) -> Sampling:
    """Batches that `seed` repeats."""
    generator = np.random.Generator(np.random.PCG64DXSM(np.random.SeedSequence(seed)))

    def draw(n: int, rate: float) -> np.ndarray:
        return generator.choice(n, generator.binomial(n, rate), replace=False, shuffle=False)

    return draw


# --- the optimizer ------------------------------------------------------------------------------------


@final
class _Optimizer(DPOptimizerFastGradientClipping):  # type: ignore[misc]
    """Opacus' optimizer over one flat parameter, with noise from the source that it is given.

    Two methods differ from Opacus: `add_noise`, because Opacus can only draw from a torch.Generator,
    which the operating system cannot feed; and `accumulate`, which takes the whole batch's sum from `batch_sum`.
    That is float64 and becomes float32 when the noise is in it: rounding then is nobody's.
    `params` is the same list that Opacus collects anew three times a step.
    """

    params: Sequence[Any] = ()
    batch_sum: Tensor | None = None

    def __init__(
        self, weights: nn.Parameter, noise: Noise, privacy: PrivacyPlan, lr: float, expected_batch: float
    ) -> None:
        if not 0 < expected_batch < math.inf:
            raise ValueError(f"expected_batch must be above 0 and finite, got {expected_batch}")
        self.params = [weights]
        super().__init__(
            _Descent(weights, lr),
            noise_multiplier=privacy.noise_multiplier if privacy.mechanism == "local" else 0.0,
            max_grad_norm=privacy.max_grad_norm,
            expected_batch_size=expected_batch,
        )
        self.noise = noise

    def accumulate(self) -> None:
        for p in self.params:
            p.summed_grad = self.batch_sum

    def add_noise(self) -> None:
        for p in self.params:
            noised = p.summed_grad
            if self.noise_multiplier > 0:  # without privacy the norm may be inf, and 0 x inf is not 0
                noised = noised + self.noise(p.numel(), self.noise_multiplier * self.max_grad_norm)
            p.grad = noised.to(p.dtype)


@final
class _Descent:
    """w <- w - lr g, as much of a PyTorch optimizer as Opacus wraps.

    `torch.optim.SGD` does the same arithmetic, but brings PyTorch's compiler along: over a second of
    imports, and a look at it in each step that takes longer than the step.
    """

    def __init__(self, weights: nn.Parameter, lr: float) -> None:
        self.param_groups = [{"params": [weights], "lr": lr}]
        self._weights, self._lr = weights, lr

    def step(self) -> None:
        gradient: Any = self._weights.grad
        self._weights.data.add_(gradient, alpha=-self._lr)


def _after_noise(
    weights: nn.Parameter, start: Tensor, local: LocalPlan, mask: Tensor | None
) -> Callable[[Any], None]:
    """What is added to the noised mean: FedProx and decay; then entries that are not held here stop."""

    def add(_: object) -> None:
        gradient: Any = weights.grad  # the noised mean
        if local.proximal_mu:
            gradient.add_(weights.data - start, alpha=local.proximal_mu)
        if local.weight_decay:
            gradient.add_(weights.data, alpha=local.weight_decay)
        if mask is not None:
            gradient.mul_(mask)

    return add


# --- the clipped sum ----------------------------------------------------------------------------------


def _summer(module: nn.Module, weights: Tensor, max_grad_norm: float) -> ClippedSum:
    """The clipped sum as a function of a batch, at whatever `weights` (flat) holds when it is called.

    The batch has the dtype of `weights`: float32, or float64 for `dp_sum`. The sum is float64.
    """
    layers = _linear_layers(module)
    if layers is None:
        return _hooks(module, weights, max_grad_norm)
    at = _unflatten(module, weights)
    named = [(at[f"{name}.weight"], at.get(f"{name}.bias")) for name in layers]
    shapes = tuple((tuple(weight.shape), bias is not None) for weight, bias in named)
    gradients = _book_keeping(named, max_grad_norm)

    def clipped_sum(x: Tensor, y: Tensor, present: Tensor | None, share: Tensor | None) -> Tensor:
        batch = _whole(x, y, present, share)
        if _size_for(shapes, tuple(x.shape[1:]), x.dtype) == 1:
            return _one_by_one(gradients, 1, *batch)
        return _sum_of(gradients(*blocks.filled(blocks.SIZE, *batch)))

    return clipped_sum


def _whole(
    x: Tensor, y: Tensor, present: Tensor | None, share: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The batch with ones for what is None."""
    rows = torch.ones_like(y) if present is None else present
    return x, y, rows, x.new_ones(len(x)) if share is None else share


def _one_by_one(gradients: Gradients, size: int, *batch: Tensor) -> Tensor:
    """The sum of one block of `size` after the other, CHUNK of them at a time."""
    split = zip(*(torch.split(t, size) for t in blocks.filled(size, *batch)), strict=True)
    totals: list[Tensor] = []
    for number, block in enumerate(split):
        part = _sum_of(gradients(*block))
        if number % CHUNK == 0:
            totals.append(part)
        else:
            totals[-1] += part
    return _total(totals)


def _sum_of(kept: Kept) -> Tensor:
    """Everybody's gradients added up, flat float64."""
    return torch.cat([part for layer in kept for part in _layer_sums(*layer)])


@functools.lru_cache(maxsize=64)
def _size_for(shapes: Shapes, row: tuple[int, ...], dtype: torch.dtype) -> int:
    """How many people to compute together, tried with random weights of these shapes."""
    generator = torch.Generator().manual_seed(1)
    drawn = functools.partial(torch.randn, generator=generator, dtype=dtype)
    layers = [(drawn(shape), drawn(shape[0]) if has_bias else None) for shape, has_bias in shapes]
    return blocks.size_for(functools.partial(_all_of, _book_keeping(layers, 1.0)), row, dtype)


def _all_of(gradients: Gradients, x: Tensor) -> list[Tensor]:
    """Everything that `gradients` says about x, for outcomes of 0."""
    batch = _whole(x, x.new_zeros(x.shape[:-1]), None, None)
    return [t for a, g, _ in gradients(*batch) for t in (a, g)]


def _linear_layers(module: nn.Module) -> list[str] | None:
    """Names of the linear layers of a `Stack` of Linear, ReLU, ..., Linear(., 1); None for another module."""
    if not isinstance(module, Stack):
        return None
    layers = list(module.layers)
    by_turns = [nn.Linear if i % 2 == 0 else nn.ReLU for i in range(len(layers))]
    twice = len(set(layers[::2])) < len(layers[::2])  # a layer used twice has gradients that add up
    if [type(layer) for layer in layers] != by_turns or len(layers) % 2 == 0 or twice:
        return None
    return [f"layers.{i}" for i in range(0, len(layers), 2)]


def _book_keeping(layers: Sequence[tuple[Tensor, Tensor | None]], max_grad_norm: float) -> Gradients:
    """Book-keeping: one forward pass that keeps each layer's input, one backward to each layer's output.

    Matrix products go by `blocks.SIZE` people; give it whole blocks, or one person. Widths are filled up with zeros to
    whole lines of memory, because kernels treat rows that are not aligned by turns; what leaves is cut again.
    """
    widths = [weight.shape[1] for weight, _ in layers]

    def gradients(x: Tensor, y: Tensor, weight: Tensor, share: Tensor) -> Kept:
        wide = [_widened(layer, last=layer is layers[-1]) for layer in layers]
        inputs = [pad(x, (0, -widths[0] % ALIGNED))]
        for matrix, bias in wide[:-1]:
            inputs.append(blocks.by_blocks(linear, inputs[-1], matrix, bias).relu_())
        logits = blocks.by_blocks(linear, inputs[-1], *wide[-1])
        error = torch.sigmoid(logits).sub_(y.unsqueeze(-1))  # d loss / d logit
        outputs = [error.mul_(weight.unsqueeze(-1))]
        for (matrix, _), a in zip(wide[:0:-1], inputs[:0:-1], strict=True):
            outputs.append(blocks.by_blocks(torch.matmul, outputs[-1], matrix).mul_(a > 0))
        kept = [
            (a[..., :width], g[..., : len(matrix)], bias is not None)
            for a, g, width, (matrix, bias) in zip(inputs, outputs[::-1], widths, layers, strict=True)
        ]
        if max_grad_norm == math.inf:
            return _scaled(kept, share)
        slack = ROW_SLACK if x.dtype is torch.float64 else ROUNDING
        parts = _split_kept(kept) if x.ndim == 3 else [kept]  # norms of several rows are matrix products too
        squared = torch.cat([_squared_norms(part, slack) for part in parts])
        finite = torch.isfinite(squared)
        if not finite.all():  # 0 x inf is not 0, so both go
            there = finite.view(-1, 1) if x.ndim == 2 else finite.view(-1, 1, 1)
            kept = [(a.where(there, 0.0), g.where(there, 0.0), has_bias) for a, g, has_bias in kept]
            squared = squared.where(finite, 0.0)
        factor = _clip_factors(squared, max_grad_norm).mul_(share)
        return _scaled(kept, factor.to(x.dtype))

    return gradients


def _scaled(kept: Kept, factor: Tensor) -> Kept:
    """Each person's gradient times `factor` (B,); overwrites `kept`."""
    for _, g, _ in kept:
        g.mul_(factor.view(-1, *[1] * (g.ndim - 1)))
    return kept


def _widened(layer: tuple[Tensor, Tensor | None], *, last: bool) -> tuple[Tensor, Tensor | None]:
    """A layer with columns, and rows unless it is the `last`, of zeros up to a multiple of ALIGNED."""
    weight, bias = layer
    rows = 0 if last else -len(weight) % ALIGNED
    columns = -weight.shape[1] % ALIGNED
    return pad(weight, (0, columns, 0, rows)), None if bias is None else pad(bias, (0, rows))


def _split_kept(kept: Kept) -> list[Kept]:
    """By `blocks.SIZE` people."""
    split = [
        [
            (a_, g_, has_bias)
            for a_, g_ in zip(torch.split(a, blocks.SIZE), torch.split(g, blocks.SIZE), strict=True)
        ]
        for a, g, has_bias in kept
    ]
    return [list(block) for block in zip(*split, strict=True)]


def _squared_norms(kept: Kept, row_slack: float) -> Tensor:
    """The squared norm of each person's gradient, (B,). A bias is an input of 1.

    In float64, where squares of float32 neither vanish nor overflow: a norm of 0 is not clipped. (Of float64 they may
    vanish, where |a| |g| is far below the least C of a plan.) With several rows it is
    |sum_r g_r a_r^T|^2 = sum_rs (a_r . a_s)(g_r . g_s), whose rows may cancel, and each row's gradient was
    rounded, so the norm is raised by `row_slack` x their sizes.
    """
    if kept[0][0].ndim == 2:
        norm = functools.partial(vector_norm, dim=1, dtype=torch.float64)
        return _total(norm(a).square_().add_(has_bias).mul_(norm(g).square_()) for a, g, has_bias in kept)
    wide = [(a.double(), g.double(), has_bias) for a, g, has_bias in kept]
    gram = _total((a @ a.mT + has_bias) * (g @ g.mT) for a, g, has_bias in wide)  # (B, k, k)
    rows = gram.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt().sum(1)
    return (gram.sum((1, 2)).clamp(min=0).sqrt() + row_slack * rows).square()


def _total(tensors: Iterable[Tensor]) -> Tensor:
    """Their sum; there is at least one."""
    first, *others = tensors
    return sum(others, start=first)


def _clip_factors(squared_norms: Tensor, max_grad_norm: float) -> Tensor:
    """min(1, C / norm), (B,), a hair inside. A norm of 0 gives 1. Overwrites `squared_norms`."""
    return squared_norms.rsqrt_().mul_(max_grad_norm * (1 - ROUNDING)).clamp_(max=1.0)


def _layer_sums(a: Tensor, g: Tensor, has_bias: bool) -> list[Tensor]:
    """sum over people and rows of g a^T, and of g for the bias, flat float64."""
    a, g = a.flatten(0, -2).double(), g.flatten(0, -2).double()
    if len(a) > CHUNK:
        pairs = zip(torch.split(a, CHUNK), torch.split(g, CHUNK), strict=True)
        chunks = [_layer_sums(*both, has_bias) for both in pairs]
        return [_total(parts) for parts in zip(*chunks, strict=True)]
    return [(g.t() @ a).flatten(), g.sum(0)] if has_bias else [(g.t() @ a).flatten()]


def _hooks(module: nn.Module, weights: Tensor, max_grad_norm: float) -> ClippedSum:
    """Opacus' hooks: each person's gradient written out, (B, ...) for each parameter. Any architecture.

    Works on a copy of the module whose parameters are views of `weights`.
    """
    twin = copy.deepcopy(module).to(weights.dtype).train()
    for name, view in _unflatten(twin, weights).items():
        twin.get_parameter(name).data = view
    gradients = _hooked_gradients(twin, max_grad_norm)
    sizes: dict[tuple[int, ...], int] = {}

    def size_for(row: tuple[int, ...]) -> int:
        if row not in sizes:
            trial = _hooked_gradients(blocks.stirred(module, weights.dtype).train(), 1.0)

            def all_of(x: Tensor) -> list[Tensor]:
                found = [_all_of(trial, block) for block in torch.split(x, blocks.SIZE)]
                return [torch.cat(each) for each in zip(*found, strict=True)]

            sizes[row] = blocks.size_for(all_of, row, weights.dtype)
        return sizes[row]

    def clipped_sum(x: Tensor, y: Tensor, present: Tensor | None, share: Tensor | None) -> Tensor:
        return _one_by_one(gradients, size_for(tuple(x.shape[1:])), *_whole(x, y, present, share))

    return clipped_sum


def _hooked_gradients(twin: nn.Module, max_grad_norm: float) -> Gradients:
    """Whole gradients in the form of `Kept`: one "layer" of input 1, whose output's gradient is the person's."""
    hooked = GradSampleModule(twin, loss_reduction="sum")  # strict: refuses BatchNorm, which mixes people
    parameters: list[Any] = list(twin.parameters())  # Any: Opacus adds grad_sample to them

    def gradients(x: Tensor, y: Tensor, weight: Tensor, share: Tensor) -> Kept:
        x = x.detach().requires_grad_()  # PyTorch warns of a backward hook whose input needs no gradient
        losses = logistic_loss(hooked(x), y, reduction="none")
        torch.autograd.backward((losses * weight).sum())
        g = torch.cat([p.grad_sample.flatten(1) for p in parameters], dim=1)
        hooked.zero_grad()  # drops grad_sample too
        if max_grad_norm < math.inf:
            squared = vector_norm(g, dim=1, dtype=torch.float64).square_()
            finite = torch.isfinite(squared)
            g = g.where(finite.view(-1, 1), 0.0)
            share = _clip_factors(squared.where(finite, 0.0), max_grad_norm).mul_(share)
        return _scaled([(g.new_ones(len(g), 1), g, False)], share.to(g.dtype))

    return gradients


# --- shapes -------------------------------------------------------------------------------------------


def _resident(x: Values, y: Values, present: Values | None, share: Values | None) -> Batch:
    """Everything as float32 tensors whose shapes fit; ValueError says which rule was broken."""
    features, target = _tensor(x), _tensor(y)
    rows = None if present is None else _tensor(present)
    if features.ndim not in (2, 3):
        raise ValueError(f"x must have 2 axes (n, d) or 3 axes (n, k, d), got {features.ndim}")
    if target.shape != features.shape[:-1]:
        raise ValueError(
            "y must be (n,) where x is (n, d) and (n, k) where x is (n, k, d), of the same n and k"
        )
    if (rows is None) != (features.ndim == 2) or (rows is not None and rows.shape != target.shape):
        raise ValueError("present must be None where x is (n, d) and (n, k) where x is (n, k, d)")
    counts = None if share is None else _tensor(share)
    if counts is not None and not (
        counts.shape == target.shape[:1] and ((counts >= 0) & (counts <= 1)).all()
    ):
        raise ValueError("share must be (n,), each in [0, 1]")
    return features, target, rows, counts


def _tensor(values: Values) -> Tensor:
    """As float32, without a copy where the values already are."""
    if isinstance(values, Tensor):
        return values.detach().to(torch.float32)
    return torch.from_numpy(np.require(values, np.float32, ["C", "W"]))


def _check_logits(module: nn.Module, x: Tensor) -> None:
    """Refuse logits like (n, 1): against y of shape (n,) they would broadcast to (n, n), unclipped."""
    probe = torch.zeros(2, *x.shape[1:])
    with torch.no_grad():
        logits = module(probe)
    if logits.shape != probe.shape[:-1]:
        raise ValueError(
            f"the model must return one logit per row: for x of shape {tuple(probe.shape)} the shape "
            f"{tuple(probe.shape[:-1])}, got {tuple(logits.shape)}"
        )


def _flatten(tensors: Mapping[str, Tensor]) -> Tensor:
    """All tensors as one vector, a copy."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors.values()])


def _unflatten(module: nn.Module, vector: Tensor) -> dict[str, Tensor]:
    """The module's parameters by name as views of `vector`."""
    named = dict(module.named_parameters())
    parts = torch.split(vector, [p.numel() for p in named.values()])
    return {name: part.view_as(p) for (name, p), part in zip(named.items(), parts, strict=True)}


def _flat_mask(module: nn.Module, free: Mapping[str, Tensor] | None) -> Tensor | None:
    """The 0/1 masks of all parameters as one vector; a parameter without a mask is free."""
    if not free:
        return None
    named = dict(module.named_parameters())
    for name, mask in free.items():
        if name not in named or mask.shape != named[name].shape or not ((mask == 0) | (mask == 1)).all():
            raise ValueError(f"free[{name!r}] must be 0s and 1s in the shape of a parameter of the model")
    return _flatten({name: free.get(name, torch.ones_like(p)).to(p.dtype) for name, p in named.items()})


def _finish(module: nn.Module, start: Tensor, weights: Tensor) -> dict[str, np.ndarray]:
    """Leave the module at `weights` and return the change."""
    if not torch.isfinite(weights).all():
        raise ValueError("training diverged, the weights are no longer finite: lower local.learning_rate")
    with torch.no_grad():
        for p, value in zip(module.parameters(), _unflatten(module, weights).values(), strict=True):
            p.copy_(value)
    return {name: change.numpy() for name, change in _unflatten(module, weights - start).items()}
