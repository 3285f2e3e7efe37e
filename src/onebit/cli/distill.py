"""`onebit distill`: train a ternary student on the answers of a float teacher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from onebit.cli.fine_tuning_options import (
    CONTEXT_SETTINGS,
    MODEL,
    FineTuningOptions,
    LambdaWarmupFrac,
    settings_from,
    takes,
)

__all__ = ["CONTEXT_SETTINGS", "distill"]

_TEACHER = "Teacher"


@dataclass(kw_only=True)
class DistillOptions(FineTuningOptions):
    """The options of `onebit distill`."""

    teacher_name_or_path: Annotated[
        str,
        typer.Option(
            "--teacher-name-or-path",
            "--teacher",
            help="Folder or cached model that the student learns from.",
            rich_help_panel=_TEACHER,
        ),
    ]
    model_name_or_path: Annotated[
        str | None,
        typer.Option(
            "--model-name-or-path",
            "--base-model",
            "--student",
            help="The student, float, latents or converted [default: the teacher, converted].",
            rich_help_panel=MODEL,
        ),
    ] = None
    teacher_revision: Annotated[
        str | None, typer.Option(help="Branch or tag of the teacher.", rich_help_panel=_TEACHER)
    ] = None
    teacher_dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16, or auto: as it is stored.", rich_help_panel=_TEACHER)
    ] = "auto"
    teacher_cache_dir: Annotated[
        Path | None,
        typer.Option(help="For the teacher's answers [default: CACHE_DIR/teacher].", rich_help_panel=_TEACHER),
    ] = None
    top_k: Annotated[int, typer.Option(help="Log-probabilities kept of each answer.", rich_help_panel=_TEACHER)] = 64
    temperature: Annotated[float, typer.Option(help="Of teacher and student in the KL.", rich_help_panel=_TEACHER)] = (
        1.0
    )
    hard_label_weight: Annotated[
        float, typer.Option(help="Share of the data's own tokens in the loss, 0 to 1.", rich_help_panel=_TEACHER)
    ] = 0.5
    lambda_warmup_frac: LambdaWarmupFrac = 0.0
    token_scaled: Annotated[
        bool,
        typer.Option(
            "--token-scaled", help="Tokens count more where the teacher is unsure (TSLD).", rich_help_panel=_TEACHER
        ),
    ] = False
    relation_weight: Annotated[
        float, typer.Option(help="Of the attention relations; runs the teacher at each step.", rich_help_panel=_TEACHER)
    ] = 0.0
    relation_layer: Annotated[
        int, typer.Option(help="Layer of the relations, from 0 or, negative, the end.", rich_help_panel=_TEACHER)
    ] = -1
    relation_heads: Annotated[
        int | None, typer.Option(help="Parts of a relation [default: key-value heads].", rich_help_panel=_TEACHER)
    ] = None


@takes(DistillOptions)
def distill(ctx: typer.Context, **given: Any) -> None:
    """Train a ternary student on what a float teacher says of the data, token by token.

    The teacher runs once; its answers are kept on disk. Rows, conversion, TRL's fields, resuming and exit codes are
    those of onebit sft.
    """
    from onebit.train.distill import distill as run
    from onebit.train.distill_settings import DistillSettings

    if given["model_name_or_path"] is None:  # the teacher, converted
        given["model_name_or_path"] = given["teacher_name_or_path"]
        given["model_revision"] = given["model_revision"] or given["teacher_revision"]
    result = run(DistillSettings(**settings_from(ctx, given)))
    if result.signal is not None:
        raise typer.Exit(128 + result.signal)
