"""Causal self-attention with grouped queries, optional QK norm, rotary positions and a norm before the output.

The attention kernel is transformers' choice (SDPA by default), so that masks, caches and backends behave as everywhere.

Shape suffixes: B batch, L queries, K keys, H heads, D head size, C hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from onebit.models.config import OneBitConfig
from onebit.models.layers import make_projection
from onebit.models.rotary import apply_rotary
from onebit.nn import BitLinear, RMSNorm, Schedule

__all__ = ["Attention"]


class Attention(nn.Module):
    """[B, L, C] -> [B, L, C]. `layer_idx` names its place in the cache."""

    def __init__(self, config: OneBitConfig, layer_idx: int, schedule: Schedule | None) -> None:
        super().__init__()
        assert config.head_dim is not None  # the config filled them in
        assert config.num_key_value_heads is not None
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True

        prefix, hidden = f"layers.{layer_idx}.attention", config.hidden_size
        query_size, key_size = config.num_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        bias = config.attention_bias
        self.q_proj = make_projection(config, f"{prefix}.q_proj", hidden, query_size, bias=bias, schedule=schedule)
        self.k_proj = make_projection(config, f"{prefix}.k_proj", hidden, key_size, bias=bias, schedule=schedule)
        self.v_proj = make_projection(config, f"{prefix}.v_proj", hidden, key_size, bias=bias, schedule=schedule)
        self.o_proj = make_projection(config, f"{prefix}.o_proj", query_size, hidden, bias=bias, schedule=schedule)
        self.q_norm = RMSNorm(self.head_dim, config.norm_eps) if config.use_qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, config.norm_eps) if config.use_qk_norm else None
        self.sub_norm = RMSNorm(query_size, config.norm_eps) if config.use_sub_norm else None

    def forward(
        self,
        x_BLC: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """The output and, with the eager kernel, the attention weights [B, H, L, K]."""
        codes = self.q_proj.activation_codes(x_BLC)  # one input, quantised once for the layers that agree
        q_BHLD = self._heads(self.q_proj(x_BLC, codes))
        k_BHLD = self._heads(self.k_proj(x_BLC, codes if self._agrees(self.k_proj) else None))
        v_BHLD = self._heads(self.v_proj(x_BLC, codes if self._agrees(self.v_proj) else None))
        if self.q_norm is not None and self.k_norm is not None:
            q_BHLD, k_BHLD = self.q_norm(q_BHLD), self.k_norm(k_BHLD)
        if rotary is not None:
            q_BHLD, k_BHLD = apply_rotary(q_BHLD, *rotary), apply_rotary(k_BHLD, *rotary)
        if past_key_values is not None:
            k_BHLD, v_BHLD = past_key_values.update(k_BHLD, v_BHLD, self.layer_idx)

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, _eager_attention)
        y_BLHD, weights = attend(self, q_BHLD, k_BHLD, v_BHLD, attention_mask, scaling=self.scaling, **kwargs)
        y_BLN = y_BLHD.flatten(2)
        if self.sub_norm is not None:
            y_BLN = self.sub_norm(y_BLN)
        return self.o_proj(y_BLN), weights

    def _heads(self, x_BLN: Tensor) -> Tensor:
        return x_BLN.view(*x_BLN.shape[:-1], -1, self.head_dim).transpose(1, 2)

    def _agrees(self, other: BitLinear) -> bool:
        return other.activation_quantizer == self.q_proj.activation_quantizer


def _eager_attention(
    module: Attention,
    q_BHLD: Tensor,
    k_BHKD: Tensor,
    v_BHKD: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention written out, for those who want its weights (`attn_implementation="eager"`)."""
    k_BHKD = k_BHKD.repeat_interleave(module.num_key_value_groups, dim=1)
    v_BHKD = v_BHKD.repeat_interleave(module.num_key_value_groups, dim=1)
    scores_BHLK = (q_BHLD @ k_BHKD.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        scores_BHLK = scores_BHLK + attention_mask
    weights_BHLK = torch.softmax(scores_BHLK.float(), dim=-1).to(v_BHKD.dtype)
    return (weights_BHLK @ v_BHKD).transpose(1, 2), weights_BHLK
