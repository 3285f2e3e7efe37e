"""The demo's report: one HTML file with everything inside it, readable on a phone, in light and in dark.

It shows what was measured on this machine in this run and says what it does not show: no figure here is a claim about
1-bit models in general.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from onebit.eval.charts import Bar, Line, Segment, ShareRow, bars, line_chart, share_rows, stacked_bars
from onebit.eval.page import page

__all__ = ["DemoResult", "render", "smoothed"]


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo measured. Losses are (step, nats per token); sizes in MB = 10^6 bytes."""

    corpus: str
    num_parameters: int
    num_ternary: int
    shape: str
    steps: int
    train_seconds: float
    train_tokens: int
    losses: Sequence[tuple[int, float]]
    held_out_losses: Sequence[tuple[int, float]]
    bits_per_byte: float
    perplexity: float
    shares: Sequence[tuple[str, Sequence[ShareRow]]]
    float16_mb: Sequence[Segment]
    file_mb: Sequence[Segment]
    bits_per_weight: float
    tokens_per_second: Sequence[tuple[str, float]]
    kernels: str
    verify_max: float
    verify_agreement: float
    verify_passed: bool
    samples: Sequence[tuple[str, str]]
    next_commands: Sequence[tuple[str, str]]
    machine: str
    versions: str
    commit: str
    date: str
    seed: int
    notes: Sequence[str] = field(default_factory=tuple)


def smoothed(points: Sequence[tuple[int, float]], share: float = 0.05) -> list[tuple[float, float]]:
    """Mean over a centred window of `share` of the points (at least 3), so that a noisy curve shows its course."""
    half = max(1, round(len(points) * share / 2))
    curve = []
    for index, (step, _) in enumerate(points):
        window = points[max(0, index - half) : index + half + 1]
        curve.append((float(step), sum(loss for _, loss in window) / len(window)))
    return curve


def render(result: DemoResult) -> str:
    """The whole page."""
    sections = [
        _head(result),
        _tiles(result),
        _figure("How the loss fell", _loss(result), _loss_caption(result)),
        _figure("What the weights became", _shares(result), SHARES_CAPTION),
        _figure("Size", _sizes(result), _size_caption(result)),
        _figure("Speed on this machine", _speed(result), _speed_caption(result)),
        _sample(result),
        _same_model(result),
        _next(result),
        _foot(result),
    ]
    return page("onebit demo", sections)


def _head(result: DemoResult) -> str:
    return (
        "<header><p class=eyebrow>onebit demo</p>"
        f"<h1>A language model in {_total(result.file_mb):.1f} MB</h1>"
        f"<p class=lead>{result.num_parameters / 1e6:.1f} million parameters, {result.num_ternary / 1e6:.1f} million "
        f"of them ternary (&minus;1, 0 or +1), trained from nothing in {_duration(result.train_seconds)} on this "
        f"machine. Text: {escape(result.corpus)}.</p></header>"
    )


def _tiles(result: DemoResult) -> str:
    fastest = result.tokens_per_second[0] if result.tokens_per_second else ("", 0.0)
    tiles = [
        (f"{result.bits_per_byte:.2f}", "bits per byte on held-out text"),
        (f"{result.bits_per_weight:.2f}", "bits per ternary weight, scales included"),
        (f"{_total(result.float16_mb) / _total(result.file_mb):.1f}\u00d7", "smaller than float16"),
        (f"{fastest[1]:,.0f}", f"tokens/s, {fastest[0]}"),
    ]
    return (
        "<ul class=tiles>" + "".join(f"<li><b>{value}</b><span>{escape(name)}</span></li>" for value, name in tiles)
    ) + "</ul>"


def _figure(title: str, picture: str, caption: str) -> str:
    kind = " class=tall" if picture.count("<rect") > 30 else ""  # many bars: it stands beside the three others
    return f"<figure{kind}><h2>{escape(title)}</h2>{picture}<figcaption>{caption}</figcaption></figure>"


