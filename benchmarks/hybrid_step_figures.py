"""Figures, table and picture of benchmarks/hybrid_step.py."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Sample = dict[str, Any]
COLOURS = {"hybrid": "#1f6feb", "float_product": "#8a63d2", "group128": "#d1542c"}


def _pairs(samples: list[Sample]) -> Iterator[tuple[Sample, Sample]]:
    """Every sample of another arm, with linear's of the same case, type, mode and device."""
    key = ("case", "dtype", "mode", "device")
    linear = {tuple(s[k] for k in key): s for s in samples if s["arm"] == "linear"}
    for sample in samples:
        if sample["arm"] != "linear":
            yield sample, linear[tuple(sample[k] for k in key)]


def time_ratio(sample: Sample, linear: Sample) -> float:
    """Median over rounds of one step's time over the other's."""
    return statistics.median(a / b for a, b in zip(sample["seconds"], linear["seconds"], strict=True))


def deviation(curve: list[float], other: list[float]) -> float:
    """Largest relative difference of two loss curves."""
    return max(abs(a - b) / b for a, b in zip(curve, other, strict=True))


def figures_of(samples: list[Sample], curves: list[dict[str, Any]]) -> dict[str, float]:
    """Ratios to linear: for each case and type, and without these in the name the worst of them."""
    figures: dict[str, float] = {}
    worst: dict[str, float] = {}
    for sample, linear in _pairs(samples):
        ratios = {
            "": time_ratio(sample, linear),
            "_peak_memory": sample["peak_mb"] / linear["peak_mb"],
            "_kept_memory": sample["kept_mb"] / linear["kept_mb"],
        }
        for what, ratio in ratios.items():
            name = f"{sample['arm']}_over_linear{what}_{sample['mode']}_{sample['device']}"
            worst[name] = round(max(worst.get(name, 0.0), ratio), 4)
            figures[f"{sample['case']}_{sample['dtype']}_{name}"] = round(ratio, 4)
    for curve in curves:
        end = f"{curve['dtype']}_{curve['device']}"
        worst[f"loss_compiled_from_eager_{end}"] = deviation(curve["compiled"], curve["eager"])
        worst[f"loss_noise_{end}"] = deviation(curve["moved"], curve["eager"])
        worst[f"loss_last_over_first_{end}"] = round(curve["compiled"][-1] / curve["compiled"][0], 4)
    return worst | figures


def table(samples: list[Sample]) -> str:
    """One line a sample: milliseconds, times of linear, what is kept, the peak, the products' share."""
    ratio = {id(sample): time_ratio(sample, linear) for sample, linear in _pairs(samples)}
    lines = [f"{'':<38} {'ms':>8} {'x':>6} {'kept MB':>9} {'peak MB':>9} {'products':>8}"]
    for s in samples:
        name = f"{s['case']} {s['dtype']} {s['mode']} {s['arm']}"
        share = f"{s['gemm_share']:8.2f}" if "gemm_share" in s else ""
        times = f"{1e3 * statistics.median(s['seconds']):8.1f} {ratio.get(id(s), 1.0):6.3f}"
        lines.append(f"{name:<38} {times} {s['kept_mb']:9.2f} {s['peak_mb']:9.1f} {share}")
    return "\n".join(lines)


def draw(samples: list[Sample], path: Path) -> None:
    """Time and peak memory of a step over nn.Linear's, one row a case, type and mode, one dot an arm."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    pairs = list(_pairs(samples))
    rows = list(dict.fromkeys(f"{s['case']}, {s['dtype']}, {s['mode']}" for s, _ in pairs))[::-1]
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 1.2 + 0.28 * len(rows)), sharey=True)
    for axis, what in zip(axes, ("time", "peak memory"), strict=True):
        for arm in dict.fromkeys(s["arm"] for s, _ in pairs):
            own = [(s, linear) for s, linear in pairs if s["arm"] == arm]
            ratios = [time_ratio(s, b) if what == "time" else s["peak_mb"] / b["peak_mb"] for s, b in own]
            heights = [rows.index(f"{s['case']}, {s['dtype']}, {s['mode']}") for s, _ in own]
            axis.plot(ratios, heights, "o", color=COLOURS[arm], markersize=5, alpha=0.8, label=arm)
        axis.axvline(1.0, color="#666666", linewidth=1)
        axis.set_xlabel(f"{what} of a step, over nn.Linear's")
        axis.grid(alpha=0.2)
    axes[0].axvline(1.15, color="#666666", linewidth=1, linestyle=":")  # the bar for compiled steps
    axes[0].set_yticks(range(len(rows)), rows, fontsize=8)
    axes[1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
