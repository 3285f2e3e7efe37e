"""The texts of the quality benchmark and their tokens."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from onebit.data import open_split, train_tokenizer
from onebit.errors import DataError

SHAKESPEARE_TRAIN_SHARE = 0.9


def texts(dataset: str, data_dir: str | None) -> tuple[str, str]:
    """(training text, validation text)."""
    if dataset == "stdlib":
        split = open_split("stdlib")
        assert split.validation is not None
        return tuple("\n".join(p.text for p in part.pieces()) for part in (split.train, split.validation))  # type: ignore[return-value]
    folder = Path(data_dir or ".")
    if dataset == "wikitext2":
        return _read(folder / "wikitext-2" / "test.txt"), _read(folder / "wikitext-2" / "valid.txt")
    text = _read(folder / "tinyshakespeare" / "input.txt")
    cut = int(len(text) * SHAKESPEARE_TRAIN_SHARE)
    return text[:cut], text[cut:]


def tokens(train_text: str, validation_text: str, vocab_size: int) -> tuple[Tensor, Tensor, int]:
    """Ids (int64) of both texts by a byte-level BPE trained on the first, and the size of its vocabulary."""
    pieces = [train_text[i : i + 10_000] for i in range(0, len(train_text), 10_000)]
    made = train_tokenizer(pieces, vocab_size)
    train_ids, validation_ids = (torch.tensor(made.tokenizer.encode(t).ids) for t in (train_text, validation_text))
    return train_ids, validation_ids, made.vocab_size


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"--data-dir: cannot read '{path}': {error.strerror}") from None
