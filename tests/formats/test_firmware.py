"""The firmware folder: the engine compiled with no C library says the same here and on an emulated Cortex-M4."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from onebit.cli.model_path import tiny_model_path
from onebit.engine import Model
from onebit.errors import ConfigError
from onebit.formats import onebit_file
from onebit.formats.firmware import write_firmware
from onebit.formats.random_model import random_description, random_file

EXAMPLE = Path(__file__).parents[2] / "examples" / "cortex_m"
PROMPT, NEW_TOKENS = "def fib(n):", 24
STRICT = ["-std=c11", "-O1", "-ffreestanding", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Werror"]
# main.c's board on this machine: its three calls to the system, and nothing else of a C library.
HOST_BOARD = """
#include <unistd.h>
#include <stddef.h>
void put_text(const char *text, size_t bytes);
void put_text(const char *text, size_t bytes) {
    for (long n; bytes && (n = write(1, text, bytes)) > 0; bytes -= (size_t)n) text += n;
}
"""


@pytest.fixture(scope="module")
def firmware(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("firmware") / "tiny_firmware"
    write_firmware(folder, onebit_file.read(tiny_model_path()))
    return folder


def expected() -> tuple[str, str]:
    generation = Model(tiny_model_path()).generate(PROMPT, max_new_tokens=NEW_TOKENS)
    text = "".join(generation)
    return f"text: {PROMPT}{text}", "ids: " + " ".join(map(str, generation.ids))


def run(*command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_the_example_on_an_emulated_cortex_m_says_what_the_desktop_says(firmware: Path, tmp_path: Path) -> None:
    packages = {"arm-none-eabi-gcc": "gcc-arm-none-eabi", "qemu-system-arm": "qemu-system-arm"}
    if missing := [package for program, package in packages.items() if shutil.which(program) is None]:
        pytest.skip(f"needs the packages {', '.join(missing)}")
    image = tmp_path / "firmware.elf"
    sizes = run(EXAMPLE / "build.sh", firmware, image)
    flash, ram = map(int, re.search(r"flash: (\d+) bytes, RAM: (\d+) bytes", sizes).groups())
    assert flash < 1_600_000
    assert ram < 400_000
    said = run("qemu-system-arm", "-M", "mps2-an386", "-nographic", "-semihosting", "-kernel", image)
    text, ids = expected()
    assert said.startswith(text + "\n" + ids + "\n"), said
    arenas = int(re.search(r"static arenas: (\d+) bytes", said)[1])
    assert arenas <= ram


def test_the_core_compiles_freestanding_and_says_the_same_here(firmware: Path, tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    (tmp_path / "board.c").write_text(HOST_BOARD, encoding="utf-8")
    sources = [EXAMPLE / "main.c", *sorted(firmware.glob("src/*.c")), *sorted(firmware.glob("src/kernels/*.c"))]
    # The x86 parts of the dispatch are not in the folder.
    plain = ["-DOB_REFERENCE_ONLY", f"-I{firmware}", f"-I{firmware / 'include'}"]
    objects = []
    for number, source in enumerate(sources):
        objects.append(tmp_path / f"{number}.o")
        run(compiler, *STRICT, *plain, "-c", source, "-o", objects[-1])
    wanted = run("nm", "-u", *objects[1:])
    own = run("nm", "--defined-only", "-g", *objects)
    defined = {line.split()[-1] for line in own.splitlines() if len(line.split()) == 3}
    undefined = {line.split()[-1] for line in wanted.splitlines() if " U " in line}
    assert undefined - defined <= {"memcpy", "memset", "memmove", "__stack_chk_fail", "_GLOBAL_OFFSET_TABLE_"}
    run(compiler, tmp_path / "board.c", *objects, "-o", tmp_path / "program")
    text, ids = expected()
    assert run(tmp_path / "program").startswith(text + "\n" + ids + "\n")


def test_the_stated_arenas_are_enough_for_awkward_shapes(tmp_path: Path) -> None:
    """Every number of positions: the formula against the engine itself."""
    import ctypes

    from onebit.engine import _library as c
    from onebit.engine.arenas import arena_bytes

    for kwargs in ({}, {"num_key_value_heads": 4, "max_seq_len": 33}, {"head_dim": 24, "mlp": "swiglu"}):
        path = tmp_path / "model.1bit"
        onebit_file.write(path, random_file(random_description(**kwargs)))
        arenas, model = arena_bytes(path), Model(path, threads=1, isa="scalar")
        for positions in range(1, model.description.max_seq_len + 1):
            options = c.CSessionOptions(max_positions=positions, max_batch=1, num_threads=1, num_sequences=1)
            size = ctypes.c_size_t()
            c.check(
                c.library().ob_session_arena_bytes(
                    model._handle, ctypes.byref(options), ctypes.byref(size), ctypes.byref(c.Error())
                ),
                c.Error(),
            )
            assert size.value <= arenas.session_for(positions) <= size.value + 256 + positions


def test_what_is_in_the_way_is_kept(tmp_path: Path) -> None:
    file = replace(random_file(random_description()), config={"a": 1})
    (tmp_path / "m_firmware").mkdir()
    with pytest.raises(ConfigError, match=r"holds no model_image\.h"):
        write_firmware(tmp_path / "m_firmware", file)
    write_firmware(tmp_path / "other", file)
    write_firmware(tmp_path / "other", file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m_firmware", "other"]
    assert b'"a"' not in (tmp_path / "other" / "model_image.h").read_bytes()
