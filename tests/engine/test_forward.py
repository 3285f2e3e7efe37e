"""The engine against a float64 forward pass in numpy, over every layout, granularity and architecture flag."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onebit.engine import Model
from onebit.formats import onebit_file

IDS = [1, 5, 96, 0, 33, 33, 7, 64, 12, 90, 41, 2, 3, 58, 77, 20, 11]

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "bitnet": {"mlp": "relu2_glu", "sub_norm": True},
    "seed": {"norm": "layernorm", "mlp": "gelu", "position": "learned", "residual_scale": 2**-0.5},
    "qwen3": {"qk_norm": True, "num_key_value_heads": 1, "rope_theta": 1e6, "norm_eps": 1e-6},
    "relu2_untied": {"mlp": "relu2", "tied_head": False, "num_key_value_heads": 4},
    "wide_heads": {"head_dim": 32, "hidden_size": 64, "intermediate_size": 208},
}
LAYOUTS = (
    *("float32", "float16", "int8", "int4", "binary", "ternary", "ternary5"),
    *("binary_t16", "ternary_t16", "ternary5_t16"),
)


def _distance(ours: Any, theirs: Any) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("isa", ["scalar", "auto"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_architectures(make_file: Callable[..., Any], reference: Any, architecture: str, isa: str) -> None:
    path, file = make_file(ARCHITECTURES[architecture], activation="none", biases=architecture != "llama")
    logits, hidden = reference(file).run(IDS)
    model = Model(path, isa=isa)
    # float32 sums of 200 terms through two layers: 1e-6 is seen, the product's bar is 1e-4
    assert _distance(model.logits(IDS, kv="float32"), logits) < 1e-5
    assert _distance(model.hidden(IDS, kv="float32"), hidden) < 1e-5


@pytest.mark.parametrize("isa", ["scalar", "auto"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_turned_inputs(make_file: Callable[..., Any], reference: Any, architecture: str, isa: str) -> None:
    """Blocks of 8 and 64 where the widths allow them; then one of q, k and v as it was, and all of the MLP."""
    path, file = make_file(ARCHITECTURES[architecture], activation="none", hadamard_block=64)
    assert set(file.rotations) == {"hidden", "attention", "mlp"}
    assert _distance(Model(path, isa=isa).logits(IDS, kv="float32"), reference(file).run(IDS)[0]) < 1e-5
    straight = ("model.layers.0.attention.k_proj.weight", "model.layers.1.mlp.up_proj.weight")
    for name, tensor in file.tensors.items():
        if name in straight or "down_proj" in name:
            file.tensors[name] = replace(tensor, turned=False)
    onebit_file.write(path, file)
    assert _distance(Model(path, isa=isa).logits(IDS, kv="float32"), reference(file).run(IDS)[0]) < 1e-5


@pytest.mark.parametrize("activation", ["int8", "sign"])
def test_turned_inputs_are_rounded_after_they_are_turned(
    make_file: Callable[..., Any], reference: Any, activation: str
) -> None:
    path, file = make_file({"num_layers": 1}, activation=activation, granularity="per_group", hadamard_block=256)
    model = Model(path)
    distances = [_distance(model.logits([token])[0], reference(file).run([token])[0][0]) for token in IDS]
    assert np.median(distances) < 1e-3


def test_the_scale_of_scores(make_file: Callable[..., Any], reference: Any) -> None:
    plain = Model(make_file({}, activation="none")[0]).logits(IDS, kv="float32")
    path, file = make_file({"attention_scale": 0.5}, activation="none")
    logits = Model(path).logits(IDS, kv="float32")
    assert _distance(logits, reference(file).run(IDS)[0]) < 1e-5
    assert _distance(logits, plain) > 1e-2


@pytest.mark.parametrize("granularity", ["per_tensor", "per_row", "per_group"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_without_activation_rounding(
    make_file: Callable[..., Any], reference: Any, layout: str, granularity: str
) -> None:
    path, file = make_file(layout=layout, granularity=granularity, activation="none")
    assert _distance(Model(path).logits(IDS, kv="float32"), reference(file).run(IDS)[0]) < 1e-5


@pytest.mark.parametrize("activation", ["int8", "sign"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("granularity", ["per_tensor", "per_row", "per_group"])
def test_layouts_with_rounded_activations(
    make_file: Callable[..., Any], reference: Any, layout: str, granularity: str, activation: str
) -> None:
    """One layer, so that a code that rounds the other way (a real jump of about 1/127) stays a rare, small thing."""
    path, file = make_file(
        {"num_layers": 1}, layout=layout, granularity=granularity, activation=activation, biases=True
    )
    ours, theirs = Model(path).logits(IDS, kv="float32"), reference(file).run(IDS)[0]
    error = np.abs(ours - theirs) / np.abs(theirs).max()
    assert np.median(error) < 1e-5
    assert error.max() < 2e-2


@pytest.mark.parametrize("embedding", ["float32", "float16", "int8", "int4"])
@pytest.mark.parametrize("head_activation", ["none", "int8"])
def test_embeddings_and_heads(
    make_file: Callable[..., Any], reference: Any, embedding: str, head_activation: str
) -> None:
    path, file = make_file(
        {"tied_head": head_activation == "none"},
        embedding_layout=embedding,
        head_activation=head_activation,
        activation="none",
    )
    error = (
        np.abs(Model(path).logits(IDS, kv="float32") - (theirs := reference(file).run(IDS)[0])) / np.abs(theirs).max()
    )
    assert np.median(error) < 1e-5
    assert error.max() < (1e-5 if head_activation == "none" else 5e-3)
