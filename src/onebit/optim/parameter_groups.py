"""Which parameters weight decay acts on: matrices of layers; not norms, biases, embeddings or a head tied to one."""

from __future__ import annotations

from torch import nn

__all__ = ["decaying_parameter_names"]


def decaying_parameter_names(model: nn.Module) -> list[str]:
    """Name every parameter of at least two dimensions that no embedding holds."""
    embedded = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    return [name for name, p in model.named_parameters() if p.ndim >= 2 and id(p) not in embedded]
