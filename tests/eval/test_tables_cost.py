"""Embedding and head as a file stores them: the checkpoint rounded likewise, and what the rounding costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onebit.errors import OnebitError
from onebit.eval.forms import TorchForm
from onebit.eval.stored_tables import StoredTables, rounded_like
from onebit.eval.tables_cost import describe_cost, held_out_text, measure_tables, with_tables_cost
from onebit.eval.verify import verify
from onebit.formats.export import from_model
from onebit.formats.onebit_file import read, write
from onebit.models import OneBitConfig, OneBitForCausalLM

from .tables import byte_tokenizer

SHAPE: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 4,
    "intermediate_size": 96,
    "max_seq_len": 32,
}
TEXT = "One text, long enough to be cut into more than one window of thirty-two. " * 2


def make(**fields: Any) -> OneBitForCausalLM:
    torch.manual_seed(3)
    model = OneBitForCausalLM(OneBitConfig.preset("bitnet", **(SHAPE | fields))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn_like(parameter) * (0.5 if "embed" in name else parameter.shape[1] ** -0.5))
    return model


def rounded_rows(weight: np.ndarray) -> np.ndarray:
    """int8 per row, by its formula."""
    scale = (np.abs(weight).max(1, keepdims=True) / 127).astype(np.float32)
    return np.round(weight / scale) * scale


def test_the_checkpoint_computes_the_head_in_int8_and_is_itself_again_after() -> None:
    model = make(tie_word_embeddings=False)
    x = torch.randn(3, 64)
    plain, weight = model.lm_head(x), model.lm_head.weight
    tables = StoredTables.of(from_model(model).tensors.values())
    with rounded_like(model, tables) as notes, torch.inference_mode():
        found = model.lm_head(x).numpy()
    assert len(notes) == 3
    peak = np.abs(x.numpy()).max(1, keepdims=True)
    codes = np.round(x.numpy() * (127 / peak))
    expected = (codes * (peak / 127)) @ rounded_rows(weight.detach().numpy()).T
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert model.lm_head.weight is weight
    assert torch.equal(model.lm_head(x), plain)


@pytest.mark.parametrize("options", [{}, {"head_activation": "none"}, {"embedding_level": "int4"}])
@pytest.mark.parametrize(
    "fields", [{}, {"tie_word_embeddings": False}, {"activation_quantizer": "none"}], ids=["tied", "untied", "floats"]
)
def test_engine_and_checkpoint_agree(fields: dict[str, Any], options: dict[str, str], tmp_path: Path) -> None:
    model = make(**fields)
    write(tmp_path / "m.1bit", from_model(model, **options))
    report = verify(model, tmp_path / "m.1bit", ids=list(range(24)))
    assert report.passed, report
    assert not [note for note in report.notes if "activations differ" in note]
    changed = make(**fields)
    changed.lm_head.weight.data[::2] *= 1.01
    assert not verify(changed, tmp_path / "m.1bit", ids=list(range(24))).passed


def test_the_cost_is_the_difference_of_two_losses() -> None:
    model = make(activation_quantizer="none")  # no jumps in the layers, which would drown what the head costs
    form = TorchForm(model, "checkpoint", byte_tokenizer())
    costs = {
        (level, inputs): measure_tables(
            form,
            StoredTables.of(from_model(model, embedding_level=level, head_activation=inputs).tensors.values()),
            TEXT,
            "a text",
        )
        for level, inputs in (("float32", None), ("float16", None), ("int8", "none"), ("int8", None), ("int4", None))
    }
    assert costs.pop(("float32", None)) is None
    for found in costs.values():
        assert found is not None
        assert found.tokens == len(TEXT) - 1
        assert found.nats == pytest.approx(found.loss - found.loss_as_trained, abs=1e-9)
    moved = {key: found.standard_error for key, found in costs.items() if found is not None}
    assert moved["float16", None] < moved["int8", "none"] < moved["int8", None] < moved["int4", None]
    ids = form.tokenizer.encode(TEXT).ids  # type: ignore[union-attr]
    with torch.inference_mode():
        losses = [
            model(torch.tensor([ids[start : start + 32]]), use_cache=False).logits[0].log_softmax(-1)
            for start in range(0, len(ids) - 1, 32)
        ]
    rows = torch.cat(losses)[: len(ids) - 1]
    expected = -rows[torch.arange(len(rows)), torch.tensor(ids[1:])].mean().item()
    found = costs["int8", None]
    assert found is not None
    assert found.loss_as_trained == pytest.approx(expected, rel=1e-5)


def test_the_cost_lies_in_the_file(tmp_path: Path) -> None:
    model = make()
    form = TorchForm(model, "checkpoint", byte_tokenizer())
    file, line = with_tables_cost(from_model(model, manifest={"training_steps": 3}), form)
    write(tmp_path / "m.1bit", file)
    manifest = read(tmp_path / "m.1bit").manifest
    assert manifest is not None
    assert manifest["training_steps"] == 3
    cost = manifest["tables_cost"]
    assert (cost["embedding"], cost["head"], cost["head_activation"]) == ("int8", "int8", "int8")
    assert cost["text"] == "textwrap.py of Python's library"
    assert line == describe_cost(json.loads(json.dumps(cost)))
    assert line.startswith("embedding and head int8, the head's inputs int8: ")
    form.tokenizer = None
    assert "not measured" in str(with_tables_cost(from_model(model), form)[1])
    floats = from_model(model, embedding_level="float32")
    assert with_tables_cost(floats, TorchForm(model, "checkpoint", byte_tokenizer()))[1] is None


def test_the_text_is_what_training_held_out(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {i}\n" for i in range(100)))
    found, name = held_out_text({"data": str(text), "val_data": None, "val_fraction": 0.1})
    assert found == "".join(f"line {i}\n" for i in range(90, 100))
    assert name == f"{text}, held out"
    other = tmp_path / "other.txt"
    other.write_text("another text\n")
    assert held_out_text({"data": str(text), "val_data": str(other)})[0] == "another text\n"
    for settings in ({}, {"data": "some/dataset"}, {"data": str(text), "val_fraction": 0.0}, {"data": 3}):
        assert held_out_text(settings)[1] == "textwrap.py of Python's library"
    with pytest.raises(OnebitError):
        held_out_text({"data": "gone.txt", "val_data": "gone.txt"}, must=True)
