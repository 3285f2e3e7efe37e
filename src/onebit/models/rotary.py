"""Rotary position embeddings, rotate-half convention (GPT-NeoX, Hugging Face Llama).

Angles are worked out in float64 on the host and kept as float32 tables: an angle of hundreds of radians loses digits
in float32, and the C engine computes the same table. Nothing on the device is float64, which some devices lack.

Shape suffixes: B batch, H heads, L positions, D head size, P table rows.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["RotaryEmbedding", "apply_rotary"]


class RotaryEmbedding(nn.Module):
    """cos and sin tables [P, D] for positions below `max_seq_len`."""

    cos_PD: Tensor
    sin_PD: Tensor

    def __init__(self, head_dim: int, max_seq_len: int, theta: float) -> None:
        super().__init__()
        self.head_dim, self.max_seq_len, self.theta = head_dim, max_seq_len, theta
        self.register_buffer("cos_PD", torch.empty(max_seq_len, head_dim, dtype=torch.float32), persistent=False)
        self.register_buffer("sin_PD", torch.empty(max_seq_len, head_dim, dtype=torch.float32), persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Fill the tables; also what makes them valid after the meta device."""
        if self.cos_PD.is_meta:
            return
        inv_freq = self.theta ** (-np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim)
        angles = np.outer(np.arange(self.max_seq_len, dtype=np.float64), inv_freq)
        angles = np.concatenate([angles, angles], axis=1)
        self.cos_PD.copy_(torch.from_numpy(np.cos(angles).astype(np.float32)))
        self.sin_PD.copy_(torch.from_numpy(np.sin(angles).astype(np.float32)))

    def forward(self, position_ids_BL: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin), each float32 [B, 1, L, D], ready to multiply [B, H, L, D]."""
        return self.cos_PD[position_ids_BL].unsqueeze(1), self.sin_PD[position_ids_BL].unsqueeze(1)


def apply_rotary(x_BHLD: Tensor, cos_B1LD: Tensor, sin_B1LD: Tensor) -> Tensor:
    """Rotate the pairs (i, i + D/2) by their position's angle; computed in float32, returned in x's type."""
    half = x_BHLD.shape[-1] // 2
    rotated = torch.cat((-x_BHLD[..., half:], x_BHLD[..., :half]), dim=-1)
    return (x_BHLD * cos_B1LD + rotated * sin_B1LD).to(x_BHLD.dtype)
