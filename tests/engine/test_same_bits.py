"""The same bits of logits from every instruction set, number of threads, batch size, and layout of the same codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onebit.engine import Model, _library
from onebit.formats import onebit_file

IDS = [1, 5, 96, 0, 33, 33, 7, 64, 12, 90, 41, 2, 3, 58, 77, 20, 11, 19, 19, 80, 66, 54, 43, 32, 21, 10, 9]
ISAS = ("avx2", "avxvnni", "avx512", "amx", "neon", "i8mm", "wasm")
LAYOUTS = ("float32", "float16", "int8", "int4", "binary_t16", "ternary_t16", "ternary5_t16")


def _available(isa: str) -> bool:
    library = _library.library()
    return bool(library.ob_isa_available(library.ob_isa_from_name(isa.encode())))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("granularity", ["per_tensor", "per_row", "per_group"])
@pytest.mark.parametrize("activation", ["int8", "none"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_scalar_and_simd(
    make_file: Callable[..., Any], isa: str, granularity: str, activation: str, layout: str
) -> None:
    if not _available(isa):
        pytest.skip(f"no {isa} here")
    path, _ = make_file(
        {"hidden_size": 144, "head_dim": 32, "intermediate_size": 261},
        layout=layout,
        granularity=granularity,
        activation=activation,
        biases=True,
        embedding_layout=layout if layout in ("float32", "int8", "int4") else "float16",
    )
    scalar = Model(path, isa="scalar", threads=1).logits(IDS)
    simd = Model(path, isa=isa, threads=1).logits(IDS)
    assert scalar.tobytes() == simd.tobytes(), f"largest difference {np.abs(scalar - simd).max()}"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("block", [4, 16, 1024])
def test_turned_inputs(make_file: Callable[..., Any], isa: str, block: int) -> None:
    if not _available(isa):
        pytest.skip(f"no {isa} here")
    sizes = {"hidden_size": 192, "head_dim": 32, "intermediate_size": 260}
    path, _ = make_file(sizes, granularity="per_group", hadamard_block=block, embedding_layout="ternary5_t16")
    expected = Model(path, isa="scalar", threads=1).logits(IDS).tobytes()
    assert Model(path, isa=isa, threads=2).logits(IDS).tobytes() == expected
    session = Model(path, isa=isa, threads=1).session()
    assert b"".join(session.decode(token).tobytes() for token in IDS) == expected


@pytest.mark.parametrize("isa", ["scalar", "auto"])
@pytest.mark.parametrize("layout", ["ternary_t16", "ternary5_t16", "binary_t16", "float16"])
def test_threads_batches_and_decode(make_file: Callable[..., Any], isa: str, layout: str) -> None:
    path, _ = make_file({"mlp": "swiglu", "qk_norm": True, "sub_norm": True}, layout=layout, granularity="per_group")
    expected = Model(path, isa=isa, threads=1).logits(IDS).tobytes()
    for threads in (2, 3):
        assert Model(path, isa=isa, threads=threads).logits(IDS).tobytes() == expected
    model = Model(path, isa=isa, threads=1)
    for max_batch in (1, 4, 5, 16, 64):
        assert model.session(max_batch=max_batch).forward(IDS, "all").tobytes() == expected
    session = model.session()
    decoded = [session.prefill(IDS[:6])] + [session.decode(token) for token in IDS[6:]]
    assert b"".join(row.tobytes() for row in decoded) == expected[5 * 4 * 97 :]


@pytest.mark.parametrize("layout", ["binary_t16", "ternary_t16", "ternary5_t16"])
@pytest.mark.parametrize("activation", ["none", "int8"])
def test_run_and_exchange_layouts(make_file: Callable[..., Any], tmp_path: Any, layout: str, activation: str) -> None:
    path, file = make_file(layout=layout, granularity="per_group", activation=activation)
    onebit_file.write(tmp_path / "exchange.1bit", file.for_exchange())
    assert Model(path).logits(IDS).tobytes() == Model(tmp_path / "exchange.1bit").logits(IDS).tobytes()


def test_sessions_do_not_disturb_each_other(make_file: Callable[..., Any]) -> None:
    model = Model(make_file()[0])
    first, second = model.session(), model.session()
    expected = model.logits(IDS)[-1]
    for token in IDS[:-1]:
        first.decode(token)
        second.decode(token + 1 if token < 96 else 0)
    assert first.decode(IDS[-1]).tobytes() == expected.tobytes()


def test_truncate_and_continue(make_file: Callable[..., Any]) -> None:
    session = (model := Model(make_file()[0])).session()
    session.prefill(IDS)
    other = [*IDS[:9], 8, 8, 8]
    assert session.continue_with(other).tobytes() == model.logits(other)[-1].tobytes()
    assert session.position == len(session.tokens) == len(other)
    session.reset()
    assert session.position == 0
    assert session.prefill(IDS).tobytes() == model.logits(IDS)[-1].tobytes()
