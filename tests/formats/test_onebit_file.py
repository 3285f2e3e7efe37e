"""The .1bit file: what is written is what is read, byte for byte and value for value."""

from __future__ import annotations

import dataclasses
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onebit.errors import FormatError
from onebit.formats.chat_strings import ChatStrings
from onebit.formats.crc32c import crc32c
from onebit.formats.description import ModelDescription
from onebit.formats.layout import Activation, Geometry, Granularity, Kind, Layout
from onebit.formats.onebit_file import OneBitFile, read, write
from onebit.formats.random_model import random_description, random_file
from onebit.formats.stored_tensor import StoredTensor

SEED_LIKE = {"norm": "layernorm", "mlp": "gelu", "position": "learned", "qk_norm": True, "residual_scale": 0.5**0.5}
UNTIED = {"norm": "layernorm", "mlp": "relu2_glu", "sub_norm": True, "tied_head": False}
CODED = [layout.label for layout in Layout if layout >= Layout.BINARY]


def same(a: OneBitFile, b: OneBitFile) -> bool:
    """Equal descriptions and, tensor by tensor, equal records and bytes."""
    if a.description != b.description or list(a.tensors) != list(b.tensors):
        return False
    for x, y in zip(a.tensors.values(), b.tensors.values(), strict=True):
        if (x.kind, x.layer, x.geometry, x.activation) != (y.kind, y.layer, y.geometry, y.activation):
            return False
        if not (np.array_equal(x.data, y.data) and np.array_equal(x.scale_data, y.scale_data)):
            return False
    return True


@pytest.mark.parametrize("layout", CODED)
@pytest.mark.parametrize("granularity", ["per_tensor", "per_row", "per_group"])
def test_round_trip(layout: str, granularity: str, tmp_path: Path) -> None:
    path = tmp_path / "model.1bit"
    for index, shape in enumerate(({}, SEED_LIKE, UNTIED)):
        embedding = ("float16", "int8", "int4")[index]
        model = random_file(
            random_description(**shape),
            layout=layout,
            granularity=granularity,
            activation=("int8", "sign", "none")[index],
            embedding_layout=embedding,
            biases=bool(index),
            seed=index,
        )
        size = write(path, model)
        assert size == path.stat().st_size
        back = read(path)
        assert same(model, back)
        for name, tensor in back.tensors.items():
            assert np.array_equal(tensor.values(), model.tensors[name].values())


@pytest.mark.parametrize("layout", ["binary", "ternary", "ternary5"])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_row", "per_group"])
def test_conversion_between_layouts_is_exact(layout: str, granularity: str) -> None:
    rows = random_file(layout=layout, granularity=granularity, group_size=64)
    tiles = rows.for_running()
    assert tiles.tensors["model.layers.0.attention.q_proj.weight"].layout.label == f"{layout}_t16"
    assert same(tiles.for_exchange(), rows)
    for name, tensor in rows.tensors.items():
        assert np.array_equal(tiles.tensors[name].values(), tensor.values())


def test_ternary_becomes_ternary5_and_back_but_never_binary() -> None:
    tensor = random_file(layout="ternary").tensors["model.layers.0.mlp.up_proj.weight"]
    five = tensor.with_layout(Layout.TERNARY5)
    assert np.array_equal(five.with_layout(Layout.TERNARY).data, tensor.data)
    with pytest.raises(FormatError, match="ternary cannot become binary"):
        tensor.with_layout(Layout.BINARY)


def test_sections_come_back(tmp_path: Path) -> None:
    chat = ChatStrings(
        opening="<s>",
        system_prefix="[S]",
        system_suffix="[/S]",
        user_prefix="U: ",
        user_suffix="\n",
        assistant_prefix="A: ",
        assistant_suffix="é\n",
        generation_prefix="A: ",
    )
    model = random_file(
        config={"hidden_size": 72, "text": "ü"},
        tokenizer_json='{"a": "ß"}',
        tokenizer_binary=b"\x00\x01tok",
        chat_template="{{ messages }}",
        chat_strings=chat,
        manifest={"steps": 3},
        other_sections={"NEWTHING": b"from the future"},
    )
    write(tmp_path / "m.1bit", model)
    back = read(tmp_path / "m.1bit")
    for name in ("config", "tokenizer_json", "tokenizer_binary", "chat_template", "chat_strings", "manifest"):
        assert getattr(back, name) == getattr(model, name)
    assert back.other_sections == {"NEWTHING": b"from the future"}


def tiny() -> OneBitFile:
    """A model small enough to write its bytes down."""
    description = ModelDescription(
        vocab_size=2,
        hidden_size=2,
        num_layers=1,
        num_heads=1,
        num_key_value_heads=1,
        head_dim=2,
        intermediate_size=2,
        max_seq_len=4,
        mlp="relu2",
        eos=1,
    )
    return random_file(description, layout="ternary")


