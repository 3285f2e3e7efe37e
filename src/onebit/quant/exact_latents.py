"""Latent weights from codes and scales: what a quantiser must be given so that it gives back exactly these.

Two needs shaped it: a layer whose quantised state is loaded must compute what the saved one did, and a start that was
calibrated on data (codes and scales chosen, not rounded) must survive the layer's own quantiser and be trainable from
there. A quantiser computes its scale from the latents, so the magnitudes are laid out around the codes first and then
a few of them are moved until the quantiser's own sum, with its own rounding, gives the wanted scale.

Shape suffixes: O outputs, I inputs, U units (weights that share a scale), N weights in a unit, K those moved.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onebit.errors import OnebitError
from onebit.quant.spec import SCALE_FLOOR, Quantized, WeightQuantizer
from onebit.quant.weights import weight_codes

__all__ = ["latents_from_codes"]

_MARGIN = 0.15  # of the scale: how far from a threshold a latent is put; nearer, a first step of 1e-3 flips too many
_MOVED = 64  # latents that share a correction, so that none comes near a threshold
_ROUNDS, _LARGEST_TURNS = 100, 8
_DOUBLINGS, _HALVINGS = 12, 30  # of the stretch; what rounding leaves after 30 halvings is moved one by one
_SCALE_TOLERANCE = 2.0**-8  # what one step of bfloat16 is


@torch.no_grad()
def latents_from_codes(
    quantized: Quantized,
    near_OI: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    scale_tolerance: float = 0.0,
) -> Tensor:
    """Latents [O, I] of `dtype` that `quantize` turns into exactly these codes and into these scales.

    near_OI: latents to stay close to, where the quantiser is absmean or threshold. Scales per group come out exactly;
    those per tensor and row too, unless no mean of float32 numbers rounds to the wanted one or the search for it ends
    too early: then within 2^-22. scale_tolerance: how far a scale may be off, as a share of it, for the search to end.
    A unit whose codes are all 0 gets the quantiser's smallest scale. Raises OnebitError for codes that this quantiser
    never gives and for scales that latents of `dtype` are too coarse for.
    """
    spec, codes_OI = quantized.spec, quantized.codes_OI
    if spec.is_float16:
        return codes_OI.to(dtype)
    if spec.group_size is not None and codes_OI.shape[1] > spec.group_size and codes_OI.shape[1] % spec.group_size:
        return _in_two_parts(quantized, spec.group_size, near_OI, dtype, scale_tolerance)
    codes_UN, scale_U1 = _units(codes_OI.float(), spec), quantized.scale.float().reshape(-1, 1)
    near_UN = None if near_OI is None else _units(near_OI.detach().float(), spec)
    latents_UN = _start(codes_UN, scale_U1, near_UN, spec).to(dtype)
    has_codes_U1 = (codes_UN != 0).any(-1, keepdim=True)
    for turn in range(_ROUNDS):
        _, found = weight_codes(latents_UN.view(codes_OI.shape), spec)
        missing_U1 = torch.where(has_codes_U1, scale_U1 - found.reshape(-1, 1), 0.0)
        wrong_U = (missing_U1.abs() > scale_tolerance * scale_U1).squeeze(-1).nonzero().squeeze(-1)
        if not len(wrong_U):
            break
        part_UN = latents_UN[wrong_U]
        _move(part_UN, codes_UN[wrong_U], missing_U1[wrong_U], spec, turn)
        latents_UN[wrong_U] = part_UN
    latents_OI = latents_UN.view(codes_OI.shape)
    _check(latents_OI, quantized)
    return latents_OI


def _units(x_OI: Tensor, spec: WeightQuantizer) -> Tensor:
    """The matrix as [U, N]; a row's groups are alike here."""
    if spec.granularity == "per_tensor":
        return x_OI.reshape(1, -1)
    if spec.group_size is not None:
        return x_OI.reshape(-1, min(spec.group_size, x_OI.shape[1]))
    return x_OI


def _in_two_parts(
    quantized: Quantized, group_size: int, near_OI: Tensor | None, dtype: torch.dtype, scale_tolerance: float
) -> Tensor:
    """The short last group of each row beside the others."""
    whole = quantized.codes_OI.shape[1] // group_size
    cut = whole * group_size
    codes, scale = quantized.codes_OI, quantized.scale
    parts = [(codes[:, :cut], scale[:, :whole], slice(None, cut)), (codes[:, cut:], scale[:, whole:], slice(cut, None))]
    return torch.cat(
        [
            latents_from_codes(
                Quantized(c_OI, s_OG, quantized.spec),
                None if near_OI is None else near_OI[:, columns],
                dtype,
                scale_tolerance,
            )
            for c_OI, s_OG, columns in parts
        ],
        dim=1,
    )


