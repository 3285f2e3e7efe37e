"""The feed-forward part of a layer, in four kinds:

gelu       down(gelu_tanh(up x))
relu2      down(relu(up x)^2)
swiglu     down(silu(gate x) * up x)
relu2_glu  down(relu(gate x)^2 * up x)

Shape suffixes: B batch, L positions, C hidden size, N intermediate size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebit.models.config import OneBitConfig
from onebit.models.layers import make_projection
from onebit.nn import RMSNorm, Schedule

__all__ = ["MLP"]


class MLP(nn.Module):
    """[B, L, C] -> [B, L, C], with a norm before down_proj when the config asks for sub-norms."""

    def __init__(self, config: OneBitConfig, layer_idx: int, schedule: Schedule | None) -> None:
        super().__init__()
        self.kind = config.mlp_kind
        prefix, hidden, inner = f"layers.{layer_idx}.mlp", config.hidden_size, config.intermediate_size
        bias = config.mlp_bias
        gated = self.kind in ("swiglu", "relu2_glu")
        self.gate_proj = (
            make_projection(config, f"{prefix}.gate_proj", hidden, inner, bias=bias, schedule=schedule)
            if gated
            else None
        )
        self.up_proj = make_projection(config, f"{prefix}.up_proj", hidden, inner, bias=bias, schedule=schedule)
        self.down_proj = make_projection(config, f"{prefix}.down_proj", inner, hidden, bias=bias, schedule=schedule)
        self.sub_norm = RMSNorm(inner, config.norm_eps) if config.use_sub_norm else None

    def forward(self, x_BLC: Tensor) -> Tensor:
        codes = self.up_proj.activation_codes(x_BLC)
        up_BLN = self.up_proj(x_BLC, codes)
        if self.gate_proj is None:
            inner_BLN = _relu_squared(up_BLN) if self.kind == "relu2" else F.gelu(up_BLN, approximate="tanh")
        else:
            agrees = self.gate_proj.activation_quantizer == self.up_proj.activation_quantizer
            gate_BLN = self.gate_proj(x_BLC, codes if agrees else None)
            inner_BLN = (_relu_squared(gate_BLN) if self.kind == "relu2_glu" else F.silu(gate_BLN)) * up_BLN
        if self.sub_norm is not None:
            inner_BLN = self.sub_norm(inner_BLN)
        y_BLC: Tensor = self.down_proj(inner_BLN)
        return y_BLC


def _relu_squared(x_BLN: Tensor) -> Tensor:
    # 256 squared is float16's infinity. BitLinear and RMSNorm take float32 and give back the model's type.
    positive_BLN = F.relu(x_BLN)
    return positive_BLN.float().square() if positive_BLN.dtype == torch.float16 else positive_BLN.square()
