"""OneBitConfig and OneBitForCausalLM; importing this package registers them with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from onebit.models.causal_lm import OneBitForCausalLM
from onebit.models.config import PRESETS, OneBitConfig
from onebit.models.decoder import OneBitModel

__all__ = ["PRESETS", "OneBitConfig", "OneBitForCausalLM", "OneBitModel"]

AutoConfig.register(OneBitConfig.model_type, OneBitConfig, exist_ok=True)
AutoModel.register(OneBitConfig, OneBitModel, exist_ok=True)
AutoModelForCausalLM.register(OneBitConfig, OneBitForCausalLM, exist_ok=True)
# Trainer's label smoothing shifts the labels only for the class names in this table.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[OneBitConfig.model_type] = OneBitForCausalLM.__name__
