"""What a run of pure training can be told, with the same names for `onebit sft` and `onebit train`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from onebit.errors import ConfigError
from onebit.optim.pure1bit_optimizer import DEFAULT_ACCUMULATION, Accumulation
from onebit.quant.counters import CounterName

__all__ = ["PureOptions"]


@dataclass(frozen=True, kw_only=True)
class PureOptions:
    """pure: train codes and counters instead of latents (`pure_run`). pure_counter: as
    `replace_linear_with_pure1bit_linear`; pure_accumulation, pure_eta: as `create_pure1bit_optimizer`;
    pure_flip_budget: as `eta_from_flip_budget`, with the run's own schedule."""

    pure: bool = False
    pure_counter: str = "int8"
    pure_accumulation: str = DEFAULT_ACCUMULATION
    pure_eta: float | None = None
    pure_flip_budget: float | None = None

    def check_pure(self, refused: Mapping[str, str]) -> None:
        """ConfigError for values that cannot work. refused: settings that must not be given beside, and why."""
        for name, known in (("pure_counter", get_args(CounterName)), ("pure_accumulation", get_args(Accumulation))):
            if (value := getattr(self, name)) not in known:
                raise ConfigError(f"{_flag(name)} is {value!r}; it must be one of {', '.join(known)}")
        for name in ("pure_eta", "pure_flip_budget"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{_flag(name)} is {value!r}; it must be a positive number")
        if self.pure_eta is not None and self.pure_flip_budget is not None:
            raise ConfigError("--pure-flip-budget computes what --pure-eta sets; drop one of them")
        for name, why in refused.items():
            if getattr(self, name):
                raise ConfigError(f"{_flag(name)} {why}; drop it or --pure")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
