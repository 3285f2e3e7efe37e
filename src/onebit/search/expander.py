"""`expander`: shortest paths over a graph of configurations that is divided into parts of certified conductance.

Nodes are choices near the budget, edges change one unit by one step. An edge costs what the measured sensitivities say
that it adds to the loss, so a shortest path from the best choice climbs as little as possible, and choices with cheap
edges between them have much the same loss. Parts of certified conductance are such plateaus: no cheap cut divides
them, so a few of their choices speak for all. Each part, with the neighbours that it overlaps, is searched by A* from
the node where the paths from the best choice enter it to its unmeasured choice of least predicted loss; the ends
of the paths are measured, the sensitivities corrected, and the graph is built anew around what was best.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import pairwise, zip_longest

import numpy as np
from numpy.typing import NDArray

from onebit.errors import MissingExtraError
from onebit.search.conductance import Part, decompose
from onebit.search.sensitivity import first_base
from onebit.search.space import Choice, Space
from onebit.search.surrogate import Surrogate, changed, measure_around
from onebit.search.trials import Trials

__all__ = ["ConfigurationGraph", "build_graph", "expander", "overlapping"]

CONDUCTANCE = 0.05  # of every part; a hypercube of d units has 1 / d
_NODES = 400
_ENDS = 8  # of paths, measured together before the sensitivities are corrected
_VISITS = 3  # to the parts of one graph
_PATIENCE = 2  # graphs in a row without a better choice
_SHARE = 0.6  # of the evaluations left, for sensitivities


def expander(trials: Trials) -> None:
    """Search `trials.space`; ends by itself, or with Exhausted."""
    surrogate = measure_around(trials, first_base(trials), _SHARE)
    trials.evaluate([_descend(trials, surrogate)])
    misses = 0
    while misses < _PATIENCE:
        before = trials.leader
        assert before is not None  # the first choice of all fits
        start = before.choice
        if misses:  # the sums no longer lead anywhere better: measure what they should be here
            surrogate = measure_around(trials, start, _SHARE)
        graph = build_graph(trials, surrogate, start)
        parts = overlapping(graph, decompose(graph.closeness(), CONDUCTANCE))
        for _ in range(_VISITS):
            surrogate.refit(trials.done.values())
            ends = _ends(trials, graph, surrogate, parts, start)
            if not ends:
                break
            trials.evaluate(ends)
        misses = misses + 1 if trials.leader is before else 0


def _descend(trials: Trials, surrogate: Surrogate) -> Choice:
    """From the finest choice downwards, always the change that costs least for the bytes it saves, until it fits."""
    choice = surrogate.base
    while not trials.fits(choice):
        steps = []
        for unit, told in enumerate(trials.space.units):
            for level, size in enumerate(told.sizes):
                if size < told.sizes[choice[unit]]:
                    added = surrogate.cost_UL[unit, level] - surrogate.cost_UL[unit, choice[unit]]
                    steps.append((added / (told.sizes[choice[unit]] - size), unit, level))
        if not steps:
            return trials.space.smallest
        _, unit, level = min(steps)
        choice = changed(choice, unit, level)
    return choice


def _steps(space: Space, choice: Choice) -> list[tuple[int, int]]:
    """(unit, level) of every change by one level."""
    return [
        (unit, level)
        for unit, now in enumerate(choice)
        for level in (now - 1, now + 1)
        if 0 <= level < len(space.levels)
    ]


@dataclass(frozen=True)
class ConfigurationGraph:
    """Choices, and for each pair that differs by one step what the step changes in the predicted loss; nan: no edge."""

    nodes: tuple[Choice, ...]
    step_NN: NDArray[np.float64]

    def closeness(self) -> NDArray[np.float64]:
        """Edge weights in (0, 1]: 1 where a step changes nothing, less the more it changes the loss."""
        is_edge = ~np.isnan(self.step_NN)
        size_NN = np.abs(np.where(is_edge, self.step_NN, 0.0))
        typical = float(np.median(size_NN[is_edge])) if is_edge.any() else 1.0
        return np.where(is_edge, 1.0 / (1.0 + size_NN / max(typical, 1e-12)), 0.0)


def build_graph(trials: Trials, surrogate: Surrogate, start: Choice, nodes: int = _NODES) -> ConfigurationGraph:
    """The choices that a walk from `start` reaches first when it always goes on from the least predicted loss.

    It keeps to files of about the budget: at most the largest step above it, and two below. What lies above is only a
    way, and its bytes count as loss.
    """
    space, limit = trials.space, trials.budget.max_bytes
    slack = max(abs(a - b) for unit in space.units for a, b in pairwise(unit.sizes))
    price = _price(surrogate, space, start)
    found: dict[Choice, float] = {start: surrogate.predict(start)}
    waiting = [(found[start], start)]
    order: list[Choice] = []
    while waiting and len(order) < nodes:
        _, choice = heapq.heappop(waiting)
        order.append(choice)
        for unit, level in _steps(space, choice):
            neighbour = changed(choice, unit, level)
            size = space.size(neighbour)
            if neighbour not in found and (limit is None or limit - 2 * slack <= size <= limit + slack):
                found[neighbour] = surrogate.predict(neighbour)
                above = 0 if limit is None else max(size - limit, 0)
                heapq.heappush(waiting, (found[neighbour] + price * above, neighbour))
    index = {choice: i for i, choice in enumerate(order)}
    step_NN = np.full((len(order), len(order)), np.nan)
    for choice, i in index.items():
        for unit, level in _steps(space, choice):
            j = index.get(changed(choice, unit, level))
            if j is not None:
                step_NN[i, j] = found[order[j]] - found[choice]
    return ConfigurationGraph(tuple(order), step_NN)


def _price(surrogate: Surrogate, space: Space, choice: Choice) -> float:
    """The most loss that a byte saves, by any single change of a choice.

    At this price of every byte above the budget no choice beyond it looks better than it is once they are given back.
    """
    gains = [
        (surrogate.cost_UL[unit, choice[unit]] - surrogate.cost_UL[unit, level]) / (size - told.sizes[choice[unit]])
        for unit, told in enumerate(space.units)
        for level, size in enumerate(told.sizes)
        if size > told.sizes[choice[unit]]
    ]
    return max(0.0, *gains) if gains else 0.0


def overlapping(graph: ConfigurationGraph, parts: list[Part]) -> list[tuple[int, ...]]:
    """Each part with the nodes that an edge joins it to: what lies at a border is searched from both sides."""
    is_edge = ~np.isnan(graph.step_NN)
    return [
        tuple(sorted({*part.members, *np.flatnonzero(is_edge[list(part.members)].any(0)).tolist()})) for part in parts
    ]


def _ends(
    trials: Trials, graph: ConfigurationGraph, surrogate: Surrogate, parts: list[tuple[int, ...]], start: Choice
) -> list[Choice]:
    """Where the paths into the parts end: unmeasured choices that fit, the best of every part before the next best."""
    try:
        import networkx as nx
    except ModuleNotFoundError:
        raise MissingExtraError("search", "--strategy expander") from None
    predicted = np.array([surrogate.predict(choice) for choice in graph.nodes])
    goals = {i for i, choice in enumerate(graph.nodes) if choice not in trials.done and trials.fits(choice)}
    ways = nx.DiGraph()
    ways.add_nodes_from(range(len(graph.nodes)))
    ways.add_weighted_edges_from(
        (int(i), int(j), max(float(predicted[j] - predicted[i]), 0.0)) for i, j in np.argwhere(~np.isnan(graph.step_NN))
    )
    distance = nx.single_source_dijkstra_path_length(ways, graph.nodes.index(start))
    ranked = []
    for part in parts:
        members = [i for i in part if i in distance]
        inside = sorted(goals.intersection(members), key=lambda i: (predicted[i], graph.nodes[i]))
        if not inside:
            continue
        entry = min(members, key=lambda i: (distance[i], i))
        reached = []
        for goal in inside[:_ENDS]:
            climb = _climb(nx, ways.subgraph(part), entry, goal, predicted)
            reached.append((float(predicted[goal]), distance[entry] + climb, goal))
        ranked.append(sorted(reached))
    # The best end of every part, the best parts first, then the second best of every part, and so on.
    ends = [place[2] for row in zip_longest(*sorted(ranked)) for place in row if place is not None]
    return [graph.nodes[goal] for goal in list(dict.fromkeys(ends))[:_ENDS]]


def _climb(nx: object, ways: object, entry: int, goal: int, predicted: NDArray[np.float64]) -> float:
    """How much loss the A* path inside a part climbs; inf when the part's overlap does not join the two."""
    try:
        # Whatever the way, it climbs at least the difference of its ends: the heuristic never says too much.
        return float(
            nx.astar_path_length(  # type: ignore[attr-defined]
                ways, entry, goal, heuristic=lambda i, j: max(float(predicted[j] - predicted[i]), 0.0)
            )
        )
    except nx.NetworkXNoPath:  # type: ignore[attr-defined]
        return float("inf")
