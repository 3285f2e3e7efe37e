"""Calling a model, whatever it is, with a batch of samples."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["run_batch"]


def run_batch(model: nn.Module, batch: Any) -> Any:
    """Call the model with a batch: a mapping gives keywords, a tuple positions, a tensor the first argument."""
    # A transformers model is told not to keep keys and values: its blocks are run again and again.
    options = {"use_cache": False} if hasattr(model, "config") and hasattr(model, "get_input_embeddings") else {}
    if isinstance(batch, dict):
        return model(**{**options, **batch})
    return model(*batch, **options) if isinstance(batch, (tuple, list)) else model(batch, **options)
