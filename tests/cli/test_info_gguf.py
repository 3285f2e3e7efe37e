"""`onebit info` of a GGUF file beside the gguf package's own reader."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onebit.cli.main import execute
from onebit.formats.convert import open_any, write_any
from onebit.formats.onebit_file import write
from onebit.formats.random_model import random_description, random_file

from .conftest import byte_tokenizer

gguf = pytest.importorskip("gguf")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    file, path = tmp_path / "model.1bit", tmp_path / "model.gguf"
    sizes = {"vocab_size": 256, "hidden_size": 256, "head_dim": 64, "intermediate_size": 512, "max_seq_len": 64}
    description = random_description(**sizes, tied_head=False, bos=None, eos=None)
    write(file, random_file(description, tokenizer_json=byte_tokenizer().to_str()))
    write_any(path, open_any(file, lossy=True), "gguf", gguf_type="TQ1_0", lossy=True)
    return path


def test_every_tensor_and_key_is_told(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["info", str(model), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    reader = gguf.GGUFReader(model)
    expected = [
        (t.name, [int(n) for n in t.shape][::-1], gguf.GGMLQuantizationType(t.tensor_type).name, int(t.n_bytes))
        for t in reader.tensors
    ]
    assert [
        (t["name"], [t["rows"], t["cols"]][-len(e[1]) :], t["type"], t["bytes"])
        for t, e in zip(told["tensors"], expected, strict=True)
    ] == expected
    assert set(told["metadata"]) == {key for key in reader.fields if not key.startswith("GGUF.")}
    assert told["metadata"]["tokenizer.ggml.tokens"] == {"length": 256}
    matrices = told["totals"]["TQ1_0"]
    assert 8 * matrices["bytes"] / matrices["weights"] == pytest.approx(54 * 8 / 256)  # 52 bytes of codes, 2 of scale
    assert sum(total["bytes"] for total in told["totals"].values()) == sum(int(t.n_bytes) for t in reader.tensors)
    assert execute(["info", str(model)]) == 0
    text = capsys.readouterr().out
    for word in ("general.architecture", "256 entries", "blk.0.attn_q.weight", "1.688 bits each"):
        assert word in text


def test_a_damaged_file_is_one_line(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.write_bytes(model.read_bytes()[:2000])
    assert execute(["info", str(model)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {model}: ")
