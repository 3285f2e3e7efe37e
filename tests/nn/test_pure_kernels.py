"""Which kernels pure training runs on, and that it says why."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from onebit.errors import ConfigError, EngineError, OnebitError
from onebit.nn import pure_kernels, torch_pure
from onebit.nn.pure_kernels import kernels_for, kernels_on

try:
    from onebit.nn import c_pure
except EngineError as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Nothing is known yet of what is asked for and of what runs, and nothing is left known to other tests."""
    monkeypatch.delenv("ONEBIT_PURE_KERNELS", raising=False)
    _forget()
    yield monkeypatch
    _forget()


def _forget() -> None:
    pure_kernels._chosen.cache_clear()
    kernels_on.cache_clear()


def _ask_for(name: str, fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("ONEBIT_PURE_KERNELS", name)
    kernels_on.cache_clear()


def test_c_is_taken_on_a_cpu_and_said_once(fresh: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "onebit"):
        assert kernels_for(torch.zeros(1)) is c_pure
        assert kernels_for(torch.zeros(2)) is c_pure
    assert [record.getMessage() for record in caplog.records] == [
        "pure training on cpu: c kernels (the fastest on cpu)"
    ]


def test_without_the_library_torch_is_taken_and_the_reason_said(
    fresh: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def load(name: str) -> pure_kernels.PureKernels:
        if name == "c":
            raise OnebitError("the onebit engine is not built")
        return torch_pure

    fresh.setattr(pure_kernels, "_load", load)
    with caplog.at_level(logging.INFO, "onebit"):
        assert kernels_for(torch.zeros(1)) is torch_pure
    assert "pure training on cpu: torch kernels (the onebit engine is not built)" in caplog.text


@pytest.mark.parametrize(("wrong_byte", "message"), [
    (0xFF, "a Triton kernel unpacks 0xff to"), (None, "a Triton kernel does not run (no compiler)")
])  # fmt: skip
def test_triton_that_does_not_work_is_not_taken(
    fresh: pytest.MonkeyPatch, wrong_byte: int | None, message: str
) -> None:
    class Broken:
        @staticmethod
        def unpack(codes_OB: Tensor, cols: int, dtype: torch.dtype, *, is_binary: bool) -> Tensor:
            if wrong_byte is None:
                raise RuntimeError("no compiler")
            numbers = torch_pure.unpack(codes_OB, cols, dtype, is_binary=is_binary)
            return -numbers if int(codes_OB) == wrong_byte else numbers

    fresh.setattr(pure_kernels, "_load", lambda name: Broken if name == "triton" else torch_pure)
    assert pure_kernels._problem("triton", "cpu").startswith(message)
    _ask_for("triton", fresh)
    with pytest.raises(OnebitError, match=re.escape(f"ONEBIT_PURE_KERNELS=triton cannot be had on cpu: {message}")):
        kernels_for(torch.zeros(1))


def test_the_environment_decides(fresh: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    _ask_for("torch", fresh)
    with caplog.at_level(logging.INFO, "onebit"):
        assert kernels_for(torch.zeros(1)) is torch_pure
    assert "torch kernels (ONEBIT_PURE_KERNELS asks for it)" in caplog.text
    _ask_for("c", fresh)
    with pytest.raises(OnebitError, match="the C kernels know CPU tensors only, not meta"):
        kernels_for(torch.zeros(1, device="meta"))
    _ask_for("C", fresh)
    with pytest.raises(ConfigError, match="ONEBIT_PURE_KERNELS is 'C', expected one of torch, c, triton"):
        kernels_for(torch.zeros(1))
