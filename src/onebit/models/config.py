"""OneBitConfig: everything that decides the shape, the quantisation and the soft regimes of a model.

Field names and defaults are those of the OneBit-LLM configuration table, so its config.json loads as it is; Hugging
Face spellings are accepted beside them. An unknown key is an error that names the nearest right one: a mistyped flag
that is silently dropped would train another model than the one asked for.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, cast

from transformers import PretrainedConfig

from onebit.errors import ConfigError, nearest_name
from onebit.models.validation import fill_derived, validate
from onebit.nn.bit_linear import weight_quantizer_from
from onebit.quant import ActivationQuantizer, Granularity, QuantizerName, WeightQuantizer

__all__ = ["PRESETS", "OneBitConfig"]

PRESETS = ("seed", "bitnet", "llama", "qwen3")

# Keys that transformers itself puts into or takes out of a configuration.
_TRANSFORMERS_KEYS = frozenset(
    {
        "_attn_implementation",
        "_commit_hash",
        "_from_auto",
        "_name_or_path",
        "attn_implementation",
        "auto_map",
        "experts_implementation",
        "model_type",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "torch_dtype",
    }
)


class OneBitConfig(PretrainedConfig):
    """Configuration of OneBitForCausalLM; raises ConfigError for unknown keys and for values that cannot work.

    The seed's table comes first. `use_subln` means RMSNorm instead of LayerNorm; BitNet's norms before o_proj and
    down_proj are `use_sub_norm`. `quantizer` None derives the quantiser from the seed's fields; "none" makes a
    float model (the twin that a quantised one is compared with). `bit_width_map` gives single modules another level:
    pattern on the module's name ("layers.0.mlp.up_proj", "embed_tokens", "lm_head") -> level, first match wins; made
    into one of names alone.
    """

    model_type = "onebit"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "max_position_embeddings": "max_seq_len",
        "rms_norm_eps": "norm_eps",
    }

    vocab_size: int = 50257
    hidden_size: int = 512
    num_heads: int = 8
    num_layers: int = 6
    intermediate_size: int = 2048
    max_seq_len: int = 512
    use_ternary: bool = False
    use_relu2: bool = False
    use_swiglu: bool = False
    use_subln: bool = False
    use_rope: bool = False
    use_qk_norm: bool = True
    use_residual_scaling: bool = True
    use_dynamic_threshold: bool = True
    ste_scale_factor: float = 2.0
    latent_clamp_max: float | None = 1.5
    anneal_fraction: float = 0.3
    arenas_initial: float | None = None
    arenas_anneal_steps: int = 10000

    num_key_value_heads: int | None = None
    head_dim: int | None = None
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = True
    norm_eps: float = 1e-5
    attention_bias: bool = False
    mlp_bias: bool = False
    use_sub_norm: bool = False
    quantizer: str | None = None
    granularity: str = "per_tensor"
    group_size: int | None = None
    activation_quantizer: str = "int8"
    weight_sparsity_threshold: float | None = None
    center_binary: bool = True
    lambda_warmup_fraction: float | None = None
    bit_width_map: dict[str, str] | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    initializer_range: float = 0.02
    use_cache: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        for spelling, name in self.attribute_map.items():
            if spelling in kwargs:
                setattr(self, name, kwargs.pop(spelling))
        refuse_unknown_keys(kwargs)
        fill_derived(self)
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        validate(self)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> OneBitConfig:
        """A named configuration ("seed", "bitnet", "llama", "qwen3") with some fields replaced."""
        if name not in PRESETS:
            raise ConfigError(
                f"unknown preset {name!r}, expected one of {', '.join(PRESETS)}{nearest_name(name, PRESETS)}"
            )
        preset = json.loads((Path(__file__).parent / "presets" / f"{name}.json").read_text("utf-8"))
        renamed = {cls.attribute_map.get(key, key): value for key, value in overrides.items()}
        return cls(**(preset | renamed))

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> OneBitConfig:
        """Read a config.json, the seed's or our own; ConfigError when it is missing or no JSON object."""
        path = Path(json_file)
        try:
            values = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(
                f"{path} holds a JSON {type(values).__name__}, expected an object with the fields of a model"
            )
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    @property
    def resolved_quantizer(self) -> str:
        """The quantiser's name once `quantizer: null` is derived from the seed's fields; "none" for a float model."""
        if self.quantizer is not None:
            return self.quantizer
        if not self.use_ternary:
            return "binary"
        if self.weight_sparsity_threshold is not None:
            return "sparsity"
        return "threshold" if self.use_dynamic_threshold else "absmean"

    @property
    def mlp_kind(self) -> str:
        """gelu, relu2, swiglu or relu2_glu."""
        if self.use_swiglu:
            return "relu2_glu" if self.use_relu2 else "swiglu"
        return "relu2" if self.use_relu2 else "gelu"

    @property
    def residual_scale(self) -> float:
        return 1.0 / math.sqrt(2.0) if self.use_residual_scaling else 1.0

    def module_names(self) -> list[str]:
        """The modules that have a level, as `bit_width_map` names them, in the model's order."""
        mlp = ("gate_proj", "up_proj", "down_proj") if self.use_swiglu else ("up_proj", "down_proj")
        parts = [f"attention.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
        parts += [f"mlp.{name}" for name in mlp]
        return ["embed_tokens", *(f"layers.{i}.{part}" for i in range(self.num_layers) for part in parts), "lm_head"]

    def level(self, module_name: str) -> str | None:
        """The level that `bit_width_map` gives a module, None when it gives none."""
        return (self.bit_width_map or {}).get(module_name)

    def weight_quantizer(self, module_name: str) -> WeightQuantizer | None:
        """A module's weight quantiser, None for float; embedding and head are float unless the map says otherwise."""
        level = self.level(module_name)
        if level is None:
            if module_name in ("embed_tokens", "lm_head"):
                return None
            return self._model_quantizer(self.resolved_quantizer)
        if level == "float32":
            return None
        if level == "binary":
            return self._model_quantizer("binary")
        if level == "ternary":
            own = self.resolved_quantizer
            return self._model_quantizer(
                own if own in ("absmean", "threshold", "sparsity") else self._ternary_default()
            )
        return WeightQuantizer.for_level(cast(Any, level))

    def activation_quantizer_of(self, module_name: str) -> ActivationQuantizer:
        """Activations are quantised in front of integer weights only; for the head, before int8 and int4 alone."""
        spec = self.weight_quantizer(module_name)
        if spec is None or spec.is_float16:
            return "none"
        if module_name == "lm_head":  # as a file has it: codes before codes make an integer product
            is_integer = spec.quantizer in ("int8", "int4") and self.activation_quantizer != "none"
            return "int8" if is_integer else "none"
        return cast(ActivationQuantizer, self.activation_quantizer)

    def _ternary_default(self) -> str:
        return "threshold" if self.use_dynamic_threshold else "absmean"

    def _model_quantizer(self, name: str) -> WeightQuantizer | None:
        if name == "none":
            return None
        return weight_quantizer_from(
            cast(QuantizerName, name),
            cast(Granularity, self.granularity),
            self.group_size,
            self.weight_sparsity_threshold if name == "sparsity" else None,
            self.center_binary,
        )


def refuse_unknown_keys(values: dict[str, Any]) -> None:
    """Raise ConfigError for keys that neither onebit nor transformers knows, naming the nearest right ones."""
    known = {field.name for field in fields(OneBitConfig)} | set(OneBitConfig.attribute_map) | _TRANSFORMERS_KEYS
    unknown = sorted(set(values) - known)
    if unknown:
        hints = "; ".join(f"unknown key {key!r}{nearest_name(key, known - _TRANSFORMERS_KEYS)}" for key in unknown)
        raise ConfigError(f"{hints}; remove it or correct it")
