"""Muon: momentum whose update is made orthogonal, for the matrices of the layers; AdamW for everything else.

A gradient of a matrix is dominated by a few directions; the nearest orthogonal matrix gives all of them the same step.
For a small model on a CPU that is worth about twice the steps (benchmarks/LOG.md), and it needs one state instead of
two. The update is scaled to the size that AdamW's would have, so learning rate and weight decay carry over.
Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the scale: arXiv 2502.16982.

Shape suffixes: O outputs, I inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Muon", "muon_groups", "orthogonalize"]

# Each step maps a singular value s to a s + b s^3 + c s^5: five of them bring [0.01, 1] into about [0.7, 1.2].
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ADAM_RMS = 0.2  # root mean square of an AdamW update in units of the learning rate, as observed in training


def orthogonalize(g_OI: Tensor, steps: int = 5) -> Tensor:
    """The orthogonal matrix near g, float32: its singular vectors kept, its singular values moved close to 1."""
    wide = g_OI.shape[0] <= g_OI.shape[1]
    x = (g_OI if wide else g_OI.t()).to(_product_dtype(g_OI))
    x = x / (x.norm() + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.t()
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.t()).float()


def muon_groups(model: nn.Module, decaying: Iterable[str], weight_decay: float) -> list[dict[str, Any]]:
    """Groups for Muon: matrices named in `decaying` take the orthogonal update, the rest AdamW without decay."""
    names = set(decaying)
    inside = [p for name, p in model.named_parameters() if p.requires_grad and name in names and p.ndim == 2]
    chosen = {id(p) for p in inside}
    outside = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    return [
        {"params": inside, "weight_decay": weight_decay, "orthogonal": True},
        {"params": outside, "weight_decay": 0.0, "orthogonal": False},
    ]


class Muon(torch.optim.Optimizer):
    """Muon for groups with `orthogonal`, AdamW for the others; one learning rate serves both."""

    def __init__(
        self,
        params: Any,
        lr: float = 4e-3,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"orthogonal": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            update = self._muon if group["orthogonal"] else self._adam
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                    update(parameter, parameter.grad, self.state[parameter], group)
        return loss

    def _muon(self, w_OI: Tensor, g_OI: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state["momentum"] = torch.zeros_like(w_OI)
        momentum_OI = state["momentum"].lerp_(g_OI, 1.0 - group["momentum"])
        ahead_OI = g_OI.lerp(momentum_OI, group["momentum"])  # Nesterov
        scale = ADAM_RMS * math.sqrt(max(w_OI.shape))
        w_OI.add_(orthogonalize(ahead_OI).to(w_OI.dtype), alpha=-group["lr"] * scale)

    def _adam(self, w: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state["step"] = 0
            state["first"], state["second"] = torch.zeros_like(w), torch.zeros_like(w)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        first = state["first"].lerp_(g, 1.0 - beta1)
        second = state["second"].mul_(beta2).addcmul_(g, g, value=1.0 - beta2)
        size = group["lr"] / (1.0 - beta1 ** state["step"])
        root = second.sqrt().div_(math.sqrt(1.0 - beta2 ** state["step"])).add_(group["eps"])
        w.addcdiv_(first, root, value=-size)


def _product_dtype(g: Tensor) -> torch.dtype:
    """bfloat16 where its products are fast: the iteration forgives the rounding.

    On CPU only tiles (AMX) make them faster than float32's; with AVX-512 alone they ran at 0.58 of it.
    """
    fast = g.device.type != "cpu" or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32
