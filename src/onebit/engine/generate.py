"""Text from a model, piece by piece: no half character, no stop string, and figures about the speed.

Everything happens in ``__next__``, one token at a time, so Ctrl-C and leaving the loop work between tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onebit.engine.sampling import Sampler
from onebit.engine.speculate import Speculation, check_vocabularies
from onebit.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from onebit.engine.model import Model
    from onebit.engine.session import Session

__all__ = ["Generation", "Stats", "StopFilter", "TextStream", "Writer"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer decodes half a character to
_LONGEST_CHARACTER = 4  # bytes of UTF-8, so at most as many tokens


@dataclass
class Stats:
    """Figures of one generation; ``stopped_by`` is "eos", "stop", "length", "context" or None while it runs."""

    prompt_tokens: int = 0
    new_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    stopped_by: str | None = None
    passes: int = 0  # of the model after the prompt, in speculation; fewer than new tokens where it helps
    proposed: int = 0  # tokens that the model was asked about
    accepted: int = 0  # of those, the ones it would have said
    drafted: int = 0  # passes of the draft
    draft_seconds: float = 0.0

    @property
    def acceptance(self) -> float:
        """The share of proposed tokens that were accepted."""
        return self.accepted / self.proposed if self.proposed else 0.0

    @property
    def prefill_speed(self) -> float:
        """Prompt tokens a second."""
        return self.prompt_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_speed(self) -> float:
        """New tokens a second; the first one comes out of the prefill and does not count."""
        return (self.new_tokens - 1) / self.decode_seconds if self.decode_seconds else 0.0


class TextStream:
    """Tokens to text, holding back bytes that do not make a whole character yet."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0  # tokens whose text is out
        self._before = 0  # decoding starts here: one piece back, since a token's text can depend on the one before

    def push(self, token: int) -> str:
        """The text that is certain after one more token; empty while a character is incomplete."""
        self._ids.append(token)
        text = self._new_text()
        if text.endswith(_REPLACEMENT) and len(self._ids) - self._shown < _LONGEST_CHARACTER:
            return ""
        self._before, self._shown = self._shown, len(self._ids)
        return text

    def flush(self) -> str:
        """What is left at the end, bytes that are no character as a replacement character."""
        return self._new_text() if self._shown < len(self._ids) else ""

    def _new_text(self) -> str:
        shown = self._tokenizer.decode(self._ids[self._before : self._shown])
        return self._tokenizer.decode(self._ids[self._before :])[len(shown) :]


