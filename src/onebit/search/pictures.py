"""Two pictures of a search: loss against size with the uniform maps marked, and the bytes of each layer by level."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from onebit.formats.atomic import beside
from onebit.search.space import Choice, Space
from onebit.search.trials import Trial, Trials

__all__ = ["draw_front", "draw_layers"]

_COLOURS = {
    "binary": "#4477aa",
    "ternary": "#66ccee",
    "int4": "#228833",
    "int8": "#ccbb44",
    "float16": "#ee6677",
}


def draw_front(path: Path, front: list[Trial], best: Trial, trials: Trials) -> None:
    """Every trial, the front, the uniform maps that were measured, the budget; nothing without matplotlib."""
    figure, axes = _figure(7.0, 4.5)
    if figure is None:
        return
    done = list(trials.done.values())
    axes.scatter([t.size / 1e6 for t in done], [t.score.loss for t in done], s=8, color="#bbbbbb", label="measured")
    axes.step(
        [t.size / 1e6 for t in front], [t.score.loss for t in front], where="post", color="#444444", label="front"
    )
    for level in trials.space.levels:
        uniform = trials.done.get(trials.space.uniform(level))
        if uniform is not None:
            axes.plot(uniform.size / 1e6, uniform.score.loss, "s", color=_COLOURS[level], label=f"uniform {level}")
    axes.plot(best.size / 1e6, best.score.loss, "*", color="#aa3377", markersize=13, label="chosen")
    if trials.budget.max_bytes is not None:
        axes.axvline(trials.budget.max_bytes / 1e6, color="#aa3377", linestyle=":", linewidth=1)
    axes.set_xlabel("exported file, MB")
    axes.set_ylabel("held-out loss, nats per token")
    axes.grid(alpha=0.3)
    _finish(figure, axes, path)


def draw_layers(path: Path, choice: Choice, space: Space) -> None:
    """A bar for each layer: its matrices from below, as high as their bytes, in the colour of their level."""
    figure, axes = _figure(7.0, 3.5)
    if figure is None:
        return
    heights: dict[str, float] = {}
    used = {space.levels[index] for index in choice}
    for level in space.levels:  # the legend, from the coarsest to the finest
        if level in used:
            axes.bar([0], [0], color=_COLOURS[level], label=level)
    for unit, index in zip(space.units, choice, strict=True):
        name, height = _bar(unit.name), unit.sizes[index] / 1e3
        bottom = heights.setdefault(name, 0.0)
        place = list(heights).index(name)
        axes.bar(place, height, 0.8, bottom, color=_COLOURS[space.levels[index]], edgecolor="w", lw=0.5)
        heights[name] += height
    axes.set_xticks(range(len(heights)), heights, rotation=45 if len(heights) > 10 else 0)
    axes.set_ylabel("kB in the file")
    axes.set_ylim(top=1.15 * max(heights.values()))  # room for the legend
    _finish(figure, axes, path, ncols=len(used))


def _finish(figure: Any, axes: Any, path: Path, ncols: int = 1) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=ncols, loc="upper right")
    with beside(path) as file:
        figure.savefig(file, format="png")


def _bar(unit: str) -> str:
    """A layer's number, else what the matrix is called."""
    parts = unit.split(".")
    return parts[1] if parts[0] == "layers" else parts[0].removesuffix("_tokens").removeprefix("lm_")


def _figure(width: float, height: float) -> tuple[Any, Any]:
    if importlib.util.find_spec("matplotlib") is None:
        return None, None
    # A Figure without pyplot: no global state, no window, whatever backend the user has set.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()
