"""What the engine says about a model: its architecture as a plain value, in the words of the .1bit format."""

from __future__ import annotations

from dataclasses import dataclass

from onebit.engine._library import CDescription

__all__ = ["LAYOUTS", "Description", "TensorInfo"]

NORMS = ("layernorm", "rmsnorm")
MLPS = ("gelu", "relu2", "swiglu", "relu2_glu")
POSITIONS = ("learned", "rope")
LAYOUTS = (
    "float32",
    "float16",
    "int8",
    "int4",
    "binary",
    "ternary",
    "ternary5",
    "binary_t16",
    "ternary_t16",
    "ternary5_t16",
)
_NO_TOKEN = 0xFFFFFFFF
_QK_NORM, _SUB_NORM, _TIED_HEAD = 1, 2, 4


@dataclass(frozen=True, kw_only=True)
class Description:
    """Architecture of a loaded model. ``None`` for a token id means the model has none."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    max_seq_len: int
    norm: str
    mlp: str
    position: str
    qk_norm: bool
    sub_norm: bool
    tied_head: bool
    norm_eps: float
    rope_theta: float
    residual_scale: float
    bos: int | None
    eos: int | None
    pad: int | None

    @classmethod
    def from_c(cls, c: CDescription) -> Description:
        """From the struct that the engine has already checked."""
        bos, eos, pad = (None if t == _NO_TOKEN else int(t) for t in (c.bos_token, c.eos_token, c.pad_token))
        return cls(
            vocab_size=c.vocab_size,
            hidden_size=c.hidden_size,
            num_layers=c.num_layers,
            num_heads=c.num_heads,
            num_key_value_heads=c.num_key_value_heads,
            head_dim=c.head_dim,
            intermediate_size=c.intermediate_size,
            max_seq_len=c.max_seq_len,
            norm=NORMS[c.norm],
            mlp=MLPS[c.mlp],
            position=POSITIONS[c.position],
            qk_norm=bool(c.flags & _QK_NORM),
            sub_norm=bool(c.flags & _SUB_NORM),
            tied_head=bool(c.flags & _TIED_HEAD),
            norm_eps=c.norm_eps,
            rope_theta=c.rope_theta,
            residual_scale=c.residual_scale,
            bos=bos,
            eos=eos,
            pad=pad,
        )


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the file: its name, shape [rows, cols], layout and size in bytes."""

    name: str
    rows: int
    cols: int
    layout: str
    data_bytes: int
    scale_bytes: int
