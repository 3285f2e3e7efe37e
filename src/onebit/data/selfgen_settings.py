"""What a self-generation run is told and what it says of itself at the end."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onebit.data.selfgen_model import DTYPES, Sampling
from onebit.errors import ConfigError, nearest_name

__all__ = ["SelfgenResult", "SelfgenSettings", "summary_path"]


@dataclass(frozen=True, kw_only=True)
class SelfgenSettings:
    """One run, with the names of the command line's flags.

    model_path: a model's folder, or the name of one in the Hugging Face cache. prompts: a .txt file (one a line) or a
    .jsonl or .parquet file with a column `prompt`; None: those that come with onebit.

    Raises:
        ConfigError: a value that cannot work, named as the flag is.
    """

    model_path: str
    out: Path
    num: int = 100
    max_new_tokens: int = 512
    seed: int = 42
    batch_size: int = 8
    temperature: float = 0.8
    top_p: float = 0.95
    prompts: Path | None = None
    thinking: bool = False
    device: str = "auto"
    dtype: str = "auto"
    resume: bool = True

    def __post_init__(self) -> None:
        for name in ("num", "max_new_tokens", "batch_size"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        self._check("seed", 0 <= self.seed < 2**63, "in [0, 2^63)")
        self._check("temperature", 0.0 <= self.temperature < float("inf"), "a number of at least 0")
        self._check("top_p", 0.0 < self.top_p <= 1.0, "in (0, 1]")
        self._check("dtype", self.dtype in DTYPES, f"one of {', '.join(DTYPES)}{nearest_name(self.dtype, DTYPES)}")
        if self.out.suffix != ".jsonl":
            proposed = self.out.with_suffix(".jsonl")
            raise ConfigError(f"--out is '{self.out}'; give the name of a .jsonl file: {proposed}")
        if self.out.is_dir():
            raise ConfigError(f"--out '{self.out}' is a folder; give the name of a file in it")

    @property
    def sampling(self) -> Sampling:
        """How answers are drawn."""
        return Sampling(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            thinking=self.thinking,
        )

    def _check(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ConfigError(f"--{name.replace('_', '-')} is {getattr(self, name)!r}; it must be {expected}")


@dataclass(frozen=True, kw_only=True)
class SelfgenResult:
    """What a run wrote. status: complete, interrupted, or short (the model gave too few good answers).

    dropped: how many answers were dropped, by reason. cut_off: kept answers that ended because they had all the tokens
    they might have.
    """

    out: Path
    status: str
    samples: int
    wanted: int
    asked: int
    dropped: dict[str, int]
    cut_off: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The summary as JSON values."""
        return {**asdict(self), "out": str(self.out), "seconds": round(self.seconds, 1)}


def summary_path(out: Path) -> Path:
    """Where the summary of a run lies: beside the data."""
    return out.with_suffix(".summary.json")
