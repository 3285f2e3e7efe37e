"""The C side by itself: its own tests, a plain ``cc`` build, and a core that needs nothing from a C library."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "engine"
HOST = {"clock.c", "limits.c", "load.c", "threads.c"}
CC = shutil.which("cc")
CMAKE = shutil.which("cmake")
CORE = sorted(path for path in ENGINE.glob("src/**/*.c") if path.name not in HOST)


def _run(*command: object, cwd: Path | None = None) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=280, cwd=cwd)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.skipif(CMAKE is None or CC is None, reason="no cmake or C compiler here")
def test_c_tests_pass(native_build: Path) -> None:
    _run("ctest", "--test-dir", native_build, "--output-on-failure", "--no-tests=error", "-j", os.cpu_count())


@pytest.mark.skipif(CC is None or shutil.which("ld") is None or shutil.which("nm") is None, reason="no binutils here")
def test_the_core_is_freestanding(compiled: Callable[..., Path]) -> None:
    """All core objects linked into one ask for three functions at most, and hold no writable data."""
    # Not optimised: what the compiler asks for then, it asks for in any case, and takes half the time.
    flags = ("-std=c11", "-O0", "-ffreestanding", "-fno-stack-protector", "-fno-pic", "-Wall", "-Wextra", "-Werror")
    command = [str(CC), *flags, "-I", str(ENGINE / "include"), "-c"]

    def make(folder: Path) -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda source: _run(*command, source, cwd=folder), CORE))
        _run("ld", "-r", "-o", "core.o", *sorted(path.name for path in folder.glob("*.o")), cwd=folder)

    core = compiled("freestanding", command, make) / "core.o"
    undefined = {line.split()[-1] for line in _run("nm", "-u", core).splitlines()}
    assert undefined <= {"memcpy", "memset", "memmove"}
    symbols = _run("nm", core).splitlines()
    assert not [line for line in symbols if re.search(r" [BbDdC] ", line)]


@pytest.mark.slow
@pytest.mark.skipif(CC is None, reason="no C compiler here")
def test_a_plain_cc_command_builds_the_library(tmp_path: Path) -> None:
    sources = sorted(ENGINE.glob("src/**/*.c"))
    library = tmp_path / "libonebit.so"
    _run(CC, "-std=c11", "-O0", "-shared", "-fPIC", "-I", ENGINE / "include", *sources, "-o", library, "-lpthread")
    assert library.stat().st_size > 10_000
