"""What is certified holds: brute force over every cut of small graphs never finds a cheaper one."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onebit.search.conductance import conductance, decompose, second_eigenpair, sweep_cut


def least_conductance(weights: NDArray[np.float64]) -> float:
    """Over every set of vertices."""
    n = len(weights)
    found = np.inf
    for size in range(1, n // 2 + 1):
        for members in combinations(range(n), size):
            chosen = np.zeros(n, dtype=bool)
            chosen[list(members)] = True
            inside = sum(weights[i, j] for i in members for j in range(n) if j not in members)
            volume = min(weights[chosen].sum(), weights[~chosen].sum())
            found = min(found, inside / volume if volume > 0 else 0.0)
    return found


@st.composite
def graphs(draw: st.DrawFn) -> NDArray[np.float64]:
    n = draw(st.integers(2, 9))
    edges = draw(st.lists(st.sampled_from([0.0, 0.0, 0.1, 0.5, 1.0]), min_size=n * (n - 1) // 2, max_size=36))
    weights = np.zeros((n, n))
    weights[np.triu_indices(n, 1)] = edges[: n * (n - 1) // 2]
    return weights + weights.T


@given(weights=graphs(), target=st.sampled_from([0.02, 0.1, 0.3]))
@settings(max_examples=60, deadline=None)
def test_every_part_has_the_conductance_it_is_certified_to_have(weights: NDArray[np.float64], target: float) -> None:
    parts = decompose(weights, target)
    assert sorted(i for part in parts for i in part.members) == list(range(len(weights)))
    for part in parts:
        assert part.certificate >= target
        if len(part.members) > 1:
            own = weights[np.ix_(part.members, part.members)]
            assert least_conductance(own) >= part.certificate - 1e-9


@given(weights=graphs())
@settings(max_examples=60, deadline=None)
def test_the_sweep_cut_keeps_cheegers_promise(weights: NDArray[np.float64]) -> None:
    weights = weights + 1e-3 * (1 - np.eye(len(weights)))  # connected
    value, vector = second_eigenpair(weights)
    members = sweep_cut(weights, vector)
    assert 0 < members.sum() < len(weights)
    assert conductance(weights, members) <= np.sqrt(2 * value) + 1e-6
    assert least_conductance(weights) <= conductance(weights, members) + 1e-12


def test_two_cliques_with_a_bridge_are_divided_at_the_bridge() -> None:
    weights = np.kron(np.eye(2), np.ones((5, 5)) - np.eye(5))
    weights[4, 5] = weights[5, 4] = 0.01
    assert [part.members for part in decompose(weights, 0.1)] == [(0, 1, 2, 3, 4), (5, 6, 7, 8, 9)]
    bridge = np.arange(10) < 5
    assert conductance(weights, bridge) == pytest.approx(0.01 / 20.01)
    value, _ = second_eigenpair(weights)
    assert value / 2 <= conductance(weights, bridge)


def test_the_second_eigenvalue_of_known_graphs() -> None:
    """Complete graph: n / (n - 1). Cycle: 1 - cos(2 pi / n). Hypercube of d dimensions: 2 / d."""
    assert second_eigenpair(np.ones((6, 6)) - np.eye(6))[0] == pytest.approx(6 / 5)
    cycle = np.roll(np.eye(8), 1, 1) + np.roll(np.eye(8), -1, 1)
    assert second_eigenpair(cycle)[0] == pytest.approx(1 - np.cos(2 * np.pi / 8))
    corners = np.array([[(i >> b) & 1 for b in range(4)] for i in range(16)])
    cube = (np.abs(corners[:, None] - corners[None]).sum(-1) == 1).astype(float)
    assert second_eigenpair(cube)[0] == pytest.approx(2 / 4)
