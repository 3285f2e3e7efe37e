"""Checkpoint folders of BitNet models: latents to packed codes that transformers runs, and to plain bfloat16.

Three folders of one model are in use, and look alike but for their tensors: latents, which give gibberish until their
linear layers are replaced (a revision `prequantized`); packed codes with `quantization_config` (the default revision);
and codes * scale in bfloat16, for whatever loads a float model (a revision `bfloat16`, without int8 inputs).

Which tensors are those of linear layers is asked of the model's class, built without memory; only these are packed,
never biases, norms or a head. Files are read and written one shard at a time, and the new folder appears whole or not
at all.

`weight_scale` has two opposite meanings under one name: with `linear_class` "bitlinear" (what is written here, and the
default) it is 1 / scale, with "autobitlinear" it is the scale.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from onebit.errors import ConfigError, DataError, FormatError
from onebit.formats.atomic import beside
from onebit.formats.hf_tensors import INDEX, read_config, shards_of
from onebit.nn.hadamard import HadamardRotation, block_size_for
from onebit.packing import bitnet
from onebit.quant import WeightQuantizer, fake_quantize, quantize

__all__ = ["convert_to_bf16", "quantize_to_1bit"]

_BESIDE = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
_CONVERSION = "onebit_conversion"
State = dict[str, Tensor]


@dataclass(frozen=True)
class _Source:
    """A folder as it is: its configuration, and which of its weights a quantiser reads, by their tensors' names."""

    folder: Path
    config: dict[str, Any]
    linear: dict[str, bool]  # name of the weight -> whether it is stored [I, O], as Conv1D does
    floats: list[str]  # linear layers that are not read through a quantiser
    spec: WeightQuantizer
    hadamard_block: int | None
    tables: bool  # whether the embedding is read through the quantiser too


def quantize_to_1bit(input_checkpoint_path: str | Path, output_checkpoint_path: str | Path) -> str:
    """Pack a folder of latents for transformers: ternary codes, one scale a tensor; everything else in bfloat16.

    The model that transformers loads rounds its inputs to int8, as BitLinear does. Raises DataError for a folder that
    is no checkpoint, ConfigError when the output is there already, FormatError for what this layout cannot hold: other
    scales than one a tensor, other codes than ternary, rotations and added norms. Returns the output's path.
    """
    source = _open(Path(input_checkpoint_path))
    _check_can_pack(source)

    def pack(name: str, weight_OI: Tensor, scale: Tensor | None) -> State:
        if weight_OI.dtype == torch.uint8:
            raise FormatError(f"{source.folder}: '{name}' is packed already")
        quantized = quantize(weight_OI.float(), source.spec)
        inv_scale = (1.0 / quantized.scale).view(1).to(torch.bfloat16)
        return {name: bitnet.pack(quantized.codes_OI), f"{name}_scale": inv_scale}

    config = {
        **source.config,
        "dtype": "bfloat16",
        "is_bitnet_config": True,
        "pretraining_tp": 1,
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "bitlinear",
            "quantization_mode": "offline",
            "modules_to_not_convert": source.floats,
        },
    }
    return _rewrite(source, Path(output_checkpoint_path), config, pack)


def convert_to_bf16(input_checkpoint_path: str | Path, output_checkpoint_path: str | Path) -> str:
    """Write codes * scale in bfloat16 under the names of the float model, from a folder of latents or of packed codes.

    Whatever loads the float model loads the result; nothing rounds its inputs there, which costs a little of what was
    trained. Errors as `quantize_to_1bit`, but for the granularity and the quantiser, which may be any. Returns the
    output's path.
    """
    source = _open(Path(input_checkpoint_path))
    told = source.config.get("quantization_config") or {}
    is_inverse = told.get("linear_class", "bitlinear") == "bitlinear"

    def dequantize(name: str, weight_OI: Tensor, scale: Tensor | None) -> State:
        if weight_OI.dtype == torch.uint8:
            if scale is None:
                raise FormatError(f"{source.folder}: '{name}' is packed but has no '{name}_scale'")
            _check_magnitude(source.folder, name, scale, is_inverse=is_inverse)
            codes_OI = bitnet.unpack(weight_OI).float()
            return {name: (codes_OI / scale.float() if is_inverse else codes_OI * scale.float()).bfloat16()}
        w_OI = fake_quantize(weight_OI, source.spec)
        block = 1 if source.hadamard_block is None else block_size_for(w_OI.shape[1], source.hadamard_block)
        if block > 1:
            w_OI = HadamardRotation(w_OI.shape[1], block).inverse(w_OI)
        return {name: w_OI.bfloat16()}

    left_out = ("quantization_config", "is_bitnet_config")
    config = {key: value for key, value in source.config.items() if key not in left_out}
    return _rewrite(source, Path(output_checkpoint_path), {**config, "dtype": "bfloat16"}, dequantize)


