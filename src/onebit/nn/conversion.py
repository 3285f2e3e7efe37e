"""Turn the linear layers of any model into BitLinear, in place, and say what was replaced, what was not and why.

A layer changes its class and keeps everything else: parameters, buffers, hooks, device, type, training mode and every
reference that an optimizer, a tied partner or a hook holds to it. A tied weight is changed only if all who read it
can be; an embedding cannot. Needs no transformers: its Conv1D is known by its class name.

Shape suffixes: O outputs, I inputs.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from onebit.errors import ConfigError, OnebitError, nearest_name
from onebit.nn.bit_linear import BitLinear, weight_quantizer_from
from onebit.nn.schedule import Schedule
from onebit.quant import ActivationQuantizer, Granularity, QuantizerName, WeightQuantizer

__all__ = [
    "DEFAULT_EXCLUDE",
    "ConversionReport",
    "replace_linear_with_bitlinear",
    "replace_linear_with_bitnet_linear",
]

DEFAULT_EXCLUDE = ("lm_head", "embed")
"""What stays float unless `exclude_patterns` is given; so does the layer that `get_output_embeddings()` names."""

# Names of the float ends in one architecture or another. A list of them serves many models, so none must match.
_CUSTOMARY = frozenset({"lm_head", "embed", "embedding", "embeddings", "embed_tokens", "embed_out", "wte", "wpe"})


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did to a model, by the dotted names of its layers.

    replaced: now BitLinear; kept: name -> why it is as it was; transposed: those of `replaced` that were Conv1D
    [I, O] and now hold [O, I], which the model's own class cannot load back; spec and activation_quantizer: what
    the replaced layers compute with.
    """

    replaced: tuple[str, ...]
    kept: dict[str, str]
    transposed: tuple[str, ...]
    spec: WeightQuantizer
    activation_quantizer: ActivationQuantizer

    def __str__(self) -> str:
        head = f"{len(self.replaced)} linear layers replaced, {len(self.kept)} kept"
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
) -> nn.Module:
    """Make a BitLinear of every nn.Linear and transformers Conv1D of `model`, in place, and return the same model.

    exclude_patterns: layers whose dotted name contains one of them stay as they are (``*`` and ``?`` match the whole
    name; "layer.1" does not match "layer.10"). None: "lm_head", "embed" and the output embeddings; [] excludes nothing.
    The quantiser's arguments are those of `BitLinear`. schedule: the dials of the soft regimes, which the replaced
    layers read and the model then carries as `model.schedule`, where the training callback finds it.
    `model.conversion_report` says what was done. Raises OnebitError when a pattern names no module or no layer can be
    replaced, ConfigError for contradictory arguments.
    """
    spec = weight_quantizer_from(quantizer, granularity, group_size, weight_sparsity_threshold, center)
    if spec is None:
        raise ConfigError("quantizer is None, expected the name of a quantiser or a WeightQuantizer")
    names = _names_of(model)
    if exclude_patterns is None:
        excluded = _matching(names, DEFAULT_EXCLUDE) | _output_embeddings(model)
    else:
        _check_patterns(names, exclude_patterns)
        excluded = _matching(names, exclude_patterns)
    kept = {id(module): why for module in names if (why := _why_kept(module, module in excluded))}
    chosen = [module for module in names if _is_linear(module) and id(module) not in kept]
    _keep_tied(model, chosen, kept)
    chosen = [module for module in chosen if id(module) not in kept]
    if not chosen and not any(isinstance(module, BitLinear) for module in names):
        raise OnebitError(_nothing_to_replace(names, kept))
    transposed = tuple(names[module] for module in chosen if _is_conv1d(module))
    parameters: dict[int, nn.Parameter] = {}
    for module in chosen:
        _become_bitlinear(module, spec, activation_quantizer, ste_scale_factor, schedule, parameters)
    _stop_reading_past_forward(model)
    if schedule is not None:
        _carry(model, schedule, chosen)
    report = ConversionReport(
        tuple(names[module] for module in chosen),
        {name: kept[id(module)] for module, name in names.items() if id(module) in kept},
        transposed,
        spec,
        activation_quantizer,
    )
    model.__dict__["conversion_report"] = report
    return model


def replace_linear_with_bitnet_linear(model: nn.Module) -> nn.Module:
    """`replace_linear_with_bitlinear` with BitNet b1.58's defaults: absmean per tensor, int8 inputs, float head."""
    return replace_linear_with_bitlinear(model)


def _names_of(model: nn.Module) -> dict[nn.Module, str]:
    """Every module of the model and its (first) dotted name; the model itself is ""."""
    return {module: name for name, module in model.named_modules()}


def _matches(name: str, pattern: str) -> bool:
    if any(sign in pattern for sign in "*?["):
        return fnmatch.fnmatchcase(name, pattern)
    # "layer.1" must not find "layer.10".
    before = r"(?<!\d)" if pattern[:1].isdigit() else ""
    after = r"(?!\d)" if pattern[-1:].isdigit() else ""
    return re.search(before + re.escape(pattern) + after, name) is not None


