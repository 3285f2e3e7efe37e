"""Several sequences in a session: each gets the bits it gets alone; copies, shifts, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onebit.engine import Model
from onebit.errors import EngineError

TEXTS = ([1, 5, 96, 0, 33, 33, 7, 64], [12, 90, 41], [2, 3, 58, 77, 20, 11, 19, 19, 80, 66, 54, 43, 32])


def _interleaved(rng: np.random.Generator) -> list[tuple[int, int]]:
    """(token, sequence) of all texts: in order within each, in a random order between them."""
    order = rng.permutation(np.repeat(np.arange(len(TEXTS)), [len(text) for text in TEXTS]))
    places = [iter(text) for text in TEXTS]
    return [(next(places[sequence]), int(sequence)) for sequence in order]


@pytest.mark.parametrize("kv", ["float32", "float16", "int8"])
@pytest.mark.parametrize(("threads", "max_batch"), [(1, 32), (2, 32), (2, 5), (1, 1)])
def test_each_sequence_gets_the_bits_it_gets_alone(
    make_file: Callable[..., Any], kv: str, threads: int, max_batch: int
) -> None:
    model = Model(make_file({"qk_norm": True, "sub_norm": True}, granularity="per_group")[0], threads=threads)
    alone = [model.logits(text, kv=kv) for text in TEXTS]
    items = _interleaved(np.random.default_rng(0))
    session = model.session(max_batch=max_batch, kv=kv, sequences=4)
    got: list[list[Any]] = [[], [], []]
    for begin, end in ((0, 7), (7, 8), (8, len(items))):
        part = items[begin:end]
        logits = session.forward_batch([token for token, _ in part], [sequence for _, sequence in part])
        for row, (_, sequence) in zip(logits, part, strict=True):
            got[sequence].append(row)
    for sequence, text in enumerate(TEXTS):
        assert np.stack(got[sequence]).tobytes() == alone[sequence].tobytes()
        assert session.position_of(sequence) == len(text)
        assert session.tokens_of(sequence) == text
    assert session.position_of(3) == 0


def test_only_wanted_logits_come_back(make_file: Callable[..., Any]) -> None:
    model = Model(make_file()[0])
    items = _interleaved(np.random.default_rng(1))
    tokens, sequences = [token for token, _ in items], [sequence for _, sequence in items]
    every = model.session(max_batch=7, sequences=3).forward_batch(tokens, sequences)
    wants = [index % 5 in (1, 4) for index in range(len(items))]
    session = model.session(max_batch=7, sequences=3)
    assert session.forward_batch(tokens, sequences, wants).tobytes() == every[wants].tobytes()
    none = session.forward_batch([7], [1], [False])
    assert none.shape == (0, model.description.vocab_size)


def test_long_batches_run_in_parts(make_file: Callable[..., Any]) -> None:
    model = Model(make_file({"max_seq_len": 400})[0])
    ids = [1 + 7 * i % 90 for i in range(300)]
    logits = model.session(sequences=2).forward_batch([*ids, *ids], [0] * 300 + [1] * 300)
    expected = model.logits(ids).tobytes()
    assert logits[:300].tobytes() == expected
    assert logits[300:].tobytes() == expected


def test_a_copied_beginning_serves_other_sequences(make_file: Callable[..., Any]) -> None:
    model = Model(make_file()[0], threads=2)
    session = model.session(sequences=3)
    session.prefill(TEXTS[2])
    session.forward_batch([9, 9], [2, 2])
    session.copy_sequence(0, 1, 6)
    session.copy_sequence(0, 2)
    logits = session.forward_batch([4, 5], [1, 2])
    assert logits[0].tobytes() == model.logits([*TEXTS[2][:6], 4])[-1].tobytes()
    assert logits[1].tobytes() == model.logits([*TEXTS[2], 5])[-1].tobytes()
    assert session.tokens_of(1) == [*TEXTS[2][:6], 4]
    assert session.decode(6).tobytes() == model.logits([*TEXTS[2], 6])[-1].tobytes()
    session.truncate_sequence(1, 2)
    assert session.forward_batch([8], [1])[0].tobytes() == model.logits([*TEXTS[2][:2], 8])[-1].tobytes()
    session.copy_sequence(0, 1, 0)
    assert session.forward_batch(TEXTS[1], [1] * 3)[-1].tobytes() == model.logits(TEXTS[1])[-1].tobytes()


# Rounding keys and values is what separates the caches from float64; a shift rounds kept keys once more.
@pytest.mark.parametrize(("kv", "tolerance"), [("float32", 1e-5), ("float16", 3e-3), ("int8", 5e-2)])
@pytest.mark.parametrize(("keep", "discard"), [(0, 5), (3, 4), (5, 8), (2, 1), (13, 0)])
def test_after_a_shift_as_with_those_rows_dropped(
    make_file: Callable[..., Any], reference: Any, kv: str, tolerance: float, keep: int, discard: int
) -> None:
    path, file = make_file({"qk_norm": True}, activation="none")
    before, after = TEXTS[2], TEXTS[0]
    oracle, session = reference(file), Model(path, threads=2).session(kv=kv, max_batch=4)
    oracle.run(before)
    session.prefill(before)
    for _ in range(2):  # the second time with rows that were turned before
        oracle.drop(keep, discard)
        session.shift(keep, discard)
        expected = oracle.go_on(after)[0]
        got = session.forward(after, "all")
        assert np.abs(got - expected).max() / np.abs(expected).max() < tolerance
    assert session.position == len(before) + 2 * (len(after) - discard)
    assert len(session.tokens) == session.position


def test_a_shift_makes_room_and_moves_one_sequence_only(make_file: Callable[..., Any]) -> None:
    model = Model(make_file({"max_seq_len": 16})[0])
    session = model.session(sequences=2)
    for _ in range(2):
        session.forward_batch(TEXTS[0] * 2, [1] * 16)
        session.prefill(TEXTS[0] * 2)
        with pytest.raises(EngineError, match="full"):
            session.decode(3)
        session.shift(2, 6)
        session.decode(3)
        assert session.tokens == [*TEXTS[0][:2], *TEXTS[0], 3]
        session.truncate_sequence(1, 15)
        assert session.forward_batch([5], [1])[0].tobytes() == model.logits([*(TEXTS[0] * 2)[:15], 5])[-1].tobytes()
        session.truncate_sequence(1, 0)
        session.reset()  # and everything is as at the start
    assert session.prefill(TEXTS[2]).tobytes() == model.logits(TEXTS[2])[-1].tobytes()


def test_going_on_after_a_shift_keeps_only_what_is_true(make_file: Callable[..., Any]) -> None:
    model = Model(make_file()[0])
    session = model.session(kv="float32")
    session.prefill(TEXTS[2])
    session.shift(0, 4)
    other = [*session.tokens[:5], 1, 1]
    assert session.continue_with(other).tobytes() == model.logits(other, kv="float32")[-1].tobytes()


def test_refusals_change_nothing(make_file: Callable[..., Any]) -> None:
    model = Model(make_file({"max_seq_len": 16})[0])
    session = model.session(sequences=2)
    session.prefill(TEXTS[1])
    for tokens, sequences, wants in (
        ([4, 5], [0, 2], None),
        ([4, 97], [0, 1], None),
        ([4, 5], [0], None),
        ([4], [0], [True, False]),
        ([4] * 14, [0] * 14, None),
        ([4], [-1], None),
    ):
        with pytest.raises(EngineError):
            session.forward_batch(tokens, sequences, wants)
    for call in (
        lambda: session.shift(2, 2),
        lambda: session.shift(-1, 2),
        lambda: session.copy_sequence(0, 0),
        lambda: session.copy_sequence(0, 1, 4),
        lambda: session.copy_sequence(0, 2, 1),
        lambda: session.position_of(2),
        lambda: model.session(sequences=0),
        lambda: model.session(sequences=1025),
    ):
        with pytest.raises(EngineError):
            call()
    assert session.position_of(0) == 3
    assert session.position_of(1) == 0
    assert session.decode(4).tobytes() == model.logits([*TEXTS[1], 4])[-1].tobytes()


def test_learned_positions_cannot_shift(make_file: Callable[..., Any]) -> None:
    session = Model(make_file({"position": "learned", "norm": "layernorm", "mlp": "gelu"})[0]).session()
    session.prefill(TEXTS[0])
    with pytest.raises(EngineError, match="run the text again"):
        session.shift(0, 2)
