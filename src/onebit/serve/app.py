"""The server's routes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from onebit import __version__
from onebit.engine import Model
from onebit.serve.description import CHAT, COMPLETION, PROBLEMS, add_description
from onebit.serve.guards import BodyLimit, KeyGuard
from onebit.serve.metrics import CountedRequests
from onebit.serve.page import add_page
from onebit.serve.problems import Problem, add_handlers
from onebit.serve.requests import ChatRequest, CompletionRequest
from onebit.serve.service import Service
from onebit.serve.settings import ServeSettings
from onebit.serve.tokens import PATHS, add_tokens

__all__ = ["create_app"]


def create_app(model: Model, settings: ServeSettings) -> FastAPI:
    """An ASGI application that serves `model`. The engine's thread lives as long as the application's lifespan."""
    service = Service(model, settings)
    started = int(time.time())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        await service.worker.stop(settings.shutdown_seconds)

    # Its pages of documentation would load scripts from elsewhere; /openapi.json is for whatever reads it.
    app = FastAPI(title="onebit", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    add_handlers(app)
    app.add_middleware(BodyLimit, most=settings.max_body_bytes)
    if settings.api_key is not None:
        app.add_middleware(KeyGuard, key=settings.api_key, paths=("/v1/", *PATHS))
    app.add_middleware(CountedRequests, metrics=service.metrics)

    @app.post("/v1/chat/completions", responses=CHAT)
    async def chat(body: ChatRequest, http: Request) -> Response:
        """Answer a conversation."""
        return await service.chat(body, http)

    @app.post("/v1/completions", responses=COMPLETION)
    async def complete(body: CompletionRequest, http: Request) -> Response:
        """Continue a prompt."""
        return await service.complete(body, http)

    about = {"id": settings.name, "object": "model", "created": started, "owned_by": "onebit"}

    @app.get("/v1/models", responses={401: PROBLEMS[401]})
    async def models() -> dict[str, Any]:
        """The one model that is served."""
        return {"object": "list", "data": [about]}

    @app.get("/v1/models/{name:path}", responses={status: PROBLEMS[status] for status in (401, 404)})
    async def one_model(name: str) -> dict[str, Any]:
        """About the model."""
        if name != settings.name:
            raise Problem(404, f"the model {name!r} is not here; {settings.name!r} is", "model_not_found")
        return about

    @app.get("/healthz", responses={503: {"description": PROBLEMS[503]["description"]}})
    async def health() -> Response:
        """Whether requests are served."""
        healthy = service.worker.is_healthy
        return JSONResponse({"status": "ok" if healthy else "stopped"}, 200 if healthy else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4")

    add_tokens(app, service, PROBLEMS)
    add_page(app, service)
    add_description(app, service)
    return app
