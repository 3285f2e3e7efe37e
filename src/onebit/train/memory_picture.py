"""The memory of several methods as a picture: a bar each, stacked by kind, beside the budgets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onebit.errors import ConfigError
from onebit.train.memory import KINDS, Memory

__all__ = ["check_picture", "draw_memory"]

_FORMATS = (".png", ".svg", ".pdf")
_COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#aa3377", "#bbbbbb", "#ee6677", "#ddaa33")  # Paul Tol's


def check_picture(path: Path) -> None:
    """Raise ConfigError unless `draw_memory` can write there."""
    if path.suffix not in _FORMATS:
        raise ConfigError(f"--plot is '{path}'; its name must end in one of {', '.join(_FORMATS)}")
    if not path.parent.is_dir():
        raise ConfigError(f"--plot is '{path}', but there is no folder '{path.parent}'")


def draw_memory(memories: Sequence[Memory], path: Path, title: str, budgets: Sequence[float] = ()) -> None:
    """Write the picture in the form of the path's ending; budgets: in bytes, drawn where bars come near them."""
    # A Figure without pyplot: no global state, no window, whatever backend the user has set.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 1.6 + 0.38 * len(memories)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    longest = max(memory.total for memory in memories)
    for place, memory in enumerate(reversed(memories)):
        left = 0.0
        for (kind, size), colour in zip(memory.by_kind().items(), _COLOURS, strict=True):
            axes.barh(place, size / 1e9, left=left, color=colour, height=0.65, label=None if place else kind)
            left += size / 1e9
        axes.text(left + longest / 1e11, place, f"{left:,.3g}", va="center", fontsize=8)
    for budget in budgets:
        if budget < 1.1 * longest:
            axes.axvline(budget / 1e9, color="#666666", linewidth=1, linestyle="--", zorder=0)
    axes.set_yticks(range(len(memories)), [memory.method for memory in reversed(memories)])
    axes.set_xlim(0, 1.1 * longest / 1e9)
    axes.set_xlabel("GB")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(KINDS) // 2, frameon=False, fontsize=8)
    figure.savefig(path)
