"""The curves of the quality benchmark as one small PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = {"float": "#666666", "ternary": "#1f6feb", "binary": "#d1542c"}


def draw_curves(samples: list[dict[str, Any]], path: Path) -> None:
    """Validation loss against steps, one panel a text, one line a run; a dot marks the checkpoint that counts."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    datasets = list(dict.fromkeys(sample["dataset"] for sample in samples))
    figure, axes = plt.subplots(1, len(datasets), figsize=(4.2 * len(datasets), 3.2), squeeze=False)
    for axis, dataset in zip(axes[0], datasets, strict=True):
        named: set[str] = set()
        for sample in samples:
            if sample["dataset"] != dataset:
                continue
            method = sample["method"]
            steps, losses = sample["curve_steps"], sample["curve_validation"]
            label = None if method in named else method
            named.add(method)
            axis.plot(steps, losses, color=COLOURS[method], linewidth=1, alpha=0.8, label=label)
            best = steps.index(sample["best_step"])
            axis.plot(steps[best], losses[best], "o", color=COLOURS[method], markersize=3)
        axis.set_title(dataset, fontsize=10)
        axis.set_xlabel("steps")
        axis.set_ylabel("validation loss, nats per token")
        axis.grid(alpha=0.2)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
