"""Norms against float64 formulas; the quantised embedding against quantising the whole table."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onebit.errors import OnebitError
from onebit.nn import BitEmbedding, LayerNorm, RMSNorm
from onebit.quant import WeightQuantizer, dequantize


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_rms_norm(scale: float) -> None:
    norm = RMSNorm(48, eps=1e-5)
    torch.nn.init.normal_(norm.weight, 1.0, 0.3)
    x = torch.randn(7, 48) * scale
    v = x.double().numpy()
    expected = v * (1 / np.sqrt((v**2).mean(-1, keepdims=True) + 1e-5)) * norm.weight.detach().double().numpy()
    np.testing.assert_allclose(norm(x).detach(), expected, rtol=2e-6, atol=1e-7 * scale)


def test_layer_norm() -> None:
    norm = LayerNorm(48, eps=1e-3)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(7, 48) + 3
    v = x.double().numpy()
    normal = (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + 1e-3)
    expected = normal * norm.weight.detach().double().numpy() + norm.bias.detach().double().numpy()
    np.testing.assert_allclose(norm(x).detach(), expected, atol=2e-6)


@pytest.mark.parametrize("make", [RMSNorm, LayerNorm])
def test_norm_statistics_are_float32(make: type[torch.nn.Module]) -> None:
    norm = make(64)
    x = torch.randn(4, 64) * 300  # squares overflow float16
    for dtype in (torch.float16, torch.bfloat16):
        y = norm.to(dtype)(x.to(dtype))
        assert y.dtype == dtype
        expected = make(64)(x.to(dtype).float())
        np.testing.assert_allclose(y.detach().float(), expected.detach(), rtol=1e-2, atol=1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm.float()(x).dtype == torch.float32


SPECS = [
    WeightQuantizer(),
    WeightQuantizer("binary", "per_row"),
    WeightQuantizer("absmean", "per_group", 64),
    WeightQuantizer.for_level("int8"),
    WeightQuantizer.for_level("int4"),
    WeightQuantizer.for_level("float16"),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_embedding_looks_up_the_quantised_table(spec: WeightQuantizer) -> None:
    table = BitEmbedding(30, 100, quantizer=spec, ste_scale_factor=2.0)
    ids = torch.tensor([[3, 3, 29], [0, 1, 2]])
    rows = table(ids)
    # row by row or the whole table, the sums run in another order at most
    np.testing.assert_allclose(rows.detach(), dequantize(table.quantized())[ids], rtol=1e-6)
    rows.sum().backward()
    counts = torch.bincount(ids.flatten(), minlength=30).float()
    assert torch.equal(table.weight.grad, (2.0 * counts).unsqueeze(1).expand(-1, 100))
    assert spec.quantizer in repr(table)


def test_float_embedding() -> None:
    table = BitEmbedding(5, 4)
    assert torch.equal(table(torch.tensor([2])), table.weight[2:3])
    with pytest.raises(OnebitError, match="no weight quantiser"):
        table.quantized()
