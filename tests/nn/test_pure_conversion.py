"""Conversion to pure training: from float, from latents, from codes; what is kept and why, and what is shared."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from onebit.errors import ConfigError, OnebitError
from onebit.nn import BitLinear, replace_linear_with_bitlinear
from onebit.nn.pure_conversion import replace_linear_with_pure1bit_linear
from onebit.nn.pure_linear import Pure1BitLinear
from onebit.quant import WeightQuantizer, dequantize, quantize

from .pure_models import IDS, Small, layers_of, pure_model, train
from .test_conversion import Conv1D


def small(**arguments: Any) -> Small:
    torch.manual_seed(0)
    return Small(**arguments)


FORMS: list[dict[str, Any]] = [
    {},
    {"quantizer": "binary", "granularity": "per_row"},
    {"quantizer": "threshold", "granularity": "per_group", "group_size": 64},
]


@pytest.mark.parametrize("arguments", FORMS, ids=str)
def test_codes_and_scales_are_the_quantisers_and_the_rest_is_in_the_counters(arguments: dict[str, Any]) -> None:
    before = small()
    model = replace_linear_with_pure1bit_linear(copy.deepcopy(before), **arguments)
    report = model.pure_conversion_report
    assert list(report.replaced) == ["up", "down", "again", "back"]
    assert set(report.replaced.values()) == {"latents"}
    assert report.kept == {"lm_head": "excluded by its name"}
    assert str(report).startswith("4 linear layers replaced (0 held codes), 1 kept\n  kept lm_head")
    spec = WeightQuantizer(**arguments)
    for name in report.replaced:
        weight, made = before.get_submodule(name).weight.detach(), model.get_submodule(name)
        expected = quantize(weight, spec)
        got = made.quantized()
        assert torch.equal(got.codes_OI, expected.codes_OI)
        torch.testing.assert_close(got.scale, expected.scale, rtol=2e-6 if got.scale.ndim < 2 else 1e-3, atol=0)
        assert made.weight.mean_magnitude.item() == pytest.approx(weight.abs().mean().item())
        # codes + counters give the latents back, to half a count, where they are not stopped at a bound
        steps = made.weight.counter.threshold * (1 if made.weight.is_binary else 2)
        codes = got.codes_OI.double() + made.weight.counts().double() / steps
        scales = dequantize(expected).double() / expected.codes_OI.double()
        units = torch.where(expected.codes_OI == 0, torch.nan, scales)
        centre = weight.mean(1, keepdim=True) if made.weight.is_binary else 0.0
        free = (made.weight.counts().abs() < made.weight.counter.threshold - 1) & ~units.isnan()
        assert free.float().mean() > 0.3
        error = ((codes * units) - (weight - centre).double()).abs() / units
        assert error[free].max() < 0.51 / steps


def test_a_model_before_and_after_computes_with_the_same_codes() -> None:
    hybrid = replace_linear_with_bitlinear(small())
    expected = hybrid(IDS[0])
    pure = replace_linear_with_pure1bit_linear(hybrid)
    assert pure is hybrid
    assert all(source == "latents" for source in pure.pure_conversion_report.replaced.values())
    torch.testing.assert_close(pure(IDS[0]), expected, rtol=1e-5, atol=1e-5)
    assert isinstance(pure.up, Pure1BitLinear)
    assert not any(isinstance(module, BitLinear) for module in pure.modules())


def test_a_bitlinear_keeps_its_own_quantiser_and_rotation() -> None:
    hybrid = replace_linear_with_bitlinear(
        small(), quantizer="binary", granularity="per_row", activation_quantizer="sign", hadamard_block=32
    )
    expected = hybrid.eval()(IDS[0])
    pure = replace_linear_with_pure1bit_linear(hybrid, counter="int4")
    assert pure.up.weight.spec == WeightQuantizer("binary", "per_row")
    assert pure.up.activation_quantizer == "sign"
    assert pure.up.rotation is not None
    torch.testing.assert_close(pure(IDS[0]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arguments", FORMS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_of_codes_times_scale_is_read_exactly(arguments: dict[str, Any], dtype: torch.dtype) -> None:
    model = small()
    quantized = {}
    for name in ("up", "down", "again", "back"):
        linear = model.get_submodule(name)
        quantized[name] = quantize(linear.weight.detach(), WeightQuantizer(**arguments))
        linear.weight.data = dequantize(quantized[name])
    replace_linear_with_pure1bit_linear(model.to(dtype), **arguments)
    for name, expected in quantized.items():
        made = model.get_submodule(name)
        assert model.pure_conversion_report.replaced[name] == "codes"
        assert torch.equal(made.quantized().codes_OI, expected.codes_OI)
        assert not made.weight.counts().any()
        torch.testing.assert_close(
            made.quantized().scale, expected.scale.to(dtype).to(expected.scale.dtype), rtol=1e-3, atol=0
        )


def test_a_conv1d_is_turned_round_and_everything_else_is_kept() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(24, 32), nn.ReLU(), nn.Linear(24, 8)).eval()
    conv, bias = model[0], model[0].bias
    seen: list[nn.Module] = []
    conv.register_forward_hook(lambda module, args, output: seen.append(module))
    weight = conv.weight.detach().clone()
    replace_linear_with_pure1bit_linear(model)
    assert model[0] is conv
    assert conv.bias is bias
    assert not conv.training
    assert (conv.in_features, conv.out_features) == (32, 24)
    assert torch.equal(conv.quantized().codes_OI, quantize(weight.t(), WeightQuantizer()).codes_OI)
    model(torch.randn(2, 32))
    assert seen == [conv]
    assert model.pure_conversion_report.transposed == ("0",)


def test_the_latents_are_gone() -> None:
    model = pure_model()
    names = {name for name, _ in model.named_parameters()}
    assert names == {
        "embed_tokens.weight", "norm.weight", "norm.bias", "lm_head.weight", "up.bias", "again.bias", "back.bias",
        *(f"{name}.weight.log_scale" for name in ("up", "down", "again", "back")),
    }  # fmt: skip
    assert all(p.numel() < 32 * 70 for name, p in model.named_parameters() if "weight" in name.split(".")[-2:-1])


def test_tied_layers_share_one_weight() -> None:
    model = pure_model(tied=True)
    assert model.pure_conversion_report.tied == {"again": "up"}
    assert model.again.weight is model.up.weight
    train(model, 3)
    assert torch.equal(model.again.quantized().codes_OI, model.up.quantized().codes_OI)
    assert int(model.up.weight.deposits) == 3  # both uses in one sum
    model.to(torch.bfloat16)
    assert model.again.weight is model.up.weight


def test_a_frozen_layer_keeps_its_codes() -> None:
    model = small()
    model.up.weight.requires_grad_(False)
    replace_linear_with_pure1bit_linear(model)
    codes = model.up.weight.codes.clone()
    optimizer = train(model, 3, eta=1.0)
    assert model.up.weight not in optimizer.weights
    assert torch.equal(model.up.weight.codes, codes)
    assert int(model.down.weight.deposits) == 3


def test_what_stays_says_why() -> None:
    model = replace_linear_with_bitlinear(small(), exclude_patterns=["lm_head", "again"])
    replace_linear_with_pure1bit_linear(model, exclude_patterns=["lm_head", "down", "again"])
    assert model.pure_conversion_report.kept == {
        "lm_head": "excluded by its name",
        "again": "excluded by its name",
        "down": "excluded by its name",
    }
    assert isinstance(model.down, BitLinear)
    twice = replace_linear_with_pure1bit_linear(pure_model(), exclude_patterns=["embed"])
    assert twice.pure_conversion_report.kept["up"] == "already a Pure1BitLinear"
    int8 = nn.Sequential(BitLinear(4, 4, quantizer="int8"), nn.Linear(4, 4))
    replace_linear_with_pure1bit_linear(int8)
    assert int8.pure_conversion_report.kept == {"0": "a BitLinear whose weight is neither ternary nor binary"}


def test_the_meta_device() -> None:
    with torch.device("meta"):
        model = Small()
    replace_linear_with_pure1bit_linear(model)
    model.to_empty(device="cpu")
    real = pure_model()
    model.load_state_dict(real.state_dict())
    assert torch.equal(model(IDS[0]), real(IDS[0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"exclude_patterns": ["ups"]}, "did you mean 'up'"),
        ({"quantizer": "int4"}, "ternary and binary codes only"),
        ({"counter": "int16"}, "counter is 'int16'"),
        ({"activation_quantizer": "int4"}, "activation_quantizer is 'int4'"),
        ({"granularity": "per_group"}, "group_size is None"),
    ],
)
def test_wrong_input_is_refused_and_changes_nothing(call: dict[str, Any], message: str) -> None:
    model = small()
    with pytest.raises((OnebitError, ConfigError), match=message):
        replace_linear_with_pure1bit_linear(model, **call)
    assert not layers_of(model)
