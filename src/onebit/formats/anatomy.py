"""Where the tensors of a ``.1bit`` file come from in a torch model: ours by their own names, and models of transformers
whose layers compute what the format describes, by a table of names.

A family is listed by `model_type`, never guessed from its modules: Gemma has the modules of Llama and computes with
``1 + weight`` in its norms. Fused projections are cut by rows, which is exact: a scale belongs to the whole matrix, to
a row, or to a part of a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from onebit.errors import ConfigError
from onebit.formats.description import ModelDescription

__all__ = [
    "FAMILIES",
    "LAYER_NAMES",
    "Part",
    "blocks_of",
    "describe_transformers",
    "is_own",
    "parts_of",
    "table_modules",
]

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "bitnet", "phi3", "gpt2")

_MLPS = {"silu": "swiglu", "relu2": "relu2_glu"}
_PLAIN_MLPS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu2": "relu2"}
_EXACT_ROPE = ("default", "linear", "llama3", "yarn")
LAYER_NAMES = {
    "input_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    **{f"attention.{name}": f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
    **{f"attention.{name}": f"self_attn.{name}" for name in ("q_norm", "k_norm")},
    "attention.sub_norm": "self_attn.attn_sub_norm",
    **{f"mlp.{name}": f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")},
    "mlp.sub_norm": "mlp.ffn_sub_norm",
}
_GPT2_LAYER = {
    "input_norm": "ln_1",
    "mlp_norm": "ln_2",
    "attention.o_proj": "attn.c_proj",
    "attention.sub_norm": "attn.attn_sub_norm",
    "mlp.up_proj": "mlp.c_fc",
    "mlp.down_proj": "mlp.c_proj",
    "mlp.sub_norm": "mlp.ffn_sub_norm",
}


@dataclass(frozen=True)
class Part:
    """The module that holds a tensor, and which of its rows (outputs); None is all."""

    module: Any
    rows: slice | None = None

    def value(self, parameter: str) -> Any:
        """``weight`` [O, I] or [D], ``bias`` [O]; None where the module has none."""
        value = getattr(self.module, parameter, None)
        if value is None:
            return None
        if hasattr(value, "quantized"):  # codes and counters of pure training
            value = value.quantized().codes_OI
        elif parameter == "weight" and type(self.module).__name__ == "Conv1D":
            value = value.t()
        return value if self.rows is None else value[self.rows]

    @property
    def weight_quantizer(self) -> Any:
        """What the weight is read through, or whose codes it is made of in pure training; None for floats."""
        spec = getattr(self.module, "weight_quantizer", None)
        return getattr(getattr(self.module, "weight", None), "spec", None) if spec is None else spec

    def quantized(self) -> Any:
        """Codes and scales of these rows, as the whole matrix has them."""
        whole = self.module.quantized()
        if self.rows is None:
            return whole
        scale = whole.scale if whole.scale.ndim == 0 else whole.scale[self.rows]
        return replace(whole, codes_OI=whole.codes_OI[self.rows], scale=scale)


@dataclass(frozen=True)
class _Frequencies:
    """Stands for the module of `model.rope`."""

    inv_freq: Any


def is_own(model: Any) -> bool:
    """Whether the model is a OneBitForCausalLM rather than one of transformers."""
    return getattr(model.config, "model_type", "onebit") == "onebit"


def blocks_of(model: Any) -> tuple[list[Any], Any]:
    """The layers of a model, and the norm that reads what the last one gives."""
    if hasattr(model, "transformer"):
        return list(model.transformer.h), model.transformer.ln_f
    return list(model.model.layers), model.model.norm


def table_modules(model: Any) -> dict[str, Any]:
    """Embeddings and head by the names of their tensors without ``.weight``."""
    tables = {"model.embed_tokens": model.get_input_embeddings(), "lm_head": model.get_output_embeddings()}
    positions = getattr(getattr(model, "transformer", None), "wpe", None) or getattr(
        getattr(model, "model", None), "embed_positions", None
    )
    return tables if positions is None else {**tables, "model.embed_positions": positions}


def parts_of(model: Any, description: ModelDescription) -> dict[str, Part]:
    """The parts by the names of their tensors in the file, without ``.weight`` and ``.bias``."""
    if is_own(model):
        return {name: Part(module) for name, module in model.named_modules()}
    layers, norm = blocks_of(model)
    parts = {name: Part(module) for name, module in table_modules(model).items()}
    parts["model.norm"] = Part(norm)
    frequencies = None if description.position == "learned" else _scaled_rope(model.config)[0]
    if frequencies is not None:
        parts["model.rope"] = Part(_Frequencies(frequencies))
    for index, layer in enumerate(layers):
        parts |= {f"model.layers.{index}.{name}": part for name, part in _layer_parts(layer, description)}
    return parts


def _layer_parts(layer: Any, description: ModelDescription) -> Iterator[tuple[str, Part]]:
    modules = dict(layer.named_modules())
    for name, path in (_GPT2_LAYER if "ln_1" in modules else LAYER_NAMES).items():
        if path in modules:
            yield name, Part(modules[path])
    q, kv = (heads * description.head_dim for heads in (description.num_heads, description.num_key_value_heads))
    inner = description.intermediate_size
    for path in ("self_attn.qkv_proj", "attn.c_attn"):
        if path in modules:
            yield "attention.q_proj", Part(modules[path], slice(0, q))
            yield "attention.k_proj", Part(modules[path], slice(q, q + kv))
            yield "attention.v_proj", Part(modules[path], slice(q + kv, q + 2 * kv))
    if "mlp.gate_up_proj" in modules:
        yield "mlp.gate_proj", Part(modules["mlp.gate_up_proj"], slice(0, inner))
        yield "mlp.up_proj", Part(modules["mlp.gate_up_proj"], slice(inner, 2 * inner))


def describe_transformers(model: Any, eos: int | None) -> ModelDescription:
    """The MODEL section of a model of transformers; ConfigError names what a file cannot carry. eos: see `describe`."""
    config = model.config
    if config.model_type not in FAMILIES:
        raise ConfigError(
            f"model_type is '{config.model_type}'; a .1bit file carries models of onebit train and of the types "
            f"{', '.join(FAMILIES)}"
        )
    _refuse_what_differs(model)
    layers, norm = blocks_of(model)
    names = {name for name, _ in layers[0].named_modules()}
    gpt2, heads = config.model_type == "gpt2", config.num_attention_heads
    rope = {} if gpt2 else config.rope_parameters
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return ModelDescription(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_layers=len(layers),
        num_heads=heads,
        num_key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=head_dim,
        intermediate_size=(config.n_inner or 4 * config.n_embd) if gpt2 else config.intermediate_size,
        max_seq_len=config.max_position_embeddings,
        norm="layernorm" if gpt2 else "rmsnorm",
        mlp=_mlp_of(config),
        position="learned" if gpt2 else "rope",
        qk_norm="self_attn.q_norm" in names,
        sub_norm=any(name.endswith("attn_sub_norm") for name in names),
        tied_head=tied,
        norm_eps=_eps(norm),
        rope_theta=rope.get("rope_theta", 10000.0),
        attention_scale=_attention_scale(config, head_dim),
        bos=config.bos_token_id,
        eos=eos,
        pad=config.pad_token_id,
    )


def _attention_scale(config: Any, head_dim: int) -> float | None:
    """What scores are multiplied by, where it is not 1 / sqrt(head_dim)."""
    if config.model_type == "gpt2":
        return None if config.scale_attn_weights else 1.0
    factor = _scaled_rope(config)[1]  # on queries and keys alike, so that scores have its square
    return None if factor == 1.0 else factor**2 / math.sqrt(head_dim)


def _mlp_of(config: Any) -> str:
    name, field = (
        (config.activation_function, "activation_function")
        if config.model_type == "gpt2"
        else (
            config.hidden_act,
            "hidden_act",
        )
    )
    known = _PLAIN_MLPS if config.model_type == "gpt2" else _MLPS
    if name not in known:
        raise ConfigError(f"{field} is '{name}'; a .1bit file carries {', '.join(known)} for {config.model_type}")
    return known[name]


def _eps(norm: Any) -> float:
    return float(getattr(norm, "variance_epsilon", None) or norm.eps)


def _refuse_what_differs(model: Any) -> None:
    """What a model of a known family may have beyond what the format describes."""
    config = model.config
    for field in ("attn_logit_softcapping", "final_logit_softcapping", "scale_attn_by_inverse_layer_idx"):
        if getattr(config, field, None):
            raise ConfigError(f"{field} is {getattr(config, field)}; a .1bit file has no place for it: train without")
    if getattr(config, "add_cross_attention", False):
        raise ConfigError("add_cross_attention is true; a .1bit file holds decoders without an encoder")
    _refuse_windows(config)
    modules = dict(model.named_modules())
    for name in modules:
        if name.endswith(".post_attn_norm"):
            raise ConfigError(
                f"rmsnorm_post_attn put {name} into the model; a .1bit file has no place for it: leave it out"
            )
    norms = {_eps(m) for m in modules.values() if "Norm" in type(m).__name__ and getattr(m, "weight", None) is not None}
    if len(norms) > 1:
        found = " and ".join(f"{eps:g}" for eps in sorted(norms))
        raise ConfigError(f"the norms of the model have the eps {found}; a .1bit file has one norm_eps for all")


def _refuse_windows(config: Any) -> None:
    window, longest = getattr(config, "sliding_window", None), config.max_position_embeddings
    kinds = getattr(config, "layer_types", None)
    if window is not None and window < longest and (kinds is None or "sliding_attention" in kinds):
        raise ConfigError(
            f"sliding_window is {window}, shorter than max_position_embeddings {longest}; a .1bit file attends to the "
            f"whole context: set max_position_embeddings to {window} in config.json for files of that context"
        )


def _scaled_rope(config: Any) -> tuple[Any, float]:
    """Frequencies, float32 [head_dim / 2], None where they are those of rope_theta; the factor on cosines and sines."""
    rope = config.rope_parameters
    kind = rope.get("rope_type", "default")
    share = rope.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None))
    if share not in (None, 1.0):
        raise ConfigError(f"partial_rotary_factor is {share}; a .1bit file rotates whole heads")
    if kind not in _EXACT_ROPE:
        raise ConfigError(
            f"rope_type is '{kind}', whose frequencies change with the length of the text; a .1bit file has one set: "
            f"use one of {', '.join(_EXACT_ROPE)}, or the original context with rope_type default"
        )
    if kind == "default":
        return None, 1.0
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    inv_freq, factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    if not (inv_freq <= 1).all():
        raise ConfigError(
            f"the factor of rope_type {kind} makes frequencies above 1; a .1bit file carries factors from 1 on"
        )
    return inv_freq, float(factor)