def test_header_bytes_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "tiny.1bit"
    write(path, tiny())
    raw = path.read_bytes()
    # 10 tensors (embedding, 2 + 4 + 2 in the layer, final norm); meta = 128 + 32 + 10 * 128 + 128, aligned to 64
    count, meta = 10, 1600
    assert raw[:12] == b"1BIT\r\n\x1a\n" + struct.pack("<I", 1)
    assert raw[16:56] == struct.pack("<QQIIQQ", len(raw), meta, 1, count, 128, 160)
    assert raw[56:128] == bytes(72)
    assert struct.unpack_from("<I", raw, 12)[0] == crc32c(raw[:12] + bytes(4) + raw[16:meta])
    assert raw[128:160] == b"MODEL\0\0\0" + struct.pack("<IIQQ", 1, 0, 1440, 128)
    assert raw[1440:1568] == struct.pack(
        "<12I4f4I12I",
        *(2, 2, 1, 1, 1, 2, 2, 4),
        *(1, 1, 1, 4),
        *(1e-5, 1e4, 1.0, 0.0),
        2**32 - 1,
        1,
        2**32 - 1,
        0,
        *[0] * 12,
    )
    # third record: q of layer 0, ternary per tensor, int8 activations; data and scale on their own 64-byte lines
    record = raw[160 + 2 * 128 : 160 + 3 * 128]
    name, *fields = struct.unpack("<64sHHBBBBIIIIQQQQQ", record)
    assert name.rstrip(b"\0") == b"model.layers.0.attention.q_proj.weight"
    q = tiny().tensors["model.layers.0.attention.q_proj.weight"]
    crc, data, scale = fields[9], fields[10], fields[12]
    assert fields == [18, 0, 5, 1, 1, 1, 2, 2, 0, crc, data, 128, scale, 4, 64]
    assert data % 64 == scale % 64 == 0
    assert raw[data : data + 128] == q.data.tobytes()
    assert raw[scale : scale + 4] == struct.pack("<f", q.scales())
    assert crc == crc32c(raw[data : data + 128] + raw[scale : scale + 4])


def test_scales_are_stored_exactly_or_refused() -> None:
    codes = np.ones((3, 130), np.int8)
    place = ("model.layers.0.mlp.up_proj.weight", Kind.UP, 0)
    third = np.full((3, 2), 1 / 3, np.float32)
    with pytest.raises(FormatError, match="not a float16 number"):
        StoredTensor.from_codes(*place, codes, third, Layout.TERNARY, Granularity.PER_GROUP, 128)
    rounded = third.astype(np.float16)
    for layout in (Layout.TERNARY, Layout.TERNARY_T16):
        stored = StoredTensor.from_codes(*place, codes, rounded, layout, Granularity.PER_GROUP, 128)
        assert np.array_equal(stored.scales(), rounded.astype(np.float32))
    with pytest.raises(FormatError, match="shape"):
        StoredTensor.from_codes(*place, codes, rounded[:, :1], Layout.TERNARY, Granularity.PER_GROUP, 128)


def test_values_that_are_not_numbers_are_refused() -> None:
    for bad in (np.nan, np.inf):
        with pytest.raises(FormatError, match="NaN or infinite"):
            StoredTensor.from_values("model.norm.weight", Kind.FINAL_NORM, None, np.array([1.0, bad]))
    with pytest.raises(FormatError, match="65504"):
        StoredTensor.from_values("x", Kind.TOKEN_EMBEDDING, None, np.array([[1e5]]), Layout.FLOAT16)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ((0, 4, Layout.FLOAT32), "shape"),
        ((4, 4, Layout.TERNARY), "granularity"),
        ((4, 4, Layout.INT8, Granularity.PER_TENSOR), "per_row"),
        ((4, 4, Layout.TERNARY, Granularity.PER_GROUP, 100), "64, 128, 256"),
        ((4, 4, Layout.INT4, Granularity.PER_GROUP, 64), "32"),
        ((4, 4, Layout.TERNARY, Granularity.PER_ROW, 64), "group_size must be 0"),
    ],
)
def test_combinations_the_format_does_not_have(arguments: Any, what: str) -> None:
    with pytest.raises(FormatError, match=what):
        Geometry(*arguments)


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_size": 0},
        {"num_key_value_heads": 3},
        {"head_dim": 17},
        {"norm_eps": 0.0},
        {"rope_theta": float("inf")},
        {"norm_eps": 1e60},
        {"eos": 97},
        {"mlp": "silu"},
        {"num_layers": 65535},
        {"vocab_size": 1 << 25},
    ],
)
def test_descriptions_that_cannot_be(fields: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="model description"):
        random_description(**fields)


def test_writer_refuses_what_the_reader_would(tmp_path: Path) -> None:
    model = random_file()
    name = "model.layers.1.mlp.up_proj.weight"
    path = tmp_path / "bad.1bit"
    broken: list[tuple[dict[str, Any], str]] = [
        ({k: v for k, v in model.tensors.items() if k != name}, "missing"),
        (model.tensors | {"extra": model.tensors[name]}, "unknown"),
        (model.tensors | {name: dataclasses.replace(model.tensors[name], layer=0)}, "kind up of layer 0"),
        (model.tensors | {name: model.tensors["model.layers.1.mlp.down_proj.weight"]}, "filed under"),
    ]
    norm = model.tensors["model.norm.weight"]
    sign = dataclasses.replace(norm, activation=Activation.SIGN)
    broken.append((model.tensors | {norm.name: sign}, "activation sign"))
    turned = dataclasses.replace(model.tensors[name], turned=True)
    broken.append((model.tensors | {name: turned}, "turns its inputs"))
    for tensors, what in broken:
        with pytest.raises(FormatError, match=what):
            write(path, dataclasses.replace(model, tensors=tensors))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.1bit"
    write(path, tiny())
    before = path.read_bytes()

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(path, random_file())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_reading_is_lazy(tmp_path: Path) -> None:
    """Opening maps the file; a tensor is a view into the map, not a copy."""
    write(tmp_path / "m.1bit", random_file())
    back = read(tmp_path / "m.1bit", verify=False)
    for tensor in back.tensors.values():
        assert not tensor.data.flags.owndata
        assert not tensor.data.flags.writeable
