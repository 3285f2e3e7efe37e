"""`onebit info` and the figures behind it, against codes counted one by one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onebit.cli.main import execute
from onebit.errors import FormatError
from onebit.formats.layout import Layout
from onebit.formats.onebit_file import write
from onebit.formats.random_model import random_description, random_file
from onebit.formats.statistics import count_codes, summarise


@pytest.mark.parametrize("layout", [layout.label for layout in Layout if layout >= Layout.BINARY])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_group"])
def test_counts_equal_the_unpacked_codes(layout: str, granularity: str) -> None:
    for name, tensor in random_file(layout=layout, granularity=granularity).tensors.items():
        counts = count_codes(tensor)
        if tensor.level in ("binary", "ternary"):
            codes = tensor.codes()
            assert counts == tuple(int((codes == code).sum()) for code in (-1, 0, 1)), name
        else:
            assert counts is None


def test_bytes_that_mean_nothing_are_noticed() -> None:
    tensor = random_file(layout="ternary").tensors["model.layers.0.mlp.up_proj.weight"]
    tensor.data[0] = 0b10
    with pytest.raises(FormatError, match="mean nothing"):
        count_codes(tensor)


def test_totals_by_hand() -> None:
    # q, o, gate, up, down are 64 x 64, k and v 32 x 64: 2 bits a weight and one float32 a matrix
    shape = {
        "vocab_size": 10,
        "hidden_size": 64,
        "num_layers": 1,
        "num_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
    }
    summary = summarise(random_file(random_description(**shape, intermediate_size=64), layout="ternary_t16"))
    totals = summary["totals"]
    coded = 5 * 64 * 64 + 2 * 32 * 64
    assert totals["coded_weights"] == coded
    assert totals["coded_bits_per_weight"] == pytest.approx((2 * coded + 7 * 32) / coded)
    weights = coded + 10 * 64 + 3 * 64
    stored = coded // 4 + 7 * 4 + 10 * 64 * 2 + 3 * 64 * 4
    assert (totals["weights"], totals["tensor_bytes"]) == (weights, stored)
    assert totals["smaller_than_float16"] == pytest.approx(2 * weights / stored)
    assert sum(totals["shares"].values()) == pytest.approx(1)


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.1bit"
    size = write(
        path, random_file(layout="ternary5", granularity="per_group", config={}, other_sections={"EXTRA": b"x"})
    )
    assert execute(["info", str(path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["file_bytes"] == size
    assert printed["description"]["hidden_size"] == 72
    assert printed["sections"]["CONFIG"]
    assert printed["sections"]["EXTRA"]
    assert not printed["sections"]["TOKJSON"]
    q = next(tensor for tensor in printed["tensors"] if tensor["name"].endswith("0.attention.q_proj.weight"))
    assert (q["layout"], q["granularity"], q["group_size"], q["activation"]) == ("ternary5", "per_group", 64, "int8")
    assert q["bytes"] == 72 * 64 + 72 * 2 * 2
    assert q["bits_per_weight"] == pytest.approx(8 * q["bytes"] / 72**2)
    assert printed["checksums"] == {"header": "good", "tensors": "good"}


def test_text_and_a_damaged_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.1bit"
    write(path, random_file(layout="binary_t16"))
    assert execute(["info", str(path)]) == 0
    text = capsys.readouterr().out
    for part in (
        "2 layers",
        "rmsnorm, swiglu",
        "binary_t16",
        "checksums  header good",
        "float16 would take",
        "0: 0.0%",
    ):
        assert part in text
    damaged = bytearray(path.read_bytes())
    damaged[-300] ^= 1
    path.write_bytes(damaged)
    assert execute(["info", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: ")
    assert error.count("\n") == 1


def test_reading_and_showing_need_no_torch(tmp_path: Path) -> None:
    path = tmp_path / "m.1bit"
    write(path, random_file())
    program = (
        "import sys\nsys.modules['torch'] = sys.modules['transformers'] = None\n"
        f"from onebit.cli.main import execute\nsys.exit(execute(['info', {str(path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ternary_t16" in done.stdout


def test_random_models_keep_activations_near_one() -> None:
    """What makes their logits worth comparing: a projection of unit-size inputs has unit size."""
    file = random_file(granularity="per_row", seed=3)
    x = np.random.default_rng(0).standard_normal((72, 500))
    y = file.tensors["model.layers.0.mlp.up_proj.weight"].values() @ x
    assert 0.5 < y.std() < 2
