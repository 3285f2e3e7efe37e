"""An embedding table at a lower level: looked up through its quantiser, trained straight-through.

A head that shares the table's weight reads it through the same quantiser, in the same basis and with the same dials, so
that the two stay one matrix in the file.

Shape suffixes: V vocabulary, D dimension, T tokens (any leading dimensions).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebit.errors import OnebitError
from onebit.nn.bit_linear import soft_weight
from onebit.nn.hadamard import HadamardRotation
from onebit.nn.schedule import Schedule
from onebit.quant import Quantized, WeightQuantizer, fake_quantize, quantize, straight_through

__all__ = ["BitEmbedding"]


class BitEmbedding(nn.Embedding):
    """nn.Embedding whose table is fake-quantised by `quantizer`; None is a float table.

    schedule: the model's soft regimes, None for none. rotation: the table's rows are in its turned basis, and what is
    looked up is turned back; None for none.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        quantizer: WeightQuantizer | None = None,
        ste_scale_factor: float = 1.0,
        schedule: Schedule | None = None,
        rotation: HadamardRotation | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, device=device, dtype=dtype)
        self.weight_quantizer = quantizer
        self.ste_scale_factor = ste_scale_factor
        self.rotation = rotation
        # Not a submodule: the model owns the schedule.
        self.__dict__["schedule"] = schedule

    def forward(self, ids_T: Tensor) -> Tensor:
        """int64 [T] -> [T, D]."""
        rows_TD = self._rows(ids_T)
        return rows_TD if self.rotation is None else self.rotation.inverse(rows_TD).to(rows_TD.dtype)

    def quantized(self) -> Quantized:
        """Codes and scales of the table as they are exported; OnebitError for a float table, NaN or infinity."""
        if self.weight_quantizer is None:
            raise OnebitError("this table has no weight quantiser: read its float weight instead")
        return quantize(self.weight.detach(), self.weight_quantizer)

    def extra_repr(self) -> str:
        spec = self.weight_quantizer
        return f"{super().extra_repr()}, weights={'float' if spec is None else spec.quantizer}"

    def _rows(self, ids_T: Tensor) -> Tensor:
        spec = self.weight_quantizer
        if spec is None:
            return super().forward(ids_T)
        if spec.granularity == "per_tensor" and not spec.is_float16:
            return F.embedding(ids_T, self._read(self.weight, spec), self.padding_idx)
        # A row's scales depend on that row alone: quantise what is looked up, not the whole table.
        rows_TD = super().forward(ids_T)
        return self._read(rows_TD.flatten(0, -2), spec).view(rows_TD.shape)

    def _read(self, w_VD: Tensor, spec: WeightQuantizer) -> Tensor:
        schedule: Schedule | None = self.__dict__["schedule"]
        if self.training and schedule is not None and schedule.is_soft:
            return soft_weight(w_VD, spec, schedule, self.ste_scale_factor).to(w_VD.dtype)
        return straight_through(w_VD, fake_quantize(w_VD, spec).to(w_VD.dtype), self.ste_scale_factor)
