"""CodedMatrix: what a matrix of codes holds: packed codes, scales, an integer counter per code, and moments.

It is a module, so that layers whose weights are tied share one, and it stands where a layer's `weight` stood. Its
parameter is the logarithm of the scale: AdamW's step is then a change by a share, whatever the size of the weights,
where a step of 1e-3 on a scale of 0.02 would be a twentieth. Codes and counters are buffers: they belong to the
state_dict, move with the model, and no cast touches them; the scale and the moments stay float32 too. Scales per group
keep their proportions within a row, and what is trained is a factor for the row: 16 bytes for each group, with gradient
and moments, were an eighth of a byte a weight, and models trained with them were no better.

==============  ============================================  =======================
name            tensor                                        bytes a weight
==============  ============================================  =======================
codes           uint8 [O, B], layout `ternary` or `binary`    1/4 or 1/8
counters        int8 [O, I]; int4: uint8 [O, B], layout       1; 1/2; 1/4 (while a
                `int4`; none: uint8 [O, B], `ternary`         step lasts it matters)
log_scale       float32 [], or [O], a parameter               as its gradient, moments
group_scales    float16 [O, G], with scales per group         2 / group
row_moments     float32 [O]                                   4 / I
column_moments  float32 [I]                                   4 / O
deposits        int64 [], how many there were
mean_magnitude  float32 [], mean |W| of the first latents
==============  ============================================  =======================

Shape suffixes: O outputs, I inputs, B bytes of a row, G groups of inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from onebit.errors import OnebitError
from onebit.nn.pure_sharding import Rows, RowSharded
from onebit.nn.pure_storage import pack_codes, pack_counters, packed_width, unpack_codes, unpack_counters
from onebit.optim.pure_deposit import row_chunks
from onebit.quant import Quantized, WeightQuantizer, quantize
from onebit.quant.counters import Counter, start_counters
from onebit.quant.weights import expand_scale

__all__ = ["CodedMatrix", "exported_scale"]


class CodedMatrix(RowSharded):
    """Codes, counters and scale of one matrix [out_features, in_features]; all zeros until it is given something."""

    DIVIDED = ("codes", "counters")
    SHARED = "deposits"

    codes: Tensor
    counters: Tensor
    row_moments: Tensor
    column_moments: Tensor
    deposits: Tensor
    mean_magnitude: Tensor
    group_scales: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        spec: WeightQuantizer,
        counter: Counter,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.rows = Rows(out_features)
        self.spec, self.counter = spec, counter
        self.is_binary = spec.quantizer == "binary"
        width = packed_width(in_features, 1 if self.is_binary else 2)
        self.register_buffer("codes", torch.zeros(out_features, width, dtype=torch.uint8, device=device))
        empty = torch.zeros(1, in_features, dtype=torch.int8, device=device)
        self.register_buffer("counters", pack_counters(empty, counter).repeat(out_features, 1))
        self.register_buffer("row_moments", torch.zeros(out_features, device=device))
        self.register_buffer("column_moments", torch.zeros(in_features, device=device))
        self.register_buffer("deposits", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("mean_magnitude", torch.ones((), device=device))
        groups = None
        if spec.group_size is not None:
            shape = out_features, -(-in_features // spec.group_size)
            groups = torch.ones(shape, dtype=torch.float16, device=device)
        self.register_buffer("group_scales", groups)
        rows = () if spec.granularity == "per_tensor" else (out_features,)
        self.log_scale = nn.Parameter(torch.zeros(rows, device=device))

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.out_features, self.in_features))

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def dtype(self) -> torch.dtype:
        """What a caller that casts its inputs to a layer's weight should cast to: the scale's."""
        return self.log_scale.dtype

    @torch.no_grad()
    def set_latents(self, w_OI: Tensor) -> None:
        """Round latents [O, I] to codes and scales, and keep what that lost in the counters.

        Raises OnebitError for NaN and infinity.
        """
        quantized = quantize(w_OI, self.spec)
        self.set_codes(quantized)
        self.mean_magnitude.copy_(w_OI.float().abs().mean())
        scale = expand_scale(quantized.scale.float(), self.spec, self.in_features)
        offset = _centre(w_OI, self.spec) if self.is_binary and self.spec.center else 0.0
        for part in self._parts():
            scale_part = scale[part] if scale.ndim else scale
            offset_part = offset[part] if isinstance(offset, Tensor) and offset.shape[0] > 1 else offset
            w = (w_OI[part].float() - offset_part) / scale_part
            counters = start_counters(w, quantized.codes_OI[part], self.counter, is_binary=self.is_binary)
            self.counters[part] = pack_counters(counters, self.counter)

    @torch.no_grad()
    def set_codes(self, quantized: Quantized) -> None:
        """Take over codes and scales; counters start at 0. Raises OnebitError for codes or scales of another kind."""
        codes_OI, scale = quantized.codes_OI, quantized.scale
        scales = self.log_scale if self.group_scales is None else self.group_scales
        allowed = (codes_OI.abs() == 1) if self.is_binary else (codes_OI.abs() <= 1)
        if tuple(codes_OI.shape) != tuple(self.shape) or scale.shape != scales.shape or not bool(allowed.all()):
            raise OnebitError(
                f"codes {tuple(codes_OI.shape)} with scales {tuple(scale.shape)} cannot be those of this weight; "
                f"expected {'binary' if self.is_binary else 'ternary'} codes {tuple(self.shape)} "
                f"with scales {tuple(scales.shape)}"
            )
        if self.rows.is_part:
            raise OnebitError("the rows of this weight are divided over processes; give it codes before that")
        if not bool((scale > 0).all()):
            raise OnebitError("a scale is not positive; scales multiply the codes and carry no sign")
        self.codes.copy_(pack_codes(codes_OI.to(torch.int8), is_binary=self.is_binary))
        self.counters.copy_(pack_counters(torch.zeros_like(codes_OI[:1], dtype=torch.int8), self.counter))
        if self.group_scales is None:
            self.log_scale.copy_(scale.float().log())
        else:
            self.log_scale.zero_()
            self.group_scales.copy_(scale)
        self.mean_magnitude.copy_(scale.float().mean())

    def quantized(self) -> Quantized:
        """Codes and scales as they are exported."""
        with torch.no_grad():
            scale = exported_scale(self.log_scale, self.group_scales)
            codes_OI = unpack_codes(self.rows.whole(self.codes), self.in_features, is_binary=self.is_binary)
            return Quantized(codes_OI, scale, self.spec)

    def counts(self) -> Tensor:
        """The counters as int8 [O, I]."""
        return unpack_counters(self.rows.whole(self.counters), self.in_features, self.counter)

    def mean_size(self) -> float:
        """`mean_magnitude` as a number; a device is asked for it again only after a change."""
        known, tensor = self.__dict__.get("_mean_size"), self.mean_magnitude
        if known is None or known[0] is not tensor or known[1] != tensor._version:
            known = tensor, tensor._version, float(tensor)
            self.__dict__["_mean_size"] = known
        return float(known[2])

    @torch.no_grad()
    def hand_over_counters(self) -> Tensor:
        """Latents, float32 [O, I], from codes and counters, which then are 0."""
        quantized, counts_OI = self.quantized(), self.counts()
        lost_OI = counts_OI.float() / (self.counter.threshold * (1 if self.is_binary else 2))
        self.counters.copy_(pack_counters(torch.zeros_like(counts_OI[:1]), self.counter))
        return (quantized.codes_OI + lost_OI) * expand_scale(quantized.scale.float(), self.spec, self.in_features)

    def extra_repr(self) -> str:
        kind = "binary" if self.is_binary else "ternary"
        return f"{self.in_features}, {self.out_features}, {kind} {self.spec.granularity}, counter={self.counter.name}"

    def _parts(self) -> Iterator[slice]:
        return row_chunks(self.out_features, self.in_features, self.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CodedMatrix:
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move, recurse)
        return self


def exported_scale(log_scale: Tensor, group_scales: Tensor | None) -> Tensor:
    """The scales as they are exported: float32 [] or [O]; per group float16 [O, G]."""
    scale = log_scale.float().exp()
    return scale if group_scales is None else (scale.unsqueeze(1) * group_scales.float()).half()


def _centre(w_OI: Tensor, spec: WeightQuantizer) -> Tensor:
    """What the binary quantiser subtracts, [1, 1], [O, 1] or [O, I]."""
    w_OI = w_OI.float()
    if spec.granularity == "per_tensor":
        return w_OI.mean().view(1, 1)
    if spec.group_size is None:
        return w_OI.mean(1, keepdim=True)
    parts = [part.mean(1, keepdim=True).expand_as(part) for part in w_OI.split(spec.group_size, dim=1)]
    return torch.cat(parts, dim=1)
