"""`onebit data`: fetch a known corpus, or show what a source holds."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["data"]


def data(
    name: Annotated[
        str, typer.Argument(help="wikitext-2 or wikitext-103: fetch it. Anything --data takes: say what is in it.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "--output-dir", help="Folder for a fetched corpus [default: data/NAME].")
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Fetch WikiText by name into train.txt, valid.txt and test.txt, or count the text of any source."""
    from onebit.data.wikitext import CORPORA, download_wikitext

    if name in CORPORA:
        folder = output if output is not None else Path("data") / name
        if not json:
            typer.echo(f"fetching {name} into {folder}")
        sizes = {path.name: path.stat().st_size for path in download_wikitext(name, folder)}
        figures: dict[str, object] = {"folder": str(folder), "bytes": sizes}
        text = "\n".join(f"  {file}: {size / 1e6:.2f} MB" for file, size in sizes.items())
        text += f"\ntrain on it with --data {folder}"
    else:
        from onebit.data.documents import open_source

        source = open_source(name, text_column=text_column)
        documents = size = 0
        for piece in source.pieces():
            documents += piece.ends_document
            size += len(piece.text.encode())
        figures = {"source": name, "documents": documents, "bytes": size, "fingerprint": source.fingerprint}
        text = f"{source.description}: {documents} documents, {size / 1e6:.2f} MB, fingerprint {source.fingerprint}"
    typer.echo(json_module.dumps(figures) if json else text)
