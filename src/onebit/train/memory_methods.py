"""The ways to train that `onebit memory` counts, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onebit.errors import ConfigError, nearest_name

__all__ = ["METHODS", "Method", "method_named"]

FLOAT32, BFLOAT16 = 4, 2
"""Bytes of a number."""


@dataclass(frozen=True)
class Method:
    """A way to train. dtype: of weights, gradients and, unless `eight_bit`, AdamW's two moments.

    kind: float; hybrid (float latents that are quantised in each step); pure (codes with counters); lora (adapters in
    float32 on a frozen hybrid). counter: of pure.
    """

    name: str
    kind: Literal["float", "hybrid", "pure", "lora"]
    dtype: Literal["float32", "bfloat16"]
    eight_bit: bool = False
    counter: Literal["int8", "int4", "none"] = "none"

    @property
    def itemsize(self) -> int:
        return FLOAT32 if self.dtype == "float32" else BFLOAT16


METHODS = (
    Method("float-fp32", "float", "float32"),
    Method("float-bf16", "float", "bfloat16"),
    Method("hybrid-fp32", "hybrid", "float32"),
    Method("hybrid-bf16", "hybrid", "bfloat16"),
    Method("hybrid-8bit", "hybrid", "bfloat16", eight_bit=True),
    Method("lora", "lora", "bfloat16"),
    Method("pure-int8", "pure", "bfloat16", counter="int8"),
    Method("pure-int4", "pure", "bfloat16", counter="int4"),
    Method("pure-none", "pure", "bfloat16"),
)


def method_named(name: str) -> Method:
    """The method of METHODS; ConfigError for another name."""
    for method in METHODS:
        if method.name == name:
            return method
    known = [method.name for method in METHODS]
    raise ConfigError(f"--method is '{name}'; it must be one of {', '.join(known)}{nearest_name(name, known)}")
