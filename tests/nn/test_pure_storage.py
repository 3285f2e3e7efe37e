"""The bytes of codes and counters are those of `onebit.packing`, and come back."""

from __future__ import annotations

import pytest
import torch

from onebit.nn.pure_storage import pack_codes, pack_counters, packed_width, unpack_codes, unpack_counters
from onebit.packing import binary, int4, ternary
from onebit.quant.counters import counter_named


@pytest.mark.parametrize("cols", [1, 3, 8, 31, 64])
def test_codes(cols: int) -> None:
    generator = torch.Generator().manual_seed(cols)
    codes = torch.randint(-1, 2, (5, cols), generator=generator, dtype=torch.int8)
    packed = pack_codes(codes, is_binary=False)
    assert packed.dtype == torch.uint8
    assert packed.shape[1] == packed_width(cols, 2)
    assert torch.equal(packed, ternary.pack(codes))
    assert torch.equal(unpack_codes(packed, cols, is_binary=False), codes)
    signs = codes.masked_fill(codes == 0, 1)
    packed = pack_codes(signs, is_binary=True)
    assert packed.shape[1] == packed_width(cols, 1)
    assert torch.equal(packed, binary.pack(signs))
    assert torch.equal(unpack_codes(packed, cols, is_binary=True), signs)


@pytest.mark.parametrize("cols", [1, 4, 7])
@pytest.mark.parametrize("name", ["int8", "int4", "none"])
def test_counters(name: str, cols: int) -> None:
    counter = counter_named(name)
    counts = torch.randint(-counter.bound, counter.bound + 1, (5, cols), dtype=torch.int8)
    stored = pack_counters(counts, counter)
    assert torch.equal(unpack_counters(stored, cols, counter), counts)
    if name == "int4":
        assert torch.equal(stored, int4.pack(counts))
    if name == "int8":
        assert torch.equal(stored, counts)
