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
_PARTS = 8  # whose choices are measured together before the sensitivities are corrected
_VISITS = 3  # to the parts of one graph
_PATIENCE = 2  # graphs in a row without a better choice
_SHARE = 0.6  # of the evaluations left, for sensitivities


def expander(trials: Trials) -> None:
    """Search `trials.space`; ends by itself, or with Exhausted."""
    surrogate = measure_around(trials, first_base(trials), _SHARE)
    trials.evaluate([_descend(trials, surrogate)])
    misses = 0
    while misses < _PATIENCE:
        before = trials.best
        start = before.choice if before is not None else trials.space.smallest
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
        misses = misses + 1 if trials.best is before else 0


def _descend(trials: Trials, surrogate: Surrogate) -> Choice:
    """From the finest choice downwards, always the step that costs least for the bytes it saves, until it fits."""
    choice = surrogate.base
    while not trials.fits(choice):
        steps = []
        for unit, level in _steps(trials.space, choice):
            saved = trials.space.units[unit].sizes[choice[unit]] - trials.space.units[unit].sizes[level]
            if saved > 0:
                added = surrogate.cost_UL[unit, level] - surrogate.cost_UL[unit, choice[unit]]
                steps.append((added / saved, unit, level))
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

    It keeps to files of about the budget: at most one step of the largest unit above it.
    """
    space, limit = trials.space, trials.budget.max_bytes
    slack = max(max(unit.sizes) - min(unit.sizes) for unit in space.units)
    found: dict[Choice, float] = {start: surrogate.predict(start)}
    waiting = [(found[start], start)]
    order = []
    while waiting and len(order) < nodes:
        _, choice = heapq.heappop(waiting)
        order.append(choice)
        for unit, level in _steps(space, choice):
            neighbour = changed(choice, unit, level)
            size = space.size(neighbour)
            if neighbour not in found and (limit is None or limit - 2 * slack <= size <= limit + slack):
                # Above the budget a choice is only a way: its loss counts as if the bytes had to be given back.
                found[neighbour] = surrogate.predict(neighbour)
                heapq.heappush(waiting, (found[neighbour] + _debt(surrogate, space, size, limit), neighbour))
    index = {choice: i for i, choice in enumerate(order)}
    step_NN = np.full((len(order), len(order)), np.nan)
    for choice, i in index.items():
        for unit, level in _steps(space, choice):
            j = index.get(changed(choice, unit, level))
            if j is not None:
                step_NN[i, j] = found[order[j]] - found[choice]
    return ConfigurationGraph(tuple(order), step_NN)


def _debt(surrogate: Surrogate, space: Space, size: int, limit: int | None) -> float:
    """What giving back the bytes above the budget would cost at the mean price of a byte."""
    if limit is None or size <= limit:
        return 0.0
    saved = sum(max(unit.sizes) - min(unit.sizes) for unit in space.units)
    price = float(np.ptp(surrogate.cost_UL, axis=1).sum()) / max(saved, 1)
    return price * (size - limit)


def overlapping(graph: ConfigurationGraph, parts: list[Part]) -> list[tuple[int, ...]]:
    """Each part with the nodes that an edge joins it to: what lies at a border is searched from both sides."""
    is_edge = ~np.isnan(graph.step_NN)
    return [
        tuple(sorted({*part.members, *np.flatnonzero(is_edge[list(part.members)].any(0)).tolist()})) for part in parts
    ]


def _ends(
    trials: Trials, graph: ConfigurationGraph, surrogate: Surrogate, parts: list[tuple[int, ...]], start: Choice
) -> list[Choice]:
    """Where the paths into the parts end: one unmeasured choice that fits for each, of the nearest and best parts."""
    try:
        import networkx as nx
    except ModuleNotFoundError:
        raise MissingExtraError("search", "--strategy expander") from None
    predicted = np.array([surrogate.predict(choice) for choice in graph.nodes])
    goals = [i for i, choice in enumerate(graph.nodes) if choice not in trials.done and trials.fits(choice)]
    ways = nx.DiGraph()
    ways.add_nodes_from(range(len(graph.nodes)))
    ways.add_weighted_edges_from(
        (int(i), int(j), max(float(predicted[j] - predicted[i]), 0.0)) for i, j in np.argwhere(~np.isnan(graph.step_NN))
    )
    distance = nx.single_source_dijkstra_path_length(ways, graph.nodes.index(start))
    reached = []
    for part in parts:
        inside = [i for i in goals if i in set(part) and i in distance]
        if not inside:
            continue
        goal = min(inside, key=lambda i: (predicted[i], graph.nodes[i]))
        entry = min((i for i in part if i in distance), key=lambda i: (distance[i], i))
        climb = _climb(nx, ways.subgraph(part), entry, goal, predicted)
        reached.append((float(predicted[goal]), distance[entry] + climb, goal))
    best = dict.fromkeys(goal for _, _, goal in sorted(reached))
    return [graph.nodes[goal] for goal in list(best)[:_PARTS]]


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