def _loss(result: DemoResult) -> str:
    lines = [
        Line("each logged step", [(float(step), loss) for step, loss in result.losses], "faint"),
        Line("smoothed", smoothed(result.losses), "strong"),
    ]
    if result.held_out_losses:
        lines.append(Line("held out", [(float(step), loss) for step, loss in result.held_out_losses], "dotted"))
    return line_chart(lines, x_label="step", title="Training loss by step, nats per token")


def _loss_caption(result: DemoResult) -> str:
    speed = result.train_tokens / max(result.train_seconds, 1e-9)
    return (
        f"Nats per token over {result.steps:,} steps, {result.train_tokens / 1e6:.2f} million tokens at "
        f"{speed:,.0f} tokens/s. The exported file scores {result.bits_per_byte:.3f} bits per byte (perplexity "
        f"{result.perplexity:.1f} per token) on text it was not trained on, computed by the C engine."
    )


def _shares(result: DemoResult) -> str:
    return share_rows(result.shares, title="Share of -1, 0 and +1 in every ternary tensor")


SHARES_CAPTION = (
    "Share of &minus;1, 0 and +1 in each ternary matrix, read back from the exported file. Near a third each "
    "means that the matrix uses its 1.58 bits; many zeros mean that it carries less."
)


def _sizes(result: DemoResult) -> str:
    rows = [
        ("float16, computed: 2 bytes a parameter", result.float16_mb),
        ("model.1bit, as it lies on disk", result.file_mb),
    ]
    return stacked_bars(rows, unit="MB", title="Size of the file against float16")


def _size_caption(result: DemoResult) -> str:
    parts = ", ".join(f"{escape(part.label)} {part.value:.2f} MB" for part in result.file_mb)
    return (
        f"In the file: {parts}. One file is the whole model, tokenizer included. In a model this small the embedding "
        "weighs much, though it is stored as int8; the larger the model, the closer it comes to what the ternary "
        "weights alone save."
    )


def _speed(result: DemoResult) -> str:
    rows = [Bar(name, value, f"{value:,.0f} tokens/s") for name, value in result.tokens_per_second]
    return bars(rows, title="Tokens per second")


def _speed_caption(result: DemoResult) -> str:
    return (
        f"One sequence at a time. {escape(result.kernels)} PyTorch runs the training code here, which quantises "
        "anew at every step and is not built for writing. Other programs on the machine slow all of these down."
    )


def _sample(result: DemoResult) -> str:
    pages = "\n\n\n".join(f"<b>{escape(prompt)}</b>{escape(text)}" for prompt, text in result.samples)
    return (
        "<section><h2>What it writes</h2>"
        f"<pre>{pages}</pre>"
        "<p class=caption>The bold parts were given; the rest was sampled. Minutes of training teach it what Python "
        "looks like, not what it means: do not expect this to run.</p></section>"
    )


def _same_model(result: DemoResult) -> str:
    verdict = "is the same model as" if result.verify_passed else "<strong>differs from</strong>"
    return (
        f"<section><h2>Checked</h2><p>The file {verdict} the checkpoint it came from: fed the same text, the C engine "
        f"and PyTorch differ by at most {result.verify_max:.1e} of the largest logit and choose the same next token "
        f"{result.verify_agreement:.1%} of the time.</p></section>"
    )


def _next(result: DemoResult) -> str:
    items = "".join(
        f"<p>{escape(why)}</p><pre class=command>{escape(line)}</pre>" for why, line in result.next_commands
    )
    return f"<section><h2>What to try next</h2>{items}</section>"


def _foot(result: DemoResult) -> str:
    notes = "".join(f"<p>{escape(note)}</p>" for note in result.notes)
    return (
        f"<footer>{notes}<p>Not shown here: how a full-precision model of the same shape, data and steps would have "
        "done. benchmarks/quality.py trains that twin.</p>"
        f"<p>{escape(result.shape)}. Seed {result.seed}. {escape(result.machine)}. {escape(result.versions)}. "
        f"Commit {escape(result.commit)}. {escape(result.date)}.</p></footer>"
    )


def _total(parts: Sequence[Segment]) -> float:
    return sum(part.value for part in parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
