"""Tokens packed into blocks of one length, kept in a memory-mapped file.

B blocks of L tokens, int32. Documents follow each other with an end-of-text token between them and are cut wherever a
block ends, so that every token of the corpus is in exactly one block. Only the last block may be short; its rest is
PADDING, which becomes end-of-text in the input and is ignored in the labels.

The file is Arrow, read by `datasets`; where that is not installed (a plain source tree), a .npy file of the same blocks
takes its place. Either is built beside and renamed, so a half-written one is never read.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from onebit.data.documents import Piece
from onebit.data.tokenizer import TextTokenizer
from onebit.errors import DataError

__all__ = ["PADDING", "BlockCounts", "PackedBlocks", "collate", "encode", "pack", "write_blocks"]

PADDING = -1
IGNORED_LABEL = -100  # torch.nn.functional.cross_entropy's ignore_index
_ENCODE_CHARACTERS = 4 << 20
_ROWS_PER_BATCH = 1024

Tokens = npt.NDArray[np.int32]


@dataclass(kw_only=True)
class BlockCounts:
    """What went into a file of blocks: `tokens` counts the end-of-text tokens too, `bytes` is UTF-8 text alone."""

    blocks: int = 0
    tokens: int = 0
    bytes: int = 0
    documents: int = 0

    @property
    def tokens_per_byte(self) -> float:
        """Turns a loss per token into a loss per byte."""
        return self.tokens / max(self.bytes, 1)


def encode(pieces: Iterable[Piece], tokenizer: TextTokenizer, counts: BlockCounts) -> Iterator[Tokens]:
    """Yield the tokens of each piece, with end-of-text after the last piece of a document; adds to `counts`."""
    for batch in _batches(pieces):
        encodings = tokenizer.tokenizer.encode_batch_fast([piece.text for piece in batch], add_special_tokens=False)
        for piece, encoding in zip(batch, encodings, strict=True):
            ids = np.asarray(encoding.ids, dtype=np.int32)
            if piece.ends_document:
                ids = np.append(ids, np.int32(tokenizer.eos_token_id))
                counts.documents += 1
            counts.tokens += len(ids)
            counts.bytes += len(piece.text.encode())
            yield ids


def pack(tokens: Iterable[Tokens], block_size: int) -> Iterator[Tokens]:
    """Cut a stream of token arrays into arrays [b, block_size]; the very last block is filled up with PADDING."""
    waiting: list[Tokens] = []
    length = 0
    for ids in tokens:
        waiting.append(ids)
        length += len(ids)
        if length >= block_size * 64:
            flat = np.concatenate(waiting)
            whole = length - length % block_size
            yield flat[:whole].reshape(-1, block_size)
            waiting, length = [flat[whole:]], length - whole
    if length:
        flat = np.concatenate(waiting)
        rows = -(-length // block_size)
        padded = np.full(rows * block_size, PADDING, dtype=np.int32)
        padded[:length] = flat
        yield padded.reshape(rows, block_size)


def write_blocks(folder: Path, pieces: Iterable[Piece], tokenizer: TextTokenizer, block_size: int) -> PackedBlocks:
    """Tokenise, pack and write a folder of blocks; an existing folder is opened instead, whatever `pieces` holds.

    The caller names the folder after everything the blocks depend on.

    Raises:
        DataError: there is no text at all.
    """
    if not folder.is_dir():
        staging = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        counts = BlockCounts()
        blocks = pack(encode(pieces, tokenizer, counts), block_size)
        if importlib.util.find_spec("datasets") is not None:
            counts.blocks = _write_arrow(staging / "blocks.arrow", blocks, block_size)
        else:
            counts.blocks = _write_npy(staging / "blocks.npy", blocks, block_size)
        if counts.bytes == 0:
            shutil.rmtree(staging)
            raise DataError("the text is empty: nothing to make blocks from; give --data a source that holds text")
        about = {"counts": asdict(counts), "block_size": block_size, "tokenizer_sha256": tokenizer.sha256}
        (staging / "blocks.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        _settle(staging, folder)
    return PackedBlocks(folder, pad_token_id=tokenizer.eos_token_id)


class PackedBlocks(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """The blocks of a folder, memory-mapped; item i is {"input_ids" [L], "labels" [L]}, int64."""

    def __init__(self, folder: Path, *, pad_token_id: int) -> None:
        about = json.loads((folder / "blocks.json").read_text(encoding="utf-8"))
        self.counts = BlockCounts(**about["counts"])
        self.block_size = int(about["block_size"])
        self.pad_token_id = pad_token_id
        self._rows = _open_rows(folder)

    def __len__(self) -> int:
        return self.counts.blocks

    def tokens(self, indices: list[int]) -> Tokens:
        """Blocks as stored, [len(indices), L] int32, PADDING included."""
        rows: Tokens = np.asarray(self._rows(indices), dtype=np.int32)
        return rows

    def __getitems__(self, indices: list[int]) -> list[dict[str, torch.Tensor]]:
        return [as_example(row_L, self.pad_token_id) for row_L in self.tokens(indices)]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([index])[0]


def as_example(row_L: Tokens, pad_token_id: int) -> dict[str, torch.Tensor]:
    """Turn a stored block into model input: PADDING becomes `pad_token_id` and an ignored label."""
    ids_L = torch.from_numpy(row_L.astype(np.int64))
    if row_L[-1] != PADDING:
        return {"input_ids": ids_L, "labels": ids_L}
    padding_L = ids_L == PADDING
    return {
        "input_ids": ids_L.masked_fill(padding_L, pad_token_id),
        "labels": ids_L.masked_fill(padding_L, IGNORED_LABEL),
    }


def collate(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Stack examples into {"input_ids" [B, L], "labels" [B, L]}."""
    return {key: torch.stack([example[key] for example in examples]) for key in examples[0]}


