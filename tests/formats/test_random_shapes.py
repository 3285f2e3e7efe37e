"""Random-weight models of the benchmark's shapes: whole, valid files that say what they hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onebit.errors import ConfigError
from onebit.formats.onebit_file import read
from onebit.formats.random_shapes import BODY_LAYOUTS, SHAPES, write_shape

BODY_WEIGHTS = {"2b4t": 2084.0e6, "700m": 679.5e6, "45m": 25.17e6}
TABLES = ("model.embed_tokens.weight",)


@pytest.mark.parametrize("shape", SHAPES)
def test_shape_has_the_published_number_of_weights(shape: str) -> None:
    matrices = [plan for plan in SHAPES[shape].plan() if plan.rows > 1 and plan.name not in TABLES]
    assert sum(plan.rows * plan.cols for plan in matrices) == pytest.approx(BODY_WEIGHTS[shape], rel=1e-3)


@pytest.mark.parametrize("layout", BODY_LAYOUTS)
def test_file_is_whole_and_its_codes_are_valid(layout: str, tmp_path: Path) -> None:
    path = tmp_path / "45m.1bit"
    seen: list[tuple[int, int]] = []
    size = write_shape(path, "45m", layout, progress=lambda done, total: seen.append((done, total)))
    assert path.stat().st_size == size == seen[-1][1]
    file = read(path)  # checks every checksum
    tensor = file.tensors["model.layers.5.mlp.down_proj.weight"]
    assert tensor.layout.label == layout
    codes = tensor.codes()  # refuses bytes that mean nothing, and padding that is not zero
    assert set(np.unique(codes)) == ({-1, 1} if layout == "binary_t16" else {-1, 0, 1})
    assert file.tensors["model.embed_tokens.weight"].layout.label == "int8"


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean '700m'"):
        write_shape(tmp_path / "x.1bit", "700mb")
    with pytest.raises(ConfigError, match="layout must be one of"):
        write_shape(tmp_path / "x.1bit", "45m", "int8")
