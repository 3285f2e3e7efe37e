"""The measures of a language model as pure functions: cut tokens into windows, score them, sum up.

The rule that makes two numbers comparable is here and nowhere else, so torch and the engine share it:

- The text is tokenized once, as one sequence, without special tokens. If the model names a BOS token it is put once
  before the text; otherwise the first token has nothing before it and is not scored. Every later token is scored
  exactly once.
- A window feeds at most `context` tokens. With ``stride == context`` (the default) windows do not overlap: the first
  token scored in a window sees one token. With a smaller stride each window scores only the `stride` tokens that
  the one before did not, so that a token sees at least ``context - stride`` others: slower, and a lower loss.
- Loss is the mean of -ln p in nats per scored token; bits per byte divides the sum by the UTF-8 bytes of the scored
  text, perplexity per word by its whitespace-separated words. Those two do not depend on the tokenizer.

Shapes: T tokens in a window, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onebit.errors import DataError

__all__ = ["Quality", "Window", "summarize", "token_losses", "windows"]


@dataclass(frozen=True, slots=True)
class Window:
    """Feed tokens ``[start, stop)``; score the predictions of tokens ``[first_scored, stop]``."""

    start: int
    stop: int
    first_scored: int


def windows(num_tokens: int, context: int, stride: int | None = None) -> Iterator[Window]:
    """Cut a sequence so that each of its tokens but the first is predicted exactly once.

    Raises DataError when there is nothing to predict or the window makes no sense.
    """
    stride = context if stride is None else stride
    if num_tokens < 2:
        raise DataError(f"{num_tokens} token(s) leave nothing to predict; give a longer text")
    if context < 1 or not 1 <= stride <= context:
        raise DataError(f"context {context} and stride {stride}: expected 1 <= stride <= context")
    scored = 1  # the next token to be predicted
    start = 0
    while scored < num_tokens:
        stop = min(start + context, num_tokens - 1)
        yield Window(start, stop, scored)
        scored = stop + 1
        start += stride


def token_losses(logits_TV: NDArray[np.float32], targets_T: NDArray[np.int64]) -> NDArray[np.float64]:
    """-ln softmax(logits)[target] for each position, float64 [T]; the sums are taken in float64."""
    logits = logits_TV.astype(np.float64)
    top_T1 = logits.max(axis=-1, keepdims=True)
    log_total_T = np.log(np.exp(logits - top_T1).sum(axis=-1)) + top_T1[:, 0]
    chosen_T = np.take_along_axis(logits, targets_T[:, None], axis=-1)[:, 0]
    losses_T: NDArray[np.float64] = log_total_T - chosen_T
    return losses_T


@dataclass(frozen=True, slots=True)
class Quality:
    """What was measured; `loss` in nats per token."""

    loss: float
    perplexity: float
    bits_per_byte: float
    perplexity_per_word: float
    tokens: int
    bytes: int
    words: int


def summarize(total_nats: float, tokens: int, num_bytes: int, words: int) -> Quality:
    """Turn a sum of losses into the four figures. A perplexity too large for a float is inf."""
    if tokens < 1 or num_bytes < 1:
        raise DataError(f"{tokens} tokens and {num_bytes} bytes scored: the text is empty")
    return Quality(
        loss=total_nats / tokens,
        perplexity=_exp(total_nats / tokens),
        bits_per_byte=total_nats / math.log(2) / num_bytes,
        perplexity_per_word=_exp(total_nats / max(words, 1)),
        tokens=tokens,
        bytes=num_bytes,
        words=words,
    )


def _exp(x: float) -> float:
    return math.exp(x) if x < 709 else math.inf
