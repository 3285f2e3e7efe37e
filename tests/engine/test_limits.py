"""The limits' probes: sane numbers, errors as exceptions. How fast this machine is, no test can know."""

from __future__ import annotations

import pytest

from onebit.engine.limits import bandwidth, int8_peak, linear_isas
from onebit.errors import EngineError


def test_bandwidth_is_a_positive_number() -> None:
    assert 0.01 < bandwidth(1, 1 << 20, seconds=0.02) < 10_000


@pytest.mark.parametrize("isa", ["avx2", "avxvnni", "avx512", "amx", "neon", "i8mm"])
def test_int8_peak_is_positive_or_unknown(isa: str) -> None:
    peak = int8_peak(isa, 1, seconds=0.02)
    assert peak is None or 0.1 < peak < 1e6


def test_the_reference_has_no_peak() -> None:
    assert int8_peak("scalar", 1, seconds=0.01) is None


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(EngineError, match="threads must be"):
        bandwidth(0, 1 << 20)
    with pytest.raises(EngineError, match="num_bytes must be"):
        bandwidth(1, 10)
    with pytest.raises(EngineError, match="seconds"):
        bandwidth(1, 1 << 20, seconds=0.0)


def test_linear_isas_reads_the_dispatch_lines() -> None:
    lines = ["linear ternary_t16 int8: avx512 (why)", "linear int8 float: scalar (reference)", "attention: avx2 (why)"]
    assert linear_isas(lines) == {"ternary_t16": "avx512"}
