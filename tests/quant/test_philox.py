"""Philox4x32-10 against its authors' vectors; numbers do not know how a matrix is divided; spread over steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from onebit.quant.philox import kronecker16, philox4x32, random16

CPU = torch.device("cpu")
# Random123, kat_vectors: counter, key, result
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    words = philox4x32(tuple(torch.tensor(word) for word in counter), key)  # type: ignore[arg-type]
    assert tuple(int(word) for word in words) == expected


def test_a_word_gives_two_columns_and_a_block_eight() -> None:
    got = random16(7, 9, 5, range(3), 21, CPU).numpy().view(np.uint16)
    for row in range(3):
        for column in range(21):
            counter = (torch.tensor(column // 8), torch.tensor(row), torch.tensor(5), torch.tensor(0))
            word = int(philox4x32(counter, (7, 9))[column % 8 // 2])
            assert got[row, column] == (word >> 16 * (column % 2) & 0xFFFF)


def test_rows_do_not_know_of_each_other() -> None:
    whole = random16(1, 2, 3, range(10), 30, CPU)
    parts = [random16(1, 2, 3, range(start, stop), 30, CPU) for start, stop in ((0, 3), (3, 4), (4, 10))]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("change", [{"seed": 2}, {"tensor": 3}, {"step": 4}, {"step": 3 + 2**32}])
def test_every_part_of_the_address_counts(change: dict[str, int]) -> None:
    def numbers(seed: int = 1, tensor: int = 2, step: int = 3) -> torch.Tensor:
        return random16(seed, tensor, step, range(64), 64, CPU)

    same = (numbers() == numbers(**change)).float().mean()
    assert same < 0.005  # 1 in 65,536 by chance


@pytest.mark.parametrize("numbers", [random16, kronecker16])
def test_uniform(numbers: Callable[..., torch.Tensor]) -> None:
    x = numbers(1, 2, torch.tensor(3), range(512), 512, CPU).double()
    assert abs(x.mean().item() + 0.5) < 6 * 65536 / 12**0.5 / 512
    shares = torch.histc(x, bins=64, min=-32768, max=32767) / x.numel()
    assert (shares - 1 / 64).abs().max() < 6 * (1 / 64 / x.numel()) ** 0.5


def spread(steps: range) -> np.ndarray:
    """[steps, 64] of one matrix of 8 x 8."""
    return np.stack([kronecker16(1, 2, step, range(8), 8, CPU).numpy().ravel() for step in steps])


def test_an_element_goes_through_all_values_and_then_starts_anew() -> None:
    # a cycle of 2^16 steps, from its definition: the start of the cycle plus so many times 46073
    for step in (0, 1, 2, 65535, 65536, 65537, 5 * 65536 + 77, 2**40 + 3):
        start = random16(1, 2, step // 65536, range(8), 8, CPU).numpy().view(np.uint16).astype(np.int64)
        expected = ((start + step % 65536 * 46073) % 65536).astype(np.uint16).view(np.int16)
        assert np.array_equal(kronecker16(1, 2, torch.tensor(step), range(8), 8, CPU).numpy(), expected)
    assert np.unique(np.arange(65536) * 46073 % 65536).size == 65536


@pytest.mark.parametrize("deposit", [0.01, 0.04, 0.3, 0.5, 0.77])
def test_roundings_of_equal_deposits_cancel(deposit: float) -> None:
    # Independent numbers would be sqrt(n deposit (1 - deposit)) off, at worst of these 3 to 16 and more for some of 64
    # elements; this sequence's discrepancy grows with the logarithm of n: up to 1,000 steps 3.5 from any start.
    uniform = (spread(range(1000)).astype(np.float64) + 32768.5) / 65536
    off = np.cumsum(uniform < deposit, axis=0) - deposit * np.arange(1, 1001)[:, None]
    assert np.abs(off).max() <= 3.51
