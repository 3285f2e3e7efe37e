"""What a search leaves: the JSON with the map, the Pareto front as CSV, two pictures.

The JSON has the keys of OneBit-LLM's search (config, layer_bit_map, accuracy, perplexity, size_mb, compression_ratio,
search_time_secs, evaluations), and what is needed to judge them.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onebit.formats.atomic import beside, replacing
from onebit.formats.export import config_json
from onebit.models.bit_width_map import BUDGET_KEY, MAP_KEY
from onebit.search.heal import Healed
from onebit.search.pictures import draw_front, draw_layers
from onebit.search.score import Score
from onebit.search.settings import SearchSettings
from onebit.search.trials import Trial, Trials

__all__ = ["SearchResult", "pareto_front", "score_values", "write_json_report", "write_report"]


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """How a search ended. float16_bytes: the file with every matrix at float16, which ratios refer to. checkpoint: its
    fingerprint."""

    settings: SearchSettings
    trials: Trials
    best: Trial
    config: Any
    float16_bytes: int
    seconds: float
    interrupted: bool
    checkpoint: str
    healed: Healed | None = None

    @property
    def levels(self) -> dict[str, str]:
        """The map that was found."""
        return self.trials.space.map_of(self.best.choice)

    @property
    def kept(self) -> Healed | None:
        """The healed model, where healing did good and the model is accurate enough."""
        healed, least = self.healed, self.settings.min_accuracy
        if healed is None or healed.score.accuracy < least or healed.score.loss >= self.best.score.loss:
            return None
        return healed

    @property
    def score(self) -> Score:
        """Of the healed model where it is kept."""
        return self.best.score if self.kept is None else self.kept.score

    @property
    def size(self) -> int:
        """Bytes of the exported file."""
        return self.best.size if self.kept is None else self.kept.size

    def to_dict(self) -> dict[str, Any]:
        """The JSON."""
        settings, budget = self.settings, self.trials.budget
        values: dict[str, Any] = {
            "config": config_json(self.config) | {"bit_width_map": self.levels},
            MAP_KEY: self.levels,
            **score_values(self.score),
            "size_mb": self.size / 1e6,
            "size_bytes": self.size,
            "compression_ratio": self.float16_bytes / self.size,
            "search_time_secs": round(self.seconds, 3),
            "evaluations": len(self.trials.done),
            "measured": self.trials.measured,
            "interrupted": self.interrupted,
            "max_size_mb": settings.max_size_mb,
            BUDGET_KEY: budget.max_bytes,
            "min_accuracy": settings.min_accuracy,
            "max_evaluations": settings.max_evaluations,
            "strategy": settings.strategy,
            "seed": settings.seed,
            "levels": list(self.trials.space.levels),
            "units": settings.units,
            "checkpoint_sha256": self.checkpoint,
            "val_data": str(settings.val_data),
            "tokens": self.score.tokens,
        }
        if self.healed is not None:
            values["healed"] = {
                "checkpoint": str(self.healed.folder),
                "steps": settings.finetune_steps,
                "data": settings.data,
                "kept": self.kept is not None,
                "before": score_values(self.best.score),
                "after": score_values(self.healed.score),
            }
        return values


def score_values(score: Score) -> dict[str, float | None]:
    """Of a score as JSON has it, which knows no infinity."""
    loss = score.loss if math.isfinite(score.loss) else None
    return {"loss": loss, "perplexity": score.perplexity, "accuracy": score.accuracy}


def pareto_front(trials: Iterable[Trial]) -> list[Trial]:
    """Trials that no other beats in both size and loss, from the smallest file on."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: (trial.size, trial.score.loss, trial.choice)):
        if not front or trial.score.loss < front[-1].score.loss:
            front.append(trial)
    return front


def write_report(result: SearchResult) -> None:
    """Write the JSON to --output; pareto.csv, and with matplotlib pareto.png and layers.png, to its folder."""
    settings, trials = result.settings, result.trials
    write_json_report(result)
    front = pareto_front(trials.done.values())
    _write_csv(settings.folder / "pareto.csv", front, trials)
    draw_front(settings.folder / "pareto.png", front, result.best, trials)
    draw_layers(settings.folder / "layers.png", result.best.choice, trials.space)


def write_json_report(result: SearchResult) -> None:
    """Write the JSON to --output."""
    with replacing(result.settings.output) as out:
        out.write((json.dumps(result.to_dict(), indent=2, allow_nan=False) + "\n").encode())


def _write_csv(path: Path, front: list[Trial], trials: Trials) -> None:
    space = trials.space
    with beside(path) as file, file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["size_bytes", "loss", "accuracy", *(unit.name for unit in space.units)])
        for trial in front:
            levels = [space.levels[index] for index in trial.choice]
            writer.writerow([trial.size, trial.score.loss, trial.score.accuracy, *levels])
