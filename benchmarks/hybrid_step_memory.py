"""Memory of one training step: what autograd keeps, the peak of what is allocated, and the products' share of time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::_int_mm", "mkldnn::_linear_pointwise")


def memory_of(contender: Any) -> dict[str, float]:
    """kept_mb, static_mb (parameters and optimizer's state), peak_mb (with these), on a CPU gemm_share too."""
    static = _static_bytes(contender)
    found = {"kept_mb": _kept_bytes(contender) / 1e6, "static_mb": static / 1e6}
    if contender.device == "cuda":
        torch.cuda.synchronize()
        # Other contenders' parameters lie there too: only what the step adds counts.
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        contender.step(makes_inputs=True)
        torch.cuda.synchronize()
        return found | {"peak_mb": (static + torch.cuda.max_memory_allocated() - before) / 1e6}
    peak, share = _profiled(contender)
    return found | {"peak_mb": (static + peak) / 1e6, "gemm_share": share}


def _static_bytes(contender: Any) -> int:
    tensors = list(contender.module.parameters())
    tensors += [value for state in contender.optimizer.state.values() for value in state.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _kept_bytes(contender: Any) -> int:
    kept: dict[int, Tensor] = {}  # holds the tensors, so that no two have one address

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        contender.output(contender.x_BLC)
    for parameter in contender.module.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _profiled(contender: Any) -> tuple[int, float]:
    """(peak of bytes allocated beyond those at the start, the matrix products' share of the step's time), on a CPU."""
    from torch.profiler import ProfilerActivity, profile, record_function

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler, record_function("whole step"):
        contender.step(makes_inputs=True)
    events = profiler.profiler.kineto_results.events()
    held = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    times = {name: sum(e.duration_ns() for e in events if e.name() == name) for name in (*PRODUCTS, "whole step")}
    whole = times.pop("whole step")
    return peak, sum(times.values()) / whole
