"""Forward passes that begin where a map first differs from one that was run before.

What reaches layer i depends on the levels of the embedding and of the layers before i alone. So that state is kept
under exactly those levels, and a map that shares them starts there. States are the very tensors of the earlier pass:
a loss is bit for bit the one of a pass from the beginning.

Shape suffixes: B windows, L positions, C hidden size, V vocabulary.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from onebit.formats.anatomy import blocks_of

__all__ = ["PrefixStates"]

Key = tuple[str, ...]


class PrefixStates:
    """Runs a model on fixed batches of token ids [B, L], least recently used states dropped beyond `capacity` bytes.

    `reused` counts the layers that were not run again.
    """

    def __init__(self, model: Any, batches_BL: Sequence[Tensor], capacity: int) -> None:
        self.model = model
        self.batches_BL = batches_BL
        self.capacity = capacity
        self.reused = 0
        self._layers, self._norm = blocks_of(model)
        self._states: OrderedDict[Key, list[Tensor]] = OrderedDict()
        self._bytes = 0

    def logits(self, stages: Sequence[str]) -> Iterator[Tensor]:
        """Logits [B, L, V] of each batch. stages: what decides the embedding, then each layer, then the head."""
        keys = [tuple(stages[: i + 1]) for i in range(len(self._layers) + 1)]  # of what reaches layer i, or the norm
        start = next((i for i in reversed(range(len(keys))) if keys[i] in self._states), None)
        reached = 0 if start is None else start + 1
        for key in keys[:reached]:
            if key in self._states:
                self._states.move_to_end(key)
        known = None if start is None else self._states[keys[start]]
        self.reused += start or 0
        fresh: dict[Key, list[Tensor]] = {key: [] for key in keys[reached:]}
        for index, ids_BL in enumerate(self.batches_BL):
            with (
                self._beginning_at(start, None if known is None else known[index], keys, fresh),
                torch.inference_mode(),
            ):
                yield self.model(input_ids=ids_BL, use_cache=False).logits
        for key, states in fresh.items():
            self._keep(key, states)

    @contextmanager
    def _beginning_at(
        self, start: int | None, state_BLC: Tensor | None, keys: Sequence[Key], fresh: dict[Key, list[Tensor]]
    ) -> Iterator[None]:
        """The model without the layers before `start`; whatever reaches a later point is written down in `fresh`."""
        first = start or 0
        points = [*self._layers, self._norm]

        def replace(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (state_BLC, *args[1:])

        def listen(key: Key) -> Any:
            def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
                fresh[key].append(args[0])

            return hook

        hooks = [points[i].register_forward_pre_hook(listen(key)) for i, key in enumerate(keys) if key in fresh]
        if state_BLC is not None:
            hooks.append(points[first].register_forward_pre_hook(replace))
        owner, name = _owner_of_layers(self.model)
        try:
            setattr(owner, name, nn.ModuleList(self._layers[first:]))
            yield
        finally:
            setattr(owner, name, nn.ModuleList(self._layers))
            for hook in hooks:
                hook.remove()

    def _keep(self, key: Key, states: list[Tensor]) -> None:
        size = sum(state.numel() * state.element_size() for state in states)
        if size > self.capacity:
            return
        self._states[key] = states
        self._bytes += size
        while self._bytes > self.capacity:
            _, dropped = self._states.popitem(last=False)
            self._bytes -= sum(state.numel() * state.element_size() for state in dropped)


def _owner_of_layers(model: Any) -> tuple[nn.Module, str]:
    return (model.transformer, "h") if hasattr(model, "transformer") else (model.model, "layers")
