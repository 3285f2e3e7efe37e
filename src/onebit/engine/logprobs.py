"""Log probabilities of tokens, as a server reports them: of the model itself, before any sampling option."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TokenLogprob", "token_logprob"]


@dataclass(frozen=True)
class TokenLogprob:
    """A token, the natural logarithm of its probability, and the likeliest tokens there, best first, with theirs."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprob(logits_V: NDArray[np.float32], token: int, top: int) -> TokenLogprob:
    """Of `token` and of the `top` likeliest, from the logits at the position before it."""
    values_V = logits_V.astype(np.float64)
    values_V -= values_V.max()
    values_V -= np.log(np.exp(values_V).sum())
    count = min(top, len(values_V))
    best = np.argpartition(-values_V, count - 1)[:count] if count else np.empty(0, np.int64)
    best = best[np.argsort(-values_V[best], kind="stable")]
    return TokenLogprob(token, float(values_V[token]), tuple((int(i), float(values_V[i])) for i in best))
