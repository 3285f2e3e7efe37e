"""docs/format.md says what the code does: its vectors, numbers and names are read from the page and compared."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import numpy as np
import pytest

from onebit.formats.description import MLPS, NORMS, POSITIONS
from onebit.formats.layout import Layout
from onebit.formats.random_model import random_description

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text("utf-8")
VECTORS = re.findall(
    r"^\| (\w+) \| (\d+) x (\d+) \| - \| ([-+0-9 ]+) \| ([0-9a-f ]+?)(?: then (\d+) times (\w\w))? \|$", PAGE, re.M
)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"{vector[0]}-{vector[2]}")
def test_vectors(vector: tuple[str, ...]) -> None:
    layout, rows, cols, codes, head, times, byte = vector
    matrix = np.array([int(code) for code in codes.split()], np.int8).reshape(int(rows), int(cols))
    packed = importlib.import_module(f"onebit.packing.{layout}").pack(matrix)
    assert packed.tobytes() == bytes.fromhex(head) + (bytes.fromhex(byte) * int(times) if times else b"")


def test_all_packed_layouts_have_a_vector() -> None:
    assert {vector[0] for vector in VECTORS} == {layout.label for layout in Layout if not layout.is_float}


def test_layout_numbers() -> None:
    section = PAGE.split("## 4. Layouts")[1].split("### Row layouts")[0]
    table = dict(re.findall(r"^\| (\d) \| (\w+) \| .* \|$", section, re.M))
    assert table == {str(int(layout)): layout.label for layout in Layout}


def test_kinds_names_and_shapes_cover_every_tensor() -> None:
    section = PAGE.split("## 3. Kinds")[1].split("## 4.")[0]
    listed = {int(kind) for kinds in re.findall(r"^\| ([\d, ]+) \| ", section, re.M) for kind in kinds.split(",")}
    shapes = {"norm": "layernorm", "position": "learned", "qk_norm": True, "sub_norm": True, "tied_head": False}
    plans = list(random_description(**shapes).plan())
    plans += [plan for plan in random_description(**shapes | {"position": "rope"}).plan() if plan not in plans]
    assert {int(plan.kind) for plan in plans} == listed
    for plan in plans:
        leaf = plan.name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
        assert leaf in section, plan.name


def test_enumerations_are_listed_in_order() -> None:
    for names in (NORMS, MLPS, POSITIONS):
        assert ", ".join(f"{index} {name}" for index, name in enumerate(names)) in PAGE


def test_golden_file_has_as_many_cases_as_the_page_says() -> None:
    golden = (Path(__file__).parents[1] / "golden" / "layouts.txt").read_text("ascii")
    assert f"has {golden.count('case ')} cases" in PAGE
