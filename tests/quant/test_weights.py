"""Weight quantisers against float64 formulas written independently with numpy, over shapes, types and odd cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onebit.errors import OnebitError
from onebit.quant import WeightQuantizer, dequantize, fake_quantize, quantize, weight_codes

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LOW_BIT = [
    WeightQuantizer(name, granularity, 64 if granularity == "per_group" else None, sparsity=share, center=center)
    for name, share, center in (
        ("absmean", None, True),
        ("threshold", None, True),
        ("sparsity", 0.3, True),
        ("binary", None, True),
        ("binary", None, False),
    )
    for granularity in ("per_tensor", "per_row", "per_group")
]
LEVELS = [WeightQuantizer.for_level("int8"), WeightQuantizer.for_level("int4"), WeightQuantizer.for_level("float16")]
ALL = LOW_BIT + LEVELS


def units(w: np.ndarray, spec: WeightQuantizer) -> list[np.ndarray]:
    """The stretches of weights that share a scale, in the order of the scales."""
    if spec.granularity == "per_tensor":
        return [w.reshape(-1)]
    step = w.shape[1] if spec.granularity == "per_row" else spec.group_size
    return [row[i : i + step] for row in w for i in range(0, w.shape[1], step)]


def reference_unit(w: np.ndarray, spec: WeightQuantizer) -> tuple[np.ndarray, float, np.ndarray]:
    """(codes, scale, distance of each weight to its nearest decision boundary over beta), all in float64."""
    magnitude = np.abs(w)
    beta = max(magnitude.mean(), 1e-5)
    if spec.quantizer == "absmean":
        return np.clip(np.rint(w / beta), -1, 1), beta, np.abs(magnitude - 0.5 * beta) / beta
    if spec.quantizer == "binary":
        centred = w - w.mean() if spec.center else w
        return np.where(centred >= 0, 1.0, -1.0), max(np.abs(centred).mean(), 1e-5), np.abs(centred) / beta
    if spec.quantizer == "threshold":
        delta = 0.7 * beta
        kept = magnitude > delta
    else:
        delta = np.sort(magnitude)[int(spec.sparsity * w.size)]
        kept = magnitude >= delta
    scale = magnitude[kept].mean() if kept.any() else 0.0
    distance = np.abs(magnitude - delta) / beta if spec.quantizer == "threshold" else np.ones_like(w)
    return np.sign(w) * kept, max(scale, 1e-5), distance


def random_matrix(rows: int, cols: int, seed: int, dtype: torch.dtype, spread: float = 0.02) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, cols, generator=generator) * spread).to(dtype)


@pytest.mark.parametrize("spec", LOW_BIT, ids=str)
@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 5), cols=st.integers(1, 200), seed=st.integers(0, 2**16), dtype=st.sampled_from(DTYPES))
def test_codes_and_scales_follow_the_formula(
    spec: WeightQuantizer, rows: int, cols: int, seed: int, dtype: torch.dtype
) -> None:
    w = random_matrix(rows, cols, seed, dtype)
    quantized = quantize(w, spec)
    codes = units(quantized.codes_OI.numpy(), spec)
    scales = quantized.scale.float().reshape(-1).numpy()
    # Group scales are float16 (11 bits); the others float32, whose mean of 1000 values is good to 1e-6.
    tolerance = 6e-4 if spec.granularity == "per_group" else 2e-6
    assert len(scales) == len(codes)
    for unit, got, scale in zip(units(w.double().numpy(), spec), codes, scales, strict=True):
        expected, expected_scale, distance = reference_unit(unit, spec)
        # 2^-25: half a step of float16 near the floor of 1e-5, where it is subnormal
        np.testing.assert_allclose(scale, expected_scale, rtol=tolerance, atol=2.0**-25)
        certain = distance > tolerance  # rounding of the statistic may move a weight that sits on the boundary
        np.testing.assert_array_equal(got[certain], expected[certain])


@pytest.mark.parametrize("spec", ALL, ids=str)
@settings(max_examples=10, deadline=None)
@given(rows=st.integers(1, 4), cols=st.integers(1, 150), seed=st.integers(0, 2**16), dtype=st.sampled_from(DTYPES))
def test_round_trip(spec: WeightQuantizer, rows: int, cols: int, seed: int, dtype: torch.dtype) -> None:
    w = random_matrix(rows, cols, seed, dtype)
    quantized = quantize(w, spec)
    assert quantized.codes_OI.shape == w.shape
    assert torch.equal(dequantize(quantized), fake_quantize(w, spec))  # trained is what is exported, to the bit
    if spec.is_float16:
        assert torch.equal(quantized.codes_OI, w.half())
        return
    assert quantized.codes_OI.dtype == torch.int8
    limit = {"int8": 127, "int4": 7}.get(spec.quantizer, 1)
    assert quantized.codes_OI.abs().max() <= limit
    if spec.quantizer == "binary":
        assert (quantized.codes_OI != 0).all()
    groups = -(-cols // (spec.group_size or 1))
    shape = {"per_tensor": (), "per_row": (rows,), "per_group": (rows, groups)}[spec.granularity]
    assert quantized.scale.shape == shape
    assert quantized.scale.dtype == (torch.float16 if spec.granularity == "per_group" else torch.float32)


@pytest.mark.parametrize("spec", LEVELS[:2], ids=str)
def test_integer_levels_reconstruct_within_half_a_step(spec: WeightQuantizer) -> None:
    w = random_matrix(6, 70, 3, torch.float32)
    limit = 127 if spec.quantizer == "int8" else 7
    for unit, got in zip(units(w.numpy(), spec), units(fake_quantize(w, spec).numpy(), spec), strict=True):
        step = np.abs(unit).max() / limit
        # int4's float16 scale adds up to 7 steps * 2^-11
        assert np.abs(unit - got).max() <= step * (0.5 + 7 * 2**-11 + 1e-5)


def test_int8_keeps_its_precision_for_small_rows() -> None:
    w = torch.tensor([[1e-4, 5e-5, -2.5e-5]])
    np.testing.assert_allclose(fake_quantize(w, LEVELS[0]).numpy(), w.numpy(), atol=1e-4 / 127 / 2 * 1.01)


def test_ties_round_to_even() -> None:
    # mean |w| is exactly 1, so 0.5 sits on the boundary and rounds to the even 0; 1.5 would round to 2, clamped to 1.
    w = torch.tensor([[0.5, -0.5, 1.5, -1.5]])
    quantized = quantize(w, WeightQuantizer("absmean"))
    assert quantized.codes_OI.tolist() == [[0, 0, 1, -1]]
    assert quantized.scale.item() == 1.0
    # int8: 127 is the largest, so the scale is 1 and x.5 goes to the even neighbour.
    eight = quantize(torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]]), WeightQuantizer.for_level("int8"))
    assert eight.codes_OI.tolist() == [[127, 0, 2, 2, 0, -2]]


@pytest.mark.parametrize("spec", ALL, ids=str)
@pytest.mark.parametrize("value", [0.0, 0.25, -0.25])
def test_zeros_and_all_equal_rows(spec: WeightQuantizer, value: float) -> None:
    w = torch.full((3, 70), value)
    back = dequantize(quantize(w, spec))
    assert torch.isfinite(back).all()
    if spec.quantizer == "binary" and (spec.center or value == 0):
        # Nothing but the mean: sign(0) is +1 and the scale is the floor.
        assert quantize(w, spec).codes_OI.eq(1).all()
        assert back.abs().max() <= 1.1e-5
    elif value == 0.0:
        assert back.eq(0).all()
    else:
        # 0.25 is exact in float16; int4's 0.25 / 7 is not
        np.testing.assert_allclose(back.numpy(), w.numpy(), rtol=5e-4 if spec.quantizer == "int4" else 1e-6)


def test_sparsity_never_zeroes_more_than_asked() -> None:
    for share in (0.0, 0.1, 0.5, 0.9):
        w = random_matrix(8, 125, 1, torch.float32)
        zeros = (quantize(w, WeightQuantizer("sparsity", sparsity=share)).codes_OI == 0).sum().item()
        assert zeros == int(share * 1000)
    equal = quantize(torch.ones(2, 10), WeightQuantizer("sparsity", sparsity=0.5))
    assert (equal.codes_OI == 1).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused(bad: float) -> None:
    w = torch.ones(2, 3)
    w[1, 2] = bad
    with pytest.raises(OnebitError, match="1 of 6 weights are NaN or infinite"):
        quantize(w, WeightQuantizer())


@pytest.mark.parametrize("w", [torch.ones(3), torch.ones(0, 4), torch.ones(2, 2, dtype=torch.int32)])
def test_wrong_shape_or_type_is_refused(w: torch.Tensor) -> None:
    with pytest.raises(OnebitError, match=r"expected a non-empty float matrix"):
        quantize(w, WeightQuantizer())


def test_float16_overflow_is_refused() -> None:
    w = torch.full((1, 64), 1e6)
    for spec in (WeightQuantizer("absmean", "per_group", 64), WeightQuantizer.for_level("float16")):
        with pytest.raises(OnebitError, match="65504"):
            quantize(w, spec)
    assert quantize(w, WeightQuantizer("absmean", "per_row")).scale.item() == 1e6


def test_no_gradient_and_no_change_of_the_input() -> None:
    for spec in ALL:
        w = random_matrix(4, 100, 2, torch.float32).requires_grad_()
        before = w.detach().clone()
        codes, scale = weight_codes(w, spec)
        assert not codes.requires_grad
        assert not scale.requires_grad
        assert torch.equal(w, before)


def test_statistics_are_float32_under_autocast_and_for_bfloat16() -> None:
    w = random_matrix(64, 256, 5, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(
            fake_quantize(w, WeightQuantizer("threshold")), fake_quantize(w.clone(), WeightQuantizer("threshold"))
        )
        _, scale = weight_codes(w, WeightQuantizer())
    np.testing.assert_allclose(scale.item(), w.double().abs().mean().item(), rtol=2e-6)
    _, scale = weight_codes(w.bfloat16(), WeightQuantizer())
    np.testing.assert_allclose(scale.item(), w.bfloat16().double().abs().mean().item(), rtol=2e-6)


def test_noncontiguous_weights() -> None:
    w = random_matrix(40, 30, 7, torch.float32).t()
    for spec in ALL:
        assert torch.equal(fake_quantize(w, spec), fake_quantize(w.contiguous(), spec))
