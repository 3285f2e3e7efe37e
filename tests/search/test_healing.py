"""A map goes into training as it is: the healed model computes at its levels, is better, and keeps the budget."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

import onebit.train
from onebit.cli.main import execute
from onebit.engine import Model
from onebit.formats.checkpoint import load_model
from onebit.formats.onebit_file import read
from onebit.search.heal import _clear_unless
from onebit.search.run import search
from onebit.search.space import LEVELS
from onebit.train import recipe

from .conftest import SHAPE, TEXT
from .test_search import settings_of

pytest.importorskip("scipy")


@pytest.fixture(autouse=True)
def no_loss_curve(monkeypatch: pytest.MonkeyPatch, no_pictures: None) -> None:
    monkeypatch.setattr(recipe, "draw_loss_curve", lambda folder: [])


def test_healing_lowers_the_loss_keeps_the_size_and_is_done_once(
    checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.txt").write_text(TEXT + text.read_text())
    healing = {"finetune_steps": 20, "data": str(tmp_path / "train.txt"), "finetune_lr": 3e-3}
    settings = settings_of(checkpoint, text, tmp_path, max_size_mb=0.09, max_evaluations=20, **healing)
    result = search(settings)
    assert result.healed is not None
    assert result.healed.score.loss < result.best.score.loss
    assert result.healed.size == result.best.size  # the record of the healing was counted before it was written
    told = json.loads((tmp_path / "best.json").read_text())
    assert told["loss"] == result.healed.score.loss
    assert told["healed"]["before"]["loss"] == result.best.score.loss
    out = tmp_path / "m.1bit"
    assert execute(["export", "--model-dir", str(result.healed.folder), "--output", str(out)]) == 0  # verified
    assert out.stat().st_size == told["size_bytes"] <= 90_000
    levels = {tensor.name: tensor.level for tensor in read(out).tensors.values()}
    assert levels["model.layers.1.mlp.up_proj.weight"] == told["layer_bit_map"]["layers.1.mlp.up_proj"]
    monkeypatch.setattr(onebit.train, "train", None)  # the same command again trains nothing
    again = search(settings)
    assert (again.healed, again.trials.measured) == (result.healed, 0)


def test_a_folder_of_another_healing_is_emptied(tmp_path: Path) -> None:
    folder = tmp_path / "healed"
    for wanted, is_kept in (({"lr": 1}, False), ({"lr": 1}, True), ({"lr": 2}, False)):
        _clear_unless(folder, wanted)
        assert (folder / "model.safetensors").exists() == is_kept
        (folder / "model.safetensors").touch()


def test_healing_that_does_no_good_is_not_kept(
    checkpoint: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--units kind --levels binary,int4,int8 --max-tokens 256 --max-evaluations 8 --max-size-mb 0.12"
    command = f"search --checkpoint {checkpoint} --val-data {text} --output {tmp_path}/best.json {flags}"
    assert execute([*command.split(), *f"--finetune-steps 4 --finetune-lr 3 --data {text}".split()]) == 0
    assert "healing did no good" in capsys.readouterr().out
    told = json.loads((tmp_path / "best.json").read_text())
    assert told["healed"]["kept"] is False
    assert told["loss"] == told["healed"]["before"]["loss"] < told["healed"]["after"]["loss"]


def test_a_healing_that_is_stopped_keeps_the_map(
    checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(checkpoint, text, tmp_path, max_evaluations=8, finetune_steps=6, data=str(text))
    step, calls = torch.optim.AdamW.step, []

    def stopping(self: torch.optim.AdamW, *given: Any) -> Any:
        calls.append(given)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *given)

    monkeypatch.setattr(torch.optim.AdamW, "step", stopping)
    stopped = search(settings)
    assert (stopped.interrupted, stopped.healed) == (True, None)
    told = json.loads((tmp_path / "best.json").read_text())
    assert told["loss"] == stopped.best.score.loss
    monkeypatch.undo()
    went_on = search(settings)
    assert went_on.healed is not None
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "best.search/healed/metrics.jsonl").read_text().splitlines()
    ]
    assert max(steps) == 6


def mixed_levels(folder: Path) -> dict[str, str]:
    """All five levels, and neighbours that differ."""
    names = load_model(folder).config.module_names()
    levels = {name: LEVELS[i % len(LEVELS)] for i, name in enumerate(names)}
    return {**levels, "embed_tokens": "int8", "lm_head": "int8"}  # one tensor


def greedy_tokens(folder: Path, file: Path) -> tuple[list[int], list[int]]:
    """What torch and the engine go on with after the same tokens."""
    model = load_model(folder)
    prompt = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("def f1(x").ids
    with torch.no_grad():
        out_BL = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=None)
    session = Model(file, threads=1).session()
    logits_V, ids = session.prefill(prompt), []
    while len(ids) < 20:
        ids.append(int(logits_V.argmax()))
        logits_V = session.decode(ids[-1])
    return out_BL[0, len(prompt) :].tolist(), ids


def test_train_sft_and_export_take_the_map_and_the_engine_runs_it(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    levels = mixed_levels(checkpoint)
    (tmp_path / "map.json").write_text(json.dumps({"layer_bit_map": levels}))
    told = ["--bit-width-map", str(tmp_path / "map.json")]
    shared = [*told, "--max-steps", "2", "--device", "cpu", "--quiet"]
    data = ["--data", str(text), "--init-from", str(checkpoint), "--val-fraction", "0"]
    assert execute(["train", *data, "--output-dir", str(tmp_path / "trained"), *shared]) == 0
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"def f{i}(x):\n    return {i}\n"}) + "\n" for i in range(40)))
    model = ["--model-name-or-path", str(checkpoint), "--dataset-name", str(rows), "--max-length", "32"]
    assert execute(["sft", *model, "--output-dir", str(tmp_path / "tuned"), *shared]) == 0
    for name in ("trained", "tuned"):
        folder, file = tmp_path / name, tmp_path / f"{name}.1bit"
        loaded = load_model(folder)
        assert loaded.config.bit_width_map == levels
        for module, level in levels.items():
            assert level in (loaded.config.level(module), "float16")
        assert loaded.lm_head.activation_quantizer == "int8"
        # With the map once more, or as the checkpoint has it: the same file.
        assert execute(["export", "--model-dir", str(folder), "--output", str(file)]) == 0
        whole = file.read_bytes()
        assert execute(["export", "--model-dir", str(folder), "--output", str(file), *told]) == 0
        assert file.read_bytes() == whole
        stored = {
            tensor.name.removesuffix(".weight").removeprefix("model."): tensor for tensor in read(file).tensors.values()
        }
        assert all(stored[module].level == level for module, level in levels.items() if module in stored)
        by_torch, by_engine = greedy_tokens(folder, file)
        assert by_torch == by_engine


def test_a_new_model_is_trained_at_the_levels_of_a_map(text: Path, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text('{"layers.0.*": "binary", "layers.1.mlp.*": "int4", "*": "int8"}')
    shape = [f"--set={name}={value}" for name, value in SHAPE.items() if name not in ("vocab_size", "quantizer")]
    run = [
        "--output-dir",
        str(tmp_path / "run"),
        "--val-fraction",
        "0",
        "--max-steps",
        "2",
        "--device",
        "cpu",
        "--quiet",
    ]
    told = ["--bit-width-map", str(tmp_path / "map.json"), "--vocab-size", "300"]
    assert execute(["train", "--data", str(text), *run, *told, *shape]) == 0
    assert execute(["export", "--model-dir", str(tmp_path / "run"), "--output", str(tmp_path / "m.1bit")]) == 0
    tensors = read(tmp_path / "m.1bit").tensors
    assert tensors["model.layers.0.mlp.up_proj.weight"].level == "binary"
    assert tensors["model.layers.1.mlp.up_proj.weight"].level == "int4"
    assert tensors["model.layers.1.attention.q_proj.weight"].level == "int8"
    by_torch, by_engine = greedy_tokens(tmp_path / "run", tmp_path / "m.1bit")
    assert by_torch == by_engine


def test_a_map_for_another_model_is_refused(
    checkpoint: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "map.json").write_text(json.dumps({"layers.7.mlp.up_proj": "int8"}))
    told = ["--bit-width-map", str(tmp_path / "map.json")]
    assert execute(["export", "--model-dir", str(checkpoint), "--output", str(tmp_path / "m.1bit"), *told]) == 2
    assert "matches no module" in capsys.readouterr().err
    assert execute(["eval-config", "--checkpoint", str(checkpoint), "--val-data", str(text), *told]) == 2
    (tmp_path / "map.json").write_text('{"layers.0.mlp.up_proj": "int8"}')
    assert execute(["eval-config", "--checkpoint", str(checkpoint), "--val-data", str(text), *told]) == 2
    assert "gives no level to 15 matrices" in capsys.readouterr().err
    (tmp_path / "map.json").write_text('{"layer_bit_map": 3}')
    assert execute(["export", "--model-dir", str(checkpoint), "--output", str(tmp_path / "m.1bit"), *told]) == 2
    assert "holds no map" in capsys.readouterr().err
