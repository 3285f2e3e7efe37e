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

__all__ = ["PrefixStates"]

Key = tuple[str, ...]


class PrefixStates:
    """Runs a OneBitForCausalLM on fixed batches of token ids [B, L]; keeps at most `capacity` bytes of states.

    Where that is too little for the states before every layer, only those before every second, third, ... are kept;
    the least recently used make room. `reused` counts the layers that were not run again.
    """

    def __init__(self, model: Any, batches_BL: Sequence[Tensor], capacity: int) -> None:
        self.model = model
        self.batches_BL = batches_BL
        self.reused = 0
        self._layers = list(model.model.layers)
        self._states: OrderedDict[Key, list[Tensor]] = OrderedDict()
        tokens = sum(ids_BL.numel() for ids_BL in batches_BL)
        self._room = capacity // (tokens * model.config.hidden_size * next(model.parameters()).element_size())
        points = len(self._layers) + 1
        self._stride = -(-points // self._room) if self._room else 0

    def logits(self, stages: Sequence[str]) -> Iterator[Tensor]:
        """Logits [B, L, V] of each batch. stages: what decides the embedding, then each layer, then the head."""
        keys = [tuple(stages[: i + 1]) for i in range(len(self._layers) + 1)]  # of what reaches layer i, or the norm
        known = [i for i, key in enumerate(keys) if key in self._states]
        for i in known:
            self._states.move_to_end(keys[i])
        start = known[-1] if known else 0
        states = self._states[keys[start]] if known else None
        self.reused += start
        # Counted from the end, so that what only the head reads is always among them.
        kept = range(len(self._layers), start if known else -1, -self._stride) if self._stride else ()
        fresh: dict[int, list[Tensor]] = {i: [] for i in reversed(kept)}
        while len(self._states) + len(fresh) > self._room and self._states:
            self._states.popitem(last=False)
        for index, ids_BL in enumerate(self.batches_BL):
            state_BLC = None if states is None else states[index]
            with self._beginning_at(start, state_BLC, fresh), torch.inference_mode():
                yield self.model(input_ids=ids_BL, use_cache=False).logits
        self._states.update((keys[i], found) for i, found in fresh.items())

    @contextmanager
    def _beginning_at(self, start: int, state_BLC: Tensor | None, fresh: dict[int, list[Tensor]]) -> Iterator[None]:
        """The model without the layers before `start`, given what reaches it; `fresh` gets what reaches others."""
        points = [*self._layers, self.model.model.norm]

        def replace(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (state_BLC, *args[1:])

        def listener(found: list[Tensor]) -> Any:
            def listen(_module: nn.Module, args: tuple[Any, ...]) -> None:
                found.append(args[0])

            return listen

        hooks = [points[i].register_forward_pre_hook(listener(found)) for i, found in fresh.items()]
        if state_BLC is not None:
            hooks.append(points[start].register_forward_pre_hook(replace))
        try:
            self.model.model.layers = nn.ModuleList(self._layers[start:])
            yield
        finally:
            self.model.model.layers = nn.ModuleList(self._layers)
            for hook in hooks:
                hook.remove()
