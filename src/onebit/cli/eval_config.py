"""`onebit eval-config`: the loss and the size of a model under one bit-width map."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["eval_config"]


def eval_config(
    checkpoint: Annotated[Path, typer.Option(help="A folder of onebit train, or the model.safetensors in it.")],
    val_data: Annotated[Path, typer.Option(help="Text that the model was not trained on, UTF-8.")],
    bit_width_map: Annotated[
        Path,
        typer.Option(
            "--bit-width-map", "--quant-config", help="JSON of onebit search, or an object of module name -> level."
        ),
    ],
    model_config: Annotated[Path | None, typer.Option(help="config.json, when it is not the checkpoint's.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer.json, when it is not the checkpoint's.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens a window feeds [default: the model's].")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of the text to score.")] = 16384,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps.")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Score one bit-width map on held-out text, and say how many bytes its exported file has."""
    from json import dumps

    from onebit.models.bit_width_map import read_bit_width_map
    from onebit.search.report import score_values
    from onebit.search.run import evaluate_map
    from onebit.search.settings import EvaluationSettings

    settings = EvaluationSettings(
        checkpoint=checkpoint,
        val_data=val_data,
        model_config=model_config,
        tokenizer=tokenizer,
        context=context,
        max_tokens=max_tokens,
        threads=threads,
        device=device,
    )
    score, size = evaluate_map(settings, read_bit_width_map(bit_width_map).levels)
    if json:
        values = {**score_values(score), "tokens": score.tokens, "size_bytes": size, "size_mb": size / 1e6}
        typer.echo(dumps(values, indent=2))
        return
    typer.echo(f"loss {score.loss:.4f} nats per token, perplexity {score.perplexity:.4g}, top-1 {score.accuracy:.2%}")
    typer.echo(f"{score.tokens:,} tokens scored; the exported file has {size:,} bytes")
