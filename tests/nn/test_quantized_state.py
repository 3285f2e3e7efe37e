"""A layer's quantised state: it goes through safetensors and back to the same numbers, and its size is told right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from onebit.errors import OnebitError
from onebit.nn import BitLinear

X = torch.randn(3, 100, generator=torch.Generator().manual_seed(1))


def layer(seed: int = 0, **arguments: Any) -> BitLinear:
    torch.manual_seed(seed)
    return BitLinear(100, 24, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"bias": False, "granularity": "per_row"},
        {"granularity": "per_group", "group_size": 64},
        {"weight_sparsity_threshold": 0.3},
        {"quantizer": "binary"},
        {"quantizer": "int4"},
        {"quantizer": "float16"},
    ],
    ids=str,
)
def test_a_state_goes_through_a_file_to_the_same_numbers(arguments: dict[str, Any], tmp_path: Path) -> None:
    trained = layer(**arguments)
    save_file(trained.get_quantized_state(), tmp_path / "layer.safetensors")
    torch.save(trained.get_quantized_state(), tmp_path / "layer.pth")
    for state in (load_file(tmp_path / "layer.safetensors"), torch.load(tmp_path / "layer.pth", weights_only=True)):
        # another quantiser at first: the state brings its own
        fresh = layer(7, bias=arguments.get("bias", True), quantizer="threshold")
        fresh.load_quantized_state(state)
        assert fresh.weight_quantizer == trained.weight_quantizer
        assert torch.equal(fresh(X), trained(X))
        fresh(X).sum().backward()
        assert fresh.weight.grad is not None


def test_the_footprint_counts_bits() -> None:
    footprint = BitLinear(512, 1024).get_memory_footprint()
    assert footprint["original_fp32"] == 512 * 1024 * 4
    assert footprint["quantized_1.58bit"] == 103547  # 512 * 1024 * 1.58 / 8, rounded up
    assert footprint["compression_ratio"] == pytest.approx(20.253, abs=1e-3)
    assert footprint["compression_ratio_practical"] == 4.0
    assert BitLinear(8, 8, quantizer="binary").get_memory_footprint()["compression_ratio"] == 32.0
    with pytest.raises(OnebitError, match="no weight quantiser"):
        BitLinear(8, 8, quantizer=None).get_memory_footprint()


def test_practical_is_what_a_state_takes() -> None:
    state = layer(bias=False).get_quantized_state()
    assert state["codes"].element_size() * state["codes"].numel() * 4 == layer().get_memory_footprint()["original_fp32"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": None}, "has no 'codes'"),
        ({"coeds": torch.zeros(1)}, "has no 'coeds'; did you mean 'codes'"),
        ({"codes": torch.zeros(24, 99, dtype=torch.int8)}, r"'codes' has shape \(24, 99\), expected \(24, 100\)"),
        ({"scale": torch.ones(24)}, r"'scale' has shape \(24,\), expected \(\)"),
        ({"bias": None}, "the layer has a bias, the quantised state has none"),
        ({"quantizer": torch.tensor([7, 8], dtype=torch.uint8)}, "'quantizer' cannot be read"),
        ({"codes": torch.full((24, 100), 5, dtype=torch.int8)}, "codes are none that quantizer 'absmean' could give"),
    ],
)
def test_a_wrong_state_is_refused_and_changes_nothing(change: dict[str, Any], message: str) -> None:
    state = {**layer().get_quantized_state(), **change}
    fresh = layer(7)
    before = fresh.weight.detach().clone()
    with pytest.raises(OnebitError, match=message):
        fresh.load_quantized_state({name: tensor for name, tensor in state.items() if tensor is not None})
    assert torch.equal(fresh.weight, before)
