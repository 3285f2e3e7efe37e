"""Text sources as one stream of pieces: `stdlib`, a file, a folder of .txt/.jsonl/.parquet, a Hugging Face data set.

A piece is what is tokenised at once and what the held-out split moves as a whole: a row of a table, a file, or about a
mebibyte of a long text file. Nothing is held in memory but the piece at hand, and reading twice gives the same pieces.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from onebit.data.hub import load_hub_dataset
from onebit.data.stdlib_corpus import stdlib_files
from onebit.errors import DataError, MissingExtraError

__all__ = ["Piece", "TextSource", "hold_out", "open_source"]

PIECE_CHARACTERS = 1 << 20
SUFFIXES = (".txt", ".jsonl", ".parquet")
# Fewer pieces than this make a split by hash too coarse: the end of each piece is held out instead.
MIN_PIECES_FOR_HASH_SPLIT = 20
_HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?(:[\w.-]+)?$")
_VALIDATION_NAME = re.compile(r"^(val|valid|validation|dev)\b|^(val|valid|validation|dev)[-_.]", re.IGNORECASE)
_TEST_NAME = re.compile(r"^test([-_.]|$)", re.IGNORECASE)
_TRAIN_NAME = re.compile(r"^train([-_.]|$)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some text; `ends_document` is False when the next piece continues the same document."""

    name: str
    text: str
    ends_document: bool = True


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """Text that can be read again and again; `fingerprint` changes when the text does."""

    description: str
    fingerprint: str
    pieces: Callable[[], Iterator[Piece]]
    validation: TextSource | None = None


def open_source(data: str, *, text_column: str = "text", streaming: bool = False) -> TextSource:
    """Open the text that `--data` names: `stdlib`, a path, or `name[:config]` of a Hugging Face data set.

    A folder with files named train.* and valid.* (or validation, val, dev) brings its own validation text; test.* is
    then left alone. With `streaming` the fingerprint comes from names and sizes, not from the content.

    Raises:
        DataError: nothing there, nothing readable in it, or no such column.
    """
    if data == "stdlib":
        return _from_files("stdlib", stdlib_files(), text_column, by_content=not streaming)
    path = Path(data).expanduser()
    if path.is_file():
        return _from_files(str(path), [(path.name, path)], text_column, by_content=not streaming)
    if path.is_dir():
        return _from_folder(path, text_column, by_content=not streaming)
    if _HUB_NAME.match(data) and not data.endswith(SUFFIXES):
        return _from_hub(data, text_column, streaming=streaming)
    raise DataError(f"no file or folder '{data}'; give a path, 'stdlib' or a Hugging Face data set name")


def hold_out(source: TextSource, fraction: float) -> tuple[TextSource, TextSource | None]:
    """Split a source into (train, validation); validation is None when `fraction` is 0.

    A piece is held out when the hash of its name falls below the fraction: the same piece on every machine. Sources of
    fewer than 20 pieces give the last `fraction` of every piece instead, cut at a line end.

    Raises:
        DataError: `fraction` is not in [0, 0.5].
    """
    if not 0.0 <= fraction <= 0.5:
        raise DataError(f"--val-fraction is {fraction}; it must lie between 0 and 0.5")
    if fraction == 0.0:
        return source, None
    many = sum(1 for _ in islice(source.pieces(), MIN_PIECES_FOR_HASH_SPLIT)) == MIN_PIECES_FOR_HASH_SPLIT
    select = _select_by_hash if many else _select_tail

    def part(held_out: bool) -> TextSource:
        tag = f"{source.fingerprint}:{'held' if held_out else 'kept'}:{fraction!r}"
        return TextSource(
            description=f"{source.description} ({fraction:.3g} held out)" if held_out else source.description,
            fingerprint=hashlib.blake2b(tag.encode(), digest_size=16).hexdigest(),
            pieces=lambda: select(source.pieces(), fraction, held_out),
        )

    return part(False), part(True)


