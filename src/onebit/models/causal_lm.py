"""OneBitForCausalLM: the decoder with a language-model head, as a transformers model.

Shape suffixes: B batch, L positions, C hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from onebit.models.config import OneBitConfig
from onebit.models.decoder import OneBitModel, OneBitPreTrainedModel
from onebit.models.layers import make_projection
from onebit.nn import BitLinear, Schedule

__all__ = ["OneBitForCausalLM"]


class OneBitForCausalLM(OneBitPreTrainedModel, GenerationMixin):
    """Token ids [B, L] -> logits [B, L, V], and the loss when labels are given."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: OneBitConfig) -> None:
        super().__init__(config)
        self.model: OneBitModel = OneBitModel(config)
        self.lm_head: BitLinear = make_projection(
            config, "lm_head", config.hidden_size, config.vocab_size, bias=False, schedule=None
        )
        self.post_init()  # type: ignore[no-untyped-call]

    @property
    def schedule(self) -> Schedule:
        """The dials of the soft regimes; a training callback turns them."""
        return self.model.schedule

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = cast(BitLinear, value)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """labels: [B, L], the input ids themselves (the shift happens here), -100 where no loss is wanted.

        logits_to_keep: only the last so many positions get logits, 0 for all. `num_items_in_batch` divides the
        summed loss, so that gradient accumulation weighs every token alike.
        """
        loss_kwargs = {name: kwargs.pop(name) for name in ("num_items_in_batch", "shift_labels") if name in kwargs}
        return_dict = kwargs.pop("return_dict", True)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits_BLV = self.lm_head(outputs.last_hidden_state[:, keep])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits_BLV, labels=labels, vocab_size=self.config.vocab_size, **loss_kwargs
            )
        result = CausalLMOutputWithPast(
            loss=loss,
            logits=logits_BLV,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return result if return_dict is not False else result.to_tuple()
