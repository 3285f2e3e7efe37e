"""What does a pure training step cost on a CPU beside the hybrid one, and how near are its kernels to the machine?

    python benchmarks/pure_step.py [--cases decoder block] [--rounds 7]
    python benchmarks/pure_step.py --quick     toy sizes, seconds, nothing is recorded

A step is forward, backward and optimizer. Cases: the 3M decoder of benchmarks/pure.py with its loss, and the layers of
a wider decoder block, whose output's gradient is given. Arms, which take turns in every round after two steps that
count for nothing:

    hybrid         BitLinear with its defaults; fused AdamW for all
    int8_torch     Pure1BitLinear, int8 counters, the kernels in plain PyTorch
    int8_c         the same with the kernels in C
    int4_c         int4 counters

A ratio is the median over rounds of an arm's time over the hybrid's of that round. One backward pass a step, float32,
one thread.

Kernels: the median time of one over a matrix of --rows by --cols, and the share of a limit that is measured here:
bytes of gradient, counters and codes that must be read and written over the bandwidth of a pure read of as many; for
the forward product, operations over the peak of the int8 dot product.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybrid_step import Block, Shape
from onebit.engine.limits import bandwidth, int8_peak
from onebit.nn import (
    c_pure,
    create_pure1bit_optimizer,
    replace_linear_with_bitlinear,
    replace_linear_with_pure1bit_linear,
)
from onebit.nn.pure_storage import pack_codes, pack_counters
from onebit.optim.pure_deposit import update_moments
from onebit.quant.counters import counter_named
from pure_training import BATCH, CONTEXT, Decoder

ARMS = ("hybrid", "int8_torch", "int8_c", "int4_c")
BLOCK, QUICK_BLOCK = Shape(1024, 512, inner=2816, heads=16), Shape(64, 32, inner=128, heads=2)


class Contender:
    """One arm of one case."""

    def __init__(self, case: str, arm: str, quick: bool) -> None:
        torch.manual_seed(0)
        self.counter, _, self.kernels = arm.partition("_")
        self.shape = QUICK_BLOCK if quick else BLOCK
        self.model = _decoder(quick) if case == "decoder" else _block(self.shape)
        self.optimizer: Any
        if arm == "hybrid":
            replace_linear_with_bitlinear(self.model)
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)
        else:
            replace_linear_with_pure1bit_linear(self.model, counter=self.counter)  # type: ignore[arg-type]
            self.optimizer, _ = create_pure1bit_optimizer(self.model, 1e-3, gradient_accumulation_steps=1)
        self.forward = self._loss if case == "decoder" else self._output
        self.ids_BL = torch.randint(0, 256, (BATCH, CONTEXT + 1))
        self.x_BLC = torch.randn(1, self.shape.tokens, self.shape.hidden, requires_grad=True)
        self.grad_BLC = torch.randn(1, self.shape.tokens, self.shape.hidden)

    def seconds(self) -> float:
        """Wall time of a step."""
        os.environ["ONEBIT_PURE_KERNELS"] = self.kernels
        started = time.perf_counter()
        self.forward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - started

    def _loss(self) -> None:
        logits = self.model(self.ids_BL[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), self.ids_BL[:, 1:].flatten()).backward()

    def _output(self) -> None:
        self.x_BLC.grad = None
        self.model(self.x_BLC).backward(self.grad_BLC)


def _decoder(quick: bool) -> nn.Module:
    return Decoder("0.7M" if quick else "3M")


def _block(shape: Shape) -> nn.Module:
    return Block(shape, lambda inputs, outputs: nn.Linear(inputs, outputs, bias=False))


def measure_steps(case: str, rounds: int, quick: bool) -> dict[str, list[float]]:
    """Seconds of every round of every arm."""
    contenders = {arm: Contender(case, arm, quick) for arm in ARMS}
    for contender in contenders.values():
        contender.seconds()
        contender.seconds()
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for _ in range(rounds):
        for arm, contender in contenders.items():
            seconds[arm].append(contender.seconds())
    os.environ.pop("ONEBIT_PURE_KERNELS", None)
    return seconds


def measure_kernels(rows: int, cols: int, tokens: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of every call of every kernel, and the bytes each must move."""
    torch.manual_seed(0)
    g_OI = torch.randn(rows, cols) * 1e-4
    packed = pack_codes(torch.randint(-1, 2, (rows, cols), dtype=torch.int8), is_binary=False)
    peak = g_OI.abs().amax()
    zeros = torch.zeros(rows), torch.zeros(cols)
    _, factors = update_moments(zeros, c_pure.square_sums(g_OI, peak, rows), peak, torch.tensor(1))
    x_TI = torch.randint(-127, 128, (tokens, cols), dtype=torch.int8)
    calls: dict[str, tuple[float, Callable[[], Any]]] = {
        "square_sums": (4, lambda: c_pure.square_sums(g_OI, peak, rows)),
        "update_energy": (4, lambda: c_pure.update_energy(g_OI, factors)),
        "code_sums": (4.25, lambda: c_pure.code_sums(g_OI, packed, 0, is_binary=False)),
        "unpack": (4.25, lambda: c_pure.unpack(packed, cols, torch.float32, is_binary=False)),
    }
    for name, size in (("int8", 1.0), ("int4", 0.5)):
        counter = counter_named(name)
        counters = pack_counters(torch.zeros(rows, cols, dtype=torch.int8), counter).clone()
        calls[f"deposit_{name}"] = (
            4 + 2 * size,
            lambda counters=counters, counter=counter: c_pure.deposit(  # type: ignore[misc]
                counters, g_OI, factors, torch.tensor(-7.5), 1, counter, seed=1, tensor=2, step=torch.tensor(3)
            ),
        )
        calls[f"fire_{name}"] = (
            size + 0.25,
            lambda counters=counters, counter=counter: c_pure.fire(  # type: ignore[misc]
                packed, counters, counter, cols, is_binary=False
            ),
        )
    calls["forward_product"] = (0, lambda: c_pure.forward_product(x_TI, packed, torch.float32, is_binary=False))
    calls["forward_product_of_floats"] = (0, lambda: _float_product(x_TI, packed, cols))
    seconds = {name: [_seconds(call) for _ in range(6)][1:] for name, (_, call) in calls.items()}
    return seconds, {name: count * rows * cols for name, (count, _) in calls.items() if count}


