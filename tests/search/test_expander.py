"""The graph of configurations: its edges are single steps, its parts overlap at borders and are certified."""

from __future__ import annotations

import numpy as np
import pytest

from onebit.search.conductance import conductance, decompose
from onebit.search.expander import CONDUCTANCE, build_graph, overlapping
from onebit.search.surrogate import measure_around
from onebit.search.trials import Budget, Trials

from .test_strategies import budgets, make_loss, make_space, run

pytest.importorskip("networkx")


def made() -> Trials:
    space = make_space(units=9)
    return run("random", space, make_loss(space), max_bytes=budgets(space)[1], max_evaluations=5)


def test_edges_are_single_steps_and_cost_what_sensitivities_say() -> None:
    trials = made()
    space = trials.space
    trials.budget = Budget(max_bytes=trials.budget.max_bytes)
    surrogate = measure_around(trials, space.uniform("int8"))
    graph = build_graph(trials, surrogate, space.smallest, nodes=150)
    assert len(graph.nodes) == len(set(graph.nodes)) == 150
    edges = np.argwhere(~np.isnan(graph.step_NN))
    assert len(edges) > 150
    for i, j in edges:
        differences = [abs(a - b) for a, b in zip(graph.nodes[i], graph.nodes[j], strict=True)]
        assert sorted(differences)[-2:] == [0, 1]
        change = surrogate.predict(graph.nodes[j]) - surrogate.predict(graph.nodes[i])
        assert graph.step_NN[i, j] == pytest.approx(change) == pytest.approx(-graph.step_NN[j, i])
    closeness = graph.closeness()
    assert np.array_equal(closeness, closeness.T)
    assert closeness.max() <= 1.0


def test_parts_cover_the_graph_are_certified_and_overlap_where_edges_cross() -> None:
    trials = made()
    trials.budget = Budget(max_bytes=trials.budget.max_bytes)
    surrogate = measure_around(trials, trials.space.uniform("int8"))
    graph = build_graph(trials, surrogate, trials.space.smallest, nodes=200)
    weights = graph.closeness()
    parts = decompose(weights, CONDUCTANCE)
    assert sorted(i for part in parts for i in part.members) == list(range(200))
    generator = np.random.default_rng(0)
    for part in parts:
        assert part.certificate >= CONDUCTANCE
        own = weights[np.ix_(part.members, part.members)]
        for _ in range(20):  # no cut that is tried is cheaper than what is certified
            members = generator.random(len(own)) < generator.random()
            assert conductance(own, members) >= part.certificate
    wide = overlapping(graph, parts)
    crossing = [
        (int(i), int(j))
        for i, j in np.argwhere(~np.isnan(graph.step_NN))
        if not any(i in part.members and j in part.members for part in parts)
    ]
    if len(parts) > 1:
        assert crossing
    for i, j in crossing:
        assert any(i in part and j in part for part in wide)