def _matching(names: dict[nn.Module, str], patterns: Iterable[str]) -> set[nn.Module]:
    patterns = list(patterns)
    return {module for module, name in names.items() if any(_matches(name, pattern) for pattern in patterns)}


def _check_patterns(names: dict[nn.Module, str], patterns: Sequence[str]) -> None:
    if isinstance(patterns, str):
        raise ConfigError(f"exclude_patterns is {patterns!r}, expected a list of patterns: [{patterns!r}]")
    for pattern in patterns:
        if pattern in _CUSTOMARY or (pattern and any(_matches(name, pattern) for name in names.values())):
            continue
        parts = {part for name in names.values() for part in name.split(".")}
        hint = nearest_name(pattern, names.values()) or nearest_name(pattern, parts)
        hint = hint or f"; its modules are named like {', '.join(sorted(part for part in parts if part)[:8])}"
        raise OnebitError(f"exclude_patterns: {pattern!r} is in the name of no module of the model{hint}")


def _output_embeddings(model: nn.Module) -> set[nn.Module]:
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if callable(getter) else None
    return {head} if isinstance(head, nn.Module) else set()


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and hasattr(module, "nx")


def _is_linear(module: nn.Module) -> bool:
    return type(module) is nn.Linear or _is_conv1d(module)


def _why_kept(module: nn.Module, is_excluded: bool) -> str | None:
    """Why a layer that computes x W^T stays as it is; None for one to be replaced and for every other module."""
    kind = type(module).__name__
    if isinstance(module, BitLinear):
        return "already a BitLinear"
    if not _is_linear(module):
        if isinstance(module, nn.Linear):
            return f"a subclass of nn.Linear ({kind}), whose forward may do more"
        packed = getattr(module, "weight", None)
        if kind.endswith("Linear") and isinstance(packed, torch.Tensor) and packed.dtype == torch.uint8:
            return f"packed codes ({kind}); load a revision with latent weights to train it"
        return None
    if is_excluded:
        return "excluded by its name"
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        return "its weight is computed by a hook or a parametrisation"
    if not module._parameters["weight"].is_floating_point():  # type: ignore[union-attr]
        return f"its weight is {module.weight.dtype}, not float"
    if module.weight.numel() == 0:  # type: ignore[operator]
        return "its weight is empty"
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance; convert before dispatching or patching the model"
    return None


def _keep_tied(model: nn.Module, chosen: list[nn.Module], kept: dict[int, str]) -> None:
    """Keep a layer whose weight another module reads that stays float."""
    readers: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                readers.setdefault(id(parameter), []).append((name, module))
    becoming = {id(module) for module in chosen}
    for module in chosen:
        for name, other in readers[id(module.weight)]:
            # A Conv1D reads it transposed, so that one weight cannot serve both.
            if id(other) not in becoming or _is_conv1d(other) != _is_conv1d(module):
                kept[id(module)] = f"its weight is tied to {name} ({type(other).__name__}), which stays float"
                break


def _nothing_to_replace(names: dict[nn.Module, str], kept: dict[int, str]) -> str:
    reasons = [f"{name or 'the model'}: {kept[id(module)]}" for module, name in names.items() if id(module) in kept]
    if not reasons:
        return "the model has no nn.Linear or Conv1D layer to replace; expected a model with linear layers"
    return f"none of the model's {len(reasons)} linear layers can be replaced ({reasons[0]}); see exclude_patterns"


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
    rows, cols = weight.shape[::-1] if _is_conv1d(module) else weight.shape
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
    if _is_conv1d(module):
        if id(weight) not in parameters:
            weight_OI = weight.detach().t().contiguous()
            parameters[id(weight)] = nn.Parameter(weight_OI, requires_grad=weight.requires_grad)
        module._parameters["weight"] = parameters[id(weight)]
        del module.nf, module.nx
    module.__class__ = BitLinear
    for name, value in pattern.__dict__.items():
        module.__dict__.setdefault(name, value)


def _stop_reading_past_forward(model: nn.Module) -> None:
    """torch's encoder layer multiplies by its layers' weights itself in evaluation, unless it knows no activation."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and isinstance(module.linear1, BitLinear):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def _carry(model: nn.Module, schedule: Schedule, chosen: list[nn.Module]) -> None:
    """Make the schedule a part of the model, on the device of its layers."""
    if chosen and not chosen[0].weight.is_meta:
        schedule.to(chosen[0].weight.device)  # type: ignore[arg-type]
    if any(module is schedule for module in model.modules()):
        return
    if hasattr(model, "schedule"):
        raise ConfigError(f"{type(model).__name__} has a 'schedule' already; pass that one instead of a new one")
    model.add_module("schedule", schedule)
