"""The models: shapes, first weights, and the specification that is refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pydantic import BaseModel, ValidationError
from torch import nn

from models.risk import ARCHITECTURES, build, input_weight, load_weights, weights_of
from models.spec import ModelSpec

SPECS = {
    "logistic": ModelSpec("logistic"),
    "mlp": ModelSpec("mlp", (5, 4)),
    "residual": ModelSpec("residual", (6, 6)),
}
CONF = Path(__file__).parents[1] / "conf" / "model"
every_model = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def test_every_architecture_is_tried_here():
    assert SPECS.keys() == ARCHITECTURES.keys()


@every_model
@pytest.mark.parametrize("shape", [(7, 3), (1, 3), (0, 3), (7, 2, 3)])
def test_one_logit_for_each_row(spec, shape):
    assert build(spec, 3)(torch.zeros(shape)).shape == shape[:-1]


@every_model
def test_rows_do_not_touch_each_other(spec):
    module, x = build(spec, 3), torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(module(x)[4], module(x[4]))


@every_model
def test_first_weights_follow_from_the_seed_alone(spec):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = weights_of(build(spec, 3, seed=5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = weights_of(build(spec, 3, seed=5)), weights_of(build(spec, 3, seed=6))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert spec.name == "logistic" or any((first[name] != other[name]).any() for name in first)
    assert all(np.isfinite(value).all() and value.dtype == np.float32 for value in first.values())


def test_linear_weights_fill_their_range_and_biases_are_zero():
    weights = weights_of(build(ModelSpec("mlp", (400,)), 100))
    assert 0.0999 < np.abs(weights["layers.0.weight"]).max() <= 0.1
    assert weights["layers.0.weight"].std() == pytest.approx(0.1 / 3**0.5, rel=0.01)
    assert not weights["layers.0.bias"].any()


def test_logistic_starts_at_even_odds():
    assert torch.equal(build(SPECS["logistic"], 3)(torch.ones(2, 3)), torch.zeros(2))


@every_model
def test_the_input_weight_has_the_features_on_its_last_axis(spec):
    module = build(spec, 3)
    weight = dict(module.named_parameters())[input_weight(module)]
    assert weight.shape[-1] == 3
    x = torch.rand(4, 3)
    with torch.no_grad():
        weight[..., 1] = 0.0  # what a column weighs is all that reads it
    torch.testing.assert_close(module(x), module(x * torch.tensor([1.0, 9.0, 1.0])))


def test_no_input_weight_without_a_linear_layer():
    assert input_weight(nn.Linear(2, 1)) == "weight"
    with pytest.raises(ValueError, match="no Linear layer"):
        input_weight(nn.LayerNorm(2))


@every_model
def test_weights_round_trip_as_copies(spec):
    module, other = build(spec, 3, seed=1), build(spec, 3, seed=2)
    weights = weights_of(module)
    load_weights(other, weights)
    x = torch.rand(5, 3)
    torch.testing.assert_close(other(x), module(x), rtol=0, atol=0)
    for value in weights.values():
        value += 1
    torch.testing.assert_close(other(x), module(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"layers.0.weight": np.zeros((1, 4))}, r"'layers.0.weight' must have shape \(1, 3\), got \(1, 4\)"),
        ({"more": np.zeros(1)}, "'more' is not in the model"),
        ({"layers.0.bias": None}, "'layers.0.bias' is missing from the weights"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(change, sentence):
    module = build(SPECS["logistic"], 3)
    wrong = {"layers.0.weight": np.ones((1, 3)), "layers.0.bias": np.ones(1)} | change
    with pytest.raises(ValueError, match=sentence):
        load_weights(module, {name: value for name, value in wrong.items() if value is not None})
    assert not any(value.any() for value in weights_of(module).values())


@pytest.mark.parametrize(
    ("name", "hidden", "sentence"),
    [
        ("forest", (), "name must be one of logistic, mlp, residual, got 'forest'"),
        ("logistic", (4,), "hidden must be empty for logistic"),
        ("mlp", (), "hidden must list at least one width for mlp"),
        ("residual", (), "at least one width"),
        ("residual", (4, 5), "hidden must repeat one width for residual"),
        ("mlp", (0,), "whole numbers from 1 to 4096"),
        ("mlp", (10**9,), "whole numbers from 1 to 4096"),
        ("mlp", (2.5,), "whole numbers"),
        ("mlp", (4,) * 9, "at most 8"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(name, hidden, sentence):
    with pytest.raises(ValueError, match=sentence):
        ModelSpec(name, hidden)


def test_a_model_reads_at_least_one_feature():
    with pytest.raises(ValueError, match="at least one feature, got 0"):
        build(SPECS["logistic"], 0)


class Plan(BaseModel):
    model: ModelSpec


def test_a_spec_survives_a_plan_and_a_misspelt_key_does_not():
    plan = Plan(model=SPECS["mlp"])
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    with pytest.raises(ValidationError, match="hiden"):
        Plan(model={"name": "mlp", "hiden": [4]})
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.model.name = "logistic"


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_yaml_is_a_model(path):
    spec = Plan(model=yaml.safe_load(path.read_text())).model
    assert spec.name == path.stem
    assert build(spec, 3)(torch.zeros(2, 3)).shape == (2,)


def test_every_architecture_has_a_yaml():
    assert {path.stem for path in CONF.glob("*.yaml")} >= ARCHITECTURES.keys()
