"""From any form of a model to any other: what a path holds is seen, what is asked for follows from the output's name.

Everything goes through a `OneBitFile`, so there is one reader and one writer for each form and nothing between two of
them. What was written is read back and held against what was read: codes and scales bit for bit, floats value for
value.

=========  ===========================================================================  ==============================
form       source                                                                       output
=========  ===========================================================================  ==============================
1bit       a ``.1bit`` file, or a folder with one                                       NAME.1bit
gguf       a GGUF file                                                                  NAME.gguf
hf         a folder of transformers: packed BitNet, online BitNet, floats               a folder, packed
bf16 ...   (read as hf)                                                                 a folder of floats
web        (its model.1bit, read as 1bit)                                               a folder with a chat page
           a checkpoint of onebit: trained, converted, pure
=========  ===========================================================================  ==============================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onebit.errors import ConfigError, FormatError, OnebitError, nearest_name
from onebit.formats.onebit_file import OneBitFile, read, write
from onebit.formats.stored_tensor import StoredTensor

__all__ = [
    "DTYPE_OF",
    "FORMS",
    "Written",
    "differences",
    "form_of",
    "is_latents",
    "open_any",
    "sizes_of",
    "target_of",
    "write_any",
]

DTYPE_OF = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
FORMS = ("1bit", "gguf", "hf", *DTYPE_OF, "web")
_SUFFIXES = {".1bit": "1bit", ".gguf": "gguf"}
_MAGIC = {b"GGUF": "gguf", b"1BIT": "1bit"}

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Written:
    """What was written: in words, and what the reader should know of it."""

    form: str
    text: str
    notes: tuple[str, ...] = ()


def target_of(output: Path, to: str | None) -> str:
    """The form to write: the one that is asked for, or the one that the output's name says. Raises ConfigError for an
    unknown one and for a name that says another."""
    named = _SUFFIXES.get(output.suffix)
    if to is None:
        return named or "hf"
    if to not in FORMS:
        raise ConfigError(f"--to is '{to}', expected one of {', '.join(FORMS)}{nearest_name(to, FORMS)}")
    if named is not None and named != to:
        raise ConfigError(
            f"--to is {to}, but '{output.name}' is the name of a {output.suffix} file; give one of the two"
        )
    return to


def form_of(path: Path) -> str:
    """1bit, gguf, checkpoint (of onebit) or hf. Raises FormatError for what is none of these."""
    if path.is_file():
        with path.open("rb") as file:
            found = _MAGIC.get(file.read(4))
        if found is None:
            raise FormatError(
                f"{path}: neither a .1bit nor a GGUF file; of safetensors give the folder, with its config.json"
            )
        return found
    if not path.is_dir():
        raise FormatError(f"{path}: no such file or folder")
    if not (path / "config.json").is_file():
        raise FormatError(f"{path}: no config.json in it; expected a folder of a model")
    from onebit.formats.hf_tensors import read_config
    from onebit.models.pure_checkpoint import weights_of_codes

    config = read_config(path)
    own = config.get("model_type") == "onebit" or "onebit_conversion" in config or weights_of_codes(path)
    return "checkpoint" if own else "hf"


def is_latents(folder: Path) -> bool:
    """Whether a folder of transformers holds the latents of BitNet layers: floats that lie on no grid of codes times
    scale. Only its model's class can say which of them are read through a quantiser (`bitnet_folder`)."""
    from onebit.formats.grid import on_grid
    from onebit.formats.hf_tensors import HFTensors, read_config

    config = read_config(folder)
    if config.get("model_type") == "onebit":
        return False
    if config.get("quantization_config") is not None:
        return False
    tensors = HFTensors(folder)
    for name in sorted(tensors.names):
        if name.endswith(".weight") and "embed" not in name and "head" not in name:
            weight = tensors[name]
            if weight.ndim == 2 and weight.is_floating_point():
                return on_grid(weight.float()) is None
    return True


def open_any(
    path: Path,
    *,
    layout: str = "run",
    lossy: bool = False,
    activation: str | None = None,
    progress: Progress = lambda done, total: None,
) -> OneBitFile:
    """Read a model in whatever form it is in.

    lossy: round float embeddings and heads to int8, as `onebit export` does. activation: what a GGUF file's projections
    round their inputs to, which GGUF does not say. Raises OnebitError for what cannot be read, naming why.
    """
    form = form_of(path)
    if activation is not None and form != "gguf":
        raise ConfigError(f"--activations is for GGUF files, which do not say it; {path} is of form {form}")
    if form == "1bit":
        file = read(path)
        return file.for_running() if layout == "run" else file.for_exchange()
    if form == "gguf":
        from onebit.formats.gguf_import import from_gguf

        return from_gguf(path, activation=activation, layout=layout, progress=progress)
    if form == "hf":
        from onebit.formats.hf_import import from_hf

        return from_hf(path, layout=layout, table_level="int8" if lossy else None, progress=progress)
    from onebit.formats.checkpoint import from_checkpoint

    level = None if lossy else "trained"
    return from_checkpoint(path, layout=layout, embedding_level=level, progress=progress)


