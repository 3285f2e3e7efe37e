"""The engine for 64-bit ARM, cross compiled and run under qemu: its C tests, and the packaged model's golden answer."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from onebit.cli.model_path import tiny_model_path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "tiny_greedy.json").read_text(encoding="utf-8"))
PACKAGES = {
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu and libc6-dev-arm64-cross",
    "qemu-aarch64-static": "qemu-user-static",
    "cmake": "cmake",
}
# What qemu plays, and the instruction set that must be chosen there.
PROCESSORS = {
    "cortex-a72": "neon (processor has NEON)",
    "cortex-a76": "neon (processor has NEON with dot products)",
    "max": "i8mm (processor has NEON int8 matrix products)",
}
TESTS = ["test_kernels", "test_rows", "test_attend", "test_model", "test_tokenizer"]
SLOW = {"test_kernels", "test_attend"}  # minutes of emulation


@pytest.fixture(scope="module")
def build(cmake_build: Callable[..., Path]) -> Path:
    """build/aarch64, up to date. Barely optimised: qemu says nothing of speed, and the compiler takes half the time."""
    missing = [package for program, package in PACKAGES.items() if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs the packages {', '.join(missing)}")
    toolchain = ROOT / "engine" / "cmake" / "aarch64.cmake"
    options = [f"-DCMAKE_TOOLCHAIN_FILE={toolchain}", "-DOB_BUILD_TESTS=ON", "-DCMAKE_C_FLAGS_RELEASE=-O1 -DNDEBUG"]
    return cmake_build("aarch64", *options, targets=["onebit-run", *TESTS])


def emulate(processor: str, program: Path, *arguments: object) -> str:
    command = ["qemu-aarch64-static", "-cpu", processor, str(program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in TESTS])
def test_the_tests_in_c_pass(build: Path, name: str) -> None:
    emulate("max", build / name)


@pytest.mark.slow
def test_the_kernels_without_dot_products(build: Path) -> None:
    emulate("cortex-a72", build / "test_kernels")


@pytest.mark.parametrize("processor", PROCESSORS)
def test_every_processor_gives_the_golden_text(build: Path, processor: str) -> None:
    model = tiny_model_path()
    answer = emulate(
        processor, build / "onebit-run", model, "-p", GOLDEN["prompt"], "-n", len(GOLDEN["ids"]), "--temperature", 0
    )
    assert GOLDEN["text"] in answer
    kernels = emulate(processor, build / "onebit-run", model, "--info")
    assert f"kernel: linear ternary5_t16 int8: {PROCESSORS[processor]}" in kernels
