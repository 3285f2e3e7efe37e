"""The runs of the pure-training benchmark as figures, a table and a picture."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

__all__ = ["draw", "figures_of", "method_of", "tuned_arms"]

COLOURS = {"float": "#666666", "hybrid": "#d1542c", "int8": "#1f6feb", "int4": "#2da44e"}
OTHER = "#a371f7"
TASKS = ("scratch", "finetune")


def method_of(arm: str) -> str:
    """The method of an arm without its rate; microbatches and their sum stay, for they are another method."""
    method, _, rest = arm.partition("@")
    return "+".join([method, *rest.split("+")[1:]])


def tuned_arms(results: list[dict[str, Any]], task: str) -> dict[str, str]:
    """Method -> its arm with the lowest bits per byte on its smallest seed, at which all its rates were tried."""
    best: dict[str, dict[str, Any]] = {}
    mine = [result for result in results if result["task"] == task]
    for result in sorted(mine, key=lambda result: int(result["seed"])):
        known = best.setdefault(method_of(result["arm"]), result)
        if result["seed"] == known["seed"] and result["bpb"] < known["bpb"]:
            best[method_of(result["arm"])] = result
    return {method: result["arm"] for method, result in best.items()}


def figures_of(results: list[dict[str, Any]]) -> dict[str, float]:
    """Each method at its tuned rate; ratios are of bits per byte, by seed, over the seeds that both have.

    Times are the samples' alone: runs that follow each other for hours are no comparison, as `pure_step` makes it.
    """
    figures: dict[str, float] = {}
    for task in TASKS:
        arms = tuned_arms(results, task)
        runs = {
            method: {r["seed"]: r for r in results if r["task"] == task and r["arm"] == arm}
            for method, arm in arms.items()
        }
        for method, by_seed in runs.items():
            name = method.replace("+", "_").replace(":", "_")
            values = [run["bpb"] for run in by_seed.values()]
            told = {
                "bits_per_byte": statistics.fmean(values),
                "bits_per_byte_spread": max(values) - min(values),
                "seeds": len(values),
                "rate": float(arms[method].partition("@")[2].partition("+")[0]),
            }
            if method != "float":
                for key in ("zeros", "changed", "flips_first_half", "flips_second_half"):
                    told[key] = statistics.fmean(run[key] for run in by_seed.values())
            for key, value in told.items():
                figures[f"{name}_{task}_{key}"] = round(value, 6)
            figures[f"bytes_per_weight_{name}"] = round(next(iter(by_seed.values()))["bytes_per_weight"], 4)
            hybrid = runs.get("hybrid", {})
            ratios = [run["bpb"] / hybrid[seed]["bpb"] for seed, run in by_seed.items() if seed in hybrid]
            if method != "hybrid" and ratios:
                figures[f"{name}_over_hybrid_{task}"] = round(statistics.fmean(ratios), 5)
                figures[f"{name}_over_hybrid_{task}_worst_seed"] = round(max(ratios), 5)
    return figures


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Bits per byte against bytes a weight, a panel for each task; a dot a seed, a bar their mean."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = [task for task in TASKS if any(result["task"] == task for result in results)]
    figure, axes = plt.subplots(1, len(tasks), figsize=(4.8 * len(tasks), 3.6), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        for method, arm in tuned_arms(results, task).items():
            mine = [r for r in results if r["task"] == task and r["arm"] == arm]
            size, values = mine[0]["bytes_per_weight"], [r["bpb"] for r in mine]
            colour = COLOURS.get(method, OTHER)
            axis.plot([size] * len(values), values, "o", color=colour, markersize=4, alpha=0.7)
            axis.plot([size], [statistics.fmean(values)], "_", color=colour, markersize=14)
            axis.annotate(
                method, (size, statistics.fmean(values)), (5, 4), textcoords="offset points", fontsize=8, color=colour
            )
        axis.set_xscale("log")
        ticks = [0.5, 1, 2, 4, 8, 16]
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_xlim(0.4, 32)
        axis.minorticks_off()
        axis.set_xlabel("bytes a weight: codes or latents, gradients, optimizer")
        axis.set_ylabel("bits per byte")
        axis.set_title({"scratch": "from scratch", "finetune": "fine-tuning"}[task], fontsize=10)
        axis.grid(alpha=0.2)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
