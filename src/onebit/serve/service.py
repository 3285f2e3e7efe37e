"""Requests turned into the engine's, and its events into answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse

from onebit.engine import Batch, Event, Model, Request
from onebit.engine.conversation import encoder_of, render_template, specials_of
from onebit.serve.metrics import Metrics
from onebit.serve.objects import ChatForm, CompletionForm, usage_of
from onebit.serve.problems import Problem, body_of, problem_of
from onebit.serve.requests import ChatRequest, CompletionRequest
from onebit.serve.settings import ServeSettings
from onebit.serve.worker import Answer, EngineStopped, EngineWorker

__all__ = ["Service"]

_GONE_SECONDS = 0.25  # between looks at whether a client that waits for a whole answer is still there


class Service:
    """One model, its batch and the thread that runs it."""

    def __init__(self, model: Model, settings: ServeSettings) -> None:
        self.model, self.settings = model, settings
        self.context = settings.context or model.description.max_seq_len
        batch = Batch(
            model, settings.slots, max_positions=settings.context, kv=settings.kv, step_tokens=settings.step_tokens
        )
        self.worker = EngineWorker(batch, settings.slots + settings.max_queue)
        self.metrics = Metrics(self.worker)
        self._encode, self._specials = encoder_of(model), specials_of(model)

    async def chat(self, body: ChatRequest, http: HttpRequest) -> Response:
        """Answer /v1/chat/completions."""
        self._check_model(body.model)
        messages = [message.for_template() for message in body.messages]
        if self.model.chat_template is None:
            ids = self.model.encode("\n".join(message["content"] for message in messages))
        else:
            ids = self._encode(render_template(self.model.chat_template, messages, self._specials))
        for asked in (body.max_tokens, body.max_completion_tokens):
            self._check_limit(asked)
        options = {**body.options(), "logprobs": body.num_logprobs}
        groups = self._submit([ids], body.n or 1, options, body.most_tokens)
        form = ChatForm(self.settings.name, self.model.tokenizer)
        if body.stream:
            openings = [form.chunk([form.opening(index)]) for index in range(len(groups[0]))]
            return self._stream(groups, form, openings, body.tells_usage)
        choices = [
            form.choice(index, answer.request, text, events)
            for index, (answer, text, events) in enumerate(await self._gather(groups, http))
        ]
        return JSONResponse(form.whole(choices, usage_of(_requests(groups))))

    async def complete(self, body: CompletionRequest, http: HttpRequest) -> Response:
        """Answer /v1/completions."""
        self._check_model(body.model)
        prompts = [self.model.encode(one) if isinstance(one, str) else one for one in body.prompts()]
        score_from = 1 if body.echo and body.logprobs is not None else None
        options = {**body.options(), "logprobs": body.logprobs, "score_from": score_from}
        if "max_tokens" in body.model_fields_set:
            self._check_limit(body.max_tokens)
        most = None if body.max_tokens is None else max(1, body.max_tokens)
        groups = self._submit(prompts, body.n or 1, options, most)
        # The engine writes a token at least.
        form = CompletionForm(
            self.settings.name, self.model.tokenizer, echoes=bool(body.echo), is_silent=body.max_tokens == 0
        )
        if body.stream:
            return self._stream(groups, form, [], body.tells_usage)
        choices = [
            form.choice(index, answer.request, text, events)
            for index, (answer, text, events) in enumerate(await self._gather(groups, http))
        ]
        return JSONResponse(form.whole(choices, usage_of(_requests(groups))))

    def _check_model(self, name: str) -> None:
        if name != self.settings.name:
            raise Problem(
                404, f"the model {name!r} is not here; {self.settings.name!r} is", "model_not_found", param="model"
            )

    def _check_limit(self, asked: int | None) -> None:
        limit = self.settings.max_new_tokens
        if asked is not None and limit is not None and asked > limit:
            raise Problem(400, f"{asked} new tokens are asked for, {limit} are the most here", param="max_tokens")

    def _most(self, ids: Sequence[int], asked: int | None) -> int:
        """New tokens of an answer at most; Problem for a prompt that leaves no room."""
        room, limit = self.context - len(ids), self.settings.max_new_tokens
        if room < 1:
            raise Problem(
                400,
                f"the prompt has {len(ids)} tokens, the context holds {self.context} with the answer; shorten it",
                "context_length_exceeded",
            )
        return min(room, asked or room, limit or room)

    def _submit(
        self, prompts: Sequence[list[int]], n: int, options: dict[str, Any], most: int | None = None
    ) -> list[list[Answer]]:
        """n answers to each prompt, all or none."""
        if not prompts or any(not ids for ids in prompts):
            raise Problem(400, "a prompt is empty; give at least one token to start from", param="prompt")
        given = [{"max_new_tokens": self._most(ids, most), **options} for ids in prompts]
        groups: list[list[Answer]] = []
        try:
            for ids, told in zip(prompts, given, strict=True):
                groups.append([])
                for index in range(n):
                    seed = (options["seed"] + index) % 2**32
                    groups[-1].append(self.worker.submit(ids, **{**told, "seed": seed}))
        except Exception:
            for answer in _all(groups):
                answer.close()
            raise
        return groups

    async def _gather(
        self, groups: Sequence[Sequence[Answer]], http: HttpRequest
    ) -> list[tuple[Answer, str, list[Event]]]:
        """Whole answers with their texts and events; cancelled when the client leaves."""
        answers = _all(groups)

        async def read(answer: Answer) -> list[Event]:
            return [event async for event in answer]

        async def leave() -> None:
            while not await http.is_disconnected():
                await asyncio.sleep(_GONE_SECONDS)

        reading = asyncio.ensure_future(asyncio.gather(*map(read, answers)))
        leaving = asyncio.ensure_future(leave())
        try:
            await asyncio.wait((reading, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise Problem(499, "the client left")
            events = reading.result()
        finally:
            reading.cancel()
            leaving.cancel()
            self._close(answers)
        return [(answer, "".join(e.text for e in told), told) for answer, told in zip(answers, events, strict=True)]

    def _stream(
        self, groups: Sequence[Sequence[Answer]], form: ChatForm | CompletionForm, openings: list[Any], usage: bool
    ) -> StreamingResponse:
        """Server-sent events, as they come."""
        answers = _all(groups)

        async def lines() -> AsyncIterator[bytes]:
            try:
                for chunk in openings:
                    yield _line(chunk)
                async for index, event in _merged(answers):
                    if event.text or event.stopped_by or event.logprob:
                        yield _line(form.chunk([form.part(index, answers[index].request, event)]))
                if usage:
                    yield _line(form.chunk([], usage_of(_requests(groups))))
                yield b"data: [DONE]\n\n"
            except EngineStopped as error:
                yield _line(body_of(problem_of(error).status_code, str(error), "engine_stopped"))
            finally:
                self._close(answers)

        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(lines(), media_type="text/event-stream", headers=headers)

    def _close(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            answer.close()
            self.metrics.ended(answer.request)


def _all(groups: Sequence[Sequence[Answer]]) -> list[Answer]:
    return [answer for group in groups for answer in group]


def _requests(groups: Sequence[Sequence[Answer]]) -> list[list[Request]]:
    return [[answer.request for answer in group] for group in groups]


def _line(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def _merged(answers: Sequence[Answer]) -> AsyncIterator[tuple[int, Event]]:
    """Events of several answers in the order in which they come, with the answer's place."""
    if len(answers) == 1:
        async for event in answers[0]:
            yield 0, event
        return
    queue: asyncio.Queue[tuple[int, Event] | Exception] = asyncio.Queue()

    async def pump(index: int, answer: Answer) -> None:
        try:
            async for event in answer:
                queue.put_nowait((index, event))
        except EngineStopped as error:
            queue.put_nowait(error)

    async with AsyncExitStack() as stack:
        for index, answer in enumerate(answers):
            stack.callback(asyncio.ensure_future(pump(index, answer)).cancel)
        open_answers = len(answers)
        while open_answers:
            told = await queue.get()
            if isinstance(told, Exception):
                raise told
            yield told
            open_answers -= told[1].stopped_by is not None
