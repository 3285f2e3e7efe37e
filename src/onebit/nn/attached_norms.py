"""RMSNorms added to a model: before the attention's and the MLP's last projection, or behind the attention.

Low-bit layers want inputs of an even size. BitNet trains with a norm before o_proj and down_proj (`attn_sub_norm` and
`ffn_sub_norm`, and these are the names here), others put one behind the attention. A norm in a trained model changes
what it computes; `fit_norms` gives each the weight at which it changes least.

The norms hang on the projections by hooks, so no module changes its class and no forward is written again.

Shape suffixes: T tokens (any leading dimensions), D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from onebit.errors import OnebitError
from onebit.nn.norms import RMSNorm
from onebit.nn.samples import run_batch

__all__ = ["attach_post_attention_norms", "attach_sub_norms", "attached_norms", "fit_norms"]

# The end of a projection's dotted name -> what its parent calls the norm before it.
_SUB_NORMS = {
    ".o_proj": "attn_sub_norm",
    ".attn.c_proj": "attn_sub_norm",
    ".self_attn.dense": "attn_sub_norm",
    ".attention.dense": "attn_sub_norm",
    ".out_proj": "attn_sub_norm",
    ".down_proj": "ffn_sub_norm",
    ".mlp.c_proj": "ffn_sub_norm",
    ".dense_4h_to_h": "ffn_sub_norm",
    ".fc2": "ffn_sub_norm",
}
_POST = "post_attn_norm"


class _NormInputs:
    """A hook that is copied with its model: what it holds is copied too, and stays the model's own norm."""

    def __init__(self, norm: RMSNorm) -> None:
        self.norm = norm

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.norm(inputs[0]), *inputs[1:])


class _NormOutputs(_NormInputs):
    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any = None) -> Any:
        return self.norm(output)


def attach_sub_norms(model: nn.Module, eps: float | None = None) -> list[str]:
    """Put an RMSNorm before the last projection of every attention and MLP; the names of the new norms.

    eps: that of the model's configuration (`rms_norm_eps`) when None, else 1e-5. A parent that has such a norm already
    keeps it. Raises OnebitError when no projection is known by its name.
    """
    return _attach(model, eps, sub=True)


def attach_post_attention_norms(model: nn.Module, eps: float | None = None) -> list[str]:
    """Put an RMSNorm behind the last projection of every attention; as `attach_sub_norms` otherwise."""
    return _attach(model, eps, sub=False)


def attached_norms(model: nn.Module) -> dict[str, RMSNorm]:
    """Name -> norm of those that were attached."""
    names = {*_SUB_NORMS.values(), _POST}
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, RMSNorm) and name.rpartition(".")[2] in names:
            found[name] = module
    return found


def _attach(model: nn.Module, eps: float | None, *, sub: bool) -> list[str]:
    if eps is None:
        eps = float(getattr(getattr(model, "config", None), "rms_norm_eps", None) or 1e-5)
    modules = dict(model.named_modules())
    added, known = [], 0
    for name, module in modules.items():
        norm_name = next((norm for end, norm in _SUB_NORMS.items() if f".{name}".endswith(end)), None)
        weight = getattr(module, "weight", None)
        if norm_name is None or not isinstance(weight, Tensor) or weight.ndim != 2:
            continue
        if not sub and norm_name != "attn_sub_norm":
            continue
        known += 1
        parent_name = name.rpartition(".")[0]
        norm_name = norm_name if sub else _POST
        if hasattr(modules[parent_name], norm_name):
            continue
        norm = RMSNorm(_width(module, weight, sub=sub), eps, device=weight.device, dtype=weight.dtype)
        norm.train(module.training)
        modules[parent_name].add_module(norm_name, norm)
        if sub:
            module.register_forward_pre_hook(_NormInputs(norm))
        else:
            module.register_forward_hook(_NormOutputs(norm))
        added.append(f"{parent_name}.{norm_name}".lstrip("."))
    if not known:
        ends = ", ".join(sorted({end.lstrip(".") for end in _SUB_NORMS}))
        raise OnebitError(f"found no projection to put a norm at; known are the names {ends}")
    return added


def _width(module: nn.Module, weight: Tensor, *, sub: bool) -> int:
    """Inputs or outputs of a linear layer; transformers' Conv1D holds its weight the other way round."""
    is_transposed = type(module).__name__ == "Conv1D"
    return weight.shape[0] if is_transposed == sub else weight.shape[1]


@torch.no_grad()
def fit_norms(model: nn.Module, batches: Iterable[Any]) -> None:
    """Give every attached norm the weight at which it keeps the size of what it meets on the batches.

    Measured with the norms out of the way, so on the model as it was; each norm's weight becomes the root mean square
    of its inputs over all tokens. batches: see `run_batch`. Do this before the layers are converted.
    """
    norms = attached_norms(model)
    sums = {name: torch.zeros(2, dtype=torch.float64) for name in norms}

    def passing(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x_TD = inputs[0]
            sums[name] += torch.tensor([x_TD.double().square().sum().item(), x_TD.numel()], dtype=torch.float64)
            return x_TD

        return hook

    handles = [norm.register_forward_hook(passing(name)) for name, norm in norms.items()]
    try:
        for batch in batches:
            run_batch(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    for name, norm in norms.items():
        squares, count = sums[name].tolist()
        if not count:
            raise OnebitError(f"{name} met no input; give at least one batch to fit the norms to")
        norm.weight.fill_((squares / count) ** 0.5)
