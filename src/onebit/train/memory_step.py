"""What a training step allocates, found by taking it without values.

Fake tensors have shapes and types but no memory, so a step of a model of any size costs a second. Every allocation and
release of it is written down, in order, for three small sizes of the batch. The order is the same for all of them and
each tensor grows as a line in the positions and in the tokens, so three sizes give the bytes at every size.

Only two of the model's equal layers are there; the second one stands for all that follow it.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from onebit.train.memory import Line, StepBytes
from onebit.train.trainer import next_token_loss

__all__ = ["step_bytes"]

# (batch, length): none is 1, whose tensors are contiguous by accident.
_SIZES = ((2, 16), (3, 16), (2, 24))


@dataclass
class _Trace:
    """Storages in the order in which they appeared, and the moments: +i when storage i appeared, -i when it went."""

    sizes: list[int] = field(default_factory=lambda: [0])  # storage 0 is none, so that every moment has a sign
    moments: list[int] = field(default_factory=list)
    kept: set[int] = field(default_factory=set)
    gradients: set[int] = field(default_factory=set)
    layer: range = range(0)
    """The storages that the last layer's forward pass made."""


class _Recorder(TorchDispatchMode):
    """Writes a trace of all that operations allocate."""

    def __init__(self, known: Iterator[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = _Trace()
        self._owners = [tensor.untyped_storage() for tensor in known]  # held, so that their addresses stay theirs
        self._numbers: dict[int, int] = {storage._cdata: 0 for storage in self._owners}
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address in self._numbers:
            return
        number = len(self.trace.sizes)
        self._numbers[address] = number
        self.trace.sizes.append(storage.nbytes())
        self.trace.moments.append(number)

        def gone(_: Any) -> None:
            del self._alive[number], self._numbers[address]
            self.trace.moments.append(-number)

        self._alive[number] = weakref.ref(storage, gone)

    def alive(self) -> set[int]:
        """The storages that are there now."""
        return set(self._alive)

    def number_of(self, tensor: Tensor) -> int:
        return self._numbers.get(tensor.untyped_storage()._cdata, 0)


def step_bytes(
    model: nn.Module,
    layers: nn.ModuleList,
    count: int,
    *,
    accumulate: bool = False,
    autocast: bool = False,
) -> StepBytes:
    """What one step of `model`, made of fake tensors, adds to its parameters, gradients and optimizer.

    layers: two of the `count` equal layers that the whole model has. accumulate: gradients are there before the step.
    autocast: float32 weights under bfloat16. Call it inside the fake mode that the model was made in.
    """
    with _without_collection(), _without_masks():
        traces = [_trace(model, layers, batch, length, accumulate, autocast) for batch, length in _SIZES]
    first = traces[0]
    for trace in traces[1:]:
        assert (trace.moments, trace.kept) == (first.moments, first.kept), "a step must not depend on its size"
    lines_S3 = _lines(np.array([trace.sizes for trace in traces], dtype=np.float64))
    others_3 = (count - len(layers)) * lines_S3[sorted(first.kept & set(first.layer))].sum(0)
    kept_3 = lines_S3[sorted(first.kept)].sum(0) + others_3
    moments = np.array([m for m in first.moments if abs(m) not in first.gradients], dtype=np.int64)
    live_M3 = np.cumsum(np.sign(moments)[:, None] * lines_S3[np.abs(moments)], axis=0) + others_3
    return StepBytes(Line(*kept_3.tolist()), tuple(Line(*row) for row in _largest(live_M3).tolist()))


def _lines(sizes_3S: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Constant, bytes a position and bytes a token of each storage [S, 3], from its sizes at _SIZES."""
    system = np.array([(1, length, batch * length) for batch, length in _SIZES], dtype=np.float64)
    return np.round(np.linalg.solve(system, sizes_3S), 6).T


def _largest(live_M3: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The moments that may be the peak of some batch and length: those that no other one is above everywhere."""
    kept: list[np.ndarray[Any, Any]] = []
    for row in sorted(np.unique(live_M3, axis=0), key=lambda row: -row.sum()):
        if not any((row <= other).all() for other in kept):
            kept.append(row)
    return np.array(kept).reshape(-1, 3)


def _trace(
    model: nn.Module, layers: nn.ModuleList, batch: int, length: int, accumulate: bool, autocast: bool
) -> _Trace:
    ids_BL = torch.zeros(batch, length, dtype=torch.long)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter) if accumulate else None
    known = [*model.parameters(), *model.buffers(), ids_BL, *(p.grad for p in trained if p.grad is not None)]
    recorder = _Recorder(iter(known))
    with recorder, _span_of(layers[-1], recorder) as begin_and_end:
        loss = _loss(model, ids_BL, autocast)
        recorder.trace.layer = range(*begin_and_end)
        recorder.trace.kept = recorder.alive() - {recorder.number_of(loss)}
        loss.backward()
        recorder.trace.gradients = {recorder.number_of(p.grad) for p in trained if p.grad is not None}
        del loss
    for parameter in trained:
        parameter.grad = None
    return recorder.trace


def _loss(model: nn.Module, ids_BL: Tensor, autocast: bool) -> Tensor:
    """The loss alone, as the Trainer has it: nothing holds the logits afterwards but autograd."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits_BLV = model(input_ids=ids_BL, use_cache=False).logits
        return next_token_loss(logits_BLV, ids_BL)


@contextmanager
def _span_of(layer: nn.Module, recorder: _Recorder) -> Iterator[list[int]]:
    """The numbers of storages before and after the layer's first forward pass."""
    span: list[int] = []

    def mark(*_: Any) -> None:
        if len(span) < 2:  # checkpointing takes it again
            span.append(len(recorder.trace.sizes))

    handles = [layer.register_forward_pre_hook(mark), layer.register_forward_hook(mark)]
    try:
        yield span
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _without_masks() -> Iterator[None]:
    """Unpadded causal batches need no mask; transformers cannot see that of tensors without values."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MASKS

    none: Callable[..., None] = lambda *args, **kwargs: None  # noqa: E731
    MASKS["sdpa"] = none
    try:
        yield
    finally:
        del MASKS["sdpa"]


@contextmanager
def _without_collection() -> Iterator[None]:
    """The garbage collector frees at moments of its own."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
