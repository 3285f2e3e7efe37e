"""PureWeight: a matrix of codes that is trained: it takes gradients, deposits them in its counters, and moves codes.

What it is made of, and what of that is kept in a state_dict, is `CodedMatrix`; here is what it does while an optimizer
drives it. Backward passes find it by its handle.

Shape suffixes: O outputs, I inputs.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from onebit.nn.coded_matrix import CodedMatrix
from onebit.nn.pure_gradient_sum import BFloat16Sum, GradientSum, Int8Sum
from onebit.nn.pure_kernels import Firing, PureKernels, kernels_for
from onebit.nn.pure_storage import pack_codes
from onebit.optim.pure_deposit import Factors
from onebit.optim.pure_rules import Rule
from onebit.quant.philox import random16
from onebit.quant.weights import expand_scale

__all__ = ["Driver", "PureWeight", "attached_weight"]

_HANDLES = itertools.count(1)
# A compiled backward pass cannot hold a Python object; it names the weight by its handle. Only training weights are
# here, and only as long as they live.
_ATTACHED: weakref.WeakValueDictionary[int, PureWeight] = weakref.WeakValueDictionary()


class Driver(Protocol):
    """What a weight asks of the optimizer that trains it."""

    @property
    def seed(self) -> int: ...

    @property
    def accumulation(self) -> str:
        """What a step's gradients are summed in: "bfloat16" or "int8"."""
        ...

    def eta(self, weight: Any) -> float:
        """The share of the threshold that an update of size 1 deposits now."""
        ...

    def deposits_at_once(self, weight: Any) -> bool:
        """Whether a gradient is deposited as it comes; False: it is added to the sum of the step."""
        ...

    @property
    def rule(self) -> Rule | None:
        """What moves codes by a state that the driver holds; None: the counters do."""
        ...

    def rule_state(self, weight: Any) -> dict[str, Tensor]:
        """The rule's state for this weight."""
        ...


