"""Integer counters of pure training: what a weight's codes are moved by, and when they move.

Each weight has a small integer beside its code. A deposit adds a real number to it, rounded at random so that the mean
is kept; when the counter reaches the threshold theta, the code moves one level and the counter starts again from 0.
That reset is what makes this more than a latent weight on a coarse grid: a weight that has just moved must gather a
whole theta before it moves back, so that noise does not make it chatter. Relatives: Bop (arXiv 1906.02107), BOLD
(arXiv 2405.16339), whose accumulators are floats.

Shape suffixes: O outputs, I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from onebit.quant.spec import check_name

__all__ = ["Counter", "CounterName", "counter_named", "fire", "round_stochastically", "start_counters"]

CounterName = Literal["int8", "int4", "none"]


@dataclass(frozen=True)
class Counter:
    """A kind of counter: it fires at +-threshold and stops at +-bound.

    remembers: False for "none", whose deposits decide within the step whether a code moves and are then forgotten.
    """

    name: CounterName
    threshold: int
    bound: int
    remembers: bool = True


# int8: twice the threshold, so that a weight at the end of its range remembers how far it was pushed outwards. int4:
# its nibble ends at 7, and a lower threshold would drown in the noise of rounding.
_COUNTERS = {
    "int8": Counter("int8", 63, 126),
    "int4": Counter("int4", 7, 7),
    "none": Counter("none", 1, 1, remembers=False),
}


def counter_named(name: str) -> Counter:
    """The counter of a name; ConfigError for another."""
    check_name("counter", name, get_args(CounterName))
    return _COUNTERS[name]


def round_stochastically(x: Tensor, random: Tensor) -> Tensor:
    """Integers as float32: floor(x), or one more with the probability of x's fraction.

    x: float32, any shape; random: int16 of `philox`, the same shape. Without bias up to 2^-17.
    """
    floor = x.floor()
    # random stands for (random + 32768.5) / 65536, uniform in (0, 1)
    return floor.add_(random < (x - floor).mul_(65536.0).sub_(32768.5))


def fire(codes_OI: Tensor, counters_OI: Tensor, counter: Counter, *, is_binary: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(codes, counters, number of moves) after one step; int8 [O, I] both.

    A ternary code moves one level, towards +1 at `threshold` or above and towards -1 at `-threshold` or below; a binary
    one changes its sign. A code at the end of its range stays, and so does its counter; one that moved starts at 0.
    """
    up_OI = (counters_OI >= counter.threshold) & (codes_OI < 1)
    down_OI = (counters_OI <= -counter.threshold) & (codes_OI > -1)
    moves_OI = up_OI.to(torch.int8) - down_OI.to(torch.int8)
    moved_OI = up_OI | down_OI
    codes_OI = codes_OI + (2 * moves_OI if is_binary else moves_OI)
    kept_OI = counters_OI.masked_fill(moved_OI, 0) if counter.remembers else torch.zeros_like(counters_OI)
    return codes_OI, kept_OI, moved_OI.sum()


def start_counters(w_OI: Tensor, codes_OI: Tensor, counter: Counter, *, is_binary: bool) -> Tensor:
    """int8 [O, I] counters that hold what rounding latents to codes lost.

    w_OI: latents divided by their scale (and centred, where the quantiser centres). A latent on its level gives 0, one
    at the boundary to the next level would give the threshold; it is stopped one short of it, as nothing fires at the
    start. Beyond the outermost levels the counter goes to its bound.
    """
    if not counter.remembers:
        return torch.zeros_like(codes_OI, dtype=torch.int8)
    codes_OI = codes_OI.float()
    # A boundary lies half a level from a ternary code and a whole scale from a binary one.
    units = counter.threshold * (1.0 if is_binary else 2.0)
    lost_OI = ((w_OI.float() - codes_OI) * units).round_()
    inside = float(counter.threshold - 1)
    low_OI = torch.where(codes_OI > -1, -inside, -float(counter.bound))
    high_OI = torch.where(codes_OI < 1, inside, float(counter.bound))
    return torch.minimum(torch.maximum(lost_OI, low_OI), high_OI).to(torch.int8)
