"""A text, a tokenizer and a model so small that a training step takes milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onebit.data import train_tokenizer
from onebit.train import TrainSettings, recipe

TEXT = "".join(f"def f{i}(x, y):\n    return x * {i % 7} + y\n\n" for i in range(400))
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 48,
    "max_seq_len": 32,
}

MakeSettings = Callable[..., TrainSettings]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text.txt and tokenizer.json (300 tokens)."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text.txt").write_text(TEXT)
    train_tokenizer([TEXT], 300).save(folder)
    return folder


@pytest.fixture
def settings(corpus: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeSettings:
    """Settings of a 12-step run into tmp_path/run, any of them replaced by keyword."""
    cache = tmp_path_factory.getbasetemp() / "cache"

    def make(**changes: Any) -> TrainSettings:
        values: dict[str, Any] = {
            "data": str(corpus / "text.txt"),
            "tokenizer": corpus / "tokenizer.json",
            "output_dir": tmp_path / "run",
            "cache_dir": cache,
            "batch_size": 4,
            "max_steps": 12,
            "lr_warmup_steps": 2,
            "save_every": 5,
            "log_every": 1,
            "device": "cpu",
            "quiet": True,
            "overrides": {**SHAPE, "vocab_size": 300, **changes.pop("shape", {})},
        }
        return TrainSettings(**{**values, **changes})

    return make


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than the runs of these tests; a test with `picture` in its name draws."""
    if "picture" not in request.node.name:
        monkeypatch.setattr(recipe, "draw_loss_curve", lambda folder: [])
