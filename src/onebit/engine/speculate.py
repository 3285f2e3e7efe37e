"""Several tokens a pass, and the same text: proposals from the text so far or from a draft model, checked by the model.

What is proposed, how many, and what is kept is decided in C (engine/src/ob_speculate.c), the same for onebit-run.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onebit.engine import _library as c
from onebit.errors import EngineError

if TYPE_CHECKING:
    from onebit.engine.model import Model
    from onebit.engine.sampling import Sampler
    from onebit.engine.session import Session

__all__ = ["MAX_PROPOSED", "Speculation", "check_vocabularies", "look_up"]

MAX_PROPOSED = 31  # OB_MAX_PROPOSED


def look_up(tokens: Sequence[int] | NDArray[np.uint32], most: int) -> tuple[list[int], int]:
    """What followed the longest earlier piece that ends like ``tokens``, up to ``most``; and that piece's length."""
    text, found, match = np.asarray(tokens, np.uint32), np.empty(most, np.uint32), ctypes.c_uint32()
    count = c.library().ob_lookup(text.ctypes.data, text.size, most, found.ctypes.data, ctypes.byref(match))
    return found[:count].tolist(), match.value


def check_vocabularies(target: Model, draft: Model) -> None:
    """EngineError unless a token means the same to both: as many, and the same text, where both have a tokenizer."""
    ours, theirs = target.description.vocab_size, draft.description.vocab_size
    advice = "a draft must have been trained with the model's tokenizer"
    if ours != theirs:
        raise EngineError(f"{draft.path.name} has {theirs} tokens, {target.path.name} {ours}: {advice}")
    if None in (target.section("TOKJSON"), draft.section("TOKJSON")):
        return
    if target.section("TOKJSON") == draft.section("TOKJSON"):
        return
    if target.tokenizer.get_vocab() != draft.tokenizer.get_vocab():
        raise EngineError(f"the tokenizers of {draft.path.name} and {target.path.name} differ: {advice}")


class Speculation:
    """Passes of ``target`` over its last token and what is proposed after it.

    ``draft`` is a session of a smaller model that holds a part of the same text from its start. ``tokens``: at most so
    many proposed at once. ``fixed``: always that many, whether it pays or not.
    """

    def __init__(
        self,
        target: Session,
        sampler: Sampler,
        *,
        draft: Session | None = None,
        lookup: bool = False,
        tokens: int | None = None,
        window: int = 0,
        fixed: bool = False,
    ) -> None:
        if tokens is not None and not 1 <= tokens <= MAX_PROPOSED:
            raise EngineError(f"the tokens proposed at once must be 1 to {MAX_PROPOSED}, got {tokens}")
        self._target, self._draft, self._sampler = target, draft, sampler
        options = c.CSpeculationOptions(
            max_proposed=tokens or 0,
            lookup=lookup,
            fixed=fixed,
            repetition_window=window,
            clock=ctypes.cast(c.library().ob_seconds, ctypes.c_void_p),
            sampling=sampler.options,
        )
        sessions = (target._handle, draft._handle if draft else None)
        size, error = ctypes.c_size_t(), c.Error()
        status = c.library().ob_speculation_arena_bytes(
            ctypes.byref(options), *sessions, ctypes.byref(size), ctypes.byref(error)
        )
        c.check(status, error)
        self._arena = np.empty(size.value // 8 + 1, np.uint64)
        self._handle = ctypes.c_void_p()
        status = c.library().ob_speculation_init(
            ctypes.byref(options),
            *sessions,
            *(self._arena.ctypes.data, self._arena.nbytes, ctypes.byref(self._handle), ctypes.byref(error)),
        )
        c.check(status, error)
        self._text = np.empty(target.max_positions + MAX_PROPOSED + 1, np.uint32)
        self._held = 0  # tokens of the target that are in _text
        self._new, self._num_new = np.empty(MAX_PROPOSED + 1, np.uint32), ctypes.c_uint32()

    def step(self, token: int, most: int) -> list[int]:
        """Append ``token`` to the target; 1 to ``most`` tokens that follow it, all but the last already appended."""
        held, target = len(self._target.tokens), self._target
        if held < self._held:
            self._held = 0  # the session was cut or shifted
        self._text[self._held : held] = target.tokens[self._held :]
        self._text[held] = token
        error = c.Error()
        status = c.library().ob_speculation_step(
            self._handle,
            ctypes.byref(self._sampler.state),
            *(self._text.ctypes.data, held + 1, most, self._new.ctypes.data),
            *(ctypes.byref(self._num_new), ctypes.byref(error)),
        )
        c.check(status, error)
        new: list[int] = self._new[: self._num_new.value].tolist()
        target.tokens.extend([token, *new[:-1]])
        self._held = held
        if self._draft is not None:
            self._follow(self._draft, target.tokens)
        return new

    def _follow(self, draft: Session, tokens: list[int]) -> None:
        """Keep the Python side of the draft's tokens: a part of the target's, from the start."""
        position = draft.position
        common = min(len(draft.tokens), self._held)
        del draft.tokens[common:]
        draft.tokens.extend(tokens[common:position])
        del draft.tokens[position:]

    @property
    def memory_bytes(self) -> int:
        """Work memory: a few rows of logits."""
        return self._arena.nbytes

    @property
    def counts(self) -> c.CSpeculationCounts:
        """Passes, tokens proposed and accepted, passes of the draft, seconds."""
        counts = c.CSpeculationCounts()
        c.library().ob_speculation_count(self._handle, ctypes.byref(counts))
        return counts
