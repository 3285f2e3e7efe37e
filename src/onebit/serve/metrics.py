"""Figures for Prometheus, each server's own."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from onebit.engine import Request
from onebit.serve.worker import EngineWorker

__all__ = ["CountedRequests", "Metrics"]

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models")


class Metrics:
    """Counters of requests and tokens, and what the engine does now."""

    def __init__(self, worker: EngineWorker) -> None:
        self._registry = CollectorRegistry()

        def of(kind: type, name: str, text: str, labels: tuple[str, ...] = (), **more: object) -> object:
            return kind(f"onebit_{name}", text, labels, registry=self._registry, **more)

        self.requests: Counter = of(Counter, "requests", "Requests by path and status", ("path", "status"))  # type: ignore[assignment]
        self.seconds: Histogram = of(  # type: ignore[assignment]
            Histogram, "request_seconds", "Time from request to the end of its answer", ("path",), buckets=_SECONDS
        )
        self.first_token: Histogram = of(  # type: ignore[assignment]
            Histogram, "first_token_seconds", "Time from submission to the first token", buckets=_SECONDS
        )
        self.tokens: Counter = of(Counter, "tokens", "Tokens read, reused and written", ("kind",))  # type: ignore[assignment]
        self.ends: Counter = of(Counter, "answers", "Answers by what ended them", ("reason",))  # type: ignore[assignment]
        open_requests: Gauge = of(Gauge, "open_requests", "Answers being written or waiting")  # type: ignore[assignment]
        open_requests.set_function(lambda: worker.num_open)

    def ended(self, request: Request) -> None:
        """Count an answer that ended."""
        stats = request.stats
        self.ends.labels(stats.stopped_by or "left").inc()
        self.tokens.labels("prompt").inc(stats.prompt_tokens)
        self.tokens.labels("reused").inc(stats.reused_tokens)
        self.tokens.labels("new").inc(stats.new_tokens)
        if stats.new_tokens:
            self.first_token.observe(stats.waited_seconds + stats.prefill_seconds)

    def page(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self._registry)


class CountedRequests:
    """Counts answers by path and status, and how long they took; plain ASGI."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in _PATHS else "other"
        began, status = time.perf_counter(), 499  # nobody was there any more

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            self._metrics.requests.labels(path, status).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - began)
