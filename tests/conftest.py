"""Settings every test shares: one torch thread, no network, a Ctrl-C that arrives, each compiled thing made once."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

try:
    import fcntl
except ImportError:  # Windows, where no two workers share the folder
    fcntl = None  # type: ignore[assignment]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

try:
    import torch
except ImportError:  # the core must be testable without torch
    pass
else:
    torch.set_num_threads(1)
    if not torch.cuda.is_available():  # here, before another conftest imports triton, which compiles torch's graphs too
        os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parents[1]
ENGINE = ROOT / "engine"
BUILD = ROOT / "build"
CORES = str(os.cpu_count() or 1)


def pytest_configure() -> None:
    # A shell that puts the suite into its background makes it ignore Ctrl-C, and so every program that a test starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Holds build/locks/NAME; other workers and other runs wait."""
    path = BUILD / "locks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_UN)  # closing would not do: a forked child has the file too


def run_checked(*command: object, cwd: Path | None = None, **environment: str) -> str:
    """What a program prints; a failure shows the end of both its outputs."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280, cwd=cwd, env=os.environ | environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="session")
def cmake_build() -> Callable[..., Path]:
    """``cmake_build(name, *options, ...)`` -> build/NAME, up to date: CMake compiles what changed, nothing else."""
    cmake = shutil.which("cmake")

    def build(name: str, *options: str, source: Path = ENGINE, targets: Iterable[str] = ()) -> Path:
        if cmake is None:
            pytest.skip("cmake is not there")
        folder, chosen = BUILD / name, [word for target in targets for word in ("--target", target)]
        with locked(name):
            run_checked(cmake, "-S", source, "-B", folder, *options)
            run_checked(cmake, "--build", folder, "-j", CORES, *chosen)
        return folder

    return build


@pytest.fixture(scope="session")
def native_build(cmake_build: Callable[..., Path]) -> Path:
    """A folder with the engine's library, onebit-run and the C tests, as optimised as what is shipped.

    Installing in place leaves one with every object but the tests'; without it the engine is compiled in build/engine.
    """
    for cache in BUILD.glob("py3-none-*/CMakeCache.txt"):
        if f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" in cache.read_text(encoding="utf-8"):
            return cmake_build(cache.parent.name, "-DOB_BUILD_TESTS=ON", source=ROOT) / "engine"
    return cmake_build("engine", "-DOB_BUILD_TESTS=ON")


@pytest.fixture(scope="session")
def compiled() -> Callable[[str, list[str], Callable[[Path], object]], Path]:
    """``compiled(name, command, make)``: build/made/NAME-KEY, filled by ``make(folder)`` unless it is there.

    The key is a checksum of the engine's sources and of the command: the compiler and what it is told.
    """

    def build(name: str, command: list[str], make: Callable[[Path], object]) -> Path:
        version = subprocess.run([command[0], "--version"], capture_output=True, check=True).stdout
        key = hashlib.sha256(repr(command).encode() + version)
        for path in sorted(path for path in ENGINE.rglob("*") if path.is_file()):
            key.update(path.relative_to(ENGINE).as_posix().encode() + b"\0" + path.read_bytes())
        folder = BUILD / "made" / f"{name}-{key.hexdigest()[:16]}"
        with locked(name):
            if not folder.is_dir():
                unfinished = folder.with_name(f"{name}-unfinished")
                for old in [*unfinished.parent.glob(f"{name}-{'?' * 16}"), unfinished]:
                    shutil.rmtree(old, ignore_errors=True)
                unfinished.mkdir(parents=True)
                make(unfinished)
                unfinished.rename(folder)
        return folder

    return build


@pytest.fixture(scope="session")
def wasm_engines(compiled: Callable[..., Path]) -> Path:
    """A folder with onebit.wasm and onebit-relaxed.wasm."""
    packages = {"clang-16": "clang-16", "wasm-ld-16": "lld-16"}
    if missing := [package for program, package in packages.items() if shutil.which(program) is None]:
        pytest.skip(f"needs the packages {', '.join(missing)}")
    script = ENGINE / "wasm" / "build.sh"

    def make(folder: Path) -> None:
        run_checked(script, folder / "onebit.wasm")
        run_checked(script, folder / "onebit-relaxed.wasm", RELAXED="1")

    return compiled("web-engines", ["clang-16"], make)
