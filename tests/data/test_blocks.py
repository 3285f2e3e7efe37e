"""Packing: every token of the text is in exactly one block, and the memory-mapped file gives back what went in."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onebit.data import RunSampler, blocks, train_tokenizer
from onebit.data.blocks import PADDING, BlockCounts, collate, encode, pack, write_blocks
from onebit.data.documents import Piece, TextSource, open_source
from onebit.data.prepare import blocks_from, open_split, prepare, tokenizer_for
from onebit.data.stream import BlockStream, shuffled
from onebit.data.tokenizer import TextTokenizer
from onebit.errors import DataError


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_tokenizer(["def f(x):\n    return x + 1\n" * 50, "größer als null 你好\n" * 20], 300)


def pieces_of(*texts: str) -> list[Piece]:
    return [Piece(name=str(i), text=text) for i, text in enumerate(texts)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 700), max_size=12), st.integers(1, 9))
def test_pack_keeps_every_token_once_and_in_order(lengths: list[int], block_size: int) -> None:
    start = np.cumsum([0, *lengths])
    arrays = [np.arange(a, a + n, dtype=np.int32) for a, n in zip(start, lengths, strict=False)]
    packed = list(pack(arrays, block_size))
    flat = np.concatenate([block.reshape(-1) for block in packed]) if packed else np.empty(0, np.int32)
    assert np.array_equal(flat[flat != PADDING], np.arange(sum(lengths)))
    assert (flat == PADDING).sum() < block_size  # only the tail of the last block
    assert all(block.shape[1] == block_size for block in packed)


@pytest.mark.parametrize("form", ["arrow", "npy"])
def test_the_file_holds_the_tokens_of_every_document(
    tmp_path: Path, tokenizer: TextTokenizer, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "npy":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    elif importlib.util.find_spec("datasets") is None:
        pytest.skip("datasets is not installed")
    texts = ["def f(x):\n", "größer 你好", "    return x + 1\n" * 30]
    written = write_blocks(tmp_path / "b", pieces_of(*texts), tokenizer, 16)
    expected: list[int] = []
    for text in texts:
        expected += [*tokenizer.tokenizer.encode(text).ids, tokenizer.eos_token_id]
    stored = written.tokens(list(range(len(written)))).reshape(-1)
    assert stored[stored != PADDING].tolist() == expected
    assert written.counts == BlockCounts(
        blocks=-(-len(expected) // 16), tokens=len(expected), bytes=sum(len(t.encode()) for t in texts), documents=3
    )
    assert (tmp_path / "b" / f"blocks.{form}").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["b"]  # nothing half-made beside it


def test_a_document_in_pieces_gets_one_end(tokenizer: TextTokenizer) -> None:
    pieces = [Piece(name="a", text="x\n", ends_document=False), Piece(name="a#1", text="y\n")]
    ids = np.concatenate(list(encode(pieces, tokenizer, BlockCounts())))
    assert (ids == tokenizer.eos_token_id).sum() == 1
    assert ids[-1] == tokenizer.eos_token_id


def test_padding_is_ignored_in_the_labels(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    written = write_blocks(tmp_path / "b", pieces_of("x" * 40), tokenizer, 64)
    batch = collate(written.__getitems__([0, len(written) - 1]))
    assert batch["input_ids"].dtype == torch.int64
    last = batch["labels"][1]
    padded = written.tokens([len(written) - 1])[0] == PADDING
    assert padded.any()
    assert (last[torch.from_numpy(padded)] == -100).all()
    assert (batch["input_ids"] >= 0).all()
    assert torch.equal(last[~torch.from_numpy(padded)], batch["input_ids"][1][~torch.from_numpy(padded)])


def test_no_text_is_an_error_and_leaves_nothing(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    with pytest.raises(DataError, match="the text is empty"):
        write_blocks(tmp_path / "b", [], tokenizer, 16)
    assert list(tmp_path.iterdir()) == []


def test_the_cache_is_used_until_the_text_changes(
    tmp_path: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one two three\n" * 50)
    cache = tmp_path / "cache"
    first = blocks_from(open_source(str(file)), tokenizer, 16, cache)
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "encode", lambda *args: pytest.fail("tokenised again"))
        assert len(blocks_from(open_source(str(file)), tokenizer, 16, cache)) == len(first)
    file.write_text("one two three four\n" * 50)
    assert blocks_from(open_source(str(file)), tokenizer, 16, cache).counts.bytes != first.counts.bytes


def test_prepare_from_text_to_blocks(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("".join(f"the {i} quick brown fox\n" for i in range(400)))
    said: list[str] = []
    split = open_split(str(file), val_fraction=0.1)
    tokenizer = tokenizer_for(split.train, 280, tmp_path / "cache", said.append)
    data = prepare(split, tokenizer, block_size=32, cache=tmp_path / "cache", say=said.append)
    assert data.validation is not None
    total = data.train.counts.bytes + data.validation.counts.bytes  # type: ignore[union-attr]
    assert total == file.stat().st_size
    assert tokenizer_for(split.train, 280, tmp_path / "cache", said.append).json == tokenizer.json
    assert sum("training a byte-level BPE" in line for line in said) == 1


def test_the_run_sampler_visits_every_row_once_a_pass() -> None:
    order = list(RunSampler(10, 35, seed=3))
    assert order == list(RunSampler(10, 35, seed=3))
    assert [sorted(order[i : i + 10]) for i in (0, 10, 20)] == [list(range(10))] * 3
    assert len(set(order[30:])) == 5
    assert order[:10] != order[10:20]
    assert order != list(RunSampler(10, 35, seed=4))
    assert order[:20] == list(RunSampler(10, 20, seed=3))  # a longer run begins as a shorter one


def test_the_stream_holds_the_same_blocks_as_the_file(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    pieces = pieces_of(*[f"def f{i}(x):\n    return x + {i}\n" for i in range(60)])
    source = TextSource(description="m", fingerprint="m", pieces=lambda: iter(pieces))
    written = write_blocks(tmp_path / "b", pieces, tokenizer, 16)
    stream = BlockStream(source, tokenizer, 16, seed=5, buffer=8)
    both = [iter(stream), iter(stream)]
    passes = [[next(both[0])["labels"].tolist() for _ in range(len(written))] for _ in range(2)]
    again = [next(both[1])["labels"].tolist() for _ in range(len(written))]
    stored = sorted(row["labels"].tolist() for row in written.__getitems__(list(range(len(written)))))
    assert again == passes[0]
    assert passes[0] != passes[1]
    assert sorted(passes[0]) == sorted(passes[1]) == stored


def test_an_empty_stream_is_an_error(tokenizer: TextTokenizer) -> None:
    source = TextSource(description="nothing", fingerprint="n", pieces=lambda: iter([]))
    with pytest.raises(DataError, match="nothing to stream"):
        next(iter(BlockStream(source, tokenizer, 16, seed=0)))


def test_shuffled_gives_every_row_once() -> None:
    rows = [np.array([i], dtype=np.int32) for i in range(100)]
    order = [int(row[0]) for row in shuffled(iter(rows), 16, 1)]
    assert sorted(order) == list(range(100))
    assert order != list(range(100))
