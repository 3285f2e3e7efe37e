"""The kernels of pure training beside what bounds them: bytes over the bandwidth, operations over the peak."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onebit.engine.limits import bandwidth, int8_peak
from onebit.nn.pure_kernels import PureKernels, kernels_for
from onebit.nn.pure_storage import pack_codes, pack_counters
from onebit.optim.pure_deposit import update_moments
from onebit.quant.counters import counter_named

__all__ = ["measure_kernels", "wait"]

CALLS = {"cpu": 1, "cuda": 20}  # that are timed together: a launch must not be what is measured


def measure_kernels(
    device: torch.device, rows: int, cols: int, tokens: int
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """(figures, seconds of every call of every kernel) over one matrix; the gradient is float32, on CUDA bfloat16."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    g_OI = (torch.randn(rows, cols, device=device) * 1e-4).to(dtype)
    codes_OB = pack_codes(torch.randint(-1, 2, (rows, cols), dtype=torch.int8, device=device), is_binary=False)
    kernels = kernels_for(codes_OB)
    calls = _memory_bound(kernels, g_OI, codes_OB)
    products = _products(kernels, tokens, codes_OB, cols, dtype)
    seconds = {name: _times(call, device) for name, (_, call) in calls.items()}
    seconds |= {name: _times(call, device) for name, call in products.items()}
    limit = _bandwidth(device, g_OI.nbytes)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    figures = {
        f"{name}_share_of_bandwidth": count * rows * cols / medians[name] / limit for name, (count, _) in calls.items()
    }
    figures["bandwidth_gb_per_s"] = limit / 1e9
    operations = 2.0 * rows * cols * tokens
    for name in ("forward_product", "input_gradient"):
        figures[f"{name}_gops"] = operations / medians[name] / 1e9
        figures[f"{name}_over_floats"] = medians[name] / medians[f"{name}_of_floats"]
    if device.type == "cpu" and (peak := int8_peak("avx2", 1)) is not None:
        figures["forward_product_share_of_int8_peak"] = figures["forward_product_gops"] / peak
    return figures, seconds


def _memory_bound(kernels: PureKernels, g_OI: Tensor, codes_OB: Tensor) -> dict[str, tuple[float, Callable[[], Any]]]:
    """Name -> (bytes a weight that must be read and written, call)."""
    rows, cols = g_OI.shape
    device, size = g_OI.device, g_OI.element_size()
    peak = g_OI.abs().amax().float()
    zeros = torch.zeros(rows, device=device), torch.zeros(cols, device=device)
    ones = torch.ones((), dtype=torch.int64, device=device)
    factors = update_moments(zeros, kernels.square_sums(g_OI, peak, rows), peak, ones)
    eta, scale = 0.1, torch.ones((), device=device)
    mean_square = torch.ones((), dtype=torch.float64, device=device)
    calls: dict[str, tuple[float, Callable[[], Any]]] = {
        "square_sums": (size, lambda: kernels.square_sums(g_OI, peak, rows)),
        "update_energy": (size, lambda: kernels.update_energy(g_OI, factors)),
        "scale_gradient": (
            size + 0.25,
            lambda: kernels.scale_gradient(g_OI, codes_OB, scale, 0, is_binary=False),
        ),
        "unpack": (size + 0.25, lambda: kernels.unpack(codes_OB, cols, g_OI.dtype, is_binary=False)),
    }
    for name, count in (("int8", 1.0), ("int4", 0.5)):
        counter = counter_named(name)
        counters = pack_counters(torch.zeros(rows, cols, dtype=torch.int8, device=device), counter).clone()

        def deposit(counters: Tensor = counters, counter: Any = counter) -> None:
            kernels.deposit(counters, g_OI, factors, eta, mean_square, counter, seed=1, tensor=2, step=ones)

        def fire(counters: Tensor = counters, counter: Any = counter) -> None:
            kernels.fire([(codes_OB, counters, cols)], counter, is_binary=False)

        calls[f"deposit_{name}"] = size + 2 * count, deposit
        calls[f"fire_{name}"] = count + 0.25, fire
    return calls


def _products(
    kernels: PureKernels, tokens: int, codes_OB: Tensor, cols: int, dtype: torch.dtype
) -> dict[str, Callable[[], Any]]:
    """The products with codes, and what they replace: a product of floats that are there already."""
    device, rows = codes_OB.device, codes_OB.shape[0]
    x_TI = torch.randint(-127, 128, (tokens, cols), dtype=torch.int8, device=device)
    g_TO = torch.randn(tokens, rows, device=device, dtype=dtype)
    w_OI = kernels.unpack(codes_OB, cols, dtype, is_binary=False)
    floats_TI = x_TI.to(dtype)
    return {
        "forward_product": lambda: kernels.forward_product(x_TI, codes_OB, dtype, is_binary=False),
        "forward_product_of_floats": lambda: F.linear(floats_TI, w_OI),
        "input_gradient": lambda: kernels.input_gradient(g_TO, codes_OB, cols, is_binary=False),
        "input_gradient_of_floats": lambda: g_TO @ w_OI,
    }


def _times(call: Callable[[], Any], device: torch.device) -> list[float]:
    """Seconds a call, of five rounds after one that counts for nothing."""
    count, found = CALLS[device.type], []
    for _ in range(6):
        wait(device)
        started = time.perf_counter()
        for _ in range(count):
            call()
        wait(device)
        found.append((time.perf_counter() - started) / count)
    return found[1:]


def _bandwidth(device: torch.device, num_bytes: int) -> float:
    """Bytes a second: of a pure read on a CPU; on CUDA of a copy of 1 GB, bytes read and written."""
    if device.type == "cpu":
        return bandwidth(1, num_bytes) * 1e9
    source = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / statistics.median(_times(lambda: target.copy_(source), device))


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