def name_hash(name: str) -> float:
    """Map a piece's name onto [0, 1), the same on every machine."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big") / 2.0**56


def _select_by_hash(pieces: Iterator[Piece], fraction: float, held_out: bool) -> Iterator[Piece]:
    return (piece for piece in pieces if (name_hash(piece.name) < fraction) == held_out)


def _select_tail(pieces: Iterator[Piece], fraction: float, held_out: bool) -> Iterator[Piece]:
    for piece in pieces:
        target = int(len(piece.text) * (1.0 - fraction))
        cut = piece.text.rfind("\n", 0, target) + 1 or target
        text = piece.text[cut:] if held_out else piece.text[:cut]
        if text:
            yield Piece(name=piece.name, text=text, ends_document=piece.ends_document)


def _from_folder(folder: Path, text_column: str, *, by_content: bool) -> TextSource:
    files = [(str(p.relative_to(folder)), p) for p in sorted(folder.rglob("*")) if p.suffix in SUFFIXES]
    if not files:
        raise DataError(f"the folder '{folder}' holds no {', '.join(SUFFIXES)} file")
    train = [f for f in files if _TRAIN_NAME.match(f[1].name)]
    validation = [f for f in files if _VALIDATION_NAME.match(f[1].name)]
    if train and validation:
        held = _from_files(f"{folder} (validation files)", validation, text_column, by_content=by_content)
        kept = _from_files(f"{folder} (train files)", train, text_column, by_content=by_content)
        return TextSource(
            description=kept.description, fingerprint=kept.fingerprint, pieces=kept.pieces, validation=held
        )
    if train and any(_TEST_NAME.match(p.name) for _, p in files):
        files = train
    return _from_files(str(folder), files, text_column, by_content=by_content)


def _from_files(description: str, files: list[tuple[str, Path]], text_column: str, *, by_content: bool) -> TextSource:
    digest = hashlib.blake2b(text_column.encode(), digest_size=16)
    for name, path in files:
        digest.update(name.encode())
        try:
            if by_content:
                with path.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "blake2b").digest())
            else:
                digest.update(str(path.stat().st_size).encode())
        except OSError as error:
            raise DataError(f"cannot read '{path}': {error.strerror}") from None

    def pieces() -> Iterator[Piece]:
        for name, path in files:
            yield from _read_file(name, path, text_column)

    return TextSource(description=description, fingerprint=digest.hexdigest(), pieces=pieces)


def _read_file(name: str, path: Path, text_column: str) -> Iterator[Piece]:
    try:
        if path.suffix == ".parquet":
            yield from _read_parquet(name, path, text_column)
            return
        # newline="" keeps the file's own line ends: what is trained on is what is in the file.
        with path.open(encoding="utf-8", newline="") as stream:
            read = _read_jsonl if path.suffix == ".jsonl" else _read_text
            yield from read(name, stream, text_column)
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8 text: {error.reason} at byte {error.start}") from None


def _read_text(name: str, stream: IO[str], text_column: str) -> Iterator[Piece]:
    """Yield a text file whole, or in pieces of about a mebibyte that end at a line end."""
    index = 0
    text = stream.read(PIECE_CHARACTERS)
    while text:
        if not text.endswith("\n"):
            text += stream.readline(PIECE_CHARACTERS)
        following = stream.read(PIECE_CHARACTERS)
        yield Piece(name=name if index == 0 else f"{name}#{index}", text=text, ends_document=not following)
        text = following
        index += 1


def _read_jsonl(name: str, stream: IO[str], text_column: str) -> Iterator[Piece]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{name}, line {number}: not JSON ({error.msg})") from None
        text = row if isinstance(row, str) else _text_of(row, text_column, f"{name}, line {number}")
        if text:
            yield Piece(name=f"{name}#{number}", text=text)


def _read_parquet(name: str, path: Path, text_column: str) -> Iterator[Piece]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtraError("train", "reading .parquet") from None
    try:
        table = pq.ParquetFile(path)
        if text_column not in table.schema_arrow.names:
            raise DataError(_no_column(name, text_column, table.schema_arrow.names))
        number = 0
        for batch in table.iter_batches(batch_size=1024, columns=[text_column]):
            for text in batch.column(0).to_pylist():
                number += 1
                if text:
                    yield Piece(name=f"{name}#{number}", text=str(text))
    except pa.ArrowException as error:
        raise DataError(f"cannot read '{path}' as parquet: {str(error).splitlines()[0]}") from None


def _from_hub(data: str, text_column: str, *, streaming: bool) -> TextSource:
    name, _, config = data.partition(":")
    try:
        splits = load_hub_dataset(name, config or None, streaming=streaming)
    except DataError as error:
        raise DataError(
            f"'{data}' is no file or folder here, and as a Hugging Face data set it cannot be had: {error}"
        ) from None
    if "train" not in splits:
        raise DataError(f"the data set '{data}' has no split 'train', only {', '.join(splits)}")

    def source(split: str, validation: TextSource | None = None) -> TextSource:
        table = splits[split]
        if table.column_names is not None and text_column not in table.column_names:
            raise DataError(_no_column(f"{data} ({split})", text_column, table.column_names))

        def pieces() -> Iterator[Piece]:
            for number, row in enumerate(table):
                text = _text_of(row, text_column, f"{data}, row {number}")
                if text:
                    yield Piece(name=f"{split}#{number}", text=text)

        mark = f"{data}:{split}" if streaming else table._fingerprint
        return TextSource(
            description=f"{data} ({split})", fingerprint=f"{mark}:{text_column}", pieces=pieces, validation=validation
        )

    return source("train", source("validation") if "validation" in splits else None)


def _text_of(row: Any, text_column: str, where: str) -> str:
    if not isinstance(row, dict) or text_column not in row:
        raise DataError(_no_column(where, text_column, list(row) if isinstance(row, dict) else []))
    text = row[text_column]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise DataError(f"{where}: column '{text_column}' holds {type(text).__name__}, text was expected")
    return text


def _no_column(where: str, text_column: str, columns: list[str]) -> str:
    have = ", ".join(columns) if columns else "no columns"
    return f"{where}: no column '{text_column}' (it has {have}); name the right one with --text-column"
