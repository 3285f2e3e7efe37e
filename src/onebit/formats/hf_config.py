"""The config.json of a transformers model that computes what a ``.1bit`` file describes.

BitNetForCausalLM has the sub-norms, Qwen3ForCausalLM the norms of q and k, Qwen2ForCausalLM biases of q, k and v
alone, LlamaForCausalLM is all the rest; the MLP's activation is a field of each. What none of them computes is refused
with the field of the configuration that stands in the way.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from onebit.errors import ConfigError
from onebit.formats.anatomy import LAYER_NAMES
from onebit.formats.description import ModelDescription
from onebit.formats.onebit_file import OneBitFile

__all__ = ["LINEAR_CLASSES", "config_of", "generation_config_of", "linear_class_of", "transformers_name"]

LINEAR_CLASSES = ("bitlinear", "autobitlinear")
_CLASSES = {"bitnet": "BitNet", "qwen3": "Qwen3", "qwen2": "Qwen2", "llama": "Llama"}
_IN_LAYER = re.compile(r"(model\.layers\.\d+)\.(.+)\.(weight|bias)")


def transformers_name(name: str) -> str:
    """The name of a tensor in a model of transformers."""
    found = _IN_LAYER.fullmatch(name)
    return name if found is None else f"{found[1]}.{LAYER_NAMES[found[2]]}.{found[3]}"


def config_of(file: OneBitFile) -> dict[str, Any]:
    """config.json without dtype and quantization_config. Raises ConfigError for what transformers has no model of."""
    d = file.description
    family = _family(file)
    has = {name for name in ("q", "k", "v", "o") if f"model.layers.0.attention.{name}_proj.bias" in file.tensors}
    mlp_bias = "model.layers.0.mlp.down_proj.bias" in file.tensors
    _refuse(d, family, has, mlp_bias)
    config: dict[str, Any] = {
        "architectures": [f"{_CLASSES[family]}ForCausalLM"],
        "model_type": family,
        "vocab_size": d.vocab_size,
        "hidden_size": d.hidden_size,
        "intermediate_size": d.intermediate_size,
        "num_hidden_layers": d.num_layers,
        "num_attention_heads": d.num_heads,
        "num_key_value_heads": d.num_key_value_heads,
        "head_dim": d.head_dim,
        "hidden_act": "silu" if d.mlp == "swiglu" else "relu2",
        "max_position_embeddings": d.max_seq_len,
        "rms_norm_eps": _shortest(d.norm_eps),
        "rope_parameters": _rope(file),
        "tie_word_embeddings": d.tied_head,
        "bos_token_id": d.bos,
        "eos_token_id": d.eos,
        "pad_token_id": d.pad,
    }
    if family != "qwen2":
        config["attention_bias"] = bool(has)
    if family == "llama":
        config["mlp_bias"] = mlp_bias
    return config


def generation_config_of(description: ModelDescription) -> dict[str, Any]:
    """generation_config.json."""
    ids = {"bos": description.bos, "eos": description.eos, "pad": description.pad}
    return {f"{name}_token_id": value for name, value in ids.items() if value is not None}


def linear_class_of(file: OneBitFile, asked: str | None) -> str:
    """How the scale is stored: as those who read the model's class expect it, unless asked for otherwise.

    microsoft's BitNetForCausalLM models store the scale (autobitlinear), Llama-shaped ones 1 / scale (bitlinear).
    """
    if asked is not None and asked not in LINEAR_CLASSES:
        raise ConfigError(f"--linear-class is '{asked}', expected {' or '.join(LINEAR_CLASSES)}")
    biased = any(name.endswith("_proj.bias") for name in file.tensors)
    if asked == "autobitlinear" and biased:
        raise ConfigError("--linear-class autobitlinear: it multiplies biases by the scale too; use bitlinear")
    return asked or ("autobitlinear" if file.description.sub_norm and not biased else "bitlinear")


def _family(file: OneBitFile) -> str:
    d = file.description
    if d.sub_norm:
        return "bitnet"
    if d.qk_norm:
        return "qwen3"
    names = {name.rpartition("attention.")[2] for name in file.tensors if name.startswith("model.layers.0.")}
    return "qwen2" if "q_proj.bias" in names and "o_proj.bias" not in names else "llama"


def _refuse(d: ModelDescription, family: str, biases: set[str], mlp_bias: bool) -> None:
    wanted = {"q", "k", "v"} if family == "qwen2" else {"q", "k", "v", "o"}
    for wrong, field, given in (
        (d.norm != "rmsnorm", "use_subln", f"norm '{d.norm}'"),
        (d.position != "rope", "use_rope", "learned positions"),
        (d.residual_scale != 1.0, "use_residual_scaling", f"residuals times {d.residual_scale:g}"),
        (not d.has_gate, "use_swiglu", f"mlp '{d.mlp}' without a gate"),
        (d.sub_norm and d.qk_norm, "use_qk_norm", "norms of q and k beside sub-norms"),
        (
            d.sub_norm and d.num_heads * d.head_dim != d.hidden_size,
            "head_dim",
            f"sub-norms and heads that do not make {d.hidden_size} together",
        ),
        (bool(biases) and biases != wanted, "attention_bias", f"biases of {', '.join(sorted(biases))} alone"),
        (mlp_bias and family != "llama", "mlp_bias", "biases in the MLP"),
    ):
        if wrong:
            raise ConfigError(
                f"the model has {given} ({field}), which no {_CLASSES[family]}ForCausalLM of transformers has; "
                "use .1bit, or load the checkpoint itself with onebit"
            )


def _shortest(value: float) -> float:
    """The shortest decimal that is this float32."""
    return float(str(np.float32(value)))


def _rope(file: OneBitFile) -> dict[str, Any]:
    d = file.description
    plain = {"rope_type": "default", "rope_theta": _shortest(d.rope_theta)}
    if "model.rope.inv_freq" not in file.tensors and d.attention_scale is None:
        return plain
    known = (file.config or {}).get("rope_parameters")
    if not isinstance(known, dict):
        raise ConfigError(
            "the file has rotary frequencies of its own but not the configuration that they come from "
            "(rope_parameters), which transformers needs; use .1bit or GGUF"
        )
    return known
