"""What does a GPU's pure step ask of the CPU, beside the hybrid's? It needs no GPU.

    python benchmarks/pure_step_host.py [--rounds 300]
    python benchmarks/pure_step_host.py --quick     a few steps, nothing is recorded

A GPU that has little to do waits for Python. Here a decoder block of toy size takes its steps as on a GPU, except that
a Triton kernel's launch ends where Triton's compiled launcher would begin, so that what is computed means nothing.
PyTorch's own operations run, on the CPU, over numbers few enough for their arithmetic to be little: they stand for the
launches of both sides, products among them. bfloat16 autocast, 66 tokens (up to 64 take another path), the hybrid's
products of floats, one thread.

A ratio is the median over rounds, in which the arms take turns, of a step's time over the hybrid's of that round.
Beside it stands what a GPU is asked to do in a step for each of the block's matrices: operations of PyTorch, without
views and empty tensors, and launches of Triton. The attention, norms and optimizer between matrices are in it.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import KernelInterface

from hybrid_step import Shape
from onebit.nn import (
    pure_kernels,
    straight_through_linear,
    triton_activations,
    triton_moments,
    triton_products,
    triton_pure,
    triton_tiles,
)
from pure_step import Contender, step_figures, take_turns

SHAPE = Shape(16, 33, inner=32, batch=2, heads=2)
MATRICES = 7  # of a block
ARMS = ("hybrid", "int8_triton", "int4_triton")


class Launches:
    """What Triton's front end gives for a kernel, and what then is launched: nothing, but counted."""

    function, packed_metadata = 0, ()

    def __init__(self) -> None:
        self.count = 0

    def run(self, *_: Any, **__: Any) -> Launches:
        self.count += 1
        return self


class Operations(TorchDispatchMode):
    """Counts operations that write memory."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_view = any(result.alias_info and not result.alias_info.is_write for result in func._schema.returns)
        self.count += not is_view and "empty" not in func._schema.name
        return func(*args, **(kwargs or {}))


def pretend() -> Launches:
    """Let CPU tensors be trained as a GPU's are, from now on."""
    launches = Launches()

    def launch(
        kernel: Any, grid: Any, tensors: Any, numbers: Any, *, floats: tuple[float, ...] = (), num_warps: int = 4
    ) -> None:
        triton_tiles.launch_compiled(kernel, grid, tensors, floats, numbers, num_warps)

    def front_end(kernel: Any, grid: Any) -> Callable[..., Launches]:
        return launches.run

    for module in (triton_activations, triton_moments, triton_products, triton_pure):
        module.launch = launch
    KernelInterface.__getitem__ = front_end
    triton_tiles.driver = SimpleNamespace(active=SimpleNamespace(get_current_stream=lambda device: 0))
    pure_kernels.kernels_on = cache(lambda device: triton_pure)
    straight_through_linear.HAS_INT8_PRODUCT = False
    return launches


class HostContender(Contender):
    """An arm with a GPU's types, on a CPU."""

    def __init__(self, arm: str) -> None:
        super().__init__("block", arm, torch.device("cpu"), SHAPE, "0.7M")

    def _types(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16)


def measure(rounds: int) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Figures, and the seconds of every round of every arm."""
    launches, figures = pretend(), dict[str, float]()
    contenders = {arm: HostContender(arm) for arm in ARMS}
    for arm, contender in contenders.items():
        for _ in range(5):
            contender.step()
        launches.count = 0
        with Operations() as operations:
            contender.step()
        name = arm.partition("_")[0]
        figures[f"operations_a_matrix_{name}"] = operations.count / MATRICES
        figures[f"launches_a_matrix_{name}"] = launches.count / MATRICES
    seconds = take_turns(contenders, rounds)
    return figures | step_figures({"host": seconds}), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300, help="[default: 300]")
    parser.add_argument("--quick", action="store_true", help="to see that it works; numbers mean nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures, seconds = measure(3 if arguments.quick else arguments.rounds)
    for name, value in figures.items():
        print(f"{name:<48} {value:10.4g}")
    if arguments.quick:
        print("quick: nothing is recorded")
        return
    from record import write_result

    config = {"block": asdict(SHAPE), "matrices": MATRICES, "arms": ARMS, "rounds": arguments.rounds, "threads": 1}
    print(write_result("pure_step_host", config, figures, {"samples": seconds}))


if __name__ == "__main__":
    main()
