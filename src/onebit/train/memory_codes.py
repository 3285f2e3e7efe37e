"""Which layers of a model can be trained as codes, and the model with such layers, to count what a step of it takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from onebit.nn import BitLinear
from onebit.nn.pure_conversion import replace_linear_with_pure1bit_linear
from onebit.nn.pure_linear import Pure1BitLinear
from onebit.quant.counters import CounterName

__all__ = ["coded_layers", "hold_codes"]

_CODED = ("absmean", "threshold", "sparsity", "binary")


def coded_layers(model: Any) -> Iterator[BitLinear]:
    """The layers whose weights can be codes: those of one or two bits, without the head."""
    for module in model.modules():
        if isinstance(module, BitLinear) and module is not model.get_output_embeddings():
            spec = module.weight_quantizer
            if spec is not None and spec.quantizer in _CODED:
                yield module


def hold_codes(model: nn.Module, counter: CounterName) -> None:
    """Make pure layers of a model's, in place; meta device."""
    replace_linear_with_pure1bit_linear(model, counter=counter)
    for module in model.modules():
        if type(module) is Pure1BitLinear:
            module.__class__ = _AskedForCodes


class _AskedForCodes(Pure1BitLinear):
    """Our own model asks a layer for the codes of its inputs first; a pure layer makes its own."""

    def activation_codes(self, x_TI: Tensor) -> None:
        return None

    def forward(self, x_TI: Tensor, x_codes: Any = None) -> Tensor:
        return super().forward(x_TI)
