"""What does a pure training step cost beside the hybrid one, and how near are its kernels to the machine?

    python benchmarks/pure_step.py [--device cpu] [--cases decoder block] [--arms hybrid int8_c] [--rounds 7]
    python benchmarks/pure_step.py --quick     toy sizes, seconds, nothing is recorded

A step is forward, backward and optimizer. Cases: the 3M decoder of benchmarks/pure.py with its loss, and the layers of
a wider decoder block, whose output's gradient is given; on CUDA a block as wide as BitNet 2B-4T's too, with 8 texts of
2,048 tokens, and both blocks compiled. Arms, which take turns in every round after two steps that count for nothing:

    hybrid                  BitLinear with its defaults; fused AdamW for all
    int8_torch              Pure1BitLinear, int8 counters, the kernels in plain PyTorch
    int8_c, int8_triton     the same with the device's own kernels
    int4_c, int4_triton     int4 counters

A ratio is the median over rounds of an arm's time over the hybrid's of that round. One backward pass a step; float32
and one thread on a CPU, bfloat16 autocast on CUDA.

Kernels: the median time of one over a matrix of --rows by --cols, and the share of a limit that is measured here:
bytes of gradient, counters and codes that must be read and written over the bandwidth (CPU: a pure read of as many;
CUDA: a copy of 1 GB); products with --tokens tokens beside a product of floats that are in memory already, and on a CPU
beside the peak of the int8 dot product.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybrid_step import CPU, CUDA, Block, Shape
from onebit.nn import (
    create_pure1bit_optimizer,
    replace_linear_with_bitlinear,
    replace_linear_with_pure1bit_linear,
)
from onebit.nn.pure_kernels import kernels_on
from pure_step_kernels import measure_kernels, wait
from pure_training import SIZES, Decoder

ARMS = {
    "cpu": ("hybrid", "int8_torch", "int8_c", "int4_c"),
    "cuda": ("hybrid", "int8_torch", "int8_triton", "int4_triton"),
}
ALL_ARMS = tuple(dict.fromkeys(arm for arms in ARMS.values() for arm in arms))
CASES = {"cpu": ("decoder", "block"), "cuda": ("decoder", "block", "block_compiled", "wide", "wide_compiled")}
BLOCKS = {"cpu": CPU["block"], "cuda": CUDA["block"]}
WIDE = Shape(2560, 2048, inner=6912, batch=8, heads=20)
QUICK_BLOCK = Shape(64, 32, inner=128, heads=2)
TOKENS = {"cpu": 512, "cuda": 4096}


class Contender:
    """One arm of one case."""

    def __init__(self, case: str, arm: str, device: torch.device, shape: Shape, size: str) -> None:
        torch.manual_seed(0)
        counter, _, self.kernels = arm.partition("_")
        self.device = device
        is_decoder = case == "decoder"
        model = Decoder(SIZES[size]) if is_decoder else _block(shape)
        if arm == "hybrid":
            replace_linear_with_bitlinear(model)
        else:
            replace_linear_with_pure1bit_linear(model, counter=counter)  # type: ignore[arg-type]
        model.to(device)
        self.optimizer: Any
        if arm == "hybrid":
            self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        else:
            self.optimizer, _ = create_pure1bit_optimizer(model, 1e-3, gradient_accumulation_steps=1)
        self.run = torch.compile(model) if case.endswith("_compiled") else model
        self.forward = self._loss if is_decoder else self._output
        self.ids_BL = torch.randint(0, 256, (SIZES[size].batch, SIZES[size].context + 1)).to(device)
        self.x_BLC = torch.randn(shape.batch, shape.tokens, shape.hidden, device=device).requires_grad_()
        self.grad_BLC = torch.randn_like(self.x_BLC)

    def step(self) -> None:
        """Forward, backward and optimizer."""
        self.forward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def seconds(self) -> float:
        """Wall time of a step."""
        _ask_for(self.kernels)
        wait(self.device)
        started = time.perf_counter()
        self.step()
        wait(self.device)
        return time.perf_counter() - started

    def _loss(self) -> None:
        with self._types():
            logits = self.run(self.ids_BL[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), self.ids_BL[:, 1:].flatten())
        loss.backward()

    def _output(self) -> None:
        self.x_BLC.grad = None
        with self._types():
            y_BLC: Tensor = self.run(self.x_BLC)
        y_BLC.backward(self.grad_BLC.to(y_BLC.dtype))

    def _types(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")


def _block(shape: Shape) -> nn.Module:
    return Block(shape, lambda inputs, outputs: nn.Linear(inputs, outputs, bias=False))


def measure_steps(case: str, arms: list[str], device: torch.device, rounds: int, quick: bool) -> dict[str, list[float]]:
    """Seconds of every round of every arm."""
    torch._dynamo.reset()
    block = WIDE if case.startswith("wide") else BLOCKS[device.type]
    shape, size = (QUICK_BLOCK, "0.7M") if quick else (block, "3M")
    contenders = {arm: Contender(case, arm, device, shape, size) for arm in arms}
    for contender in contenders.values():
        contender.seconds()
        contender.seconds()
    return take_turns(contenders, rounds)


def take_turns(contenders: Mapping[str, Contender], rounds: int) -> dict[str, list[float]]:
    """Seconds of every round of every contender."""
    seconds: dict[str, list[float]] = {arm: [] for arm in contenders}
    for _ in range(rounds):
        for arm, contender in contenders.items():
            seconds[arm].append(contender.seconds())
    _ask_for("")
    return seconds


def _ask_for(kernels: str) -> None:
    os.environ["ONEBIT_PURE_KERNELS"] = kernels
    kernels_on.cache_clear()


def step_figures(steps: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """Times of the hybrid's step, and the other arms' over it."""
    figures: dict[str, float] = {}
    for case, seconds in steps.items():
        suffix = "" if case == "decoder" else f"_{case}"
        figures[f"hybrid_step_ms{suffix}"] = 1000 * statistics.median(seconds["hybrid"])
        for arm, times in seconds.items():
            if arm == "hybrid":
                continue
            counter, _, kind = arm.partition("_")
            name = f"pure_over_hybrid_step_{counter}" + ("_torch" if kind == "torch" else "") + suffix
            figures[name] = statistics.median(
                ours / theirs for ours, theirs in zip(times, seconds["hybrid"], strict=True)
            )
    return figures


def main() -> None:
    device_name = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=tuple(ARMS), default=device_name, help="[default: CUDA where there is one]")
    parser.add_argument("--cases", nargs="+", choices=CASES["cuda"], help="[default: all of the device]")
    parser.add_argument(
        "--arms", nargs="+", choices=ALL_ARMS, help="beside hybrid, which is always there [default: all]"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=6912, help="of the matrix for kernels [default: 6912]")
    parser.add_argument("--cols", type=int, default=2560, help="[default: 2560]")
    parser.add_argument("--tokens", type=int, help="of the products [default: 512, on CUDA 4096]")
    parser.add_argument("--steps-only", action="store_true", help="leave out the kernels: minutes less on a GPU")
    parser.add_argument("--quick", action="store_true", help="to see that it works; numbers mean nothing")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    device = torch.device(arguments.device)
    cases = arguments.cases or CASES[device.type]
    matrix = (arguments.rows, arguments.cols, arguments.tokens or TOKENS[device.type])
    rows, cols, tokens = (96, 320, 24) if arguments.quick else matrix
    arms = [arm for arm in ARMS[device.type] if arm == "hybrid" or arm in (arguments.arms or ARMS[device.type])]
    steps = {case: measure_steps(case, arms, device, arguments.rounds, arguments.quick) for case in cases}
    figures, kernels = ({}, {}) if arguments.steps_only else measure_kernels(device, rows, cols, tokens)
    figures = step_figures(steps) | figures
    for name, value in figures.items():
        print(f"{name:<48} {value:10.4g}")
    if arguments.quick:
        print("quick: nothing is recorded")
        return
    from record import write_result

    config = {
        "device": device.type,
        "cases": cases,
        "block": asdict(BLOCKS[device.type]),
        "wide": asdict(WIDE),
        "decoder": asdict(SIZES["3M"]),
        "matrix": {"rows": rows, "cols": cols, "tokens": tokens},
        "rounds": arguments.rounds,
        "threads": torch.get_num_threads(),
        "isa": _instruction_set(device),
    }
    print(write_result("pure_step", config, figures, {"samples": {"steps": steps, "kernels": kernels}}))


def _instruction_set(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    from onebit.nn import c_pure

    return c_pure.instruction_set()


if __name__ == "__main__":
    main()
