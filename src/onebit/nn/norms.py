"""RMSNorm and LayerNorm with float32 statistics, whatever the input type.

Shape suffix: D is the normalised dimension, the last one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LayerNorm", "RMSNorm"]


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension; the result has the input's type."""

    def __init__(
        self, dim: int, eps: float = 1e-5, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x_D: Tensor) -> Tensor:
        return F.rms_norm(x_D.float(), self.weight.shape, self.weight.float(), self.eps).to(x_D.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


class LayerNorm(nn.LayerNorm):
    """torch's LayerNorm (population variance, weight and bias) with float32 statistics."""

    def forward(self, x_D: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(x_D.float(), self.normalized_shape, self.weight.float(), bias, self.eps).to(x_D.dtype)
