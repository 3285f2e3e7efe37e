"""What is known of a layer's inputs when its codes are chosen: second moments over sample tokens.

A layer behind others that are quantised already gets other inputs than the float model's layer. So both are taken, side
by side: the block is run as it is, and as it was (`FloatTwin`).

Shape suffixes: T tokens (any leading dimensions), O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from onebit.nn.bit_linear import BitLinear
from onebit.quant import fake_quantize_activations

__all__ = ["Call", "FloatTwin", "Moments", "moments_of"]

Call = Callable[[], Any]


class FloatTwin:
    """A context in which the layers compute with the float weights they had when this was made, and float inputs."""

    def __init__(self, layers: Sequence[BitLinear]) -> None:
        self._layers = layers
        self._weights = [layer.weight.detach().clone() for layer in layers]
        self._settings = [(layer.weight_quantizer, layer.activation_quantizer) for layer in layers]

    def __enter__(self) -> None:
        self._swap_weights()
        for layer in self._layers:
            layer.weight_quantizer, layer.activation_quantizer = None, "none"

    def __exit__(self, *error: object) -> None:
        self._swap_weights()
        for layer, (weights, activations) in zip(self._layers, self._settings, strict=True):
            layer.weight_quantizer, layer.activation_quantizer = weights, activations

    def _swap_weights(self) -> None:
        swapped: set[int] = set()
        for index, layer in enumerate(self._layers):
            if id(layer.weight) not in swapped:  # a tied weight once
                layer.weight.data, self._weights[index] = self._weights[index], layer.weight.data
                swapped.add(id(layer.weight))


@dataclass(frozen=True)
class Moments:
    """Means over tokens of x^T x, float32 [I, I]: x as the layer rounds it (own), as in the float model (floats), and
    the first with the second (cross)."""

    own_II: Tensor
    cross_II: Tensor
    floats_II: Tensor

    def target(self, w_OI: Tensor, damping: float) -> Tensor:
        """The float weights [O, I] that give the float model's outputs best from the inputs the layer gets.

        damping: a pull towards the weights as they are, as a share of the inputs' mean square.
        """
        own_II, cross_II = self.own_II.clone(), self.cross_II.clone()
        pull = damping * own_II.diagonal().mean()
        own_II.diagonal().add_(pull)
        cross_II.diagonal().add_(pull)
        result: Tensor = torch.linalg.solve(own_II, cross_II @ w_OI.t()).t()
        return result

    def error(self, w_OI: Tensor, q_w_OI: Tensor) -> float:
        """The squared difference of the layer's outputs from the float model's, over the square of those."""
        wanted = ((w_OI @ self.floats_II) * w_OI).sum()
        own = ((q_w_OI @ self.own_II) * q_w_OI).sum()
        shared = ((q_w_OI @ self.cross_II) * w_OI).sum()
        return float(((own - 2 * shared + wanted) / wanted.clamp_min(1e-30)).item())


def moments_of(layer: BitLinear, calls: Sequence[Call], float_calls: Sequence[Call], twin: FloatTwin) -> Moments | None:
    """Run both sides for each batch; None when the layer met no token, or not as many on both sides."""
    width = layer.in_features
    own_II, cross_II, floats_II = (torch.zeros(width, width, device=layer.weight.device) for _ in range(3))
    tokens = 0
    seen: list[Tensor] = []

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        x_TI = inputs[0].detach()
        x_TI = x_TI if layer.rotation is None else layer.rotation(x_TI)
        seen.append(fake_quantize_activations(x_TI, layer.activation_quantizer).flatten(0, -2))

    handle = layer.register_forward_pre_hook(hook)
    try:
        for call, float_call in zip(calls, float_calls, strict=True):
            seen.clear()
            with twin:
                float_call()
            if not seen:
                continue
            float_x_TI = torch.cat(seen)
            seen.clear()
            call()
            x_TI = torch.cat(seen)
            if x_TI.shape != float_x_TI.shape:  # a router sent other tokens here
                return None
            own_II.addmm_(x_TI.t(), x_TI)
            cross_II.addmm_(x_TI.t(), float_x_TI)
            floats_II.addmm_(float_x_TI.t(), float_x_TI)
            tokens += x_TI.shape[0]
    finally:
        handle.remove()
    return Moments(own_II / tokens, cross_II / tokens, floats_II / tokens) if tokens else None