def _float_product(x_TI: Tensor, packed: Tensor, cols: int) -> Tensor:
    return F.linear(x_TI.float(), c_pure.unpack(packed, cols, torch.float32, is_binary=False))


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def figures_of(
    steps: dict[str, dict[str, list[float]]],
    kernels: dict[str, list[float]],
    num_bytes: dict[str, float],
    operations: float,
    gb_per_s: float,
    peak_gops: float | None,
) -> dict[str, float]:
    """Ratios of steps, and shares of limits."""
    figures: dict[str, float] = {}
    for case, seconds in steps.items():
        suffix = "" if case == "decoder" else f"_{case}"
        figures[f"hybrid_step_ms{suffix}"] = 1000 * statistics.median(seconds["hybrid"])
        for arm in ARMS[1:]:
            counter, _, kind = arm.partition("_")
            name = f"pure_over_hybrid_step_{counter}" + ("_torch" if kind == "torch" else "") + suffix
            figures[name] = statistics.median(
                ours / theirs for ours, theirs in zip(seconds[arm], seconds["hybrid"], strict=True)
            )
    for name, count in num_bytes.items():
        figures[f"{name}_share_of_bandwidth"] = count / statistics.median(kernels[name]) / (gb_per_s * 1e9)
    figures["bandwidth_gb_per_s"] = gb_per_s
    gops = operations / statistics.median(kernels["forward_product"]) / 1e9
    figures["forward_product_gops"] = gops
    figures["forward_product_over_floats"] = statistics.median(kernels["forward_product"]) / statistics.median(
        kernels["forward_product_of_floats"]
    )
    if peak_gops is not None:
        figures["forward_product_share_of_int8_peak"] = gops / peak_gops
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=("decoder", "block"), default=["decoder", "block"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=6912, help="of the matrix for kernels [default: 6912]")
    parser.add_argument("--cols", type=int, default=2560, help="[default: 2560]")
    parser.add_argument("--tokens", type=int, default=512, help="of the forward product [default: 512]")
    parser.add_argument("--quick", action="store_true", help="to see that it works; numbers mean nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows, cols, tokens = (96, 320, 24) if arguments.quick else (arguments.rows, arguments.cols, arguments.tokens)
    steps = {case: measure_steps(case, arguments.rounds, arguments.quick) for case in arguments.cases}
    kernels, num_bytes = measure_kernels(rows, cols, tokens)
    figures = figures_of(
        steps, kernels, num_bytes, 2.0 * rows * cols * tokens, bandwidth(1, 4 * rows * cols), int8_peak("avx2", 1)
    )
    for name, value in figures.items():
        print(f"{name:<48} {value:10.4g}")
    if arguments.quick:
        print("quick: nothing is recorded")
        return
    from record import write_result

    config = {
        "cases": arguments.cases,
        "block": {"hidden": BLOCK.hidden, "inner": BLOCK.inner, "tokens": BLOCK.tokens},
        "decoder": {"size": "3M", "batch": BATCH, "context": CONTEXT},
        "matrix": {"rows": rows, "cols": cols, "tokens": tokens},
        "rounds": arguments.rounds,
        "threads": torch.get_num_threads(),
        "isa": c_pure.instruction_set(),
    }
    print(write_result("pure_step", config, figures, {"samples": {"steps": steps, "kernels": kernels}}))


if __name__ == "__main__":
    main()
