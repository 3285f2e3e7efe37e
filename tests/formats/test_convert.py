"""`onebit convert`: every lossless direction returns the same codes and scales; what is lossy has to be asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("gguf")

from onebit.cli.main import execute
from onebit.cli.model_path import resolve_model
from onebit.errors import ConfigError, FormatError
from onebit.formats.convert import differences, form_of, open_any, target_of, write_any
from onebit.formats.onebit_file import OneBitFile, read, write
from onebit.formats.random_model import random_description, random_file

Capture = pytest.CaptureFixture[str]
SIZES = {
    "hidden_size": 256,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 256,
    "vocab_size": 40,
}
NAMES = {"1bit": "m.1bit", "gguf": "m.gguf", "hf": "packed", "fp32": "floats"}


def model(**choices: Any) -> OneBitFile:
    return random_file(random_description(**SIZES | choices.pop("description", {})), **choices)


@pytest.mark.parametrize("level", ["ternary_t16", "binary_t16"])
def test_round_every_form_and_back(level: str, tmp_path: Path, capsys: Capture) -> None:
    file = model(layout=level, embedding_layout="int8")
    write(tmp_path / "start.1bit", file)
    for first, one in NAMES.items():
        folder = tmp_path / first
        folder.mkdir()
        assert execute(["convert", str(tmp_path / "start.1bit"), str(folder / one), *to(first)]) == 0
        assert form_of(folder / one) == ("hf" if first == "fp32" else first)
        for second, other in NAMES.items():
            target = folder / f"then-{other}"
            assert execute(["convert", str(folder / one), str(target), *to(second)]) == 0, capsys.readouterr().err
            assert execute(["convert", str(target), str(folder / f"back-{second}.1bit")]) == 0
            back = read(folder / f"back-{second}.1bit")
            assert differences(file, back) == [], (first, second)
            assert all(back.tensors[n].activation == t.activation for n, t in file.tensors.items())


def to(form: str) -> list[str]:
    return ["--to", form] if form == "fp32" else []


def test_the_command_says_what_it_wrote(tmp_path: Path, capsys: Capture) -> None:
    write(tmp_path / "m.1bit", model(granularity="per_group", group_size=128))
    assert execute(["convert", str(tmp_path / "m.1bit"), str(tmp_path / "m.gguf")]) == 0
    said = capsys.readouterr().out
    assert "GGUF of architecture llama for llama.cpp" in said
    assert "1 F16, 14 Q2_0" in said
    assert "note: no tokenizer" in said
    for arguments, message in (
        (["m.gguf", "--gguf-type", "TQ2_0"], "TQ2_0 has one scale for 256 weights: types that hold it: Q2_0, PQ2_0"),
        (
            ["m.gguf", "--gguf-type", "Q1_0"],
            "hold no matrix of this model; they are ternary, for which there is Q2_0",
        ),
        (["folder"], "one scale a tensor"),
        (["n.1bit", "--gguf-type", "Q2_0"], "--gguf-type is for GGUF files"),
        (["n.gguf", "--linear-class", "bitlinear"], "--linear-class is for packed folders"),
        (["n.gguf", "--activations", "int8"], "--activations is for GGUF files, which do not say it"),
        (["n.gguf", "--to", "hf"], "is the name of a .gguf file"),
        (["n", "--to", "onnx"], "--to is 'onnx', expected one of 1bit, gguf, hf"),
        (["absent/n.gguf"], "absent does not exist"),
        (["n.1bit", "--layout", "rows"], "--layout is 'rows'"),
    ):
        name, *options = arguments
        assert execute(["convert", str(tmp_path / "m.1bit"), str(tmp_path / name), *options]) == 2
        assert message in capsys.readouterr().err, arguments
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.1bit", "m.gguf"]


def test_what_is_lossy_has_to_be_asked_for(tmp_path: Path, capsys: Capture) -> None:
    file = model(hadamard_block=64, description={"tied_head": False})
    write(tmp_path / "m.1bit", file)
    command = ["convert", str(tmp_path / "m.1bit"), str(tmp_path / "floats"), "--to", "fp32"]
    assert execute(command) == 2
    assert "the inputs of 16 matrices are rotated" in capsys.readouterr().err
    assert execute([*command, "--lossy"]) == 0
    found = open_any(tmp_path / "floats")
    name = "model.layers.0.mlp.up_proj.weight"
    rotation, tensor = file.rotations["hidden"], file.tensors[name]
    # W R x for rotated inputs R x: the rows turned back are W R, here by the matrix itself.
    hadamard = np.array([[(-1.0) ** bin(i & j).count("1") / 8 for j in range(64)] for i in range(64)])
    turned = np.kron(np.eye(4), hadamard) * rotation.signs(256)
    np.testing.assert_allclose(found.tensors[name].values(), tensor.values() @ turned, atol=1e-6)


def test_float_tables_become_int8_with_lossy_alone(tmp_path: Path) -> None:
    file = model(embedding_layout="float32")
    write_any(tmp_path / "packed", file, "hf")
    name = "model.embed_tokens.weight"
    (tmp_path / "packed" / "onebit_scales.safetensors").unlink()
    assert open_any(tmp_path / "packed").tensors[name].level == "float32"
    assert open_any(tmp_path / "packed", lossy=True).tensors[name].level == "int8"


def test_the_form_follows_from_the_name() -> None:
    assert target_of(Path("a.1bit"), None) == "1bit"
    assert target_of(Path("a.gguf"), None) == "gguf"
    assert target_of(Path("a"), None) == "hf"
    assert target_of(Path("a"), "bf16") == "bf16"
    with pytest.raises(ConfigError, match="did you mean 'gguf'"):
        target_of(Path("a"), "guff")


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("a.safetensors", "neither a .1bit nor a GGUF file; of safetensors give the folder"),
        ("empty", r"no config\.json in it"),
        ("absent", "no such file or folder"),
    ):
        with pytest.raises(FormatError, match=message):
            form_of(tmp_path / name)


def test_a_gguf_file_runs_where_a_model_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEBIT_CACHE", str(tmp_path / "cache"))
    file = model()
    write_any(tmp_path / "m.gguf", file, "gguf")
    path = resolve_model(tmp_path / "m.gguf")
    assert path.parent == tmp_path / "cache"
    assert differences(file, read(path)) == []
    assert resolve_model(tmp_path / "m.gguf") == path
