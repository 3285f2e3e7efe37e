"""Fitted codes and scales: against an exhaustive search on small rows, and against rounding on larger matrices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from onebit.errors import OnebitError
from onebit.quant import WeightQuantizer, dequantize, quantize
from onebit.quant.fit_codes import fit_codes

SPECS = [
    WeightQuantizer("absmean"),
    WeightQuantizer("absmean", "per_row"),
    WeightQuantizer("absmean", "per_group", 64),
    WeightQuantizer("threshold", "per_group", 128),
    WeightQuantizer("binary", "per_group", 64, center=False),
]


def problem(rows: int, cols: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights, and second moments of inputs that go along with each other, some of them large."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(cols, cols, generator=generator) / cols**0.5 + torch.eye(cols)
    size = torch.exp(torch.randn(cols, generator=generator))
    x = torch.randn(20 * cols, cols, generator=generator) @ mixing * size
    return torch.randn(rows, cols, generator=generator), x.t() @ x / x.shape[0]


def output_error(w: torch.Tensor, q_w: torch.Tensor, h: torch.Tensor) -> float:
    """The squared error of the outputs over their square."""
    residual, weight, moments = (w - q_w).double(), w.double(), h.double()
    return float(((residual @ moments) * residual).sum() / ((weight @ moments) * weight).sum())


def best_error(w: np.ndarray, h: np.ndarray) -> float:
    """The least (w - s c) H (w - s c)^T over all ternary c and all s, in float64."""
    codes = np.array(list(itertools.product((-1, 0, 1), repeat=len(w))))
    along = codes @ h @ w
    size = np.einsum("ni,ij,nj->n", codes, h, codes)
    gains = np.where(size > 0, along.clip(min=0) ** 2 / np.where(size > 0, size, 1), 0)
    return float(w @ h @ w - gains.max())


def test_close_to_the_best_there_is() -> None:
    w, h = problem(40, 7)
    spec = WeightQuantizer("absmean", "per_row")
    residual = (w - dequantize(fit_codes(w, h, spec, damping=1e-6))).double().numpy()
    h64 = h.double().numpy()
    found = np.einsum("oi,ij,oj->o", residual, h64, residual)
    best = np.array([best_error(row, h64) for row in w.double().numpy()])
    plain = (w - dequantize(quantize(w, spec))).double().numpy()
    rounded = np.einsum("oi,ij,oj->o", plain, h64, plain)
    assert (found >= best * (1 - 1e-4)).all()
    assert found.sum() < 1.25 * best.sum()
    assert rounded.sum() > 1.8 * best.sum()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_much_better_than_rounding(spec: WeightQuantizer) -> None:
    w, h = problem(48, 200)
    fitted = fit_codes(w, h, spec)
    assert set(fitted.codes_OI.unique().tolist()) <= {-1, 0, 1}
    assert fitted.scale.shape == quantize(w, spec).scale.shape
    assert fitted.scale.dtype == quantize(w, spec).scale.dtype
    error = output_error(w, dequantize(fitted), h)
    assert error < 0.6 * output_error(w, dequantize(quantize(w, spec)), h)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_more_rounds_never_hurt(spec: WeightQuantizer) -> None:
    w, h = problem(32, 150, seed=1)
    damped = h / h.diagonal().mean() + 0.01 * torch.eye(150)
    errors = [output_error(w, dequantize(fit_codes(w, h, spec, rounds=rounds)), damped) for rounds in range(4)]
    # a group's scale is rounded to float16, which may cost a little
    assert all(after <= before * (1 + 1e-3) for before, after in itertools.pairwise(errors))
    assert errors[3] < 0.97 * errors[0]


def test_with_inputs_alike_it_is_the_best_rounding() -> None:
    """H = 1: nothing to compensate; the codes are the nearest and the scale the mean of the kept."""
    w, _ = problem(16, 64)
    fitted = fit_codes(w, torch.eye(64), WeightQuantizer("absmean", "per_row"))
    assert torch.equal(fitted.codes_OI.float(), (w / fitted.scale[:, None]).round().clamp(-1, 1))
    kept = fitted.codes_OI != 0
    torch.testing.assert_close(fitted.scale, (w.abs() * kept).sum(1) / kept.sum(1))


def test_inputs_that_never_occur_do_no_harm() -> None:
    w, h = problem(8, 96)
    h[10:20] = 0
    h[:, 10:20] = 0
    fitted = fit_codes(w, h, WeightQuantizer("absmean", "per_row"))
    assert torch.isfinite(dequantize(fitted)).all()
    low_rank = torch.ones(96, 1) @ torch.ones(1, 96)
    assert torch.isfinite(dequantize(fit_codes(w, low_rank, WeightQuantizer("absmean"), damping=0.0))).all()


@pytest.mark.parametrize("spec", [WeightQuantizer("sparsity", sparsity=0.5), WeightQuantizer("binary")])
def test_other_quantisers_are_refused(spec: WeightQuantizer) -> None:
    w, h = problem(4, 16)
    with pytest.raises(OnebitError, match="codes cannot be fitted for quantizer"):
        fit_codes(w, h, spec)
    with pytest.raises(OnebitError, match="all zero"):
        fit_codes(w, h * 0, WeightQuantizer())
