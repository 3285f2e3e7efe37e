"""Whether autocast is on, asked so that every supported torch can compile the question."""

from __future__ import annotations

import torch

__all__ = ["autocast_dtype"]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch 2.11 cannot trace it
def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


def autocast_dtype(device: str) -> torch.dtype | None:
    """The type that autocast multiplies in on this kind of device, such as "cuda"; None where it is off."""
    if _has_autocast(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None
