"""`onebit generate`: continue a prompt, streamed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onebit.cli.sampling import (
    ContextShift,
    Draft,
    Isa,
    Kv,
    Lookup,
    MaxNewTokens,
    MinP,
    ModelDir,
    RepetitionPenalty,
    Seed,
    SpeculateTokens,
    Stop,
    Temperature,
    Threads,
    TopK,
    TopP,
)
from onebit.errors import ConfigError

if TYPE_CHECKING:
    from onebit.engine import Stats

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
    draft: Draft = None,
    lookup: Lookup = False,
    speculate_tokens: SpeculateTokens = None,
    context_shift: ContextShift = None,
    kv: Kv = "default",
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
    pieces = loaded.generate(
        text,
        stop=stop or [],
        draft=Model(resolve_model(draft), threads=threads, isa=isa) if draft else None,
        lookup=lookup,
        speculate_tokens=speculate_tokens,
        context_shift=context_shift,
        session=None if kv == "default" else loaded.session(kv=kv),
        **sampling,
    )
    if json:
        _print_json(path, text, "".join(pieces), sampling, pieces.stats)
        return
    _write(text)
    for piece in pieces:
        _write(piece)
    _write("\n")
    if stats:
        figures = pieces.stats
        typer.echo(
            f"{figures.prompt_tokens} prompt tokens in {figures.prefill_seconds:.2f} s, "
            f"{figures.new_tokens} new ones at {figures.decode_speed:.1f} tokens/s, "
            f"ended by {figures.stopped_by}, seed {seed}",
            err=True,
        )
        if figures.passes:
            typer.echo(
                f"{figures.passes} passes; {figures.accepted} of {figures.proposed} proposed tokens accepted, "
                f"{figures.drafted} passes of the draft",
                err=True,
            )


def _model_and_prompt(model: str | None, prompt: str | None, model_dir: Path | None) -> tuple[str | None, str | None]:
    """One argument alone is a model, unless it can only be a prompt: `-`, or words where no such file is."""
    if model_dir is not None:
        if prompt is not None:
            raise ConfigError(f"--model-dir and MODEL ('{model}') both name a model; drop one of them")
        return str(model_dir), model
    if model is not None and prompt is None and (model == "-" or (" " in model and not Path(model).exists())):
        return None, model
    return model, prompt


def _print_json(path: Path, prompt: str, text: str, sampling: dict[str, Any], stats: Stats) -> None:
    from dataclasses import asdict
    from json import dumps

    figures = {**asdict(stats), "prefill_speed": stats.prefill_speed, "decode_speed": stats.decode_speed}
    figures["acceptance"] = stats.acceptance
    record = {"model": str(path), "prompt": prompt, "text": text, "sampling": sampling, "stats": figures}
    typer.echo(dumps(record, indent=2, ensure_ascii=False))


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
