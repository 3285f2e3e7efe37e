"""Codes and scales that keep a layer's outputs, chosen with the second moments of its inputs instead of by rounding.

With H = X^T X of the layer's inputs, the squared error of its outputs is tr(R H R^T) for the residual R = W - codes *
scale. Three steps lower it: error feedback from column to column (GPTQ, arXiv:2210.17323), with the scale of each
group fitted to the weights as the feedback left them; then, in turn, the best scale of each group given all codes, and
the best code of each column given all others. The last two never raise the error.

Shape suffixes: O outputs, I inputs, G groups, C columns of one group or block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from onebit.errors import OnebitError
from onebit.quant.spec import SCALE_FLOOR, Quantized, WeightQuantizer

__all__ = ["fit_codes"]

_BLOCK = 128  # columns whose feedback to the rest is added in one matrix product
_FIT_TURNS = 12


@torch.no_grad()
def fit_codes(
    w_OI: Tensor, hessian_II: Tensor, spec: WeightQuantizer, *, rounds: int = 3, damping: float = 0.01
) -> Quantized:
    """Codes and scales for float weights, given X^T X of the inputs (any multiple of it).

    damping: added to the diagonal, as a share of its mean; it stands for inputs that the samples did not have. rounds:
    of the last two steps. Ternary quantisers other than sparsity, and binary without centring; OnebitError for others.
    """
    if spec.quantizer not in ("absmean", "threshold") and not (spec.quantizer == "binary" and not spec.center):
        raise OnebitError(
            f"codes cannot be fitted for quantizer {spec.quantizer!r}{' with centring' if spec.center else ''}; "
            "use absmean, threshold or binary with center=False"
        )
    w_OI = w_OI.detach().float()
    h_II = _damped(hessian_II, damping)
    state = _Fit(w_OI, torch.zeros_like(w_OI), _first_scales(w_OI, h_II.diagonal(), spec), spec)
    _feed_errors_forward(state, h_II)
    gradient_OI = (w_OI - state.values_OI()) @ h_II
    for _ in range(rounds):
        _improve_scales(state, gradient_OI, h_II)
        _improve_codes(state, gradient_OI, h_II)
    _improve_scales(state, gradient_OI, h_II)
    return state.quantized()


@dataclass
class _Fit:
    """codes_OI: float; scale: [O or 1, G], one column where scales are not per group."""

    w_OI: Tensor
    codes_OI: Tensor
    scale: Tensor
    spec: WeightQuantizer

    def groups(self) -> Iterator[tuple[int, slice]]:
        width = self.spec.group_size or self.w_OI.shape[1]
        for group, start in enumerate(range(0, self.w_OI.shape[1], width)):
            yield group, slice(start, min(start + width, self.w_OI.shape[1]))

    def values_OI(self) -> Tensor:
        width = self.spec.group_size or self.w_OI.shape[1]
        return self.codes_OI * self.scale.repeat_interleave(width, dim=1)[:, : self.w_OI.shape[1]]

    def quantized(self) -> Quantized:
        codes_OI = self.codes_OI.to(torch.int8)
        if self.spec.granularity == "per_tensor":
            return Quantized(codes_OI, self.scale.view(()), self.spec)
        if self.spec.granularity == "per_row":
            return Quantized(codes_OI, self.scale.squeeze(-1), self.spec)
        return Quantized(codes_OI, self.scale.half(), self.spec)


def _damped(hessian_II: Tensor, damping: float) -> Tensor:
    h_II = hessian_II.detach().float().clone()
    mean = h_II.diagonal().mean()
    if not bool(mean > 0) or not bool(torch.isfinite(h_II).all()):
        raise OnebitError("the layer's sample inputs are all zero, or hold NaN or infinity; check the samples")
    h_II /= mean
    h_II.diagonal().add_(damping)
    return h_II


def _codes(w: Tensor, scale: Tensor, spec: WeightQuantizer) -> Tensor:
    """The nearest code of each weight."""
    if spec.quantizer == "binary":
        return (w >= 0).float().mul_(2).sub_(1)
    return (w / scale).round_().clamp_(-1, 1)


def _stored(scale: Tensor, spec: WeightQuantizer) -> Tensor:
    scale = scale.clamp_min(SCALE_FLOOR)
    return scale.half().float() if spec.granularity == "per_group" else scale


def _alternate(w_OC: Tensor, weight_C: Tensor, spec: WeightQuantizer) -> Tensor:
    """The scale [O or 1, 1] of one group for which the nearest codes leave the least weighted error, found in turns."""
    over = (0, 1) if spec.granularity == "per_tensor" else 1
    # From above: the mean of |w| is the scale of nearly all of them being 1, from where too few become 0.
    scale = _stored(1.2 * w_OC.abs().mean(over, keepdim=True), spec)
    for _ in range(_FIT_TURNS):
        codes_OC = _codes(w_OC, scale, spec)
        top = (codes_OC * w_OC * weight_C).sum(over, keepdim=True)
        bottom = (codes_OC.square() * weight_C).sum(over, keepdim=True)
        scale = _stored(torch.where(bottom > 0, top / bottom.clamp_min(1e-30), scale), spec)
    return scale


def _first_scales(w_OI: Tensor, weight_I: Tensor, spec: WeightQuantizer) -> Tensor:
    fit = _Fit(w_OI, w_OI, w_OI, spec)
    return torch.cat([_alternate(w_OI[:, columns], weight_I[columns], spec) for _, columns in fit.groups()], dim=1)


def _feed_errors_forward(fit: _Fit, h_II: Tensor) -> None:
    """GPTQ: each column's error is taken over by those after it, as far as their inputs go along with its own."""
    w_OI = fit.w_OI.clone()
    factor_II = _inverse_factor(h_II)
    for group, columns in fit.groups():
        if fit.spec.granularity == "per_group":
            fit.scale[:, group : group + 1] = _alternate(w_OI[:, columns], h_II.diagonal()[columns], fit.spec)
        scale_O1 = fit.scale[:, group : group + 1]
        for start in range(columns.start, columns.stop, _BLOCK):
            stop = min(start + _BLOCK, columns.stop)
            errors_OC = torch.zeros_like(w_OI[:, start:stop])
            for j in range(start, stop):
                codes_O1 = _codes(w_OI[:, j : j + 1], scale_O1, fit.spec)
                fit.codes_OI[:, j : j + 1] = codes_O1
                error_O1 = (w_OI[:, j : j + 1] - codes_O1 * scale_O1) / factor_II[j, j]
                w_OI[:, j:stop] -= error_O1 * factor_II[j, j:stop]
                errors_OC[:, j - start : j - start + 1] = error_O1
            w_OI[:, stop:] -= errors_OC @ factor_II[start:stop, stop:]


