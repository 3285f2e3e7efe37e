"""The result of a speed measurement as a picture: a bar a line, beside the machine's limit."""

from __future__ import annotations

from pathlib import Path

from onebit.eval.speed import SpeedResult

__all__ = ["draw_speed"]

_COLOURS = {"decode": "#1f6feb", "prefill": "#d1542c"}


def draw_speed(result: SpeedResult, path: Path) -> None:
    """One bar for each speed, as a share of its limit; the format is the one of the path's ending."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    speeds = [speed for speed in reversed(result.speeds) if speed.over_limit is not None]
    figure, axis = plt.subplots(figsize=(7, 0.8 + 0.42 * len(speeds)))
    for place, speed in enumerate(speeds):
        share = speed.over_limit or 0.0
        axis.barh(place, 100 * share, color=_COLOURS[speed.what], height=0.6)
        label = f"{speed.rate:,.1f} of {speed.limit:,.1f} tokens/s"
        axis.text(100 * share + 1, place, label, va="center", fontsize=8)
    axis.axvline(100, color="#666666", linewidth=1)
    axis.set_yticks(range(len(speeds)), [_label(speed.what, speed.tokens, speed.threads) for speed in speeds])
    axis.set_xlim(0, 135)
    axis.set_xlabel("% of the limit: memory bandwidth for decode, int8 arithmetic for prefill")
    axis.set_title(f"{result.path.name}, {result.isa}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _label(what: str, tokens: int, threads: int) -> str:
    return f"{what} {tokens}, {threads} thread{'s' if threads > 1 else ''}"
