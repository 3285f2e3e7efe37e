"""The C header against a C compiler: a program that includes it prints every weight, Python compares."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from onebit.formats.c_header import write_c_header
from onebit.formats.random_model import random_description, random_file

CC = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
GRANULARITIES = ("per_tensor", "per_row", "per_group")
needs_cc = pytest.mark.skipif(CC is None, reason="no C compiler on this machine")

READER = r"""
#include "tiny_model.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static float half(uint16_t bits) {
    int e = (bits >> 10) & 31, m = bits & 1023;
    float value = e ? ldexpf((float)(m + 1024), e - 25) : ldexpf((float)m, -24);
    return bits & 0x8000 ? -value : value;
}

static float scale_of(const onebit_tensor *t, uint32_t row, uint32_t col) {
    uint32_t groups = t->group_size ? (t->cols + t->group_size - 1) / t->group_size : 1;
    size_t at = t->granularity == 1 ? 0 : t->granularity == 2 ? row : (size_t)row * groups + col / t->group_size;
    return t->scale_type == 1 ? ((const float *)t->scales)[at] : half(((const uint16_t *)t->scales)[at]);
}

static int digit(uint8_t byte, uint32_t place) {
    for (; place; place--) byte = (uint8_t)(byte * 3);
    return (byte * 3) >> 8;
}

static float weight(const onebit_tensor *t, uint32_t row, uint32_t col) {
    const uint8_t *data = (const uint8_t *)t->data + (size_t)row * t->row_bytes;
    int code = 0;
    switch (t->layout) {
    case 0: return ((const float *)(const void *)data)[col];
    case 1: return half(((const uint16_t *)(const void *)data)[col]);
    case 2: code = ((const int8_t *)(const void *)data)[col]; break;
    case 3: code = (col % 2 ? data[col / 2] >> 4 : data[col / 2] & 15) - 8; break;
    case 4: code = (data[col / 8] >> col % 8 & 1) * 2 - 1; break;
    case 5: { int bits = data[col / 4] >> 2 * (col % 4) & 3; code = bits == 3 ? -1 : bits; break; }
    case 6: {
        uint32_t group = t->group_size ? t->group_size : t->cols, per_group = (group + 4) / 5, in = col % group;
        code = digit(data[col / group * per_group + in / 5], in % 5) - 1;
        break;
    }
    default: exit(3);
    }
    return (float)code * scale_of(t, row, col);
}

int main(void) {
    for (size_t i = 0; i < TINY_MODEL_NUM_TENSORS; i++) {
        const onebit_tensor *t = &tiny_model_tensors[i];
        if ((uintptr_t)t->data % 64 || (uintptr_t)t->scales % 64) return 2;
        for (uint32_t row = 0; row < t->rows; row++)
            for (uint32_t col = 0; col < t->cols; col++) {
                float value = weight(t, row, col);
                fwrite(&value, sizeof value, 1, stdout);
            }
    }
    return TINY_MODEL_HIDDEN_SIZE == 40 && TINY_MODEL_TIED_HEAD && TINY_MODEL_MLP_SWIGLU ? 0 : 4;
}
"""


CASES = [(layout, grain) for layout in ("binary_t16", "ternary_t16", "ternary5_t16") for grain in GRANULARITIES]


@needs_cc
@pytest.mark.parametrize(
    ("layout", "granularity"), [*CASES, ("int8", "per_row"), ("int4", "per_group"), ("float16", "none")]
)
def test_c_reads_every_weight_back(layout: str, granularity: str, tmp_path: Path) -> None:
    shape = {"vocab_size": 11, "hidden_size": 40, "num_layers": 1, "head_dim": 10, "intermediate_size": 70}
    file = random_file(
        random_description(**shape), layout=layout, granularity=granularity, biases=True, embedding_layout="float16"
    )
    write_c_header(tmp_path / "tiny-model.h", file, name="tiny-model")
    (tmp_path / "tiny-model.h").rename(tmp_path / "tiny_model.h")
    (tmp_path / "reader.c").write_text(READER)
    assert CC is not None
    strict = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O1"]
    subprocess.run([CC, *strict, "reader.c", "-o", "reader", "-lm"], cwd=tmp_path, check=True)
    printed = subprocess.run([tmp_path / "reader"], check=True, capture_output=True).stdout
    expected = np.concatenate([tensor.values().ravel() for tensor in file.tensors.values()])
    assert np.array_equal(np.frombuffer(printed, np.float32), expected)


@needs_cc
def test_including_it_unused_and_twice_warns_about_nothing(tmp_path: Path) -> None:
    file = random_file(random_description(vocab_size=3, num_layers=1))
    write_c_header(tmp_path / "a.h", file)
    write_c_header(tmp_path / "2b.h", file)
    (tmp_path / "main.c").write_text('#include "a.h"\n#include "a.h"\n#include "2b.h"\nint main(void) { return 0; }\n')
    assert CC is not None
    strict = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    subprocess.run([CC, *strict, "-c", "main.c", "-o", "main.o"], cwd=tmp_path, check=True)


def test_every_float32_survives_its_decimal_form() -> None:
    """Nine digits give back every float32; checked on awkward ones, parsed by another program's rules (float())."""
    from onebit.formats.c_header import _float

    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 20_000, dtype=np.uint32)
    values = bits.view(np.float32)
    for value in [*values[np.isfinite(values)].tolist(), 0.0, -0.0, 1.0, 1e-45, 3.4028234663852886e38]:
        text = _float(value)
        assert text.endswith("f")
        assert np.float32(float(text[:-1])).tobytes() == np.float32(value).tobytes()
