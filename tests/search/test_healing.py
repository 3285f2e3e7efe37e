"""A map goes into training as it is: the healed model computes at its levels, is better, and keeps the budget."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onebit.cli.main import execute
from onebit.formats.checkpoint import load_model
from onebit.formats.onebit_file import read
from onebit.search.run import search
from onebit.train import recipe

from .conftest import TEXT
from .test_search import settings_of

pytest.importorskip("scipy")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "draw_loss_curve", lambda folder: [])


def test_healing_lowers_the_loss_and_keeps_the_size(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(TEXT + text.read_text())
    healing = {"finetune_steps": 30, "data": str(tmp_path / "train.txt"), "finetune_lr": 3e-3}
    result = search(settings_of(checkpoint, text, tmp_path, max_size_mb=0.09, max_evaluations=20, **healing))
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


def test_train_and_sft_take_the_map(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    names = load_model(checkpoint).config.module_names()
    levels = {name: ("int4" if "mlp" in name else "int8") for name in names}
    (tmp_path / "map.json").write_text(json.dumps({"layer_bit_map": levels}))
    shared = ["--bit-width-map", str(tmp_path / "map.json"), "--max-steps", "2", "--device", "cpu", "--quiet"]
    data = ["--data", str(text), "--init-from", str(checkpoint), "--val-fraction", "0"]
    assert execute(["train", *data, "--output-dir", str(tmp_path / "trained"), *shared]) == 0
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"def f{i}(x):\n    return {i}\n"}) + "\n" for i in range(40)))
    model = ["--model-name-or-path", str(checkpoint), "--dataset-name", str(rows), "--max-length", "32"]
    assert execute(["sft", *model, "--output-dir", str(tmp_path / "tuned"), *shared]) == 0
    for folder in ("trained", "tuned"):
        loaded = load_model(tmp_path / folder)
        assert loaded.config.bit_width_map == levels
        assert loaded.model.layers[0].mlp.up_proj.weight_quantizer.quantizer == "int4"
        assert loaded.lm_head.activation_quantizer == "int8"


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
