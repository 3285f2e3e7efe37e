"""What a level would do to the loss, estimated from gradients: the second-order part of the search's knowledge.

For a change d of a matrix the loss changes by about g d + 1/2 d F d, with g the gradient and F the diagonal of the
empirical Fisher information (Optimal Brain Damage, with F for the Hessian, which it equals where the model predicts
the text). It costs a few backward passes for all matrices and levels together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from onebit.models.bit_width_map import apply_bit_width_map, at_level
from onebit.models.config import OneBitConfig
from onebit.quant import fake_quantize
from onebit.search.evaluator import HeldOut
from onebit.search.space import Choice, Space

__all__ = ["curvature_of"]

_WINDOWS = 16


def curvature_of(model: Any, data: HeldOut, space: Space) -> Callable[[Choice], NDArray[np.float64]]:
    """A function from a choice to the estimated change of its loss for each unit and level, [U, L]."""

    def estimate(base: Choice) -> NDArray[np.float64]:
        apply_bit_width_map(model, space.map_of(base))
        gradients, fisher = _moments(model, data)
        configs = [at_level(model.config, level) for level in space.levels]
        modules = {**dict(model.model.named_modules()), "lm_head": model.lm_head}
        added_UL = np.zeros((len(space.units), len(space.levels)))
        for unit, told in enumerate(space.units):
            weights = {id(modules[name].weight): name for name in reversed(told.modules)}  # a tied one counts once
            for name in weights.values():
                weight = modules[name].weight
                now = _read(configs[base[unit]], name, weight)
                for level, config in enumerate(configs):
                    change = _read(config, name, weight) - now
                    first = (gradients[id(weight)] * change).sum()
                    second = 0.5 * (fisher[id(weight)] * change.square()).sum()
                    added_UL[unit, level] += float(first + second)
        return added_UL

    return estimate


def _read(config: OneBitConfig, name: str, weight: Tensor) -> Tensor:
    spec = config.weight_quantizer(name)
    assert spec is not None
    return fake_quantize(weight, spec)


def _moments(model: Any, data: HeldOut) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """The gradient of the mean loss, and the Fisher diagonal of one token, from single windows; by id of the weight."""
    device = next(model.parameters()).device
    matrices = {id(p): p for p in model.parameters() if p.ndim == 2}
    gradients = {key: torch.zeros_like(p) for key, p in matrices.items()}
    fisher = {key: torch.zeros_like(p) for key, p in matrices.items()}
    taken = [window for batch in data.batches for window in batch.unbind()][:_WINDOWS]
    for ids_L in taken:
        ids_BL = ids_L[None].to(device)
        with torch.enable_grad():
            logits_BLV = model(input_ids=ids_BL[:, :-1], use_cache=False).logits
            loss = F.cross_entropy(logits_BLV.flatten(0, 1).float(), ids_BL[:, 1:].flatten())
            found = torch.autograd.grad(loss, list(matrices.values()), allow_unused=True)
        # Gradients of tokens are about independent: the square of their mean over n tokens is a token's over n.
        tokens = ids_BL.shape[1] - 1
        for key, gradient in zip(matrices, found, strict=True):
            if gradient is not None:
                gradients[key] += gradient / len(taken)
                fisher[key] += gradient.square() * (tokens / len(taken))
    return gradients, fisher
