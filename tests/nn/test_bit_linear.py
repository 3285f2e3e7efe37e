"""BitLinear: values against float64, gradients against hand-written ones, and life under torch's machinery."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from onebit.errors import ConfigError, OnebitError
from onebit.nn import BitLinear, Schedule, bit_layers, clamp_latents
from onebit.quant import WeightQuantizer, dequantize, fake_quantize_activations, quantize_activations

SPECS: list[dict[str, Any]] = [
    {"quantizer": "absmean"},
    {"quantizer": "threshold", "granularity": "per_row"},
    {"quantizer": "absmean", "granularity": "per_group", "group_size": 64},
    {"quantizer": "binary"},
    {"quantizer": "int8"},
    {"quantizer": "int4"},
    {"quantizer": "float16"},
    {"weight_sparsity_threshold": 0.4},
]


def layer(seed: int = 0, **arguments: Any) -> BitLinear:
    torch.manual_seed(seed)
    return BitLinear(100, 24, **arguments)


def inputs(seed: int = 1, *shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (3, 5, 100)), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("activation", ["int8", "sign", "none"])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_forward_and_gradients(spec: dict[str, Any], activation: str) -> None:
    m = layer(activation_quantizer=activation, ste_scale_factor=2.0, **spec)
    x = inputs().requires_grad_()
    y = m(x)
    q_w = dequantize(m.quantized()).double()
    q_x = fake_quantize_activations(x, activation).double()  # type: ignore[arg-type]
    expected = q_x @ q_w.t() + m.bias.double()
    # products of float32 values, 100 of them: 1e-6 of the largest output
    assert (y - expected).abs().max() <= 1e-6 * expected.abs().max()

    upstream = inputs(2, 3, 5, 24)
    y.backward(upstream)
    grad = upstream.double()
    np.testing.assert_allclose(x.grad, grad @ q_w, atol=1e-5)
    expected_w = 2.0 * grad.flatten(0, 1).t() @ q_x.flatten(0, 1)  # the factor is for the latent weight alone
    np.testing.assert_allclose(m.weight.grad, expected_w, atol=2e-5)
    np.testing.assert_allclose(m.bias.grad, grad.sum((0, 1)), atol=1e-5)


def test_sums_are_exact() -> None:
    """Integer sums, scaled once: the contract with the C engine, bit for bit."""
    m = layer(bias=False)
    x = inputs()
    codes, scale = quantize_activations(x, "int8")
    quantized = m.quantized()
    sums = codes.long().flatten(0, 1) @ quantized.codes_OI.long().t()
    expected = sums.float() * (quantized.scale * scale.flatten(0, 1))
    assert torch.equal(m(x).flatten(0, 1), expected)


def test_float_layer_is_a_linear() -> None:
    m = layer(quantizer=None, activation_quantizer="none")
    assert torch.equal(m(inputs()), torch.nn.functional.linear(inputs(), m.weight, m.bias))
    with pytest.raises(OnebitError, match="no weight quantiser"):
        m.quantized()


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("shape", [(100,), (1, 100), (2, 3, 100), (2, 1, 3, 100)])
def test_shapes(spec: dict[str, Any], shape: tuple[int, ...]) -> None:
    m = layer(**spec)
    x = inputs(3, *shape).requires_grad_()
    y = m(x)
    assert y.shape == (*shape[:-1], 24)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert m(x, m.activation_codes(x)).equal(y)


def test_frozen_weight_or_input() -> None:
    m = layer()
    m.weight.requires_grad_(False)
    x = inputs().requires_grad_()
    m(x).sum().backward()
    assert m.weight.grad is None
    assert x.grad is not None
    m.weight.requires_grad_(True)
    m(inputs()).sum().backward()
    assert m.weight.grad is not None


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_autocast_bfloat16(spec: dict[str, Any]) -> None:
    m = layer(**spec)
    x = inputs().requires_grad_()
    full = m(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = m(x)
        again = m(x.bfloat16())
    assert y.dtype == again.dtype == torch.bfloat16
    # codes are exact in bfloat16, so only the result is rounded (2^-8) for tensor and row scales; group scales,
    # int8 and float16 weights lose bits of their own
    assert (y.float() - full).abs().max() <= 0.012 * full.abs().max()
    y.float().sum().backward()
    assert m.weight.grad.dtype == torch.float32
    assert x.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_parameters(dtype: torch.dtype) -> None:
    m = layer().to(dtype)
    x = inputs().to(dtype).requires_grad_()
    y = m(x)
    assert y.dtype == dtype
    y.sum().backward()
    assert m.weight.grad.dtype == x.grad.dtype == dtype


def test_float16_sums_beyond_its_range() -> None:
    m = BitLinear(2048, 2, bias=False)
    torch.nn.init.ones_(m.weight)
    y = m.half()(torch.ones(1, 2048).half())  # the sum of codes is 127 * 2048 = 260096
    np.testing.assert_allclose(y.detach().float(), 2048.0, rtol=2e-3)


@pytest.mark.parametrize("schedule", [None, "soft"])
def test_checkpointing_gives_the_same_gradients(schedule: str | None) -> None:
    m = layer(schedule=soft_schedule() if schedule else None)
    gradients = []
    for wrapped in (False, True):
        x = inputs().requires_grad_()
        y = checkpoint(m, x, use_reentrant=False) if wrapped else m(x)
        y.square().sum().backward()
        gradients.append((x.grad, m.weight.grad))
        m.weight.grad = None
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def soft_schedule() -> Schedule:
    schedule = Schedule(uses_lambda=True, uses_soft_codes=True, uses_arenas=True)
    schedule.set(lambda_=0.3, soft_alpha=2.0, arenas=0.1)
    return schedule


def test_state_dict_deepcopy_and_meta() -> None:
    m = layer(schedule=soft_schedule())
    assert set(m.state_dict()) == {"weight", "bias"}
    clone = copy.deepcopy(m)
    assert torch.equal(clone.eval()(inputs()), m.eval()(inputs()))
    fresh = layer(seed=9)
    fresh.load_state_dict(m.state_dict())
    assert torch.equal(fresh(inputs()), m(inputs()))

    with torch.device("meta"):
        empty = BitLinear(100, 24)
    assert empty(inputs().to("meta")).shape == (3, 5, 24)
    ready = empty.to_empty(device="cpu")
    ready.reset_parameters()
    assert torch.isfinite(ready(inputs())).all()


def test_is_a_linear_and_says_what_it_is() -> None:
    m = layer(weight_sparsity_threshold=0.1)
    assert isinstance(m, torch.nn.Linear)
    assert m.weight_quantizer == WeightQuantizer("sparsity", sparsity=0.1)
    assert "sparsity per_tensor, sparsity=0.1, activations=int8" in repr(m)
    assert "absmean per_group 64" in repr(layer(granularity="per_group", group_size=64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantizer": "ternary"}, "quantizer is 'ternary'"),
        ({"activation_quantizer": "int4"}, "activation_quantizer is 'int4', expected one of int8, sign, none"),
        ({"ste_scale_factor": 0.0}, "ste_scale_factor is 0.0"),
        ({"granularity": "per_group", "group_size": 96}, "group_size is 96"),
        ({"quantizer": "binary", "weight_sparsity_threshold": 0.1}, "drop one of them"),
        ({"weight_sparsity_threshold": 1.5}, "expected a share"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        layer(**arguments)
    with pytest.raises(ConfigError, match="in_features is 0"):
        BitLinear(0, 3)


def test_quantized_refuses_a_diverged_weight() -> None:
    m = layer()
    with torch.no_grad():
        m.weight[0, 0] = float("nan")
    with pytest.raises(OnebitError, match="NaN"):
        m.quantized()


def test_clamp_latents_touches_only_low_bit_weights() -> None:
    model = torch.nn.Sequential(layer(), layer(quantizer="int8"), layer(quantizer=None, activation_quantizer="none"))
    for module in model:
        torch.nn.init.constant_(module.weight, 2.0)
    clamp_latents(model, 1.5)
    assert [module.weight.max().item() for module in model] == [1.5, 2.0, 2.0]
    assert [name for name, _ in bit_layers(model)] == ["0"]
    with pytest.raises(ConfigError, match="latent_clamp_max is -1"):
        clamp_latents(model, -1)
