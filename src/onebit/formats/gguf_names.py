"""Architectures of GGUF that a ``.1bit`` model can be, and the names that its tensors have there.

===============  ================================================================  ================================
architecture     model                                                             program
===============  ================================================================  ================================
llama            SwiGLU, no sub-norms; rows of q and k in rotary pairs             llama.cpp
qwen3            the same with norms of q and k                                    llama.cpp
bitnet           SwiGLU with sub-norms; tied head                                  llama.cpp
bitnet-b1.58     gated relu squared with sub-norms (BitNet b1.58 2B-4T); tied head  bitnet.cpp
===============  ================================================================  ================================

llama.cpp computes `bitnet` with SiLU, whatever its model was trained with, so a model with relu squared is never given
that name. What no architecture computes is refused with the field of the configuration that stands in the way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebit.errors import ConfigError, FormatError
from onebit.formats.description import ModelDescription, TensorPlan
from onebit.formats.layout import Kind

__all__ = [
    "ARCHITECTURES",
    "FREQUENCIES",
    "architecture_of",
    "base_frequencies",
    "names_of",
    "pair_rows",
    "program_of",
    "read_description",
    "reorders_rows",
]

ARCHITECTURES = ("llama", "qwen2", "qwen3", "bitnet", "bitnet-b1.58", "bitnet-25")
"""Those that are read; `architecture_of` writes all but qwen2 and bitnet-25, which others write."""

FREQUENCIES = "model.rope.inv_freq"

_TOP = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_LAYER = {
    "input_norm": "attn_norm",
    "attention.q_proj": "attn_q",
    "attention.k_proj": "attn_k",
    "attention.v_proj": "attn_v",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
    "attention.sub_norm": "attn_sub_norm",
    "attention.o_proj": "attn_output",
    "mlp_norm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.sub_norm": "ffn_sub_norm",
    "mlp.down_proj": "ffn_down",
}
_IN_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")


def program_of(architecture: str) -> str:
    """Which program runs it."""
    return "bitnet.cpp" if architecture.startswith("bitnet-") else "llama.cpp"


def architecture_of(description: ModelDescription) -> str:
    """The architecture that computes a model; ConfigError names the field that none of them has."""
    d = description
    for wrong, field, given, wanted in (
        (d.norm != "rmsnorm", "use_subln", f"norm '{d.norm}'", "RMSNorm"),
        (d.position != "rope", "use_rope", "learned positions", "rotary positions"),
        (d.residual_scale != 1.0, "use_residual_scaling", f"residuals times {d.residual_scale:g}", "plain residuals"),
        (not d.has_gate, "use_swiglu", f"mlp '{d.mlp}' without a gate", "a gated MLP"),
        (d.attention_scale is not None, "rope_parameters", "its own scale of scores", "1 / sqrt(head_dim)"),
        (d.sub_norm and d.qk_norm, "use_qk_norm", "norms of q and k beside sub-norms", "one of them"),
        (d.mlp == "relu2_glu" and not d.sub_norm, "use_relu2", "gated relu squared without sub-norms", "SwiGLU"),
        (d.sub_norm and not d.tied_head, "tie_word_embeddings", "sub-norms and a head of its own", "a tied head"),
        (
            d.sub_norm and d.num_heads * d.head_dim != d.hidden_size,
            "head_dim",
            f"{d.num_heads} heads of {d.head_dim}",
            f"heads that make {d.hidden_size} together, with sub-norms",
        ),
    ):
        if wrong:
            raise ConfigError(
                f"the model has {given} ({field}); GGUF's architectures have {wanted}. Use .1bit, or --to hf where "
                "transformers has such a model"
            )
    if d.sub_norm:
        return "bitnet" if d.mlp == "swiglu" else "bitnet-b1.58"
    return "qwen3" if d.qk_norm else "llama"


def _gguf_name(name: str) -> str | None:
    """The name of a tensor in GGUF; None for one that GGUF says otherwise."""
    path, _, parameter = name.rpartition(".")
    if path in _TOP:
        return f"{_TOP[path]}.{parameter}"
    found = _IN_LAYER.fullmatch(name)
    return None if found is None else f"blk.{found[1]}.{_LAYER[found[2]]}.{found[3]}"


def names_of(description: ModelDescription) -> Iterator[tuple[TensorPlan, str]]:
    """(plan, name in GGUF) of every tensor that a model may have, but for the frequencies of rope."""
    for plan in description.plan():
        name = _gguf_name(plan.name)
        if name is not None:
            yield plan, name


def base_frequencies(description: ModelDescription) -> NDArray[np.float32]:
    """Rotary frequencies of rope_theta, float32 [head_dim / 2]."""
    powers = np.arange(0, description.head_dim, 2, dtype=np.float64) / description.head_dim
    return np.asarray(description.rope_theta**-powers, np.float32)


def reorders_rows(architecture: str, kind: Kind) -> bool:
    """Whether rows of a tensor lie in rotary pairs: llama turns rows 2n and 2n + 1, all others n and n + half."""
    return architecture == "llama" and kind in (Kind.Q, Kind.K, Kind.Q_BIAS, Kind.K_BIAS)


def pair_rows(description: ModelDescription, kind: Kind, *, back: bool = False) -> NDArray[np.intp]:
    """The order of rows: row i in GGUF is row `pair_rows(...)[i]` here; `back` is the other way."""
    heads = description.num_heads if kind in (Kind.Q, Kind.Q_BIAS) else description.num_key_value_heads
    order = np.arange(heads * description.head_dim).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
    return np.argsort(order) if back else order


def read_description(metadata: dict[str, Any], tensors: set[str]) -> tuple[str, ModelDescription]:
    """Architecture and description of a GGUF file; FormatError for what this onebit does not read."""
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise FormatError(f"architecture '{architecture}'; onebit reads {', '.join(ARCHITECTURES)}")
    fields = _Fields(metadata, str(architecture))
    hidden, heads = fields.integer("embedding_length"), fields.integer("attention.head_count")
    if hidden < 1 or heads < 1:
        raise FormatError(f"embedding_length {hidden} and attention.head_count {heads} must be positive")
    head_dim = fields.integer("attention.key_length", hidden // heads)
    for name, expected in (("attention.value_length", head_dim), ("rope.dimension_count", head_dim)):
        if fields.integer(name, expected) != expected:
            raise FormatError(f"{name} is {fields.integer(name)}, expected {expected}: whole heads of one width")
    if fields.real("attention.scale", 0.0):
        raise FormatError(f"attention.scale is {fields.real('attention.scale')}, which {architecture} does not read")
    if fields.integer("expert_count", 0):
        raise FormatError(f"a mixture of {fields.integer('expert_count')} experts, which .1bit does not have")
    bitnet = str(architecture).startswith("bitnet")
    vocab_size = _vocab_size(metadata, fields)
    return str(architecture), ModelDescription(
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_layers=fields.integer("block_count"),
        num_heads=heads,
        num_key_value_heads=fields.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        intermediate_size=fields.integer("feed_forward_length"),
        max_seq_len=fields.integer("context_length"),
        norm="rmsnorm",
        mlp="relu2_glu" if architecture in ("bitnet-b1.58", "bitnet-25") else "swiglu",
        position="rope",
        qk_norm="blk.0.attn_q_norm.weight" in tensors,
        sub_norm=bitnet,
        tied_head="output.weight" not in tensors,
        norm_eps=fields.real("attention.layer_norm_rms_epsilon"),
        rope_theta=fields.real("rope.freq_base", 10000.0),
        **_tokens(metadata, vocab_size),
    )


def _tokens(metadata: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """Special tokens; the files of some models name a padding token beyond the table, which is as good as none."""
    found = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in _TOKENS}
    return {name: value if isinstance(value, int) and value < vocab_size else None for name, value in found.items()}


_TOKENS = (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))


class _Fields:
    """Numbers of an architecture in the metadata, each checked to be one."""

    def __init__(self, metadata: dict[str, Any], architecture: str) -> None:
        self.metadata, self.architecture = metadata, architecture

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.metadata.get(f"{self.architecture}.{name}", default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise FormatError(f"{self.architecture}.{name} is {_shown(value)}, expected an integer")
        return value

    def real(self, name: str, default: float | None = None) -> float:
        value = self.metadata.get(f"{self.architecture}.{name}", default)
        if not isinstance(value, float):
            raise FormatError(f"{self.architecture}.{name} is {_shown(value)}, expected a number")
        return value


def _shown(value: Any) -> str:
    return "missing" if value is None else str(value)[:40]


def _vocab_size(metadata: dict[str, Any], fields: _Fields) -> int:
    tokens = metadata.get("tokenizer.ggml.tokens")
    return fields.integer("vocab_size", len(tokens) if isinstance(tokens, list) else None)
