"""Nothing in a layer's step waits for the device to know a value: a GPU is fed ahead, and one graph compiles.

On fake tensors there are no values to wait for: `.item()`, a branch on a tensor and a shape that depends on data raise.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from onebit.nn import BitLinear, Schedule, straight_through_linear

LAYERS: list[dict[str, Any]] = [
    {"quantizer": "absmean"},
    {"quantizer": "threshold", "granularity": "per_row", "activation_quantizer": "sign"},
    {"quantizer": "absmean", "granularity": "per_group", "group_size": 64},
    {"quantizer": "binary", "activation_quantizer": "none"},
    {"quantizer": "int8"},
    {"quantizer": "float16"},
    {"weight_sparsity_threshold": 0.3},
    {"quantizer": None},
    {"schedule": "soft"},
]


def step(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = layer(x)
    y.backward(torch.ones_like(y))
    return y


def make(arguments: dict[str, Any], device: str) -> BitLinear:
    schedule = None
    if "schedule" in arguments:
        schedule = Schedule(uses_lambda=True, uses_soft_codes=True, uses_arenas=True).to(device)
        schedule.set(lambda_=0.4, soft_alpha=2.0, arenas=0.1)
    return BitLinear(128, 32, device=device, **{**arguments, "schedule": schedule})


@pytest.mark.parametrize("has_int8_product", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arguments", LAYERS, ids=str)
def test_a_step_needs_no_value(
    arguments: dict[str, Any], dtype: torch.dtype, has_int8_product: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(straight_through_linear, "HAS_INT8_PRODUCT", has_int8_product)
    with FakeTensorMode():
        layer = make(arguments, "cpu")
        x = torch.empty(4, 128, requires_grad=True)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            y = step(layer, x)
    assert y.dtype == dtype
    assert y.shape == (4, 32)
    assert layer.weight.grad is not None
    assert x.grad is not None


def test_a_layer_that_waits_is_found() -> None:
    class Waits(BitLinear):
        def forward(self, x_TI: torch.Tensor, x_codes: Any = None) -> torch.Tensor:
            return super().forward(x_TI) if float(x_TI.max()) > 0 else x_TI

    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        step(Waits(128, 32), torch.empty(4, 128))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("arguments", LAYERS, ids=str)
def test_cuda_reports_no_wait(arguments: dict[str, Any]) -> None:
    layer = make(arguments, "cuda")
    x = torch.randn(64, 128, device="cuda", requires_grad=True)
    step(layer, x)  # the first call sets up the libraries, which may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(layer, x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
