"""Texts to tokens and back, at the paths that vLLM has for it: evaluation harnesses ask a server there."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict

from onebit.engine.conversation import specials_of
from onebit.serve.problems import Problem
from onebit.serve.requests import Token
from onebit.serve.service import Service

__all__ = ["PATHS", "add_tokens"]

PATHS = ("/tokenizer_info", "/tokenize", "/detokenize")


class TokenizeRequest(BaseModel):
    """Body of /tokenize."""

    model_config = ConfigDict(strict=True)

    prompt: str
    add_special_tokens: bool = True


class DetokenizeRequest(BaseModel):
    """Body of /detokenize."""

    model_config = ConfigDict(strict=True)

    tokens: list[Token]


def add_tokens(app: FastAPI, service: Service, problems: dict[int | str, dict[str, Any]]) -> None:
    """Add the three paths."""
    tokenizer, context = service.model.tokenizer, service.context
    about = {**specials_of(service.model), "model_max_length": context, "chat_template": service.model.chat_template}
    told = {"bos_token": None, "eos_token": None, "pad_token": None, **about}
    answers: dict[int | str, dict[str, Any]] = {status: problems[status] for status in (400, 401, 413)}

    @app.get("/tokenizer_info", responses={401: problems[401]})
    async def info() -> dict[str, Any]:
        """Special tokens, and the chat template."""
        return told

    @app.post("/tokenize", responses=answers)
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        """Token ids of a text."""
        ids = tokenizer.encode(body.prompt, add_special_tokens=body.add_special_tokens).ids
        return {"tokens": ids, "count": len(ids), "max_model_len": context}

    @app.post("/detokenize", responses=answers)
    async def detokenize(body: DetokenizeRequest) -> dict[str, str]:
        """The text of token ids."""
        if any(token >= service.model.description.vocab_size for token in body.tokens):
            raise Problem(400, f"a token is outside the vocabulary of {service.model.description.vocab_size}")
        return {"prompt": tokenizer.decode(body.tokens, skip_special_tokens=False)}
