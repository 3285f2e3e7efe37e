"""Give a torch model the embedding and head that a file stores, so that a comparison shows errors and not a choice.

Export rounds embedding and head to float16, int8 or int4, and lets the head read its inputs as int8. Held against the
float32 checkpoint that would look like a difference; held against the checkpoint rounded in the same way only real
errors remain. What the rounding itself costs is `onebit.eval.tables_cost`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from onebit.formats.anatomy import table_modules
from onebit.formats.layout import Kind

if TYPE_CHECKING:
    import torch

    from onebit.formats.stored_tensor import StoredTensor
    from onebit.models import OneBitForCausalLM

__all__ = ["ROUNDED_LEVELS", "StoredTables", "head_activation_of", "rounded_like"]

ROUNDED_LEVELS = ("float16", "int8", "int4")
_TABLES = (Kind.TOKEN_EMBEDDING, Kind.POSITION_EMBEDDING, Kind.HEAD)


@dataclass(frozen=True)
class StoredTables:
    """Embeddings and head of a file: level by module name ({"model.embed_tokens": "int8"}), and what the head's
    inputs are rounded to ("int8" or "none")."""

    levels: Mapping[str, str]
    head_activation: str

    @classmethod
    def of(cls, tensors: Iterable[StoredTensor]) -> StoredTables:
        """From the tensors of a file; a tied head is its token embedding."""
        tables = {tensor.kind: tensor for tensor in tensors if tensor.kind in _TABLES}
        head = tables.get(Kind.HEAD, tables[Kind.TOKEN_EMBEDDING])
        levels = {tensor.name.removesuffix(".weight"): tensor.level for tensor in tables.values()}
        return cls(levels, head.activation.name.lower())

    def rounded(self, model: OneBitForCausalLM) -> dict[str, str]:
        """The tables whose weights the file rounds: not float32, and not those trained at their level."""
        modules = table_modules(model)
        return {
            name: level
            for name, level in self.levels.items()
            if level in ROUNDED_LEVELS and getattr(modules[name], "weight_quantizer", None) is None
        }


@contextmanager
def rounded_like(model: OneBitForCausalLM, tables: StoredTables) -> Iterator[list[str]]:
    """Until the block ends the model has the file's tables and the head its input rounding; yields notes."""
    kept: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
    notes: list[str] = []
    modules = table_modules(model)
    head, head_activation = modules["lm_head"], head_activation_of(model)
    rounding = None
    try:
        for name, level in tables.rounded(model).items():
            weight = cast("torch.nn.Parameter", modules[name].weight)
            kept.append((weight, weight.data))
            weight.data = _rounded(weight.data, cast(Literal["float16", "int8", "int4"], level))
            notes.append(f"{name.removeprefix('model.')} is stored as {level}; the checkpoint was rounded likewise")
        if tables.head_activation != head_activation:
            rounding = _round_inputs(head, tables.head_activation)
            notes.append(f"the head's inputs are rounded to {tables.head_activation}; the checkpoint's likewise")
        yield notes
    finally:
        if rounding is not None:
            rounding.remove()
        head.activation_quantizer = head_activation
        for weight, original in kept:
            weight.data = original


def head_activation_of(model: OneBitForCausalLM) -> str:
    """What the head's inputs are rounded to: "none" for a plain linear layer."""
    return str(getattr(table_modules(model)["lm_head"], "activation_quantizer", "none"))


def _round_inputs(head: Any, activation: str) -> Any:
    """Let the head round its inputs; the handle of a hook where it is a plain linear layer, which cannot by itself."""
    from onebit.nn import BitLinear
    from onebit.quant import fake_quantize_activations

    head.activation_quantizer = activation
    if isinstance(head, BitLinear):
        return None
    kind = cast(Literal["int8", "none"], activation)
    return head.register_forward_pre_hook(lambda _, args: (fake_quantize_activations(args[0], kind),))


def _rounded(weight_VD: torch.Tensor, level: Literal["float16", "int8", "int4"]) -> torch.Tensor:
    from onebit.quant import WeightQuantizer, fake_quantize

    return fake_quantize(weight_VD, WeightQuantizer.for_level(level))
