"""A fixed rotation of a layer's inputs: random signs, then a Walsh-Hadamard transform of each block of a power of two.

A ternary code fits a weight best where a group holds no outliers, and a rotation spreads them. It costs nothing in
accuracy: y = w x = (R w) (R x) for orthogonal R, so that the rotated weights are stored and only the input has to be
turned. Its signs are a function of the width and a seed, so there is nothing to store either; layers of one width turn
their inputs alike, and those that read the same input share the work.

The transform of a block of N = P * Q inputs is two small matrix products, which is several times faster than log2(N)
passes of sums and differences, and a few percent of the layer's own product.

Shape suffixes: T tokens (any leading dimensions), I inputs, N = P Q inputs in a block.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from onebit.errors import ConfigError
from onebit.nn.autocast import autocast_dtype

__all__ = [
    "DEFAULT_SEED",
    "HadamardRotation",
    "block_size_for",
    "hadamard_factors",
    "hadamard_transform",
    "rotation_signs",
]

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


def hadamard_factors(block_size: int) -> tuple[Tensor, Tensor]:
    """Walsh-Hadamard matrices of +1 and -1, float32 [P, P] and [Q, Q], whose Kronecker product is that of P Q = N."""
    stages = block_size.bit_length() - 1
    return _walsh_hadamard(stages // 2), _walsh_hadamard(stages - stages // 2)


def _walsh_hadamard(stages: int) -> Tensor:
    matrix = torch.ones(1, 1)
    for _ in range(stages):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def hadamard_transform(x_TI: Tensor, left_PP: Tensor, right_QQ: Tensor) -> Tensor:
    """Each block of N inputs times the Walsh-Hadamard matrix over sqrt(N); float32, its own inverse."""
    rows, cols = left_PP.shape[0], right_QQ.shape[0]
    device = x_TI.device.type
    if autocast_dtype(device) is not None:
        with torch.autocast(device, enabled=False):
            return hadamard_transform(x_TI, left_PP, right_QQ)
    x_TPQ = x_TI.float().reshape(*x_TI.shape[:-1], -1, rows, cols)
    y_TPQ = left_PP.float() @ (x_TPQ @ right_QQ.float())
    return y_TPQ.reshape(x_TI.shape).mul(float(rows * cols) ** -0.5)


class HadamardRotation(nn.Module):
    """R x for inputs [T, I]: signs, then the transform of each block. Holds no parameter and nothing to save."""

    signs: Tensor
    left: Tensor
    right: Tensor

    def __init__(
        self, width: int, block_size: int, seed: int = DEFAULT_SEED, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        if block_size_for(width, block_size) != block_size:
            raise ConfigError(f"blocks of {block_size} do not divide {width} inputs")
        self.block_size = block_size
        self.seed = seed
        for name, value in self._values(width).items():
            self.register_buffer(name, value.to(device), persistent=False)

    def _values(self, width: int) -> dict[str, Tensor]:
        left, right = hadamard_factors(self.block_size)
        return {"signs": rotation_signs(width, self.seed), "left": left, "right": right}

    def reset_parameters(self) -> None:
        """Fill the buffers after the meta device."""
        for name, value in self._values(self.signs.shape[0]).items():
            getattr(self, name).copy_(value)

    def forward(self, x_TI: Tensor) -> Tensor:
        """[T, I] -> float32 [T, I]."""
        return hadamard_transform(x_TI.float() * self.signs.float(), self.left, self.right)

    def inverse(self, x_TI: Tensor) -> Tensor:
        """The x of which `x_TI` is the rotation; float32."""
        return hadamard_transform(x_TI, self.left, self.right) * self.signs.float()

    def extra_repr(self) -> str:
        return f"{self.signs.shape[0]}, block_size={self.block_size}, seed={self.seed}"
