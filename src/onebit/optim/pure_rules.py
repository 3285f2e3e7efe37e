"""Rules that move codes by floats instead of integer counters: to compare with, and to choose.

=================  ======  ==========================================================  ===============================
rule               bytes*  how codes move                                              source
=================  ======  ==========================================================  ===============================
`Shadow`           12      the level nearest to a float weight that AdamW trains       straight-through training
`ShadowSGD`        4       the same, trained by gradient descent
`GradientBuffer`   4       a level, where the sum of gradients passes a threshold;     integrate and fire
                           the sum starts again from 0
`Bop`              4       a level, where an average of gradients passes a threshold   Helwegen et al., arXiv 1906.02107
`DQT`              8       AdamW's step on code * scale, rounded at random to a level  arXiv 2412.04787
=================  ======  ==========================================================  ===============================

(*) of float32 state for each weight. A rule sees a matrix twice in a step: `deposit` takes the gradient of W = codes *
scale into the state, in the backward pass; `fire` gives the new codes, in the optimizer's step. `share` is what a
scheduler has made of the learning rate, 1 at its peak: float32 [].

Shape suffixes: O outputs, I inputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from onebit.errors import ConfigError
from onebit.quant.counters import round_stochastically

__all__ = ["DQT", "Bop", "GradientBuffer", "Rule", "Shadow", "ShadowSGD", "rule_from"]

State = dict[str, Tensor]

_EPS = 1e-8
_SQUARE_DECAY = 0.99  # of Bop's mean square of a matrix's gradients


class Rule(ABC):
    """How codes move; a frozen dataclass of plain numbers. ConfigError for numbers that mean nothing."""

    name: ClassVar[str]

    def as_dict(self) -> dict[str, Any]:
        """Name and numbers, for a checkpoint; `rule_from` reads it."""
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]

    @abstractmethod
    def start(self, w_OI: Tensor) -> State:
        """The state before the first step; w_OI: the latents that the weight began with, as far as they are known."""

    @abstractmethod
    def deposit(self, state: State, g_OI: Tensor, share: float) -> None:
        """Take the gradient of a step into the state, float32 [O, I]; share: of the rate, what the scheduler leaves."""

    @abstractmethod
    def fire(
        self, state: State, codes_OI: Tensor, scale: Tensor, share: float, random: Callable[[], Tensor], gap: int
    ) -> Tensor:
        """New codes from codes, float32 [O, I] both.

        scale: [], [O, 1] or [O, I]. random: int16 [O, I] of `philox.random16`. gap: from one code to the next, 1 for
        ternary and 2 for binary.
        """


@dataclass(frozen=True)
class Shadow(Rule):
    """A float weight beside each code, trained by AdamW at `lr`; the code is the level nearest to it."""

    name: ClassVar[str] = "shadow"
    lr: float
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_positive("lr", self.lr)

    def start(self, w_OI: Tensor) -> State:
        return {"shadow": w_OI, **_start_moments(w_OI)}

    def deposit(self, state: State, g_OI: Tensor, share: float) -> None:
        _update_moments(state, g_OI, self.betas)
        rate = self.lr * share
        state["shadow"].mul_(1 - rate * self.weight_decay).sub_(_adam_update(state, self.betas).mul_(rate))

    def fire(
        self, state: State, codes_OI: Tensor, scale: Tensor, share: float, random: Callable[[], Tensor], gap: int
    ) -> Tensor:
        return _nearest_codes(state["shadow"] / scale, gap)


@dataclass(frozen=True)
class ShadowSGD(Rule):
    """A float weight beside each code, shadow -= lr * gradient; the code is the level nearest to it."""

    name: ClassVar[str] = "shadow_sgd"
    lr: float

    def __post_init__(self) -> None:
        _check_positive("lr", self.lr)

    def start(self, w_OI: Tensor) -> State:
        return {"shadow": w_OI}

    def deposit(self, state: State, g_OI: Tensor, share: float) -> None:
        state["shadow"].sub_(g_OI * (self.lr * share))

    def fire(
        self, state: State, codes_OI: Tensor, scale: Tensor, share: float, random: Callable[[], Tensor], gap: int
    ) -> Tensor:
        return _nearest_codes(state["shadow"] / scale, gap)


@dataclass(frozen=True)
class GradientBuffer(Rule):
    """A code moves one level against the sum of its gradients where |sum| > threshold; that sum starts again from 0.

    threshold: in units of the raw gradients, which depend on the layer and on the scale of the loss. There is no rate
    that a scheduler could change.
    """

    name: ClassVar[str] = "gradient_buffer"
    threshold: float

    def __post_init__(self) -> None:
        _check_positive("threshold", self.threshold)

    def start(self, w_OI: Tensor) -> State:
        return {"sum": torch.zeros_like(w_OI)}

    def deposit(self, state: State, g_OI: Tensor, share: float) -> None:
        state["sum"].add_(g_OI)

    def fire(
        self, state: State, codes_OI: Tensor, scale: Tensor, share: float, random: Callable[[], Tensor], gap: int
    ) -> Tensor:
        sum_OI = state["sum"]
        full_OI = sum_OI.abs() > self.threshold
        codes_OI = _move_against(codes_OI, sum_OI, full_OI, gap)
        sum_OI.masked_fill_(full_OI, 0.0)
        return codes_OI


@dataclass(frozen=True)
class Bop(Rule):
    """A code moves one level against m <- (1 - gamma) m + gamma g where |m| > tau; m goes on as it is.

    tau is in units of the running root mean square of the matrix's gradients, so that one number serves all matrices.
    gamma stays, whatever the scheduler does: decayed with the learning rate, at tau = 0.2, a small model ended 200
    steps 0.15 bits per byte higher. The paper decays it.
    """

    name: ClassVar[str] = "bop"
    tau: float
    gamma: float = 1e-2

    def __post_init__(self) -> None:
        _check_positive("tau", self.tau)
        if not 0 < self.gamma <= 1:
            raise ConfigError(f"gamma is {self.gamma}, expected a number in (0, 1]")

    def start(self, w_OI: Tensor) -> State:
        return {"average": torch.zeros_like(w_OI), "square": w_OI.new_zeros(()), "count": w_OI.new_zeros(())}

    def deposit(self, state: State, g_OI: Tensor, share: float) -> None:
        state["count"].add_(1)
        state["square"].lerp_(g_OI.square().mean(), 1 - _SQUARE_DECAY)
        state["average"].lerp_(g_OI, self.gamma)

    def fire(
        self, state: State, codes_OI: Tensor, scale: Tensor, share: float, random: Callable[[], Tensor], gap: int
    ) -> Tensor:
        usual = (state["square"] / (1 - _SQUARE_DECAY ** state["count"])).sqrt()
        average_OI = state["average"]
        return _move_against(codes_OI, average_OI, average_OI.abs() > self.tau * usual, gap)


@dataclass(frozen=True)
class DQT(Rule):
    """AdamW's step at `lr` on code * scale, rounded at random to a level each time: there is no float weight."""

    name: ClassVar[str] = "dqt"
    lr: float
    betas: tuple[float, float] = (0.9, 0.98)

    def __post_init__(self) -> None:
        _check_positive("lr", self.lr)

    def start(self, w_OI: Tensor) -> State:
        return _start_moments(w_OI)

    def deposit(self, state: State, g_OI: Tensor, share: float) -> None:
        _update_moments(state, g_OI, self.betas)

    def fire(
        self, state: State, codes_OI: Tensor, scale: Tensor, share: float, random: Callable[[], Tensor], gap: int
    ) -> Tensor:
        moved_OI = codes_OI - _adam_update(state, self.betas) * (self.lr * share) / scale
        # Codes are gap * n - 1 with n = 0, 1 or (ternary) 2.
        return round_stochastically((moved_OI.clamp_(-1, 1) + 1) / gap, random()).mul_(gap).sub_(1)


