"""`onebit sft`: turn a Hugging Face model ternary while fine-tuning it."""

from __future__ import annotations

import typer

from onebit.cli import fine_tuning_options as options
from onebit.cli.fine_tuning_options import CONTEXT_SETTINGS

__all__ = ["CONTEXT_SETTINGS", "sft"]


def sft(
    ctx: typer.Context,
    model_name_or_path: options.ModelNameOrPath,
    dataset_name: options.DatasetName,
    output_dir: options.OutputDir,
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
) -> None:
    """Fine-tune a model with ternary weights; the folder can be given again to sft and distill.

    Rows are conversations, prompts with completions (the loss is on these alone), or text. Any other --name value is a
    field of TRL's SFTConfig. The same command goes on where a killed run stopped, to the same losses. Exit codes: 0
    done, 2 something given is wrong, 143 or 130 stopped by SIGTERM or Ctrl-C after saving a checkpoint.
    """
    values = dict(locals())
    from onebit.train.sft import sft as run
    from onebit.train.sft_settings import SftSettings

    result = run(SftSettings(**options.settings_from(ctx, values)))
    if result.signal is not None:
        raise typer.Exit(128 + result.signal)
