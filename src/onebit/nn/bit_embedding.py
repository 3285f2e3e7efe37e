"""An embedding table at a lower level: looked up through its quantiser, trained straight-through.

Shape suffixes: V vocabulary, D dimension, T tokens (any leading dimensions).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebit.errors import OnebitError
from onebit.quant import Quantized, WeightQuantizer, fake_quantize, quantize, straight_through

__all__ = ["BitEmbedding"]


class BitEmbedding(nn.Embedding):
    """nn.Embedding whose table is fake-quantised by `quantizer`; None is a float table."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        quantizer: WeightQuantizer | None = None,
        ste_scale_factor: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, device=device, dtype=dtype)
        self.weight_quantizer = quantizer
        self.ste_scale_factor = ste_scale_factor

    def forward(self, ids_T: Tensor) -> Tensor:
        """int64 [T] -> [T, D]."""
        spec = self.weight_quantizer
        if spec is None:
            return super().forward(ids_T)
        if spec.granularity == "per_tensor" and not spec.is_float16:
            q_w_VD = fake_quantize(self.weight, spec).to(self.weight.dtype)
            table_VD = straight_through(self.weight, q_w_VD, self.ste_scale_factor)
            return F.embedding(ids_T, table_VD, self.padding_idx)
        # A row's scales depend on that row alone: quantise what is looked up, not the whole table.
        rows_TD = super().forward(ids_T)
        q_rows_TD = fake_quantize(rows_TD.flatten(0, -2), spec).view(rows_TD.shape).to(rows_TD.dtype)
        return straight_through(rows_TD, q_rows_TD, self.ste_scale_factor)

    def quantized(self) -> Quantized:
        """Codes and scales of the table as they are exported; OnebitError for a float table, NaN or infinity."""
        if self.weight_quantizer is None:
            raise OnebitError("this table has no weight quantiser: read its float weight instead")
        return quantize(self.weight.detach(), self.weight_quantizer)

    def extra_repr(self) -> str:
        spec = self.weight_quantizer
        return f"{super().extra_repr()}, weights={'float' if spec is None else spec.quantizer}"
