"""A model behind an address: OpenAI's interface, and vLLM's paths for tokens, as `onebit serve` and vLLM have them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebit.errors import ConfigError

__all__ = ["ServedForm", "Server", "is_address"]

_SECONDS = 300


def is_address(model: str) -> bool:
    """Whether MODEL is not a path."""
    return model.startswith(("http://", "https://"))


class Server:
    """Asks a server; ConfigError when it does not answer as one."""

    def __init__(self, address: str, api_key: str | None = None) -> None:
        self.address, self.api_key = address.rstrip("/").removesuffix("/v1"), api_key

    @property
    def headers(self) -> dict[str, str]:
        key = {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}
        return {**key, "Content-Type": "application/json"}

    def get(self, path: str) -> Any:
        return self._ask(path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The model's name is put into the body of what needs one."""
        named = {"model": self.name, **body} if path.startswith("/v1/") else body
        return self._ask(path, json.dumps(named).encode())

    def _ask(self, path: str, body: bytes | None) -> Any:
        request = urllib.request.Request(self.address + path, body, self.headers)
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
                return json.load(answer)
        except (OSError, ValueError) as problem:  # URLError is an OSError
            raise ConfigError(
                f"{self.address}{path} does not answer as a server of models does ({problem}); expected OpenAI's"
                " /v1/models and vLLM's /tokenizer_info: is it running, is the address right, does it want --api-key?"
            ) from problem

    @cached_property
    def name(self) -> str:
        """Of the model that it serves, the first if there are more."""
        return str(self.get("/v1/models")["data"][0]["id"])

    @cached_property
    def about(self) -> dict[str, Any]:
        """Special tokens, context and chat template."""
        told: dict[str, Any] = self.get("/tokenizer_info")
        return told

    @cached_property
    def context(self) -> int:
        return int(self.about.get("model_max_length") or 2048)

    @cached_property
    def bos(self) -> int | None:
        return self._token("bos_token")

    @cached_property
    def eos(self) -> int | None:
        return self._token("eos_token")

    def encode(self, text: str) -> list[int]:
        """Token ids, without any that the text does not have."""
        ids: list[int] = self.post("/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special ones included."""
        return str(self.post("/detokenize", {"tokens": ids})["prompt"])

    def _token(self, name: str) -> int | None:
        text = self.about.get(name)
        return self.encode(text)[0] if text else None


@dataclass(frozen=True)
class _Encoded:
    ids: list[int]


class _ServedTokenizer:
    """What `evaluate` asks of a tokenizer."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def encode(self, text: str, add_special_tokens: bool = False) -> _Encoded:
        return _Encoded(self._server.encode(text))

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return self._server.decode(ids)


class ServedForm:
    """A served model as `evaluate` scores it: no logits, but the log probabilities of a prompt's tokens."""

    runtime = "server"
    vocab_size = 2**31  # what its tokenizer gives, it takes

    def __init__(self, server: Server) -> None:
        self._server, self.name, self.bos = server, server.address, server.bos
        self.context = server.context - 2  # a window is sent with its last target, and a token must fit behind it
        self.tokenizer: Any = _ServedTokenizer(server)

    def losses(self, ids_T: NDArray[np.int64], count: int) -> NDArray[np.float64]:
        """-log p of the last `count` of these tokens, each after those before it, float64 [count]."""
        asked = {"prompt": ids_T.tolist(), "max_tokens": 0, "echo": True, "logprobs": 0, "temperature": 0}
        try:
            told = self._server.post("/v1/completions", asked)["choices"][0]["logprobs"]["token_logprobs"]
            return -np.array(told[-count:], dtype=np.float64).reshape(count)
        except (KeyError, IndexError, TypeError, ValueError) as problem:
            raise ConfigError(
                f"{self.name} does not tell the log probabilities of a prompt (echo with logprobs, of OpenAI's"
                " /v1/completions), so no text can be scored; ask for --tasks that are answered, or --speed"
            ) from problem
