"""The decoder: embeddings, a stack of layers, a final norm.

Shape suffixes: B batch, L positions, C hidden size, K keys.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, initialization
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from onebit.errors import OnebitError
from onebit.models.attention import Attention
from onebit.models.config import OneBitConfig
from onebit.models.layers import make_norm
from onebit.models.mlp import MLP
from onebit.models.rotary import RotaryEmbedding
from onebit.nn import BitEmbedding, Schedule

__all__ = ["DecoderLayer", "OneBitModel", "OneBitPreTrainedModel"]


class DecoderLayer(GradientCheckpointingLayer):
    """x + s * attention(norm(x)), then x + s * mlp(norm(x)); s is 1/sqrt(2) with use_residual_scaling, else 1."""

    def __init__(self, config: OneBitConfig, layer_idx: int, schedule: Schedule | None) -> None:
        super().__init__()
        self.residual_scale = config.residual_scale
        self.input_norm = make_norm(config)
        self.attention = Attention(config, layer_idx, schedule)
        self.mlp_norm = make_norm(config)
        self.mlp = MLP(config, layer_idx, schedule)

    def forward(
        self,
        x_BLC: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        attention_mask: Tensor | None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        y_BLC, weights = self.attention(self.input_norm(x_BLC), rotary, attention_mask, past_key_values, **kwargs)
        x_BLC = self._add(x_BLC, y_BLC)
        return self._add(x_BLC, self.mlp(self.mlp_norm(x_BLC))), weights

    def _add(self, x_BLC: Tensor, y_BLC: Tensor) -> Tensor:
        return x_BLC + y_BLC if self.residual_scale == 1.0 else torch.add(x_BLC, y_BLC, alpha=self.residual_scale)


class OneBitPreTrainedModel(PreTrainedModel):
    """What transformers needs to know about the models of this package."""

    config_class = OneBitConfig
    config: OneBitConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, RotaryEmbedding):
            module.reset_parameters()
        elif isinstance(module, Schedule):
            for name, value in (("lambda_", 1.0), ("soft_alpha", 0.0), ("arenas", 0.0)):
                initialization.constant_(getattr(module, name), value)


class OneBitModel(OneBitPreTrainedModel):
    """Token ids [B, L] -> hidden states [B, L, C]. `schedule` carries the dials of the soft regimes."""

    def __init__(self, config: OneBitConfig) -> None:
        super().__init__(config)
        self.schedule = Schedule(
            uses_lambda=config.lambda_warmup_fraction is not None,
            uses_soft_codes=config.anneal_fraction > 0,
            uses_arenas=bool(config.arenas_initial),
        )
        self.embed_tokens = BitEmbedding(
            config.vocab_size,
            config.hidden_size,
            quantizer=config.weight_quantizer("embed_tokens"),
            ste_scale_factor=config.ste_scale_factor,
        )
        assert config.head_dim is not None
        self.embed_positions = None if config.use_rope else nn.Embedding(config.max_seq_len, config.hidden_size)
        self.rotary = (
            RotaryEmbedding(config.head_dim, config.max_seq_len, config.rope_theta) if config.use_rope else None
        )
        self.layers = nn.ModuleList(DecoderLayer(config, i, self.schedule) for i in range(config.num_layers))
        self.norm = make_norm(config)
        self.gradient_checkpointing = False
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embed_tokens = cast(BitEmbedding, value)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """hidden_states, when asked for: the residual stream after the embedding and after each layer."""
        if (input_ids is None) == (inputs_embeds is None):
            raise OnebitError("give exactly one of input_ids and inputs_embeds")
        x_BLC = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        self._check_length(past, x_BLC.shape[1])
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=x_BLC,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,  # the caller's, which may pack texts: looking for that waits for the device
        )
        if position_ids is None:
            position_ids = (torch.arange(x_BLC.shape[1], device=x_BLC.device) + past).unsqueeze(0)
        if self.embed_positions is not None:
            x_BLC = x_BLC + self.embed_positions(position_ids)
        rotary = None if self.rotary is None else self.rotary(position_ids)

        states = [x_BLC] if output_hidden_states else None
        weights: list[Tensor] | None = [] if output_attentions else None
        for layer in self.layers:
            x_BLC, layer_weights = layer(x_BLC, rotary, mask, past_key_values=past_key_values, **kwargs)
            if states is not None:
                states.append(x_BLC)
            if weights is not None:
                weights.append(layer_weights)
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(x_BLC),
            past_key_values=past_key_values if use_cache else None,
            hidden_states=None if states is None else tuple(states),
            attentions=None if weights is None else tuple(weights),
        )

    def _check_length(self, past: Any, new: int) -> None:
        # A static cache counts on the device; asking it would wait, and its own size bounds the length.
        if isinstance(past, int) and past + new > self.config.max_seq_len:
            raise OnebitError(
                f"{past + new} tokens do not fit max_seq_len {self.config.max_seq_len}; "
                "shorten the text or generate less"
            )
