"""Continuous batching: what a request gets is what it gets alone, whenever it comes and whatever runs beside it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from onebit.engine import Batch, Event, Model
from onebit.errors import EngineError
from onebit.formats import onebit_file
from onebit.formats.random_model import random_description, random_file

CONTEXT = 24


def byte_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def make_model(folder: Path, position: str = "rope", tokenizer: Tokenizer | None = None) -> Model:
    path = folder / f"{position}.1bit"
    description = random_description(vocab_size=256, eos=7, bos=None, max_seq_len=CONTEXT, position=position)
    text = None if tokenizer is None else tokenizer.to_str()
    onebit_file.write(path, random_file(description, embedding_layout="int8", tokenizer_json=text, seed=5))
    return Model(path, threads=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_model(tmp_path_factory.mktemp("batch"), tokenizer=byte_tokenizer())


def alone(model: Model, prompt: list[int], **options: Any) -> tuple[list[int], str, str | None]:
    generation = model.generate(prompt, session=model.session(), **options)
    text = "".join(generation)
    return generation.ids, text, generation.stats.stopped_by


# Few tokens, so that prompts share beginnings and stop strings appear.
PROMPTS = st.lists(st.integers(60, 63), min_size=1, max_size=CONTEXT)
OPTIONS = st.fixed_dictionaries(
    {"max_new_tokens": st.integers(1, 60)},
    optional={
        "temperature": st.sampled_from([0.0, 0.7, 1.5]),
        "seed": st.integers(0, 5),
        "top_k": st.sampled_from([0, 3]),
        "top_p": st.sampled_from([1.0, 0.8]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "repetition_window": st.integers(1, 8),
        "context_shift": st.integers(0, CONTEXT - 2),
        "stop": st.lists(st.text("abc!\xe9", min_size=1, max_size=2), max_size=2),
    },
)
ARRIVALS = st.lists(st.tuples(st.integers(0, 12), PROMPTS, OPTIONS), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrivals=ARRIVALS, slots=st.integers(1, 3), step_tokens=st.sampled_from([1, 3, 16]))
def test_each_request_gets_what_it_gets_alone(
    model: Model, arrivals: list[tuple[int, list[int], dict[str, Any]]], slots: int, step_tokens: int
) -> None:
    batch = Batch(model, slots, step_tokens=step_tokens)
    arrivals = sorted(arrivals, key=lambda arrival: arrival[0])
    requests, step = [], 0
    seen: dict[int, list[Event]] = {}
    while len(requests) < len(arrivals) or batch.num_open:
        while len(requests) < len(arrivals) and arrivals[len(requests)][0] <= step:
            _, prompt, options = arrivals[len(requests)]
            requests.append(batch.submit(prompt, **options))
        for event in batch.step():
            seen.setdefault(id(event.request), []).append(event)
        step += 1
    for request, (_, prompt, options) in zip(requests, arrivals, strict=True):
        ids, text, stopped_by = alone(model, prompt, **options)
        assert (request.ids, "".join(request), request.stats.stopped_by) == (ids, text, stopped_by)
        events = seen[id(request)]
        assert [token for event in events for token in event.tokens] == ids
        assert "".join(event.text for event in events) == text
        assert [event.stopped_by for event in events] == [None] * (len(events) - 1) + [stopped_by]
        assert request.stats.new_tokens == len(ids)
        assert request.stats.reused_tokens < request.stats.prompt_tokens == len(prompt)


def test_iterating_one_request_serves_them_all(model: Model) -> None:
    batch = Batch(model, 2, step_tokens=4)
    prompts = [[60, 61], [62] * 9, [63, 60, 61]]
    requests = [batch.submit(prompt, max_new_tokens=9) for prompt in prompts]
    texts = ["".join(request) for request in requests]
    assert texts == [alone(model, prompt, max_new_tokens=9)[1] for prompt in prompts]
    assert "".join(requests[0]) == ""  # each piece comes once
    assert not batch.num_open
    assert batch.step() == []


def test_a_long_prompt_does_not_stall_the_others(model: Model) -> None:
    batch = Batch(model, 2, step_tokens=4)
    first = batch.submit([60], max_new_tokens=20)
    batch.step()
    second = batch.submit([61] * 20, max_new_tokens=2)
    for expected in range(2, 8):
        batch.step()
        assert len(first.ids) == expected
    assert not second.ids  # 3 of its 20 tokens a step
    batch.step()
    assert len(second.ids) == 1


def test_a_shared_beginning_is_read_once(model: Model) -> None:
    batch = Batch(model, 2)
    system, turn = [60, 61, 62, 63, 60, 60], [61, 61, 63]
    first = batch.submit([*system, *turn], max_new_tokens=3)
    list(batch.run())
    going_on = batch.submit([*system, *turn, *first.ids, 60], max_new_tokens=3)
    list(batch.run())
    assert going_on.stats.reused_tokens == 11  # all but the last token written, which was never read
    # In the one slot used so far this beginning is the smaller part: it is copied into the other.
    other = batch.submit([*system, 63], max_new_tokens=3)
    list(batch.run())
    assert other.stats.reused_tokens == 6
    again = batch.submit([*system, *turn, *first.ids, 60, *going_on.ids, 60], max_new_tokens=3)
    list(batch.run())
    assert again.stats.reused_tokens == 15
    for request in (first, going_on, other, again):
        assert request.ids == alone(model, request.prompt, max_new_tokens=3)[0]


def test_a_beginning_is_copied_from_a_running_request(model: Model) -> None:
    batch = Batch(model, 2)
    first = batch.submit([60, 61, 62, 63], max_new_tokens=15)
    batch.step()
    second = batch.submit([60, 61, 62, 60], max_new_tokens=5)
    list(batch.run())
    assert second.stats.reused_tokens == 3
    assert second.ids == alone(model, second.prompt, max_new_tokens=5)[0]
    assert first.ids == alone(model, first.prompt, max_new_tokens=15)[0]


def test_the_slot_that_nobody_used_for_longest_is_given_up(model: Model) -> None:
    batch = Batch(model, 2)
    for prompt in ([60] * 8, [61] * 8, [60] * 8, [62] * 8):  # the last one takes the slot of [61] * 8
        batch.submit(prompt, max_new_tokens=1)
        list(batch.run())
    for prompt, reused in (([60] * 8, 7), ([61] * 8, 0)):
        request = batch.submit(prompt, max_new_tokens=1)
        list(batch.run())
        assert request.stats.reused_tokens == reused


def test_cancelling(model: Model) -> None:
    batch = Batch(model, 1)
    running, waiting, last = (batch.submit([60 + i, 61], max_new_tokens=20) for i in range(3))
    for _ in range(3):
        batch.step()
    running.cancel()
    waiting.cancel()
    ended = [event for event in batch.step() if event.stopped_by]
    assert {event.request for event in ended} == {running, waiting}
    assert all(event.stopped_by == "cancelled" for event in ended)
    list(batch.run())
    assert running.ids == alone(model, [60, 61], max_new_tokens=20)[0][:3]
    assert waiting.ids == []
    assert list(waiting) == []
    assert last.ids == alone(model, [62, 61], max_new_tokens=20)[0]


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_a_full_context_can_go_on(position: str, tmp_path: Path) -> None:
    model = make_model(tmp_path, position, byte_tokenizer())
    batch = Batch(model, 2, step_tokens=5)
    prompt = [60, 61, 62, 63, 64]
    request = batch.submit(prompt, max_new_tokens=70, context_shift=2)
    beside = batch.submit([61], max_new_tokens=12)
    list(batch.run())
    assert request.ids == alone(model, prompt, max_new_tokens=70, context_shift=2)[0]
    assert request.stats.shifts >= 2
    assert beside.ids == alone(model, [61], max_new_tokens=12)[0]
    # What was shifted is not what a prompt gives alone, and serves no other request.
    again = batch.submit(prompt, max_new_tokens=4)
    list(batch.run())
    assert again.ids == alone(model, prompt, max_new_tokens=4)[0]


def alone_without_text(model: Model, prompt: list[int], count: int) -> list[int]:
    session = model.session()
    ids = [int(session.prefill(prompt).argmax())]
    while len(ids) < count and ids[-1] != 7:
        ids.append(int(session.decode(ids[-1]).argmax()))
    return ids


def test_submitting_from_many_threads(model: Model) -> None:
    batch = Batch(model, 3)
    prompts = [[60 + index % 4] * (1 + index % 5) for index in range(12)]
    found: dict[int, str] = {}

    def client(index: int) -> None:
        found[index] = "".join(batch.submit(prompts[index], max_new_tokens=6, temperature=1.0, seed=index))

    threads = [threading.Thread(target=client, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for index, prompt in enumerate(prompts):
        assert found[index] == alone(model, prompt, max_new_tokens=6, temperature=1.0, seed=index)[1]


def test_a_thread_that_only_steps(model: Model) -> None:
    batch = Batch(model, 2)
    assert not batch.wait(0)
    ended, events = threading.Event(), []

    def serve() -> None:
        while not ended.is_set():
            if batch.wait(0.05):
                batch.step()

    server = threading.Thread(target=serve)
    server.start()
    done = threading.Event()

    def keep(event: Event) -> None:
        events.append(event)
        if event.stopped_by:
            done.set()

    request = batch.submit([60, 61, 62], max_new_tokens=8, on_event=keep)
    assert done.wait(60)
    ended.set()
    server.join(60)
    ids, text, stopped_by = alone(model, [60, 61, 62], max_new_tokens=8)
    assert ([event.tokens[0] for event in events], "".join(event.text for event in events)) == (ids, text)
    assert events[-1].stopped_by == stopped_by
    assert request.stats.waited_seconds >= 0 < request.stats.prefill_seconds


def test_what_cannot_be_served_is_refused_at_once(model: Model, tmp_path: Path) -> None:
    batch = Batch(model, 1)
    for prompt, options, what in (
        ([], {}, "empty"),
        ([60] * (CONTEXT + 1), {}, "the context holds 24"),
        ([256], {}, "outside the vocabulary"),
        ([60], {"max_new_tokens": 0}, "max_new_tokens"),
        ([60], {"context_shift": CONTEXT - 1}, "context_shift"),
        ([60], {"temperature": -1.0}, "temperature"),
    ):
        with pytest.raises(EngineError, match=what):
            batch.submit(prompt, **options)
    assert not batch.num_open
    with pytest.raises(EngineError, match="step_tokens"):
        Batch(model, 1, step_tokens=0)
    silent = Batch(make_model(tmp_path), 1)
    with pytest.raises(EngineError, match="no tokenizer"):
        silent.submit([60], stop="x")
    request = silent.submit([60], max_new_tokens=3)
    assert "".join(request) == ""
    assert request.ids == alone_without_text(model, [60], 3)


def test_log_probabilities_are_those_of_the_logits_alone(model: Model) -> None:
    """Of the answer and of the prompt, read in parts beside another request, with a beginning that is in the cache."""
    prompt = [40, 9, 200, 31, 5, 8, 90, 91, 92, 61, 3]
    batch = Batch(model, slots=2, step_tokens=5)
    list(batch.submit(prompt, max_new_tokens=2))
    beside = batch.submit([1, 2, 3], max_new_tokens=9)
    events: list[Event] = []
    request = batch.submit(prompt, max_new_tokens=4, logprobs=3, score_from=1, on_event=events.append)
    list(batch.run())
    assert beside.stats.stopped_by is not None
    ids = [*prompt, *request.ids]
    logits_TV = model.logits(ids).astype(np.float64)
    expected_TV = logits_TV - np.log(np.exp(logits_TV).sum(1, keepdims=True))
    told = [*request.prompt_logprobs, *(event.logprob for event in events)]
    assert [one.token for one in told if one] == ids[1:]
    for position, one in enumerate(told):
        assert one is not None
        assert one.logprob == pytest.approx(expected_TV[position, ids[position + 1]], abs=1e-9)
        best = np.argsort(-expected_TV[position])[:3]
        assert [token for token, _ in one.top] == best.tolist()
        assert [value for _, value in one.top] == pytest.approx(expected_TV[position, best], abs=1e-9)
