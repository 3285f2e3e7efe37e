"""Streaming: whole characters, stop strings over several tokens, reasons to stop, figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from onebit.engine import Model
from onebit.engine.generate import StopFilter, TextStream
from onebit.errors import EngineError


@pytest.fixture(scope="module")
def byte_tokenizer() -> Tokenizer:
    """One token a byte: the hardest case for whole characters."""
    vocab = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.fixture
def model(make_file: Callable[..., Any], byte_tokenizer: Tokenizer) -> Model:
    fields = {"vocab_size": 256, "eos": None, "bos": None}
    return Model(make_file(fields, tokenizer_json=byte_tokenizer.to_str())[0])


def test_stream_never_splits_a_character(byte_tokenizer: Tokenizer) -> None:
    text = "naïve 日本語 🙂 done"
    stream = TextStream(byte_tokenizer)
    pieces = [stream.push(token) for token in byte_tokenizer.encode(text).ids]
    assert "".join(pieces) + stream.flush() == text
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)


def test_stream_lets_broken_bytes_go(byte_tokenizer: Tokenizer) -> None:
    broken = [byte_tokenizer.encode("é").ids[0]] * 6
    stream = TextStream(byte_tokenizer)
    assert "\N{REPLACEMENT CHARACTER}" in "".join(stream.push(token) for token in broken) + stream.flush()


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_stop_string_is_never_shown(size: int) -> None:
    text, filtered = "one <en> two <end> three", StopFilter(["<end>", "END"])
    out = ""
    for start in range(0, len(text), size):
        out += filtered.push(text[start : start + size])
        if filtered.found:
            break
    assert out == "one <en> two "


def test_held_back_text_comes_at_the_end() -> None:
    filtered = StopFilter(["<end>"])
    assert filtered.push("a <en") == "a "
    assert filtered.flush() == "<en"
    assert not filtered.found


def test_the_earliest_stop_wins() -> None:
    filtered = StopFilter(["later", "now"])
    assert filtered.push("stop now, not later") == "stop "


def test_generation_equals_greedy_decoding(model: Model) -> None:
    generation = model.generate([5, 6, 7], max_new_tokens=12)
    text = "".join(generation)
    session = model.session()
    logits, ids = session.prefill([5, 6, 7]), []
    for _ in range(12):
        ids.append(int(logits.argmax()))
        logits = session.decode(ids[-1])
    assert generation.ids == ids
    assert text == model.tokenizer.decode(ids)
    assert generation.stats.stopped_by == "length"
    assert generation.stats.new_tokens == 12
    assert generation.stats.decode_speed > 0


def test_stop_string_inside_a_generation(model: Model) -> None:
    options = {"max_new_tokens": 40, "temperature": 1.0, "seed": 3}
    text = "".join(model.generate([70], **options))
    stop = text[8:11]
    generation = model.generate([70], stop=stop, **options)
    assert "".join(generation) == text[: text.index(stop)]
    assert generation.stats.stopped_by == "stop"


def test_context_end_and_prompt_too_long(make_file: Callable[..., Any], byte_tokenizer: Tokenizer) -> None:
    path, _ = make_file(
        {"vocab_size": 256, "bos": None, "eos": None, "max_seq_len": 8}, tokenizer_json=byte_tokenizer.to_str()
    )
    generation = Model(path).generate("abcde", max_new_tokens=20)
    "".join(generation)
    assert generation.stats.stopped_by == "context"
    assert generation.stats.new_tokens == 4  # three fit into the context, the last one need not
    with pytest.raises(EngineError, match="shorten"):
        Model(path).generate("abcdefghi")


def test_end_token_stops(make_file: Callable[..., Any], byte_tokenizer: Tokenizer) -> None:
    fields = {"vocab_size": 256, "eos": None}
    path, _ = make_file(fields, tokenizer_json=byte_tokenizer.to_str())
    generation = Model(path).generate([9], max_new_tokens=3, temperature=1.0, seed=1)
    list(generation)
    third = generation.ids[2]
    path, _ = make_file(fields | {"eos": third}, tokenizer_json=byte_tokenizer.to_str())
    generation = Model(path).generate([9], max_new_tokens=30, temperature=1.0, seed=1)
    text = "".join(generation)
    assert generation.stats.stopped_by == "eos"
    assert generation.ids[-1] == third
    assert text == Model(path).tokenizer.decode(generation.ids[:-1])


def test_a_session_goes_on(model: Model) -> None:
    session = model.session()
    first = model.generate([5, 6, 7], max_new_tokens=5, session=session)
    "".join(first)
    longer = [5, 6, 7, *first.ids, 9]
    assert "".join(model.generate(longer, max_new_tokens=5, session=session)) == "".join(
        model.generate(longer, max_new_tokens=5)
    )


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
def test_sampled_tokens_are_the_same_on_every_isa(model: Model, isa: str) -> None:
    try:
        other = Model(model.path, isa=isa)
    except EngineError:
        pytest.skip(f"no {isa} here")
    options = {"max_new_tokens": 30, "temperature": 0.9, "top_k": 50, "top_p": 0.95, "seed": 11}
    ours, theirs = model.generate([1], **options), other.generate([1], **options)
    assert "".join(ours) == "".join(theirs)
    assert ours.ids == theirs.ids


def test_unknown_option(model: Model) -> None:
    with pytest.raises(TypeError):
        model.generate([1], temprature=1.0)


@pytest.mark.parametrize(("bos", "text", "same_as"), [(7, "ab", "ab"), (None, "ab", "ab"), (None, "", "\n")])
def test_a_prompt_starts_with_the_models_bos(
    make_file: Callable[..., Any], byte_tokenizer: Tokenizer, bos: int | None, text: str, same_as: str
) -> None:
    path, _ = make_file({"vocab_size": 256, "bos": bos}, tokenizer_json=byte_tokenizer.to_str())
    start = [] if bos is None else [bos]
    assert Model(path).encode(text) == [*start, *byte_tokenizer.encode(same_as).ids]
