"""The engine in WebAssembly under node: its C tests, the packaged model's golden answer, the native engine's bits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onebit.cli.model_path import tiny_model_path
from onebit.engine import Model
from onebit.formats import onebit_file

ROOT = Path(__file__).resolve().parents[2]
WASM = ROOT / "engine" / "wasm"
GOLDEN = json.loads((ROOT / "tests" / "golden" / "tiny_greedy.json").read_text(encoding="utf-8"))
PACKAGES = {"clang-16": "clang-16", "wasm-ld-16": "lld-16", "node": "nodejs (16 or newer)"}
IDS = [1, 5, 96, 0, 33, 33, 7, 64, 12, 90, 41, 2, 3, 58, 77, 20, 11, 19, 19]
MODELS = [
    {"layout": layout, "granularity": granularity, "activation": activation}
    for layout in ("float32", "float16", "int8", "int4", "binary_t16", "ternary_t16", "ternary5_t16")
    for granularity in ("per_row", "per_group")
    for activation in ("int8", "none")
]


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    missing = [package for program, package in PACKAGES.items() if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs the packages {', '.join(missing)}")


def compile_wasm(output: Path, *arguments: object, objects: Path) -> None:
    command, environment = [WASM / "build.sh", output, *map(str, arguments)], os.environ | {"OBJECTS": str(objects)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def node(script: str, *arguments: object) -> str:
    done = subprocess.run(["node", WASM / "test" / script, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def core(compiled: Callable[..., Path]) -> Path:
    def make(folder: Path) -> None:
        compile_wasm(folder / "onebit.wasm", objects=folder / "objects")

    return compiled("wasm", ["clang-16"], make) / "onebit.wasm"


@pytest.mark.parametrize("name", [pytest.param("test_kernels", marks=pytest.mark.slow), "test_rows", "test_attend"])
def test_the_tests_in_c_pass(core: Path, compiled: Callable[..., Path], name: str) -> None:
    headers = ["-isystem", WASM / "test" / "libc", f"-I{ROOT / 'engine/src'}", f"-I{ROOT / 'engine/src/kernels'}"]
    calls = [f"-fno-builtin-{function}" for function in ("printf", "fprintf", "snprintf")]
    linking = ["-Wl,--export=main", "-Wl,--allow-undefined"]
    sources = [WASM / "test" / "libc" / "libc.c", ROOT / "engine" / "tests" / f"{name}.c"]
    arguments = [*map(str, [*headers, *calls, *linking, *sources])]

    def make(folder: Path) -> None:
        compile_wasm(folder / "test.wasm", *arguments, objects=core.with_name("objects"))

    node("c_test.mjs", compiled(f"wasm-{name}", ["clang-16", *arguments], make) / "test.wasm")


@pytest.mark.parametrize("isa", ["scalar", "auto"])
def test_the_golden_answer(core: Path, isa: str) -> None:
    answer = json.loads(node("greedy.mjs", core, tiny_model_path(), GOLDEN["prompt"], len(GOLDEN["ids"]), isa))
    assert answer["ids"] == GOLDEN["ids"]
    assert answer["text"] == GOLDEN["text"]
    kernels = [line for line in answer["kernels"] if line.startswith("linear ternary5_t16 int8")]
    assert ("wasm" if isa == "auto" else "scalar") in kernels[0]


def test_the_bits_of_the_native_engine(core: Path, make_file: Callable[..., Any], tmp_path: Path) -> None:
    jobs: list[dict[str, Any]] = []
    for index, options in enumerate(MODELS):
        sizes = {"hidden_size": 144, "head_dim": 32, "intermediate_size": 261}
        head = {"embedding_layout": options["layout"] if options["layout"] in ("float32", "int8") else "float16"}
        path = tmp_path / f"{index}.1bit"
        onebit_file.write(path, make_file(sizes, biases=True, **head, **options)[1])
        jobs.append({"model": str(path), "isa": "auto", "tokens": IDS, "out": str(tmp_path / f"{index}.logits")})
    (tmp_path / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    node("logits.mjs", core, tmp_path / "jobs.json")
    for job, options in zip(jobs, MODELS, strict=True):
        native = Model(job["model"], threads=1).logits(IDS)
        together, alone = np.fromfile(job["out"], np.float32).reshape(2, *native.shape)
        assert together.tobytes() == native.tobytes(), f"{options}: off by up to {np.abs(together - native).max()}"
        assert alone.tobytes() == native.tobytes(), f"{options} alone: off by up to {np.abs(alone - native).max()}"