class PureWeight(CodedMatrix):
    """A `CodedMatrix` that an optimizer may train; until it is attached to one, gradients leave it as it is."""

    driver: Driver | None
    tensor: int
    handle: int
    received: int
    has_moments: bool | None
    gradient_sum: GradientSum | None
    moves: Tensor | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._detach()

    def attach(self, driver: Driver, tensor: int) -> None:
        """Take gradients from now on, for this optimizer; tensor: its number among the random numbers."""
        self.__dict__.update(_UNATTACHED, driver=driver, tensor=tensor, handle=next(_HANDLES))
        _ATTACHED[self.handle] = self

    def detach(self) -> None:
        """Take no more gradients; what was summed and not deposited is dropped."""
        _ATTACHED.pop(self.handle, None)
        self._detach()

    def take(self, g_OI: Tensor) -> None:
        """The gradient dL/dW of one use, [O, I]: deposited at once, or added to the step's sum."""
        if self.driver is None:
            return
        self.received += 1
        g_OI = self.rows.reduced(g_OI)
        if self.driver.deposits_at_once(self):
            self.deposit(g_OI, self.driver.eta(self))
            return
        total = self._new_sum(g_OI) if self.gradient_sum is None else self.gradient_sum
        total.add(g_OI)
        self.__dict__["gradient_sum"] = total

    def settle(self) -> None:
        """Deposit the step's sum, if there is one."""
        if self.driver is not None and self.gradient_sum is not None:
            self.deposit(self.gradient_sum.total(), self.driver.eta(self))
        self.forget()

    def forget(self) -> None:
        """Drop the gradients of this step that are not deposited."""
        self.__dict__.update(gradient_sum=None, received=0)

    def deposit(self, g_OI: Tensor, eta: float) -> None:
        """Add a gradient to the counters; of all processes that train together, who end with the same integers.

        Where rows are divided, it is the sum of all processes' gradients already, this process's rows of it.
        """
        driver, rows = self.driver, self.rows
        assert driver is not None
        rule = driver.rule
        if not rows.is_part and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(g_OI)  # a sum serves as a mean would: counters do not depend on its size
            if rule is not None:
                g_OI = g_OI / dist.get_world_size()
        if rule is not None:
            rule.deposit(driver.rule_state(self), g_OI.float(), eta)
            return
        kernels = kernels_for(g_OI)
        self.__dict__["has_moments"] = True
        counters_OB, deposits, moments = self.counters, self.deposits, (self.row_moments, self.column_moments)
        random: dict[str, Any] = {"seed": driver.seed, "tensor": self.tensor, "step": deposits}
        if not rows.is_part and kernels.deposit_whole(counters_OB, moments, g_OI, eta, self.counter, **random):
            return
        deposits.add_(1)
        factors = rows.own_factors(self._update_moments(kernels, moments, g_OI, deposits))
        energy = rows.sum(kernels.update_energy(g_OI, factors))
        mean_square = energy / (self.out_features * self.in_features)
        kernels.deposit(counters_OB, g_OI, factors, eta, mean_square, self.counter, **random, first_row=rows.first)

    @staticmethod
    def fire_all(weights: Sequence[PureWeight]) -> None:
        """Move the codes whose counters are full, or that another rule moves. The only place where codes change."""
        alike: dict[Any, list[tuple[PureWeight, Firing]]] = {}
        for weight in weights:
            rule = None if weight.driver is None else weight.driver.rule
            if rule is None:
                codes_OB = weight.codes
                matrix = codes_OB, weight.counters, weight.in_features
                alike.setdefault((codes_OB.device, weight.counter.name, weight.is_binary), []).append((weight, matrix))
            else:
                weight._fire_by(rule)
        for group in alike.values():
            first, (codes_OB, *_) = group[0]
            matrices = [matrix for _, matrix in group]
            moves_N = kernels_for(codes_OB).fire(matrices, first.counter, is_binary=first.is_binary)
            for (weight, _), moves in zip(group, moves_N.unbind(), strict=True):
                weight.__dict__["moves"] = moves

    def _fire_by(self, rule: Rule) -> None:
        assert self.driver is not None
        state, seed, rows = self.driver.rule_state(self), self.driver.seed, range(self.out_features)
        quantized = self.quantized()
        codes_OI = quantized.codes_OI.float()
        moved_OI = rule.fire(
            state,
            codes_OI,
            expand_scale(quantized.scale.float(), self.spec, self.in_features),
            self.driver.eta(self),
            lambda: random16(seed, self.tensor, state["count"].long(), rows, self.in_features, self.device),
            2 if self.is_binary else 1,
        )
        self.codes.copy_(pack_codes(moved_OI.to(torch.int8), is_binary=self.is_binary))
        self.__dict__["moves"] = (moved_OI != codes_OI).sum()

    def __getstate__(self) -> dict[str, Any]:
        # A copy is another weight: no optimizer trains it until it is told to.
        return {**self.__dict__, **_UNATTACHED}

    def _new_sum(self, g_OI: Tensor) -> GradientSum:
        assert self.driver is not None
        if self.driver.accumulation == "bfloat16":
            return BFloat16Sum()
        if self.has_moments is None:
            self.__dict__["has_moments"] = bool(self.deposits > 0)  # asked once, as it waits for a GPU
        if self.has_moments:
            return Int8Sum(self.column_moments)
        moments = self.row_moments.clone(), self.column_moments.clone()  # the first gradient tells its own sizes
        self._update_moments(kernels_for(g_OI), moments, g_OI, self.deposits + 1)
        return Int8Sum(moments[1])

    def _update_moments(
        self, kernels: PureKernels, moments: tuple[Tensor, Tensor], g_OI: Tensor, step: Tensor
    ) -> Factors:
        """As `PureKernels.update_moments`, with the sums of this gradient."""
        peak = self.rows.largest(kernels.peak_of(g_OI))
        sums = self.rows.whole_sums(kernels.square_sums(g_OI, peak, self.out_features))
        return kernels.update_moments(moments, sums, peak, step)

    def _detach(self) -> None:
        self.__dict__.update(_UNATTACHED)


# Beside the module's own attributes, so that nn.Module does not register the optimizer or the sum.
_UNATTACHED: dict[str, Any] = {
    "driver": None,
    "tensor": 0,
    "handle": 0,
    "received": 0,
    "has_moments": None,
    "gradient_sum": None,
    "moves": None,
}


def attached_weight(handle: int) -> PureWeight | None:
    """The weight that an optimizer trains under this handle."""
    return _ATTACHED.get(handle)
