"""`onebit data`: fetch a known corpus, show what a source holds, or turn it into token blocks ahead of training."""

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
        Path | None,
        typer.Option(
            "--output", "--output-dir", help="Folder for a fetched corpus or the blocks [default: data/NAME]."
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Make blocks with this tokenizer; train finds them by --cache-dir OUTPUT.")
    ] = None,
    max_seq_len: Annotated[int, typer.Option(min=2, help="Tokens in a block: the model's max_seq_len.")] = 512,
    val_data: Annotated[str | None, typer.Option(help="Validation text, as for train.")] = None,
    val_fraction: Annotated[float, typer.Option(help="Share held out, as for train.")] = 0.05,
    text_column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Fetch WikiText by name into train.txt, valid.txt and test.txt, or count the text of any source, or tokenise it.

    With --tokenizer the text is turned into the blocks that `onebit train --cache-dir OUTPUT` would make itself.
    """
    from onebit.data.wikitext import CORPORA, download_wikitext

    if name in CORPORA:
        folder = output if output is not None else Path("data") / name
        if not json:
            typer.echo(f"fetching {name} into {folder}")
        sizes = {path.name: path.stat().st_size for path in download_wikitext(name, folder)}
        figures: dict[str, object] = {"folder": str(folder), "bytes": sizes}
        text = "\n".join(f"  {file}: {size / 1e6:.2f} MB" for file, size in sizes.items())
        text += f"\ntrain on it with --data {folder}"
    elif tokenizer is not None:
        from onebit.data.prepare import open_split, prepare
        from onebit.data.tokenizer import load_tokenizer

        folder = output if output is not None else Path("data") / "blocks"
        split = open_split(name, val_data=val_data, val_fraction=val_fraction, text_column=text_column)
        made = prepare(
            split,
            load_tokenizer(tokenizer),
            block_size=max_seq_len,
            cache=folder,
            say=lambda line: None if json else typer.echo(line),
        )
        figures = {"folder": str(folder), "fingerprint": made.fingerprint}
        text = f"blocks are in {folder}; train with --cache-dir {folder} --tokenizer {tokenizer}"
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
