"""Problems as OpenAI's interface tells them: a status, and a body that its clients turn into their error classes."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from onebit.errors import OnebitError
from onebit.serve.worker import EngineStopped, QueueFull

__all__ = ["Problem", "add_handlers", "body_of"]

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 503: "server_error"}


class Problem(HTTPException):  # the one kind that FastAPI lets through while it reads a body
    """What is answered instead; code: a word for programs."""

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None, **headers: str
    ) -> None:
        super().__init__(status, message, {name.replace("_", "-"): value for name, value in headers.items()})
        self.code, self.param = code, param

    def response(self) -> JSONResponse:
        body = body_of(self.status_code, self.detail, self.code, self.param)
        return JSONResponse(body, self.status_code, self.headers)


def body_of(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The body of an answer that tells a problem."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def problem_of(error: Exception) -> Problem:
    """What an error of the engine or of its queue is to a client."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, QueueFull):
        return Problem(429, str(error), "queue_full", Retry_After="1")
    if isinstance(error, EngineStopped):
        return Problem(503, str(error), "engine_stopped")
    return Problem(400, str(error))


def add_handlers(app: FastAPI) -> None:
    """Have every problem of `app` told in this form."""

    async def told(_: Request, error: Exception) -> JSONResponse:
        return problem_of(error).response()

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        message = str(first["msg"]).removeprefix("Value error, ")
        if first["type"] == "json_invalid":
            return Problem(400, f"the body is no JSON: {first.get('ctx', {}).get('error', message)}").response()
        return Problem(400, f"{place}: {message}" if place else message, param=place or None).response()

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path}: {error.detail}"
        return JSONResponse(body_of(error.status_code, message), error.status_code, error.headers)

    for kind in (Problem, QueueFull, EngineStopped, OnebitError):
        app.add_exception_handler(kind, told)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
