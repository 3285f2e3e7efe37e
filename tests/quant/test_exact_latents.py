"""Latents made from codes and scales give these codes and scales back, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from onebit.errors import OnebitError
from onebit.quant import Quantized, WeightQuantizer, quantize
from onebit.quant.exact_latents import latents_from_codes

SPECS = [
    WeightQuantizer("absmean"),
    WeightQuantizer("absmean", "per_row"),
    WeightQuantizer("absmean", "per_group", 64),
    WeightQuantizer("threshold"),
    WeightQuantizer("threshold", "per_row"),
    WeightQuantizer("threshold", "per_group", 128),
    WeightQuantizer("sparsity", sparsity=0.1),
    WeightQuantizer("sparsity", "per_row", sparsity=0.4),
    WeightQuantizer("binary"),
    WeightQuantizer("binary", "per_row", center=False),
    WeightQuantizer("binary", "per_group", 64),
    WeightQuantizer.for_level("int8"),
    WeightQuantizer.for_level("int4"),
    WeightQuantizer.for_level("float16"),
]


def weights(rows: int = 24, cols: int = 300, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, cols, generator=generator) * torch.rand(rows, 1, generator=generator)


def assert_same(latents: torch.Tensor, wanted: Quantized) -> None:
    found = quantize(latents, wanted.spec)
    assert torch.equal(found.codes_OI, wanted.codes_OI)
    assert torch.equal(found.scale, wanted.scale)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_a_quantised_matrix_comes_back(spec: WeightQuantizer, seed: int) -> None:
    quantized = quantize(weights(seed=seed), spec)
    assert_same(latents_from_codes(quantized), quantized)


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec.quantizer in ("absmean", "threshold")], ids=str)
def test_chosen_codes_and_scales_near_given_latents(spec: WeightQuantizer) -> None:
    """Codes that no rounding of these weights gives: a tenth of them drawn anew, and scales of their own."""
    w = weights()
    quantized = quantize(w, spec)
    generator = torch.Generator().manual_seed(1)
    codes = quantized.codes_OI.clone()
    drawn = torch.rand(w.shape, generator=generator) < 0.1
    codes[drawn] = torch.randint(-1, 2, w.shape, generator=generator, dtype=torch.int8)[drawn]
    scale = (quantized.scale.float() * (0.8 + 0.4 * torch.rand(quantized.scale.shape, generator=generator))).to(
        quantized.scale.dtype
    )
    chosen = Quantized(codes, scale, spec)
    near, plain = latents_from_codes(chosen, w), latents_from_codes(chosen)
    for latents in (near, plain):
        found = quantize(latents, spec)
        assert torch.equal(found.codes_OI, codes)
        # a chosen float32 scale may lie between two that a mean of float32 numbers can be
        assert ((found.scale.float() - scale.float()).abs() <= 2.0**-23 * scale.float()).all()
    assert (near - w)[~drawn].square().mean() < 0.5 * (plain - w)[~drawn].square().mean()


def test_a_large_matrix_under_one_scale() -> None:
    quantized = quantize(weights(1024, 1000), WeightQuantizer("absmean"))
    assert_same(latents_from_codes(quantized, weights(1024, 1000)), quantized)


@pytest.mark.parametrize("granularity", [{"granularity": "per_tensor"}, {"granularity": "per_group", "group_size": 64}])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_latents_of_low_precision(granularity: dict[str, Any], dtype: torch.dtype) -> None:
    quantized = quantize(weights().to(dtype), WeightQuantizer("absmean", **granularity))
    latents = latents_from_codes(quantized, weights(), dtype)
    assert latents.dtype == dtype
    assert_same(latents, quantized)


def test_a_unit_without_codes_is_zero() -> None:
    w = weights()
    w[3] = 0
    quantized = quantize(w, WeightQuantizer("absmean", "per_row"))
    latents = latents_from_codes(quantized, weights())
    assert_same(latents, quantized)
    assert not latents_from_codes(quantized)[3].any()


def test_codes_of_another_quantiser_are_refused() -> None:
    quantized = quantize(weights(), WeightQuantizer("absmean"))
    with pytest.raises(OnebitError, match="codes are none that quantizer 'binary' could give"):
        latents_from_codes(Quantized(quantized.codes_OI, quantized.scale, WeightQuantizer("binary")))
