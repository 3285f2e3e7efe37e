"""`onebit eval`: loss, perplexity and bits per byte of a model on a text file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["eval"]


def eval(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="A .1bit file (run by the engine) or a checkpoint folder (by torch)."),
    ],
    data: Annotated[Path, typer.Option("--data", help="The text file to score, UTF-8.")],
    context: Annotated[
        int | None,
        typer.Option("--context", min=1, help="Tokens a window feeds; the model's own length when not given."),
    ] = None,
    stride: Annotated[
        int | None, typer.Option("--stride", min=1, help="Tokens each window scores; below --context windows overlap.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=2, help="Score only the first so many tokens.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Engine threads; all cores when not given.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Device of a checkpoint: cpu, cuda, mps.")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Print the result record as JSON.")] = False,
) -> None:
    """Score a text file: loss in nats per token, perplexity, bits per byte.

    The text is tokenized as one sequence and every token is scored once. Windows do not overlap unless --stride is
    given. A .1bit file and the checkpoint it was exported from differ by what rounding embedding and head costs.
    """
    from onebit.cli.progress import ProgressLine
    from onebit.eval.evaluate import evaluate, read_text
    from onebit.eval.forms import open_form

    text = read_text(data)
    form = open_form(model, device=device, threads=threads)
    result = evaluate(
        form, text, context=context, stride=stride, max_tokens=max_tokens, progress=ProgressLine("eval", "tokens")
    )
    if json:
        typer.echo(result.record(model=str(model), data=str(data)).to_json())
        return
    quality = result.quality
    overlap = "" if result.stride == result.context else f", scored in steps of {result.stride}"
    typer.echo(f"{model} on {data} ({result.runtime}, windows of {result.context} tokens{overlap})")
    typer.echo(f"  loss            {quality.loss:.4f} nats per token, {quality.tokens} tokens")
    typer.echo(f"  perplexity      {quality.perplexity:.3f} per token, {quality.perplexity_per_word:.4g} per word")
    typer.echo(f"  bits per byte   {quality.bits_per_byte:.4f}, {quality.bytes} bytes")
    typer.echo(f"  speed           {quality.tokens / max(result.seconds, 1e-9):.0f} tokens/s")
