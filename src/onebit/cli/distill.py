"""`onebit distill`: train a ternary student on the answers of a float teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onebit.cli import fine_tuning_options as options
from onebit.cli.fine_tuning_options import CONTEXT_SETTINGS

__all__ = ["CONTEXT_SETTINGS", "distill"]

_TEACHER = "Teacher"


def distill(
    ctx: typer.Context,
    teacher_name_or_path: Annotated[
        str,
        typer.Option(
            "--teacher-name-or-path",
            "--teacher",
            help="Folder or cached model that the student learns from.",
            rich_help_panel=_TEACHER,
        ),
    ],
    dataset_name: options.DatasetName,
    output_dir: options.OutputDir,
    model_name_or_path: Annotated[
        str | None,
        typer.Option(
            "--model-name-or-path",
            "--base-model",
            "--student",
            help="The student, float, latents or converted [default: the teacher, converted].",
            rich_help_panel="Model",
        ),
    ] = None,
    model_revision: options.ModelRevision = None,
    dtype: options.LatentType = "float32",
    val_data: options.ValData = None,
    val_fraction: options.ValFraction = 0.05,
    cache_dir: options.CacheDir = None,
    packing: options.Packing = False,
    max_length: options.MaxLength = 1024,
    allow_download: options.AllowDownload = False,
    quantizer: options.Quantizer = None,
    granularity: options.Granularity = None,
    group_size: options.GroupSize = None,
    activation_quantizer: options.ActivationQuantizer = None,
    exclude: options.Exclude = None,
    sub_norms: options.SubNorms = False,
    rmsnorm_post_attn: options.RmsnormPostAttn = 0,
    hadamard_block: options.HadamardBlock = None,
    tables: options.Tables = False,
    calibration_rows: options.CalibrationRows = 0,
    use_peft: options.UsePeft = False,
    lora_r: options.LoraR = 16,
    lora_alpha: options.LoraAlpha = 32,
    lora_dropout: options.LoraDropout = 0.0,
    lora_target_modules: options.LoraTargetModules = None,
    lora_form: options.LoraForm = "inside",
    lambda_warmup_frac: options.LambdaWarmupFrac = 0.4,
    lambda_shape: options.LambdaShape = "linear",
    learning_rate: options.LearningRate = 1e-4,
    per_device_train_batch_size: options.PerDeviceTrainBatchSize = 8,
    gradient_accumulation_steps: options.GradientAccumulationSteps = 1,
    max_steps: options.MaxSteps = None,
    logging_steps: options.LoggingSteps = 10,
    save_strategy: options.SaveStrategy = "steps",
    save_steps: options.SaveSteps = 500,
    keep_checkpoints: options.KeepCheckpoints = 2,
    resume: options.Resume = True,
    seed: options.Seed = 42,
    report_to: options.ReportTo = "none",
    device: options.Device = "auto",
    threads: options.Threads = None,
    bf16: options.BFloat16 = False,
    fp16: options.Float16 = False,
    gradient_checkpointing: options.GradientCheckpointing = False,
    quiet: options.Quiet = False,
    teacher_revision: Annotated[
        str | None, typer.Option(help="Branch or tag of the teacher.", rich_help_panel=_TEACHER)
    ] = None,
    teacher_dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16, or auto: as it is stored.", rich_help_panel=_TEACHER)
    ] = "auto",
    teacher_cache_dir: Annotated[
        Path | None,
        typer.Option(help="For the teacher's answers [default: CACHE_DIR/teacher].", rich_help_panel=_TEACHER),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Log-probabilities kept of each answer.", rich_help_panel=_TEACHER)] = 64,
    temperature: Annotated[
        float, typer.Option(help="Of teacher and student in the KL.", rich_help_panel=_TEACHER)
    ] = 1.0,
    hard_label_weight: Annotated[
        float, typer.Option(help="Share of the data's own tokens in the loss, 0 to 1.", rich_help_panel=_TEACHER)
    ] = 0.0,
    token_scaled: Annotated[
        bool,
        typer.Option(
            "--token-scaled", help="Tokens count more where the teacher is unsure (TSLD).", rich_help_panel=_TEACHER
        ),
    ] = False,
    relation_weight: Annotated[
        float,
        typer.Option(help="Of the attention relations; runs the teacher at each step.", rich_help_panel=_TEACHER),
    ] = 0.0,
    relation_layer: Annotated[
        int, typer.Option(help="Layer of the relations, from 0 or, negative, the end.", rich_help_panel=_TEACHER)
    ] = -1,
    relation_heads: Annotated[
        int | None,
        typer.Option(help="Parts of a relation [default: key-value heads].", rich_help_panel=_TEACHER),
    ] = None,
) -> None:
    """Train a ternary student on what a float teacher says of the data, token by token.

    The teacher runs once; its answers are kept on disk. Rows, conversion, TRL's fields, resuming and exit codes are
    those of onebit sft.
    """
    values = dict(locals())
    from onebit.train.distill import distill as run
    from onebit.train.distill_settings import DistillSettings

    values["model_name_or_path"] = model_name_or_path or teacher_name_or_path
    if model_name_or_path is None:
        values["model_revision"] = model_revision or teacher_revision
    result = run(DistillSettings(**options.settings_from(ctx, values)))
    if result.signal is not None:
        raise typer.Exit(128 + result.signal)
