"""`onebit tokenizer train`: a byte-level BPE for your text."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["tokenizer"]


class Action(StrEnum):
    """What `onebit tokenizer` can do."""

    train = "train"


def tokenizer(
    action: Annotated[Action, typer.Argument(help="train: make a tokenizer from text.")],
    data: Annotated[
        str, typer.Option("--data", "--data-dir", help="stdlib, a file, a folder, or a Hugging Face data set name.")
    ],
    output: Annotated[Path, typer.Option(help="The tokenizer.json to write.")] = Path("tokenizer.json"),
    vocab_size: Annotated[int, typer.Option(help="Tokens at most; at least 257.")] = 8192,
    text_column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
) -> None:
    """Train a byte-level BPE tokenizer and write it as one tokenizer.json."""
    from onebit.data import open_source, train_tokenizer
    from onebit.errors import ConfigError, DataError
    from onebit.formats.atomic import replacing

    if output.is_dir():
        raise ConfigError(f"--output {output} is a folder; give the name of a file: {output / 'tokenizer.json'}")
    source = open_source(data, text_column=text_column)
    characters = 0

    def texts() -> Iterator[str]:
        nonlocal characters
        for piece in source.pieces():
            characters += len(piece.text)
            yield piece.text

    typer.echo(f"training on {source.description}")
    made = train_tokenizer(texts(), vocab_size)
    if not characters:
        raise DataError(f"{source.description} holds no text")
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as file:
        file.write(made.json.encode())
    typer.echo(f"{output}: {made.vocab_size} tokens from {characters} characters")
