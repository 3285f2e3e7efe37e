"""The official client against the server: answers, streams and error classes as its documentation has them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import openai
import pytest

from onebit.engine import Model
from onebit.engine.conversation import render_template

from .conftest import CONTEXT, TEMPLATE, Running

GREEDY: dict[str, Any] = {"model": "bytes", "temperature": 0}
MESSAGES: Any = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello?"}]


def client_of(server: Running, key: str = "any") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key=key, max_retries=0, timeout=30)


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return client_of(server)


def alone(model: Model, prompt: str, count: int, **options: Any) -> str:
    ids = model.tokenizer.encode(prompt, add_special_tokens=False).ids
    return "".join(model.generate(ids, max_new_tokens=count, **options))


def slow_down(server: Running) -> None:
    """So that answers are still being written when the next thing happens."""
    step = server.worker.batch.step
    server.worker.batch.step = lambda: (time.sleep(0.02), step())[1]


def chat_prompt(messages: Any = MESSAGES) -> str:
    return render_template(TEMPLATE, messages, {})


def test_a_chat_completion_is_what_the_model_says_alone(client: openai.OpenAI, model: Model) -> None:
    answer = client.chat.completions.create(messages=MESSAGES, max_completion_tokens=7, **GREEDY)
    assert answer.choices[0].message.content == alone(model, chat_prompt(), 7)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.model == "bytes"
    assert answer.usage is not None
    prompt = len(chat_prompt())
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, 7)
    assert answer.usage.total_tokens == prompt + 7


def test_a_stream_says_the_same(client: openai.OpenAI, model: Model) -> None:
    chunks = list(
        client.chat.completions.create(
            messages=MESSAGES, max_tokens=9, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == alone(model, chat_prompt(), 9)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 9
    assert len({chunk.id for chunk in chunks}) == 1


def test_completions_of_texts_and_tokens(client: openai.OpenAI, model: Model) -> None:
    prompts = ["Hello", "A b c"]
    expected = [alone(model, prompt, 5) for prompt in prompts]
    ids = [model.encode(prompt) for prompt in prompts]
    for prompt, count in ((prompts[0], 1), (prompts, 2), (ids[0], 1), (ids, 2)):
        answer = client.completions.create(prompt=prompt, max_tokens=5, **GREEDY)
        assert [choice.text for choice in answer.choices] == expected[:count]
        assert [choice.index for choice in answer.choices] == list(range(count))
    parts = [""] * 2
    for chunk in client.completions.create(prompt=prompts, max_tokens=5, stream=True, **GREEDY):
        for choice in chunk.choices:
            parts[choice.index] += choice.text
    assert parts == expected


def test_seed_temperature_and_number_of_answers(client: openai.OpenAI, model: Model) -> None:
    asked: dict[str, Any] = {"model": "bytes", "prompt": "Once", "max_tokens": 8, "temperature": 1.5, "seed": 7}
    answer = client.completions.create(n=3, **asked)
    expected = [alone(model, "Once", 8, temperature=1.5, seed=7 + i) for i in range(3)]
    assert [choice.text for choice in answer.choices] == expected
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 24)
    ours = client.completions.create(extra_body={"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.3}, **asked)
    options = {"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.3}
    assert ours.choices[0].text == alone(model, "Once", 8, temperature=1.5, seed=7, **options)
    drawn = {client.completions.create(**{**asked, "seed": None}).choices[0].text for _ in range(4)}
    assert len(drawn) > 1


def test_stop(client: openai.OpenAI, model: Model) -> None:
    whole = alone(model, "Once", 20)
    stop = whole[7:9]
    answer = client.completions.create(prompt="Once", max_tokens=20, stop=[stop, "never there"], **GREEDY)
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_log_probabilities(client: openai.OpenAI, model: Model) -> None:
    """Of answers and of an echoed prompt; the reference: a softmax of all logits in float64."""
    prompt = "To be"
    answer = client.completions.create(prompt=prompt, max_tokens=3, logprobs=2, echo=True, **GREEDY).choices[0]
    generation = model.generate(prompt, max_new_tokens=3)
    assert answer.text == prompt + "".join(generation)
    ids = [*model.encode(prompt), *generation.ids]
    logits_TV = model.logits(ids).astype(np.float64)
    expected_TV = logits_TV - np.log(np.exp(logits_TV).sum(1, keepdims=True))
    told = answer.logprobs
    assert told is not None
    assert told.tokens == [model.tokenizer.decode([token]) for token in ids]
    assert told.token_logprobs is not None
    assert told.token_logprobs[0] is None
    expected = expected_TV[np.arange(len(ids) - 1), ids[1:]]
    assert told.token_logprobs[1:] == pytest.approx(expected, abs=1e-9)
    assert told.top_logprobs is not None
    assert max(told.top_logprobs[4].values()) == pytest.approx(expected_TV[3].max(), abs=1e-9)
    chat = client.chat.completions.create(messages=MESSAGES, max_tokens=2, logprobs=True, top_logprobs=4, **GREEDY)
    content = chat.choices[0].logprobs.content  # type: ignore[union-attr]
    assert content is not None
    assert [len(one.top_logprobs) for one in content] == [4, 4]
    assert all(one.logprob == one.top_logprobs[0].logprob for one in content)  # greedy
    parts = list(client.completions.create(prompt=prompt, max_tokens=3, logprobs=2, echo=True, stream=True, **GREEDY))
    assert "".join(part.choices[0].text for part in parts) == answer.text
    tokens = [part.choices[0].logprobs for part in parts]
    assert [token for one in tokens if one is not None for token in one.tokens or []] == told.tokens
    nothing = client.completions.create(prompt=prompt, max_tokens=0, logprobs=1, echo=True, **GREEDY).choices[0]
    assert nothing.text == prompt
    assert len(nothing.logprobs.tokens or []) == len(prompt)  # type: ignore[union-attr]
    silent = client.completions.create(prompt=prompt, max_tokens=0, echo=True, stream=True, **GREEDY)
    assert "".join(part.choices[0].text for part in silent) == prompt


def test_models(client: openai.OpenAI) -> None:
    assert [one.id for one in client.models.list()] == ["bytes"]
    assert client.models.retrieve("bytes").owned_by == "onebit"
    with pytest.raises(openai.NotFoundError, match="'other' is not here"):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "other"}, openai.NotFoundError, "'bytes' is"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": [{"role": "user", "content": "x" * CONTEXT}]}, openai.BadRequestError, "context holds"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "tools"),
        ({"response_format": {"type": "json_object"}}, openai.BadRequestError, "response_format"),
        ({"frequency_penalty": 1.0}, openai.BadRequestError, "frequency_penalty"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens"),
        ({"n": 9}, openai.BadRequestError, "n: "),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
         openai.BadRequestError, "messages"),
    ],
)  # fmt: skip
def test_problems(client: openai.OpenAI, changes: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error) as raised:
        client.chat.completions.create(**{"messages": MESSAGES, **GREEDY, **changes})
    assert message in str(raised.value)


def test_a_model_without_a_template_goes_on(run_server: Callable[..., Running], plain_model: Model) -> None:
    client = client_of(run_server(plain_model))
    answer = client.chat.completions.create(messages=MESSAGES, max_tokens=6, **GREEDY)
    assert answer.choices[0].message.content == alone(plain_model, "Be kind.\nHello?", 6)


def test_the_key(run_server: Callable[..., Running]) -> None:
    server = run_server(api_key="s3cret")
    assert client_of(server, "s3cret").models.list().data
    with pytest.raises(openai.AuthenticationError, match="wrong"):
        client_of(server, "other").completions.create(prompt="x", **GREEDY)


def test_a_full_queue(run_server: Callable[..., Running]) -> None:
    server = run_server(slots=1, max_queue=1)
    slow_down(server)
    client = client_of(server)
    streams = [client.completions.create(prompt="x", max_tokens=90, stream=True, **GREEDY) for _ in range(2)]
    with pytest.raises(openai.RateLimitError, match="try again"):
        client.completions.create(prompt="x", **GREEDY)
    assert [list(stream)[-1].choices[0].finish_reason for stream in streams] == ["length"] * 2
    client.completions.create(prompt="x", **GREEDY)


@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_leaves_frees_its_slot(run_server: Callable[..., Running], model: Model, streams: bool) -> None:
    server = run_server(slots=1, context=CONTEXT)
    slow_down(server)
    client = client_of(server)
    if streams:
        stream = client.completions.create(prompt="x", max_tokens=90, stream=True, **GREEDY)
        next(iter(stream))
        stream.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.3).completions.create(prompt="x", max_tokens=90, **GREEDY)
    for _ in range(100):
        if server.worker.num_open == server.worker.batch.num_open == 0:
            break
        time.sleep(0.02)
    else:
        pytest.fail("the request is still open")
    assert client.completions.create(prompt="Once", max_tokens=4, **GREEDY).choices[0].text == alone(model, "Once", 4)


def test_answers_beside_each_other_are_those_alone(server: Running, model: Model) -> None:
    texts: dict[int, str] = {}

    def ask(i: int) -> None:
        answer = client_of(server).completions.create(prompt=f"text {i}", max_tokens=20, **GREEDY)
        texts[i] = answer.choices[0].text

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert texts == {i: alone(model, f"text {i}", 20) for i in range(12)}


def test_an_engine_that_fails_says_so(run_server: Callable[..., Running]) -> None:
    server = run_server()
    server.worker.batch.step = lambda: 1 / 0
    client = client_of(server)
    with pytest.raises(openai.InternalServerError, match="stopped"):
        client.completions.create(prompt="x", **GREEDY)
    with pytest.raises(openai.InternalServerError, match="stopped"):
        client.completions.create(prompt="x", **GREEDY)
