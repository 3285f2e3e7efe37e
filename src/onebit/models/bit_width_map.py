"""Bit-width maps on disk and on models: which level each matrix gets, as `onebit search` writes it.

A map is {module name or pattern: level}, the first match wins, as `OneBitConfig.bit_width_map` has it. A file holds the
map itself, or a search's result with the map under `layer_bit_map`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from onebit.errors import ConfigError, DataError
from onebit.models.config import OneBitConfig

__all__ = ["BUDGET_KEY", "MAP_KEY", "MapFile", "apply_bit_width_map", "at_level", "read_bit_width_map"]

MAP_KEY = "layer_bit_map"
BUDGET_KEY = "max_size_bytes"


class MapFile(NamedTuple):
    """A map, and the bytes that a file exported with it may have; None without a limit."""

    levels: dict[str, str]
    max_bytes: int | None


def read_bit_width_map(path: Path) -> MapFile:
    """The map that a file holds, and the budget it was searched for.

    Raises:
        DataError: there is no such file, or it holds no map.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DataError(f"--bit-width-map: cannot read '{path}': {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"--bit-width-map: '{path}' is not valid JSON: {error}") from None
    found = content.get(MAP_KEY, content) if isinstance(content, dict) else None
    if not isinstance(found, dict) or not all(isinstance(level, str) for level in found.values()):
        raise DataError(
            f"--bit-width-map: '{path}' holds no map; expected what onebit search wrote, or an object of module name "
            "-> level"
        )
    return MapFile(found, content.get(BUDGET_KEY) if found is not content else None)


def at_level(config: OneBitConfig, level: str) -> OneBitConfig:
    """The configuration with every module at a level: what it says of a module holds there in any map."""
    return OneBitConfig.from_dict({**config.to_dict(), "bit_width_map": {"*": level}})


def apply_bit_width_map(model: Any, levels: Mapping[str, str]) -> None:
    """Let every layer of a OneBitForCausalLM read its weights at the level that the map gives it, in place.

    The latents stay what they are, and the configuration holds the map from now on. Raises ConfigError for a level or
    a module that there is not, and for a model that onebit train did not make.
    """
    config = model.config
    if not isinstance(config, OneBitConfig):
        raise ConfigError(
            f"--bit-width-map: model_type is '{config.model_type}'; maps are for models that onebit train made"
        )
    told = OneBitConfig.from_dict({**config.to_dict(), "bit_width_map": dict(levels)})
    modules = dict(model.named_modules())
    for name in told.module_names():
        module = modules[name] if name in modules else modules[f"model.{name}"]
        module.weight_quantizer = told.weight_quantizer(name)
        if name != "embed_tokens":
            module.activation_quantizer = told.activation_quantizer_of(name)
    config.bit_width_map = told.bit_width_map
