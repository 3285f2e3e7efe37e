"""Converted models on disk: a transformers folder of latents whose config.json says how its layers are read.

What shaped it: the folder must stay one that transformers itself loads (the `prequantized` convention of BitNet models:
latents in bfloat16 or float32, gibberish until the linear layers are replaced), keep its own layout of weights (a
converted Conv1D is stored as Conv1D again), and carry the conversion with it wherever it is copied. So the settings
are a field of config.json, `onebit_conversion`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onebit.errors import ConfigError, DataError, nearest_name
from onebit.models.pretrained import describe_model, load_causal_lm
from onebit.models.pure_checkpoint import fill_with_codes, unreadable_codes, weights_of_codes
from onebit.models.weight_files import read_tensors
from onebit.nn import BitEmbedding, BitLinear, Schedule, replace_linear_with_bitlinear
from onebit.nn.attached_norms import attach_post_attention_norms, attach_sub_norms, attached_norms, fit_norms
from onebit.nn.hadamard import HadamardRotation, block_size_for
from onebit.quant import ActivationQuantizer, Granularity, QuantizerName

__all__ = ["CONVERSION_FIELD", "Conversion", "convert_model", "load_converted", "recorded_conversion"]

CONVERSION_FIELD = "onebit_conversion"
# An existing model's weights vary along a row more than one scale can follow; models that were trained as BitNet have
# one scale a tensor.
_GROUP_SIZE = 128


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """How a model's linear layers are read, with the names of `replace_linear_with_bitlinear`.

    exclude: patterns of layers that stay float; None is the head and the embeddings, unless `tables` says otherwise.
    """

    quantizer: QuantizerName = "absmean"
    granularity: Granularity = "per_group"
    group_size: int | None = _GROUP_SIZE
    activation_quantizer: ActivationQuantizer = "int8"
    exclude: tuple[str, ...] | None = None
    sub_norms: bool = False
    rmsnorm_post_attn: bool = False
    hadamard_block: int | None = None
    tables: bool = False

    @classmethod
    def of(cls, config: Any, **given: Any) -> Conversion:
        """The conversion for a model's configuration: recorded there, or the default for it, with what is given.

        None among `given` means not given. Raises ConfigError when the configuration records another conversion.
        """
        given = {name: value for name, value in given.items() if value is not None}
        recorded = recorded_conversion(config)
        if recorded is not None:
            for name, value in given.items():
                if getattr(recorded, name) != value:
                    raise ConfigError(
                        f"--{name.replace('_', '-')} is {value}, but the model was converted with "
                        f"{getattr(recorded, name)}; leave the flag out, or convert the float model again"
                    )
            return recorded
        granularity = given.get("granularity", "per_group" if "group_size" in given else None)
        if granularity is None:
            granularity = "per_tensor" if _is_bitnet(config) else "per_group"
        if granularity != "per_group" and "group_size" in given:
            raise ConfigError(f"--group-size is {given['group_size']}, but --granularity is {granularity}; drop one")
        size = given.get("group_size", _GROUP_SIZE) if granularity == "per_group" else None
        return replace(cls(), **{**given, "granularity": granularity, "group_size": size})


def recorded_conversion(config: Any) -> Conversion | None:
    """What a configuration says of the conversion of its model; None for a model that was not converted.

    Raises:
        ConfigError: a key that this version does not know.
    """
    record = getattr(config, CONVERSION_FIELD, None)
    if record is None:
        return None
    known = {field.name for field in fields(Conversion)}
    for key in record:
        if key not in known:
            raise ConfigError(f"{CONVERSION_FIELD} in config.json: unknown key '{key}'{nearest_name(key, known)}")
    exclude = record.get("exclude")
    return Conversion(**{**record, "exclude": None if exclude is None else tuple(exclude)})


def convert_model(
    model: Any,
    conversion: Conversion,
    *,
    schedule: Schedule | None = None,
    samples: Sequence[Tensor] | None = None,
    calibrated: bool = False,
) -> Any:
    """Replace the linear layers of a transformers model, in place, and record how; returns the same model.

    Its state_dict stays in the layout of its class, without the schedule's dials. samples: token ids [B, L] that added
    norms are fitted to, and with `calibrated` the layers' codes and scales too; on the model's device.
    """
    if (conversion.sub_norms or conversion.rmsnorm_post_attn) and samples is not None and not calibrated:
        if conversion.sub_norms:
            attach_sub_norms(model)
        if conversion.rmsnorm_post_attn:
            attach_post_attention_norms(model)
        fit_norms(model, samples)
    replace_linear_with_bitlinear(
        model,
        exclude_patterns=conversion.exclude,
        quantizer=conversion.quantizer,
        granularity=conversion.granularity,
        group_size=conversion.group_size,
        activation_quantizer=conversion.activation_quantizer,
        schedule=schedule,
        sub_norms=conversion.sub_norms,
        rmsnorm_post_attn=conversion.rmsnorm_post_attn,
        hadamard_block=conversion.hadamard_block,
        calibration=samples if calibrated else None,
        tables=conversion.tables,
    )
    model.register_state_dict_post_hook(_to_own_layout)
    model.register_load_state_dict_pre_hook(_from_own_layout)
    _record(model, conversion)
    return model


def load_converted(folder: Path | str, *, schedule: Schedule | None = None, dtype: str = "auto") -> Any:
    """The model of a folder that `onebit sft` or `distill` wrote, with its BitLinears, ready to evaluate or train on.

    dtype: "auto" is that of the weights. The codes of a checkpoint of `sft --pure` become latents that round to them.
    Raises DataError when the folder holds no converted model.
    """
    path = Path(folder)
    config = describe_model(str(path))
    conversion, codes = recorded_conversion(config), weights_of_codes(path)
    if conversion is None and codes:
        raise DataError(unreadable_codes(path))
    if conversion is None:
        raise DataError(
            f"'{path}': its config.json has no '{CONVERSION_FIELD}', so it is not a model that onebit converted; "
            "load it with transformers and call onebit.nn.replace_linear_with_bitlinear"
        )
    model = load_causal_lm(str(path), config, dtype=dtype, codes_follow=True)
    # Rotated latents are stored as they are: turning them again would undo it.
    convert_model(model, replace(conversion, hadamard_block=None), schedule=schedule)
    fill_with_codes(model, path, codes)
    _complete(model, conversion, path)
    return model


def _complete(model: Any, conversion: Conversion, folder: Path) -> None:
    """Give a model that was converted anew what only its folder knows: the weights of added norms, and rotations."""
    if conversion.hadamard_block is not None:
        _turn_inputs(model, conversion.hadamard_block)
    _record(model, conversion)
    norms = {f"{name}.weight": norm for name, norm in attached_norms(model).items()}
    tensors = read_tensors(folder, norms)
    if missing := sorted(norms.keys() - tensors.keys()):
        raise DataError(f"'{folder}': the weights of {len(missing)} added norms are missing ({missing[0]}, ...)")
    for name, norm in norms.items():
        with torch.no_grad():
            norm.weight.copy_(tensors[name])


def _record(model: Any, conversion: Conversion) -> None:
    """Write the conversion into the configuration, and what was added to the model into its report."""
    setattr(model.config, CONVERSION_FIELD, json.loads(json.dumps(asdict(conversion))))
    rotated = {name: turn.block_size for name, layer in _converted(model) if (turn := layer.rotation) is not None}
    model.__dict__["conversion_report"] = replace(
        model.conversion_report, norms=tuple(attached_norms(model)), rotated=rotated
    )


def _turn_inputs(model: nn.Module, hadamard_block: int) -> None:
    """Rotate the inputs of the converted layers, whose weights are rotated already."""
    for _, layer in _converted(model):
        width = layer.weight.shape[1]
        block_size = block_size_for(width, hadamard_block)
        if block_size > 1:
            layer.rotation = HadamardRotation(width, block_size, device=layer.weight.device)


def _converted(model: nn.Module) -> Iterator[tuple[str, BitLinear | BitEmbedding]]:
    """(name, layer) of every layer and table that is read through a quantiser."""
    for name, module in model.named_modules():
        if isinstance(module, (BitLinear, BitEmbedding)) and module.weight_quantizer is not None:
            yield name, module


def _is_bitnet(config: Any) -> bool:
    """Whether a configuration is that of a model trained with one scale a tensor."""
    told = getattr(config, "quantization_config", None)
    method = told.get("quant_method") if isinstance(told, dict) else getattr(told, "quant_method", None)
    family = getattr(config, "model_type", "") == "bitnet" or bool(getattr(config, "is_bitnet_config", False))
    return family or str(getattr(method, "value", method)) == "bitnet"


def _to_own_layout(model: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Leave out the dials, which are a function of the step, and turn Conv1D's weights back to [I, O]."""
    for name in [name for name in state if name.startswith(f"{prefix}schedule.")]:
        del state[name]
    for name in _transposed(model):
        key = f"{prefix}{name}.weight"
        if key in state:
            state[key] = state[key].t().contiguous()


def _from_own_layout(model: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    for name in _transposed(model):
        key = f"{prefix}{name}.weight"
        if key in state:
            state[key] = state[key].t()
    schedule = getattr(model, "schedule", None)
    if isinstance(schedule, Schedule):
        for name, value in schedule.state_dict().items():
            state.setdefault(f"{prefix}schedule.{name}", value)


def _transposed(model: nn.Module) -> tuple[str, ...]:
    names: tuple[str, ...] = model.__dict__["conversion_report"].transposed
    return names
