"""The rotation: against the matrix in float64, and a rotated layer against the layer it came from."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from torch import nn

from onebit.errors import ConfigError
from onebit.nn import BitLinear, Schedule, replace_linear_with_bitlinear
from onebit.nn.compressed_model import dequantized_state_dict
from onebit.nn.hadamard import (
    HadamardRotation,
    block_size_for,
    hadamard_factors,
    hadamard_transform,
    rotation_signs,
)
from onebit.quant import dequantize, fake_quantize_activations

X = torch.randn(3, 5, 96, generator=torch.Generator().manual_seed(0))


def walsh_hadamard(size: int) -> np.ndarray:
    """The entry of row i and column j is -1 to the number of bits that i and j share, over sqrt(size)."""
    return np.array([[(-1.0) ** (i & j).bit_count() for j in range(size)] for i in range(size)]) / np.sqrt(size)


@pytest.mark.parametrize("block_size", [2, 8, 32])
def test_the_transform_is_the_matrix(block_size: int) -> None:
    blocks = X.double().numpy().reshape(3, 5, -1, block_size)
    expected = (blocks @ walsh_hadamard(block_size).T).reshape(3, 5, 96)
    np.testing.assert_allclose(hadamard_transform(X, *hadamard_factors(block_size)), expected, atol=1e-6)


def test_the_rotation_keeps_products_and_can_be_undone() -> None:
    rotation = HadamardRotation(96, 32)
    w = torch.randn(7, 96, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(rotation(X) @ rotation(w).t(), X @ w.t(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rotation.inverse(rotation(X)), X, rtol=1e-5, atol=1e-6)
    assert rotation(X.bfloat16()).dtype == torch.float32
    full = rotation(X)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rotation(X), full)
    assert torch.equal(HadamardRotation(96, 32).bfloat16()(X), rotation(X))


def test_the_signs_are_splitmix64() -> None:
    def sign(index: int, seed: int) -> float:
        mask = 2**64 - 1
        z = (index + 1 + seed) * 0x9E3779B97F4A7C15 & mask
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        return -1.0 if (z ^ z >> 31) >> 63 else 1.0

    for seed in (0, 7):
        assert rotation_signs(300, seed).tolist() == [sign(index, seed) for index in range(300)]
    assert torch.equal(rotation_signs(300)[:100], rotation_signs(100))
    assert abs(rotation_signs(4096).mean()) < 0.05


def test_outliers_are_spread() -> None:
    w = torch.randn(64, 128, generator=torch.Generator().manual_seed(2))
    w[:, ::17] *= 8

    def error(weight: torch.Tensor) -> float:
        layer = BitLinear(128, 64)
        layer.weight.data.copy_(weight)
        return float((dequantize(layer.quantized()) - weight).square().sum() / weight.square().sum())

    assert error(HadamardRotation(128, 128)(w)) < 0.6 * error(w)


def rotated(block: int = 32, **arguments: object) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(96, 40), nn.ReLU(), nn.Linear(40, 12))
    model = replace_linear_with_bitlinear(copy.deepcopy(plain), hadamard_block=block, **arguments)
    return model, plain


def test_a_rotated_layer_quantises_what_is_rotated() -> None:
    model, plain = rotated()
    assert model.conversion_report.rotated == {"0": 32, "2": 8}  # 8 is the largest power of two in 40
    layer = model[0]
    torch.testing.assert_close(layer.weight, layer.rotation(plain[0].weight))
    q_x = fake_quantize_activations(layer.rotation(X), "int8").double()
    expected = q_x @ dequantize(layer.quantized()).double().t() + layer.bias.double()
    torch.testing.assert_close(layer(X).double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(layer(X, layer.activation_codes(X)), layer(X))


def test_nothing_changes_before_anything_is_quantised() -> None:
    with pytest.raises(ConfigError, match="Sequential cannot carry a schedule"):
        rotated(schedule=Schedule(uses_lambda=True))
    model, plain = rotated()
    schedule = Schedule(uses_lambda=True)
    schedule.set(lambda_=0.0)
    for layer in (model[0], model[2]):
        layer.__dict__["schedule"] = schedule
    x = X.clone().requires_grad_()
    y = X.clone().requires_grad_()
    torch.testing.assert_close(model(x), plain(y), rtol=1e-5, atol=1e-6)
    model(x).square().sum().backward()
    plain(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model[0].rotation.inverse(model[0].weight.grad), plain[0].weight.grad, atol=1e-4, rtol=0)


def test_the_hard_gradient_is_turned_back() -> None:
    model, _ = rotated(activation_quantizer="none")
    layer, x = model[0], X.clone().requires_grad_()
    layer(x).square().sum().backward()
    upstream = 2 * layer(X).detach()
    expected = layer.rotation.inverse(upstream @ dequantize(layer.quantized()))
    torch.testing.assert_close(x.grad, expected, rtol=1e-4, atol=1e-4)


def test_copies_states_checkpoints_and_one_graph() -> None:
    model, plain = rotated()
    assert set(model.state_dict()) == set(plain.state_dict())  # the signs are not saved
    clone = copy.deepcopy(model)
    assert torch.equal(clone(X), model(X))
    layer = BitLinear(96, 40)
    layer.load_quantized_state(model[0].get_quantized_state())
    assert torch.equal(layer(X), model[0](X))
    counter = torch._dynamo.testing.CompileCounter()
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend=counter)(X), model(X))
    with torch.device("meta"):
        empty = HadamardRotation(96, 32)
    ready = empty.to_empty(device="cpu")
    ready.reset_parameters()
    assert torch.equal(ready(X), model[0].rotation(X))


def test_a_float_hand_over_is_turned_back() -> None:
    model, plain = rotated(activation_quantizer="none")
    plain.load_state_dict(dequantized_state_dict(model, torch.float32))
    torch.testing.assert_close(plain(X), model(X), rtol=1e-4, atol=1e-5)


def test_tied_weights_are_turned_once() -> None:
    plain = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False))
    plain[1].weight = plain[0].weight
    before = plain[0].weight.detach().clone()
    model = replace_linear_with_bitlinear(plain, hadamard_block=16)
    torch.testing.assert_close(model[1].rotation.inverse(model[1].weight), before)


def test_odd_widths_and_wrong_blocks() -> None:
    model = replace_linear_with_bitlinear(nn.Sequential(nn.Linear(15, 4), nn.Linear(4, 4)), hadamard_block=128)
    assert model.conversion_report.rotated == {"1": 4}
    assert (block_size_for(96, 1024), block_size_for(96, 16), block_size_for(15, 16)) == (32, 16, 1)
    with pytest.raises(ConfigError, match="hadamard_block is 100, expected a power of two"):
        replace_linear_with_bitlinear(nn.Sequential(nn.Linear(4, 4)), hadamard_block=100)
    with pytest.raises(ConfigError, match="blocks of 64 do not divide 96"):
        HadamardRotation(96, 64)
