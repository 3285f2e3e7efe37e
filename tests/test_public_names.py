"""What `import onebit` offers: loaded on first use, known to type checkers, clear about what is not installed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import onebit


def test_every_name_is_there() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    for name in onebit.__all__:
        assert getattr(onebit, name) is not None
    assert set(dir(onebit)) == set(onebit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Modell'"):
        _ = onebit.Modell  # type: ignore[attr-defined]


def test_type_checkers_see_the_same_names() -> None:
    stub = ast.parse(Path(onebit.__file__).with_suffix(".pyi").read_text())
    homes = {a.name: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for a in node.names}
    assert homes == onebit._HOME_OF  # type: ignore[attr-defined]


def test_a_name_without_its_extra_says_which() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers'): sys.modules[name] = None\n"
        "import onebit\n"
        "from onebit import Model\n"
        "try:\n"
        "    from onebit import BitLinear\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "onebit.BitLinear needs the extra 'train': pip install 'onebit[train]'\n", done.stderr
