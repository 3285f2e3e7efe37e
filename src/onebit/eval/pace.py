"""Tokens a second of one sequence: what a user feels. `onebit bench` sets it beside the machine's limits.

Each is the best of a few tries, because other programs run too.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onebit.engine import Model
    from onebit.eval.served import Server

__all__ = ["engine_pace", "served_pace", "torch_pace"]


def engine_pace(model: Model, ids: Sequence[int], new_tokens: int = 64) -> tuple[float, float]:
    """(tokens/s writing, tokens/s reading) of the engine; the best of three."""
    writing, reading = 0.0, 0.0
    for _ in range(3):
        session = model.session()
        started = time.perf_counter()
        logits_V = session.prefill(ids)
        read = time.perf_counter()
        for _ in range(new_tokens):
            logits_V = session.decode(int(np.argmax(logits_V)))
        wrote = time.perf_counter()
        reading = max(reading, len(ids) / (read - started))
        writing = max(writing, new_tokens / (wrote - read))
    return writing, reading


def torch_pace(model: Any, ids: Sequence[int], new_tokens: int = 32) -> float:
    """Tokens/s of a model of transformers, with its KV cache, reading included; the better of two."""
    import torch

    ids_BT = torch.tensor([list(ids)], device=next(model.parameters()).device)
    model.eval()
    best = 0.0
    with torch.inference_mode():
        for _ in range(2):
            started = time.perf_counter()
            model.generate(
                ids_BT,
                attention_mask=torch.ones_like(ids_BT),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0,
            )
            best = max(best, new_tokens / (time.perf_counter() - started))
    return best


def served_pace(server: Server, ids: Sequence[int], new_tokens: int = 64) -> float:
    """Tokens/s that a server writes, reading and the way there included; the better of two."""
    best = 0.0
    for _ in range(2):
        started = time.perf_counter()
        told = server.post("/v1/completions", {"prompt": list(ids), "max_tokens": new_tokens, "temperature": 0})
        best = max(best, told["usage"]["completion_tokens"] / (time.perf_counter() - started))
    return best
