"""The order of training blocks, as a pure function of (seed, position): what makes resuming exact.

One sampler spans the whole run, not one pass over the data: pass p is the permutation that seed + p gives, and the
passes follow each other without a gap, so no batch is short and no state has to be saved but the step.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

__all__ = ["RunSampler"]


class RunSampler(torch.utils.data.Sampler[int]):
    """Yield `total` indices into a data set of `size` rows, each pass a fresh permutation."""

    def __init__(self, size: int, total: int, *, seed: int) -> None:
        self.size = size
        self.total = total
        self.seed = seed

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        left = self.total
        epoch = 0
        while left > 0:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            order = torch.randperm(self.size, generator=generator)[:left].tolist()
            yield from order
            left -= len(order)
            epoch += 1
