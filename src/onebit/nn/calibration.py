"""A calibrated start: every BitLinear gets codes and scales fitted to sample inputs, instead of rounding its weights.

Block by block, as the model computes: a layer is given the inputs that the layers before it, fitted already, give it,
and its codes are chosen to come nearest to the outputs that the float model has there. So a layer also makes up for
what those before it lost. Layers that read the same input are fitted together. What was chosen becomes the layer's
latent weight, made so that the layer's own quantiser gives exactly these codes and scales; training goes on from there.

Shape suffixes: T tokens (any leading dimensions), O outputs, I inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from onebit.errors import OnebitError
from onebit.nn.bit_embedding import BitEmbedding
from onebit.nn.bit_linear import BitLinear
from onebit.nn.latents import bit_layers
from onebit.nn.moments import Call, FloatTwin, Moments, moments_of
from onebit.nn.samples import run_batch
from onebit.quant import dequantize, quantize
from onebit.quant.exact_latents import latents_from_codes
from onebit.quant.fit_codes import fit_codes

__all__ = ["LayerFit", "calibrate"]

_SCALE_TOLERANCE = 2.0**-21  # a fitted scale is no more exact than its samples; the layer's own is then the one it got


@dataclass(frozen=True)
class LayerFit:
    """The squared difference of a layer's outputs from the float model's over their square, on the samples: with its
    weights rounded, and fitted; the layers before it are fitted already."""

    rounded: float
    fitted: float


@torch.no_grad()
def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    rounds: int = 3,
    damping: float = 0.01,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, LayerFit]:
    """Fit the binary and ternary layers of a converted model to the batches; what it did for each, by name.

    batches: what the model is called with (see `run_batch`), some tens of thousands of tokens in all; on the model's
    device. rounds and damping: see `fit_codes`. progress(done, blocks) is called after each block. Layers outside the
    model's list of blocks, and those that met no input, stay as they are and are not in the result. Raises OnebitError
    when there is nothing to fit, for quantisers that cannot be fitted, and for sample inputs that are zero or NaN.
    """
    batches = list(batches)
    layers = dict(bit_layers(model))
    if not layers or not batches:
        what = "no batch of samples" if layers else "no binary or ternary layer; convert the model first"
        raise OnebitError(f"nothing to calibrate: {what}")
    was_training = model.training
    model.eval()
    names = {layer: name for name, layer in layers.items()}
    fits: dict[str, LayerFit] = {}
    fitted_weights: set[int] = set()
    try:
        blocks = _blocks(model, names)
        calls = _calls(model, blocks, batches)
        float_calls = _float_calls(model, blocks, batches, calls)
        for done, block in enumerate(blocks):
            twin = FloatTwin([module for module in block.modules() if module in names])
            for group in _same_inputs(block, names, calls[done][0]):
                waiting = [layer for layer in group if id(layer.weight) not in fitted_weights]
                if waiting:
                    moments = moments_of(waiting[0], calls[done], float_calls[done], twin)
                    fits |= {names[layer]: _fit(layer, moments, rounds, damping) for layer in waiting if moments}
                    fitted_weights |= {id(layer.weight) for layer in waiting}
            if done + 1 < len(blocks):
                with twin:
                    _hand_on(float_calls[done], float_calls[done + 1])
                _hand_on(calls[done], calls[done + 1])
            calls[done], float_calls[done] = [], []
            if progress is not None:
                progress(done + 1, len(blocks))
    finally:
        model.train(was_training)
    return fits


class _BlockCall:
    """One call of a block with the arguments of one batch, whose first is what the block before gave."""

    def __init__(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.block, self.args, self.kwargs = block, args, kwargs

    def __call__(self) -> Any:
        return self.block(*self.args, **self.kwargs)

    def take(self, x: Tensor) -> None:
        if self.args:
            self.args = (x, *self.args[1:])
        else:
            self.kwargs = {**self.kwargs, next(iter(self.kwargs)): x}


def _blocks(model: nn.Module, names: dict[BitLinear, str]) -> list[nn.Module]:
    """The blocks of the list that holds most of the layers; the model itself where there is no such list."""
    best: list[nn.Module] = []
    most = 0
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            blocks = [child for child in module if any(layer in names for layer in child.modules())]
            count = sum(layer in names for layer in module.modules())
            if count > most:
                best, most = blocks, count
    return best if 2 * most > len(names) else [model]


def _calls(model: nn.Module, blocks: list[nn.Module], batches: list[Any]) -> list[list[Any]]:
    """For each block, its call for each batch. Only the first block's inputs are the right ones yet."""
    if blocks == [model]:
        return [[_Whole(model, batch) for batch in batches]]
    calls: list[list[Any]] = [[] for _ in blocks]

    def recorder(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = _BlockCall(module, args, kwargs)
            if index:
                call.take(torch.empty(0))  # replaced later; until then it need not take memory
            calls[index].append(call)

        return hook

    handles = [block.register_forward_pre_hook(recorder(index), with_kwargs=True) for index, block in enumerate(blocks)]
    try:
        for batch in batches:
            run_batch(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    if any(len(found) != len(batches) for found in calls):
        raise OnebitError("the model's blocks do not run once for each batch, one after the other: cannot calibrate it")
    return calls


def _float_calls(
    model: nn.Module, blocks: list[nn.Module], batches: list[Any], calls: list[list[Any]]
) -> list[list[Any]]:
    """The same calls as the float model makes them: other inputs for the first block where a table is quantised."""
    tables = [module for module in model.modules() if isinstance(module, BitEmbedding)]
    if not any(table.weight_quantizer for table in tables):
        return [[copy.copy(call) for call in block_calls] for block_calls in calls]
    specs = [table.weight_quantizer for table in tables]
    try:
        for table in tables:
            table.weight_quantizer = None
        return _calls(model, blocks, batches)
    finally:
        for table, spec in zip(tables, specs, strict=True):
            table.weight_quantizer = spec


class _Whole:
    def __init__(self, model: nn.Module, batch: Any) -> None:
        self.model, self.batch = model, batch

    def __call__(self) -> Any:
        return run_batch(self.model, self.batch)


def _hand_on(calls: list[Any], following: list[Any]) -> None:
    for call, after in zip(calls, following, strict=True):
        output = call()
        after.take(output[0] if isinstance(output, tuple) else output)


def _same_inputs(block: nn.Module, names: dict[BitLinear, str], call: Call) -> list[list[BitLinear]]:
    """The block's layers in the order of their calls, those together that are given the very same tensor."""
    met: list[tuple[Tensor, list[BitLinear]]] = []  # holds the tensors, so that none of them can be another's memory

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(module, BitLinear)
        if met and met[-1][0] is inputs[0] and _reads_alike(met[-1][1][0], module):
            met[-1][1].append(module)
        else:
            met.append((inputs[0], [module]))

    handles = [module.register_forward_pre_hook(hook) for module in block.modules() if module in names]
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    return [layers for _, layers in met]


def _reads_alike(one: BitLinear, other: BitLinear) -> bool:
    def turned(layer: BitLinear) -> tuple[int, int] | None:
        return None if layer.rotation is None else (layer.rotation.block_size, layer.rotation.seed)

    return one.activation_quantizer == other.activation_quantizer and turned(one) == turned(other)


def _fit(layer: BitLinear, moments: Moments, rounds: int, damping: float) -> LayerFit:
    """Choose codes and scales whose outputs, from the inputs that the layer gets, are nearest to the float model's."""
    spec, w_OI = layer.quantized_spec(), layer.weight.detach().float().clone()
    rounded = moments.error(w_OI, dequantize(quantize(w_OI, spec)))
    chosen = fit_codes(moments.target(w_OI, damping), moments.own_II, spec, rounds=rounds, damping=damping)
    layer.weight.copy_(latents_from_codes(chosen, w_OI, layer.weight.dtype, _SCALE_TOLERANCE))
    return LayerFit(rounded, moments.error(w_OI, dequantize(layer.quantized())))
