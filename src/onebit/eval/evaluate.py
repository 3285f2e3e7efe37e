"""Score a text with any form of a model, by the one windowing rule of `onebit.eval.perplexity`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onebit.errors import ConfigError, DataError
from onebit.eval.forms import Form, Ids
from onebit.eval.perplexity import Quality, summarize, token_losses, windows
from onebit.eval.record import ResultRecord
from onebit.eval.served import ServedForm

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Evaluation", "evaluate", "prepare", "read_text"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The quality of one form of a model on one text, and the rule it was measured by."""

    quality: Quality
    runtime: str
    context: int
    stride: int
    bos: bool
    seconds: float

    def record(self, *, model: str, data: str) -> ResultRecord:
        """The result record of `onebit eval`."""
        rule = {"context": self.context, "stride": self.stride, "bos": self.bos, "runtime": self.runtime}
        figures: dict[str, float | int | None] = {**asdict(self.quality), "seconds": round(self.seconds, 3)}
        return ResultRecord(benchmark="eval", config={"model": model, "data": data, **rule}, figures=figures)


def read_text(path: Path) -> str:
    """Read a UTF-8 text file; DataError when it is empty or not text."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise DataError(f"{path}: not UTF-8 text (byte {problem.start}); give a plain text file") from problem
    if not text.strip():
        raise DataError(f"{path}: the file is empty; give a text to be scored")
    return text


def evaluate(
    form: Form | ServedForm,
    text: str,
    *,
    context: int | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Loss, perplexity and bits per byte of `text` under a form; `progress` is called with (tokens done, of).

    `context` defaults to the model's own and may not exceed it; `stride` defaults to `context` (no overlap).
    """
    tokenizer = form.tokenizer
    if tokenizer is None:
        raise DataError(f"{form.name}: it holds no tokenizer to read text with; add tokenizer.json and export again")
    context = form.context if context is None else context
    if not 1 <= context <= form.context:
        raise ConfigError(f"--context {context}: this model reads between 1 and {form.context} tokens")
    ids_T, scored = prepare(tokenizer, text, form.bos, max_tokens)
    if int(ids_T.max()) >= form.vocab_size:
        raise DataError(
            f"token {int(ids_T.max())} of the tokenizer is outside the model's vocabulary of {form.vocab_size}"
        )
    started = time.perf_counter()
    total = 0.0
    for window in windows(len(ids_T), context, stride):
        count = window.stop + 1 - window.first_scored
        total += float(_losses(form, ids_T[window.start : window.stop + 1], count).sum())
        if progress is not None:
            progress(window.stop, len(ids_T) - 1)
    quality = summarize(total, len(ids_T) - 1, len(scored.encode()), len(scored.split()))
    seconds = time.perf_counter() - started
    return Evaluation(quality, form.runtime, context, stride or context, form.bos is not None, seconds)


def _losses(form: Form | ServedForm, ids_T: Ids, count: int) -> NDArray[np.float64]:
    """-log p of the last `count` tokens, float64 [count]."""
    if isinstance(form, ServedForm):
        return form.losses(ids_T, count)
    return token_losses(form.logits(ids_T[:-1])[-count:], ids_T[-count:])


def prepare(tokenizer: Tokenizer, text: str, bos: int | None, max_tokens: int | None) -> tuple[Ids, str]:
    """Token ids (BOS in front when there is one) and the text whose bytes and words are counted."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    scored = text
    if max_tokens is not None and max_tokens < len(ids):
        if max_tokens < 2:
            raise ConfigError(f"--max-tokens {max_tokens}: expected at least 2")
        ids = ids[:max_tokens]
        scored = tokenizer.decode(ids, skip_special_tokens=False)
    if not ids:
        raise DataError("the text has no tokens")
    if bos is not None:
        ids = [bos, *ids]
    else:  # the first token is context only
        scored = scored.removeprefix(tokenizer.decode(ids[:1], skip_special_tokens=False))
    return np.asarray(ids, dtype=np.int64), scored
