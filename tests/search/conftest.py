"""A model of two layers that was trained a little, so that levels differ in loss, and a text to score it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from onebit.data import train_tokenizer
from onebit.models import OneBitConfig, OneBitForCausalLM
from onebit.search import report

TEXT = "".join(f"def f{i}(x, y):\n    return x * {i % 7} + y\n\n" for i in range(60))
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 96,
    "max_seq_len": 32,
    "quantizer": "none",
    "vocab_size": 300,
    "eos_token_id": 0,
}


def make_checkpoint(folder: Path, steps: int = 30, **changes: Any) -> Path:
    """A checkpoint folder with tokenizer.json and training_manifest.json."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer([TEXT], 300)
    model = OneBitForCausalLM(OneBitConfig.preset("bitnet", **{**SHAPE, **changes}))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    ids_T = torch.tensor(tokenizer.tokenizer.encode(TEXT).ids)
    ids_BL = ids_T[: len(ids_T) // 32 * 32].view(-1, 32)
    for _ in range(steps):
        loss = model(input_ids=ids_BL, labels=ids_BL).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save(folder)
    (folder / "training_manifest.json").write_text('{"model_type": "onebit", "steps": 30}')
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"tie_word_embeddings": False, "granularity": "per_group", "group_size": 64, "attention_bias": True}
    return make_checkpoint(tmp_path_factory.mktemp("untied"), use_swiglu=False, use_sub_norm=False, **shape)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text that the model was not trained on, of the same kind."""
    path = tmp_path_factory.mktemp("text") / "val.txt"
    path.write_text("".join(f"def g{i}(a, b):\n    return a * {i % 5} - b\n\n" for i in range(40)))
    return path


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that do not look at them: they take most of a small search."""
    for name in ("draw_front", "draw_layers"):
        monkeypatch.setattr(report, name, lambda *given: None)
