"""`onebit generate`: continue a prompt, streamed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onebit.cli.sampling import (
    Isa,
    MaxNewTokens,
    MinP,
    ModelDir,
    RepetitionPenalty,
    Seed,
    Stop,
    Temperature,
    Threads,
    TopK,
    TopP,
)

if TYPE_CHECKING:
    from onebit.engine import Model

__all__ = ["generate"]


def generate(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="A .1bit file, a checkpoint folder, or 'tiny' (the default): the model inside onebit."
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The text to continue; - reads it from standard input.")
    ] = None,
    model_dir: ModelDir = None,
    max_new_tokens: MaxNewTokens = 200,
    temperature: Temperature = 0.7,
    top_k: TopK = 40,
    top_p: TopP = 0.9,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.1,
    seed: Seed = None,
    stop: Stop = None,
    threads: Threads = None,
    isa: Isa = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print prompt, text and figures as JSON, nothing before.")
    ] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Say how fast it was, on stderr.")] = False,
) -> None:
    """Continue a prompt.

    Without PROMPT the text starts from nothing. A checkpoint folder is exported to a cache first.
    """
    import secrets

    from onebit.cli.model_path import resolve_model
    from onebit.engine import Model

    model_name, prompt = _model_and_prompt(model, prompt, model_dir)
    text = sys.stdin.read() if prompt == "-" else (prompt or "")
    seed = secrets.randbits(32) if seed is None else seed
    path = resolve_model(model_name)
    loaded = Model(path, threads=threads, isa=isa)
    sampling = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    pieces = loaded.generate(text, stop=stop or [], **sampling)
    if not json:
        _write(text)
    continuation, speed = _run(loaded, text, pieces, quiet=json)
    if json:
        from json import dumps

        record = {"model": str(path), "prompt": text, "text": continuation, "sampling": sampling, **vars(speed)}
        typer.echo(dumps(record, indent=2, ensure_ascii=False))
    else:
        _write("\n")
    if stats:
        typer.echo(
            f"{speed.prompt_tokens} prompt tokens, first piece after {speed.first_s:.2f} s; "
            f"{speed.new_tokens} new ones at {speed.tokens_per_s:.1f} tokens/s; seed {seed}",
            err=True,
        )


def _model_and_prompt(model: str | None, prompt: str | None, model_dir: Path | None) -> tuple[str | None, str | None]:
    """One argument alone is a model, unless it can only be a prompt: `-`, or words where no such file is."""
    if model_dir is not None:
        return str(model_dir), prompt if model is None else model
    if model is not None and prompt is None and (model == "-" or (" " in model and not Path(model).exists())):
        return None, model
    return model, prompt


@dataclass(frozen=True)
class _Speed:
    prompt_tokens: int
    new_tokens: int
    first_s: float
    seconds: float
    tokens_per_s: float


def _run(loaded: Model, prompt: str, pieces: Iterable[str], *, quiet: bool) -> tuple[str, _Speed]:
    """Stream the pieces to stdout (unless quiet) and time them."""
    started = time.perf_counter()
    first: float | None = None
    parts: list[str] = []
    for piece in pieces:
        first = first or time.perf_counter()
        parts.append(piece)
        if not quiet:
            _write(piece)
    ended = time.perf_counter()
    text = "".join(parts)
    tokens = _count(loaded, prompt), _count(loaded, text)
    decoding = ended - (first or started)
    rate = (tokens[1] - 1) / decoding if tokens[1] > 1 and decoding > 0 else 0.0
    return text, _Speed(*tokens, (first or ended) - started, ended - started, round(rate, 2))


def _count(loaded: Model, text: str) -> int:
    tokenizer: Any = loaded.tokenizer
    return len(tokenizer.encode(text, add_special_tokens=False).ids) if tokenizer is not None else 0


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