class StopFilter:
    """Text that goes out until a stop string appears, which is never shown, nor is a beginning of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = [text for text in stop if text]
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The part of the text so far that cannot belong to a stop string."""
        self._held += text
        places = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if places:
            self.found = True
            out, self._held = self._held[: min(places)], ""
            return out
        keep = max((self._overlap(stop) for stop in self._stop), default=0)
        cut = len(self._held) - keep
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def flush(self) -> str:
        """What was held back, when no stop string came."""
        out, self._held = self._held, ""
        return out

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins the stop string."""
        for length in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if stop.startswith(self._held[-length:]):
                return length
        return 0


class Writer:
    """The tokens of one answer and the text they free, until the end token, a stop string or enough tokens.

    ``tokenizer`` None is a model without one: the text stays empty. The reason to stop goes into ``stats``.
    """

    def __init__(
        self, tokenizer: Tokenizer | None, eos: int | None, stop: Sequence[str], max_new_tokens: int, stats: Stats
    ) -> None:
        self._stream = None if tokenizer is None else TextStream(tokenizer)
        self._filter = StopFilter(stop)
        self._eos, self._most = eos, max_new_tokens
        self.ids: list[int] = []
        self.stats = stats

    def push(self, token: int) -> str:
        """One token on: the text it frees, often empty."""
        self.ids.append(token)
        self.stats.new_tokens += 1
        if token == self._eos:
            return self.finish("eos")
        out = "" if self._stream is None else self._filter.push(self._stream.push(token))
        if self._filter.found:
            self.stats.stopped_by = "stop"
        elif self.stats.new_tokens >= self._most:
            out += self.finish("length")
        return out

    def finish(self, reason: str) -> str:
        """Let out what was held back, unless the very end completes a stop string."""
        self.stats.stopped_by = reason
        out = "" if self._stream is None else self._filter.push(self._stream.flush())
        return out if self._filter.found else out + self._filter.flush()


class Generation(Iterator[str]):
    """Pieces of text after a prompt (text or token ids). ``stats`` and ``ids`` (the new tokens) grow as it runs.

    Ends at the model's end token, a ``stop`` string, ``max_new_tokens`` or the end of the context. ``session`` goes on
    from an earlier one: what its tokens share with the prompt is not computed again.

    ``lookup`` and ``draft`` (a smaller model of the same tokenizer, or a session on one) propose up to
    ``speculate_tokens`` tokens, which the model then checks in one pass; the text stays what it is without them.
    ``context_shift`` N: where the context is full, all but its first N tokens lose their older half, and it goes on.
    """

    def __init__(
        self,
        model: Model,
        prompt: str | Sequence[int],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        repetition_window: int = 64,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        session: Session | None = None,
        draft: Model | Session | None = None,
        lookup: bool = False,
        speculate_tokens: int | None = None,
        context_shift: int | None = None,
    ) -> None:
        if max_new_tokens < 1:
            raise EngineError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        tokenizer = model.tokenizer
        self._prompt = model.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not self._prompt:
            raise EngineError("the prompt is empty: give at least one token to start from")
        longest = session.max_positions if session else model.description.max_seq_len
        if len(self._prompt) > longest:
            raise EngineError(f"the prompt has {len(self._prompt)} tokens, the context holds {longest}: shorten it")
        self._session = session or model.session(min(len(self._prompt) + max_new_tokens, longest))
        self._sampler = Sampler(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        self._window = repetition_window if repetition_penalty != 1.0 else 0
        self._max_new_tokens = max_new_tokens
        self._keep = context_shift
        if context_shift is not None and not 0 <= context_shift < self._session.max_positions - 1:
            raise EngineError(
                f"context_shift must keep 0 to {self._session.max_positions - 2} tokens, got {context_shift}"
            )
        self.stats = Stats(prompt_tokens=len(self._prompt))
        stops = [stop] if isinstance(stop, str) else stop
        self._writer = Writer(tokenizer, model.description.eos, stops, max_new_tokens, self.stats)
        self.ids = self._writer.ids
        self._ready: list[int] = []  # chosen in one pass and not shown yet, the next one last
        self._draft = _draft_session(model, draft, self._session)
        self._speculation: Speculation | None = None
        if lookup or self._draft is not None:
            self._speculation = Speculation(
                self._session,
                self._sampler,
                draft=self._draft,
                lookup=lookup,
                tokens=speculate_tokens,
                window=self._window,
            )

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> str:
        while self.stats.stopped_by is None:
            text = self._step()
            if text:
                return text
        raise StopIteration

    def _step(self) -> str:
        """One token on: the text it frees, often empty."""
        token = self._next_token()
        text = self._writer.finish("context") if token is None else self._writer.push(token)
        if self.stats.stopped_by is not None:
            self._drop_ready()
        return text

    def _next_token(self) -> int | None:
        """The next token, from the last pass of the model or a new one; None when the context is full."""
        if self._ready:
            return self._ready.pop()
        begin = time.perf_counter()
        if not self.ids:
            logits = self._read_prompt()
            self.stats.prefill_seconds = time.perf_counter() - begin
            return self._sampler(logits, self._seen())
        if self._session.position >= self._session.max_positions and not self._make_room():
            return None
        if self._speculation is None:
            token = self._sampler(self._session.decode(self.ids[-1]), self._seen())
        else:
            token = self._speculate(self._speculation)
        self.stats.decode_seconds += time.perf_counter() - begin
        return token

    def _read_prompt(self) -> NDArray[np.float32]:
        if self._draft is not None and len(self._prompt) <= self._draft.max_positions:
            self._draft.continue_with(self._prompt)
        elif self._draft is not None:
            self._draft.reset()
        return self._session.continue_with(self._prompt)

    def _seen(self) -> list[int]:
        """What the repetition penalty sees."""
        return self._session.tokens[-self._window :] if self._window else []

    def _make_room(self) -> bool:
        """Drop the older half of a full context, if that is wanted."""
        if self._keep is None:
            return False
        discard = max(1, (self._session.position - self._keep) // 2)
        for session in (self._session, self._draft):
            if session is not None:
                _shift(session, self._keep, discard)
        return True

    def _speculate(self, speculation: Speculation) -> int:
        new = speculation.step(self.ids[-1], self._max_new_tokens - self.stats.new_tokens)
        counts = speculation.counts
        for name in ("proposed", "accepted", "drafted", "draft_seconds"):
            setattr(self.stats, name, getattr(counts, name))
        self.stats.passes = counts.steps
        self._ready = new[:0:-1]
        return new[0]

    def _drop_ready(self) -> None:
        """Forget tokens that were chosen beyond the end of the text."""
        if self._ready:
            self._session.truncate(self._session.position - len(self._ready))
            self._ready.clear()


def _shift(session: Session, keep: int, discard: int) -> None:
    """Drop tokens [keep, keep + discard); models that cannot be shifted read the rest again."""
    rest = session.tokens[keep + discard :]
    if not rest:
        session.truncate(min(keep, session.position))
    elif session.model.description.position == "rope":
        session.shift(keep, discard)
    else:
        session.truncate(keep)
        session.forward(rest, "none")


def _draft_session(model: Model, draft: Model | Session | None, session: Session) -> Session | None:
    """The draft's session, made where a model is given."""
    from onebit.engine.session import Session

    if draft is None:
        return None
    check_vocabularies(model, draft.model if isinstance(draft, Session) else draft)
    if isinstance(draft, Session):
        return draft
    return draft.session(min(session.max_positions, draft.description.max_seq_len))
