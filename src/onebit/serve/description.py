"""/openapi.json: what is asked and answered, with the limits of the model that is served."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from onebit.serve.service import Service

__all__ = ["CHAT", "COMPLETION", "PROBLEMS", "add_description"]

Schema = dict[str, Any]


def _object(**fields: Any) -> Schema:
    """An object that has all of these fields; those that may be null say so."""
    return {"type": "object", "properties": fields, "required": list(fields)}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


_COUNT: Schema = {"type": "integer", "minimum": 0}
_REASON = _or_null({"enum": ["stop", "length"]})
_LOGPROBS = _or_null({"type": "object"})
_USAGE = _object(
    prompt_tokens=_COUNT,
    completion_tokens=_COUNT,
    total_tokens=_COUNT,
    prompt_tokens_details=_object(cached_tokens=_COUNT),
)
_ERROR = _object(
    error=_object(
        message={"type": "string"},
        type={"type": "string"},
        param=_or_null({"type": "string"}),
        code=_or_null({"type": "string"}),
    )
)
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": _ERROR}}}
    for status, text in (
        (400, "The request asks for what cannot be"),
        (401, "The API key is missing or wrong"),
        (404, "The model is not here"),
        (413, "The body is too large"),
        (429, "Too many requests wait"),
        (503, "The engine has stopped"),
    )
}


def _answer(kind: str, **choice: Any) -> dict[int | str, dict[str, Any]]:
    """Status -> a whole answer or a stream, and every problem."""
    choices = {"type": "array", "items": _object(index=_COUNT, logprobs=_LOGPROBS, finish_reason=_REASON, **choice)}
    whole = _object(
        id={"type": "string"},
        object={"const": kind},
        created=_COUNT,
        model={"type": "string"},
        choices=choices,
        usage=_USAGE,
    )
    told = "The answer; as a stream: server-sent events, each a chunk as JSON, then [DONE]"
    return {
        200: {"description": told, "content": {"application/json": {"schema": whole}, "text/event-stream": {}}},
        **PROBLEMS,
    }


CHAT = _answer("chat.completion", message=_object(role={"const": "assistant"}, content={"type": "string"}))
COMPLETION = _answer("text_completion", text={"type": "string"})


def add_description(app: FastAPI, service: Service) -> None:
    """Have `app` describe itself so: FastAPI's account of the routes, with what it cannot know."""
    written = app.openapi

    def described() -> Schema:
        if app.openapi_schema is None:
            app.openapi_schema = _corrected(written(), service)
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]


def _corrected(page: Schema, service: Service) -> Schema:
    schemas: dict[str, Any] = page["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):  # such requests are 400 here
        schemas.pop(name, None)
    for routes in page["paths"].values():
        for route in routes.values():
            route["responses"].pop("422", None)
            for parameter in route.get("parameters", ()):
                parameter["schema"]["enum"] = [service.settings.name]
    most = service.settings.max_new_tokens
    for name in ("ChatRequest", "CompletionRequest"):
        fields = schemas[name]["properties"]
        fields["model"]["enum"] = [service.settings.name]
        for field in ("max_tokens", "max_completion_tokens"):
            if most is not None and field in fields:
                fields[field]["anyOf"][0]["maximum"] = most
    for token in _tokens(schemas):
        token["exclusiveMaximum"] = service.model.description.vocab_size
    if service.settings.api_key is not None:
        page["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for routes in page["paths"].values():
            for route in routes.values():
                if "401" in route["responses"]:
                    route["security"] = [{"key": []}]
    return page


def _tokens(schema: Any) -> list[Schema]:
    """Every schema of a token id below this one."""
    if isinstance(schema, list):
        return [found for part in schema for found in _tokens(part)]
    if not isinstance(schema, dict):
        return []
    own = [schema] if schema.get("exclusiveMaximum") == 2**31 else []
    return own + _tokens(list(schema.values()))
