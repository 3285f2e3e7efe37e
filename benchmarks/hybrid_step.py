"""What does a hybrid layer's training step cost beside nn.Linear's, in time and in memory?

    python benchmarks/hybrid_step.py [--rounds 7] [--cases layer block] [--dtypes float32 bfloat16]
    python benchmarks/hybrid_step.py --quick     toy sizes, a minute, nothing is recorded

A step is forward, backward to inputs and latents, and fused AdamW, without a loss of its own: the output's gradient is
given. Cases: one layer, and the layers of a decoder block with SwiGLU and SDPA. Arms, all with the same start:

    linear          nn.Linear
    hybrid          BitLinear with its defaults: absmean per tensor, int8 inputs
    float_product   the same where the processor has no int8 product (CPU only; what a GPU does)
    group128        a scale for every 128 weights, the default of conversion, which multiplies floats too

Eager and compiled, in float32 and under bfloat16 autocast (CUDA: bfloat16 only). All arms take turns in every round,
after two steps that count for nothing; a ratio is the median over rounds of an arm's time over linear's of that round.
Threads are OMP_NUM_THREADS's.

Memory of a step: parameters and optimizer's state, counted, and on top of them the peak of everything allocated during
one step, gradients included, which on a CPU torch's profiler sees and on CUDA the allocator. The inputs are made
within that step, as a layer before this one would. `kept_mb` is what autograd holds after the forward pass beyond the
parameters: the storages that torch.autograd.graph.saved_tensors_hooks shows, each once.

Loss: 20 steps of a toy regression, compiled beside eager, and as the measure of noise eager beside itself with inputs
moved by up to half a unit in the last place of the type that is multiplied in.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybrid_step_figures import draw, figures_of, table
from hybrid_step_memory import memory_of
from onebit.nn import BitLinear, RMSNorm, straight_through_linear

MODES = ("eager", "compiled")
LAYERS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": lambda inputs, outputs: nn.Linear(inputs, outputs, bias=False),
    "hybrid": lambda inputs, outputs: BitLinear(inputs, outputs, bias=False),
    "float_product": lambda inputs, outputs: BitLinear(inputs, outputs, bias=False),
    "group128": lambda inputs, outputs: BitLinear(inputs, outputs, False, granularity="per_group", group_size=128),
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a case: `batch` texts of `tokens` tokens; `inner` is the MLP's width, 0 for a single layer."""

    hidden: int
    tokens: int
    inner: int = 0
    batch: int = 1
    heads: int = 8


CPU = {"layer": Shape(2048, 1024), "block": Shape(1024, 512, inner=2816)}
CUDA = {"layer": Shape(4096, 4096), "block": Shape(2048, 4096, inner=5632, heads=16)}
QUICK = {"layer": Shape(128, 64), "block": Shape(128, 32, inner=256, heads=2)}
REGRESSION = Shape(128, 32, inner=384, batch=4, heads=2)


