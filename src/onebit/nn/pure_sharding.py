"""Rows of a matrix of codes over processes: who holds which, and what they exchange to train them.

What shaped it: the integers of a deposit must not depend on the division. So beside packed codes and gradients only
exact sums are exchanged (`optim.pure_deposit`), and the moments, a number per row and per column, are whole in every
process and follow from the sums of whole rows and columns. Blocks are equal, as collectives want them; the last ones
end in rows of zeros, whose gradients are zeros too, so that no deposit moves them.

Shape suffixes: O rows of the matrix, H rows that a process holds, I inputs, B bytes of a row; _1 broadcasts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from onebit.optim.pure_deposit import Factors

__all__ = ["RowSharded", "Rows", "gather_rows"]

# Newer torch has other names for these two.
_all_gather: Any = getattr(dist, "all_gather_single", None) or getattr(dist, "all_gather_into_tensor", None)
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or getattr(dist, "reduce_scatter_tensor", None)


@dataclass(frozen=True)
class Rows:
    """The rows of a matrix of `total` rows that the process `rank` of `processes` holds; one process holds all.

    What needs the other processes (all methods but `cut` and `own_factors`) has to be called by every one of them.
    """

    total: int
    processes: int = 1
    rank: int = 0

    @property
    def is_part(self) -> bool:
        """Whether other processes hold rows too."""
        return self.processes > 1

    @property
    def held(self) -> int:
        """H: as many in every process, rows of zeros at the end of the last ones included."""
        return -(-self.total // self.processes)

    @property
    def first(self) -> int:
        """The first of them in the matrix."""
        return self.rank * self.held

    @property
    def padding(self) -> int:
        """Rows that all processes together hold beyond those of the matrix."""
        return self.held * self.processes - self.total

    def cut(self, whole_O: Tensor, fill: float = 0.0) -> Tensor:
        """This process's rows [H, ...] of a tensor [O, ...], in memory of their own; `fill` in the padding."""
        part = whole_O[self.first : self.first + self.held]
        return torch.cat((part, part.new_full((self.held - part.shape[0], *part.shape[1:]), fill)))

    def own_factors(self, factors: Factors) -> Factors:
        """The factors of this process's rows, from those of the whole matrix."""
        return replace(factors, row_O1=self.cut(factors.row_O1, 1.0)) if self.is_part else factors

    def whole(self, own_H: Tensor) -> Tensor:
        """[O, ...] from the rows [H, ...] of all processes."""
        return gather_rows(own_H, self.total) if self.is_part else own_H

    def reduced(self, g_OI: Tensor) -> Tensor:
        """This process's rows [H, I] of the sum of all processes' gradients."""
        if not self.is_part:
            return g_OI
        if self.padding:
            g_OI = F.pad(g_OI, (0, 0, 0, self.padding))
        own_HI = g_OI.new_empty(self.held, g_OI.shape[1])
        _reduce_scatter(own_HI, g_OI.contiguous())
        return own_HI

    def largest(self, peak: Tensor) -> Tensor:
        """The largest of all processes' numbers, float32 []; infinity where one is no number."""
        if self.is_part:
            peak = peak.nan_to_num(torch.inf, torch.inf)  # a comparison would lose NaN
            dist.all_reduce(peak, dist.ReduceOp.MAX)
        return peak

    def whole_sums(self, sums: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Sums over whole rows [O] and columns [I], from those over this process's rows, [H] and [I]."""
        if not self.is_part:
            return sums
        row_H, column_I = sums
        row_O = F.pad(row_H, (self.first, self.held * (self.processes - 1) - self.first))
        both = torch.cat((row_O, column_I))
        dist.all_reduce(both)
        return both[: self.total], both[row_O.shape[0] :]

    def sum(self, number: Tensor) -> Tensor:
        """The sum of all processes' numbers, []."""
        if self.is_part:
            number = number.clone()
            dist.all_reduce(number)
        return number


def gather_rows(own_HB: Tensor, total: int) -> Tensor:
    """[total, B] from the rows [H, B] of all processes."""
    whole_OB = own_HB.new_empty(own_HB.shape[0] * dist.get_world_size(), *own_HB.shape[1:])
    _all_gather(whole_OB, own_HB.contiguous())
    return whole_OB[:total]


class RowSharded(nn.Module):
    """A module some of whose buffers may be divided by rows over processes.

    Its state_dict is that of one process: gathered when it is asked for, in every process and on the CPU, and cut when
    it is loaded. Divided tensors are attributes and no buffers, which DDP would make alike in all processes; nn.Module
    sees them as buffers only while it moves, saves or loads them.
    """

    DIVIDED: ClassVar[tuple[str, ...]]
    """Names of the buffers that are divided."""
    SHARED: ClassVar[str]
    """Name of one that is not, by which a module is known in a state_dict where it has several names."""

    rows: Rows

    @torch.no_grad()
    def shard(self) -> None:
        """Keep this process's rows only, of the processes of the default group, which all hold the same tensors now."""
        rows = Rows(self.rows.total, dist.get_world_size(), dist.get_rank())
        if rows.is_part and not self.rows.is_part:
            own = {name: rows.cut(getattr(self, name)) for name in self.DIVIDED}
            self._buffers.update(dict.fromkeys(own))  # None keeps a buffer's place
            self.__dict__.update(own, rows=rows)

    @contextmanager
    def _as_buffers(self) -> Iterator[None]:
        if not self.rows.is_part:
            yield
            return
        for name in self.DIVIDED:
            self._buffers[name] = self.__dict__.pop(name)
        try:
            yield
        finally:
            for name in self.DIVIDED:
                self.__dict__[name], self._buffers[name] = self._buffers[name], None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        with self._as_buffers():
            return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        with self._as_buffers():
            super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.rows.is_part:
            first = self._first_prefix(destination)
            for name in self.DIVIDED:
                is_new = first == prefix
                destination[prefix + name] = (
                    self.rows.whole(getattr(self, name)).to("cpu", copy=True) if is_new else destination[first + name]
                )

    def _first_prefix(self, destination: dict[str, Any]) -> str:
        """The first name of this module in a state_dict: tensors that are one in the model are one there too."""
        own = getattr(self, self.SHARED)
        names = (name for name, value in destination.items() if name.endswith(self.SHARED) and value.is_set_to(own))
        return next(names).removesuffix(self.SHARED)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if self.rows.is_part:
            for key in (prefix + name for name in self.DIVIDED):
                if key in state_dict and state_dict[key].shape[:1] == (self.rows.total,):
                    state_dict[key] = self.rows.cut(state_dict[key])
        with self._as_buffers():
            super()._load_from_state_dict(state_dict, prefix, *rest)
