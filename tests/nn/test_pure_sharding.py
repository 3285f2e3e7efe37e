"""Matrices of codes divided by rows over two processes: the bits of one process, half the bytes in each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from onebit.nn import shard_pure_weights
from onebit.nn.pure_sharding import Rows

from . import sharded_program
from .pure_models import pure_model
from .sharded_program import ACCUMULATIONS, FORMS, STEPS, gradient, layer, same, take_steps


def both(rows: int) -> Any:
    """The gradients of both processes, added: two numbers have the same sum in any order."""
    return lambda step, part: gradient(rows, step, part, 0) + gradient(rows, step, part, 1)


def two_processes(folder: Path, *more: str) -> list[dict[str, Any]]:
    """What sharded_program.py found in each of them."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", sharded_program.__name__, str(folder), str(rank), *more],
            cwd=Path(__file__).parents[1],  # of the package that this file is in
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in running:
            _, said = process.communicate(timeout=250)
            assert process.returncode == 0, said[-3000:]
    finally:
        for process in running:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    left = {}
    for rows in (1, 5):
        for accumulation in ACCUMULATIONS:
            model = layer(rows)
            told = take_steps(model, accumulation, range(STEPS), both(rows))
            left[rows, accumulation] = model.state_dict(), told
    torch.save(left, folder / "left.pt")
    return two_processes(folder)


@pytest.mark.parametrize("form", FORMS)
def test_codes_and_counters_are_those_of_ddp(found: list[dict[str, Any]], form: str) -> None:
    for each in found:
        told = each["ddp"][form]
        assert told["same"]
        assert told["moved"]
        assert told["telemetry"][0] == told["telemetry"][1]
        # Half of 71 and of 32 rows: 36 and 16.
        part, whole = told["bytes"]
        assert whole / 2 <= part <= whole / 2 * 72 / 71
        assert told["same tied storage"] == (form == "tied")


def test_nothing_whole_is_kept_for_the_backward_pass(found: list[dict[str, Any]]) -> None:
    assert found[0]["ddp"]["saved"] == [(36, 8), (16, 18), (36, 8), (16, 18)]


def test_a_state_dict_is_that_of_one_process(found: list[dict[str, Any]]) -> None:
    for each in found:
        assert each["ddp"]["loaded"] == (True, [[], []])
        assert each["ddp"]["missing"] == ["up.weight.codes"]
        assert each["ddp"]["copy"]
        assert each["ddp"]["latents"]


def test_checkpointing_changes_nothing(found: list[dict[str, Any]]) -> None:
    assert all(each["checkpointed"] for each in found)


@pytest.mark.parametrize("accumulation", ACCUMULATIONS)
@pytest.mark.parametrize("rows", [1, 5])
def test_accumulated_gradients_and_going_on_with_another_number_of_processes(
    found: list[dict[str, Any]], rows: int, accumulation: Any
) -> None:
    straight = layer(rows)
    take_steps(straight, accumulation, range(STEPS), both(rows))
    states = [each["layers"][rows, accumulation] for each in found]
    assert all(same(state, straight.state_dict()) for state, _ in states)
    # Two processes go on from one.
    told = take_steps(straight, accumulation, range(STEPS, STEPS + 2), both(rows))
    assert all(same(each["layers"][rows, accumulation, "on"], straight.state_dict()) for each in found)
    # One goes on from two.
    resumed = layer(rows)
    resumed.load_state_dict(states[1][0])
    take_steps(resumed, accumulation, range(STEPS, STEPS + 2), both(rows), states[1][1])
    assert same(resumed.state_dict(), straight.state_dict())
    assert bool((straight[0].weight.codes != layer(rows)[0].weight.codes).any())
    assert told["param_groups"][-1]["accumulation"] == accumulation


def test_a_gradient_that_is_no_number_in_one_process(found: list[dict[str, Any]]) -> None:
    assert all(each["bad numbers"] for each in found)


def test_what_is_refused(found: list[dict[str, Any]]) -> None:
    for each in found:
        trained, rule, given = each["refusals"]
        assert "call shard_pure_weights before it is made" in trained
        assert 'the rule "bop" keeps floats of whole matrices; leave out shard_pure_weights' in rule
        assert "the rows of this weight are divided over processes" in given


@pytest.mark.slow
def test_compiled_in_one_graph_it_trains_to_the_same_bits(tmp_path: Path) -> None:
    assert all(each["compiled"] for each in two_processes(tmp_path, "compiled"))


def test_one_process_holds_all() -> None:
    model = shard_pure_weights(pure_model())
    assert not model.up.weight.rows.is_part
    assert "codes" in dict(model.up.weight.named_buffers())


@pytest.mark.parametrize("total", [1, 2, 7, 9])
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_blocks_of_rows_are_equal_and_together_the_matrix(total: int, processes: int) -> None:
    whole = torch.arange(1, total * 3 + 1).view(total, 3)
    parts: list[Tensor] = [Rows(total, processes, rank).cut(whole) for rank in range(processes)]
    assert {part.shape[0] for part in parts} == {-(-total // processes)}
    joined = torch.cat(parts)
    assert torch.equal(joined[:total], whole)
    assert not joined[total:].any()
