"""Blocks made on the fly, for text that does not fit on the disk a second time (`--streaming`).

The stream repeats for ever, and is the same each time it is read from the start: a resumed run reads and tokenises up
to where it was and goes on from there. Blocks pass through a small shuffle buffer, seeded, so that the rows of a batch
do not come from one document.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from onebit.data.blocks import BlockCounts, Tokens, as_example, encode, pack
from onebit.data.documents import Piece, TextSource
from onebit.data.tokenizer import TextTokenizer
from onebit.errors import DataError

__all__ = ["BlockStream", "shuffled"]

# In blocks: large enough to mix some dozens of documents, small enough to fill within a second.
SHUFFLE_BUFFER = 512


class BlockStream(torch.utils.data.IterableDataset[dict[str, torch.Tensor]]):
    """An endless stream of {"input_ids" [L], "labels" [L]}; pass p over the text is shuffled with seed + p."""

    def __init__(
        self, source: TextSource, tokenizer: TextTokenizer, block_size: int, *, seed: int, buffer: int = SHUFFLE_BUFFER
    ) -> None:
        super().__init__()
        self.source = source
        self.tokenizer = tokenizer
        self.block_size = block_size
        self.seed = seed
        self.buffer = buffer

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        epoch = 0
        while True:
            counts = BlockCounts()
            # Small batches for the tokenizer: the first block must not wait for megabytes of text.
            tokens = (ids for piece in self.source.pieces() for ids in self._encode(piece, counts))
            rows = (row_L for block_BL in pack(tokens, self.block_size) for row_L in block_BL)
            for row_L in shuffled(rows, self.buffer, self.seed + epoch):
                yield as_example(row_L, self.tokenizer.eos_token_id)
            if counts.bytes == 0:
                raise DataError(f"the text is empty: {self.source.description} has nothing to stream")
            epoch += 1

    def _encode(self, piece: Piece, counts: BlockCounts) -> Iterator[Tokens]:
        return encode([piece], self.tokenizer, counts)


def shuffled(rows: Iterator[Tokens], buffer: int, seed: int) -> Iterator[Tokens]:
    """Yield every row once, in an order that a buffer of `buffer` rows and `seed` decide."""
    random = np.random.default_rng(seed)
    waiting: list[Tokens] = []
    for row_L in rows:
        if len(waiting) < buffer:
            waiting.append(row_L)
            continue
        place = int(random.integers(buffer))
        yield waiting[place]
        waiting[place] = row_L
    for place in random.permutation(len(waiting)):
        yield waiting[place]
