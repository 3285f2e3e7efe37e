"""A model as a web page: a static folder with a chat page that runs it in the browser, from any file server.

The page and the JavaScript module are the files of ``onebit/web``; the engine is the C core compiled to WebAssembly,
which lies beside them: in an installed package, or in a source tree after ``make wasm``.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

from onebit.errors import ConfigError, EngineError, FormatError
from onebit.formats.layout import Layout
from onebit.formats.onebit_file import OneBitFile, write

__all__ = ["MODEL_NAME", "for_page", "page_files", "wasm_path", "write_web_folder"]

MODEL_NAME = "model.1bit"
WASM = ("onebit.wasm", "onebit-relaxed.wasm")
# WebAssembly addresses 4 GiB, which also hold keys and values.
MOST_BYTES = 3_900_000_000

_PACKAGE = Path(__file__).resolve().parents[1]


def wasm_path(name: str) -> Path:
    """Where one of the engine's two builds for WebAssembly is; EngineError, with what brings it, when it is nowhere."""
    import onebit.engine

    # Where the package is installed in place, what is compiled lies in the environment and the rest in the source tree.
    folders = [Path(place).parent / "web" for place in [str(_PACKAGE / "engine"), *onebit.engine.__path__]]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise EngineError(
        f"this copy of onebit has no engine for the browser ({name} is not in {folders[0]}): it was built where"
        " clang-16 and lld-16 were not installed. Install a wheel that has it, or, in a source tree, both programs,"
        " then run 'make wasm'"
    )


def page_files() -> list[Path]:
    """The chat page and the JavaScript module: everything but the engine and the model."""
    suffixes = (".html", ".css", ".js", ".ts", ".json")
    return sorted(path for path in (_PACKAGE / "web").iterdir() if path.suffix in suffixes)


def for_page(file: OneBitFile) -> OneBitFile:
    """The same codes in the tiles that a browser is fast with: ternary ones with two bits, since taking base-3 digits
    apart is most of the work there, and a server that compresses sends them in about 1.6 all the same."""
    tensors = {
        name: tensor.with_layout(Layout.TERNARY_T16)
        if tensor.layout in (Layout.TERNARY5, Layout.TERNARY5_T16)
        else tensor.for_running()
        for name, tensor in file.tensors.items()
    }
    return replace(file, tensors=tensors)


def write_web_folder(folder: Path, file: OneBitFile, title: str | None = None) -> int:
    """Write ``folder``, which must be new or empty, whole or not at all; returns its bytes.

    ``title`` stands over the page; the folder's name unless given. Raises ConfigError for a folder with something in
    it, FormatError for a model that the page could not read text for, EngineError where there is no engine for it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there and not empty; give the name of a new folder")
    if file.tokenizer_binary is None:
        raise FormatError("the model has no tokenizer for the engine, so a page cannot read text for it")
    engines = [wasm_path(name) for name in WASM]
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        unfinished.mkdir()
        size = write(unfinished / MODEL_NAME, for_page(file))
        if size > MOST_BYTES:
            raise ConfigError(
                f"the model has {size / 1e9:.1f} GB; a page has {MOST_BYTES / 1e9:.1f} GB for it at most:"
                " serve it instead"
            )
        for path in [*page_files(), *engines]:
            shutil.copyfile(path, unfinished / path.name)
        page = {"transport": "wasm", "title": title or folder.resolve().name, "model": MODEL_NAME}
        (unfinished / "page.json").write_text(json.dumps(page, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        with contextlib.suppress(FileNotFoundError):
            folder.rmdir()
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return sum(path.stat().st_size for path in folder.iterdir())
