"""torch.compile in one graph gives the eager values and gradients."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch

from onebit.nn import BitLinear, Schedule


def compare(module: BitLinear, backend: str) -> None:
    results = []
    torch._dynamo.reset()
    for forward in (module, torch.compile(module, fullgraph=True, backend=backend)):
        x = torch.randn(4, 70, generator=torch.Generator().manual_seed(0)).requires_grad_()
        y = forward(x)
        y.square().sum().backward()
        results.append((y.detach(), x.grad, module.weight.grad))
        module.weight.grad = None
    for eager, compiled in zip(*results, strict=True):
        assert (eager - compiled).abs().max() <= 2e-6 * eager.abs().max()  # sums in another order


@pytest.mark.parametrize(
    "arguments",
    [
        {"quantizer": "absmean"},
        {"quantizer": "threshold", "granularity": "per_row", "activation_quantizer": "sign"},
        {"quantizer": "binary", "granularity": "per_group", "group_size": 64},
        {"quantizer": "int4", "activation_quantizer": "none"},
        {"weight_sparsity_threshold": 0.3},
    ],
    ids=str,
)
def test_fullgraph(arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    compare(BitLinear(70, 24, **arguments), "aot_eager")


@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="Inductor writes C++ and finds no compiler for it"
)
@pytest.mark.parametrize("soft", [False, True])
def test_inductor(soft: bool) -> None:
    schedule = Schedule(uses_lambda=soft, uses_soft_codes=soft, uses_arenas=soft)
    if soft:
        schedule.set(lambda_=0.4, soft_alpha=2.0, arenas=0.1)
    torch.manual_seed(0)
    compare(BitLinear(70, 24, schedule=schedule), "inductor")


def test_under_autocast_and_checkpointing() -> None:
    torch.manual_seed(0)
    module = BitLinear(70, 24)
    x = torch.randn(4, 70)

    def step(forward: Any) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = torch.utils.checkpoint.checkpoint(forward, x, use_reentrant=False)
        y.float().square().sum().backward()
        gradient, module.weight.grad = module.weight.grad, None
        return gradient

    torch._dynamo.reset()
    eager = step(module)
    compiled = step(torch.compile(module, fullgraph=True, backend="aot_eager"))
    assert (eager - compiled).abs().max() <= 0.01 * eager.abs().max()  # bfloat16 results
