"""A ``.1bit`` model as a folder that stock transformers loads: packed BitNet layers, or plain floats.

Packed: ternary and binary matrices with one scale a tensor as codes of two bits; transformers rounds their inputs to
int8, as training did. Floats: codes times scales, whatever the granularity; nothing rounds their inputs there. All
floats of a folder have one type, as transformers casts not all that it loads: the narrowest that holds them exactly,
or the one asked for. The exact scales lie beside (`exact_scales`), so that both come back bit for bit.

Shape suffixes: O outputs, I inputs.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from onebit.errors import ConfigError
from onebit.formats.exact_scales import write_scales
from onebit.formats.hadamard_section import site_of
from onebit.formats.hf_config import config_of, generation_config_of, linear_class_of, transformers_name
from onebit.formats.layout import Activation, Granularity, Kind
from onebit.formats.onebit_file import OneBitFile
from onebit.formats.stored_tensor import StoredTensor
from onebit.packing import bitnet

__all__ = ["FLOAT_DTYPES", "float_values", "write_hf"]

FLOAT_DTYPES = ("float32", "float16", "bfloat16")
_PROJECTIONS = (Kind.Q, Kind.K, Kind.V, Kind.O, Kind.GATE, Kind.UP, Kind.DOWN)
_SHARD = 2_000_000_000  # bytes


def write_hf(
    folder: Path,
    file: OneBitFile,
    *,
    packed: bool = True,
    dtype: str | None = None,
    linear_class: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write the folder, whole or not at all, and return its config.json.

    dtype: of what is not packed; None is the narrowest of bfloat16, float16 and float32 that holds all of it exactly.
    linear_class: bitlinear stores 1 / scale, autobitlinear the
    scale; None is what the model's class is customarily read with. Raises ConfigError for an output that is there
    already and for what the layout or transformers cannot hold, naming what can.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"the output '{folder}' is there already; give the name of a new folder")
    if dtype is not None and dtype not in FLOAT_DTYPES:
        raise ConfigError(f"dtype '{dtype}', expected one of {', '.join(FLOAT_DTYPES)}")
    config = config_of(file)
    names = _packed_names(file) if packed else set()
    is_inverse = packed and linear_class_of(file, linear_class) == "bitlinear"
    chosen = _narrowest(file, names) if dtype is None else getattr(torch, dtype)
    staging = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    staging.mkdir(parents=True)
    try:
        _write_weights(staging, file, names, chosen, is_inverse=is_inverse, progress=progress)
        config["dtype"] = str(chosen).removeprefix("torch.")
        if packed:
            config["quantization_config"] = {
                "quant_method": "bitnet",
                "linear_class": "bitlinear" if is_inverse else "autobitlinear",
                "quantization_mode": "offline",
                "modules_to_not_convert": _kept(file, names),
            }
        _write_texts(staging, file, config)
        write_scales(staging, file)
        if folder.is_dir():
            folder.rmdir()
        staging.replace(folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return config


def _packed_names(file: OneBitFile) -> set[str]:
    """The matrices to pack; ConfigError for ternary or binary ones that this layout cannot hold."""
    names = set()
    for name, tensor in file.tensors.items():
        if tensor.kind not in _PROJECTIONS or tensor.level not in ("ternary", "binary"):
            continue
        geometry = tensor.geometry
        for wrong, given in (
            (geometry.granularity is not Granularity.PER_TENSOR, f"scales {geometry.granularity.name.lower()}"),
            (bool(geometry.rows % 4), f"{geometry.rows} rows, not a multiple of 4"),
            (tensor.turned, "rotated inputs"),
            (tensor.activation is not Activation.INT8, f"inputs rounded to {tensor.activation.name.lower()}"),
        ):
            if wrong:
                raise ConfigError(
                    f"tensor {name} has {given}; the packed layout of transformers has one scale a tensor, rows by "
                    "four and int8 inputs. --to bf16, fp16 or fp32 writes floats, GGUF and .1bit hold other scales"
                )
        names.add(name)
    if not names:
        raise ConfigError("no projection of the model is ternary or binary, so there is nothing to pack; use --to bf16")
    return names


def _narrowest(file: OneBitFile, packed: set[str]) -> torch.dtype:
    """The narrowest type that holds all tensors but those to be packed exactly."""
    possible = [torch.bfloat16, torch.float16]
    for name, tensor in file.tensors.items():
        if name not in packed and tensor.kind is not Kind.ROPE_FREQUENCIES and possible:
            values = float_values(file, tensor)
            possible = [dtype for dtype in possible if torch.equal(values.to(dtype).float(), values)]
    return possible[0] if possible else torch.float32


def _kept(file: OneBitFile, packed: set[str]) -> list[str]:
    """The linear layers that stay float."""
    kept = ["lm_head"]
    for name, tensor in file.tensors.items():
        if tensor.kind in _PROJECTIONS and name not in packed:
            kept.append(transformers_name(name).removesuffix(".weight"))
    return kept


def float_values(file: OneBitFile, tensor: StoredTensor) -> Tensor:
    """float32 [O, I] that a layer without rotation computes the same with."""
    values_OI = torch.from_numpy(tensor.values())
    if not tensor.turned:
        return values_OI
    from onebit.nn.hadamard import hadamard_factors, hadamard_transform

    site = site_of(tensor.kind)
    assert site is not None
    rotation = file.rotations[site]
    turned_back = hadamard_transform(values_OI, *hadamard_factors(rotation.block))
    return turned_back * torch.from_numpy(rotation.signs(values_OI.shape[1]))


def _write_weights(
    folder: Path,
    file: OneBitFile,
    packed: set[str],
    dtype: torch.dtype,
    *,
    is_inverse: bool,
    progress: Callable[[int, int], None],
) -> None:
    """Write the shards, and their index where there are several."""
    shards: list[dict[str, Tensor]] = [{}]
    filled, done = 0, 0
    weight_map: dict[str, int] = {}
    for name, tensor in file.tensors.items():
        if tensor.kind is Kind.ROPE_FREQUENCIES:
            continue
        parts = _parts(file, name, tensor, name in packed, dtype, is_inverse=is_inverse)
        size = sum(part.numel() * part.element_size() for part in parts.values())
        if filled and filled + size > _SHARD:
            _save(folder, len(shards), shards[-1])
            shards[-1] = {}
            shards.append({})
            filled = 0
        shards[-1] |= parts
        filled += size
        weight_map |= dict.fromkeys(parts, len(shards))
        done += 1
        progress(done, len(file.tensors))
    _save(folder, len(shards), shards[-1])
    if len(shards) == 1:
        (folder / _shard(1)).rename(folder / "model.safetensors")
    else:
        index = {"metadata": {}, "weight_map": {name: _shard(number) for name, number in weight_map.items()}}
        _write_json(folder / "model.safetensors.index.json", index)


def _shard(number: int) -> str:
    return f"model-{number:05d}.safetensors"


def _save(folder: Path, number: int, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, folder / _shard(number), metadata={"format": "pt"})


def _parts(
    file: OneBitFile, name: str, tensor: StoredTensor, is_packed: bool, dtype: torch.dtype, *, is_inverse: bool
) -> dict[str, Tensor]:
    """The tensors that one of ours becomes."""
    there = transformers_name(name)
    if is_packed:
        scale = torch.from_numpy(np.array(tensor.scales(), np.float32)).reshape(1)
        return {
            there: bitnet.pack(torch.from_numpy(tensor.codes())),
            f"{there}_scale": scale.reciprocal() if is_inverse else scale,
        }
    values = float_values(file, tensor)
    if tensor.shape[0] == 1 and tensor.layout.is_float and tensor.kind not in _PROJECTIONS:
        values = values.reshape(-1)
    return {there: values.to(dtype)}


def _write_texts(folder: Path, file: OneBitFile, config: dict[str, Any]) -> None:
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", generation_config_of(file.description))
    if file.manifest is not None:
        _write_json(folder / "training_manifest.json", file.manifest)
    if file.tokenizer_json is None:
        return
    (folder / "tokenizer.json").write_text(file.tokenizer_json, encoding="utf-8")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(file.tokenizer_json)
    d = file.description
    tokens = {
        name: tokenizer.id_to_token(index)
        for name, index in (("bos_token", d.bos), ("eos_token", d.eos), ("pad_token", d.pad))
        if index is not None
    }
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": d.max_seq_len,
        "clean_up_tokenization_spaces": False,
        **{name: token for name, token in tokens.items() if token is not None},
    }
    _write_json(folder / "tokenizer_config.json", settings)
    if file.chat_template is not None:
        (folder / "chat_template.jinja").write_text(file.chat_template, encoding="utf-8")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