def write_any(
    output: Path,
    file: OneBitFile,
    form: str,
    *,
    gguf_type: str | None = None,
    linear_class: str | None = None,
    lossy: bool = False,
    progress: Progress = lambda done, total: None,
) -> Written:
    """Write a model in a form of `FORMS`, whole or not at all, and prove it by reading it back.

    Raises ConfigError for options of another form, for what the form cannot hold, and for what would not come back
    unless lossy. A float type that is named is rounded to: that is what was asked for.
    """
    if gguf_type is not None and form != "gguf":
        raise ConfigError(f"--gguf-type is for GGUF files; the output '{output}' is of form {form}")
    if linear_class is not None and form != "hf":
        raise ConfigError(
            f"--linear-class is for packed folders of transformers; the output '{output}' is of form {form}"
        )
    if form == "1bit":
        size = write(output, file)
        _prove(file, read(output), output)
        return Written(form, f"{output}: a .1bit file of {size / 1e6:.2f} MB")
    if form == "gguf":
        return _write_gguf(output, file, gguf_type, progress)
    if form == "web":
        return _write_web(output, file)
    return _write_folder(output, file, form, linear_class, lossy=lossy, progress=progress)


def _write_gguf(output: Path, file: OneBitFile, gguf_type: str | None, progress: Progress) -> Written:
    from onebit.formats.atomic import beside
    from onebit.formats.gguf_import import from_gguf
    from onebit.formats.gguf_writer import write_gguf

    with beside(output) as unproven:
        written = write_gguf(unproven, file, gguf_type, name=output.stem, progress=progress)
        _prove(file, from_gguf(unproven), output)
    kinds = ", ".join(f"{count} {name}" for name, count in written.types.items())
    text = (
        f"{output}: GGUF of architecture {written.architecture} for {written.program}, "
        f"{written.file_bytes / 1e6:.2f} MB; matrices: {kinds}"
    )
    return Written("gguf", text, written.notes)


def _write_web(output: Path, file: OneBitFile) -> Written:
    from onebit.formats.web_folder import MODEL_NAME, write_web_folder

    size = write_web_folder(output, file)
    _prove(file, read(output / MODEL_NAME), output)
    notes = ["a file server is needed, such as python -m http.server; a browser opens no such page from a disk"]
    if file.chat_strings is None:
        what = "is more than prefixes and suffixes" if file.chat_template else "is not there"
        notes.append(f"the model's chat template {what}: the page continues what is typed")
    return Written("web", f"{output}: a chat page and its model, {size / 1e6:.2f} MB", tuple(notes))


def _write_folder(
    output: Path, file: OneBitFile, form: str, linear_class: str | None, *, lossy: bool, progress: Progress
) -> Written:
    from onebit.formats.hf_export import write_hf
    from onebit.formats.hf_import import from_hf

    turned = [name for name, tensor in file.tensors.items() if tensor.turned]
    if turned and form != "hf" and not lossy:
        raise ConfigError(
            f"the inputs of {len(turned)} matrices are rotated, which transformers does not do; turning their weights "
            "back rounds them, and their codes do not come back: --lossy does it"
        )
    dtype = DTYPE_OF.get(form)
    config = write_hf(output, file, packed=form == "hf", dtype=dtype, linear_class=linear_class, progress=progress)
    if not turned and form in ("hf", "fp32"):
        _prove(file, from_hf(output), output)
    size = sum(path.stat().st_size for path in output.glob("model*.safetensors"))
    told = config.get("quantization_config")
    what = f"packed ({told['linear_class']})" if told else config["dtype"]
    notes = []
    if form != "hf" and any(tensor.activation for tensor in file.tensors.values()):
        notes.append("nothing rounds the layers' inputs there, as training did: a little other than the model")
    return Written(form, f"{output}: {config['architectures'][0]} {what}, {size / 1e6:.2f} MB of weights", tuple(notes))


def differences(a: OneBitFile, b: OneBitFile) -> list[str]:
    """In which tensors two models differ, in words; layouts of the same codes and widths of the same floats do not
    count."""
    found = []
    for name in [*a.tensors, *(name for name in b.tensors if name not in a.tensors)]:
        if name not in a.tensors or name not in b.tensors:
            found.append(f"{name} is in one of the two only")
        elif (what := _difference(a.tensors[name], b.tensors[name])) is not None:
            found.append(f"{name}: {what}")
    if a.description != b.description:
        found.append("the model descriptions")
    return found


def _difference(a: StoredTensor, b: StoredTensor) -> str | None:
    if a.shape != b.shape:
        return f"shape {a.shape} and {b.shape}"
    if a.layout.is_float != b.layout.is_float:
        return f"{a.level} and {b.level}"
    if a.layout.is_float:
        return None if np.array_equal(a.values(), b.values()) else "values"
    if not np.array_equal(a.codes(), b.codes()):
        return "codes"
    same = a.geometry.granularity is b.geometry.granularity and np.array_equal(a.scales(), b.scales())
    return None if same and a.turned == b.turned else "scales"


def _prove(file: OneBitFile, found: OneBitFile, output: Path) -> None:
    if wrong := differences(file, found):
        raise OnebitError(
            f"{output}: what was written does not read back as what was given ({len(wrong)} differences, first: "
            f"{wrong[0]}); please report it"
        )


def sizes_of(path: Path) -> int:
    """Bytes of weights: of a file, or of the safetensors or .1bit file in a folder."""
    files: Any = [path] if path.is_file() else [*path.glob("*.safetensors"), *path.glob("*.1bit")]
    return sum(each.stat().st_size for each in files)
