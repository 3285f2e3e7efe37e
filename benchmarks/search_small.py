"""The small part of the search benchmark: every map measured, so that the distance to the true optimum is known."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path
from typing import Any

from search_trials import Bench

__all__ = ["measure_small"]

LEVELS = ("binary", "ternary", "int4")
BUDGETS = (10, 30, 50, 70, 90)  # per cent of the way from the smallest to the largest file
SHARE = 0.05
STRATEGIES = ("sensitivity", "expander", "evolution", "random")


def measure_small(folder: Path, arguments: argparse.Namespace) -> tuple[dict[str, float], dict[str, Any]]:
    """Gap to the optimum in per cent of its loss, for each strategy and budget; the share of maps each measured."""
    bench = Bench(folder, arguments.valid, arguments.tokens // 2, levels=LEVELS, grouping="kind")
    everything = enumerate_all(bench)
    sizes = [trial.size for trial in everything]
    figures: dict[str, float] = {"maps": len(everything)}
    rows = []
    most = int(SHARE * len(everything))
    for percent in BUDGETS:
        limit = min(sizes) + (max(sizes) - min(sizes)) * percent // 100
        optimum = min((t for t in everything if t.size <= limit), key=lambda t: (t.score.loss, t.size))
        for strategy in STRATEGIES:
            trials = bench.search(strategy, limit, most)
            assert trials.best is not None
            gap = 100.0 * (trials.best.score.loss / optimum.score.loss - 1.0)
            share = 100.0 * len(trials.done) / len(everything)
            figures[f"optimum_gap_{strategy}_{percent}"] = gap
            name = f"evaluations_share_{strategy}"
            figures[name] = max(figures.get(name, 0.0), share)
            rows.append(
                {
                    "budget_percent": percent,
                    "budget_bytes": limit,
                    "strategy": strategy,
                    "optimum_loss": optimum.score.loss,
                    "loss": trials.best.score.loss,
                    "gap_percent": gap,
                    "evaluations": len(trials.done),
                    "levels": bench.space.map_of(trials.best.choice),
                }
            )
            print(f"{percent:>3} % {strategy:<12} gap {gap:7.3f} %  {len(trials.done)} evaluations", flush=True)
    losses = [trial.score.loss for trial in everything]
    figures |= {"small_loss_least": min(losses), "small_loss_most": max(losses)}
    return figures, {"rows": rows, "units": [unit.name for unit in bench.space.units], "levels": LEVELS}


def enumerate_all(bench: Bench) -> list[Any]:
    """Every map; in an order that changes the last units fastest, which reuses most of each pass."""
    trials = bench.trials()
    choices = list(itertools.product(range(len(LEVELS)), repeat=len(bench.space.units)))
    began = time.monotonic()
    for start in range(0, len(choices), 243):
        trials.evaluate(choices[start : start + 243])
        if trials.measured:
            print(f"\r{len(trials.done)} of {len(choices)} maps, {time.monotonic() - began:.0f} s", end="", flush=True)
    print(file=sys.stdout)
    return list(trials.done.values())
