"""What a distillation run can be told beyond what fine-tuning can."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from onebit.errors import ConfigError
from onebit.train.sft_settings import SftSettings

__all__ = ["DistillSettings"]


@dataclass(frozen=True, kw_only=True)
class DistillSettings(SftSettings):
    """One run: loss = hard_label_weight CE + (1 - hard_label_weight) KL + relation_weight relations.

    teacher_name_or_path: a float model of the student's tokenizer; model_name_or_path is the student, often the same.
    top_k: how many of the teacher's log-probabilities are kept for each token. token_scaled: tokens count by the
    teacher's own loss (TSLD). relation_layer: counted from 0, or from the end; relation_heads None: the key-value heads
    of the student. The teacher runs once, into teacher_cache_dir (None: beside the prepared rows), unless relations are
    asked for: then its layers up to that one run at every step too. The defaults, half labels and ternary from the
    first step, are those that came nearest to the float twin in benchmarks/finetune.py.

    Raises:
        ConfigError: a value that cannot work, named as the flag is.
    """

    teacher_name_or_path: str
    teacher_revision: str | None = None
    teacher_dtype: str = "auto"
    teacher_cache_dir: Path | None = None
    temperature: float = 1.0
    top_k: int = 64
    hard_label_weight: float = 0.5
    lambda_warmup_frac: float = 0.0
    token_scaled: bool = False
    relation_weight: float = 0.0
    relation_layer: int = -1
    relation_heads: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("pure", not self.pure, "left out: distillation trains latents")
        self._check("temperature", math.isfinite(self.temperature) and self.temperature > 0, "more than 0")
        self._check("top_k", self.top_k >= 1, "at least 1")
        self._check("hard_label_weight", 0.0 <= self.hard_label_weight <= 1.0, "in [0, 1]")
        self._check("relation_weight", math.isfinite(self.relation_weight) and self.relation_weight >= 0, "at least 0")
        self._check("relation_heads", self.relation_heads is None or self.relation_heads >= 1, "at least 1")
        if self.hard_label_weight == 1.0 and self.relation_weight == 0.0:
            raise ConfigError(
                "--hard-label-weight 1 without --relation-weight asks the teacher for nothing; that is onebit sft"
            )

    @property
    def teacher_cache(self) -> Path:
        """Where the teacher's answers are kept."""
        return self.teacher_cache_dir if self.teacher_cache_dir is not None else self.cache / "teacher"