def _settle(staging: Path, folder: Path) -> None:
    """Rename a finished folder to its name; when another process was faster, its folder holds the same blocks."""
    try:
        staging.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(staging)


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Group pieces so that the tokenizer's threads have work and memory stays small."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= _ENCODE_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write_arrow(file: Path, blocks: Iterable[Tokens], block_size: int) -> int:
    import pyarrow as pa

    schema = pa.schema([("tokens", pa.list_(pa.int32(), block_size))])
    rows = 0
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for block_BL in blocks:
            column = pa.FixedSizeListArray.from_arrays(pa.array(block_BL.reshape(-1)), block_size)
            writer.write_table(pa.table([column], schema=schema), max_chunksize=_ROWS_PER_BATCH)
            rows += len(block_BL)
    return rows


def _write_npy(file: Path, blocks: Iterable[Tokens], block_size: int) -> int:
    # The number of rows is known only at the end: the raw rows go first, the header is put before them by a copy.
    raw = file.with_suffix(".raw")
    rows = 0
    with raw.open("wb") as stream:
        for block_BL in blocks:
            stream.write(np.ascontiguousarray(block_BL).tobytes())
            rows += len(block_BL)
    if rows:
        target = np.lib.format.open_memmap(file, mode="w+", dtype=np.int32, shape=(rows, block_size))
        target[:] = np.memmap(raw, dtype=np.int32, mode="r", shape=(rows, block_size))
        target.flush()
    raw.unlink()
    return rows


def _open_rows(folder: Path) -> Any:
    """Return a function from a list of row numbers to an array [n, L]."""
    npy = folder / "blocks.npy"
    if npy.is_file():
        rows_BL = np.load(npy, mmap_mode="r")
        return lambda indices: rows_BL[indices]
    from datasets import Dataset

    table = Dataset.from_file(str(folder / "blocks.arrow")).with_format("numpy")
    return lambda indices: table[indices]["tokens"]
