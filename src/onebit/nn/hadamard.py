"""A fixed rotation of a layer's inputs: random signs, then a Walsh-Hadamard transform of each block of a power of two.

A ternary code fits a weight best where a group holds no outliers, and a rotation spreads them. It costs nothing in
accuracy: y = w x = (R w) (R x) for orthogonal R, so that the rotated weights are stored and only the input has to be
turned. Its signs are a function of the width and a seed, so there is nothing to store either; layers of one width turn
their inputs alike, and those that read the same input share the work.

The order of sums is fixed (stages of distance 1, 2, 4, ... and one product at the end), so that another program that
adds in the same order gets the same bits.

Shape suffixes: T tokens (any leading dimensions), I inputs, B blocks, N inputs in a block.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from onebit.errors import ConfigError

__all__ = ["DEFAULT_SEED", "HadamardRotation", "block_size_for", "hadamard_transform", "rotation_signs"]

DEFAULT_SEED = 0
_GOLDEN, _MIX1, _MIX2 = (np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def rotation_signs(width: int, seed: int = DEFAULT_SEED) -> Tensor:
    """+1 or -1 for each input, float32 [I]: the top bit of SplitMix64 at seed + index."""
    with np.errstate(over="ignore"):
        z = (np.arange(1, width + 1, dtype=np.uint64) + np.uint64(seed)) * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _MIX1
        z = (z ^ (z >> np.uint64(27))) * _MIX2
        z ^= z >> np.uint64(31)
    return torch.from_numpy(1.0 - 2.0 * (z >> np.uint64(63)).astype(np.float32))


def block_size_for(width: int, largest: int) -> int:
    """The largest power of two that divides `width` and is at most `largest`; 1 means that nothing can be turned."""
    if largest < 2 or largest & (largest - 1):
        raise ConfigError(f"hadamard_block is {largest}, expected a power of two: 128, 256, 512, 1024, ...")
    return min(largest, width & -width)


def hadamard_transform(x_TI: Tensor, block_size: int) -> Tensor:
    """Each block of N inputs times the Walsh-Hadamard matrix over sqrt(N); float32, its own inverse."""
    shape = x_TI.shape
    x: Tensor = x_TI.float()
    distance = 1
    while distance < block_size:
        first, second = x.reshape(*shape[:-1], -1, 2, distance).unbind(-2)
        x = torch.stack((first + second, first - second), dim=-2)
        distance *= 2
    return x.reshape(shape).mul(block_size**-0.5)


class HadamardRotation(nn.Module):
    """R x for inputs [T, I]: signs, then the transform of each block. Holds no parameter and nothing to save."""

    signs: Tensor

    def __init__(
        self, width: int, block_size: int, seed: int = DEFAULT_SEED, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        if block_size_for(width, block_size) != block_size:
            raise ConfigError(f"blocks of {block_size} do not divide {width} inputs")
        self.block_size = block_size
        self.seed = seed
        self.register_buffer("signs", rotation_signs(width, seed).to(device), persistent=False)

    def reset_parameters(self) -> None:
        """Fill the signs after the meta device."""
        self.signs.copy_(rotation_signs(self.signs.shape[0], self.seed))

    def forward(self, x_TI: Tensor) -> Tensor:
        """[T, I] -> float32 [T, I]."""
        return hadamard_transform(x_TI.float() * self.signs.float(), self.block_size)

    def inverse(self, x_TI: Tensor) -> Tensor:
        """The x of which `x_TI` is the rotation; float32."""
        return hadamard_transform(x_TI, self.block_size) * self.signs.float()

    def extra_repr(self) -> str:
        return f"{self.signs.shape[0]}, block_size={self.block_size}, seed={self.seed}"