def _start(codes_UN: Tensor, scale_U1: Tensor, near_UN: Tensor | None, spec: WeightQuantizer) -> Tensor:
    """Latents with these codes whose scale is right but for rounding."""
    if spec.quantizer in ("int8", "int4"):
        return codes_UN * scale_U1
    size = codes_UN.shape[-1]
    kept_U1 = codes_UN.abs().sum(-1, keepdim=True)
    if spec.quantizer == "binary":
        mean_U1 = codes_UN.mean(-1, keepdim=True) if spec.center else torch.zeros_like(kept_U1)
        return codes_UN * _unequal(codes_UN) * scale_U1 / (1 - mean_U1.square()).clamp_min(1e-9)
    if spec.quantizer == "sparsity":
        # Fewer codes than are kept: zeros are among the kept, and count in the mean.
        counts_all_U1 = size - kept_U1 > int((spec.sparsity or 0.0) * size)
        return codes_UN * scale_U1 * torch.where(counts_all_U1, size / kept_U1.clamp_min(1), 1.0)
    is_absmean = spec.quantizer == "absmean"
    wanted_U1 = scale_U1 * (size if is_absmean else kept_U1)
    if near_UN is None:
        return codes_UN * _unequal(codes_UN) * wanted_U1 / kept_U1.clamp_min(1)
    # absmean cuts at half a scale; threshold at 0.7 of the mean, which is at least kept / size of the scale.
    cut_U1 = scale_U1 * (0.5 if is_absmean else 0.7 * kept_U1 / size)
    lowest_U1 = scale_U1 * (0.5 + _MARGIN if is_absmean else 0.7 + _MARGIN)
    return _stretched(codes_UN, near_UN, wanted_U1, (cut_U1 - _MARGIN * scale_U1).clamp_min(0), lowest_U1, is_absmean)


def _unequal(like_UN: Tensor) -> Tensor:
    """Numbers [N] about 1: sums of equal numbers round alike, and some totals would then never come up."""
    return 0.99 + 0.02 * (torch.arange(like_UN.shape[-1], device=like_UN.device) * 0.618034 % 1.0)


def _stretched(
    codes_UN: Tensor, near_UN: Tensor, wanted_U1: Tensor, highest_zero_U1: Tensor, lowest_U1: Tensor, zeros_count: bool
) -> Tensor:
    """near times t, pushed to the right side of the thresholds; t such that the magnitudes sum to what is wanted."""
    agreeing_UN = near_UN * codes_UN  # negative where the code has the other sign

    def stretch(t_U1: Tensor) -> Tensor:
        kept_UN = (t_U1 * agreeing_UN).maximum(lowest_U1) * codes_UN
        zero_UN = (t_U1 * near_UN).minimum(highest_zero_U1).maximum(-highest_zero_U1)
        return torch.where(codes_UN == 0, zero_UN, kept_UN)

    def is_short(t_U1: Tensor) -> Tensor:
        magnitude_UN = stretch(t_U1).abs()
        return (magnitude_UN if zeros_count else magnitude_UN * codes_UN.abs()).sum(-1, keepdim=True) < wanted_U1

    low_U1, high_U1 = torch.zeros_like(wanted_U1), torch.ones_like(wanted_U1)
    for _ in range(_DOUBLINGS):
        short_U1 = is_short(high_U1)
        if not bool(short_U1.any()):
            break
        high_U1 = torch.where(short_U1, high_U1 * 2, high_U1)
    for _ in range(_HALVINGS):
        middle_U1 = (low_U1 + high_U1) / 2
        short_U1 = is_short(middle_U1)
        low_U1, high_U1 = torch.where(short_U1, middle_U1, low_U1), torch.where(short_U1, high_U1, middle_U1)
    # All codes of a unit against the signs of its latents: no stretch makes it large enough.
    plain_UN = codes_UN * wanted_U1 / codes_UN.abs().sum(-1, keepdim=True).clamp_min(1)
    return torch.where(is_short(high_U1), plain_UN, stretch(low_U1))


