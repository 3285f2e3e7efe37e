"""Bodies of requests, as OpenAI's interface has them, and what the engine is asked for them.

What the engine cannot do is refused rather than ignored: a client that asks for tools or for JSON must not believe that
it got them. top_k, min_p and repetition_penalty are ours; clients pass them as extra fields.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

__all__ = ["ChatMessage", "ChatRequest", "CompletionRequest", "StreamOptions", "Token"]

# Fields of the interface that would change the answer, and the values that do not.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "frequency_penalty": (None, 0, 0.0),
    "function_call": (None, "none"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "modalities": (None, ["text"]),
    "presence_penalty": (None, 0, 0.0),
    "response_format": (None, {"type": "text"}),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
}


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 4.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
Text = Annotated[str, StringConstraints(max_length=200)]
Token = Annotated[int, Field(ge=0, lt=2**31, strict=True), WHOLE]
Tokens = Annotated[list[Token], Field(min_length=1)]


class StreamOptions(BaseModel):
    """How a stream ends."""

    model_config = ConfigDict(strict=True)

    include_usage: bool = False


class _Sampled(BaseModel):
    """What both kinds of request have."""

    model_config = ConfigDict(extra="allow", strict=True)  # "4" is no number

    model: Annotated[str, Field(description="The name that /v1/models tells.")]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=8, description="Answers to each prompt."), WHOLE] | None = 1
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 1.0
    top_p: Annotated[float, Field(ge=0, le=1)] | None = 1.0
    top_k: Annotated[int, Field(ge=0, description="Choose among the k most likely; 0: all."), WHOLE] = 0
    min_p: Annotated[float, Field(ge=0, le=1, description="Drop tokens below this share of the best one's.")] = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10, description="Above 1: recent tokens get rarer.")] = 1.0
    seed: Annotated[int, WHOLE] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=16)] | None = None
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, body: Any) -> Any:
        for name, harmless in _UNSUPPORTED.items() if isinstance(body, dict) else ():
            if name in body and not any(body[name] == value and type(body[name]) is type(value) for value in harmless):
                raise ValueError(f"{name} is not supported by this server; leave it out")
        return body

    def options(self) -> dict[str, Any]:
        """Of `Batch.submit`, but for lengths and log probabilities; without a seed a new one each time."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return {
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else max(self.top_p, 1e-6),  # the engine keeps at least one token
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "seed": secrets.randbits(32) if self.seed is None else self.seed % 2**32,
            "stop": [text for text in stop if text],
        }

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with a chunk of token counts."""
        return self.stream_options is not None and self.stream_options.include_usage


class TextPart(BaseModel):
    """A part of a message; texts are the only kind."""

    model_config = ConfigDict(strict=True)

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One turn."""

    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def for_template(self) -> dict[str, str]:
        """As chat templates have it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(_Sampled):
    """Body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1), WHOLE] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1), WHOLE] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None

    @property
    def num_logprobs(self) -> int | None:
        """How many alternatives are told; None: no log probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def most_tokens(self) -> int | None:
        """Of the answer; None: as many as the context has room for. One name is the older."""
        return min((n for n in (self.max_completion_tokens, self.max_tokens) if n is not None), default=None)


class CompletionRequest(_Sampled):
    """Body of /v1/completions. prompt: a text or its token ids, or several of these."""

    prompt: str | Annotated[list[str], Field(min_length=1)] | Tokens | Annotated[list[Tokens], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=0), WHOLE] | None = 16
    logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    echo: bool | None = False

    def prompts(self) -> list[str | list[int]]:
        """Each by itself."""
        given = self.prompt
        if isinstance(given, str):
            return [given]
        if given and all(isinstance(item, int) for item in given):
            return [given]  # type: ignore[list-item]
        return list(given)  # type: ignore[arg-type]
