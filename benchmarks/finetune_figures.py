"""The arms of the fine-tuning benchmark by name, and its samples as figures, a table, sentences and a picture."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune_training import Ingredients

LAMBDA_FRACTION = 0.4
HADAMARD_BLOCK = 256
STARTS: dict[str, dict[str, Any]] = {
    "base": {"ternary": False, "trains": False},
    "float": {"ternary": False},
    "naive": {"trains": False},
    "ste": {},
    "lambda": {"lambda_fraction": LAMBDA_FRACTION},
}
ADDITIONS: dict[str, dict[str, Any]] = {
    "subnorms": {"sub_norms": True},
    "distill": {"distills": True, "hard_label_weight": 0.0},
    "mixdistill": {"distills": True, "hard_label_weight": 0.5},
    "rotation": {"hadamard_block": HADAMARD_BLOCK},
    "calibrated": {"calibrated": True},
    "twin": {"from_twin": True},
    "g64": {"group_size": 64},
    "g256": {"group_size": 256},
    "tables": {"tables": True},
}
SAME_RATE = {"g64", "g256", "tables", "rotation", "calibrated", "mixdistill"}  # the rate is that of the arm without


def default_arms() -> list[str]:
    """Every ingredient by itself, then those that could suit each other together."""
    return [
        *("base", "float", "naive", "naive+calibrated", "ste", "lambda"),
        *(f"lambda+{name}" for name in ("subnorms", "distill", "rotation", "calibrated", "g64", "g256", "tables")),
        *("ste+mixdistill", "ste+calibrated", "ste+calibrated+rotation", "ste+calibrated+mixdistill"),
        *("ste+twin+calibrated", "ste+twin+calibrated+mixdistill"),
    ]


def ingredients_of(arm: str) -> Ingredients:
    """What an arm's name says. Raises ValueError for a name or a combination that means nothing."""
    from finetune_training import Ingredients

    start, *additions = arm.split("+")
    if start not in STARTS:
        raise ValueError(f"'{arm}' begins with none of {', '.join(STARTS)}")
    told = dict(STARTS[start])
    for name in additions:
        if name not in ADDITIONS or start in ("base", "float"):
            raise ValueError(
                f"'{arm}': '{name}' cannot be added; known for ste, lambda and naive: {', '.join(ADDITIONS)}"
            )
        if clash := sorted(set(told) & set(ADDITIONS[name])):
            raise ValueError(f"'{arm}' sets {clash[0]} twice")
        told |= ADDITIONS[name]
    if start == "naive" and {"distills", "from_twin"} & set(told):
        raise ValueError(f"'{arm}': naive starts from the twin as it is, and does not train")
    return dataclasses.replace(Ingredients(), **told)


def rate_arm(arm: str) -> str:
    """The arm whose learning rate this one takes."""
    return "+".join(part for part in arm.split("+") if part not in SAME_RATE)


def _by_arm(samples: list[dict[str, Any]], key: str = "loss") -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for sample in samples:
        found.setdefault(sample["arm"], []).append(sample[key])
    return found


def figures_of(samples: list[dict[str, Any]]) -> tuple[dict[str, float], str]:
    """(figures, the best trained ternary arm). Ratios are of mean losses; gap_closed is of what ste leaves to float.

    The figures that end in _from_base are of the best arm that does not start from the twin.
    """
    losses = _by_arm(samples)
    mean = {arm: statistics.fmean(values) for arm, values in losses.items()}
    gap = mean["ste"] - mean["float"]
    figures: dict[str, float] = {}
    for arm, values in losses.items():
        name = arm.replace("+", "_")
        figures[f"{name}_loss"] = round(mean[arm], 5)
        figures[f"{name}_loss_spread"] = round(max(values) - min(values), 5)
        for key in ("bits_per_byte", "kl_base", "seconds"):
            figures[f"{name}_{key}"] = round(statistics.fmean(_by_arm(samples, key)[arm]), 5)
        if arm not in ("base", "float"):
            figures[f"{name}_kl_twin"] = round(statistics.fmean(s["kl_twin"] for s in samples if s["arm"] == arm), 5)
            figures[f"{name}_over_float"] = round(mean[arm] / mean["float"], 5)
            if gap > 0:
                figures[f"{name}_gap_closed"] = round((mean["ste"] - mean[arm]) / gap, 5)
    trained = [arm for arm in mean if arm.split("+")[0] in ("ste", "lambda")]
    best = min(trained, key=lambda arm: mean[arm])
    best_from_base = min((arm for arm in trained if "twin" not in arm.split("+")), key=lambda arm: mean[arm])
    for arm, suffix in ((best, ""), (best_from_base, "_from_base")):
        pairs = zip(losses[arm], losses["float"], strict=True)
        figures[f"student_over_float{suffix}"] = round(mean[arm] / mean["float"], 5)
        figures[f"student_over_float_worst_seed{suffix}"] = round(max(a / b for a, b in pairs), 5)
        if gap > 0:
            figures[f"gap_closed{suffix}"] = round((mean["ste"] - mean[arm]) / gap, 5)
    return figures, best


