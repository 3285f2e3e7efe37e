"""The engine benchmark's figures: medians, ratios and their names."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from engine_figures import figures


def sample(part: str, what: str, rate: float, tokens: int = 64, **more: Any) -> dict[str, Any]:
    return {"shape": "2b4t", "part": part, "what": what, "tokens": tokens, "threads": 2, "rate": rate, **more}


def test_ratios_compare_medians_over_rounds() -> None:
    samples = [sample("ours", "decode", rate, typical=rate + 1, limit=80.0) for rate in (59.0, 60.0, 10.0)]
    samples += [sample("bitnet_cpp", "decode", rate) for rate in (30.0, 29.5, 50.0)]
    found = figures(samples)
    assert found["2b4t_decode_tokens_per_s_2t"] == 59.0
    assert found["2b4t_decode_over_limit_2t"] == 60.0 / 80.0
    assert found["2b4t_decode_over_bitnet_cpp_2t"] == pytest.approx(59.0 / 30.0)


def test_the_claim_on_prefill_is_the_worse_of_both_prompts() -> None:
    samples = [sample("ours", "prefill", 140.0, 128, typical=140.0, limit=200.0)]
    samples += [sample("ours", "prefill", 120.0, 512, typical=120.0, limit=200.0)]
    samples += [sample("ours", "prefill", 50.0, 2048, typical=50.0, limit=200.0)]
    assert figures(samples)["2b4t_prefill_over_peak_2t"] == 0.6


def test_the_matrix_part_of_a_long_prompt_stands_beside_a_short_one() -> None:
    samples = [sample("matrix", "matrix", 200.0, 128), sample("matrix", "matrix", 190.0, 2048)]
    assert figures(samples) == {"2b4t_matrix2048_over_128_2t": 0.95}


def test_an_unmeasured_bitnet_is_marked_as_derived() -> None:
    found = figures([sample("ours", "decode", 60.0), sample("llama_cpp", "decode", 28.0)])
    assert found["2b4t_decode_over_bitnet_cpp_derived_2t"] == pytest.approx(60.0 / 38.0)
    assert "2b4t_decode_over_bitnet_cpp_2t" not in found


def test_layouts_stand_beside_two_bits() -> None:
    samples = [
        sample("layouts", "body", 100.0, layout="ternary_t16"),
        sample("layouts", "body", 170.0, layout="binary_t16"),
    ]
    assert figures(samples)["2b4t_binary_body_over_2bit_2t"] == 1.7
