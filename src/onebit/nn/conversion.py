"""Turn the linear layers of any model into BitLinear, in place, and say what was replaced, what was not and why; with
`tables` its embedding of tokens into a BitEmbedding and its head into a BitLinear too.

A layer changes its class and keeps everything else: parameters, buffers, hooks, device, type, training mode and every
reference that an optimizer, a tied partner or a hook holds to it.

Shape suffixes: O outputs, I inputs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from onebit.errors import ConfigError
from onebit.nn.attached_norms import attach_post_attention_norms, attach_sub_norms, fit_norms
from onebit.nn.bit_embedding import BitEmbedding
from onebit.nn.bit_linear import BitLinear, weight_quantizer_from
from onebit.nn.calibration import LayerFit, calibrate
from onebit.nn.convertible import choose, is_conv1d
from onebit.nn.hadamard import HadamardRotation, block_size_for
from onebit.nn.schedule import Schedule
from onebit.quant import ActivationQuantizer, Granularity, QuantizerName, WeightQuantizer

__all__ = [
    "DESCRIPTION",
    "ConversionReport",
    "convert_layers",
    "replace_linear_with_bitlinear",
    "replace_linear_with_bitnet_linear",
]

DESCRIPTION = "onebit"
"""Where the metadata of a converted model's state_dict says, in JSON, what the model is: see `_describe`."""


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did to a model, by the dotted names of its layers.

    replaced: now BitLinear, or BitEmbedding; kept: name -> why it is as it was; transposed: those of `replaced` that
    were Conv1D [I, O] and now hold [O, I], which the model's own class cannot load back; spec and activation_quantizer:
    what the replaced layers compute with; rotated: name -> block size of those whose inputs are turned (of an
    embedding: whose rows are); norms: the RMSNorms that were added; fits: name -> errors of those that were calibrated;
    tables: those of `replaced` that are embeddings.
    """

    replaced: tuple[str, ...]
    kept: dict[str, str]
    transposed: tuple[str, ...]
    spec: WeightQuantizer
    activation_quantizer: ActivationQuantizer
    rotated: dict[str, int] = field(default_factory=dict)
    norms: tuple[str, ...] = ()
    fits: dict[str, LayerFit] = field(default_factory=dict)
    tables: tuple[str, ...] = ()

    def __str__(self) -> str:
        tables = f" and {', '.join(self.tables)}" if self.tables else ""
        count = len(self.replaced) - len(self.tables)
        head = f"{count} linear layers{tables} replaced, {len(self.kept)} kept"
        return "\n".join([head, *(f"  kept {name}: {why}" for name, why in self.kept.items())])


def replace_linear_with_bitlinear(
    model: nn.Module,
    weight_sparsity_threshold: float | None = None,
    exclude_patterns: Sequence[str] | None = None,
    *,
    quantizer: WeightQuantizer | QuantizerName = "absmean",
    granularity: Granularity = "per_tensor",
    group_size: int | None = None,
    activation_quantizer: ActivationQuantizer = "int8",
    center: bool = True,
    ste_scale_factor: float = 1.0,
    schedule: Schedule | None = None,
    sub_norms: bool = False,
    rmsnorm_post_attn: bool = False,
    hadamard_block: int | None = None,
    calibration: Iterable[Any] | None = None,
    tables: bool = False,
) -> nn.Module:
    """Make a BitLinear of every linear layer of `model`, in place, and return the same model.

    Linear layers are nn.Linear itself, transformers' Conv1D and its trainable BitNet layer; others are kept.

    exclude_patterns: layers whose dotted name contains one of them stay as they are (``*`` and ``?`` match the whole
    name; "layer.1" does not match "layer.10"). None: "lm_head", "embed" and the output embeddings; [] excludes nothing.
    The quantiser's arguments are those of `BitLinear`. schedule: the dials of the soft regimes, which the replaced
    layers read and the model then carries as `model.schedule`, where the training callback finds it.
    sub_norms: an RMSNorm before o_proj and down_proj; rmsnorm_post_attn: one behind the attention (`attached_norms`).
    hadamard_block: the inputs of the replaced layers are turned in blocks of this power of two or the largest smaller
    one that divides them, and the weights with them (`hadamard`). calibration: batches of what the model is called
    with, to which added norms and the layers' codes and scales are fitted (`calibration.calibrate`); None rounds.
    tables: the embedding of tokens becomes a BitEmbedding with the layers' quantiser, and the head, which is excluded
    by no default then, a BitLinear; tied weights stay tied. Calibration leaves both rounded.
    `model.conversion_report` says what was done. Raises OnebitError when a pattern names no module or no layer can be
    replaced, ConfigError for contradictory arguments.
    """
    spec = weight_quantizer_from(quantizer, granularity, group_size, weight_sparsity_threshold, center)
    if spec is None:
        raise ConfigError("quantizer is None, expected the name of a quantiser or a WeightQuantizer")
    if hadamard_block is not None:
        block_size_for(hadamard_block, hadamard_block)  # refuses what is no power of two
    layers, kept = choose(model, exclude_patterns, tables=tables)
    return convert_layers(
        model,
        layers,
        spec,
        activation_quantizer,
        kept=kept,
        ste_scale_factor=ste_scale_factor,
        schedule=schedule,
        sub_norms=sub_norms,
        rmsnorm_post_attn=rmsnorm_post_attn,
        hadamard_block=hadamard_block,
        calibration=calibration,
    )


def replace_linear_with_bitnet_linear(model: nn.Module) -> nn.Module:
    """`replace_linear_with_bitlinear` with BitNet b1.58's defaults: absmean per tensor, int8 inputs, float head."""
    return replace_linear_with_bitlinear(model)


