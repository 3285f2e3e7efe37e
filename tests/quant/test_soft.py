"""Straight-through estimator and soft regimes: gradients against hand-written ones, limits against the hard codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onebit.quant import (
    WeightQuantizer,
    add_arenas_residual,
    fake_quantize,
    lambda_mix,
    soft_codes,
    soft_quantize,
    straight_through,
    weight_codes,
)

TERNARY_AND_BINARY = [
    WeightQuantizer("absmean"),
    WeightQuantizer("threshold", "per_row"),
    WeightQuantizer("sparsity", sparsity=0.25),
    WeightQuantizer("binary", "per_group", 64),
    WeightQuantizer("binary", center=False),
]


def latent(seed: int = 0, shape: tuple[int, int] = (4, 100)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.05


@pytest.mark.parametrize("factor", [1.0, 2.0, 0.5])
def test_straight_through_value_and_gradient(factor: float) -> None:
    x = latent().requires_grad_()
    q = fake_quantize(x, WeightQuantizer())
    y = straight_through(x, q, factor)
    assert torch.equal(y, q)  # exactly, unlike x + (q - x)
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    y.backward(upstream)
    assert torch.equal(x.grad, upstream * factor)


def test_straight_through_keeps_the_type_of_the_latent() -> None:
    x = latent().bfloat16().requires_grad_()
    straight_through(x, x.detach().float(), 2.0).sum().backward()
    assert x.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("lambda_", [0.0, 0.25, 1.0])
def test_lambda_mix_value_and_gradient(lambda_: float) -> None:
    x = latent().requires_grad_()
    q = fake_quantize(x, WeightQuantizer())
    y = lambda_mix(x, straight_through(x, q, 3.0), torch.tensor(lambda_))
    expected = (1 - lambda_) * x.detach().double() + lambda_ * q.double()
    np.testing.assert_allclose(y.detach().numpy(), expected.numpy(), atol=1e-8)
    y.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), (1 - lambda_) + lambda_ * 3.0, rtol=1e-6)


@pytest.mark.parametrize("spec", TERNARY_AND_BINARY, ids=str)
def test_soft_codes_tend_to_the_hard_codes(spec: WeightQuantizer) -> None:
    w = latent(3)
    hard, _ = weight_codes(w, spec)
    soft = soft_codes(w, spec, torch.tensor(1e6))
    # A weight exactly on the threshold (sparsity: the cut itself is a weight) stays half-way for ever.
    far = (soft.abs() - 0.5).abs() > 0.01
    assert far.float().mean() > 0.98
    np.testing.assert_allclose(soft[far].numpy(), hard[far].numpy(), atol=1e-4)
    np.testing.assert_allclose(soft_quantize(w, spec, torch.tensor(1e6))[far], fake_quantize(w, spec)[far], atol=1e-5)


@pytest.mark.parametrize("alpha", [1.0, 4.0, 8.0])
def test_soft_codes_follow_the_formula(alpha: float) -> None:
    w = latent(4)
    x = w.double().numpy()
    beta = np.abs(x).mean()
    ternary = 0.5 * (np.tanh(alpha * (x - 0.7 * beta) / beta) + np.tanh(alpha * (x + 0.7 * beta) / beta))
    got = soft_codes(w, WeightQuantizer("threshold"), torch.tensor(alpha))
    np.testing.assert_allclose(got.numpy(), ternary, atol=2e-6)  # tanh of float32 arguments
    absmean = 0.5 * (np.tanh(alpha * (x - 0.5 * beta) / beta) + np.tanh(alpha * (x + 0.5 * beta) / beta))
    got = soft_codes(w, WeightQuantizer("absmean"), torch.tensor(alpha))
    np.testing.assert_allclose(got.numpy(), absmean, atol=2e-6)
    binary = np.tanh(alpha * (x - x.mean()) / np.abs(x - x.mean()).mean())
    got = soft_codes(w, WeightQuantizer("binary"), torch.tensor(alpha))
    np.testing.assert_allclose(got.numpy(), binary, atol=2e-6)


@pytest.mark.parametrize("spec", TERNARY_AND_BINARY, ids=str)
def test_soft_gradient_is_the_derivative_with_constant_statistics(spec: WeightQuantizer) -> None:
    alpha = torch.tensor(2.0)
    w = latent(5).requires_grad_()
    soft = soft_codes(w, spec, alpha)
    (gradient,) = torch.autograd.grad(soft.sum(), w)
    # d/dw tanh(a (w - c) / beta) = a / beta (1 - tanh^2): positive everywhere, largest at the threshold
    assert (gradient > 0).all()
    if spec.quantizer == "binary" and not spec.center:
        beta = w.detach().double().abs().mean()
        expected = 2.0 / beta * (1 - torch.tanh(2.0 * w.detach().double() / beta) ** 2)
        np.testing.assert_allclose(gradient.numpy(), expected.numpy(), rtol=2e-5, atol=2e-5)  # 1 - tanh^2 cancels


def test_arenas_residual() -> None:
    w = latent(6).requires_grad_()
    q = fake_quantize(w, WeightQuantizer())
    y = add_arenas_residual(straight_through(w, q), w, torch.tensor(0.1))
    np.testing.assert_allclose(y.detach().numpy(), (q + 0.1 * w.detach()).numpy(), atol=1e-9)
    y.sum().backward()
    np.testing.assert_allclose(w.grad.numpy(), 1.1, rtol=1e-6)
    assert torch.equal(add_arenas_residual(q, w.detach(), torch.tensor(0.0)), q)
