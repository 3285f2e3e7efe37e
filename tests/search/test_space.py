"""Sizes are those of the exported file, to the byte, for every kind of map."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onebit.cli.main import execute
from onebit.errors import ConfigError
from onebit.formats.checkpoint import from_checkpoint, load_model, texts_of
from onebit.formats.export import from_model
from onebit.formats.onebit_file import read, write
from onebit.models.bit_width_map import apply_bit_width_map
from onebit.search.cache import ScoreCache
from onebit.search.knapsack import best_choice
from onebit.search.random_search import random_choice
from onebit.search.space import LEVELS, Choice, Space, open_space
from onebit.search.trials import Budget, Trials

from .test_strategies import Computed


def space_of(folder: Path, **choices: object) -> Space:
    return open_space(load_model(folder), **choices, **texts_of(folder))  # type: ignore[arg-type]


@pytest.mark.parametrize("which", ["checkpoint", "untied"])
def test_computed_size_is_the_size_on_disk(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder: Path = request.getfixturevalue(which)
    space = space_of(folder)
    generator = random.Random(1)
    choices = [space.uniform(level) for level in LEVELS]
    choices += [tuple(generator.randrange(len(LEVELS)) for _ in space.units) for _ in range(6)]
    for choice in choices:
        file = from_checkpoint(folder, bit_width_map=space.map_of(choice))
        written = write(tmp_path / "m.1bit", file)
        assert space.size(choice) == written == (tmp_path / "m.1bit").stat().st_size
        stored = {tensor.name: tensor.level for tensor in read(tmp_path / "m.1bit").tensors.values()}
        for name, level in space.map_of(choice).items():
            if f"{name}.weight" in stored or f"model.{name}.weight" in stored:
                assert stored.get(f"model.{name}.weight", stored.get(f"{name}.weight")) == level


@pytest.mark.parametrize("which", ["checkpoint", "untied"])
def test_no_choice_for_a_budget_exceeds_it_on_disk(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Random choices, and the knapsack's for random costs, under random budgets, levels and groupings."""
    folder: Path = request.getfixturevalue(which)
    model, texts = load_model(folder), texts_of(folder)

    @given(
        seed=st.integers(0, 2**32 - 1),
        share=st.floats(0.0, 1.0),
        levels=st.lists(st.sampled_from(LEVELS), min_size=2, max_size=5, unique=True),
        grouping=st.sampled_from(["matrix", "layer", "kind"]),
    )
    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def holds(seed: int, share: float, levels: list[str], grouping: str) -> None:
        space = open_space(model, levels=levels, grouping=grouping, **texts)  # type: ignore[arg-type]
        least = space.size(space.smallest)
        limit = least + int(share * (max(space.size(space.uniform(level)) for level in space.levels) - least))
        runner = Computed(space, lambda choice: 0.0)
        trials = Trials(space, Budget(max_bytes=limit), runner, ScoreCache(None), seed=seed)
        costs = np.random.default_rng(seed).normal(size=(len(space.units), len(space.levels)))
        solved = best_choice(costs, space, limit)
        assert solved is not None
        for choice in (random_choice(trials), solved):
            assert size_on_disk(space, choice) == space.size(choice) <= limit

    def size_on_disk(space: Space, choice: Choice) -> int:
        apply_bit_width_map(model, space.map_of(choice))
        write(tmp_path / "m.1bit", from_model(model, **texts))
        return (tmp_path / "m.1bit").stat().st_size

    holds()


def test_the_command_exports_a_map_at_the_computed_size(checkpoint: Path, tmp_path: Path) -> None:
    space = space_of(checkpoint)
    choice = tuple(i % len(LEVELS) for i in range(len(space.units)))
    (tmp_path / "map.json").write_text(json.dumps({"layer_bit_map": space.map_of(choice)}))
    arguments = ["export", "--model-dir", str(checkpoint), "--output", str(tmp_path / "m.1bit")]
    assert execute([*arguments, "--bit-width-map", str(tmp_path / "map.json")]) == 0  # the engine verified it
    assert (tmp_path / "m.1bit").stat().st_size == space.size(choice)
    told = {"layer_bit_map": space.map_of(choice), "max_size_bytes": space.size(choice) - 1}
    (tmp_path / "map.json").write_text(json.dumps(told))
    (tmp_path / "m.1bit").unlink()
    assert execute([*arguments, "--bit-width-map", str(tmp_path / "map.json")]) == 2
    assert not (tmp_path / "m.1bit").exists()


def test_units_by_layer_and_by_kind(checkpoint: Path, untied: Path) -> None:
    layers = space_of(checkpoint, grouping="layer")
    assert [unit.name for unit in layers.units] == ["embed_tokens", "layers.0", "layers.1"]
    assert layers.units[0].modules == ("embed_tokens", "lm_head")  # one tensor, one unit
    assert len(layers.units[1].modules) == 7
    kinds = space_of(untied, grouping="kind")
    names = ["embed_tokens", "q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "lm_head"]
    assert [unit.name for unit in kinds.units] == names
    assert kinds.units[1].modules == ("layers.0.attention.q_proj", "layers.1.attention.q_proj")
    for level in LEVELS:  # the same file, however its matrices are grouped
        assert kinds.size(kinds.uniform(level)) == space_of(untied).size(space_of(untied).uniform(level))
    assert kinds.count == 5**8
    assert kinds.choice_of(kinds.map_of((0, 1, 2, 3, 4, 0, 1, 2))) == (0, 1, 2, 3, 4, 0, 1, 2)


def test_the_smallest_choice_is_smallest(untied: Path) -> None:
    space = space_of(untied, grouping="kind", levels=("binary", "ternary", "int4"))
    generator = random.Random(2)
    tried = (tuple(generator.randrange(3) for _ in space.units) for _ in range(200))
    assert space.size(space.smallest) <= min(map(space.size, tried))


def test_unknown_levels_are_refused(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'ternary'"):
        space_of(checkpoint, levels=("binary", "ternari"))
    with pytest.raises(ConfigError, match="at least two"):
        space_of(checkpoint, levels=("binary",))
    with pytest.raises(ConfigError, match="--units"):
        space_of(checkpoint, grouping="row")
