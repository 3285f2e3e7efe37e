"""PureWeight: a matrix that is never a float between steps: packed codes, a scale, and an integer counter per code.

It is a module, so that layers whose weights are tied share one, and it stands where a layer's `weight` stood. Its
parameter is the logarithm of the scale: AdamW's step is then a change by a share, whatever the size of the weights,
where a step of 1e-3 on a scale of 0.02 would be a twentieth. Codes and counters are buffers: they belong to the
state_dict, move with the model, and no cast touches them; the scale and the moments stay float32 too.

==============  ============================================  =======================
name            tensor                                        bytes a weight
==============  ============================================  =======================
codes           uint8 [O, B], layout `ternary` or `binary`    1/4 or 1/8
counters        int8 [O, I]; int4: uint8 [O, B], layout       1; 1/2; 1/4 (while a
                `int4`; none: uint8 [O, B], `ternary`         step lasts it matters)
log_scale       float32 [], [O] or [O, G], a parameter        as its gradient, moments
row_moments     float32 [O]                                   4 / I
column_moments  float32 [I]                                   4 / O
deposits        int64 [], how many there were
mean_magnitude  float32 [], mean |W| of the first latents
==============  ============================================  =======================

Shape suffixes: O outputs, I inputs, B bytes of a row, G groups of inputs.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from onebit.errors import OnebitError
from onebit.nn.pure_gradient_sum import BFloat16Sum, GradientSum, Int8Sum
from onebit.nn.pure_kernels import kernels_for
from onebit.nn.pure_sharding import Rows, RowSharded
from onebit.nn.pure_storage import (
    pack_codes,
    pack_counters,
    packed_width,
    unpack_codes,
    unpack_counters,
)
from onebit.optim.pure_deposit import (
    Factors,
    deposit_rule,
    moment_factors,
    row_chunks,
    update_moments,
)
from onebit.optim.pure_rules import Rule
from onebit.quant import Quantized, WeightQuantizer, quantize
from onebit.quant.counters import Counter, start_counters
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

    def eta(self, weight: Any) -> Tensor:
        """The share of the threshold that an update of size 1 deposits now, float32 []."""
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


class PureWeight(RowSharded):
    """Codes, counters and scale of one matrix [out_features, in_features]; all zeros until it is given something."""

    DIVIDED = ("codes", "counters")
    SHARED = "deposits"

    codes: Tensor
    counters: Tensor
    row_moments: Tensor
    column_moments: Tensor
    deposits: Tensor
    mean_magnitude: Tensor
    driver: Driver | None
    tensor: int
    handle: int
    received: int
    gradient_sum: GradientSum | None
    moves: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        spec: WeightQuantizer,
        counter: Counter,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.rows = Rows(out_features)
        self.spec, self.counter = spec, counter
        self.is_binary = spec.quantizer == "binary"
        width = packed_width(in_features, 1 if self.is_binary else 2)
        self.register_buffer("codes", torch.zeros(out_features, width, dtype=torch.uint8, device=device))
        empty = torch.zeros(1, in_features, dtype=torch.int8, device=device)
        self.register_buffer("counters", pack_counters(empty, counter).repeat(out_features, 1))
        self.register_buffer("row_moments", torch.zeros(out_features, device=device))
        self.register_buffer("column_moments", torch.zeros(in_features, device=device))
        self.register_buffer("deposits", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("mean_magnitude", torch.ones((), device=device))
        groups = -(-in_features // spec.group_size) if spec.group_size is not None else 0
        shape = {"per_tensor": (), "per_row": (out_features,), "per_group": (out_features, groups)}[spec.granularity]
        self.log_scale = nn.Parameter(torch.zeros(shape, device=device))
        self._detach()

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.out_features, self.in_features))

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def dtype(self) -> torch.dtype:
        """What a caller that casts its inputs to a layer's weight should cast to: the scale's."""
        return self.log_scale.dtype

    @torch.no_grad()
    def set_latents(self, w_OI: Tensor) -> None:
        """Round latents [O, I] to codes and scales, and keep what that lost in the counters.

        Raises OnebitError for NaN and infinity.
        """
        quantized = quantize(w_OI, self.spec)
        self.set_codes(quantized)
        self.mean_magnitude.copy_(w_OI.float().abs().mean())
        scale = expand_scale(quantized.scale.float(), self.spec, self.in_features)
        offset = _centre(w_OI, self.spec) if self.is_binary and self.spec.center else 0.0
        for part in self._parts():
            scale_part = scale[part] if scale.ndim else scale
            offset_part = offset[part] if isinstance(offset, Tensor) and offset.shape[0] > 1 else offset
            w = (w_OI[part].float() - offset_part) / scale_part
            counters = start_counters(w, quantized.codes_OI[part], self.counter, is_binary=self.is_binary)
            self.counters[part] = pack_counters(counters, self.counter)

    @torch.no_grad()
    def set_codes(self, quantized: Quantized) -> None:
        """Take over codes and scales; counters start at 0. Raises OnebitError for codes or scales of another kind."""
        codes_OI, scale = quantized.codes_OI, quantized.scale
        allowed = (codes_OI.abs() == 1) if self.is_binary else (codes_OI.abs() <= 1)
        if tuple(codes_OI.shape) != tuple(self.shape) or scale.shape != self.log_scale.shape or not bool(allowed.all()):
            raise OnebitError(
                f"codes {tuple(codes_OI.shape)} with scales {tuple(scale.shape)} cannot be those of this weight; "
                f"expected {'binary' if self.is_binary else 'ternary'} codes {tuple(self.shape)} "
                f"with scales {tuple(self.log_scale.shape)}"
            )
        if self.rows.is_part:
            raise OnebitError("the rows of this weight are divided over processes; give it codes before that")
        if not bool((scale > 0).all()):
            raise OnebitError("a scale is not positive; scales multiply the codes and carry no sign")
        self.codes.copy_(pack_codes(codes_OI.to(torch.int8), is_binary=self.is_binary))
        self.counters.copy_(pack_counters(torch.zeros_like(codes_OI[:1], dtype=torch.int8), self.counter))
        self.log_scale.copy_(scale.float().log())
        self.mean_magnitude.copy_(scale.float().mean())

    def quantized(self) -> Quantized:
        """Codes and scales as they are exported."""
        with torch.no_grad():
            scale = self.log_scale.float().exp()
            scale = scale.half() if self.spec.granularity == "per_group" else scale
            codes_OI = unpack_codes(self.rows.whole(self.codes), self.in_features, is_binary=self.is_binary)
            return Quantized(codes_OI, scale, self.spec)

    def counts(self) -> Tensor:
        """The counters as int8 [O, I]."""
        return unpack_counters(self.rows.whole(self.counters), self.in_features, self.counter)

    # -- training ------------------------------------------------------------------------------------------------------

    def attach(self, driver: Driver, tensor: int) -> None:
        """Take gradients from now on, for this optimizer; tensor: its number among the random numbers."""
        self.__dict__.update(driver=driver, tensor=tensor, handle=next(_HANDLES), received=0)
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

    @torch.no_grad()
    def deposit(self, g_OI: Tensor, eta: Tensor) -> None:
        """Add a gradient to the counters; of all processes that train together, who end with the same integers.

        Where rows are divided, it is the sum of all processes' gradients already, this process's rows of it.
        """
        assert self.driver is not None
        if not self.rows.is_part and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(g_OI)  # a sum serves as a mean would: counters do not depend on its size
            if self.driver.rule is not None:
                g_OI = g_OI / dist.get_world_size()
        if self.driver.rule is not None:
            self.driver.rule.deposit(self.driver.rule_state(self), g_OI.float(), eta)
            return
        kernels = kernels_for(g_OI)
        self.deposits += 1
        moments, factors = self._new_moments(g_OI, self.deposits)
        self.row_moments.copy_(moments[0])
        self.column_moments.copy_(moments[1])
        factors = self.rows.own_factors(factors)
        energy = self.rows.sum(kernels.update_energy(g_OI, factors))
        mean_square = energy / (self.out_features * self.in_features)
        coefficient, power = deposit_rule(self.counter, eta, mean_square)
        kernels.deposit(
            self.counters,
            g_OI,
            factors,
            coefficient,
            power,
            self.counter,
            seed=self.driver.seed,
            tensor=self.tensor,
            step=self.deposits,
            first_row=self.rows.first,
        )

    @torch.no_grad()
    def fire(self) -> None:
        """Move the codes whose counters are full, or that another rule moves. The only place where codes change."""
        if self.driver is not None and self.driver.rule is not None:
            self._fire_by(self.driver.rule)
            return
        self.__dict__["moves"] = kernels_for(self.codes).fire(
            self.codes, self.counters, self.counter, self.in_features, is_binary=self.is_binary
        )

    @torch.no_grad()
    def hand_over_counters(self) -> Tensor:
        """Latents, float32 [O, I], from codes and counters, which then are 0."""
        quantized, counts_OI = self.quantized(), self.counts()
        lost_OI = counts_OI.float() / (self.counter.threshold * (1 if self.is_binary else 2))
        self.counters.copy_(pack_counters(torch.zeros_like(counts_OI[:1]), self.counter))
        return (quantized.codes_OI + lost_OI) * expand_scale(quantized.scale.float(), self.spec, self.in_features)

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

    # -- module --------------------------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        kind = "binary" if self.is_binary else "ternary"
        return f"{self.in_features}, {self.out_features}, {kind} {self.spec.granularity}, counter={self.counter.name}"

    def __getstate__(self) -> dict[str, Any]:
        # A copy is another weight: no optimizer trains it until it is told to.
        return {**self.__dict__, **_UNATTACHED}

    def _new_sum(self, g_OI: Tensor) -> GradientSum:
        assert self.driver is not None
        if self.driver.accumulation == "bfloat16":
            return BFloat16Sum()
        if self.deposits == 0:  # the first gradient tells its own sizes
            _, factors = self._new_moments(g_OI, self.deposits + 1)
        else:
            finite = torch.ones((), dtype=torch.bool, device=self.device)
            factors = moment_factors((self.row_moments, self.column_moments), self.deposits, finite)
        return Int8Sum(self.rows.own_factors(factors))

    def _new_moments(self, g_OI: Tensor, step: Tensor) -> tuple[tuple[Tensor, Tensor], Factors]:
        """As `update_moments`, of this gradient."""
        peak = self.rows.largest(_peak(g_OI))
        sums = self.rows.whole_sums(kernels_for(g_OI).square_sums(g_OI, peak, self.out_features))
        return update_moments((self.row_moments, self.column_moments), sums, peak, step)

    def _parts(self) -> Iterator[slice]:
        return row_chunks(self.out_features, self.in_features, self.device)

    def _detach(self) -> None:
        self.__dict__.update(_UNATTACHED)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PureWeight:
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move, recurse)
        return self


# Beside the module's own attributes, so that nn.Module does not register the optimizer or the sum.
_UNATTACHED: dict[str, Any] = {
    "driver": None,
    "tensor": 0,
    "handle": 0,
    "received": 0,
    "gradient_sum": None,
    "moves": None,
}


def attached_weight(handle: int) -> PureWeight | None:
    """The weight that an optimizer trains under this handle."""
    return _ATTACHED.get(handle)


def _peak(g_OI: Tensor) -> Tensor:
    """The largest |G|, float32 []; |G| itself would be a second gradient."""
    least, most = g_OI.aminmax()
    return torch.maximum(most, -least).float()


def _centre(w_OI: Tensor, spec: WeightQuantizer) -> Tensor:
    """What the binary quantiser subtracts, [1, 1], [O, 1] or [O, I]."""
    w_OI = w_OI.float()
    if spec.granularity == "per_tensor":
        return w_OI.mean().view(1, 1)
    if spec.group_size is None:
        return w_OI.mean(1, keepdim=True)
    parts = [part.mean(1, keepdim=True).expand_as(part) for part in w_OI.split(spec.group_size, dim=1)]
    return torch.cat(parts, dim=1)