def _inverse_factor(h_II: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse; more damping where float32 needs it."""
    for extra in (0.0, 0.01, 0.1, 1.0):
        damped_II = h_II + extra * torch.eye(h_II.shape[0], device=h_II.device)
        lower_II, failed = torch.linalg.cholesky_ex(damped_II)
        if int(failed):
            continue
        factor = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower_II), upper=True)
        if not int(factor.info):
            upper_II: Tensor = factor.L
            return upper_II
    raise OnebitError("the second moments of the layer's inputs are no covariance; check the samples")


def _improve_scales(fit: _Fit, gradient_OI: Tensor, h_II: Tensor) -> None:
    """The best scale of each group, given all codes and the other scales; gradient: (W - codes * scale) H, kept up."""
    for group, columns in fit.groups():
        codes_OC = fit.codes_OI[:, columns]
        spread_OI = codes_OC @ h_II[columns]
        top_O1 = (codes_OC * gradient_OI[:, columns]).sum(1, keepdim=True)
        bottom_O1 = (codes_OC * spread_OI[:, columns]).sum(1, keepdim=True)
        if fit.spec.granularity == "per_tensor":
            top_O1, bottom_O1 = top_O1.sum(0, keepdim=True), bottom_O1.sum(0, keepdim=True)
        old = fit.scale[:, group : group + 1]
        new = _stored(old + torch.where(bottom_O1 > 0, top_O1 / bottom_O1.clamp_min(1e-30), 0.0), fit.spec)
        gradient_OI -= (new - old) * spread_OI
        fit.scale[:, group : group + 1] = new


def _improve_codes(fit: _Fit, gradient_OI: Tensor, h_II: Tensor) -> None:
    """The best code of each column in turn, given all others and the scales."""
    for group, columns in fit.groups():
        scale_O1 = fit.scale[:, group : group + 1]
        for start in range(columns.start, columns.stop, _BLOCK):
            stop = min(start + _BLOCK, columns.stop)
            moved_OC = torch.zeros_like(gradient_OI[:, start:stop])
            local_OC = gradient_OI[:, start:stop]
            for j in range(start, stop):
                old_O1 = fit.codes_OI[:, j : j + 1]
                wanted_O1 = old_O1 * scale_O1 + local_OC[:, j - start : j - start + 1] / h_II[j, j]
                new_O1 = _codes(wanted_O1, scale_O1, fit.spec)
                step_O1 = (new_O1 - old_O1) * scale_O1
                local_OC -= step_O1 * h_II[j, start:stop]
                moved_OC[:, j - start : j - start + 1] = step_O1
                fit.codes_OI[:, j : j + 1] = new_O1
            gradient_OI[:, :start] -= moved_OC @ h_II[start:stop, :start]
            gradient_OI[:, stop:] -= moved_OC @ h_II[start:stop, stop:]
