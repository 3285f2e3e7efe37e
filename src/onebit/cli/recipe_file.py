"""A recipe: a YAML file with a flat list of stages, each a command of `onebit` and its flags.

    output_dir: runs/mine              # of the report and of what is remembered; runs/NAME unless given
    stages:
      - train:
          data: my-text
          output_dir: runs/mine/model
      - export:
          model_dir: runs/mine/model
          output: runs/mine/model.1bit

There is no templating: what a stage is told stands in the file. Every command line is parsed by the command itself
before anything runs, so that a mistake in the last stage costs no hours. Paths are those the commands would take: seen
from where `onebit` is started.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from onebit.cli.main import COMMANDS, USAGE_ERRORS, load_command
from onebit.errors import ConfigError, MissingExtraError, nearest_name

__all__ = ["Recipe", "Stage", "read_recipe"]

_KEYS = ("output_dir", "stages")
_OUTPUTS = ("output", "output_dir", "out", "out_dir")
_NEITHER = ("cache_dir",)  # written and read by the same command: no input, and no result


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One command line. flags: as in the file, under the command's own names. paths: values that may name something
    to read; only what exists when the stage's turn comes is an input. restart: what tells a command that would resume
    to start over, None where it would not or where the file decides it."""

    label: str
    command: str
    flags: dict[str, Any]
    argv: list[str]
    paths: tuple[str, ...]
    outputs: tuple[str, ...]
    prints_json: bool
    restart: str | None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The stages of a file in their order, and where the report goes."""

    path: Path
    output_dir: Path
    stages: list[Stage]


def read_recipe(path: Path, output_dir: Path | None = None) -> Recipe:
    """Read and check a recipe.

    Raises:
        ConfigError: with the place in the file and the nearest right name.
    """
    content = _content(path)
    for key in content:
        if key not in _KEYS:
            raise ConfigError(f"{path}: '{key}' is no part of a recipe{nearest_name(str(key), _KEYS)}")
    listed = content.get("stages")
    if not isinstance(listed, list) or not listed:
        raise ConfigError(f"{path}: expected a list of stages under 'stages:', as  - train: {{data: my-text}}")
    given = content.get("output_dir", Path("runs") / path.stem)
    stages: list[Stage] = []
    for number, entry in enumerate(listed, start=1):
        command, flags = _entry(f"{path}, stage {number}", entry)
        count = sum(stage.command == command for stage in stages)
        label = f"{command}-{count + 1}" if count else command
        stages.append(_stage(f"{path}, stage {number} ({command})", label, command, flags))
    _check_order(path, stages)
    return Recipe(path=path, output_dir=Path(str(given)) if output_dir is None else output_dir, stages=stages)


def _content(path: Path) -> Mapping[str, Any]:
    try:
        yaml: Any = importlib.import_module("yaml")
    except ModuleNotFoundError as missing:  # it comes with transformers
        raise MissingExtraError("train", "onebit recipe") from missing
    try:
        text = path.read_text(encoding="utf-8")
        _refuse_repeated_keys(path, yaml.compose(text, Loader=yaml.SafeLoader))
        content = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: byte {error.start}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path}{where}: not YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected 'stages:' with a list below it")
    return content


def _refuse_repeated_keys(path: Path, node: Any) -> None:
    """YAML would take the last of two; whoever wrote the first would not know."""
    if node is None or isinstance(node.value, str):
        return
    pairs = node.value if node.id == "mapping" else [(None, child) for child in node.value]
    seen = set()
    for key, child in pairs:
        if key is not None and key.value in seen:
            raise ConfigError(f"{path}, line {key.start_mark.line + 1}: '{key.value}' stands here a second time")
        seen.add(None if key is None else key.value)
        _refuse_repeated_keys(path, child)


def _entry(where: str, entry: Any) -> tuple[str, Mapping[str, Any]]:
    """(command, flags) of one list entry."""
    if isinstance(entry, str):
        entry = {entry: None}
    if not isinstance(entry, dict) or len(entry) != 1:
        raise ConfigError(f"{where}: expected one command with its flags below it, as  - eval: {{model: a.1bit}}")
    ((command, flags),) = entry.items()
    name = str(command).replace("_", "-")
    if name not in COMMANDS or name == "recipe":
        known = [known for known in COMMANDS if known != "recipe"]
        raise ConfigError(f"{where}: no command '{command}'{nearest_name(name, known)}")
    if flags is not None and not isinstance(flags, dict):
        raise ConfigError(f"{where}: the flags of '{command}' must be pairs of name and value, as  output_dir: runs/a")
    return name, flags or {}


def _stage(where: str, label: str, command: str, given: Mapping[str, Any]) -> Stage:
    """The stage, after its command has parsed the command line."""
    loaded = load_command(command)
    flags, argv = _command_line(where, loaded, given)
    prints_json = any(parameter.name == "json" for parameter in loaded.params) and flags.get("json") is not False
    if prints_json and not flags.get("json"):
        argv = ["--json", *argv]
    values = {**flags, **_parsed(where, loaded, command, argv)}
    resume = next((parameter for parameter in loaded.params if parameter.name == "resume"), None)
    read = [value for name, value in values.items() if name not in (*_OUTPUTS, *_NEITHER)]
    return Stage(
        label=label,
        command=command,
        flags=flags,
        argv=[command, *argv],
        paths=tuple(_paths(read)),
        outputs=tuple(_paths([values.get(name) for name in _OUTPUTS])),
        prints_json=prints_json,
        restart=resume.secondary_opts[0] if resume is not None and "resume" not in flags else None,
    )


def _command_line(where: str, loaded: Any, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(the flags under the command's own names, the words of its command line): options, then arguments."""
    by_name = {
        spelling.lstrip("-").replace("-", "_"): parameter
        for parameter in loaded.params
        for spelling in ([parameter.name] if parameter.param_type_name == "argument" else parameter.opts)
    }
    takes_others = bool(loaded.context_settings.get("ignore_unknown_options"))
    flags: dict[str, Any] = {}
    options: list[str] = []
    arguments: dict[str, list[str]] = {}
    for key, value in given.items():
        name = str(key).lstrip("-").replace("-", "_")
        parameter = by_name.get(name)
        if parameter is None and not takes_others:
            raise ConfigError(f"{where}: no flag '{key}'{nearest_name(name, by_name)}")
        words = _words(f"{where}: {key}", value)
        if parameter is not None and parameter.param_type_name == "argument":
            arguments[parameter.name] = words
        else:
            options += _option(f"--{name}", parameter, value, words)
        flags[name if parameter is None else parameter.name] = value
    positional = [word for parameter in loaded.params for word in arguments.get(parameter.name, [])]
    return flags, [*options, *(["--", *positional] if positional else [])]


