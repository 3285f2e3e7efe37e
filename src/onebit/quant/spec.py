"""What a quantiser is told and what it gives back.

A `WeightQuantizer` is a value: hashable, comparable, safe to use as a static argument of a compiled function. The
same object goes from the configuration through training to export, so that what is trained is what is written.

Shape suffixes: O outputs, I inputs, G groups of consecutive inputs in a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from onebit.errors import ConfigError, nearest_name

__all__ = [
    "GROUP_SIZES",
    "INT4_GROUP_SIZE",
    "SCALE_FLOOR",
    "Granularity",
    "Quantized",
    "QuantizerName",
    "WeightQuantizer",
    "check_name",
]

QuantizerName = Literal["absmean", "threshold", "sparsity", "binary", "int8", "int4", "float16"]
Granularity = Literal["per_tensor", "per_row", "per_group"]

GROUP_SIZES = (64, 128, 256)
INT4_GROUP_SIZE = 32
SCALE_FLOOR = 1e-5  # keeps an all-zero unit finite; the floor of the published BitNet b1.58 code

# Levels beside 1 and 1.58 bits have one granularity each: the one that their file layout stores.
_FIXED_GRANULARITY: dict[str, Granularity] = {"int8": "per_row", "int4": "per_group", "float16": "per_tensor"}


def check_name(field: str, given: object, known: tuple[str, ...]) -> None:
    """Raise ConfigError unless `given` is one of `known`, naming the field and the nearest right name."""
    if given not in known:
        hint = nearest_name(given, known) if isinstance(given, str) else ""
        raise ConfigError(f"{field} is {given!r}, expected one of {', '.join(known)}{hint}")


@dataclass(frozen=True)
class WeightQuantizer:
    """How a weight matrix [O, I] becomes codes and scales.

    `sparsity` is the share of the smallest |W| that becomes zero ("sparsity" only); `center` subtracts the mean
    before taking signs ("binary" only). `group_size` belongs to per_group: 64, 128 or 256, and 32 for int4.
    """

    quantizer: QuantizerName = "absmean"
    granularity: Granularity = "per_tensor"
    group_size: int | None = None
    sparsity: float | None = None
    center: bool = True

    def __post_init__(self) -> None:
        check_name("quantizer", self.quantizer, get_args(QuantizerName))
        check_name("granularity", self.granularity, get_args(Granularity))
        fixed = _FIXED_GRANULARITY.get(self.quantizer)
        if fixed is not None and self.granularity != fixed:
            raise ConfigError(f"granularity is {self.granularity!r}, but quantizer {self.quantizer!r} needs {fixed!r}")
        self._check_group_size()
        self._check_sparsity()

    @classmethod
    def for_level(cls, quantizer: Literal["int8", "int4", "float16"]) -> WeightQuantizer:
        """The quantiser of a level above 2 bits, with the only granularity it has."""
        group_size = INT4_GROUP_SIZE if quantizer == "int4" else None
        return cls(quantizer, _FIXED_GRANULARITY[quantizer], group_size)

    @property
    def is_ternary(self) -> bool:
        return self.quantizer in ("absmean", "threshold", "sparsity")

    @property
    def is_float16(self) -> bool:
        return self.quantizer == "float16"

    def _check_group_size(self) -> None:
        if self.granularity != "per_group":
            if self.group_size is not None:
                raise ConfigError(f"group_size is {self.group_size}, but granularity is {self.granularity!r}; drop it")
            return
        sizes = (INT4_GROUP_SIZE,) if self.quantizer == "int4" else GROUP_SIZES
        if self.group_size not in sizes:
            wanted = " or ".join(str(size) for size in sizes)
            raise ConfigError(f"group_size is {self.group_size}, expected {wanted} with granularity 'per_group'")

    def _check_sparsity(self) -> None:
        if self.quantizer != "sparsity":
            if self.sparsity is not None:
                raise ConfigError(f"sparsity is {self.sparsity}, but quantizer is {self.quantizer!r}; drop one of them")
            return
        if self.sparsity is None or not 0.0 <= self.sparsity < 1.0:
            raise ConfigError(f"sparsity is {self.sparsity}, expected a share in [0, 1) with quantizer 'sparsity'")


@dataclass(frozen=True)
class Quantized:
    """Codes and scales of one weight matrix: w = codes * scale.

    codes_OI: int8 (float16 values for the level float16). scale: float32 [] per tensor, float32 [O] per row,
    float16 [O, G] per group.
    """

    codes_OI: torch.Tensor
    scale: torch.Tensor
    spec: WeightQuantizer
