"""A quantiser's description refuses what cannot work, in words that name the field."""

from __future__ import annotations

from typing import Any

import pytest

from onebit.errors import ConfigError
from onebit.quant import WeightQuantizer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantizer": "absmaen"}, "did you mean 'absmean'"),
        ({"granularity": "per_rwo"}, "did you mean 'per_row'"),
        ({"granularity": "per_group"}, "group_size is None, expected 64 or 128 or 256"),
        ({"granularity": "per_group", "group_size": 100}, "group_size is 100"),
        ({"granularity": "per_row", "group_size": 64}, "drop it"),
        ({"quantizer": "sparsity"}, "sparsity is None"),
        ({"quantizer": "sparsity", "sparsity": 1.0}, r"expected a share in \[0, 1\)"),
        ({"quantizer": "absmean", "sparsity": 0.1}, "drop one of them"),
        ({"quantizer": "int8", "granularity": "per_tensor"}, "needs 'per_row'"),
        ({"quantizer": "int4", "granularity": "per_group", "group_size": 64}, "expected 32"),
    ],
)
def test_contradictions_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WeightQuantizer(**arguments)


def test_it_is_a_value() -> None:
    assert WeightQuantizer("threshold", "per_row") == WeightQuantizer("threshold", "per_row")
    assert len({WeightQuantizer(), WeightQuantizer(), WeightQuantizer("binary")}) == 2
    assert WeightQuantizer.for_level("int4").group_size == 32
