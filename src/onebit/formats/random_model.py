"""A random valid ``.1bit`` model of any configuration, without torch: for the tests of the engine, the reader and the
CLI."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebit.formats.description import ModelDescription, TensorPlan
from onebit.formats.hadamard_section import SITES, Rotation, site_of
from onebit.formats.layout import EXCHANGE_LAYOUT, INT4_GROUP, Activation, Granularity, Kind, Layout
from onebit.formats.onebit_file import OneBitFile
from onebit.formats.stored_tensor import StoredTensor

__all__ = ["random_description", "random_file", "random_tensor"]

_TABLES = (Kind.TOKEN_EMBEDDING, Kind.HEAD, Kind.POSITION_EMBEDDING)


def random_description(**overrides: Any) -> ModelDescription:
    """A two-layer model with every size odd enough to be awkward; keywords replace fields."""
    fields: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 72,
        "num_layers": 2,
        "num_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 18,
        "intermediate_size": 200,
        "max_seq_len": 64,
        "bos": 1,
        "eos": 2,
    }
    return ModelDescription(**(fields | overrides))


def random_file(
    description: ModelDescription | None = None,
    *,
    layout: str | Layout = Layout.TERNARY_T16,
    granularity: str | Granularity = Granularity.PER_TENSOR,
    group_size: int = 64,
    activation: str | Activation = Activation.INT8,
    embedding_layout: str | Layout = Layout.FLOAT16,
    head_activation: str | Activation = Activation.NONE,
    biases: bool = False,
    hadamard_block: int = 1,
    seed: int = 0,
    **sections: Any,
) -> OneBitFile:
    """Random weights for a description. Names are accepted for the enumerations (``layout="ternary5"``).

    ``layout`` is for the projections, which int8 and int4 give their own granularity; ``hadamard_block`` above 1 turns
    all inputs whose width it, or a smaller power of two, divides; ``sections`` are the other fields of OneBitFile. The
    weights have the size that keeps activations near 1, so that logits are worth comparing.
    """
    model = description or random_description()
    rng = np.random.default_rng(seed)
    table_layout = _member(Layout, embedding_layout)
    tensors = {}
    for plan in model.plan():
        if plan.kind is Kind.ROPE_FREQUENCIES or (not plan.required and not biases):
            continue
        if plan.kind in _TABLES:
            is_position = plan.kind is Kind.POSITION_EMBEDDING
            head = Activation.NONE if is_position else _member(Activation, head_activation)
            usable = Layout.FLOAT16 if is_position and table_layout > Layout.FLOAT16 else table_layout
            tensors[plan.name] = random_tensor(plan, rng, usable, activation=head)
        elif plan.rows == 1 and plan.kind not in (Kind.Q, Kind.K, Kind.V, Kind.O, Kind.GATE, Kind.UP, Kind.DOWN):
            tensors[plan.name] = _random_vector(plan, rng)
        else:
            tensors[plan.name] = random_tensor(
                plan,
                rng,
                _member(Layout, layout),
                _member(Granularity, granularity),
                group_size,
                _member(Activation, activation),
            )
    rotations = _random_rotations(model, hadamard_block, rng)
    for name, tensor in tensors.items():
        if site_of(tensor.kind) in rotations:
            tensors[name] = replace(tensor, turned=True)
    return OneBitFile(description=model, tensors=tensors, rotations=rotations, **sections)


def _random_rotations(model: ModelDescription, largest: int, rng: np.random.Generator) -> dict[str, Rotation]:
    rotations = {}
    for site, width in zip(
        SITES, (model.hidden_size, model.num_heads * model.head_dim, model.intermediate_size), strict=True
    ):
        block = min(largest, width & -width)
        if block > 1:
            rotations[site] = Rotation.of(block, rng.choice(np.array([-1, 1], np.float32), width))
    return rotations


def _member(kind: Any, value: Any) -> Any:
    return kind[value.upper()] if isinstance(value, str) else kind(value)


def _random_vector(plan: TensorPlan, rng: np.random.Generator) -> StoredTensor:
    centre = 0.0 if plan.name.endswith("bias") else 1.0
    values = centre + 0.1 * rng.standard_normal(plan.cols)
    return StoredTensor.from_values(plan.name, plan.kind, plan.layer, values)


def random_tensor(
    plan: TensorPlan,
    rng: np.random.Generator,
    layout: Layout,
    granularity: Granularity = Granularity.PER_TENSOR,
    group_size: int = 64,
    activation: Activation = Activation.NONE,
) -> StoredTensor:
    """One random matrix; weights have a standard deviation of about 1 / sqrt(columns)."""
    size = 1.0 if plan.kind in _TABLES else plan.cols**-0.5
    if layout.is_float:
        values = size * rng.standard_normal((plan.rows, plan.cols))
        stored = StoredTensor.from_values(plan.name, plan.kind, plan.layer, values, layout)
        return StoredTensor(**{**vars(stored), "activation": activation})
    largest = {Layout.INT8: 127, Layout.INT4: 7}.get(layout, 1)
    granularity = {Layout.INT8: Granularity.PER_ROW, Layout.INT4: Granularity.PER_GROUP}.get(layout, granularity)
    group = {Layout.INT4: INT4_GROUP}.get(layout, group_size) if granularity is Granularity.PER_GROUP else 0
    codes = rng.integers(-largest, largest, (plan.rows, plan.cols), endpoint=True).astype(np.int8)
    if EXCHANGE_LAYOUT.get(layout, layout) is Layout.BINARY:
        codes = np.where(codes >= 0, 1, -1).astype(np.int8)
    scale = _random_scale(rng, granularity, plan, group) * size * 1.5 / largest
    scale = scale.astype(np.float16 if granularity is Granularity.PER_GROUP else np.float32)
    return StoredTensor.from_codes(
        plan.name, plan.kind, plan.layer, codes, scale, layout, granularity, group, activation
    )


def _random_scale(
    rng: np.random.Generator, granularity: Granularity, plan: TensorPlan, group: int
) -> NDArray[np.float64]:
    shape: dict[Granularity, tuple[int, ...]] = {
        Granularity.PER_TENSOR: (1,),
        Granularity.PER_ROW: (plan.rows,),
        Granularity.PER_GROUP: (plan.rows, -(-plan.cols // group) if group else 1),
    }
    return rng.uniform(0.5, 1.5, shape[granularity])
