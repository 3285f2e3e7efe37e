"""lm-evaluation-harness gives a served model the scores of the same model in the process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.eval.harness_tasks import NAMES, write_tasks

from onebit.cli.main import execute
from onebit.engine import Model
from onebit.errors import ConfigError
from onebit.eval.served import Server

from .conftest import CONTEXT, Running, write_model

pytest.importorskip("lm_eval")
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from onebit.eval.forms import EngineForm
from onebit.eval.harness import evaluate_tasks

BOS = 7


@pytest.fixture(autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "datasets"))


def numbers(results: dict[str, Any]) -> dict[tuple[str, str], float]:
    return {(task, k): v for task, told in results.items() for k, v in told.items() if isinstance(v, float)}


@pytest.mark.parametrize("bos", [None, BOS])
def test_served_and_in_the_process(bos: int | None, run_server: Callable[..., Running], tmp_path: Path) -> None:
    """The harness's own client unchanged, ours for an address, and the file: the same bits, hence the same numbers."""
    tasks = write_tasks(tmp_path)
    path = write_model(tmp_path / "judged.1bit", None, bos=bos, eos=9)
    running = run_server(Model(path, threads=1), api_key="sesame")
    alone = numbers(evaluate_tasks(EngineForm(path, threads=1), NAMES, task_path=tasks)[0])
    assert len(alone) >= 8
    assert numbers(evaluate_tasks(Server(running.address, "sesame"), NAMES, task_path=tasks)[0]) == alone
    assert numbers(evaluate_tasks(Server(f"{running.address}/v1", "sesame"), NAMES, task_path=tasks)[0]) == alone
    with pytest.raises(ConfigError, match="--api-key"):
        evaluate_tasks(Server(running.address, "wrong"), NAMES, task_path=tasks)
    if bos is not None:  # which the harness's client leaves out
        return
    found = simple_evaluate(
        model="local-completions",
        model_args={
            "base_url": f"{running.address}/v1/completions",
            "model": "bytes",
            "auth_token": "sesame",
            "header": {"Authorization": "Bearer sesame"},
            "max_length": CONTEXT,
            "max_gen_toks": 7,
            "num_concurrent": 3,
        },
        tasks=list(NAMES),
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        log_samples=False,
    )
    assert numbers(found["results"]) == alone


def test_the_command_asks_an_address(
    run_server: Callable[..., Running], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same scores and loss as of the file, and how fast it writes; a wrong key is one line."""
    tasks, text = write_tasks(tmp_path), tmp_path / "text.txt"
    text.write_text("def read(path):\n    return open(path).read()\n" * 8)
    path = write_model(tmp_path / "judged.1bit", None, bos=BOS, eos=9)
    address = run_server(Model(path, threads=1), api_key="sesame").address
    asked = ["--tasks", "pick_local", "--task-path", str(tasks), "--speed", "--json"]
    asked += ["--data", str(text), "--context", "60", "--stride", "40"]
    told = []
    for model in ([address, "--api-key", "sesame"], [str(path)]):
        assert execute(["eval", *model, *asked]) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert told[0]["config"] | {"model": "", "runtime": "engine"} == told[1]["config"] | {
        "model": "",
        "served_model": "bytes",
    }
    here, there = (one["figures"] for one in told[::-1])
    tasks_of = [{k: v for k, v in figures.items() if k.startswith("task/")} for figures in (here, there)]
    assert tasks_of[0] == tasks_of[1] != {}
    assert (there["tokens"], there["bytes"]) == (here["tokens"], here["bytes"])
    # The server keeps keys and values in float16, the file is scored with float32; losses are 23 nats, for the model is
    # random.
    assert there["loss"] == pytest.approx(here["loss"], rel=5e-4)
    assert there["bits_per_byte"] == pytest.approx(here["bits_per_byte"], rel=5e-4)
    assert told[0]["figures"]["tokens_per_s_decode"] > 0
    assert execute(["eval", address, "--api-key", "guess", *asked]) == 2
    assert "does it want --api-key?" in capsys.readouterr().err