def effects(samples: list[dict[str, Any]]) -> list[str]:
    """For each ingredient and arm without it, seed by seed, whether it helped: one sentence each."""
    losses = _by_arm(samples)
    lines = []
    for arm in losses:
        start, *additions = arm.split("+")
        for name in additions:
            without = "+".join([start, *(other for other in additions if other != name)])
            if without not in losses:
                continue
            differences = [a - b for a, b in zip(losses[arm], losses[without], strict=True)]
            helped = (
                "helped" if max(differences) < 0 else "hurt" if min(differences) > 0 else "made no clear difference"
            )
            mean = statistics.fmean(differences)
            lines.append(
                f"+{name} on {without}: {mean:+.4f} nats ({min(differences):+.4f} to {max(differences):+.4f}), {helped}"
            )
    return lines


def table(samples: list[dict[str, Any]], figures: dict[str, float]) -> str:
    rates = {sample["arm"]: sample["learning_rate"] for sample in samples}
    width = max(len(arm) for arm in rates)
    head = f"{'arm':{width}} {'rate':>7} {'loss':>8} {'+-':>7} {'bits/byte':>9} {'over float':>10} {'gap closed':>10} "
    lines = [head + f"{'KL base':>8} {'KL twin':>8} {'seconds':>8}"]
    for arm, rate in rates.items():

        def cell(key: str, form: str, width: int, name: str = arm.replace("+", "_")) -> str:
            value = figures.get(f"{name}_{key}")
            return f"{'' if value is None else format(value, form):>{width}}"

        lines.append(
            f"{arm:{width}} {rate or '':>7} {cell('loss', '.4f', 8)} {cell('loss_spread', '.4f', 7)} "
            f"{cell('bits_per_byte', '.4f', 9)} {cell('over_float', '.4f', 10)} {cell('gap_closed', '.3f', 10)} "
            f"{cell('kl_base', '.4f', 8)} {cell('kl_twin', '.4f', 8)} {cell('seconds', '.1f', 8)}"
        )
    return "\n".join(lines)


def draw(samples: list[dict[str, Any]], path: Path) -> None:
    """Loss over the float twin's, one row an arm, one dot a seed; naive rounding is off the scale and left out."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    losses = _by_arm(samples)
    arms = [arm for arm in losses if arm.split("+")[0] in ("ste", "lambda")][::-1]
    figure, axis = plt.subplots(figsize=(6.4, 0.9 + 0.26 * len(arms)))
    for row, arm in enumerate(arms):
        ratios = [a / b for a, b in zip(losses[arm], losses["float"], strict=True)]
        axis.plot(ratios, [row] * len(ratios), "o", color="#1f6feb", markersize=3, alpha=0.6)
        axis.plot(statistics.fmean(ratios), row, "|", color="#1f6feb", markersize=11)
    axis.axvline(1.0, color="#666666", linewidth=1)
    axis.set_yticks(range(len(arms)), arms, fontsize=8)
    axis.set_xlabel("loss over the fine-tuned float twin's")
    axis.grid(alpha=0.2)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
