"""The model description of a ``.1bit`` file: 128 bytes that say what to compute, and the tensors that this needs.

Legend of the struct: docs/format.md, section MODEL. Nothing here is read from JSON, so that C needs no parser.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from onebit.errors import FormatError
from onebit.formats.layout import Kind

__all__ = ["MLPS", "NORMS", "POSITIONS", "ModelDescription", "TensorPlan"]

NORMS = ("layernorm", "rmsnorm")
MLPS = ("gelu", "relu2", "swiglu", "relu2_glu")
POSITIONS = ("learned", "rope")
NO_TOKEN = 0xFFFFFFFF

_STRUCT = struct.Struct("<8I4I4f3I13I")
# Rows of a matrix product stay below 2^17 inputs: 131072 int8 codes of -128 times inputs of 127 is still below 2^31.
_LARGEST_WIDTH = 1 << 17
_LARGEST_COUNT = 1 << 24  # vocabulary and positions; far above every model, far below what overflows a 64-bit product
_COUNTS = ("vocab_size", "max_seq_len")
_FLOATS = {
    "norm_eps": (0.0, 1.0),
    "rope_theta": (1.0, 1e15),
    "residual_scale": (0.0, 1e3),
    "attention_scale": (0.0, 1e3),
}
_QK_NORM, _SUB_NORM, _TIED = 1, 2, 4


@dataclass(frozen=True)
class TensorPlan:
    """A tensor that a model has (or may have): its place, shape and whether it must be there."""

    name: str
    kind: Kind
    layer: int | None
    rows: int
    cols: int
    required: bool = True


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """Architecture of the model in the file. ``None`` for a token id means the model has none.

    attention_scale: what scores are multiplied by; None is 1 / sqrt(head_dim).
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    max_seq_len: int
    norm: str = "rmsnorm"
    mlp: str = "swiglu"
    position: str = "rope"
    qk_norm: bool = False
    sub_norm: bool = False
    tied_head: bool = True
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    residual_scale: float = 1.0
    attention_scale: float | None = None
    bos: int | None = None
    eos: int | None = None
    pad: int | None = None

    def __post_init__(self) -> None:
        for name in _SIZES:
            value = getattr(self, name)
            largest = _LARGEST_COUNT if name in _COUNTS else _LARGEST_WIDTH
            if not 1 <= value <= largest:
                raise FormatError(f"model description: {name} must be 1 to {largest}, got {value}")
        if self.num_layers >= 0xFFFF:
            raise FormatError(f"model description: num_layers must be below 65535, got {self.num_layers}")
        for name, (low, high) in _FLOATS.items():
            if name == "attention_scale" and self.attention_scale is None:
                continue
            value = _as_float32(getattr(self, name))
            object.__setattr__(self, name, value)  # what the file can hold, so that a round trip is equal
            if not (value > 0 and low <= value <= _as_float32(high)):
                raise FormatError(f"model description: {name} must be positive and {low:g} to {high:g}, got {value}")
        for name, known in (("norm", NORMS), ("mlp", MLPS), ("position", POSITIONS)):
            if getattr(self, name) not in known:
                raise FormatError(
                    f"model description: {name} must be one of {', '.join(known)}, got {getattr(self, name)}"
                )
        self._check_heads()
        for name in ("bos", "eos", "pad"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.vocab_size:
                raise FormatError(
                    f"model description: {name} must be below the vocabulary of {self.vocab_size}, got {value}"
                )

    def _check_heads(self) -> None:
        if self.num_heads % self.num_key_value_heads:
            raise FormatError(
                f"model description: num_key_value_heads ({self.num_key_value_heads}) must divide"
                f" num_heads ({self.num_heads})"
            )
        if self.position == "rope" and self.head_dim % 2:
            raise FormatError(f"model description: rope needs an even head_dim, got {self.head_dim}")
        if self.num_heads * self.head_dim > _LARGEST_WIDTH:
            raise FormatError(f"model description: num_heads * head_dim must be at most {_LARGEST_WIDTH}")

    def to_bytes(self) -> bytes:
        """The 128 bytes of the MODEL section."""
        flags = _QK_NORM * self.qk_norm | _SUB_NORM * self.sub_norm | _TIED * self.tied_head
        tokens = (NO_TOKEN if token is None else token for token in (self.bos, self.eos, self.pad))
        return _STRUCT.pack(
            *(getattr(self, name) for name in _SIZES),
            *(NORMS.index(self.norm), MLPS.index(self.mlp), POSITIONS.index(self.position), flags),
            *(self.norm_eps, self.rope_theta, self.residual_scale, self.attention_scale or 0.0),
            *tokens,
            *([0] * 13),
        )

    @classmethod
    def from_bytes(cls, raw: bytes) -> ModelDescription:
        """Read and check the MODEL section; FormatError names the field that is wrong."""
        if len(raw) != _STRUCT.size:
            raise FormatError(f"section MODEL has {len(raw)} bytes, expected {_STRUCT.size}")
        fields = _STRUCT.unpack(raw)
        norm, mlp, position, flags = fields[8:12]
        if any(fields[19:]) or flags & ~(_QK_NORM | _SUB_NORM | _TIED):
            raise FormatError(
                "section MODEL: a reserved field is not zero; the file needs a newer onebit or is damaged"
            )
        bos, eos, pad = (None if token == NO_TOKEN else token for token in fields[16:19])
        return cls(
            **dict(zip(_SIZES, fields[:8], strict=True)),
            norm=_named("norm", NORMS, norm),
            mlp=_named("mlp", MLPS, mlp),
            position=_named("position", POSITIONS, position),
            qk_norm=bool(flags & _QK_NORM),
            sub_norm=bool(flags & _SUB_NORM),
            tied_head=bool(flags & _TIED),
            norm_eps=fields[12],
            rope_theta=fields[13],
            residual_scale=fields[14],
            attention_scale=fields[15] if raw[60:64] != bytes(4) else None,
            bos=bos,
            eos=eos,
            pad=pad,
        )

    @property
    def has_gate(self) -> bool:
        """Whether the MLP has a gate projection."""
        return self.mlp in ("swiglu", "relu2_glu")

    def plan(self) -> Iterator[TensorPlan]:
        """Every tensor a file with this description may have: biases of projections are optional, and so are the
        frequencies of rope, which otherwise follow from rope_theta."""
        hidden, vocab = self.hidden_size, self.vocab_size
        yield TensorPlan("model.embed_tokens.weight", Kind.TOKEN_EMBEDDING, None, vocab, hidden)
        if self.position == "learned":
            yield TensorPlan("model.embed_positions.weight", Kind.POSITION_EMBEDDING, None, self.max_seq_len, hidden)
        else:
            half = self.head_dim // 2
            yield TensorPlan("model.rope.inv_freq", Kind.ROPE_FREQUENCIES, None, 1, half, required=False)
        for layer in range(self.num_layers):
            yield from self._layer_plan(layer)
        yield from self._norm_plan("model.norm", Kind.FINAL_NORM, None)
        if not self.tied_head:
            yield TensorPlan("lm_head.weight", Kind.HEAD, None, vocab, hidden)

    def _norm_plan(self, name: str, kind: Kind, layer: int | None) -> Iterator[TensorPlan]:
        yield TensorPlan(f"{name}.weight", kind, layer, 1, self.hidden_size)
        if self.norm == "layernorm":
            yield TensorPlan(f"{name}.bias", Kind(kind + 1), layer, 1, self.hidden_size)

    def _layer_plan(self, layer: int) -> Iterator[TensorPlan]:
        prefix = f"model.layers.{layer}"
        hidden, inner = self.hidden_size, self.intermediate_size
        q, kv = self.num_heads * self.head_dim, self.num_key_value_heads * self.head_dim

        def linear(name: str, kind: Kind, rows: int, cols: int) -> Iterator[TensorPlan]:
            yield TensorPlan(f"{prefix}.{name}.weight", kind, layer, rows, cols)
            yield TensorPlan(f"{prefix}.{name}.bias", Kind(kind + 16), layer, 1, rows, required=False)

        def vector(name: str, kind: Kind, size: int) -> TensorPlan:
            return TensorPlan(f"{prefix}.{name}.weight", kind, layer, 1, size)

        yield from self._norm_plan(f"{prefix}.input_norm", Kind.ATTENTION_NORM, layer)
        yield from linear("attention.q_proj", Kind.Q, q, hidden)
        yield from linear("attention.k_proj", Kind.K, kv, hidden)
        yield from linear("attention.v_proj", Kind.V, kv, hidden)
        if self.qk_norm:
            yield vector("attention.q_norm", Kind.Q_NORM, self.head_dim)
            yield vector("attention.k_norm", Kind.K_NORM, self.head_dim)
        if self.sub_norm:
            yield vector("attention.sub_norm", Kind.ATTENTION_SUB_NORM, q)
        yield from linear("attention.o_proj", Kind.O, hidden, q)
        yield from self._norm_plan(f"{prefix}.mlp_norm", Kind.MLP_NORM, layer)
        if self.has_gate:
            yield from linear("mlp.gate_proj", Kind.GATE, inner, hidden)
        yield from linear("mlp.up_proj", Kind.UP, inner, hidden)
        if self.sub_norm:
            yield vector("mlp.sub_norm", Kind.MLP_SUB_NORM, inner)
        yield from linear("mlp.down_proj", Kind.DOWN, hidden, inner)


_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_seq_len",
)


def _as_float32(value: float) -> float:
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.inf


def _named(field: str, names: tuple[str, ...], index: int) -> str:
    if index >= len(names):
        raise FormatError(f"section MODEL: {field} is {index}, known are 0 to {len(names) - 1} ({', '.join(names)})")
    return names[index]
