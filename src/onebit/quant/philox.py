"""Random numbers that are a pure function of where they are used: seed, tensor, step and element.

What shaped it: a run must give the same bits after a resume, on any number of processes and with any division of a
matrix into rows, in torch as in a C or a Triton kernel. So there is no generator and no state; Philox4x32-10 turns a
128-bit counter and a 64-bit key into four 32-bit words. Source: J. Salmon et al., "Parallel random numbers: as easy as
1, 2, 3" (SC 2011); the constants and the test vectors are those of the authors' Random123.

======  ==============================================
word    of the input
======  ==============================================
key     seed; tensor
counter column // 8; row; step, low half; step, high half
======  ==============================================

The four words of a block serve eight columns, 16 bits each: word n has column 2n in its low half and 2n + 1 in its high
half. 16 bits are enough to round with: a probability is off by at most 2^-17.

Counters are rounded with a Kronecker sequence: an element starts at a random number and goes on by one stride each
step, once through all 65,536 values, then from a new start. In any one step its numbers are as independent as those of
`random16`; over steps they are spread evenly, so that the roundings of like deposits cancel instead of adding up.
Random starts: R. Cranley, T. Patterson, SIAM J. Numer. Anal. 13 (1976); strides by their continued fraction: H.
Niederreiter, Random Number Generation and Quasi-Monte Carlo Methods (1992).

Shape suffixes: O rows, I columns, B blocks of eight columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["kronecker16", "philox4x32", "random16"]

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK = 0xFFFFFFFF
_COLUMNS_PER_BLOCK = 8
_STRIDE = 46073  # of 2^16, the odd one whose continued fraction has the smallest partial quotients, 1 and 2

Word = Tensor | int


def philox4x32(counter: tuple[Word, Word, Word, Word], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words of 32 bits, as int64 in [0, 2^32), for each counter; counters are int64 in that range too."""
    a, b, c, d = (torch.as_tensor(word) for word in counter)
    key0, key1 = key
    for _ in range(_ROUNDS):
        # int64 products wrap, which leaves both halves of the unsigned product right.
        product0, product1 = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (
            (product1 >> 32 & _MASK) ^ b ^ key0,
            product1 & _MASK,
            (product0 >> 32 & _MASK) ^ d ^ key1,
            product0 & _MASK,
        )
        key0, key1 = key0 + _WEYL[0] & _MASK, key1 + _WEYL[1] & _MASK
    return a, b, c, d


def random16(seed: int, tensor: int, step: Tensor | int, rows: range, cols: int, device: torch.device) -> Tensor:
    """int16 [O, I], uniform over all 65,536 values, for the rows of a matrix with `cols` columns.

    seed, tensor: in [0, 2^32). step: an int, or int64 [] on the device.
    """
    step = torch.as_tensor(step, device=device)
    block_1B = torch.arange(-(-cols // _COLUMNS_PER_BLOCK), device=device).unsqueeze(0)
    row_O1 = torch.arange(rows.start, rows.stop, device=device).unsqueeze(1)
    words = philox4x32((block_1B, row_O1, step & _MASK, step >> 32), (seed, tensor))
    words_OB4 = torch.stack([word.int() for word in words], dim=-1)
    return words_OB4.view(torch.int16).flatten(1)[:, :cols]


def kronecker16(seed: int, tensor: int, step: Tensor | int, rows: range, cols: int, device: torch.device) -> Tensor:
    """int16 [O, I], as `random16` in one step; over steps each element's numbers are spread evenly."""
    step = torch.as_tensor(step, device=device)
    start_OI = random16(seed, tensor, step >> 16, rows, cols, device)
    return start_OI + ((step & 0xFFFF) * _STRIDE).to(torch.int16)
