"""Answers as OpenAI's interface writes them: whole objects, and chunks of a stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer

from onebit.engine import Event, Request
from onebit.engine.logprobs import TokenLogprob

__all__ = ["ChatForm", "CompletionForm", "finish_reason", "usage_of"]


def finish_reason(stopped_by: str | None) -> str | None:
    """Why an answer ended, in the interface's words; None while it goes on."""
    return None if stopped_by is None else "length" if stopped_by in ("length", "context") else "stop"


def usage_of(groups: Sequence[Sequence[Request]]) -> dict[str, Any]:
    """Token counts of prompts with their answers; a prompt with several answers counts once."""
    prompt = sum(group[0].stats.prompt_tokens for group in groups)
    new = sum(request.stats.new_tokens for group in groups for request in group)
    cached = sum(group[0].stats.reused_tokens for group in groups)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


class _Form:
    """What both kinds share: the frame around choices, and tokens as texts."""

    kind: str
    prefix: str
    chunk_kind: str

    def __init__(self, model: str, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._frame = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        return {**self._frame, "object": self.kind, "choices": choices, "usage": usage}

    def chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> dict[str, Any]:
        return {**self._frame, "object": self.chunk_kind, "choices": choices, "usage": usage}

    def text_of(self, token: int) -> str:
        return self._tokenizer.decode([token], skip_special_tokens=False)


class ChatForm(_Form):
    """chat.completion and chat.completion.chunk."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def choice(self, index: int, request: Request, text: str, events: Iterable[Event]) -> dict[str, Any]:
        """A whole answer."""
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": self._logprobs(events),
            "finish_reason": finish_reason(request.stats.stopped_by),
        }

    def opening(self, index: int) -> dict[str, Any]:
        """The first chunk of an answer."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def part(self, index: int, _: Request, event: Event) -> dict[str, Any]:
        """What an event adds."""
        delta = {"content": event.text} if event.text else {}
        reason = finish_reason(event.stopped_by)
        return {"index": index, "delta": delta, "logprobs": self._logprobs([event]), "finish_reason": reason}

    def _logprobs(self, events: Iterable[Event]) -> dict[str, Any] | None:
        told = [self._told(event.logprob) for event in events if event.logprob is not None]
        return {"content": told, "refusal": None} if told else None

    def _told(self, one: TokenLogprob) -> dict[str, Any]:
        alternatives = [self._entry(token, value) for token, value in one.top]
        return {**self._entry(one.token, one.logprob), "top_logprobs": alternatives}

    def _entry(self, token: int, value: float) -> dict[str, Any]:
        text = self.text_of(token)
        return {"token": text, "logprob": value, "bytes": list(text.encode())}


class CompletionForm(_Form):
    """text_completion, whole and in chunks."""

    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl"

    def __init__(self, model: str, tokenizer: Tokenizer, *, echoes: bool, is_silent: bool) -> None:
        """echoes: the prompt stands in front of the answer; is_silent: the answer itself is left out."""
        super().__init__(model, tokenizer)
        self._echoes, self._is_silent = echoes, is_silent
        self._begun: set[int] = set()

    def choice(self, index: int, request: Request, text: str, events: Iterable[Event]) -> dict[str, Any]:
        """A whole answer."""
        return self._choice(index, request, text, events, is_first=True, stopped_by=request.stats.stopped_by)

    def part(self, index: int, request: Request, event: Event) -> dict[str, Any]:
        """What an event adds; the first one, the prompt too."""
        is_first = index not in self._begun
        self._begun.add(index)
        return self._choice(index, request, event.text, [event], is_first, event.stopped_by)

    def _choice(
        self,
        index: int,
        request: Request,
        text: str,
        events: Iterable[Event],
        is_first: bool,
        stopped_by: str | None,
    ) -> dict[str, Any]:
        echoes = self._echoes and is_first
        told = [] if self._is_silent else [event.logprob for event in events if event.logprob is not None]
        prompt = self._tokenizer.decode(request.prompt) if echoes else ""
        return {
            "index": index,
            "text": prompt + ("" if self._is_silent else text),
            "logprobs": self._logprobs(told, request if echoes else None),
            "finish_reason": finish_reason(stopped_by),
        }

    def _logprobs(self, told: list[TokenLogprob], echoed: Request | None) -> dict[str, Any] | None:
        """echoed: the request whose prompt is told too; its first token has no probability."""
        first = [] if echoed is None or not (echoed.prompt_logprobs or told) else echoed.prompt[:1]
        told = [*(echoed.prompt_logprobs if echoed is not None else []), *told]
        if not told:
            return None
        tokens = [self.text_of(token) for token in (*first, *(one.token for one in told))]
        offsets, at = [], 0
        for text in tokens:
            offsets.append(at)
            at += len(text)
        nothing: list[Any] = [None] * len(first)
        return {
            "tokens": tokens,
            "token_logprobs": nothing + [one.logprob for one in told],
            "top_logprobs": nothing + [{self.text_of(token): value for token, value in one.top} for one in told],
            "text_offset": offsets,
        }
