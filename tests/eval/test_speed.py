"""Speed beside its limit: the bytes a token reads against the format's own sizes, and what the figures are made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from onebit.cli.model_path import tiny_model_path
from onebit.engine import Model
from onebit.errors import ConfigError
from onebit.eval.speed import Speed, SpeedPlan, kv_bytes, measure_speed, model_bytes
from onebit.formats.onebit_file import read


def test_a_token_reads_every_tensor_once() -> None:
    file = read(tiny_model_path())
    model = Model(tiny_model_path())
    found = model_bytes(model.description, model.tensors(), "float16")
    table = file.tensors["model.embed_tokens.weight"]
    stored = sum(tensor.stored_bytes for tensor in file.tensors.values())
    assert found.token(0) == stored + table.stored_bytes // table.shape[0]  # a tied head, and one row of the embedding
    assert found.token(10) - found.token(0) == 10 * found.kv_position


def test_kv_bytes_of_the_published_shapes() -> None:
    from onebit.formats.random_shapes import SHAPES

    assert kv_bytes(SHAPES["2b4t"], "float16") == 76_800  # type: ignore[arg-type] # the same fields
    assert kv_bytes(SHAPES["700m"], "default") == 147_456  # type: ignore[arg-type]
    assert kv_bytes(SHAPES["2b4t"], "int8") == 2 * 30 * 5 * (128 + 2 * 4 + 8)  # type: ignore[arg-type] # padded to 16


def test_ratio_compares_medians() -> None:
    speed = Speed("decode", 64, 2, rates=[8.0, 9.0, 1.0], typical=[9.0, 10.0, 3.0], limits=[20.0, 18.0, 30.0])
    assert (speed.name, speed.rate, speed.limit, speed.over_limit) == ("decode_2t", 8.0, 20.0, 0.45)
    assert Speed("prefill", 128, 1, rates=[1.0]).over_limit is None


def test_measures_every_line_of_the_plan() -> None:
    seen: list[tuple[int, int]] = []
    plan = SpeedPlan(prompt_lengths=(4, 8), new_tokens=3, threads=(1,), rounds=1)
    result = measure_speed(tiny_model_path(), plan, lambda done, total: seen.append((done, total)))
    figures = result.figures()
    assert {"decode_1t_tokens_per_s", "prefill4_1t_tokens_per_s", "decode_over_limit_1t"} <= set(figures)
    assert all(value > 0 for value in figures.values())
    assert seen[-1] == (plan.steps, plan.steps)


def test_impossible_plans_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_seq_len"):
        measure_speed(Path(tiny_model_path()), SpeedPlan(prompt_lengths=(10**6,), rounds=1))
    with pytest.raises(ConfigError, match="threads must be 1 or more"):
        SpeedPlan(threads=(0,))