_RULES: tuple[type[Rule], ...] = (Shadow, ShadowSGD, GradientBuffer, Bop, DQT)


def rule_from(kept: Mapping[str, Any]) -> Rule:
    """The rule of `Rule.as_dict`."""
    numbers = dict(kept)
    name = numbers.pop("name")
    return next(kind for kind in _RULES if kind.name == name)(**numbers)


def _check_positive(name: str, number: float) -> None:
    if not number > 0:
        raise ConfigError(f"{name} is {number}, expected a positive number")


def _start_moments(w_OI: Tensor) -> State:
    return {"mean": torch.zeros_like(w_OI), "square": torch.zeros_like(w_OI), "count": w_OI.new_zeros(())}


def _update_moments(state: State, g_OI: Tensor, betas: tuple[float, float]) -> None:
    state["count"].add_(1)
    state["mean"].lerp_(g_OI, 1 - betas[0])
    state["square"].mul_(betas[1]).addcmul_(g_OI, g_OI, value=1 - betas[1])


def _adam_update(state: State, betas: tuple[float, float]) -> Tensor:
    mean_share, square_share = (1 - beta ** state["count"].double() for beta in betas)
    size_OI = (state["square"] / square_share.float()).sqrt_().add_(_EPS)
    return (state["mean"] / mean_share.float()).div_(size_OI)


def _nearest_codes(w_OI: Tensor, gap: int) -> Tensor:
    """The levels nearest to weights over scale; the middle between two goes to 0, or to +1 where there is no 0."""
    if gap == 2:
        return torch.where(w_OI >= 0, 1.0, -1.0)
    return w_OI.round().clamp_(-1, 1)


def _move_against(codes_OI: Tensor, direction_OI: Tensor, moved_OI: Tensor, gap: int) -> Tensor:
    return (codes_OI - gap * direction_OI.sign() * moved_OI).clamp_(-1, 1)
