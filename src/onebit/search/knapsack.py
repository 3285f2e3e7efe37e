"""The best choice under a byte budget when the loss is a sum over units: an exact multiple-choice knapsack."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from onebit.errors import MissingExtraError
from onebit.formats.layout import ALIGNMENT
from onebit.search.space import Choice, Space

__all__ = ["best_choice"]


def best_choice(
    cost_UL: NDArray[np.float64],
    space: Space,
    max_bytes: int | None,
    *,
    excluded: Sequence[Choice] = (),
    near: tuple[Choice, int] | None = None,
) -> Choice | None:
    """The choice of least summed cost whose file has at most `max_bytes`, by scipy's branch and bound (HiGHS).

    excluded: choices that must not come out. near: (choice, n): at most n units may differ from it. None: there is no
    such choice. The size counted is the exact one: what lies before the tensors, in whole steps of the alignment, is a
    whole-numbered unknown of its own.
    """
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
    except ModuleNotFoundError:
        raise MissingExtraError("search", "the exact knapsack of onebit search") from None

    units, levels = cost_UL.shape
    count = units * levels

    def row(choice: Choice) -> NDArray[np.float64]:
        picked = np.zeros(count + 1)
        picked[[unit * levels + index for unit, index in enumerate(choice)]] = 1.0
        return picked

    one_each = np.zeros((units, count + 1))
    for unit in range(units):
        one_each[unit, unit * levels : (unit + 1) * levels] = 1.0
    constraints = [LinearConstraint(one_each, 1.0, 1.0)]
    if max_bytes is not None:
        # In units of the alignment, which divides all sizes: numbers stay small, and the solver's tolerance harmless.
        sizes = np.array([size / ALIGNMENT for unit in space.units for size in unit.sizes])
        names = np.array([space.name_bytes(unit, i) for unit in space.units for i in range(levels)], dtype=float)
        room = (max_bytes - space.other_bytes) // ALIGNMENT
        constraints.append(LinearConstraint(np.append(sizes, 1.0), -np.inf, room))
        constraints.append(LinearConstraint(np.append(names, -ALIGNMENT), -np.inf, -space.meta_bytes))
    constraints += [LinearConstraint(row(choice), -np.inf, units - 1) for choice in excluded]
    if near is not None:
        constraints.append(LinearConstraint(row(near[0]), units - near[1], np.inf))
    scale = max(float(np.ptp(cost_UL)), 1e-12)
    with _without_output():
        found = milp(
            np.append(cost_UL.ravel() / scale, 0.0),
            constraints=constraints,
            integrality=np.ones(count + 1),
            bounds=Bounds(0, np.append(np.ones(count), np.inf)),
            options={"mip_rel_gap": 0.0},
        )
    if found.x is None:
        return None
    choice = tuple(int(index) for index in found.x[:count].reshape(units, levels).argmax(1))
    if max_bytes is not None and (excess := space.size(choice) - max_bytes) > 0:
        # The solver keeps constraints up to a tolerance of 1e-6, which may be more than a step in large files.
        return best_choice(cost_UL, space, max_bytes - excess, excluded=excluded, near=near)
    return choice


@contextmanager
def _without_output() -> Iterator[None]:
    """The solver leaves a debugging line on the C library's standard output now and then (HiGHS of scipy 1.17)."""
    sys.stdout.flush()
    output = os.dup(1)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        if os.name == "posix":
            ctypes.CDLL(None).fflush(None)
        os.dup2(output, 1)
        os.close(output)
