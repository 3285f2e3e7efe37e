"""The whole product in ten seconds: text, tokenizer, training, export, info, verify, eval, generation.

Through the command line, as the README tells it, with a model so small that every step takes a moment.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onebit.cli.main import execute
from onebit.engine import library_path
from onebit.errors import EngineError

TEXT = "the cat sat on the mat. the dog sat on the log. the cat saw the dog.\n"

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("datasets")


def onebit(capture: pytest.CaptureFixture[str], *args: object) -> str:
    assert execute([str(arg) for arg in args]) == 0, capture.readouterr().err
    return capture.readouterr().out


def test_the_whole_product(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        library_path()
    except EngineError as problem:
        pytest.skip(str(problem))
    corpus, held_out, run, file = (tmp_path / name for name in ("train.txt", "valid.txt", "run", "model.1bit"))
    corpus.write_text(TEXT * 300)
    held_out.write_text(TEXT * 5)
    shape = {
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 4,
        "intermediate_size": 128,
        "max_seq_len": 64,
    }
    settings = [word for name, value in shape.items() for word in ("--set", f"{name}={value}")]
    onebit(
        capsys,
        *("train", "--data", corpus, "--val-data", held_out, "--output-dir", run, "--vocab-size", 300),
        *("--max-steps", 50, "--batch-size", 8, "--lr", "1e-2", "--lr-warmup-steps", 5, "--save-every", 0),
        *settings,
    )
    onebit(capsys, "export", "--model-dir", run, "--output", file, "--pack-mode", "ternary")
    info = json.loads(onebit(capsys, "info", file, "--json"))
    assert info["file_bytes"] == file.stat().st_size
    assert onebit(capsys, "verify", run, file).startswith("same: ")
    losses = [
        json.loads(onebit(capsys, "eval", model, "--data", held_out, "--json"))["figures"]["loss"]
        for model in (run, file)
    ]
    # int8 activations: a rounding jump moves single logits, hardly the mean over the text
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[1] < 3.0  # ln 300 = 5.7 before training
    text = onebit(capsys, "generate", file, "the cat", "--max-new-tokens", 20, "--temperature", 0)
    assert text.startswith("the cat")
    assert len(text) > len("the cat\n")