def _open(folder: Path) -> _Source:
    """Read the configuration, and ask the model's class for its linear layers."""
    import transformers

    from onebit.models.pure_checkpoint import weights_of_codes
    from onebit.nn.convertible import choose, is_conv1d

    config = read_config(folder)
    if config.get("model_type") == "onebit":
        raise FormatError(f"{folder}: a model of onebit's own, which transformers does not know; use onebit export")
    if weights_of_codes(folder):
        raise FormatError(
            f"{folder}: a checkpoint of pure training, codes and counters; give the folder that the run left at its "
            "end, or make latents first: load_converted(folder).save_pretrained(another)"
        )
    conversion = config.pop(_CONVERSION, None) or {}
    if conversion.get("sub_norms") or conversion.get("rmsnorm_post_attn"):
        raise FormatError(f"{folder}: norms were added to this model, which its own class does not have")
    plain = {key: value for key, value in config.items() if key not in ("quantization_config", "dtype", "model_type")}
    try:
        with torch.device("meta"):
            model: nn.Module = transformers.AutoModelForCausalLM.from_config(
                transformers.AutoConfig.for_model(config.get("model_type", ""), **plain), trust_remote_code=False
            )
    except (ValueError, KeyError) as error:
        raise DataError(f"{folder}: config.json names no model of transformers: {error}") from None
    exclude = conversion.get("exclude")
    tables = bool(conversion.get("tables"))
    layers, kept = choose(model, None if exclude is None else list(exclude), tables=tables)
    # A tied weight is stored once, by its first name.
    stored = {id(layer.weight): name for name, layer in reversed(layers.items())}
    quantizer = WeightQuantizer(
        conversion.get("quantizer", "absmean"),
        conversion.get("granularity", "per_tensor"),
        conversion.get("group_size"),
    )
    _check_activations(folder, conversion)
    return _Source(
        folder,
        config,
        {f"{name}.weight": is_conv1d(layers[name]) for name in stored.values()},
        [name for name in kept if isinstance(model.get_submodule(name), nn.Linear)],
        quantizer,
        conversion.get("hadamard_block"),
        tables,
    )


def _check_activations(folder: Path, conversion: dict[str, Any]) -> None:
    kind = conversion.get("activation_quantizer", "int8")
    if kind not in ("int8", "none"):
        raise FormatError(f"{folder}: the model rounds its inputs to {kind!r}, which no float or BitNet layer does")


def _check_can_pack(source: _Source) -> None:
    if source.spec.granularity != "per_tensor" or not source.spec.is_ternary:
        raise FormatError(
            f"{source.folder}: the model was trained with {source.spec.quantizer} weights {source.spec.granularity}; "
            "this layout holds ternary codes with one scale a tensor. Use onebit export or --to bf16"
        )
    if source.hadamard_block is not None:
        raise FormatError(f"{source.folder}: the model turns its inputs, which no layer of transformers does")
    if source.tables:
        raise FormatError(
            f"{source.folder}: its embedding is ternary, which transformers reads as floats; use --to bf16"
        )
    conv1d = [name for name, is_transposed in source.linear.items() if is_transposed]
    if conv1d:
        raise FormatError(f"{source.folder}: {conv1d[0]} is a Conv1D, which transformers runs as floats only")


def _check_magnitude(folder: Path, name: str, scale: Tensor, *, is_inverse: bool) -> None:
    """The two meanings of weight_scale are told apart by size as well: weights are far below 1, 1 / scale is above."""
    value = float(scale.float().reshape(-1)[0])
    if not value > 0 or (value > 1) != is_inverse:
        meaning = "1 / scale" if is_inverse else "the scale"
        raise FormatError(f"{folder}: '{name}_scale' is {value:g}, which cannot be {meaning}; see linear_class")


def _rewrite(
    source: _Source, output: Path, config: dict[str, Any], change: Callable[[str, Tensor, Tensor | None], State]
) -> str:
    """Write the folder anew, its linear weights through `change(name, weight [O, I], scale)`."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"the output '{output}' is there already; give the name of a new folder")
    shards = shards_of(source.folder)
    staging = output.with_name(f".{output.name}.{os.getpid()}.partial")
    staging.mkdir(parents=True)
    try:
        weight_map: dict[str, str] = {}
        changed, total = 0, 0
        for shard in shards:
            state: State = {}
            for name, parts in _changed(source, shard, change):
                changed += name in source.linear
                state |= parts
            with beside(staging / shard) as temporary:
                save_file(state, temporary, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(state, shard)
            total += sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        if changed != len(source.linear):
            raise DataError(
                f"{source.folder}: the weights of {len(source.linear) - changed} of {len(source.linear)} linear layers "
                "are missing; config.json and weights do not belong together"
            )
        _copy_texts(source.folder, staging)
        (staging / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if len(shards) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (staging / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        staging.replace(output)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return str(output)


def _changed(
    source: _Source, shard: str, change: Callable[[str, Tensor, Tensor | None], State]
) -> Iterator[tuple[str, State]]:
    """(name, tensors to write) of each tensor of a shard."""
    path = source.folder / shard
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            for name in sorted(names):
                if name.endswith("_scale") and name.removesuffix("_scale") in source.linear:
                    continue
                tensor = file.get_tensor(name)
                if name in source.linear:
                    scale = file.get_tensor(f"{name}_scale") if f"{name}_scale" in names else _scale_of(source, name)
                    is_transposed = source.linear[name]
                    parts = change(name, tensor.t() if is_transposed else tensor, scale)
                    yield name, {n: t.t().contiguous() if is_transposed else t.contiguous() for n, t in parts.items()}
                else:
                    yield name, {name: tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor}
    except SafetensorError as error:
        raise FormatError(f"{path}: not a safetensors file, or damaged: {error}") from None


def _scale_of(source: _Source, name: str) -> Tensor | None:
    """The scale of a packed weight that lies in another shard."""
    if not (source.folder / INDEX).is_file():
        return None
    weight_map = json.loads((source.folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    shard = weight_map.get(f"{name}_scale")
    if shard is None:
        return None
    with safe_open(source.folder / shard, framework="pt") as file:
        scale: Tensor = file.get_tensor(f"{name}_scale")
        return scale


def _copy_texts(folder: Path, target: Path) -> None:
    """The tokenizer, the chat template and the like."""
    for path in {path for pattern in _BESIDE for path in folder.glob(pattern)}:
        if path.name not in (INDEX, "config.json", "trainer_state.json", "run.json"):
            shutil.copyfile(path, target / path.name)
