"""Turn the linear layers of any model into Pure1BitLinear, in place, and say what was replaced, what was not and why.

As with BitLinear, a layer changes its class and keeps what else it holds: bias, hooks, training mode, every reference
to it. Its float weight goes: layer by layer, so that the model shrinks while it is converted.

Shape suffixes: O outputs, I inputs, U units that share a scale, N weights of a unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from onebit.nn.bit_linear import BitLinear, weight_quantizer_from
from onebit.nn.convertible import choose, is_conv1d, is_linear, matching
from onebit.nn.packed_bitnet import codes_of_packed, forget_quantizer, packed_layers
from onebit.nn.pure_linear import Pure1BitLinear, check_pure_spec
from onebit.nn.pure_weight import PureWeight
from onebit.quant import ActivationQuantizer, Granularity, Quantized, QuantizerName, WeightQuantizer
from onebit.quant.counters import Counter, CounterName, counter_named
from onebit.quant.spec import SCALE_FLOOR, check_name
from onebit.quant.weights import per_unit

__all__ = [
    "PureConversionReport",
    "Source",
    "replace_bitlinear_with_pure1bit_linear",
    "replace_linear_with_pure1bit_linear",
]

Source = Literal["latents", "codes"]


@dataclass(frozen=True)
class PureConversionReport:
    """What a conversion did to a model, by the dotted names of its layers.

    replaced: now Pure1BitLinear, and what their weights were: "latents", whose rounding is kept in the counters, or
    "codes", a matrix that was on its grid already, whose counters start at 0. kept: name -> why it is as it was.
    transposed: those of `replaced` that were Conv1D. tied: name -> the layer whose weight it shares.
    """

    replaced: dict[str, Source]
    kept: dict[str, str]
    counter: CounterName
    transposed: tuple[str, ...] = ()
    tied: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        codes = sum(source == "codes" for source in self.replaced.values())
        head = f"{len(self.replaced)} linear layers replaced ({codes} held codes), {len(self.kept)} kept"
        return "\n".join([head, *(f"  kept {name}: {why}" for name, why in self.kept.items())])


def replace_linear_with_pure1bit_linear(
    model: nn.Module,
    exclude_patterns: Sequence[str] | None = None,
    *,
    quantizer: WeightQuantizer | QuantizerName = "absmean",
    granularity: Granularity = "per_tensor",
    group_size: int | None = None,
    activation_quantizer: ActivationQuantizer = "int8",
    counter: CounterName = "int8",
) -> nn.Module:
    """Make a Pure1BitLinear of every linear layer of `model`, in place, and return the same model.

    nn.Linear and transformers' Conv1D are read as latents, or as codes * scale where all their weights lie on such a
    grid; a BitLinear keeps its own quantiser, inputs and latents; packed BitNet layers of transformers keep their
    codes and one scale. exclude_patterns: as in `replace_linear_with_bitlinear`. counter: "int8", "int4" or "none".
    Layers that share a weight go on sharing it.
    `model.pure_conversion_report` says what was done. Raises OnebitError when a pattern names no module, no layer can
    be replaced or a weight is NaN; ConfigError for contradictory arguments.
    """
    spec = check_pure_spec(weight_quantizer_from(quantizer, granularity, group_size))
    check_name("activation_quantizer", activation_quantizer, get_args(ActivationQuantizer))
    kind = counter_named(counter)
    packed = packed_layers(model, exclude_patterns or ())
    is_pure = any(isinstance(module, Pure1BitLinear) for module in model.modules())
    layers, kept = choose(model, exclude_patterns, required=not packed and not is_pure)
    hybrid = _hybrid_layers(model, exclude_patterns, kept)
    replaced: dict[str, Source] = {}
    transposed, tied = [], {}
    shared: dict[int, tuple[str, nn.Parameter, PureWeight]] = {}  # holds the parameters, so that no id is used twice
    for name, module in packed.items():
        kept.pop(name, None)
        replaced[name] = "codes"
        _become_pure(module, _weight_of_codes(codes_of_packed(module), kind), "int8")
    for name, module in {**layers, **hybrid}.items():
        latents = module.weight
        assert isinstance(latents, nn.Parameter)
        if is_conv1d(module):
            transposed.append(name)
        if id(latents) in shared:
            first, _, weight = shared[id(latents)]
            tied[name], replaced[name] = first, replaced[first]
        else:
            own = module.weight_quantizer if isinstance(module, BitLinear) else None
            matrix_OI = latents.detach().t() if is_conv1d(module) else latents.detach()
            weight, replaced[name] = _pure_weight(matrix_OI, own or spec, kind)
            weight.log_scale.requires_grad_(latents.requires_grad)
            if _has_other_readers(model, module, latents):
                shared[id(latents)] = name, latents, weight
        _become_pure(module, weight, activation_quantizer)
    _stop_reading_past_forward(model)
    if packed:
        forget_quantizer(model)
    report = PureConversionReport(replaced, kept, counter, tuple(transposed), tied)
    model.__dict__["pure_conversion_report"] = report
    return model


def replace_bitlinear_with_pure1bit_linear(model: nn.Module, counter: CounterName = "int8") -> nn.Module:
    """Make a Pure1BitLinear of every BitLinear of `model`, in place, and leave linear layers that are float."""
    float_layers = [name for name, module in model.named_modules() if is_linear(module)]
    return replace_linear_with_pure1bit_linear(model, float_layers, counter=counter)


def _hybrid_layers(
    model: nn.Module, exclude_patterns: Sequence[str] | None, kept: dict[str, str]
) -> dict[str, BitLinear]:
    """The BitLinears to replace; those that stay say why in `kept`."""
    names = {module: name for name, module in model.named_modules()}
    excluded = matching(names, exclude_patterns or ())
    readers: dict[int, list[nn.Module]] = {}
    for module in names:
        for parameter in module._parameters.values():
            readers.setdefault(id(parameter), []).append(module)
    found = {}
    for module, name in names.items():
        if not isinstance(module, BitLinear):
            continue
        spec = module.weight_quantizer
        if module in excluded:
            kept[name] = "excluded by its name"
        elif spec is None or not (spec.is_ternary or spec.quantizer == "binary"):
            kept[name] = "a BitLinear whose weight is neither ternary nor binary"
        elif not all(isinstance(reader, BitLinear) and reader not in excluded for reader in readers[id(module.weight)]):
            kept[name] = "its weight is tied to a layer that stays as it is"
        else:
            kept.pop(name, None)
            found[name] = module
    for module, name in names.items():
        if isinstance(module, Pure1BitLinear):
            kept[name] = "already a Pure1BitLinear"
    return found


def _has_other_readers(model: nn.Module, module: nn.Module, parameter: nn.Parameter) -> bool:
    others = (other for other in model.modules() if other is not module)
    return any(own is parameter for other in others for own in other._parameters.values())


def _weight_of_codes(quantized: Quantized, counter: Counter) -> PureWeight:
    codes_OI = quantized.codes_OI
    weight = PureWeight(codes_OI.shape[1], codes_OI.shape[0], quantized.spec, counter, codes_OI.device)
    weight.set_codes(quantized)
    return weight


@torch.no_grad()
def _pure_weight(matrix_OI: Tensor, spec: WeightQuantizer, counter: Counter) -> tuple[PureWeight, Source]:
    rows, cols = matrix_OI.shape
    weight = PureWeight(cols, rows, spec, counter, matrix_OI.device)
    if matrix_OI.is_meta:
        return weight, "latents"
    quantized = _on_grid(matrix_OI, spec)
    if quantized is not None:
        weight.set_codes(quantized)
        return weight, "codes"
    weight.set_latents(matrix_OI)
    return weight, "latents"


def _on_grid(matrix_OI: Tensor, spec: WeightQuantizer) -> Quantized | None:
    """The codes and scales of a matrix that is codes * scale already, unit by unit; None for latents."""
    has_zero = spec.quantizer != "binary"

    def read(w_UN: Tensor, spec: WeightQuantizer) -> tuple[Tensor, Tensor]:
        peak_U1 = w_UN.abs().amax(-1, keepdim=True)
        on = (w_UN.abs() == peak_U1) | (w_UN == 0) if has_zero else (w_UN.abs() == peak_U1) & (peak_U1 > 0)
        return torch.where(on, w_UN.sign(), torch.nan), peak_U1.clamp_min(SCALE_FLOOR)

    codes_OI, scale = per_unit(matrix_OI.float(), spec, read)
    if not bool(torch.isfinite(codes_OI).all()) or not bool(codes_OI.any()):
        return None
    return Quantized(codes_OI.to(torch.int8), scale.half() if spec.granularity == "per_group" else scale, spec)


def _become_pure(module: nn.Module, weight: PureWeight, activation_quantizer: ActivationQuantizer) -> None:
    is_hybrid = isinstance(module, BitLinear)
    for name in ("nf", "nx", "online_quant", "rms_norm", "dtype", "weight_quantizer", "ste_scale_factor", "schedule"):
        module.__dict__.pop(name, None)  # what the classes had beyond nn.Linear
    if not is_hybrid:
        module.__dict__["activation_quantizer"] = activation_quantizer
        module.__dict__["rotation"] = None
    module.__dict__.update(in_features=weight.in_features, out_features=weight.out_features)
    bias = module._buffers.pop("bias", None)  # packed layers hold theirs as a buffer
    for held in (module._parameters, module._buffers):
        held.pop("weight", None)
        held.pop("weight_scale", None)
    module._modules["weight"] = weight
    module._parameters.setdefault("bias", None if bias is None else nn.Parameter(bias))
    module.__class__ = Pure1BitLinear


def _stop_reading_past_forward(model: nn.Module) -> None:
    """torch's encoder layer multiplies by its layers' weights itself in evaluation, unless it knows no activation."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and isinstance(module.linear1, Pure1BitLinear):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
