"""Schemathesis asks for all that /openapi.json describes, and for what it does not: statuses, types and schemas of the
answers are those described, what fits the description is answered, and what does not is refused."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, settings

from onebit.engine import Model
from onebit.serve.app import create_app
from onebit.serve.settings import ServeSettings

from .conftest import TEMPLATE, Running, write_model

schemathesis: Any = pytest.importorskip("schemathesis", reason="needs schemathesis, of the extra dev")
NEW_TOKENS = 8


@pytest.fixture(scope="module")
def limited(model: Model) -> Iterator[Running]:
    running = Running(model, slots=4, max_new_tokens=NEW_TOKENS)
    yield running
    running.stop()


def _description() -> Any:
    """Of a server like `limited`, known before any test runs: its operations are what the test is repeated for."""
    with tempfile.TemporaryDirectory() as folder:
        model = Model(write_model(Path(folder) / "bytes.1bit", TEMPLATE), threads=1)
        return create_app(model, ServeSettings(name="bytes", max_new_tokens=NEW_TOKENS)).openapi()


schema = schemathesis.openapi.from_dict(_description())


@schema.parametrize()
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_answers_are_those_described(case: Any, limited: Running) -> None:
    response = case.call(base_url=limited.address)
    if "context_length_exceeded" in response.text:  # how many tokens a text has, no schema can say
        assert response.status_code == 400
        return
    case.validate_response(response)


def test_limits_are_those_of_the_model_that_is_served(
    limited: Running, model: Model, run_server: Callable[..., Running]
) -> None:
    page = httpx.get(f"{limited.address}/openapi.json").json()
    schemas = page["components"]["schemas"]
    fields = schemas["CompletionRequest"]["properties"]
    assert fields["model"]["enum"] == ["bytes"]
    assert fields["max_tokens"]["anyOf"][0]["maximum"] == NEW_TOKENS
    assert schemas["DetokenizeRequest"]["properties"]["tokens"]["items"]["exclusiveMaximum"] == 256
    assert "ValidationError" not in str(page)
    assert "security" not in str(page)
    asked = {"model": "bytes", "prompt": "x"}  # the 16 tokens of nobody's asking are no reason to refuse
    answer = httpx.post(f"{limited.address}/v1/completions", json=asked).json()
    assert answer["usage"]["completion_tokens"] == NEW_TOKENS
    guarded = httpx.get(f"{run_server(api_key='sesame').address}/openapi.json").json()
    assert guarded["paths"]["/v1/models"]["get"]["security"] == [{"key": []}]
    assert "security" not in guarded["paths"]["/healthz"]["get"]
