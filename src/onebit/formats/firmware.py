"""A model for a program without operating system: a folder of C that such a program compiles with its own.

============================  ====================================================================================
file                          what it holds
============================  ====================================================================================
``model_image.h``             the ``.1bit`` file as an array, and how much memory the engine takes of the caller
``include/onebit.h``          the engine's interface
``src/``, ``src/kernels/``    its core with the reference kernels: C11, freestanding, no heap, of a C library at most
                              memcpy, memmove and memset
============================  ====================================================================================

``examples/cortex_m`` is such a program.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from onebit.errors import ConfigError, EngineError
from onebit.formats.onebit_file import OneBitFile, write

__all__ = ["core_sources", "write_firmware"]

_HEADER = "model_image.h"
_KERNELS = ("ob_dispatch.c", "ob_unpack.c", "ob_kernels.h", "*_ref.c")
_WORDS = 12  # in a line


def core_sources() -> list[tuple[Path, str]]:
    """The core's files and where they lie in the folder. EngineError where this copy of onebit came without them."""
    import onebit.engine

    tree = Path(__file__).resolve().parents[3] / "engine"
    places = [tree, *(Path(place) / "core" for place in onebit.engine.__path__)]
    for place in places:
        if (place / "src" / "ob_session.c").is_file():
            found = [place / "include" / "onebit.h", *place.glob("src/ob_*.[ch]")]
            for pattern in _KERNELS:
                found += place.glob(f"src/kernels/{pattern}")
            found.remove(place / "src" / "ob_host.h")
            return sorted((path, path.relative_to(place).as_posix()) for path in found)
    raise EngineError(
        f"the engine's sources are not in {places[-1]}; install onebit's wheel again, or from its sources"
    )


def write_firmware(folder: Path, file: OneBitFile) -> int:
    """Write ``folder``, whole or not at all; one that was written before is replaced. Returns the bytes of the image.

    What only Python reads is left out of the image: the tokenizer and the template as text, configuration and manifest.
    Raises ConfigError for a folder of something else.
    """
    if folder.exists() and not (folder / _HEADER).is_file():
        raise ConfigError(f"{folder} is there and holds no {_HEADER}; move it away, or name the output otherwise")
    lean = replace(file, config=None, tokenizer_json=None, chat_template=None, manifest=None, other_sections={})
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        unfinished.mkdir()
        image = unfinished / "model.1bit"
        size = write(image, lean)
        with open(unfinished / _HEADER, "w", encoding="ascii") as out:
            out.writelines(_header(image, lean))
        image.unlink()
        for path, name in core_sources():
            (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, unfinished / name)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return size


def _header(image: Path, file: OneBitFile) -> Iterator[str]:
    from onebit.engine.arenas import arena_bytes

    arenas = arena_bytes(image)
    words = np.fromfile(image, "<u4")  # a file's size is a multiple of 64
    yield f"""\
/* A onebit model as the engine reads it, in place. Written by onebit export. The arenas are the static memory that the
 * engine takes with the kernels of this folder: for the model, and for a session of so many positions that computes
 * MODEL_MAX_BATCH tokens at once. */
#ifndef MODEL_IMAGE_H
#define MODEL_IMAGE_H

#include <stdint.h>

#define MODEL_IMAGE_BYTES {words.nbytes}u
#define MODEL_VOCAB_SIZE {file.description.vocab_size}u
#define MODEL_MAX_POSITIONS {file.description.max_seq_len}u
#define MODEL_MAX_BATCH 1u
#define MODEL_ARENA_BYTES {arenas.model}u
#define MODEL_SESSION_ARENA_BYTES(positions) ({arenas.session}u + {arenas.per_position}u * (positions))

/* Include it once: each file that does has a copy. */
_Alignas(64) static const uint32_t model_image[MODEL_IMAGE_BYTES / 4] = {{
"""
    for start in range(0, words.size, _WORDS):
        yield ",".join(f"{word:#x}" for word in words[start : start + _WORDS].tolist()) + ",\n"
    yield "};\n\n#endif\n"
