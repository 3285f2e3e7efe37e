"""The warnings of pure training: silent in the healthy range, one name for each way out of it."""

from __future__ import annotations

import pytest

from onebit.nn.pure_health import pure_warnings

HEALTHY = {"flips": 0.002, "zeros": 0.25, "fill": 0.3, "saturated": 0.01}


def test_a_healthy_run_hears_nothing() -> None:
    assert pure_warnings(HEALTHY) == {}
    assert pure_warnings({**HEALTHY, "flips": 0.0}) == {}  # the end of a cosine
    assert pure_warnings({**HEALTHY, "zeros": 0.0}, is_binary=True) == {}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"flips": 0.05}, "flips"),
        ({"flips": 0.0, "fill": 0.001, "saturated": 0.0}, "still"),
        ({"zeros": 0.01}, "zeros"),
        ({"saturated": 0.6}, "saturated"),
    ],
)
def test_each_way_out_has_its_name(changes: dict[str, float], name: str) -> None:
    assert list(pure_warnings({**HEALTHY, **changes})) == [name]
