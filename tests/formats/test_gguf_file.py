"""GGUF files: a model comes back with the same codes and scales, and lies are refused in one line."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

pytest.importorskip("gguf")

import gguf

from onebit.errors import ConfigError, FormatError, OnebitError
from onebit.formats.convert import differences
from onebit.formats.gguf_import import from_gguf
from onebit.formats.gguf_reader import read_gguf
from onebit.formats.gguf_writer import write_gguf
from onebit.formats.layout import Kind, Layout
from onebit.formats.onebit_file import OneBitFile
from onebit.formats.random_model import random_description, random_file
from onebit.formats.stored_tensor import StoredTensor

_SPEC = importlib.util.spec_from_file_location("onebit_gguf_attacks", Path(__file__).with_name("gguf_attacks.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
attacks: Any = importlib.util.module_from_spec(_SPEC)
sys.modules["onebit_gguf_attacks"] = attacks
_SPEC.loader.exec_module(attacks)

SIZES = {
    "hidden_size": 256,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 512,
    "vocab_size": 40,
}
BITNET = {"sub_norm": True, "num_key_value_heads": 1}


def model(seed: int = 0, **choices: Any) -> OneBitFile:
    description = random_description(**SIZES | choices.pop("description", {}))
    return random_file(description, seed=seed, **choices)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["ternary", "ternary5_t16", "binary", "int8", "int4", "float16", "float32"]),
    st.sampled_from(["per_tensor", "per_row", "per_group"]),
    st.sampled_from([64, 128, 256]),
    st.sampled_from(["int8", "int4", "float16", "float32", "ternary"]),
    st.sampled_from([{}, {"qk_norm": True}, {"sub_norm": True}, {"sub_norm": True, "mlp": "relu2_glu"}]),
    st.booleans(),
    st.integers(0, 2**31),
)
@example("float16", "per_tensor", 64, "float16", {}, False, 5)  # no codes at all, and no activations
def test_every_model_comes_back_bit_for_bit(
    tmp_path: Path,
    layout: str,
    granularity: str,
    group: int,
    table: str,
    flags: dict[str, Any],
    biases: bool,
    seed: int,
) -> None:
    tied = bool(flags.get("sub_norm")) or seed % 2 == 0
    file = model(
        seed,
        layout=layout,
        granularity=granularity,
        group_size=group,
        embedding_layout=table,
        biases=biases,
        head_activation="int8" if seed % 3 == 0 else "none",
        activation="none" if seed % 5 == 0 else "int8",
        description={**flags, "tied_head": tied},
    )
    write_gguf(tmp_path / "m.gguf", file)
    found = from_gguf(tmp_path / "m.gguf", layout="exchange")
    expected = file.for_exchange()
    assert found.description == file.description
    assert list(found.tensors) == list(file.tensors)
    for name, tensor in expected.tensors.items():
        other = found.tensors[name]
        assert other.activation == tensor.activation
        if tensor.layout is Layout.TERNARY5:
            tensor = tensor.with_layout(Layout.TERNARY)
        assert other.geometry == tensor.geometry, name
        assert np.array_equal(other.data, tensor.data), name
        assert np.array_equal(other.scale_data, tensor.scale_data), name
    assert differences(file, found) == []


@pytest.mark.parametrize("gguf_type", ["TQ1_0", "TQ2_0", "Q2_0", "I2_S", "PQ2_0", "PTQ1_0"])
def test_every_type_of_ternary_codes(gguf_type: str, tmp_path: Path) -> None:
    file = model(embedding_layout="float16")
    written = write_gguf(tmp_path / "m.gguf", file, gguf_type)
    assert written.types == {"F16": 1, gguf_type: 14}
    assert written.file_bytes == (tmp_path / "m.gguf").stat().st_size
    assert differences(file, from_gguf(tmp_path / "m.gguf")) == []
    forks = {"I2_S": "bitnet.cpp", "PQ2_0": "Prism's llama.cpp", "PTQ1_0": "Prism's llama.cpp"}
    assert written.program == forks.get(gguf_type, "llama.cpp")


def test_the_packages_own_reader_sees_the_same(tmp_path: Path) -> None:
    """Names, shapes, values and metadata, by the gguf package: rows of q and k lie in rotary pairs."""
    file = model(granularity="per_row", embedding_layout="int8")
    write_gguf(tmp_path / "m.gguf", file, "TQ2_0", name="a name")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    found = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    assert reader.fields["general.architecture"].contents() == "llama"
    assert reader.fields["general.name"].contents() == "a name"
    assert reader.fields["llama.attention.head_count_kv"].contents() == 2
    assert reader.fields["general.file_type"].contents() == 37
    up = file.tensors["model.layers.1.mlp.up_proj.weight"].values()
    assert np.abs(found["blk.1.ffn_up.weight"] - up).max() <= 2**-11 * np.abs(up).max()
    q = file.tensors["model.layers.0.attention.q_proj.weight"].values().reshape(4, 2, 32, 256)
    pairs = q.swapaxes(1, 2).reshape(256, 256)  # rows 0, 32, 1, 33, ... of a head
    assert np.abs(found["blk.0.attn_q.weight"] - pairs).max() <= 2**-11 * np.abs(q).max()


def without_ours(raw: bytes) -> bytes:
    """The file as another program would have written it: our keys under other names."""
    return raw.replace(b"onebit.", b"others.")


@pytest.mark.parametrize(
    ("granularity", "group", "gguf_type"),
    [("per_tensor", 0, "TQ2_0"), ("per_row", 0, "TQ1_0"), ("per_group", 64, "Q2_0"), ("per_group", 128, "PTQ1_0")],
)
def test_files_of_others_have_the_granularity_of_their_scales(
    granularity: str, group: int, gguf_type: str, tmp_path: Path
) -> None:
    file = model(granularity=granularity, group_size=group or 64)
    write_gguf(tmp_path / "m.gguf", file, gguf_type)
    (tmp_path / "m.gguf").write_bytes(without_ours((tmp_path / "m.gguf").read_bytes()))
    found = from_gguf(tmp_path / "m.gguf", activation="int8")
    name = "model.layers.0.mlp.down_proj.weight"
    ours, theirs = file.tensors[name], found.tensors[name]
    assert theirs.geometry.granularity is ours.geometry.granularity
    assert theirs.geometry.group_size == ours.geometry.group_size
    assert np.array_equal(ours.codes(), theirs.codes())
    assert np.array_equal(theirs.scales(), ours.scales().astype(np.float16).astype(np.float32))
    assert theirs.activation.name == "INT8"
    assert from_gguf(tmp_path / "m.gguf").tensors[name].activation.name == "NONE"


def test_older_files_of_prism_have_groups_of_128_under_the_id_42(tmp_path: Path) -> None:
    file = model(granularity="per_group", group_size=128)
    write_gguf(tmp_path / "m.gguf", file, "PQ2_0")
    raw = (tmp_path / "m.gguf").read_bytes()
    for name in read_gguf(tmp_path / "m.gguf").tensors:
        at = attacks.info_at(raw, name) + 20
        if raw[at - 20 : at - 16] == attacks.u32(2) and raw[at : at + 4] == attacks.u32(142):
            raw = attacks.patched(raw, at, attacks.u32(42))
    (tmp_path / "m.gguf").write_bytes(raw)
    assert {t.type_name for t in read_gguf(tmp_path / "m.gguf").tensors.values()} == {"F16", "F32", "PQ2_0"}
    assert differences(file, from_gguf(tmp_path / "m.gguf")) == []


def test_a_rotated_model_goes_to_prisms_fork_and_back(tmp_path: Path) -> None:
    file = model(
        granularity="per_group",
        group_size=128,
        hadamard_block=64,
        description={"tied_head": False},
        embedding_layout="ternary",
    )
    with pytest.raises(ConfigError, match="two sites of 256 inputs are turned with different signs"):
        write_gguf(tmp_path / "m.gguf", file)
    file = replace(file, rotations={**file.rotations, "attention": file.rotations["hidden"]})
    written = write_gguf(tmp_path / "m.gguf", file)
    assert written.types == {"PQ2_0": 16}
    assert written.program == "Prism's llama.cpp"
    metadata = read_gguf(tmp_path / "m.gguf").metadata
    assert metadata["prism.hadamard.block_size"] == 64
    assert metadata["prism.hadamard.sign_widths"].tolist() == [256, 512]
    assert metadata["prism.hadamard.inverse_weight_names"] == ["token_embd.weight"]
    assert "output.weight" in metadata["prism.hadamard.weight_names"]
    signs = metadata["prism.hadamard.sign_values"]
    assert signs.dtype == np.int8
    assert np.array_equal(signs[256:], file.rotations["mlp"].signs(512))
    found = from_gguf(tmp_path / "m.gguf")
    assert differences(file, found) == []
    assert found.rotations == file.rotations
    with pytest.raises(ConfigError, match=r"llama\.cpp turns none: types that hold it: PQ2_0, PTQ1_0"):
        write_gguf(tmp_path / "n.gguf", file, "Q2_0")


def test_rotations_that_prism_does_not_have_are_refused(tmp_path: Path) -> None:
    tied = model(granularity="per_group", group_size=128, hadamard_block=64, embedding_layout="ternary")
    with pytest.raises(ConfigError, match="is turned and is the head too"):
        write_gguf(tmp_path / "m.gguf", tied)
    blocks = model(granularity="per_tensor", hadamard_block=512, description={"tied_head": False})
    with pytest.raises(ConfigError, match="turns blocks of 256 and 512 inputs"):
        write_gguf(tmp_path / "m.gguf", replace(blocks, tensors=_unturned_tables(blocks)))
    assert list(tmp_path.iterdir()) == []


def _unturned_tables(file: OneBitFile) -> dict[str, StoredTensor]:
    tables = (Kind.TOKEN_EMBEDDING, Kind.HEAD)
    return {n: replace(t, turned=False) if t.kind in tables else t for n, t in file.tensors.items()}


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"norm": "layernorm"}, "norm 'layernorm' .use_subln."),
        ({"position": "learned"}, "learned positions"),
        ({"residual_scale": 0.5}, "residuals times 0.5 .use_residual_scaling."),
        ({"mlp": "relu2"}, "mlp 'relu2' without a gate"),
        ({"mlp": "relu2_glu"}, "gated relu squared without sub-norms"),
        ({"sub_norm": True, "qk_norm": True}, "norms of q and k beside sub-norms"),
        ({"sub_norm": True, "tied_head": False}, "sub-norms and a head of its own"),
        ({"attention_scale": 0.3}, "its own scale of scores"),
    ],
)
def test_what_no_architecture_has_is_refused_with_the_field(
    description: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        write_gguf(tmp_path / "m.gguf", model(description=description))
    assert list(tmp_path.iterdir()) == []


def test_frequencies_of_its_own_become_factors(tmp_path: Path) -> None:
    file = model()
    base = 10000.0 ** -(np.arange(32) / 32)
    factors = np.where(np.arange(32) < 16, 1, 8)
    stored = StoredTensor.from_values("model.rope.inv_freq", Kind.ROPE_FREQUENCIES, None, base / factors)
    file = replace(file, tensors={**file.tensors, stored.name: stored})
    write_gguf(tmp_path / "m.gguf", file)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    (found,) = [tensor for tensor in reader.tensors if tensor.name == "rope_freqs.weight"]
    np.testing.assert_allclose(found.data, factors, rtol=2e-7)  # two roundings to float32
    assert differences(file, from_gguf(tmp_path / "m.gguf")) == []


def test_blocks_that_are_no_codes_of_ours_become_their_floats(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((40, 256)).astype(np.float32)
    file = model()
    write_gguf(tmp_path / "m.gguf", file)
    for kind in ("Q8_0", "Q5_0", "BF16"):
        writer = gguf.GGUFWriter(tmp_path / "other.gguf", "llama")
        reader = gguf.GGUFReader(tmp_path / "m.gguf")
        for field in reader.fields.values():
            if field.name.startswith("llama.") or field.name == "onebit.tensors":
                value = field.contents()
                {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)](
                    field.name, value
                )
        quantized = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
        for tensor in reader.tensors:
            is_table = tensor.name == "token_embd.weight"
            writer.add_tensor(
                tensor.name,
                quantized if is_table else tensor.data,
                raw_dtype=gguf.GGMLQuantizationType[kind] if is_table else tensor.tensor_type,
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        table = from_gguf(tmp_path / "other.gguf").tensors["model.embed_tokens.weight"]
        expected = gguf.quants.dequantize(quantized, gguf.GGMLQuantizationType[kind])
        assert np.array_equal(table.values(), expected), kind


def test_the_honest_file_is_fine(tmp_path: Path) -> None:
    attacks.honest(tmp_path)
    assert from_gguf(tmp_path / "honest.gguf").description.hidden_size == 64


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return dict(attacks.attacks(attacks.honest(tmp_path_factory.mktemp("honest"))))


def test_lies_are_refused_in_one_line_without_taking_memory(made: dict[str, bytes], tmp_path: Path) -> None:
    assert len(made) > 60
    for name, raw in made.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(raw)
        tracemalloc.start()
        try:
            with pytest.raises(OnebitError) as caught:
                from_gguf(path)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        message = str(caught.value)
        assert message.startswith(f"{path}: "), name
        assert "\n" not in message
        assert peak < 4e6, name  # the file has 60 kB; a believed size would be gigabytes


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    raw = attacks.honest(tmp_path)
    path = tmp_path / "cut.gguf"
    for size in sorted({*range(400), *range(400, len(raw), 501)}):
        path.write_bytes(raw[:size])
        with pytest.raises(FormatError):
            from_gguf(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**31), st.integers(1, 8))
def test_random_damage_ends_well_or_in_an_error_of_ours(tmp_path: Path, seed: int, count: int) -> None:
    honest = tmp_path / "honest.gguf"
    raw = honest.read_bytes() if honest.exists() else attacks.honest(tmp_path)
    path = tmp_path / "fuzz.gguf"
    path.write_bytes(attacks.flips(raw, seed, count))
    with contextlib.suppress(OnebitError):
        for tensor in from_gguf(path).tensors.values():
            tensor.values()


def test_own_words_survive(tmp_path: Path) -> None:
    file = replace(model(), manifest={"steps": 3}, config={"a": [1, "ü"]}, chat_template="{{ messages }}")
    write_gguf(tmp_path / "m.gguf", file)
    found = from_gguf(tmp_path / "m.gguf")
    assert (found.manifest, found.config) == (file.manifest, file.config)
    assert found.chat_template == file.chat_template
    assert json.loads(read_gguf(tmp_path / "m.gguf").metadata["onebit.tensors"])
