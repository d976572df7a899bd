"""Risk models: one module, one logit for each row of features.

A new architecture is a name in `models.spec`, one function in `ARCHITECTURES` and one file `conf/model/NAME.yaml`.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from models.spec import ModelSpec

Layer = Callable[[int, int], nn.Linear]  # (fan_in, fan_out) -> a layer with its first weights


@final
class Stack(nn.Module):
    """Layers one after another, the last of width 1: (..., d) -> (...). Never (..., 1).

    A stack of Linear and ReLU alone is what `clients.train` differentiates in closed form.
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits.squeeze(-1)


@final
class Block(nn.Module):
    """h + W relu(norm(h)): a pre-activation residual block (He et al., arXiv:1603.05027)."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(layer.in_features)
        self.layer = layer

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = h + self.layer(torch.relu(self.norm(h)))
        return out


def _logistic(spec: ModelSpec, n_features: int, layer: Layer) -> nn.Module:
    """Logistic regression. Starts at zero: its loss is convex, so the seed is of no use."""
    head = layer(n_features, 1)
    nn.init.zeros_(head.weight)
    return Stack(head)


def _mlp(spec: ModelSpec, n_features: int, layer: Layer) -> nn.Module:
    """Linear and ReLU by turns."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise((n_features, *spec.hidden)):
        layers += [layer(fan_in, fan_out), nn.ReLU()]
    return Stack(*layers, layer(spec.hidden[-1], 1))


def _residual(spec: ModelSpec, n_features: int, layer: Layer) -> nn.Module:
    """Blocks of one width between two linear maps. LayerNorm works within a row: it mixes no people."""
    width = spec.hidden[0]
    blocks = [Block(layer(width, width)) for _ in spec.hidden]
    return Stack(layer(n_features, width), *blocks, nn.LayerNorm(width), layer(width, 1))


ARCHITECTURES: dict[str, Callable[[ModelSpec, int, Layer], nn.Module]] = {
    "logistic": _logistic,
    "mlp": _mlp,
    "residual": _residual,
}


def build(spec: ModelSpec, n_features: int, seed: int = 0) -> nn.Module:
    """The model with its first weights: logits of shape x.shape[:-1] for x of shape (..., n_features).

    Linear weights are uniform in ±1/sqrt(fan_in), biases zero. They are drawn from `seed` alone:
    PyTorch's global generator is neither read nor moved. ValueError if `n_features` < 1.
    """
    if n_features < 1:
        raise ValueError(f"a model needs at least one feature, got {n_features}")
    generator = torch.Generator().manual_seed(seed)

    def layer(fan_in: int, fan_out: int) -> nn.Linear:
        linear = nn.Linear(fan_in, fan_out, device="meta")  # draws nothing
        weight = torch.empty(fan_out, fan_in).uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
        linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(torch.zeros(fan_out))
        return linear

    return ARCHITECTURES[spec.name](spec, n_features, layer)


def count_parameters(spec: ModelSpec, n_features: int) -> int:
    """How many numbers the model has."""
    return sum(parameter.numel() for parameter in build(spec, n_features).parameters())


def input_weight(module: nn.Module) -> str:
    """The name of the parameter whose last axis is the feature axis: the first Linear's weight."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            return f"{name}.weight" if name else "weight"
    raise ValueError(f"{type(module).__name__} has no Linear layer that could read the features")


def weights_of(module: nn.Module) -> dict[str, np.ndarray]:
    """Parameter name -> a copy as float32, in the module's order."""
    return {name: p.detach().numpy().astype(np.float32) for name, p in module.named_parameters()}


def load_weights(module: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Set every parameter; names and shapes must agree exactly, else ValueError and nothing changes."""
    parameters = dict(module.named_parameters())
    for name in sorted(parameters.keys() ^ weights.keys()):
        known = "is missing from the weights" if name in parameters else "is not in the model"
        raise ValueError(f"parameter {name!r} {known}")
    for name, parameter in parameters.items():
        if np.shape(weights[name]) != tuple(parameter.shape):
            raise ValueError(
                f"parameter {name!r} must have shape {tuple(parameter.shape)}, got {np.shape(weights[name])}"
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.tensor(np.asarray(weights[name]), dtype=parameter.dtype))
