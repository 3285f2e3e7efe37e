"""A teacher's answers to prepared rows, on disk, so that it runs once: its largest log-probabilities at each token.

What shaped it: an answer takes a whole forward of a model larger than the student, and a run over the same rows is
made again and again with other settings. A folder belongs to one teacher, data, tokenizer, K and temperature, by the
hash that is its name; it is written beside, a run that was killed goes on with the next rows, and it gets its name when
the last row is in it. Read through memory maps: nothing is loaded but what a batch asks for.

Shape suffixes: N tokens of all rows, K largest, V vocabulary, B batch, L length.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from onebit.errors import FormatError
from onebit.train.distill_losses import top_k_log_probs
from onebit.train.manifest import write_json

__all__ = ["TeacherAnswers", "TeacherCache", "fill", "open_cache"]

_STATE, _PARTIAL = "state.json", ".partial"
_VERSION = 1
_ROWS_BETWEEN_NOTES = 64  # rows that a killed run may have to do again


@dataclass(frozen=True, kw_only=True)
class TeacherAnswers:
    """For each token of some rows, one after the other: log-probabilities, their tokens, and the teacher's own loss.

    log_p_NK: float32, nats, at the cache's temperature, largest first; token_NK: int64; loss_N: float32, the
    cross-entropy in nats at temperature 1 of the token that follows, 0 where none follows.
    """

    log_p_NK: Tensor
    token_NK: Tensor
    loss_N: Tensor


@dataclass(frozen=True, kw_only=True)
class TeacherCache:
    """The arrays of a folder; `offsets` are where the rows begin, and the end."""

    folder: Path
    offsets: np.ndarray[Any, Any]
    log_p_NK: np.ndarray[Any, Any]
    token_NK: np.ndarray[Any, Any]
    loss_N: np.ndarray[Any, Any]

    @property
    def is_whole(self) -> bool:
        """Whether every row is in it."""
        return not self.folder.name.endswith(_PARTIAL)

    def read(self, rows: Sequence[int]) -> TeacherAnswers:
        """The answers to these rows."""
        spans = [slice(int(self.offsets[row]), int(self.offsets[row + 1])) for row in rows]

        def take(array: np.ndarray[Any, Any], kind: Any) -> Tensor:
            return torch.from_numpy(np.concatenate([array[span] for span in spans]).astype(kind))

        return TeacherAnswers(
            log_p_NK=take(self.log_p_NK, np.float32),
            token_NK=take(self.token_NK, np.int64),
            loss_N=take(self.loss_N, np.float32),
        )


def open_cache(root: Path, identity: dict[str, Any], lengths: Sequence[int], k: int) -> tuple[TeacherCache, int]:
    """The cache of an identity under `root`, made when it is not there, and how many rows are in it.

    identity: all that decides the answers, as JSON values. lengths: tokens of each row.

    Raises:
        FormatError: the folder is damaged; the message says which.
    """
    key = hashlib.blake2b(json.dumps({"version": _VERSION, **identity}, sort_keys=True).encode(), digest_size=12)
    whole = root / key.hexdigest()
    offsets = np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))])
    if whole.is_dir():
        return _map(whole, offsets, k, "r"), len(lengths)
    partial = root / f".{whole.name}{_PARTIAL}"
    done = _rows_done(partial / _STATE)
    if done == 0:
        partial.mkdir(parents=True, exist_ok=True)
        write_json(partial / "identity.json", identity)
        for name, (kind, width) in _arrays(k).items():
            with (partial / name).open("wb") as file:
                file.truncate(int(offsets[-1]) * width * np.dtype(kind).itemsize)
    return _map(partial, offsets, k, "r+"), done


def fill(
    cache: TeacherCache,
    done: int,
    batches: Callable[[Sequence[int]], dict[str, Any]],
    logits_of: Callable[[dict[str, Any]], Tensor],
    *,
    batch_size: int,
    temperature: float,
    vocabulary: int,
    progress: Callable[[int, int], None] | None = None,
) -> TeacherCache:
    """Ask the teacher for the rows from `done` on, and return the finished cache.

    batches(rows) gives the inputs of these rows, [B, L] or all in one line [1, N], as they are trained on, with
    input_ids and labels; logits_of gives the teacher's logits [B, L, V] for them. Tokens from `vocabulary` on are
    left out: the student has none of them.
    """
    total, k = len(cache.offsets) - 1, cache.token_NK.shape[1]
    noted = done
    for start in range(done, total, batch_size):
        rows = range(start, min(start + batch_size, total))
        inputs = batches(rows)
        logits_BLV = logits_of(inputs)[..., :vocabulary]
        lengths = [int(cache.offsets[row + 1] - cache.offsets[row]) for row in rows]
        is_flat = logits_BLV.shape[0] == 1 and logits_BLV.shape[1] == sum(lengths)
        logits = logits_BLV[0].split(lengths) if is_flat else [x[:n] for x, n in zip(logits_BLV, lengths, strict=True)]
        ids = inputs["input_ids"][0].split(lengths) if is_flat else inputs["input_ids"]
        for row, logits_LV, ids_L in zip(rows, logits, ids, strict=True):
            _write_row(cache, row, logits_LV, ids_L, k, temperature)
        if rows[-1] + 1 - noted >= _ROWS_BETWEEN_NOTES or rows[-1] + 1 == total:
            noted = rows[-1] + 1
            _flush(cache)
            write_json(cache.folder / _STATE, {"rows": noted})
            if progress is not None:
                progress(noted, total)
    whole = cache.folder.with_name(cache.folder.name[1 : -len(_PARTIAL)])
    os.replace(cache.folder, whole)
    return _map(whole, cache.offsets, k, "r")


def _write_row(cache: TeacherCache, row: int, logits_LV: Tensor, ids_L: Tensor, k: int, temperature: float) -> None:
    span = slice(int(cache.offsets[row]), int(cache.offsets[row + 1]))
    log_p_LK, token_LK = top_k_log_probs(logits_LV, k, temperature)
    cache.log_p_NK[span] = log_p_LK.cpu().numpy()
    cache.token_NK[span] = token_LK.cpu().numpy()
    length = logits_LV.shape[0]
    loss_L = F.cross_entropy(logits_LV[:-1].float(), ids_L[1:length].to(logits_LV.device), reduction="none")
    cache.loss_N[span] = F.pad(loss_L, (0, 1)).cpu().numpy()


def _arrays(k: int) -> dict[str, tuple[str, int]]:
    """File name -> type and width. float16 keeps a log-probability to 2^-11 of itself, which is 0.05 % of it."""
    return {"log_p.f16": ("<f2", k), "token.i32": ("<i4", k), "loss.f32": ("<f4", 1)}


def _map(folder: Path, offsets: np.ndarray[Any, Any], k: int, mode: Any) -> TeacherCache:
    total, maps = int(offsets[-1]), {}
    for name, (kind, width) in _arrays(k).items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else 0
        expected = total * width * np.dtype(kind).itemsize
        if size != expected:
            raise FormatError(
                f"'{path}' has {size} bytes, expected {expected}; delete its folder, and it is made again"
            )
        maps[name] = np.memmap(path, dtype=kind, mode=mode, shape=(total, width))
    return TeacherCache(
        folder=folder,
        offsets=offsets,
        log_p_NK=maps["log_p.f16"],
        token_NK=maps["token.i32"],
        loss_N=maps["loss.f32"][:, 0],
    )


def _rows_done(state: Path) -> int:
    try:
        return int(json.loads(state.read_text(encoding="utf-8"))["rows"])
    except (OSError, ValueError, KeyError):
        return 0


def _flush(cache: TeacherCache) -> None:
    for array in (cache.log_p_NK, cache.token_NK, cache.loss_N.base):
        if isinstance(array, np.memmap):
            array.flush()
