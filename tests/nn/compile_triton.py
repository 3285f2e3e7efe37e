"""A program: compiles each Triton kernel of pure training for an NVIDIA architecture, given as 80 or 90.

The module's functions are called as always, with tensors of a plausible layer, but launching only compiles. It fails
when a kernel does not compile, spills registers into memory or has a product fused with a sum.
"""

from __future__ import annotations

import re
import sys
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from onebit.nn import triton_moments, triton_products, triton_pure
from onebit.optim.pure_deposit import Factors
from onebit.quant.counters import counter_named

ROWS, COLS = 1024, 2048
POINTERS = {
    torch.bfloat16: "*bf16",
    torch.bool: "*i1",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int8: "*i8",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}


def compile_only(kernel: Any, grid: tuple[int, ...], *arguments: Any, **named: Any) -> None:
    """What `triton_tiles.launch` does, up to the machine code."""
    options = {"enable_fp_fusion": False, "num_warps": named.pop("num_warps", 4)}
    values = dict(zip(kernel.arg_names, arguments, strict=False)) | named
    signature, constants, attributes = {}, {}, {}
    for number, parameter in enumerate(kernel.params):
        name, value = parameter.name, values[parameter.name]
        if parameter.is_constexpr:
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = POINTERS[value.dtype] if isinstance(value, Tensor) else "i64" if value >> 31 else "i32"
        if isinstance(value, Tensor) or (value % 16 == 0 and not parameter.do_not_specialize):
            attributes[number,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options=options)
    assembly = made.asm["ptx"]
    assert not re.search(r"\bfma\.", assembly), f"{kernel.__name__} fuses a product and a sum"
    assert ".local" not in assembly, f"{kernel.__name__} keeps numbers in memory"
    print(kernel.__name__, constants, f"{made.metadata.shared} bytes shared")


def main() -> None:
    triton_pure.launch = triton_products.launch = triton_moments.launch = compile_only
    g_OI = torch.empty(ROWS, COLS, dtype=torch.bfloat16)
    factors = Factors(torch.empty(ROWS, 1), torch.empty(COLS), torch.tensor(True))
    one = torch.tensor(1.0)
    sums = triton_pure.square_sums(g_OI, one, ROWS)
    moments = torch.empty(ROWS), torch.empty(COLS)
    triton_pure.update_moments(moments, sums, one, torch.tensor(1))
    triton_pure.update_energy(g_OI, factors)
    codes = {is_binary: torch.empty(ROWS, COLS // (8 if is_binary else 4), dtype=torch.uint8) for is_binary in (0, 1)}
    counters = {
        "int8": torch.empty(ROWS, COLS, dtype=torch.int8),
        "int4": torch.empty(ROWS, COLS // 2, dtype=torch.uint8),
        "none": torch.empty(ROWS, COLS // 4, dtype=torch.uint8),
    }
    step, mean_square = torch.tensor(1), torch.tensor(1.0, dtype=torch.float64)
    for name in ("int4", "none"):
        counter = counter_named(name)
        triton_pure.deposit(counters[name], g_OI, factors, one, mean_square, counter, seed=1, tensor=2, step=step)
    for name, is_binary in (("int8", True), ("int4", False)):
        triton_pure.fire(codes[is_binary], counters[name], counter_named(name), COLS, is_binary=is_binary)
    x_TI = torch.empty(256, COLS, dtype=torch.int8)
    triton_pure.unpack(codes[False], COLS, torch.bfloat16, is_binary=False)
    triton_pure.forward_product(x_TI, codes[False], torch.float32, is_binary=False)
    triton_pure.forward_product(x_TI[:16], codes[True], torch.bfloat16, is_binary=True)
    triton_pure.code_sums(g_OI, codes[True], 64, is_binary=True)


if __name__ == "__main__":
    main()
