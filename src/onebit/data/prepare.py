"""From the names a user gives to what a training run reads: tokenizer, training blocks, validation blocks.

Everything made is kept under a cache folder, in names that hold the hash of all it depends on: the text, the tokenizer,
the block length, the held-out share. A second run with the same text starts at once; a changed text never meets old
blocks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onebit.data.blocks import PackedBlocks, write_blocks
from onebit.data.documents import Piece, TextSource, hold_out, open_source
from onebit.data.stream import BlockStream
from onebit.data.tokenizer import TextTokenizer, load_tokenizer, train_tokenizer
from onebit.errors import DataError

__all__ = ["PreparedData", "TextSplit", "blocks_from", "open_split", "prepare", "tokenizer_for"]

# Bytes of text that a tokenizer is trained on at most: more hardly changes the merges and costs minutes.
TOKENIZER_CHARACTERS = 50_000_000


@dataclass(frozen=True, kw_only=True)
class TextSplit:
    """Training text and, where there is any, validation text."""

    train: TextSource
    validation: TextSource | None

    @property
    def fingerprint(self) -> str:
        """Hash of both texts."""
        held = self.validation.fingerprint if self.validation else ""
        return hashlib.sha256(f"{self.train.fingerprint}|{held}".encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """What a run reads; `train` is map-style, or a stream with `--streaming`."""

    tokenizer: TextTokenizer
    train: PackedBlocks | BlockStream
    validation: PackedBlocks | None
    fingerprint: str


def open_split(
    data: str,
    *,
    val_data: str | None = None,
    val_fraction: float = 0.05,
    text_column: str = "text",
    streaming: bool = False,
) -> TextSplit:
    """Open training and validation text: `val_data`, else what the source brings, else a held-out share.

    A stream brings no held-out share (it would have to be read twice): then there is no validation text.
    """
    source = open_source(data, text_column=text_column, streaming=streaming)
    if val_data is not None:
        held = open_source(val_data, text_column=text_column)
        return TextSplit(train=source, validation=held.validation or held)
    if source.validation is not None or streaming:
        return TextSplit(train=source, validation=source.validation)
    train, validation = hold_out(source, val_fraction)
    return TextSplit(train=train, validation=validation)


def tokenizer_for(source: TextSource, vocab_size: int, cache: Path, say: Callable[[str], None]) -> TextTokenizer:
    """Train a tokenizer on a source, or take the one that was trained on it before."""
    key = hashlib.sha256(f"bpe1|{source.fingerprint}|{vocab_size}|{TOKENIZER_CHARACTERS}".encode()).hexdigest()[:16]
    folder = cache / f"tokenizer-{key}"
    if (folder / "tokenizer_config.json").is_file():
        return load_tokenizer(folder)
    say(f"training a byte-level BPE of {vocab_size} tokens on {source.description}")
    reader = _Limited(source, TOKENIZER_CHARACTERS)
    tokenizer = train_tokenizer(reader, vocab_size)
    if not reader.characters:
        raise DataError(f"{source.description} holds no text to train a tokenizer on")
    tokenizer.save(folder)
    return tokenizer


def blocks_from(
    source: TextSource,
    tokenizer: TextTokenizer,
    block_size: int,
    cache: Path,
    say: Callable[[str], None] = lambda line: None,
) -> PackedBlocks:
    """Tokenise and pack a source, or open the blocks that were made from it before.

    Raises:
        DataError: the source holds no text.
    """
    parts = f"blocks1|{source.fingerprint}|{tokenizer.sha256}|{block_size}"
    key = hashlib.sha256(parts.encode()).hexdigest()[:16]
    folder = cache / f"blocks-{key}"
    if not folder.is_dir():
        say(f"tokenising {source.description}")
    try:
        return write_blocks(folder, source.pieces(), tokenizer, block_size)
    except OSError as error:
        raise DataError(f"cannot write the token cache '{cache}': {error.strerror or error}") from None


def prepare(
    split: TextSplit,
    tokenizer: TextTokenizer,
    *,
    block_size: int,
    cache: Path,
    streaming: bool = False,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> PreparedData:
    """Make everything a run reads; says in a line what it made and how large it is.

    Raises:
        DataError: no training text, or validation text was asked for and is empty.
    """
    train: PackedBlocks | BlockStream
    if streaming:
        first = next(iter(split.train.pieces()), None)
        if first is None:
            raise DataError(f"{split.train.description} holds no text")
        train = BlockStream(split.train, tokenizer, block_size, seed=seed)
        say(f"streaming {split.train.description}, {block_size} tokens a block")
    else:
        train = blocks_from(split.train, tokenizer, block_size, cache, say)
        say(_size_line("training", train))
    validation = None
    if split.validation is not None:
        validation = blocks_from(split.validation, tokenizer, block_size, cache)
        say(_size_line("validation", validation))
    parts = f"{split.fingerprint}|{tokenizer.sha256}|{block_size}|{streaming}"
    return PreparedData(
        tokenizer=tokenizer,
        train=train,
        validation=validation,
        fingerprint=hashlib.sha256(parts.encode()).hexdigest(),
    )


def _size_line(what: str, blocks: PackedBlocks) -> str:
    counts = blocks.counts
    return (
        f"{what} text: {counts.bytes / 1e6:.2f} MB, {counts.documents} documents, {counts.tokens} tokens "
        f"in {counts.blocks} blocks of {blocks.block_size}"
    )


class _Limited:
    """The texts of a source up to a number of characters; `characters` counts what was read."""

    def __init__(self, source: TextSource, limit: int) -> None:
        self._pieces = source.pieces()
        self._limit = limit
        self.characters = 0

    def __iter__(self) -> _Limited:
        return self

    def __next__(self) -> str:
        if self.characters >= self._limit:
            raise StopIteration
        piece: Piece = next(self._pieces)
        self.characters += len(piece.text)
        return piece.text
