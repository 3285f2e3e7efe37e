"""Weights -> codes and scales, and back (DESIGN.md section 2).

Every quantiser works on *units*: the stretch of weights that shares one scale is the last dimension, whatever the
granularity. So each formula is written once. Statistics are float32 whatever the input type, ties round to even, and
a group's scale is rounded to float16 before it is used: training sees the scale that the file will hold.

Nothing here waits for the device: `quantize` checks for NaN and infinity, `fake_quantize` does not.

Shape suffixes: O outputs, I inputs, G groups, U any leading dimensions of units, N weights in a unit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from onebit.errors import OnebitError
from onebit.quant.spec import SCALE_FLOOR, Quantized, WeightQuantizer

__all__ = ["dequantize", "expand_scale", "fake_quantize", "per_unit", "quantize", "ternary_threshold", "weight_codes"]

UnitFunction = Callable[[Tensor, WeightQuantizer], tuple[Tensor, Tensor]]


def quantize(w_OI: Tensor, spec: WeightQuantizer) -> Quantized:
    """Codes and scales of a weight matrix, as they are exported.

    w_OI: float16, bfloat16 or float32. Raises OnebitError for another shape or type, for NaN and for infinity.
    """
    if w_OI.ndim != 2 or w_OI.numel() == 0 or not w_OI.is_floating_point():
        raise OnebitError(
            f"cannot quantise a {w_OI.dtype} tensor of shape {tuple(w_OI.shape)}; "
            "expected a non-empty float matrix [O, I]"
        )
    bad = int((~torch.isfinite(w_OI)).sum())
    if bad:
        raise OnebitError(
            f"cannot quantise: {bad} of {w_OI.numel()} weights are NaN or infinite; "
            "the training run diverged, go back to an earlier checkpoint"
        )
    codes_OI, scale = weight_codes(w_OI, spec)
    if not bool(torch.isfinite(scale).all() and torch.isfinite(codes_OI).all()):
        raise OnebitError(
            "cannot quantise: a value exceeds float16's 65504; use granularity 'per_row' or another level"
        )
    code_dtype = torch.float16 if spec.is_float16 else torch.int8
    scale_dtype = torch.float16 if spec.granularity == "per_group" else torch.float32
    return Quantized(codes_OI.to(code_dtype), scale.to(scale_dtype), spec)


def dequantize(quantized: Quantized) -> Tensor:
    """codes * scale as float32 [O, I]."""
    codes_OI = quantized.codes_OI.float()
    return codes_OI * expand_scale(quantized.scale.float(), quantized.spec, codes_OI.shape[1])


def fake_quantize(w_OI: Tensor, spec: WeightQuantizer) -> Tensor:
    """The weights on their grid, float32 [O, I]; no gradient, no check, no wait for the device."""
    codes_OI, scale = weight_codes(w_OI, spec)
    return codes_OI.mul_(expand_scale(scale, spec, codes_OI.shape[1]))


def weight_codes(w_OI: Tensor, spec: WeightQuantizer) -> tuple[Tensor, Tensor]:
    """Codes as float32 [O, I] and scales as float32 ([], [O] or [O, G]), without gradient.

    Float codes go straight into a matrix product, where sums of small integers are exact.
    """
    w_OI = w_OI.detach().float().contiguous()  # one memory order, one order of sums
    if spec.is_float16:
        return w_OI.half().float(), w_OI.new_ones(())
    return per_unit(w_OI, spec, _UNIT_CODES[spec.quantizer])


def per_unit(w_OI: Tensor, spec: WeightQuantizer, function: UnitFunction) -> tuple[Tensor, Tensor]:
    """Apply `function(w_UN, spec) -> (codes_UN, scale_U1)` to every unit; codes [O, I], scales [], [O] or [O, G]."""
    if spec.granularity == "per_tensor":
        codes, scale = function(w_OI.reshape(1, -1), spec)
        return codes.view_as(w_OI), scale.view(())
    if spec.granularity == "per_row":
        codes, scale = function(w_OI, spec)
        return codes, scale.squeeze(-1)
    assert spec.group_size is not None  # the spec checked it
    whole = w_OI.shape[1] // spec.group_size * spec.group_size
    parts = []
    if whole:
        parts.append(function(w_OI[:, :whole].reshape(w_OI.shape[0], -1, spec.group_size), spec))
    if whole < w_OI.shape[1]:  # a short last group: its statistics are its own
        parts.append(function(w_OI[:, whole:].unsqueeze(1), spec))
    if len(parts) == 1:
        codes, scale = parts[0]
        return codes.reshape(w_OI.shape), scale.squeeze(-1)
    codes = torch.cat([codes.flatten(1) for codes, _ in parts], dim=1)
    return codes, torch.cat([scale.squeeze(-1) for _, scale in parts], dim=1)


def expand_scale(scale: Tensor, spec: WeightQuantizer, cols: int) -> Tensor:
    """The scale in a shape that multiplies [O, I]: [], [O, 1] or [O, I]."""
    if spec.granularity == "per_tensor":
        return scale
    if spec.granularity == "per_row":
        return scale.unsqueeze(-1)
    assert spec.group_size is not None
    return scale.repeat_interleave(spec.group_size, dim=1)[:, :cols]


def ternary_threshold(w_UN: Tensor, spec: WeightQuantizer) -> tuple[Tensor, Tensor]:
    """(beta_U1, delta_U1) of a ternary quantiser: weights with |w| up to about delta become zero."""
    beta_U1 = w_UN.abs().mean(-1, keepdim=True).clamp_min(SCALE_FLOOR)
    if spec.quantizer == "absmean":
        return beta_U1, 0.5 * beta_U1
    if spec.quantizer == "threshold":
        return beta_U1, 0.7 * beta_U1
    assert spec.sparsity is not None
    return beta_U1, _sparsity_cut(w_UN, spec.sparsity)


def _sparsity_cut(w_UN: Tensor, sparsity: float) -> Tensor:
    """The smallest |w| that is kept, [U, 1]: ties are kept, so never more than the asked share becomes zero."""
    rank = int(sparsity * w_UN.shape[-1]) + 1
    return w_UN.abs().kthvalue(rank, dim=-1, keepdim=True).values


def _absmean_codes(w_UN: Tensor, spec: WeightQuantizer) -> tuple[Tensor, Tensor]:
    scale_U1 = _stored(w_UN.abs().mean(-1, keepdim=True).clamp_min(SCALE_FLOOR), spec)
    return (w_UN / scale_U1).round_().clamp_(-1, 1), scale_U1


def _kept_codes(w_UN: Tensor, spec: WeightQuantizer) -> tuple[Tensor, Tensor]:
    """threshold and sparsity: signs of the kept weights, scale = mean |w| over them."""
    _, delta_U1 = ternary_threshold(w_UN, spec)
    magnitude_UN = w_UN.abs()
    is_kept_UN = magnitude_UN >= delta_U1 if spec.quantizer == "sparsity" else magnitude_UN > delta_U1
    kept_UN = is_kept_UN.float()  # sums and products of booleans are several times slower on a CPU
    count_U1 = kept_UN.sum(-1, keepdim=True).clamp_min(1)
    scale_U1 = magnitude_UN.mul_(kept_UN).sum(-1, keepdim=True) / count_U1
    return kept_UN.mul_(w_UN.sign()), _stored(scale_U1.clamp_min(SCALE_FLOOR), spec)


def _binary_codes(w_UN: Tensor, spec: WeightQuantizer) -> tuple[Tensor, Tensor]:
    centred_UN = w_UN - w_UN.mean(-1, keepdim=True) if spec.center else w_UN
    scale_U1 = centred_UN.abs().mean(-1, keepdim=True).clamp_min(SCALE_FLOOR)
    # torch.sign(0) is 0; a binary code must be +1 there.
    return (centred_UN >= 0).float().mul_(2).sub_(1), _stored(scale_U1, spec)


def _integer_codes(w_UN: Tensor, spec: WeightQuantizer) -> tuple[Tensor, Tensor]:
    """int8 and int4: symmetric, the largest |w| gets the largest code."""
    limit = 127 if spec.quantizer == "int8" else 7
    scale_U1 = _stored(w_UN.abs().amax(-1, keepdim=True).clamp_min(SCALE_FLOOR) / limit, spec)
    return (w_UN / scale_U1).round_().clamp_(-limit, limit), scale_U1


def _stored(scale_U1: Tensor, spec: WeightQuantizer) -> Tensor:
    """The scale as the file holds it, in float32: per group it is rounded to float16 first."""
    return scale_U1.half().float() if spec.granularity == "per_group" else scale_U1


_UNIT_CODES: dict[str, UnitFunction] = {
    "absmean": _absmean_codes,
    "threshold": _kept_codes,
    "sparsity": _kept_codes,
    "binary": _binary_codes,
    "int8": _integer_codes,
    "int4": _integer_codes,
}
