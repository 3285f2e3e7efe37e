"""Activation quantisers against their formulas in numpy, including the order of float32 operations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onebit.errors import ConfigError
from onebit.quant import fake_quantize_activations, quantize_activations

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def tokens(seed: int, shape: tuple[int, ...], dtype: torch.dtype, spread: float = 3.0) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * spread).to(dtype)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), size=st.integers(1, 130), dtype=st.sampled_from(DTYPES))
def test_int8_is_the_contract_bit_for_bit(seed: int, size: int, dtype: torch.dtype) -> None:
    x = tokens(seed, (2, 3, size), dtype)
    codes, scale = quantize_activations(x, "int8")
    values = x.float().numpy()
    peak = np.maximum(np.abs(values).max(-1, keepdims=True), np.float32(1e-5))
    # float32 throughout, 127/m first: the engine's order
    expected = np.rint(values * (np.float32(127.0) / peak))
    assert codes.dtype == torch.int8
    np.testing.assert_array_equal(codes.numpy(), expected.astype(np.int8))
    np.testing.assert_array_equal(scale.numpy(), peak / np.float32(127.0))
    assert np.abs(expected).max() <= 127


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), size=st.integers(1, 130), dtype=st.sampled_from(DTYPES))
def test_sign(seed: int, size: int, dtype: torch.dtype) -> None:
    x = tokens(seed, (4, size), dtype)
    codes, scale = quantize_activations(x, "sign")
    np.testing.assert_array_equal(codes.numpy(), np.where(x.double().numpy() >= 0, 1, -1))
    expected = np.maximum(np.abs(x.double().numpy()).mean(-1, keepdims=True), 1e-5)
    np.testing.assert_allclose(scale.numpy(), expected, rtol=1e-6)


def test_none_gives_back_the_values() -> None:
    x = tokens(0, (2, 5), torch.bfloat16)
    codes, scale = quantize_activations(x, "none")
    assert torch.equal(codes, x.float())
    assert torch.equal(scale, torch.ones(2, 1))
    assert torch.equal(fake_quantize_activations(x, "none"), x.float())


@pytest.mark.parametrize("kind", ["int8", "sign"])
def test_zero_tokens_and_fake_quantise(kind: str) -> None:
    zeros, scale = quantize_activations(torch.zeros(2, 8), kind)  # type: ignore[arg-type]
    assert torch.isfinite(scale).all()
    assert zeros.eq(0 if kind == "int8" else 1).all()
    x = tokens(1, (3, 17), torch.float32)
    codes, scale = quantize_activations(x, kind)  # type: ignore[arg-type]
    assert torch.equal(fake_quantize_activations(x, kind), codes.float() * scale)  # type: ignore[arg-type]


def test_int8_error_is_at_most_half_a_step() -> None:
    x = tokens(2, (50, 64), torch.float32)
    error = (fake_quantize_activations(x, "int8") - x).abs()
    # 127.5 rounds up at a half step; 1e-5 for the two roundings of the scale
    assert (error <= x.abs().amax(-1, keepdim=True) / 127 * (0.5 + 1e-4)).all()


def test_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'int8'"):
        quantize_activations(torch.zeros(1, 2), "int")  # type: ignore[arg-type]
