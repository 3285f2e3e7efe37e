"""The deep part of the search benchmark: found maps beside uniform ternary and random maps, on text no search saw."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from onebit.formats.onebit_file import write
from onebit.search.space import Choice
from search_trials import Bench

__all__ = ["measure_deep"]

SEEDS = (0, 1, 2, 3, 4)


def measure_deep(folder: Path, arguments: argparse.Namespace) -> tuple[dict[str, float], dict[str, Any]]:
    """Losses on unseen text at the sizes of uniform ternary and half-way to int4 and int8, before and after healing."""
    text = arguments.valid
    bench, unseen = Bench(folder, text, arguments.tokens), Bench(folder, text, 4 * arguments.tokens, part=1)
    space = bench.space
    uniform = {level: space.size(space.uniform(level)) for level in space.levels}
    budgets = {
        "ternary": uniform["ternary"],
        "ternary_int4": (uniform["ternary"] + uniform["int4"]) // 2,
        "int4_int8": (uniform["int4"] + uniform["int8"]) // 2,
    }
    figures: dict[str, float] = {}
    for level in space.levels:
        figures[f"loss_uniform_{level}"] = loss_of(unseen, space.uniform(level))
        figures[f"bytes_uniform_{level}"] = uniform[level]
        print(f"uniform {level:<8} {uniform[level]:>9,} bytes  loss {figures[f'loss_uniform_{level}']:.4f}", flush=True)
    rows = []
    for name, limit in budgets.items():
        found = {}
        for strategy in ("sensitivity", "expander"):
            found[strategy] = report(rows, name, limit, bench, unseen, strategy, arguments.evaluations, 0)
            figures[f"loss_{strategy}_{name}"] = found[strategy]["loss_unseen"]
        randoms = [
            report(rows, name, limit, bench, unseen, "random", arguments.evaluations, seed)["loss_unseen"]
            for seed in SEEDS
        ]
        figures[f"loss_random_best_{name}"] = min(randoms)
        figures[f"loss_random_mean_{name}"] = sum(randoms) / len(randoms)
        for strategy, row in found.items():
            suffix = "" if strategy == "sensitivity" else f"_{strategy}"
            beaten = sum(row["loss_unseen"] < loss for loss in randoms) / len(randoms)
            figures[f"beats_random_share_{name}{suffix}"] = beaten
        if name == "ternary" and arguments.heal_steps:
            figures |= healed_losses(folder, text, arguments, found["sensitivity"]["choice"], space)
    return figures, {"rows": rows, "seeds": SEEDS}


def loss_of(bench: Bench, choice: Choice) -> float:
    """Loss on the text of a bench."""
    return bench.trials().evaluate([choice])[0].loss


def report(
    rows: list[dict[str, Any]],
    name: str,
    limit: int,
    bench: Bench,
    unseen: Bench,
    strategy: str,
    evaluations: int,
    seed: int,
) -> dict[str, Any]:
    """Search, and measure what was found on the unseen text."""
    trials = bench.search(strategy, limit, evaluations, seed)
    assert trials.best is not None
    row = {
        "size": name,
        "budget_bytes": limit,
        "strategy": strategy,
        "seed": seed,
        "evaluations": len(trials.done),
        "bytes": trials.best.size,
        "loss_searched": trials.best.score.loss,
        "loss_unseen": loss_of(unseen, trials.best.choice),
        "choice": trials.best.choice,
        "levels": bench.space.map_of(trials.best.choice),
    }
    rows.append(row)
    print(
        f"{name:<13} {strategy:<12} seed {seed}  {row['evaluations']} evaluations, {row['bytes']:>9,} bytes of"
        f" {limit:,}  loss {row['loss_searched']:.4f}, unseen {row['loss_unseen']:.4f}",
        flush=True,
    )
    return row


def healed_losses(
    folder: Path, text: Path, arguments: argparse.Namespace, found: Choice, space: Any
) -> dict[str, float]:
    """Unseen losses of uniform ternary and of the found map after equally long training, and the sizes on disk."""
    from onebit.formats.checkpoint import from_checkpoint
    from onebit.train import TrainSettings, train

    figures: dict[str, float] = {}
    for name, choice in (("ternary", space.uniform("ternary")), ("found", found)):
        target = folder.parent / f"healed_{name}_{arguments.heal_steps}"
        if not (target / "training_manifest.json").is_file():
            train(
                TrainSettings(
                    data=str(arguments.train),
                    val_fraction=0.0,
                    output_dir=target,
                    init_from=folder,
                    bit_width_map=space.map_of(choice),
                    batch_size=4,
                    max_steps=arguments.heal_steps,
                    lr=1e-3,
                    lr_decay="linear",
                    lr_warmup_steps=10,
                    log_every=50,
                    save_every=50,
                    keep_checkpoints=1,
                    threads=arguments.threads,
                    device="cpu",
                )
            )
        unseen = Bench(target, text, 4 * arguments.tokens, part=1)
        figures[f"healed_loss_{name}"] = loss_of(unseen, choice)
        figures[f"healed_bytes_{name}"] = write(target / "model.1bit", from_checkpoint(target))
        print(f"healed {name:<8} {arguments.heal_steps} steps  loss {figures[f'healed_loss_{name}']:.4f}", flush=True)
    return figures