def _words(where: str, value: Any) -> list[str]:
    """A value as words of a command line; nothing for null."""
    values = value if isinstance(value, list) else [value]
    if any(isinstance(item, (dict, list)) for item in values):
        raise ConfigError(f"{where} must be a value or a list of values")
    return [str(item) for item in values if item is not None]


def _option(spelling: str, parameter: Any, value: Any, words: list[str]) -> list[str]:
    """An option with its value, or a switch; without a parameter it is one that the command passes on."""
    if parameter is not None and parameter.is_flag and isinstance(value, bool):
        return list((parameter.opts if value else parameter.secondary_opts)[:1])
    if parameter is not None:
        spelling = next((opt for opt in parameter.opts if opt.startswith("--")), parameter.opts[0])
    return [part for word in words for part in (spelling, word)]


def _parsed(where: str, loaded: Any, command: str, argv: list[str]) -> dict[str, Any]:
    """The values the command would be called with, defaults included."""
    try:
        context = loaded.make_context(command, list(argv))
        if context.args:  # not the command's: TRL's
            from onebit.train.trl_options import trl_options

            trl_options(context.args, ours=list(context.params))
    except USAGE_ERRORS as problem:
        message = problem.format_message()  # type: ignore[attr-defined]
        raise ConfigError(f"{where}: {message.rstrip('.')}") from None
    except ConfigError as problem:
        raise ConfigError(f"{where}: {problem}") from None
    return dict(context.params)


def _paths(value: Any) -> list[str]:
    """The texts and paths in a value; a choice among names is none."""
    if isinstance(value, (list, tuple)):
        return [path for item in value for path in _paths(item)]
    return [str(value)] if isinstance(value, (str, Path)) and not isinstance(value, Enum) and str(value) else []


def _check_order(path: Path, stages: list[Stage]) -> None:
    """Refuse a stage that reads what it, or a later one, writes: it would never be up to date."""
    for place, stage in enumerate(stages):
        for later in stages[place:]:
            both = {Path(p) for p in stage.paths} & {Path(p) for p in later.outputs}
            if both:
                what = "itself writes" if later is stage else f"stage '{later.label}' writes only then"
                raise ConfigError(f"{path}: stage '{stage.label}' reads {min(both)}, which {what}; give another output")
