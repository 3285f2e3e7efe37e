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
FROM_TWIN = {"twin", "calibrated"}  # together they begin where training has little left to do, with a rate of their own


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
    parts = arm.split("+")
    own = FROM_TWIN if set(parts) >= FROM_TWIN else set()
    return "+".join(part for part in parts if part in own or part not in SAME_RATE)


def _by_arm(samples: list[dict[str, Any]], key: str = "loss") -> dict[str, dict[int, float]]:
    """Arm -> seed -> value. An arm may have fewer seeds than others; it is compared on those that both have."""
    found: dict[str, dict[int, float]] = {}
    for sample in samples:
        found.setdefault(sample["arm"], {})[sample["seed"]] = sample[key]
    return found


def _mean(values: dict[int, float]) -> float:
    return statistics.fmean(values.values())


def _over(one: dict[int, float], other: dict[int, float]) -> list[float]:
    """The ratio of each seed that both have."""
    return [value / other[seed] for seed, value in one.items() if seed in other]


def _gap_closed(losses: dict[str, dict[int, float]], arm: str) -> float | None:
    """The share of what ste leaves to float, over the arm's seeds; None where ste leaves nothing."""
    seeds = losses[arm].keys() & losses["ste"].keys() & losses["float"].keys()
    gap = sum(losses["ste"][seed] - losses["float"][seed] for seed in seeds)
    return sum(losses["ste"][seed] - losses[arm][seed] for seed in seeds) / gap if gap > 0 else None


def figures_of(samples: list[dict[str, Any]]) -> tuple[dict[str, float], str]:
    """(figures, the best trained ternary arm). Ratios are of losses, by seed; gap_closed of what ste leaves to float.

    The best is chosen among arms with every seed. The figures that end in _from_base are of the best arm that does not
    start from the twin.
    """
    losses = _by_arm(samples)
    figures: dict[str, float] = {}

    def put(arm: str, prefix: str, suffix: str = "") -> None:
        ratios = _over(losses[arm], losses["float"])
        figures[f"{prefix}over_float{suffix}"] = round(statistics.fmean(ratios), 5)
        figures[f"{prefix}over_float_worst_seed{suffix}"] = round(max(ratios), 5)
        closed = _gap_closed(losses, arm)
        if closed is not None:
            figures[f"{prefix.removesuffix('student_')}gap_closed{suffix}"] = round(closed, 5)

    for arm, values in losses.items():
        name = arm.replace("+", "_")
        figures[f"{name}_seeds"] = len(values)
        figures[f"{name}_loss"] = round(_mean(values), 5)
        figures[f"{name}_loss_spread"] = round(max(values.values()) - min(values.values()), 5)
        for key in ("bits_per_byte", "kl_base", "seconds"):
            figures[f"{name}_{key}"] = round(_mean(_by_arm(samples, key)[arm]), 5)
        if arm not in ("base", "float"):
            figures[f"{name}_kl_twin"] = round(statistics.fmean(s["kl_twin"] for s in samples if s["arm"] == arm), 5)
            put(arm, f"{name}_")
    whole = [arm for arm in losses if arm.split("+")[0] in ("ste", "lambda") and len(losses[arm]) == len(losses["ste"])]
    best = min(whole, key=lambda arm: _mean(losses[arm]))
    put(best, "student_")
    put(
        min((arm for arm in whole if "twin" not in arm.split("+")), key=lambda arm: _mean(losses[arm])),
        "student_",
        "_from_base",
    )
    return figures, best


def effects(samples: list[dict[str, Any]]) -> list[str]:
    """For each ingredient and arm without it, seed by seed, whether it helped: one sentence each."""
    losses = _by_arm(samples)
    lines = []
    for arm in losses:
        start, *additions = arm.split("+")
        for name in additions:
            without = "+".join([start, *(other for other in additions if other != name)])
            differences = [
                loss - losses[without][seed] for seed, loss in losses[arm].items() if seed in losses.get(without, {})
            ]
            if not differences:
                continue
            helped = (
                "helped" if max(differences) < 0 else "hurt" if min(differences) > 0 else "made no clear difference"
            )
            seeds = f"{len(differences)} seed{'s' if len(differences) > 1 else ''}"
            mean = statistics.fmean(differences)
            spread = f"{min(differences):+.4f} to {max(differences):+.4f}, {seeds}"
            lines.append(f"+{name} on {without}: {mean:+.4f} nats ({spread}), {helped}")
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
    arms = [arm for arm in losses if arm.split("+")[0] in ("ste", "lambda") or arm == "naive+calibrated"][::-1]
    figure, axis = plt.subplots(figsize=(6.4, 0.9 + 0.26 * len(arms)))
    for row, arm in enumerate(arms):
        ratios = _over(losses[arm], losses["float"])
        axis.plot(ratios, [row] * len(ratios), "o", color="#1f6feb", markersize=3, alpha=0.6)
        axis.plot(statistics.fmean(ratios), row, "|", color="#1f6feb", markersize=11)
    axis.axvline(1.0, color="#666666", linewidth=1)
    axis.set_yticks(range(len(arms)), arms, fontsize=8)
    axis.set_xlabel("loss over the fine-tuned float twin's")
    axis.grid(alpha=0.2)
    figure.tight_layout()
    figure.savefig(path, dpi=80, bbox_inches="tight")
    plt.close(figure)
