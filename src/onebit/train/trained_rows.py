"""What a Trainer's prepared rows are: their fingerprint, and some of them as text."""

from __future__ import annotations

import hashlib
from itertools import islice
from typing import Any

import numpy as np

__all__ = ["first_texts", "rows_fingerprint"]

_COLUMNS = ("input_ids", "labels", "seq_lengths")
_BATCH = 1000


def rows_fingerprint(rows: Any) -> str:
    """Hash of the tokens, labels and packing of prepared rows: the same for the same data, however it was read."""
    digest = hashlib.blake2b(digest_size=16)
    for batch in rows.iter(batch_size=_BATCH):
        for column in _COLUMNS:
            for row in batch.get(column, ()):
                digest.update(np.asarray([len(row), *row], dtype=np.int64).tobytes())
    return digest.hexdigest()


def first_texts(rows: Any, tokenizer: Any, count: int) -> list[str]:
    """The first rows as text, conversations through the tokenizer's chat template."""
    texts = []
    for row in islice(rows, count):
        if "messages" in row or isinstance(row.get("prompt"), list):
            messages = row["messages"] if "messages" in row else row["prompt"] + row["completion"]
            texts.append(tokenizer.apply_chat_template(messages, tokenize=False))
        elif "input_ids" in row:
            texts.append(tokenizer.decode(row["input_ids"]))
        else:
            texts.append(" ".join(str(value) for value in row.values() if isinstance(value, str)))
    return [text for text in texts if text]
