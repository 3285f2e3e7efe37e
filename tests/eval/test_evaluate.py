"""Scoring a text, against the same sums done the plain way."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from onebit.errors import ConfigError, DataError
from onebit.eval.evaluate import evaluate, read_text

from .tables import TableForm

TEXT = "A café is not a cafe, and näive is not naive.\n" * 5


def random_form(**settings: object) -> TableForm:
    return TableForm(np.random.default_rng(1).standard_normal((256, 256)) * 3, **settings)  # type: ignore[arg-type]


def plain_loss(form: TableForm, ids: list[int]) -> float:
    table = form.table.astype(np.float64)
    log_probabilities = table - np.log(np.exp(table).sum(-1, keepdims=True))
    return -sum(log_probabilities[a, b] for a, b in itertools.pairwise(ids))


@pytest.mark.parametrize("stride", [None, 1, 5, 16])
def test_without_bos_the_first_token_is_context_only(stride: int | None) -> None:
    form = random_form()
    ids = form.tokenizer.encode(TEXT).ids  # type: ignore[union-attr]
    result = evaluate(form, TEXT, stride=stride).quality
    total = plain_loss(form, ids)  # a table looks one token back, so windows cannot change its loss
    assert result.tokens == len(ids) - 1
    assert result.loss == pytest.approx(total / (len(ids) - 1))
    assert result.bytes == len(TEXT.encode()) - 1
    assert result.bits_per_byte == pytest.approx(total / math.log(2) / result.bytes)
    assert result.words == len(TEXT[1:].split())


def test_with_bos_every_token_counts() -> None:
    form = random_form(bos=3)
    result = evaluate(form, TEXT)
    ids = [3, *form.tokenizer.encode(TEXT).ids]  # type: ignore[union-attr]
    assert result.bos
    assert result.quality.tokens == len(ids) - 1
    assert result.quality.bytes == len(TEXT.encode())
    assert result.quality.loss == pytest.approx(plain_loss(form, ids) / (len(ids) - 1))


def test_windows_hold_at_most_the_context() -> None:
    form = random_form(context=8)
    evaluate(form, TEXT)
    assert max(map(len, form.fed)) == 8
    assert sum(map(len, form.fed)) == len(form.tokenizer.encode(TEXT).ids) - 1  # type: ignore[union-attr]


def test_max_tokens_counts_only_what_was_scored() -> None:
    result = evaluate(random_form(), "abc def ghi", max_tokens=5).quality
    assert (result.tokens, result.bytes, result.words) == (4, 4, 2)  # "bc d"


def test_progress_ends_at_the_total() -> None:
    seen: list[tuple[int, int]] = []
    evaluate(random_form(), TEXT, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    assert seen == sorted(seen)


def test_bad_requests() -> None:
    form = random_form()
    with pytest.raises(ConfigError, match="--context 17"):
        evaluate(form, TEXT, context=17)
    with pytest.raises(DataError, match="no tokens"):
        evaluate(form, "")
    with pytest.raises(DataError, match="outside the model's vocabulary of 40"):
        evaluate(TableForm(np.zeros((40, 40))), TEXT)
    form.tokenizer = None
    with pytest.raises(DataError, match="no tokenizer"):
        evaluate(form, TEXT)


def test_files_that_cannot_be_scored(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary"
    empty.write_text(" \n")
    binary.write_bytes(b"ok \xff\xfe")
    with pytest.raises(DataError, match="is empty"):
        read_text(empty)
    with pytest.raises(DataError, match="not UTF-8"):
        read_text(binary)


def test_the_record_has_the_keys_of_a_result_file() -> None:
    record = json.loads(evaluate(random_form(), TEXT).record(model="m", data="d").to_json())
    assert list(record) == ["benchmark", "date", "commit", "machine", "versions", "config", "figures"]
    assert record["config"]["model"] == "m"
    assert all(value is None or isinstance(value, int | float) for value in record["figures"].values())
