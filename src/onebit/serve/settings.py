"""What a server is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass

from onebit.errors import ConfigError

__all__ = ["ServeSettings"]


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Limits of a server. ConfigError for numbers that cannot be.

    slots: answers written at once; max_queue: requests that wait beside them; context: tokens of a slot, prompt and
    answer (None: the model's); max_new_tokens: of an answer (None: what the context holds); max_body_bytes: of a
    request; shutdown_seconds: that open answers have to end.
    """

    name: str
    api_key: str | None = None
    slots: int = 8
    max_queue: int = 256
    context: int | None = None
    kv: str = "default"
    step_tokens: int = 64
    max_new_tokens: int | None = None
    max_body_bytes: int = 2**20
    shutdown_seconds: float = 30.0

    def __post_init__(self) -> None:
        for what, least in (("slots", 1), ("max_queue", 0), ("max_body_bytes", 1), ("shutdown_seconds", 0)):
            if getattr(self, what) < least:
                raise ConfigError(f"{what} is {getattr(self, what)}, expected at least {least}")
        for what in ("context", "max_new_tokens"):
            value = getattr(self, what)
            if value is not None and value < 1:
                raise ConfigError(f"{what} is {value}, expected at least 1")
        if self.api_key is not None and not self.api_key.isascii():
            raise ConfigError("the API key has characters that a header cannot carry; use ASCII")
        if self.api_key == "":
            raise ConfigError("the API key is empty; leave it out for a server without one")
