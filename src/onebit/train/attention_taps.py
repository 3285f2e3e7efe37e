"""Queries, keys and values of one layer as a model computes them, for distillation by attention relations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from onebit.errors import ConfigError

__all__ = ["AttentionTap", "states_up_to"]

_SEPARATE = ("q_proj", "k_proj", "v_proj")
_FUSED = ("qkv_proj", "c_attn", "query_key_value")
_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


class AttentionTap:
    """Listens to the projections of a layer; `take` gives what they computed last, [B, L, D] each, and forgets it.

    layer counts from 0, or from the end when negative. Before rotary positions are applied.

    Raises:
        ConfigError: no such layer, or none of its modules has a known name.
    """

    def __init__(self, model: nn.Module, layer: int) -> None:
        found = _projections(model)
        if not found:
            raise ConfigError(
                f"--relation-weight: no module of {type(model).__name__} is named {', '.join((*_SEPARATE, *_FUSED))}, "
                "so it has no known queries, keys and values; leave --relation-weight out"
            )
        numbers = sorted(found)
        if not -len(numbers) <= layer < len(numbers):
            raise ConfigError(
                f"--relation-layer is {layer}, and {type(model).__name__} has {len(numbers)} layers: 0 to "
                f"{len(numbers) - 1}, or -1 to -{len(numbers)}"
            )
        self.layer = numbers[layer]
        self.sizes = _sizes(model)
        self._seen: dict[str, Tensor] = {}
        self._stops = False
        for name, module in found[self.layer].items():
            module.register_forward_hook(self._listener(name))

    def take(self) -> tuple[Tensor, ...]:
        """Queries, keys and values of the last call."""
        seen, self._seen = self._seen, {}
        if len(seen) > 1:
            return tuple(seen[name] for name in _SEPARATE)
        (fused,) = seen.values()
        return fused.split(self.sizes, dim=-1) if fused.shape[-1] == sum(self.sizes) else fused.chunk(3, dim=-1)

    @property
    def is_full(self) -> bool:
        """Whether all projections of the layer have been called."""
        return len(self._seen) == 3 or any(name in _FUSED for name in self._seen)

    def _listener(self, name: str) -> Any:
        def listen(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._seen[name] = output
            if self._stops and self.is_full:
                raise _Enough

        return listen

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """The model's call ends, with `_Enough`, once the projections have been called: the layers above are saved."""
        self._stops = True
        try:
            yield
        finally:
            self._stops = False


class _Enough(Exception):
    """No error: it ends a forward early."""


@torch.no_grad()
def states_up_to(tap: AttentionTap, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, ...]:
    """Queries, keys and values of the tapped layer for these inputs, without the layers above it."""
    with tap.stopping(), suppress(_Enough):
        model(**inputs, use_cache=False)
    return tap.take()


def _projections(model: nn.Module) -> dict[int, dict[str, nn.Module]]:
    """Layer number -> name -> projection."""
    found: dict[int, dict[str, nn.Module]] = {}
    for name, module in model.named_modules():
        end = name.rpartition(".")[2]
        numbers = _LAYER.findall(name)
        if numbers and end in (*_SEPARATE, *_FUSED):
            found.setdefault(int(numbers[-1]), {})[end] = module
    is_whole = {layer: len(modules) == 3 or bool(set(modules) & set(_FUSED)) for layer, modules in found.items()}
    return {layer: modules for layer, modules in found.items() if is_whole[layer]}


def _sizes(model: nn.Module) -> list[int]:
    """Widths of queries, keys and values by the model's configuration."""
    config: Any = model.config
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return [heads * width, kv_heads * width, kv_heads * width]
