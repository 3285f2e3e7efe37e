"""What was trained purely becomes BitLinears that compute the same, and can be trained on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from onebit.nn import BitLinear, replace_linear_with_pure1bit_linear
from onebit.nn.pure_restoration import replace_pure1bit_linear_with_bitlinear
from onebit.quant import WeightQuantizer

from .pure_models import IDS, layers_of, loss_of, pure_model, train

FORMS: list[dict[str, Any]] = [
    {},
    {"granularity": "per_row", "counter": "int4"},
    {"granularity": "per_group", "group_size": 64, "activation_quantizer": "none"},
    {"quantizer": "threshold"},
    {"quantizer": "binary"},
    {"counter": "none"},
    {"quantizer": WeightQuantizer("sparsity", sparsity=0.4)},
]


@pytest.mark.parametrize("arguments", FORMS, ids=str)
def test_the_same_codes_and_numbers(arguments: dict[str, Any]) -> None:
    model = pure_model(**arguments)
    train(model, 4, eta=0.5).detach()
    quantized = [made.quantized() for made in layers_of(model)]
    expected = model.eval()(IDS[0])
    assert replace_pure1bit_linear_with_bitlinear(model) is model
    layers = [module for module in model.modules() if isinstance(module, BitLinear)]
    assert len(layers) == 4
    for layer, before in zip(layers, quantized, strict=True):
        assert torch.equal(layer.quantized().codes_OI, before.codes_OI)
        torch.testing.assert_close(layer.quantized().scale, before.scale, rtol=1e-6, atol=0)
    torch.testing.assert_close(model(IDS[0]), expected, rtol=1e-5, atol=1e-5)
    model.train()
    loss_of(model, IDS[0]).backward()
    assert all(layer.weight.grad is not None for layer in layers)


def test_counters_survive_the_way_there_and_back() -> None:
    model = pure_model()
    train(model, 4).detach()
    before = [(made.quantized().codes_OI, made.weight.counts().double()) for made in layers_of(model)]
    replace_linear_with_pure1bit_linear(replace_pure1bit_linear_with_bitlinear(model))
    for made, (codes, counts) in zip(layers_of(model), before, strict=True):
        assert torch.equal(made.quantized().codes_OI, codes)
        # Latents keep a margin to their thresholds, so what lay nearer, or beyond the scale that came out, moved.
        together = torch.stack([counts.flatten(), made.weight.counts().double().flatten()])
        assert torch.corrcoef(together)[0, 1] > 0.9


def test_tied_layers_share_their_latents_and_bfloat16_holds_the_scale_to_its_step() -> None:
    model = pure_model(tied=True)
    scale = model.up.quantized().scale
    replace_pure1bit_linear_with_bitlinear(model, torch.bfloat16)
    assert model.up.weight is model.again.weight
    assert model.up.weight.dtype == torch.bfloat16
    torch.testing.assert_close(model.up.quantized().scale, scale, rtol=2.0**-7, atol=0)
