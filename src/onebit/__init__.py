"""Train, fine-tune, compress, search, export and run 1-bit and 1.58-bit language models.

Every name below is loaded on first use, so that ``import onebit`` costs milliseconds and never imports torch. What
runs a model needs numpy and tokenizers only; a name that needs an extra which is not installed says which.
"""

from __future__ import annotations

import importlib
from typing import Any

from onebit.errors import missing_extra

__version__ = "0.1.0"

# __init__.pyi says the same to type checkers; a test compares the two.
_HOME_OF: dict[str, str] = {
    "OnebitError": "onebit.errors",
    "Model": "onebit.engine",
    "load": "onebit.engine",
    "from_pretrained": "onebit.formats.hub",
    "push_to_hub": "onebit.formats.hub",
    "WeightQuantizer": "onebit.quant",
    "quantize": "onebit.quant",
    "dequantize": "onebit.quant",
    "fake_quantize": "onebit.quant",
    "BitLinear": "onebit.nn",
    "Pure1BitLinear": "onebit.nn",
    "Schedule": "onebit.nn",
    "create_pure1bit_optimizer": "onebit.nn",
    "pure1bit_training_step": "onebit.nn",
    "replace_linear_with_bitlinear": "onebit.nn",
    "replace_linear_with_bitnet_linear": "onebit.nn",
    "replace_linear_with_pure1bit_linear": "onebit.nn",
    "BitNetQuantizer": "onebit.compat.phase4_bitnet",
    "CompressedModel": "onebit.compat.phase4_bitnet",
    "Phase4Config": "onebit.compat.phase4_bitnet",
    "activation_quant": "onebit.compat.phase4_bitnet",
    "apply_ste": "onebit.compat.phase4_bitnet",
    "load_phase4_model": "onebit.compat.phase4_bitnet",
    "save_phase4_model": "onebit.compat.phase4_bitnet",
    "OneBitConfig": "onebit.models",
    "OneBitForCausalLM": "onebit.models",
    "TrainSettings": "onebit.train",
    "verify": "onebit.eval.verify",
}

__all__ = [*_HOME_OF, "__version__"]


def __getattr__(name: str) -> Any:
    try:
        home = _HOME_OF[name]
    except KeyError:
        raise AttributeError(f"module 'onebit' has no attribute '{name}'") from None
    try:
        value = getattr(importlib.import_module(home), name)
    except ModuleNotFoundError as error:
        raise (missing_extra(error, f"onebit.{name}") or error) from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
