"""Train, fine-tune, compress, search, export and run 1-bit and 1.58-bit language models.

Every name below is loaded on first use, so that ``import onebit`` costs milliseconds and never imports torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME_OF: dict[str, str] = {
    "OnebitError": "onebit.errors",
    "BitLinear": "onebit.nn",
    "Schedule": "onebit.nn",
    "OneBitConfig": "onebit.models",
    "OneBitForCausalLM": "onebit.models",
    "Model": "onebit.engine",
    "load": "onebit.engine",
}

__all__ = [*_HOME_OF, "__version__"]


def __getattr__(name: str) -> Any:
    try:
        home = _HOME_OF[name]
    except KeyError:
        raise AttributeError(f"module 'onebit' has no attribute '{name}'") from None
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
