"""One tensor of a ``.1bit`` file from the part of the model that holds it, as it is to be stored.

Whatever was trained quantised keeps its codes and scales; floats are stored as the caller chose. numpy and the model's
own methods are enough here too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onebit.errors import ConfigError, nearest_name
from onebit.formats.anatomy import Part
from onebit.formats.description import TensorPlan
from onebit.formats.layout import RUN_LAYOUT, Activation, Geometry, Granularity, Kind, Layout
from onebit.formats.stored_tensor import StoredTensor

if TYPE_CHECKING:
    from onebit.quant import WeightQuantizer

__all__ = [
    "EMBEDDING_LEVELS",
    "FILE_LAYOUTS",
    "HEAD_ACTIVATIONS",
    "PACK_MODES",
    "Choices",
    "check_choices",
    "geometry_of",
    "is_matrix",
    "tensor_of",
]

PACK_MODES = ("ternary", "ternary5", "binary")
FILE_LAYOUTS = ("run", "exchange")
EMBEDDING_LEVELS = ("float32", "float16", "int8", "int4", "trained")  # trained: floats stay float32
HEAD_ACTIVATIONS = ("int8", "none")

_TABLES = (Kind.TOKEN_EMBEDDING, Kind.HEAD)
_MATRICES = (*_TABLES, Kind.Q, Kind.K, Kind.V, Kind.O, Kind.GATE, Kind.UP, Kind.DOWN)
_TERNARY = ("absmean", "threshold", "sparsity")
# Codes before codes make an integer product; rounding the inputs of a float product would gain nothing.
_HEAD_ACTIVATION = {"int8": "int8", "int4": "int8"}


@dataclass(frozen=True)
class Choices:
    """What the caller chose, checked."""

    ternary: Layout
    run: bool
    embedding: str | None  # None: int8 unless the model was trained at another level
    head_activation: str | None  # None: as in training; int8 before floats that are stored as int8 or int4
    head: Kind = Kind.HEAD  # where the head's weights lie: a tied head is the token embedding
    head_inputs: str = "none"  # what the head rounded its inputs to in training; kept where its weights were quantised


def check_choices(
    pack_mode: str | None, layout: str, embedding_level: str | None, head_activation: str | None
) -> Choices:
    """Refuse unknown names before any work is done."""
    for flag, given, known in (
        ("--pack-mode", pack_mode, PACK_MODES),
        ("--layout", layout, FILE_LAYOUTS),
        ("--embedding-level", embedding_level, EMBEDDING_LEVELS),
        ("--head-activation", head_activation, HEAD_ACTIVATIONS),
    ):
        if given is not None and given not in known:
            raise ConfigError(f"{flag} is {given!r}, expected one of {', '.join(known)}{nearest_name(given, known)}")
    ternary = Layout.TERNARY5 if pack_mode == "ternary5" else Layout.TERNARY
    return Choices(ternary, layout == "run", embedding_level, head_activation)


def tensor_of(plan: TensorPlan, parts: dict[str, Part], choices: Choices) -> StoredTensor | None:
    """One tensor of the plan from its part, None for an optional one that the model does not have."""
    path, _, parameter = plan.name.rpartition(".")
    part = parts.get(path)
    value = None if part is None else part.value(parameter)
    if part is None or value is None:
        if plan.required:
            raise ConfigError(f"the model has no {plan.name}, which its configuration needs")
        return None
    if tuple(value.shape) != ((plan.cols,) if plan.rows == 1 and len(value.shape) == 1 else (plan.rows, plan.cols)):
        raise ConfigError(
            f"{plan.name} has shape {tuple(value.shape)}, expected {(plan.rows, plan.cols)} by the config"
        )
    if not is_matrix(plan):
        return StoredTensor.from_values(plan.name, plan.kind, plan.layer, _floats(value))
    matrix = _matrix(plan, part, choices)
    return matrix if getattr(part.module, "rotation", None) is None else replace(matrix, turned=True)


def is_matrix(plan: TensorPlan) -> bool:
    """Whether the tensor has a level: projections, embedding and head do, all else is stored as float32."""
    return plan.kind in _MATRICES


def geometry_of(rows: int, cols: int, spec: WeightQuantizer, choices: Choices) -> Geometry:
    """How a matrix that is read through ``spec`` is stored."""
    if spec.is_float16:
        return Geometry(rows, cols, Layout.FLOAT16)
    layout = choices.ternary if spec.quantizer in _TERNARY else Layout[spec.quantizer.upper()]
    if choices.run:
        layout = RUN_LAYOUT.get(layout, layout)
    return Geometry(rows, cols, layout, Granularity[spec.granularity.upper()], spec.group_size or 0)


def _matrix(plan: TensorPlan, part: Part, choices: Choices) -> StoredTensor:
    module = part.module
    spec = part.weight_quantizer
    is_table = plan.kind in _TABLES
    if is_table and spec is not None:
        _check_table_level(plan.name, spec.quantizer, choices.embedding)
    chosen = "float32" if choices.embedding == "trained" else choices.embedding or "int8"
    level = spec.quantizer if spec is not None else chosen if is_table else "float32"
    activation = Activation[getattr(module, "activation_quantizer", "none").upper()]
    if plan.kind is choices.head:
        trained = choices.head_inputs if spec is not None else _HEAD_ACTIVATION.get(level, "none")
        activation = Activation[(choices.head_activation or trained).upper()]
    if spec is None:
        return _float_matrix(plan, part.value("weight"), level, activation)
    if spec.is_float16:
        return _with_activation(_stored_values(plan, part.value("weight"), Layout.FLOAT16), activation)
    return _coded(plan, part.quantized(), choices, activation)


def _check_table_level(name: str, quantizer: str, embedding_level: str | None) -> None:
    if embedding_level not in (None, "trained", quantizer):
        raise ConfigError(
            f"{name} was trained with the quantizer {quantizer} (bit_width_map, or converted with tables); "
            f"--embedding-level {embedding_level} contradicts it: leave it out"
        )


def _float_matrix(plan: TensorPlan, weight: Any, level: str, activation: Activation) -> StoredTensor:
    """Store a matrix trained as floats; int8 and int4 are rounded here, as verify rounds the checkpoint."""
    if level in ("float32", "float16"):
        return _with_activation(_stored_values(plan, weight, Layout[level.upper()]), activation)
    from onebit.quant import WeightQuantizer, quantize

    spec = WeightQuantizer.for_level("int8" if level == "int8" else "int4")
    return _coded(plan, quantize(weight.detach(), spec), Choices(Layout.TERNARY, False, level, None), activation)


def _stored_values(plan: TensorPlan, weight: Any, layout: Layout) -> StoredTensor:
    return StoredTensor.from_values(plan.name, plan.kind, plan.layer, _floats(weight), layout)


def _with_activation(tensor: StoredTensor, activation: Activation) -> StoredTensor:
    return StoredTensor(**{**vars(tensor), "activation": activation})


def _coded(plan: TensorPlan, quantized: Any, choices: Choices, activation: Activation) -> StoredTensor:
    geometry = geometry_of(plan.rows, plan.cols, quantized.spec, choices)
    return StoredTensor.from_codes(
        plan.name,
        plan.kind,
        plan.layer,
        quantized.codes_OI.detach().cpu().numpy(),
        quantized.scale.detach().cpu().numpy(),
        geometry.layout,
        geometry.granularity,
        geometry.group_size,
        activation,
    )


def _floats(value: Any) -> Any:
    return value.detach().float().cpu().numpy().astype(np.float32, copy=False)
