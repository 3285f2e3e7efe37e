"""The space of a search: units, the levels they may take, and the exact size of the file that each map gives.

A unit is what takes one level: a matrix, or several that the user ties together. A choice is the index of a level for
every unit; a map, {module: level}, is what the rest of onebit reads. Sizes are those of `onebit export`, to the byte:
tensors by their geometry, everything before them by the writer itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

from onebit.errors import ConfigError, nearest_name
from onebit.formats.anatomy import is_own, parts_of
from onebit.formats.description import TensorPlan
from onebit.formats.export import config_json, shell_of
from onebit.formats.export_tensors import check_choices, geometry_of, is_matrix
from onebit.formats.layout import Geometry, Layout, align
from onebit.formats.onebit_writer import json_bytes, meta_bytes
from onebit.formats.records import SECTION_BYTES
from onebit.models.bit_width_map import at_level
from onebit.models.config import OneBitConfig

__all__ = ["LEVELS", "Choice", "Grouping", "Levels", "Space", "Unit", "check_levels", "open_space"]

LEVELS = ("binary", "ternary", "int4", "int8", "float16")
Grouping = Literal["matrix", "layer", "kind"]

Choice: TypeAlias = tuple[int, ...]
Levels: TypeAlias = dict[str, str]


@dataclass(frozen=True)
class Unit:
    """Matrices that take one level together.

    modules: as `bit_width_map` names them. sizes: bytes in the file at each level of the space.
    """

    name: str
    modules: tuple[str, ...]
    sizes: tuple[int, ...]
    weights: int


@dataclass(frozen=True)
class Space:
    """Every map of a model, and what the file holds beside the units' matrices.

    meta_bytes: what lies before the tensors, without the names of the levels and not aligned. other_bytes: the tensors
    that have no level.
    """

    levels: tuple[str, ...]
    units: tuple[Unit, ...]
    meta_bytes: int
    other_bytes: int

    def map_of(self, choice: Choice) -> Levels:
        """{module: level}, in the order of the units."""
        return {
            name: self.levels[index] for unit, index in zip(self.units, choice, strict=True) for name in unit.modules
        }

    def choice_of(self, levels: Mapping[str, str]) -> Choice:
        """The choice that a map makes; ConfigError when it is not one of this space."""
        choice = []
        for unit in self.units:
            found = list(dict.fromkeys(levels.get(name) for name in unit.modules))
            level = found[0]
            if len(found) > 1 or level not in self.levels:
                told = " and ".join(map(str, found))
                raise ConfigError(f"the map gives {unit.name} {told}, expected one of {', '.join(self.levels)}")
            choice.append(self.levels.index(level))
        return tuple(choice)

    def size(self, choice: Choice) -> int:
        """Bytes of the exported file."""
        chosen = list(zip(self.units, choice, strict=True))
        names = sum(self.name_bytes(unit, index) for unit, index in chosen)
        tensors = self.other_bytes + sum(unit.sizes[index] for unit, index in chosen)
        return align(self.meta_bytes + names) + tensors

    def name_bytes(self, unit: Unit, index: int) -> int:
        """What the names of a unit's level take in the configuration that the file carries."""
        return len(self.levels[index]) * len(unit.modules)

    def uniform(self, level: str) -> Choice:
        """Every unit at one level."""
        return (self.levels.index(level),) * len(self.units)

    @property
    def smallest(self) -> Choice:
        """The choice whose file is smallest."""
        return tuple(
            min(range(len(self.levels)), key=lambda i: (unit.sizes[i], self.name_bytes(unit, i))) for unit in self.units
        )

    @property
    def count(self) -> int:
        """How many maps there are."""
        return int(len(self.levels) ** len(self.units))


def check_levels(names: Sequence[str]) -> tuple[str, ...]:
    """The levels that `--levels` names, from the coarsest to the finest."""
    for name in names:
        if name not in LEVELS:
            raise ConfigError(f"--levels is {name!r}, expected some of {', '.join(LEVELS)}{nearest_name(name, LEVELS)}")
    if len(set(names)) < 2:
        raise ConfigError(f"--levels is {', '.join(names)}; a search needs at least two of {', '.join(LEVELS)}")
    return tuple(level for level in LEVELS if level in names)


def open_space(
    model: Any,
    *,
    levels: Sequence[str] = LEVELS,
    grouping: Grouping = "matrix",
    pack_mode: str | None = None,
    **texts: Any,
) -> Space:
    """The space of a OneBitForCausalLM. texts: what lies beside the weights, as of `formats.export.shell_of`.

    A tied head and its embedding are one matrix, so one unit. Raises ConfigError for a model of another kind.
    """
    levels = check_levels(levels)
    if grouping not in get_args(Grouping):
        raise ConfigError(f"--units is {grouping!r}, expected one of {', '.join(get_args(Grouping))}")
    if not is_own(model):
        raise ConfigError(
            f"model_type is '{model.config.model_type}'; bit-widths are searched for models that onebit train made"
        )
    config: OneBitConfig = model.config
    shell = shell_of(model, **texts)
    parts = parts_of(model, shell.description)
    matrices: list[TensorPlan] = []
    others: list[Geometry] = []
    for plan in shell.description.plan():
        path, _, parameter = plan.name.rpartition(".")
        if path not in parts or parts[path].value(parameter) is None:
            continue
        if is_matrix(plan):
            matrices.append(plan)
        else:
            others.append(Geometry(plan.rows, plan.cols, Layout.FLOAT32))
    choices = check_choices(pack_mode if pack_mode == "ternary5" else None, "run", None, None)
    configs = {level: at_level(config, level) for level in levels}
    geometries = {level: {p.name: _geometry(p, configs[level], choices) for p in matrices} for level in levels}
    units = [
        Unit(
            name,
            tuple(module for plan in plans for module in _modules_of(plan, tied=config.tie_word_embeddings)),
            tuple(sum(geometries[level][plan.name].file_bytes for plan in plans) for level in levels),
            sum(plan.rows * plan.cols for plan in plans),
        )
        for name, plans in _grouped(matrices, grouping)
    ]
    rest = config_json(config) | {"bit_width_map": {name: "" for unit in units for name in unit.modules}}
    meta = meta_bytes(replace(shell, config=None), len(matrices) + len(others)) + SECTION_BYTES
    return Space(levels, tuple(units), meta + len(json_bytes(rest)), sum(geometry.file_bytes for geometry in others))


def _geometry(plan: TensorPlan, config: OneBitConfig, choices: Any) -> Geometry:
    spec = config.weight_quantizer(_module_of(plan))
    assert spec is not None  # float32 is not among the levels
    return geometry_of(plan.rows, plan.cols, spec, choices)


def _module_of(plan: TensorPlan) -> str:
    return plan.name.removesuffix(".weight").removeprefix("model.")


def _modules_of(plan: TensorPlan, *, tied: bool) -> tuple[str, ...]:
    name = _module_of(plan)
    return (name, "lm_head") if tied and name == "embed_tokens" else (name,)


def _grouped(matrices: Iterable[TensorPlan], grouping: Grouping) -> list[tuple[str, list[TensorPlan]]]:
    """Units by name; embedding and head stand alone whatever the grouping."""
    groups: dict[str, list[TensorPlan]] = {}
    for plan in matrices:
        module = _module_of(plan)
        name = module
        if plan.layer is not None and grouping == "layer":
            name = f"layers.{plan.layer}"
        elif plan.layer is not None and grouping == "kind":
            name = module.rpartition(".")[2]
        groups.setdefault(name, []).append(plan)
    return list(groups.items())
