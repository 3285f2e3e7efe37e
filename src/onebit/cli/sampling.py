"""The sampling flags that generate and chat share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

__all__ = [
    "ContextShift",
    "Draft",
    "Isa",
    "Kv",
    "Lookup",
    "MaxNewTokens",
    "MinP",
    "ModelDir",
    "RepetitionPenalty",
    "Seed",
    "SpeculateTokens",
    "Stop",
    "Temperature",
    "Threads",
    "TopK",
    "TopP",
]

_SAMPLING, _ENGINE = "Sampling", "Engine"

MaxNewTokens: TypeAlias = Annotated[
    int, typer.Option("--max-new-tokens", min=1, help="Stop after this many tokens.", rich_help_panel=_SAMPLING)
]
Temperature: TypeAlias = Annotated[
    float,
    typer.Option("--temperature", min=0.0, help="0: always the most likely token.", rich_help_panel=_SAMPLING),
]
TopK: TypeAlias = Annotated[
    int, typer.Option("--top-k", min=0, help="Choose among the k most likely; 0: all.", rich_help_panel=_SAMPLING)
]
TopP: TypeAlias = Annotated[
    float,
    typer.Option(
        "--top-p",
        min=0.0,
        max=1.0,
        help="Choose among the likeliest with this mass; 1: all.",
        rich_help_panel=_SAMPLING,
    ),
]
MinP: TypeAlias = Annotated[
    float,
    typer.Option(
        "--min-p",
        min=0.0,
        max=1.0,
        help="Drop tokens below this share of the best one's probability.",
        rich_help_panel=_SAMPLING,
    ),
]
RepetitionPenalty: TypeAlias = Annotated[
    float,
    typer.Option(
        "--repetition-penalty", min=0.0, help="Above 1: recent tokens less likely.", rich_help_panel=_SAMPLING
    ),
]
Seed: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--seed",
        min=0,
        help="The same seed gives the same text; drawn when not given.",
        rich_help_panel=_SAMPLING,
    ),
]
Stop: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--stop", help="End before this text; may be given several times.", rich_help_panel=_SAMPLING),
]
Threads: TypeAlias = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Threads; all cores when not given.", rich_help_panel=_ENGINE),
]
Isa: TypeAlias = Annotated[
    str | None,
    typer.Option("--isa", help="Kernels to use (scalar, avx2, ...); the best when not given.", rich_help_panel=_ENGINE),
]
ModelDir: TypeAlias = Annotated[Path | None, typer.Option("--model-dir", help="The same as MODEL, under its old name.")]
Draft: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--draft",
        help="A smaller model of the same tokenizer that proposes tokens; the text stays what MODEL would write.",
        rich_help_panel=_ENGINE,
    ),
]
Lookup: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--lookup",
        help="Propose what followed earlier in the text: for edits and quotations. The text stays the same.",
        rich_help_panel=_ENGINE,
    ),
]
SpeculateTokens: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--speculate-tokens",
        min=1,
        max=31,
        help="Propose at most this many tokens at once [default: 15].",
        rich_help_panel=_ENGINE,
    ),
]
Kv: TypeAlias = Annotated[
    str,
    typer.Option(
        "--kv",
        metavar="TYPE",
        help="How keys and values are kept: float16 (the default), float32, or int8, which takes the least memory.",
        rich_help_panel=_ENGINE,
    ),
]
ContextShift: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--context-shift",
        metavar="N",
        min=0,
        help="When the context is full, keep its first N tokens and the newer half of the rest, and go on.",
        rich_help_panel=_ENGINE,
    ),
]
