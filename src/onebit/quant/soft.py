"""Soft regimes: the ways from float to quantised weights that a schedule drives during training.

Their dials (lambda, alpha, the Arenas coefficient) are 0-dim tensors, so that a compiled model reads a new value
without being compiled again. Statistics (beta, delta, scale, mean) are constants for the gradient, as in the hard
regime.

Shape suffixes as in weights.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onebit.quant.spec import WeightQuantizer
from onebit.quant.weights import expand_scale, per_unit, ternary_threshold, weight_codes

__all__ = ["add_arenas_residual", "has_soft_codes", "lambda_mix", "soft_codes", "soft_quantize"]


def lambda_mix(x: Tensor, q_x: Tensor, lambda_: Tensor) -> Tensor:
    """(1 - lambda) x + lambda q_x; with q_x from `straight_through` the gradient is (1 - lambda) + lambda * factor."""
    return torch.lerp(x, q_x, lambda_.to(x.dtype))


def add_arenas_residual(q_w: Tensor, w: Tensor, coefficient: Tensor) -> Tensor:
    """q_w + coefficient * w: a full-precision residual that lets gradients through while it lasts (Arenas)."""
    return q_w + coefficient.to(w.dtype) * w


def has_soft_codes(spec: WeightQuantizer) -> bool:
    """Soft codes exist for binary and ternary; finer levels have steps too small to need them."""
    return spec.is_ternary or spec.quantizer == "binary"


def soft_codes(w_OI: Tensor, spec: WeightQuantizer, alpha: Tensor) -> Tensor:
    """Differentiable codes in (-1, 1), float32 [O, I]; they tend to the hard codes as alpha grows.

    binary: tanh(alpha w / beta) with w centred as the spec says;
    ternary: (tanh(alpha (w - delta) / beta) + tanh(alpha (w + delta) / beta)) / 2.
    """
    w_OI = w_OI.float()

    def unit_codes(w_UN: Tensor, spec: WeightQuantizer) -> tuple[Tensor, Tensor]:
        constant_UN = w_UN.detach()
        if spec.quantizer == "binary":
            mean_U1 = constant_UN.mean(-1, keepdim=True) if spec.center else torch.zeros_like(constant_UN[..., :1])
            beta_U1 = (constant_UN - mean_U1).abs().mean(-1, keepdim=True).clamp_min(1e-5)
            return torch.tanh(alpha * (w_UN - mean_U1) / beta_U1), beta_U1
        beta_U1, delta_U1 = ternary_threshold(constant_UN, spec)
        steps = torch.tanh(alpha * (w_UN - delta_U1) / beta_U1) + torch.tanh(alpha * (w_UN + delta_U1) / beta_U1)
        return 0.5 * steps, beta_U1

    return per_unit(w_OI, spec, unit_codes)[0]


def soft_quantize(w_OI: Tensor, spec: WeightQuantizer, alpha: Tensor) -> Tensor:
    """Soft codes times the scale of the hard quantiser, float32 [O, I]."""
    _, scale = weight_codes(w_OI, spec)
    return soft_codes(w_OI, spec, alpha) * expand_scale(scale, spec, w_OI.shape[1])