def convert_layers(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    spec: WeightQuantizer,
    activation_quantizer: ActivationQuantizer,
    *,
    kept: Mapping[str, str] | None = None,
    ste_scale_factor: float = 1.0,
    schedule: Schedule | None = None,
    sub_norms: bool = False,
    rmsnorm_post_attn: bool = False,
    hadamard_block: int | None = None,
    calibration: Iterable[Any] | None = None,
) -> nn.Module:
    """Make BitLinears of these layers (by name) of the model, whatever they are called, and BitEmbeddings of its
    embeddings; kept: for the report."""
    transposed = tuple(name for name, module in layers.items() if is_conv1d(module))
    norms = attach_sub_norms(model) if sub_norms else []
    norms += attach_post_attention_norms(model) if rmsnorm_post_attn else []
    batches = None if calibration is None else list(calibration)
    if norms and batches is not None:
        fit_norms(model, batches)
    if schedule is not None:
        _carry(model, schedule)
    parameters: dict[int, nn.Parameter] = {}
    tables = tuple(name for name, module in layers.items() if isinstance(module, nn.Embedding))
    for name, module in layers.items():
        if name in tables:
            _become_bit_embedding(module, spec, ste_scale_factor, schedule)
        else:
            _become_bitlinear(module, spec, activation_quantizer, ste_scale_factor, schedule, parameters)
    rotated = {} if hadamard_block is None else _rotate(layers, hadamard_block)
    _stop_reading_past_forward(model)
    if "conversion_report" not in model.__dict__:
        model.register_state_dict_post_hook(_describe)
    fits = {} if batches is None else calibrate(model, batches)
    report = ConversionReport(
        tuple(layers), dict(kept or {}), transposed, spec, activation_quantizer, rotated, tuple(norms), fits, tables
    )
    model.__dict__["conversion_report"] = report
    return model


