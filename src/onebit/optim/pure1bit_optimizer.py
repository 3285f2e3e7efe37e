"""The optimizer of pure training: AdamW for what is a float, deposits and moves for codes.

What shaped it: it must be a torch optimizer to transformers, TRL, accelerate and every scheduler, so the rate of the
codes is read from the `lr` of a group whenever it is needed, and backward passes need nothing but the weights. A
gradient is deposited in the backward pass when a step has one; when it has several, they are summed and deposited in
`step`, as one large batch would be. Whether it has several is seen in the first step, which therefore sums in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from onebit.errors import ConfigError, OnebitError
from onebit.optim.pure_deposit import eta_from_lr
from onebit.optim.pure_rules import Rule, rule_from
from onebit.quant.spec import check_name

__all__ = ["DEFAULT_ACCUMULATION", "Accumulation", "FiringWeight", "Pure1BitOptimizer"]

Accumulation = Literal["bfloat16", "int8", "deposit"]
DEFAULT_ACCUMULATION: Accumulation = "int8"
_FUSED = ("cpu", "cuda")  # where AdamW can be one operation for all small parameters instead of ten for each


class FiringWeight(Protocol):
    """A matrix of codes with counters; `onebit.nn.PureWeight` is one."""

    log_scale: torch.nn.Parameter
    is_binary: bool
    received: int  # gradients since the last step

    def attach(self, driver: Any, tensor: int) -> None: ...
    def detach(self) -> None: ...
    def settle(self) -> None: ...
    def forget(self) -> None: ...
    @staticmethod
    def fire_all(weights: Sequence[Any]) -> None: ...
    def mean_size(self) -> float: ...
    def hand_over_counters(self) -> Tensor: ...


class Pure1BitOptimizer(torch.optim.AdamW):
    """AdamW for the parameters of `groups`; the weights' scales are a group of their own without decay.

    weights: number among the random numbers -> weight. lr: AdamW's rate. eta: the share of the threshold that an update
    of size 1 deposits, at the rate `lr`; None: 2 lr / mean|W| of each matrix (lr / mean|W| for binary). Both follow the
    `lr` of their group, so that any scheduler drives them together.

    gradient_accumulation_steps: backward passes in a step; None finds out in the first step whether it is more than
    one. accumulation: what they are summed in, to be deposited once: "int8" (1.03 bytes a weight while a step lasts,
    scaled by blocks) or "bfloat16" (2); "deposit" deposits each at once, with eta / sqrt(steps): no memory, and worse.

    rule: what moves codes instead of the counters, by float32 state of its own (`onebit.optim.pure_rules`). It takes
    over what counters hold and leaves them at 0; its rate is its own and follows the scheduler. Its state is kept with
    that of the weight's log_scale, from the end of the first step on, which therefore sums in any case.

    `zero_grad` drops a step's sum as it drops gradients. Codes, counters and moments are in the model's state_dict.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        weights: Mapping[int, FiringWeight],
        lr: float = 1e-4,
        *,
        eta: float | None = None,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        seed: int = 0,
        gradient_accumulation_steps: int | None = None,
        accumulation: Accumulation = DEFAULT_ACCUMULATION,
        rule: Rule | None = None,
    ) -> None:
        _check(lr, eta, seed, gradient_accumulation_steps, accumulation)
        if rule is not None and (eta is not None or accumulation == "deposit"):
            raise ConfigError(
                f'the rule "{rule.name}" was given with eta or accumulation="deposit", which belong to the counters; '
                "leave them out"
            )
        steps = gradient_accumulation_steps
        scales = {
            "params": [weight.log_scale for weight in weights.values()],
            "weight_decay": 0.0,
            "pure": True,
            "peak_lr": lr,
            "eta": eta,
            "seed": seed,
            "accumulation": accumulation,
            "gradient_accumulation_steps": steps,
            "sums": None if steps is None else steps > 1,
            "rule": None if rule is None else rule.as_dict(),
        }
        self._weights = dict(weights)
        groups = [{**group, "params": list(group["params"])} for group in (*groups, scales)]
        fused = all(parameter.device.type in _FUSED for group in groups for parameter in group["params"]) or None
        super().__init__(groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)
        for number, weight in self._weights.items():
            weight.attach(self, number)

    @property
    def weights(self) -> tuple[Any, ...]:
        """The matrices of codes that this optimizer moves."""
        return tuple(self._weights.values())

    @property
    def seed(self) -> int:
        """Of the random numbers that deposits are rounded with."""
        return int(self._pure_group()["seed"])

    @property
    def accumulation(self) -> str:
        """What a step's gradients are summed in."""
        return str(self._pure_group()["accumulation"])

    @property
    def rule(self) -> Rule | None:
        """What moves the codes; None: the counters."""
        kept = self._pure_group().get("rule")
        return None if kept is None else rule_from(kept)

    def rule_state(self, weight: FiringWeight) -> dict[str, Tensor]:
        """The rule's state for this weight, made when it is first asked for."""
        rule, state = self.rule, self.state[weight.log_scale]
        assert rule is not None
        if "codes" not in state:
            state["codes"] = rule.start(weight.hand_over_counters())
        made: dict[str, Tensor] = state["codes"]
        return made

    def eta(self, weight: FiringWeight) -> float:
        """The share of the threshold that an update of size 1 deposits into this weight now.

        It follows the square root of what a scheduler makes of the rate: noise fires a counter eta^2 times a step, so
        that codes settle as the rate falls, no sooner. For a rule that is not the counters': the share of its rate.
        """
        group = self._pure_group()
        share = float(group["lr"] / group["peak_lr"])
        if group.get("rule") is not None:
            return share
        share = share**0.5
        if group["accumulation"] == "deposit":
            share /= (group["gradient_accumulation_steps"] or 1) ** 0.5
        if group["eta"] is not None:
            return float(group["eta"] * share)
        return eta_from_lr(group["peak_lr"] * share, weight.mean_size(), is_binary=weight.is_binary)

    def set_eta(self, eta: float) -> None:
        """Take another eta at the peak of the schedule, for all weights, as the argument `eta` would have set it."""
        _check_eta(eta)
        self._pure_group()["eta"] = eta

    def deposits_at_once(self, weight: FiringWeight) -> bool:
        """Whether the gradient that this weight received is deposited in the backward pass; False: it is summed."""
        group = self._pure_group()
        if group["accumulation"] == "deposit":
            return True
        if group["sums"] is False and weight.received > 1:
            raise OnebitError(
                "a second gradient came before the optimizer's step, after the first was deposited; give "
                "gradient_accumulation_steps to create_pure1bit_optimizer: the number of backward passes in a step, "
                "or 2 for a model that uses a layer more than once"
            )
        if group.get("rule") is not None and not self.state[weight.log_scale]:
            return False  # AdamW makes the state of a parameter in its own step, and expects to find none
        return group["sums"] is False

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """AdamW's step, then deposit what was summed and move the codes whose counters are full."""
        loss: float | None = super().step(closure)
        group = self._pure_group()
        received = max((weight.received for weight in self._weights.values()), default=0)
        firing = [
            weight
            for weight in self._weights.values()
            if weight.received or group.get("rule") is None  # a rule would go on with the gradient of the step before
        ]
        for weight in self._weights.values():
            weight.settle()
        if firing:
            firing[0].fire_all(firing)
        if group["sums"] is None and received:
            group["sums"] = received > 1
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As every optimizer; a sum of gradients that no step deposited is dropped too."""
        super().zero_grad(set_to_none)
        for weight in self._weights.values():
            weight.forget()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As every optimizer; the number of backward passes in a step stays as it was given to this one.

        A run that goes on with another number of processes has another.
        """
        steps = self._pure_group()["gradient_accumulation_steps"]
        super().load_state_dict(state_dict)
        if steps is not None:
            self._pure_group().update(gradient_accumulation_steps=steps, sums=steps > 1)

    def detach(self) -> None:
        """Let go of the weights: backward passes change nothing any more."""
        for weight in self._weights.values():
            weight.detach()
        self._weights = {}

    def _pure_group(self) -> dict[str, Any]:
        group: dict[str, Any] = self.param_groups[-1]
        return group


def _check(lr: float, eta: float | None, seed: int, steps: int | None, accumulation: str) -> None:
    check_name("accumulation", accumulation, get_args(Accumulation))
    if not lr > 0:
        raise ConfigError(f"lr is {lr}, expected a positive number; a scheduler may take it to 0")
    if eta is not None:
        _check_eta(eta)
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed is {seed}, expected a number in [0, 2^32)")
    if steps is not None and steps < 1:
        raise ConfigError(f"gradient_accumulation_steps is {steps}, expected a positive number, or None")


def _check_eta(eta: float) -> None:
    if not eta > 0:
        raise ConfigError(f"eta is {eta}, expected a positive number, or None for 2 lr / mean|W|")
