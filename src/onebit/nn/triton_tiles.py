"""What the Triton kernels of pure training share: how one is launched, and tiles of codes, counters and random numbers.

A tile is [ROWS, COLUMNS] in a program's registers, both powers of two. Its packed bytes are read as they lie; numbers
come out of them, and go back, by joining and splitting along the last axis, which leaves them in the thread that read
the bytes. The layouts are those of `pure_storage`. PER_BYTE is how many numbers a byte holds: 1 (int8 counters), 2
(int4 counters), 4 (ternary codes, and counters that forget) or 8 (binary codes).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import driver

__all__ = [
    "grid_of",
    "kronecker16",
    "launch",
    "load_matrix",
    "load_numbers",
    "pack_numbers",
    "store_matrix",
    "unpack_numbers",
]


# Before 3.4 there are no knobs that say who watches launches; compilers for other GPUs look at more of the arguments.
_KEEPS_COMPILED = torch.version.hip is None and tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 4)
_COMPILED: dict[tuple[Any, ...], Any] = {}


def launch(
    kernel: Any,
    grid: tuple[int, int, int],
    tensors: tuple[Tensor, ...],
    numbers: tuple[Any, ...],
    *,
    floats: tuple[float, ...] = (),
    num_warps: int = 4,
) -> None:
    """Run a kernel on the device of its tensors.

    Its parameters are these tensors, floats, which are float32 to it, then numbers and constants, whose values say
    which kernel is compiled.

    A product and a sum stay two roundings, as in PyTorch. Triton would fuse them into one instruction that rounds once,
    and the integers of a deposit would not be the reference's.
    """
    if not tensors[0].is_cuda:  # Triton's interpreter
        kernel[grid](*tensors, *floats, *numbers, num_warps=num_warps, enable_fp_fusion=False)
    elif tensors[0].device.index == torch.cuda.current_device():
        launch_compiled(kernel, grid, tensors, floats, numbers, num_warps)
    else:
        with torch.cuda.device_of(tensors[0]):
            launch_compiled(kernel, grid, tensors, floats, numbers, num_warps)


def launch_compiled(
    kernel: Any,
    grid: tuple[int, int, int],
    tensors: tuple[Tensor, ...],
    floats: tuple[float, ...],
    numbers: tuple[Any, ...],
    num_warps: int,
) -> None:
    """`launch` on the current device, past Triton's front end from the second launch with arguments like these on.

    That front end takes Python longer than a GPU takes for most of these kernels. What a kernel is compiled for is the
    type of each tensor, whether its address is a multiple of 16, and some properties of numbers.
    """
    addresses = [tensor.data_ptr() for tensor in tensors]
    types = [tensor.dtype for tensor in tensors]
    known = (kernel.__name__, num_warps, numbers, tensors[0].device, *types, *[address % 16 for address in addresses])
    compiled = _COMPILED.get(known)
    watcher = triton.knobs.runtime.launch_enter_hook if _KEEPS_COMPILED else None
    if compiled is None or getattr(watcher, "calls", watcher):  # a profiler wants to hear of launches
        compiled = kernel[grid](*tensors, *floats, *numbers, num_warps=num_warps, enable_fp_fusion=False)
        if _KEEPS_COMPILED:
            _COMPILED[known] = compiled
    else:
        stream = driver.active.get_current_stream(tensors[0].device.index)
        hooks = None, None, None  # a launch with empty ones takes four times as long
        compiled.run(*grid, stream, compiled.function, compiled.packed_metadata, *hooks, *addresses, *floats, *numbers)


def grid_of(shape: tuple[int, ...], tile: tuple[int, ...]) -> tuple[int, int, int]:
    """How many tiles a matrix has along its rows and columns. `triton.cdiv` would take Python 6 us each time."""
    (rows, cols), (tile_rows, tile_cols) = shape, tile
    return -(-rows // tile_rows), -(-cols // tile_cols), 1


@triton.jit
def load_matrix(start, row, column, rows, cols):
    """[ROWS, COLUMNS] of a matrix [rows, cols], 0 where nothing is; row: [ROWS], column: [COLUMNS]."""
    inside = (row < rows)[:, None] & (column < cols)[None, :]
    return tl.load(start + row[:, None].to(tl.int64) * cols + column[None, :], inside, other=0)


@triton.jit
def store_matrix(start, row, column, rows, cols, x):
    """Write what `load_matrix` reads, in the type of the matrix."""
    inside = (row < rows)[:, None] & (column < cols)[None, :]
    tl.store(start + row[:, None].to(tl.int64) * cols + column[None, :], x.to(start.dtype.element_ty), inside)


@triton.jit
def load_numbers(start, row, column, rows, width, PER_BYTE: tl.constexpr, COLUMNS: tl.constexpr):
    """(pointers [ROWS, B], which of them are inside, numbers int8 [ROWS, COLUMNS]) of packed rows of `width` bytes.

    row: [ROWS]; column: the tile's first, a multiple of 8. Numbers outside are what the byte 0 unpacks to.
    """
    byte = column // PER_BYTE + tl.arange(0, COLUMNS // PER_BYTE)
    pointers = start + row[:, None].to(tl.int64) * width + byte[None, :]
    inside = (row < rows)[:, None] & (byte < width)[None, :]
    return pointers, inside, unpack_numbers(tl.load(pointers, inside, other=0), PER_BYTE)


@triton.jit
def unpack_numbers(packed, PER_BYTE: tl.constexpr):
    """[ROWS, B] uint8, or int8 for PER_BYTE 1 -> int8 [ROWS, B * PER_BYTE]."""
    if PER_BYTE == 1:
        numbers = packed
    elif PER_BYTE == 2:
        numbers = tl.join(packed & 15, packed >> 4).to(tl.int8) - 8
    elif PER_BYTE == 4:
        # Each field goes to the top of its byte, from where an arithmetic shift brings its sign down. join puts its
        # second argument after the first on a new last axis: fields 0, 2 and 1, 3 make 0, 1, 2, 3.
        fields = tl.join(tl.join(packed << 6, packed << 2), tl.join(packed << 4, packed))
        numbers = fields.to(tl.int8, bitcast=True) >> 6
    else:
        even = tl.join(tl.join(packed, packed >> 4), tl.join(packed >> 2, packed >> 6))
        odd = tl.join(tl.join(packed >> 1, packed >> 5), tl.join(packed >> 3, packed >> 7))
        numbers = (tl.join(even, odd) & 1).to(tl.int8) * 2 - 1
    return tl.reshape(numbers, [packed.shape[0], packed.shape[1] * PER_BYTE])


@triton.jit
def pack_numbers(numbers, PER_BYTE: tl.constexpr):
    """int8 [ROWS, COLUMNS] -> uint8 [ROWS, B], or the numbers themselves for PER_BYTE 1."""
    ROWS: tl.constexpr = numbers.shape[0]
    BYTES: tl.constexpr = numbers.shape[1] // PER_BYTE
    if PER_BYTE == 1:
        packed = numbers
    elif PER_BYTE == 2:
        low, high = tl.split(tl.reshape((numbers + 8).to(tl.uint8, bitcast=True), [ROWS, BYTES, 2]))
        packed = low | high << 4
    elif PER_BYTE == 4:
        packed = _pack_pairs(tl.reshape(numbers.to(tl.uint8, bitcast=True) & 3, [ROWS, BYTES, 2, 2]))
    else:
        even, odd = tl.split(tl.reshape((numbers > 0).to(tl.uint8), [ROWS, BYTES, 2, 2, 2]))
        packed = _pack_pairs(even | odd << 1)
    return packed


@triton.jit
def _pack_pairs(pairs):
    """[ROWS, B, 2, 2] of two bits each -> [ROWS, B]."""
    even, odd = tl.split(pairs)
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first | second << 2 | third << 4 | fourth << 6


@triton.jit
def kronecker16(key, step, row, column, COLUMNS: tl.constexpr):
    """int16 [ROWS, COLUMNS] of `quant.philox.kronecker16`; key: seed + tensor * 2^32; column: a multiple of 8."""
    block = (column // 8 + tl.arange(0, COLUMNS // 8)).to(tl.uint32)
    zero = tl.zeros([row.shape[0], COLUMNS // 8], tl.uint32)
    low, high = (step >> 16 & 0xFFFFFFFF).to(tl.uint32), (step >> 48).to(tl.uint32)
    a, b, c, d = tl.philox(key, zero + block[None, :], zero + row[:, None].to(tl.uint32), zero + low, zero + high)
    words = tl.join(tl.join(a, c), tl.join(b, d))
    start = tl.reshape(tl.join(words & 0xFFFF, words >> 16), [row.shape[0], COLUMNS])
    on = ((step & 0xFFFF) * 46073 & 0xFFFF).to(tl.uint32)
    return (start + on & 0xFFFF).to(tl.uint16).to(tl.int16, bitcast=True)
