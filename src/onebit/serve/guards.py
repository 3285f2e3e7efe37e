"""What stands before every request: the key, and the most bytes that a body may have. Plain ASGI, so that streams are
not held up."""

from __future__ import annotations

import hmac
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from onebit.serve.problems import Problem

__all__ = ["BodyLimit", "KeyGuard"]


class KeyGuard:
    """401 without the key, as `Authorization: Bearer KEY`, for paths that begin so."""

    def __init__(self, app: ASGIApp, key: str, paths: tuple[str, ...]) -> None:
        self._app, self._expected, self._paths = app, f"Bearer {key}".encode(), paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(self._paths):
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                what = "the API key is wrong" if given else "there is no API key; send 'Authorization: Bearer KEY'"
                await Problem(401, what, "invalid_api_key", WWW_Authenticate="Bearer").response()(scope, receive, send)
                return
        await self._app(scope, receive, send)


class BodyLimit:
    """413 for bodies of more bytes, whether they say so or not."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if not told.isdigit() or int(told) > self._most:
            await self._refuse()(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._most:
                raise self._refusal()
            return message

        await self._app(scope, counted, send)

    def _refusal(self) -> Problem:
        return Problem(413, f"the body has more than the {self._most} bytes that this server takes", "body_too_large")

    def _refuse(self) -> Any:
        return self._refusal().response()