@torch.no_grad()
def _rotate(layers: Mapping[str, nn.Module], hadamard_block: int) -> dict[str, int]:
    """Turn inputs and weights of the layers, and rows of the tables; the block size of each that could be turned."""
    rotated: dict[str, int] = {}
    turned: set[int] = set()
    for name, module in layers.items():
        assert isinstance(module, (BitLinear, BitEmbedding))
        width = module.weight.shape[1]
        block_size = block_size_for(width, hadamard_block)
        if block_size > 1:
            module.rotation = HadamardRotation(width, block_size, device=module.weight.device)
            if id(module.weight) not in turned:  # a tied weight once
                module.weight.copy_(module.rotation(module.weight))
                turned.add(id(module.weight))
            rotated[name] = block_size
    return rotated


def _become_bitlinear(
    module: nn.Module,
    spec: WeightQuantizer,
    activation_quantizer: ActivationQuantizer,
    ste_scale_factor: float,
    schedule: Schedule | None,
    parameters: dict[int, nn.Parameter],
) -> None:
    """Change the class and add what BitLinear has beyond nn.Linear; parameters: the transposed one of each Conv1D's."""
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    rows, cols = weight.shape[::-1] if is_conv1d(module) else weight.shape
    pattern = BitLinear(
        cols,
        rows,
        module.bias is not None,
        quantizer=spec,
        activation_quantizer=activation_quantizer,
        ste_scale_factor=ste_scale_factor,
        schedule=schedule,
        device="meta",
    )
    if is_conv1d(module):
        if id(weight) not in parameters:
            weight_OI = weight.detach().t().contiguous()
            parameters[id(weight)] = nn.Parameter(weight_OI, requires_grad=weight.requires_grad)
        module._parameters["weight"] = parameters[id(weight)]
    for name in ("nf", "nx", "online_quant", "rms_norm"):  # what the classes had beyond nn.Linear
        module.__dict__.pop(name, None)
    module.__class__ = BitLinear
    for name, value in pattern.__dict__.items():
        module.__dict__.setdefault(name, value)


def _become_bit_embedding(
    module: nn.Module, spec: WeightQuantizer, ste_scale_factor: float, schedule: Schedule | None
) -> None:
    module.__class__ = BitEmbedding
    assert isinstance(module, BitEmbedding)
    module.weight_quantizer, module.ste_scale_factor, module.rotation = spec, ste_scale_factor, None
    module.__dict__["schedule"] = schedule


def _stop_reading_past_forward(model: nn.Module) -> None:
    """torch's encoder layer multiplies by its layers' weights itself in evaluation, unless it knows no activation."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and isinstance(module.linear1, BitLinear):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def _carry(model: nn.Module, schedule: Schedule) -> None:
    """Make the schedule a part of the model, on the device of its weights."""
    if all(module is not schedule for module in model.modules()):
        if hasattr(model, "schedule"):
            raise ConfigError(f"{type(model).__name__} has a 'schedule' already; pass that one instead of a new one")
        if isinstance(model, (nn.Sequential, nn.ModuleList)):
            raise ConfigError(f"{type(model).__name__} cannot carry a schedule, as it would call it; wrap the model")
        model.add_module("schedule", schedule)
    device = next(model.parameters()).device
    if device.type != "meta":
        schedule.to(device)


def _describe(model: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    """Say in the state's metadata what its latents belong to, so that the model can be made again from a file alone."""
    report: ConversionReport = model.__dict__["conversion_report"]
    config = getattr(model, "config", None)
    about = {
        "class": type(model).__name__,
        "config": config.to_dict() if config is not None and hasattr(config, "to_dict") else None,
        "replaced": list(report.replaced),
        "quantizer": asdict(report.spec),
        "activation_quantizer": report.activation_quantizer,
        "hadamard_block": max(report.rotated.values(), default=None),
        "sub_norms": any(name.endswith("sub_norm") for name in report.norms),
        "rmsnorm_post_attn": any(not name.endswith("sub_norm") for name in report.norms),
    }
    metadata[DESCRIPTION] = json.dumps(about, default=str)
