"""An application on an address, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

__all__ = ["Server", "listen"]


class Server(uvicorn.Server):
    """Tells its address when it listens."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[str], None]) -> None:
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._on_start(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")


def listen(app: FastAPI, host: str, port: int, shutdown_seconds: float, on_start: Callable[[str], None]) -> bool:
    """Serve until told to stop, then let open answers end for so long; False when the address cannot be had.

    For the main thread, whose signals it takes.
    """
    # A client that leaves is no news, and asyncio tells of every token that was on its way to it.
    logging.getLogger("asyncio").addFilter(lambda record: "socket.send() raised" not in record.getMessage())
    # One second more than the application takes, which cancels what is left by itself.
    patience = int(shutdown_seconds) + 1
    config = uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=patience)
    server = Server(config, on_start)
    # uvicorn raises the signal that ended it once more for whoever handled it before: here nobody, it is a good end.
    before = {number: signal.signal(number, _ignore) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run()
    except SystemExit:  # uvicorn logs why, and leaves
        return False
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return server.started


def _ignore(*_: object) -> None:
    pass
