"""Fixtures of the engine's tests: the built library, model files by configuration, the float64 reference."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onebit.engine import _library
from onebit.errors import EngineError
from onebit.formats import onebit_file
from onebit.formats.random_model import random_description, random_file


@pytest.fixture(scope="session", autouse=True)
def engine_library(request: pytest.FixtureRequest) -> Path:
    """The shared library; built into build/engine where it is not there yet."""
    try:
        return _library.library_path()
    except EngineError:
        request.getfixturevalue("native_build")
        return _library.library_path()


@pytest.fixture(scope="session")
def reference() -> Any:
    """The class ``Reference`` of reference.py."""
    spec = importlib.util.spec_from_file_location("onebit_engine_reference", Path(__file__).with_name("reference.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Reference


@pytest.fixture
def make_file(tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """``make_file(description_fields, **random_file_options)`` -> (path, OneBitFile)."""

    def make(fields: dict[str, Any] | None = None, **options: Any) -> tuple[Path, Any]:
        file = random_file(random_description(**(fields or {})), **options)
        path = tmp_path / "model.1bit"
        onebit_file.write(path, file)
        return path, file

    return make
