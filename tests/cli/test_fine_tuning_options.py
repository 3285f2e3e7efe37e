"""The options of `onebit sft` and `distill` are the fields of the settings that they make, with the same defaults."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

from onebit.cli.main import execute, load_command
from onebit.train import distill as distill_recipe
from onebit.train import sft as sft_recipe
from onebit.train.distill_settings import DistillSettings
from onebit.train.sft_settings import SftSettings

COMMANDS = {"sft": SftSettings, "distill": DistillSettings}
# Fields without a flag: TRL's have names of their own, and a student is trained on its latents.
WITHOUT_FLAG = {
    "sft": {"trl"},
    "distill": {"trl", "pure", "pure_counter", "pure_accumulation", "pure_eta", "pure_flip_budget"},
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_two_sets_of_defaults_are_one(command: str) -> None:
    settings: dict[str, Field[Any]] = {field.name: field for field in fields(COMMANDS[command])}
    options = {parameter.name: parameter for parameter in load_command(command).params if parameter.name != "help"}
    assert options.keys() == settings.keys() - WITHOUT_FLAG[command]
    for name, option in options.items():
        if command == "distill" and name == "model_name_or_path":
            assert not option.required  # the teacher, where there is no student
            continue
        assert option.required == (settings[name].default is MISSING), name
        if not option.required:
            assert option.default == settings[name].default, name


def test_a_teacher_without_a_student_is_the_student(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def keep(settings: Any) -> Any:
        seen.append(settings)
        return type("Result", (), {"signal": 15})

    monkeypatch.setattr(distill_recipe, "distill", keep)
    monkeypatch.setattr(sft_recipe, "sft", keep)
    shared = ["--dataset", "d", "--output-dir", "o", "--exclude", "lm_head", "--exclude", "wte", "--warmup-steps", "3"]
    assert execute(["distill", "--teacher", "t", "--teacher-revision", "r", *shared]) == 143
    assert execute(["distill", "--teacher", "t", "--teacher-revision", "r", "--student", "s", *shared]) == 143
    assert execute(["sft", "--base-model", "m", *shared]) == 143
    alone, pair, tuned = seen
    assert (alone.model_name_or_path, alone.model_revision) == ("t", "r")
    assert (pair.model_name_or_path, pair.model_revision, pair.teacher_name_or_path) == ("s", None, "t")
    assert tuned.model_name_or_path == "m"
    for settings in seen:
        assert (settings.exclude, settings.trl, settings.output_dir) == (
            ("lm_head", "wte"),
            {"warmup_steps": 3},
            Path("o"),
        )
