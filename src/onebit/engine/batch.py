"""Continuous batching: many requests over one session, joining and leaving between steps.

    batch = Batch(model, slots=8)
    first, second = batch.submit("def fib(n):"), batch.submit("class Reader:", temperature=0.8, seed=3)
    for piece in first:                     # whoever iterates makes the steps, for all requests
        print(piece, end="", flush=True)

What shaped it: the tokens of a request are exactly those of ``Model.generate`` alone with the same options, whatever
runs beside it, because the engine gives a token the same bits in any batch. A step is one forward: every answer that
is being written gets its next token, and what is left of ``step_tokens`` reads prompts, so that a long prompt does not
stall the others. There is no event loop inside; a server calls ``step`` from a thread of its own, ``submit`` and
``cancel`` may be called from any.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onebit.engine.generate import Stats, Writer
from onebit.engine.logprobs import TokenLogprob, token_logprob
from onebit.engine.sampling import Sampler
from onebit.engine.session import token_array
from onebit.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from onebit.engine.model import Model

__all__ = ["Batch", "Event", "Request", "RequestStats"]

MAX_STEP = 256  # tokens of one call into C


@dataclass
class RequestStats(Stats):
    """Figures of one request; ``stopped_by`` may also be "cancelled". Seconds are those of the clock on the wall, in
    which other requests ran too."""

    waited_seconds: float = 0.0  # from submit until a slot was free
    reused_tokens: int = 0  # of the prompt, found in the cache
    shifts: int = 0  # times that the full context was made to go on


@dataclass(frozen=True)
class Event:
    """What a step gave one request: tokens (one, or none at an end without one), the text they freed, often empty, and
    why it ended, None while it goes on. ``logprob``: of the token, where the request asked for it."""

    request: Request
    tokens: tuple[int, ...]
    text: str
    stopped_by: str | None
    logprob: TokenLogprob | None = None


class Request:
    """One answer in the making: an iterator over its pieces of text, with ``ids`` and ``stats`` as Generation has."""

    def __init__(
        self,
        batch: Batch,
        prompt: list[int],
        sampler: Sampler,
        window: int,
        writer: Writer,
        keep: int | None,
        on_event: Callable[[Event], None] | None,
        logprobs: int | None,
        score_from: int | None,
    ) -> None:
        self.prompt = prompt
        self.keep = keep
        self.logprobs, self.score_from = logprobs, score_from
        self.prompt_logprobs: list[TokenLogprob] = []  # of token score_from on, complete at the first new token
        self.cancelled = False
        self._batch = batch
        self._sampler, self._window, self._writer, self._on_event = sampler, window, writer, on_event
        self._pieces: deque[str] = deque()
        self._began = time.perf_counter()  # of waiting, then of reading, then of writing

    @property
    def ids(self) -> list[int]:
        """The new tokens."""
        return self._writer.ids

    @property
    def stats(self) -> RequestStats:
        """Figures, complete when ``stats.stopped_by`` says why it ended."""
        assert isinstance(self._writer.stats, RequestStats)
        return self._writer.stats

    def cancel(self) -> None:
        """End it at the next step; what it has computed stays in the cache."""
        self.cancelled = True

    def __iter__(self) -> Iterator[str]:
        """Pieces of text, each once, making steps while there are none. Any number of threads may do this at once."""
        while True:
            while self._pieces:
                yield self._pieces.popleft()
            if self.stats.stopped_by is not None and not self._pieces:
                return
            self._batch.step_for(self)

    def _lap(self) -> float:
        now = time.perf_counter()
        passed, self._began = now - self._began, now
        return passed

    def _choose(self, logits_V: NDArray[np.float32], held: list[int]) -> Event:
        """The next token, from the logits after all that the slot holds."""
        token = self._sampler(logits_V, held[-self._window :] if self._window else [])
        if self.ids:
            self.stats.decode_seconds += self._lap()
        else:
            self.stats.prefill_seconds = self._lap()
        text = self._writer.push(token)
        logprob = None if self.logprobs is None else token_logprob(logits_V, token, self.logprobs)
        return Event(self, (token,), text, self.stats.stopped_by, logprob)

    def _score(self, logits_V: NDArray[np.float32]) -> None:
        """Take the logits after the next token of the prompt."""
        assert self.score_from is not None
        following = len(self.prompt_logprobs) + self.score_from
        if following < len(self.prompt):
            self.prompt_logprobs.append(token_logprob(logits_V, self.prompt[following], self.logprobs or 0))

    def _end(self, reason: str) -> Event:
        return Event(self, (), self._writer.finish(reason), reason)


@dataclass
class _Slot:
    """A sequence of the session: whose it is, which tokens it must still read, and when it was last used."""

    sequence: int
    request: Request | None = None
    unread: list[int] = field(default_factory=list)
    used: int = 0
    is_shifted: bool = False  # then its rows are not what they would be alone, and serve no other request

    @property
    def is_writing(self) -> bool:
        return self.request is not None and bool(self.request.ids)

    def scored_tokens(self, count: int) -> int:
        """How many of the next `count` tokens of the prompt stand before one that is scored."""
        request = self.request
        if request is None or request.score_from is None or request.ids:
            return 0
        after = len(request.prompt) - len(self.unread) + count
        return min(max(after - (request.score_from - 1), 0), count)


class Batch:
    """Requests over one session of ``slots`` sequences; what waits for a slot is served in order of arrival.

    ``max_positions``: tokens that each slot holds, prompt and answer (None: the model's context). ``kv``: as of a
    session. ``step_tokens``: tokens of a step, unless there are more answers than that; more reads prompts faster and
    delays the answers beside them.
    """

    def __init__(
        self,
        model: Model,
        slots: int = 8,
        *,
        max_positions: int | None = None,
        kv: str = "default",
        step_tokens: int = 64,
    ) -> None:
        if not 1 <= step_tokens <= MAX_STEP:
            raise EngineError(f"step_tokens must be 1 to {MAX_STEP}, got {step_tokens}")
        self._model = model
        self._tokenizer = model.tokenizer if model.section("TOKJSON") is not None else None
        self._session = model.session(max_positions, min(max(step_tokens, slots), MAX_STEP), kv, slots)
        self._slots = [_Slot(sequence) for sequence in range(slots)]
        self._step_tokens = step_tokens
        self._arrived: deque[Request] = deque()  # filled by any thread
        self._waiting: deque[Request] = deque()
        self._steps = 0
        self._running = threading.Lock()
        self._work = threading.Condition()

    def submit(
        self,
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
        context_shift: int | None = None,
        on_event: Callable[[Event], None] | None = None,
        logprobs: int | None = None,
        score_from: int | None = None,
    ) -> Request:
        """Queue a request, from any thread; the options are those of ``Model.generate``.

        ``logprobs`` N: events carry the log probability of their token and the N likeliest; ``score_from`` K: so does
        ``Request.prompt_logprobs`` for the prompt's tokens from the K-th on, counted from 0; the first has none.

        ``on_event`` is called by the thread that makes the steps, within one: it may submit and cancel, not step.
        EngineError at once for what cannot be served.
        """
        if max_new_tokens < 1:
            raise EngineError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        longest = self._session.max_positions
        if context_shift is not None and not 0 <= context_shift < longest - 1:
            raise EngineError(f"context_shift must keep 0 to {longest - 2} tokens, got {context_shift}")
        if score_from is not None and score_from < 1:
            raise EngineError(f"score_from must be at least 1, got {score_from}: nothing precedes the first token")
        stop = [stop] if isinstance(stop, str) else list(stop)
        if stop and self._tokenizer is None:
            raise EngineError(f"{self._model.path} has no tokenizer inside, so a stop string cannot be seen")
        ids = self._prompt(prompt)
        sampler = Sampler(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        writer = Writer(
            self._tokenizer, self._model.description.eos, stop, max_new_tokens, RequestStats(prompt_tokens=len(ids))
        )
        window = repetition_window if repetition_penalty != 1.0 else 0
        request = Request(self, ids, sampler, window, writer, context_shift, on_event, logprobs, score_from)
        with self._work:
            self._arrived.append(request)
            self._work.notify_all()
        return request

    def _prompt(self, prompt: str | Sequence[int]) -> list[int]:
        ids = self._model.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise EngineError("the prompt is empty: give at least one token to start from")
        longest, vocab = self._session.max_positions, self._model.description.vocab_size
        if len(ids) > longest:
            raise EngineError(f"the prompt has {len(ids)} tokens, the context holds {longest}: shorten it")
        if int(token_array(ids).max()) >= vocab:
            raise EngineError(f"token {max(ids)} is outside the vocabulary of {vocab}")
        return ids

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return len(self._arrived) + len(self._waiting) + sum(slot.request is not None for slot in self._slots)

    def wait(self, timeout: float | None = None) -> bool:
        """Until there is something to do; False when the time is over first. For the thread that makes the steps."""
        with self._work:
            return self._work.wait_for(lambda: self.num_open > 0, timeout)

    def run(self) -> Iterator[Event]:
        """Events until nothing is left to do."""
        while self.num_open:
            yield from self.step()

    def step(self) -> list[Event]:
        """One forward over all requests; what each of them got. Empty while prompts are read, or without requests."""
        with self._running:
            return self._step()

    def step_for(self, request: Request) -> None:
        """A step, unless another thread's has meanwhile given the request something."""
        with self._running:
            if not request._pieces and request.stats.stopped_by is None:
                self._step()

    def _step(self) -> list[Event]:
        self._steps += 1
        events = self._let_go() + self._make_room()
        self._admit()
        parts = self._share_out()
        if parts:
            events += self._forward(parts)
        for event in events:
            if event.text:
                event.request._pieces.append(event.text)
        for event in events:
            if event.request._on_event is not None:
                event.request._on_event(event)
        return events

    def _let_go(self) -> list[Event]:
        """Take in what has arrived, end what was cancelled."""
        while self._arrived:
            self._waiting.append(self._arrived.popleft())
        events = [request._end("cancelled") for request in self._waiting if request.cancelled]
        if events:
            self._waiting = deque(request for request in self._waiting if not request.cancelled)
        for slot in self._slots:
            if slot.request is not None and slot.request.cancelled:
                events.append(self._end(slot, slot.request, "cancelled"))
        return events

    def _end(self, slot: _Slot, request: Request, reason: str) -> Event:
        slot.request, slot.unread = None, []
        return request._end(reason)

    def _admit(self) -> None:
        """Give free slots to those who wait, each the one that saves the most reading."""
        while self._waiting and any(slot.request is None for slot in self._slots):
            request = self._waiting.popleft()
            request.stats.waited_seconds = request._lap()
            slot, shared = self._place(request.prompt[: request.score_from])
            slot.request, slot.unread, slot.used = request, request.prompt[shared:], self._steps
            request.stats.reused_tokens = shared

    def _place(self, prompt: list[int]) -> tuple[_Slot, int]:
        """A free slot that holds the longest known beginning of the prompt, and that alone; and its length.

        The slot that has it is taken when most of it is that beginning (a conversation goes on); else the beginning is
        copied into the slot that nobody used for longest, and what follows it in the first one lives on.
        """
        best = max(self._slots, key=lambda slot: (self._shared(slot, prompt), slot.request is None))
        shared = self._shared(best, prompt)
        free = [slot for slot in self._slots if slot.request is None]
        oldest = min(free, key=lambda slot: slot.used)
        held = self._session.position_of(best.sequence)
        if best.request is None and (2 * shared > held or len(free) == 1):
            oldest = best
        if oldest is best or not shared:
            self._session.truncate_sequence(oldest.sequence, shared if oldest is best else 0)
        else:
            self._session.copy_sequence(best.sequence, oldest.sequence, shared)
        oldest.is_shifted = False
        return oldest, shared

    def _shared(self, slot: _Slot, prompt: list[int]) -> int:
        """Tokens from the start of a prompt that a slot holds; the last must run, to give logits."""
        if slot.is_shifted:
            return 0
        shared = 0
        for ours, theirs in zip(self._session.tokens_of(slot.sequence), prompt[:-1], strict=False):
            if ours != theirs:
                break
            shared += 1
        return shared

    def _make_room(self) -> list[Event]:
        """What to do about slots that are full and would write on."""
        events = []
        for slot in self._slots:
            request = slot.request
            if request is None or not slot.is_writing:
                continue
            if self._session.position_of(slot.sequence) + len(slot.unread) <= self._session.max_positions:
                continue
            if request.keep is None:
                events.append(self._end(slot, request, "context"))
            else:
                self._shift(slot, request.keep)
                request.stats.shifts += 1
        return events

    def _shift(self, slot: _Slot, keep: int) -> None:
        """Drop the older half, as Generation does; models that cannot be shifted read the rest again."""
        discard = max(1, (self._session.position_of(slot.sequence) - keep) // 2)
        if self._model.description.position == "rope":
            self._session.shift_sequence(slot.sequence, keep, discard)
            slot.is_shifted = True
            return
        rest = self._session.tokens_of(slot.sequence)[keep + discard :]
        self._session.truncate_sequence(slot.sequence, keep)
        slot.unread = rest + slot.unread

    def _share_out(self) -> list[tuple[_Slot, list[int]]]:
        """Which tokens each slot reads in this step: the answers' next ones first, then prompts in order of arrival."""
        busy = sorted((slot for slot in self._slots if slot.request is not None), key=lambda slot: slot.used)
        writing = [slot for slot in busy if slot.is_writing and len(slot.unread) == 1]
        left = max(self._step_tokens - len(writing), 1)
        parts = [(slot, slot.unread) for slot in writing]
        for slot in busy:
            if slot not in writing and left:
                parts.append((slot, slot.unread[:left]))
                left -= len(parts[-1][1])
        return parts

    def _forward(self, parts: list[tuple[_Slot, list[int]]]) -> list[Event]:
        tokens, sequences, wants = [], [], []
        readers: list[tuple[_Slot, bool]] = []  # of each row of logits: whose it is, whether the next token follows
        for slot, part in parts:
            tokens += part
            sequences += [slot.sequence] * len(part)
            is_last = len(part) == len(slot.unread)
            assert slot.request is not None
            count = slot.scored_tokens(len(part))
            wants += [False] * (len(part) - count) + [True] * count
            if is_last and not count:
                wants[-1], count = True, 1
            readers += [(slot, False)] * (count - 1) + [(slot, is_last)] * (count > 0)
        logits_NV = self._session.forward_batch(tokens, sequences, wants)
        for slot, part in parts:
            slot.unread = slot.unread[len(part) :]
        events = []
        for (slot, is_last), logits_V in zip(readers, logits_NV, strict=True):
            if slot.request is not None and slot.request.score_from is not None and not slot.is_writing:
                slot.request._score(logits_V)
            if is_last:
                events.append(self._next(slot, logits_V))
        return events

    def _next(self, slot: _Slot, logits_V: NDArray[np.float32]) -> Event:
        request = slot.request
        assert request is not None
        event = request._choose(logits_V, self._session.tokens_of(slot.sequence))
        if event.stopped_by is None:
            slot.unread = [event.tokens[0]]
        else:
            slot.request = None
        return event
