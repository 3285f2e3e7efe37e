"""Partitions of a weighted graph, each with a certified conductance.

The conductance of a set S is w(S, rest) / min(vol S, vol rest), a graph's is the least over all S. Cheeger's inequality
ties it to the second eigenvalue of the normalised Laplacian: lambda_2 / 2 <= conductance <= sqrt(2 lambda_2). The left
side is the certificate: no cut of the part is cheaper, and none has to be tried to know it. The right side says that
where the certificate is missing, sorting vertices by the eigenvector finds a cheap cut, at which the part is divided.

Shape suffix: N vertices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Part", "conductance", "decompose", "second_eigenpair", "sweep_cut"]

_ROUNDING = 1e-10  # of eigenvalues in [0, 2], by a backward stable solver, with room


@dataclass(frozen=True)
class Part:
    """Vertices of a part, and what its conductance is at least; a single vertex has no cut, so 1.

    certificate: of the graph that the part induces alone.
    """

    members: tuple[int, ...]
    certificate: float


def conductance(weights_NN: NDArray[np.float64], members: NDArray[np.bool_]) -> float:
    """w(S, rest) / min(vol S, vol rest); 0 for two sides without an edge between, inf when a side is empty."""
    if not members.any() or members.all():
        return np.inf
    degrees_N = weights_NN.sum(1)
    cut = float(weights_NN[np.ix_(members, ~members)].sum())
    volume = float(min(degrees_N[members].sum(), degrees_N[~members].sum()))
    return cut / volume if volume > 0 else 0.0


def second_eigenpair(weights_NN: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """lambda_2 of the normalised Laplacian, at least the true one less rounding, and D^-1/2 times its eigenvector.

    A vertex without an edge has Laplacian 0, so that a graph that is not connected gives 0.
    """
    degrees_N = weights_NN.sum(1)
    scale_N = np.where(degrees_N > 0, 1.0 / np.sqrt(np.where(degrees_N > 0, degrees_N, 1.0)), 0.0)
    laplacian_NN = np.diag((degrees_N > 0).astype(float)) - scale_N[:, None] * weights_NN * scale_N
    values, vectors = np.linalg.eigh(laplacian_NN)
    return max(float(values[1]) - _ROUNDING, 0.0), scale_N * vectors[:, 1]


def sweep_cut(weights_NN: NDArray[np.float64], order_N: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The prefix of the vertices, sorted by `order_N`, that has the least conductance."""
    sorted_N = np.argsort(order_N, kind="stable")
    degrees_N = weights_NN.sum(1)
    volumes_N = np.cumsum(degrees_N[sorted_N])
    inside = np.tril(weights_NN[np.ix_(sorted_N, sorted_N)], -1).sum(1)  # edges to those that came before
    cuts_N = volumes_N - 2.0 * np.cumsum(inside)
    smaller_N = np.minimum(volumes_N, volumes_N[-1] - volumes_N)[:-1]
    ratios_N = np.where(smaller_N > 0, cuts_N[:-1] / np.where(smaller_N > 0, smaller_N, 1.0), 0.0)
    members = np.zeros(len(order_N), dtype=bool)
    members[sorted_N[: int(ratios_N.argmin()) + 1]] = True
    return members


def decompose(weights_NN: NDArray[np.float64], target: float) -> list[Part]:
    """Divide a graph until every part has a certificate of at least `target`; parts are disjoint and cover it.

    weights_NN: symmetric, at least 0, zero on the diagonal.
    """
    parts = []
    waiting = [np.arange(len(weights_NN))]
    while waiting:
        members_M = waiting.pop()
        if len(members_M) == 1:
            parts.append(Part((int(members_M[0]),), 1.0))
            continue
        own_MM = weights_NN[np.ix_(members_M, members_M)]
        value, vector_M = second_eigenpair(own_MM)
        if value / 2 >= target:
            parts.append(Part(tuple(int(i) for i in members_M), value / 2))
            continue
        chosen_M = sweep_cut(own_MM, vector_M)
        waiting += [members_M[chosen_M], members_M[~chosen_M]]
    return sorted(parts, key=lambda part: part.members)