def _move(latents_UN: Tensor, codes_UN: Tensor, missing_U1: Tensor, spec: WeightQuantizer, turn: int) -> None:
    """Move a few latents of each unit, in place, by what the scale misses in all."""
    if spec.quantizer in ("int8", "int4"):
        limit = 127 if spec.quantizer == "int8" else 7
        latents_UN += (missing_U1 * limit * codes_UN.sign() * (codes_UN.abs() == limit)).to(latents_UN.dtype)
        return
    size, dtype = codes_UN.shape[-1], latents_UN.dtype
    kept_UN = codes_UN.abs()
    counts_all = spec.quantizer in ("absmean", "binary")
    mass_U1 = (missing_U1 * (size if counts_all else kept_UN.sum(-1, keepdim=True))).double()
    magnitude_UN = latents_UN.float().abs()
    scale_U1 = magnitude_UN.mean(-1, keepdim=True)
    is_zero_UN = codes_UN == 0
    fills_U1 = is_zero_UN.any(-1, keepdim=True) if spec.quantizer == "absmean" else torch.zeros_like(is_zero_UN[:, :1])
    # The largest can go down without meeting a threshold; what remains to be added, and is small, goes to zeros.
    rank_UN = magnitude_UN
    if turn >= _LARGEST_TURNS:
        # Other latents and another part each time: a sum that rounds past the mark both ways would swing for ever.
        rank_UN = (torch.arange(size, device=rank_UN.device) * (0.618034 + 0.1 * turn) % 1.0).expand_as(rank_UN)
        mass_U1 = mass_U1 * (0.1 + 0.618 * turn % 1.0)
    top_UK = ((rank_UN + 1) * kept_UN).topk(min(_MOVED, size), dim=-1).indices
    sign_UK = codes_UN.gather(-1, top_UK)
    before_UK = latents_UN.gather(-1, top_UK)
    step_UK = before_UK.float().abs() * torch.finfo(dtype).eps
    is_fill_U1 = fills_U1 & (mass_U1 >= 0) & (mass_U1 <= 0.01 * _MOVED * scale_U1)
    # As many as there are whole steps to share, or rounding would undo every part.
    count_U1 = (mass_U1.abs() / (2 * step_UK.amax(-1, keepdim=True))).floor().clamp_min(1)
    is_moved_UK = (sign_UK != 0) & (torch.arange(top_UK.shape[-1], device=top_UK.device) < count_U1)
    share_UK = (mass_U1 / is_moved_UK.sum(-1, keepdim=True).clamp_min(1)).float()
    share_UK = (share_UK - torch.where(fills_U1, step_UK, 0.0)) * is_moved_UK
    after_UK = torch.where(is_fill_U1, before_UK, (before_UK.float() + sign_UK * share_UK).to(dtype))
    latents_UN.scatter_(-1, top_UK, after_UK)
    moved_U1 = ((after_UK.double() - before_UK.double()) * sign_UK).sum(-1, keepdim=True)
    _fill(latents_UN, is_zero_UN, torch.where(fills_U1, mass_U1 - moved_U1, 0.0).clamp_min(0))


def _fill(latents_UN: Tensor, is_zero_UN: Tensor, mass_U1: Tensor) -> None:
    """Add the mass to the magnitudes of the smallest latents whose code is 0: these have the finest steps."""
    magnitude_UN = torch.where(is_zero_UN, latents_UN.float().abs(), torch.inf)
    slot_UK = magnitude_UN.topk(min(_MOVED, magnitude_UN.shape[-1]), dim=-1, largest=False).indices
    is_slot_UK = is_zero_UN.gather(-1, slot_UK)
    before_UK = latents_UN.gather(-1, slot_UK).float()
    # A little less than all: from below it converges, past the mark it could not come back.
    share_UK = (mass_U1 * (1 - 2.0**-8) / is_slot_UK.sum(-1, keepdim=True).clamp_min(1)).float()
    after_UK = before_UK + torch.where(before_UK < 0, -share_UK, share_UK) * is_slot_UK
    latents_UN.scatter_(-1, slot_UK, after_UK.to(latents_UN.dtype))


def _check(latents_OI: Tensor, quantized: Quantized) -> None:
    codes_OI, scale = weight_codes(latents_OI, quantized.spec)
    wrong = int((codes_OI != quantized.codes_OI).sum())
    if wrong:
        raise OnebitError(
            f"{wrong} of {codes_OI.numel()} codes are none that quantizer {quantized.spec.quantizer!r} could give with "
            "these scales; the codes come from another quantiser or are damaged"
        )
    has_codes = quantized.scale.float() > SCALE_FLOOR * 2
    far = ((scale - quantized.scale.float()).abs() > _SCALE_TOLERANCE * scale) & has_codes
    if bool(far.any()):
        raise OnebitError(
            f"{int(far.sum())} of {far.numel()} scales are too fine for latents of {latents_OI.dtype}; use float32"
        )
