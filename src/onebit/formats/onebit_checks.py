"""Whether the tensors are the ones that the model description needs, each with a layout that its kind may have."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onebit.errors import FormatError
from onebit.formats.description import ModelDescription, TensorPlan
from onebit.formats.hadamard_section import Rotation, site_of
from onebit.formats.layout import Activation, Geometry, Kind, Layout
from onebit.formats.stored_tensor import TensorSource

__all__ = ["check_model", "check_storage"]

_MATRICES = (Kind.TOKEN_EMBEDDING, Kind.HEAD, Kind.Q, Kind.K, Kind.V, Kind.O, Kind.GATE, Kind.UP, Kind.DOWN)


def check_storage(name: str, kind: Kind, geometry: Geometry, activation: Activation) -> None:
    """Refuse a layout or activation that tensors of this kind do not have."""
    layouts: tuple[Layout, ...] = (Layout.FLOAT32,)
    activations: tuple[Activation, ...] = (Activation.NONE,)
    if kind in _MATRICES:
        layouts, activations = tuple(Layout), tuple(Activation)
    elif kind is Kind.POSITION_EMBEDDING:
        layouts = (Layout.FLOAT32, Layout.FLOAT16)
    if geometry.layout not in layouts:
        names = ", ".join(layout.label for layout in layouts)
        raise FormatError(
            f"tensor {name}: layout {geometry.layout.label} is not for this kind of tensor (allowed: {names})"
        )
    if activation not in activations:
        names = ", ".join(entry.name.lower() for entry in activations)
        raise FormatError(
            f"tensor {name}: activation {activation.name.lower()} is not for this kind of tensor (allowed: {names})"
        )


def check_model(
    description: ModelDescription, tensors: Mapping[str, TensorSource], rotations: Mapping[str, Rotation]
) -> None:
    """Every required tensor is there, none is unknown, and each has the kind, layer and shape the description gives
    it; what turns its inputs finds a rotation."""
    known = set()
    for plan in description.plan():
        tensor = tensors.get(plan.name)
        if tensor is not None:
            _check_place(plan, tensor)
            known.add(plan.name)
        elif plan.required:
            raise FormatError(f"tensor {plan.name} is missing: the model description needs it")
    _check_frequencies(tensors)
    for name, tensor in tensors.items():
        if name not in known:
            raise FormatError(f"tensor {name} is unknown to a model of this description")
        check_storage(name, tensor.kind, tensor.geometry, tensor.activation)
        if tensor.turned and site_of(tensor.kind) not in rotations:
            raise FormatError(f"tensor {name} turns its inputs, for which the file has no rotation")


def _check_frequencies(tensors: Mapping[str, TensorSource]) -> None:
    tensor = tensors.get("model.rope.inv_freq")
    if tensor is None or tensor.geometry.layout is not Layout.FLOAT32:  # another layout is refused by itself
        return
    values = np.frombuffer(tensor.data, "<f4")[: tensor.shape[1]]
    if not ((values > 0) & (values <= 1)).all():
        raise FormatError(f"tensor {tensor.name}: a frequency is not a positive number up to 1")


def _check_place(plan: TensorPlan, tensor: TensorSource) -> None:
    if tensor.name != plan.name:
        raise FormatError(f"tensor {tensor.name} is filed under the name {plan.name}")
    if (tensor.kind, tensor.layer) != (plan.kind, plan.layer):
        raise FormatError(
            f"tensor {plan.name}: kind {tensor.kind.name.lower()} of layer {tensor.layer},"
            f" expected {plan.kind.name.lower()} of layer {plan.layer}"
        )
    if tensor.shape != (plan.rows, plan.cols):
        raise FormatError(
            f"tensor {plan.name}: shape {tensor.shape}, expected {(plan.rows, plan.cols)} by the model description"
        )