class Block(nn.Module):
    """The projections, norms and attention of a decoder layer; no rotary positions."""

    def __init__(self, shape: Shape, layer: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.heads = shape.heads
        self.attention_norm, self.mlp_norm = RMSNorm(shape.hidden), RMSNorm(shape.hidden)
        self.q, self.k, self.v, self.o = (layer(shape.hidden, shape.hidden) for _ in range(4))
        self.gate, self.up = layer(shape.hidden, shape.inner), layer(shape.hidden, shape.inner)
        self.down = layer(shape.inner, shape.hidden)

    def forward(self, x_BLC: Tensor) -> Tensor:
        h_BLC = self.attention_norm(x_BLC)
        q, k, v = (f(h_BLC).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed_BLC = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x_BLC = x_BLC + self.o(mixed_BLC)
        h_BLC = self.mlp_norm(x_BLC)
        return x_BLC + self.down(F.silu(self.gate(h_BLC)) * self.up(h_BLC))


class Contender:
    """One arm of one case in one mode: a module, its optimizer and the data of a step."""

    def __init__(self, shape: Shape, arm: str, mode: str, dtype: torch.dtype, device: str) -> None:
        torch.manual_seed(0)
        layer = LAYERS[arm]
        module = Block(shape, layer) if shape.inner else layer(shape.hidden, shape.hidden)
        self.arm, self.mode, self.dtype, self.device = arm, mode, dtype, device
        self.module = module.to(device)
        self.forward: Callable[[Tensor], Tensor] = (
            torch.compile(self.module, fullgraph=True) if mode == "compiled" else self.module
        )
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=1e-3, fused=True)
        self.x_BLC = torch.randn(shape.batch, shape.tokens, shape.hidden, device=device, requires_grad=True)
        self.grad_BLC = torch.randn_like(self.x_BLC)

    def output(self, x_BLC: Tensor) -> Tensor:
        """The module's output for x_BLC, under autocast unless the type is float32."""
        with _int8_product(self.arm), torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            return self.forward(x_BLC)

    def step(self, makes_inputs: bool = False) -> None:
        """Forward, backward, optimizer; makes_inputs: on a copy of the inputs that nobody else holds."""
        y_BLC = self.output(self.x_BLC.clone() if makes_inputs else self.x_BLC)
        y_BLC.backward(self.grad_BLC.to(y_BLC.dtype))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.x_BLC.grad = None

    def seconds(self) -> float:
        """Wall time of a step."""
        _wait(self.device)
        started = time.perf_counter()
        self.step()
        _wait(self.device)
        return time.perf_counter() - started


@contextlib.contextmanager
def _int8_product(arm: str) -> Iterator[None]:
    before = straight_through_linear.HAS_INT8_PRODUCT
    straight_through_linear.HAS_INT8_PRODUCT = before and arm != "float_product"
    try:
        yield
    finally:
        straight_through_linear.HAS_INT8_PRODUCT = before


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def arms_on(device: str) -> list[str]:
    """float_product differs from hybrid only where the processor has an int8 product."""
    has_both = device == "cpu" and straight_through_linear.HAS_INT8_PRODUCT
    return [arm for arm in LAYERS if arm != "float_product" or has_both]


def measure(shape: Shape, dtype: torch.dtype, device: str, rounds: int) -> list[dict[str, Any]]:
    """Every arm and mode of one case in one type: a sample each."""
    torch._dynamo.reset()
    contenders = [Contender(shape, arm, mode, dtype, device) for mode in MODES for arm in arms_on(device)]
    for contender in contenders:
        contender.step()
        contender.step()
    seconds: list[list[float]] = [[] for _ in contenders]
    for _ in range(rounds):
        for contender, times in zip(contenders, seconds, strict=True):
            times.append(contender.seconds())
    return [
        {"arm": contender.arm, "mode": contender.mode, "device": device, "seconds": times, **memory_of(contender)}
        for contender, times in zip(contenders, seconds, strict=True)
    ]


def losses(arm: str, mode: str, dtype: torch.dtype, device: str, steps: int = 20, moved: bool = False) -> list[float]:
    """A toy regression of a block: its losses. moved: the inputs by up to half a unit in the type's last place."""
    torch._dynamo.reset()
    learner = Contender(REGRESSION, arm, mode, dtype, device)
    x_BLC = learner.x_BLC.detach()
    target_BLC = F.linear(x_BLC.tanh(), torch.eye(REGRESSION.hidden, device=device).roll(1, 0))
    if moved:
        x_BLC = x_BLC * (1 + torch.finfo(dtype).eps * (torch.rand_like(x_BLC) - 0.5))
    found = []
    for _ in range(steps):
        loss = F.mse_loss(learner.output(x_BLC).float(), target_BLC)
        loss.backward()
        learner.optimizer.step()
        learner.optimizer.zero_grad()
        found.append(loss.item())
    return found


def compare_losses(dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Curves of the hybrid block: eager, eager on moved inputs, compiled; and linear's, for what there is to learn."""
    return {
        "device": device,
        "eager": losses("hybrid", "eager", dtype, device),
        "moved": losses("hybrid", "eager", dtype, device, moved=True),
        "compiled": losses("hybrid", "compiled", dtype, device),
        "linear": losses("linear", "eager", dtype, device),
    }


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default=device, help="[default: CUDA where there is one]")
    parser.add_argument("--cases", nargs="+", choices=tuple(CPU), default=list(CPU))
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a minute, to see that it works; numbers mean nothing")
    arguments = parser.parse_args()
    device = arguments.device
    shapes = QUICK if arguments.quick else {"cpu": CPU, "cuda": CUDA}[device]
    dtypes = arguments.dtypes or (["float32", "bfloat16"] if device == "cpu" else ["bfloat16"])
    samples, curves = [], []
    for name in dtypes:
        dtype = getattr(torch, name)
        for case in arguments.cases:
            found = measure(shapes[case], dtype, device, arguments.rounds)
            samples += [{"case": case, "dtype": name, **sample} for sample in found]
            print(f"{case} {name}: {statistics.median(found[0]['seconds']):.3f} s a step", file=sys.stderr)
        curves.append({"dtype": name, **compare_losses(dtype, device)})
    figures = figures_of(samples, curves)
    print(table(samples))
    for name, value in figures.items():
        print(f"{name:<56} {value:10.4g}")
    if arguments.quick:
        print("quick: nothing is recorded")
        return
    from record import write_result

    config = {
        "device": device,
        "shapes": {case: asdict(shapes[case]) for case in arguments.cases},
        "regression": asdict(REGRESSION),
        "dtypes": dtypes,
        "rounds": arguments.rounds,
        "threads": torch.get_num_threads(),
        "has_int8_product": straight_through_linear.HAS_INT8_PRODUCT,
    }
    path = write_result("hybrid_step", config, figures, {"samples": samples, "losses": curves})
    draw(samples, path.with_suffix(".png"))
    print(path)


if __name__ == "__main__":
    main()
