"""A program: launches each Triton kernel of pure training on an NVIDIA GPU that is not there, given as 80 or 90.

The module's functions are called as always, with tensors of a plausible layer; Triton compiles for a driver that
notes launches down. It fails when a kernel does not compile, spills registers into memory or has a product fused with a
sum, and when a launch past Triton's front end is not the front end's.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from onebit.nn import triton_activations, triton_moments, triton_products, triton_pure
from onebit.nn.triton_tiles import launch_compiled
from onebit.optim.pure_deposit import Factors
from onebit.quant.counters import counter_named

ROWS, COLS = 1024, 2048
KEEPS_COMPILED = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 4)  # as `triton_tiles` says


class Gpu:
    """Triton's driver, its `utils` and its `launcher_cls` in one; loaded functions are numbers."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture
        self.utils = self
        self.loaded: list[str] = []
        self.launches: list[tuple[Any, ...]] = []
        self.watcher: Any = None

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 160 << 10}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, ...]:
        self.loaded.append(name)
        return (1, len(self.loaded), 32, 0, 1024) if KEEPS_COMPILED else (1, len(self.loaded), 32, 0)

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        def launch(*call: Any) -> None:
            """Grid, stream, function, options, what profilers see, two hooks, then the kernel's arguments."""
            by_address = [part.data_ptr() if isinstance(part, Tensor) else part for part in call]
            self.launches.append((*by_address[:6], *by_address[9:]))
            self.watcher = call[7]

        return launch


@contextlib.contextmanager
def watched() -> Iterator[Any]:
    """A profiler hears of launches; the hook that a launcher then gets."""
    knobs = triton.knobs.runtime
    before = knobs.launch_enter_hook
    if before is None:  # Triton 3.4 has one hook, later ones a chain
        knobs.launch_enter_hook = print
    else:
        before.add(print)
    yield knobs.launch_enter_hook
    if before is None:
        knobs.launch_enter_hook = None
    else:
        before.remove(print)


def launch(
    kernel: Any,
    grid: tuple[int, int, int],
    tensors: tuple[Tensor, ...],
    numbers: tuple[Any, ...],
    *,
    floats: tuple[float, ...] = (),
    num_warps: int = 4,
) -> None:
    """What `triton_tiles.launch` does on a GPU, three times: Triton's front end is asked the first time only."""
    gpu.launches.clear()
    asked = 0

    def ask(*_: Any, **__: Any) -> None:
        nonlocal asked
        asked += 1

    kernel.add_pre_run_hook(ask)
    for _ in range(3):
        launch_compiled(kernel, grid, tensors, floats, numbers, num_warps)
    kernel.pre_run_hooks.remove(ask)
    if KEEPS_COMPILED:
        assert asked <= 1, f"{kernel.__name__} went through Triton's front end {asked} times"
        with watched() as watcher:
            launch_compiled(kernel, grid, tensors, floats, numbers, num_warps)
        assert gpu.watcher is watcher, f"{kernel.__name__} is launched without the hook that a profiler set"
    first, *others = gpu.launches
    assert others == [first] * (3 if KEEPS_COMPILED else 2), f"{kernel.__name__} is launched differently later"
    known = kernel.device_caches[0][0] if hasattr(kernel, "device_caches") else kernel.cache[0]  # Triton 3.2
    (made,) = (made for made in known.values() if made.function == first[4])
    assembly = made.asm["ptx"]
    assert not re.search(r"\bfma\.", assembly), f"{kernel.__name__} fuses a product and a sum"
    assert ".local" not in assembly, f"{kernel.__name__} keeps numbers in memory"
    print(kernel.__name__, grid, f"{made.metadata.shared} bytes shared")


gpu = Gpu(int(sys.argv[1]))


def main() -> None:
    driver.set_active(gpu)
    for module in (triton_activations, triton_moments, triton_products, triton_pure):
        module.launch = launch
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
        triton_pure.deposit(counters[name], g_OI, factors, 0.1, mean_square, counter, seed=1, tensor=2, step=step)
    random = {"seed": 1, "tensor": 2, "step": step}
    assert triton_pure.deposit_whole(counters["int8"], moments, g_OI, 0.1, counter_named("int8"), **random)
    for name, is_binary in (("int8", True), ("int4", False)):
        matrices = [(codes[is_binary], counters[name], COLS)] * 2
        triton_pure.fire(matrices, counter_named(name), is_binary=is_binary)
    triton_pure.input_codes(g_OI)
    x_TI = torch.empty(256, COLS, dtype=torch.int8)
    triton_pure.unpack(codes[False], COLS, torch.bfloat16, is_binary=False)
    triton_pure.forward_product(x_TI, codes[False], torch.float32, is_binary=False)
    triton_pure.forward_product(x_TI[:16], codes[True], torch.bfloat16, is_binary=True)
    triton_pure.scale_gradient(g_OI, codes[True], torch.ones(ROWS, COLS // 64), 64, is_binary=True)
    triton_pure.scale_gradient(g_OI, codes[False], one, 0, is_binary=False)

    known = len(gpu.loaded)
    triton_pure.unpack(codes[False][16:], COLS, torch.bfloat16, is_binary=False)
    assert len(gpu.loaded) == known, "16 rows less made another kernel"
    misplaced = torch.empty(ROWS * COLS // 4 + 1, dtype=torch.uint8)[1:].view(ROWS, COLS // 4)
    triton_pure.unpack(misplaced, COLS, torch.bfloat16, is_binary=False)
    assert len(gpu.loaded) == known + 1, "a kernel for addresses that are multiples of 16 was launched with another"


if __name__ == "__main__":
    main()
