"""The loss curve of a run as a picture, made from metrics.jsonl alone."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from onebit.train.metrics_log import read_metrics

__all__ = ["draw_loss_curve"]


def draw_loss_curve(folder: Path, formats: tuple[str, ...] = ("png", "svg")) -> list[Path]:
    """Write loss.png and loss.svg beside metrics.jsonl; nothing when there are no losses or no matplotlib."""
    records = read_metrics(folder)
    train = [(r["step"], r["loss"]) for r in records if "loss" in r]
    validation = [(r["step"], r["eval_loss"]) for r in records if "eval_loss" in r]
    if not (train or validation) or importlib.util.find_spec("matplotlib") is None:
        return []
    # A Figure without pyplot: no global state, no window, whatever backend the user has set.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.0), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for points, label, colour, marker in (
        (train, "training", "#4477aa", ""),
        (validation, "validation", "#cc6677", "o"),
    ):
        if points:
            axes.plot(*zip(*points, strict=True), label=label, color=colour, marker=marker, markersize=4)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    written = []
    for form in formats:
        path = folder / f"loss.{form}"
        figure.savefig(path, format=form)
        written.append(path)
    return written
