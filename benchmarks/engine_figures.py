"""The engine benchmark's figures from its samples: medians over rounds, and ratios of medians."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

PEERS = ("bitnet_cpp", "llama_cpp", "torch")
# I2_S over TQ2_0 as measured once on another machine (2b4t with a Q6_K head, 700m with F16): where bitnet.cpp itself
# was not measured, its speed is taken as so many times llama.cpp's, and the figure's name says derived.
DERIVED_BITNET = {"decode": {1: 23.6 / 20.1, 2: 38 / 28}, "prefill": {1: 51 / 28, 2: 86 / 52}}
CLAIM_PROMPTS = (128, 512)

Key = tuple[str, str, str, int, int]  # shape, part or layout, what, tokens, threads


def medians(samples: Iterable[Mapping[str, Any]], field: str = "rate") -> dict[Key, float]:
    """The median of a field for each thing that was measured."""
    values: dict[Key, list[float]] = defaultdict(list)
    for s in samples:
        if s.get(field) is not None:
            part = s.get("layout", s["part"])
            values[s["shape"], part, s["what"], s["tokens"], s["threads"]].append(float(s[field]))
    return {key: statistics.median(group) for key, group in values.items()}


def figures(samples: list[dict[str, Any]]) -> dict[str, float]:
    """Flat, name -> number. `prefill_over_...` is the smaller of the prompts of 128 and 512 tokens."""
    rates, typical, limits = medians(samples), medians(samples, "typical"), medians(samples, "limit")
    found: dict[str, float] = {}
    for key in sorted(rates):
        shape, part, what, tokens, threads = key
        name = what + (str(tokens) if what == "prefill" else "")
        if part == "ours":
            found[f"{shape}_{name}_tokens_per_s_{threads}t"] = rates[key]
            yardstick = "limit" if what == "decode" else "peak"
            if key in limits:
                found[f"{shape}_{name}_over_{yardstick}_{threads}t"] = typical[key] / limits[key]
        elif part in PEERS:
            found[f"{shape}_{part}_{name}_tokens_per_s_{threads}t"] = rates[key]
            mine = rates.get((shape, "ours", what, tokens, threads))
            if mine is not None:
                found[f"{shape}_{name}_over_{part}_{threads}t"] = mine / rates[key]
        elif part == "matrix":
            shortest = min(k[3] for k in rates if k[:3] == key[:3] and k[4] == threads)
            if tokens > shortest:
                short = rates[shape, part, what, shortest, threads]
                found[f"{shape}_matrix{tokens}_over_{shortest}_{threads}t"] = rates[key] / short
        elif part == "memory":
            found[f"{shape}_{what}"] = rates[key]
    found |= _over_avx512(samples, rates)
    found |= _layouts(rates) | _derived(found)
    found |= _smallest_prefill(found)
    for field in ("gb_per_s", "int8_gops"):
        for (shape, _, _, _, threads), value in medians(samples, field).items():
            found[f"{shape}_{field}_{threads}t"] = value
    return found


def _over_avx512(samples: list[dict[str, Any]], rates: dict[Key, float]) -> dict[str, float]:
    """Prefill beside the dot product of AVX-512 VNNI too, since a kernel on AMX tiles has a far higher peak."""
    peaks, weights = medians(samples, "avx512_gops"), medians(samples, "body_weights")
    found = {}
    for shape, part, what, tokens, threads in rates:
        limits = (shape, "limits", "limits", 0, threads)
        if part == "ours" and what == "prefill" and limits in peaks:
            gops = 2e-9 * weights[limits] * rates[shape, part, what, tokens, threads]
            found[f"{shape}_prefill{tokens}_over_avx512_peak_{threads}t"] = gops / peaks[limits]
    return found


def _layouts(rates: dict[Key, float]) -> dict[str, float]:
    """Base 3 beside 2 bits over whole tokens, binary beside 2 bits over the body alone."""
    found = {}
    for (shape, layout, what, tokens, threads), rate in rates.items():
        base = rates.get((shape, "ternary_t16", what, tokens, threads))
        if base is None or layout == "ternary_t16":
            continue
        name = {"ternary5_t16": "base3", "binary_t16": "binary"}.get(layout)
        if name is not None:
            found[f"{shape}_{name}_{what}_over_2bit_{threads}t"] = rate / base
    return found


def _derived(found: dict[str, float]) -> dict[str, float]:
    """bitnet.cpp's ratios from llama.cpp's, where it was not measured itself."""
    derived = {}
    for name, value in found.items():
        what = "decode" if "_decode_" in name else "prefill"
        if "_over_llama_cpp_" in name and name.replace("llama_cpp", "bitnet_cpp") not in found:
            ratio = DERIVED_BITNET[what][int(name[-2])]
            derived[name.replace("llama_cpp", "bitnet_cpp_derived")] = value / ratio
    return derived


def _smallest_prefill(found: dict[str, float]) -> dict[str, float]:
    smallest: dict[str, float] = {}
    for name, value in found.items():
        for length in CLAIM_PROMPTS:
            if f"_prefill{length}_over_" in name:
                claim = name.replace(f"_prefill{length}_", "_prefill_")
                smallest[claim] = min(smallest.get(claim, value), value)
    return smallest


def print_figures(found: Mapping[str, float]) -> None:
    """One line a figure, ratios with two decimals."""
    for name, value in found.items():
        print(f"{name:48} {value:.2f}" if "_over_" in name else f"{name:48} {value:.1f}")
