"""The options that the commands of fine-tuning share, each with its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

# What is no flag of ours passes to TRL's SFTConfig by name.
CONTEXT_SETTINGS = {"ignore_unknown_options": True, "allow_extra_args": True}
_MODEL, _DATA, _CONVERSION, _OPTIMISER, _RUN, _MACHINE = "Model", "Data", "Conversion", "Optimiser", "Run", "Machine"
_ADAPTERS = "Adapters"

ModelNameOrPath = Annotated[
    str,
    typer.Option(
        "--model-name-or-path",
        "--base-model",
        help="Folder or cached model: float, latents (prequantized), converted, or made by onebit train.",
        rich_help_panel=_MODEL,
    ),
]
DatasetName = Annotated[
    str,
    typer.Option(
        "--dataset-name",
        "--dataset",
        help="A .jsonl, .parquet or .txt file, a folder of them, stdlib, or a data set's name.",
        rich_help_panel=_DATA,
    ),
]
OutputDir = Annotated[
    Path, typer.Option("--output-dir", "--out-dir", help="For the model and checkpoints.", rich_help_panel=_RUN)
]
ModelRevision = Annotated[str | None, typer.Option(help="Branch or tag, as prequantized.", rich_help_panel=_MODEL)]
LatentType = Annotated[
    str,
    typer.Option(
        "--dtype",
        "--torch-dtype",
        help="Of the latents: float32, bfloat16, float16 or auto.",
        rich_help_panel=_MODEL,
    ),
]
ValData = Annotated[str | None, typer.Option(help="Validation rows, as --dataset-name.", rich_help_panel=_DATA)]
ValFraction = Annotated[
    float, typer.Option(help="Share held out when there are no validation rows.", rich_help_panel=_DATA)
]
CacheDir = Annotated[
    Path | None, typer.Option(help="For prepared rows [default: OUTPUT_DIR/cache].", rich_help_panel=_DATA)
]
Packing = Annotated[bool, typer.Option("--packing", help="Put several rows into one block.", rich_help_panel=_DATA)]
MaxLength = Annotated[int, typer.Option(help="Tokens of a row or block.", rich_help_panel=_DATA)]
AllowDownload = Annotated[
    bool,
    typer.Option("--allow-download", help="Fetch model and data when not on this machine.", rich_help_panel=_DATA),
]
Quantizer = Annotated[
    str | None,
    typer.Option(help="absmean (default), threshold, sparsity or binary.", rich_help_panel=_CONVERSION),
]
Granularity = Annotated[
    str | None,
    typer.Option(
        help="per_group (default), per_row or per_tensor (default for BitNet latents).", rich_help_panel=_CONVERSION
    ),
]
GroupSize = Annotated[
    int | None, typer.Option(help="Inputs that share a scale [default: 128].", rich_help_panel=_CONVERSION)
]
ActivationQuantizer = Annotated[
    str | None, typer.Option(help="int8 (default), sign or none.", rich_help_panel=_CONVERSION)
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Layers that stay float; repeatable [default: head and embeddings].",
        rich_help_panel=_CONVERSION,
    ),
]
SubNorms = Annotated[
    bool,
    typer.Option("--sub-norms", help="RMSNorms before o_proj and down_proj.", rich_help_panel=_CONVERSION),
]
RmsnormPostAttn = Annotated[int, typer.Option(help="1: an RMSNorm after each attention.", rich_help_panel=_CONVERSION)]
HadamardBlock = Annotated[
    int | None, typer.Option(help="Rotate inputs in blocks of this power of two.", rich_help_panel=_CONVERSION)
]
Tables = Annotated[
    bool,
    typer.Option("--tables", help="Quantise embedding and head like the layers.", rich_help_panel=_CONVERSION),
]
CalibrationRows = Annotated[
    int, typer.Option(help="Rows to fit codes and scales to at the start.", rich_help_panel=_CONVERSION)
]
UsePeft = Annotated[
    bool,
    typer.Option("--use-peft", help="Train LoRA adapters over the frozen ternary model.", rich_help_panel=_ADAPTERS),
]
LoraR = Annotated[int, typer.Option(help="Rank.", rich_help_panel=_ADAPTERS)]
LoraAlpha = Annotated[int, typer.Option(help="Adapters count alpha / rank.", rich_help_panel=_ADAPTERS)]
LoraDropout = Annotated[float, typer.Option(help="On the inputs, with beside.", rich_help_panel=_ADAPTERS)]
LoraTargetModules = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="As q_proj; repeatable [default: all].", rich_help_panel=_ADAPTERS),
]
LoraForm = Annotated[
    str,
    typer.Option(
        help="inside the quantiser, so that merging changes nothing, or beside it in float.", rich_help_panel=_ADAPTERS
    ),
]
LambdaWarmupFrac = Annotated[
    float, typer.Option(help="Share of the steps from float to ternary, 0: none.", rich_help_panel=_OPTIMISER)
]
LambdaShape = Annotated[str, typer.Option(help="linear, cosine, sigmoid or exponential.", rich_help_panel=_OPTIMISER)]
LearningRate = Annotated[
    float, typer.Option("--learning-rate", "--lr", help="Peak learning rate.", rich_help_panel=_OPTIMISER)
]
PerDeviceTrainBatchSize = Annotated[
    int,
    typer.Option("--per-device-train-batch-size", "--bsz", help="Rows in a batch.", rich_help_panel=_OPTIMISER),
]
GradientAccumulationSteps = Annotated[
    int,
    typer.Option("--gradient-accumulation-steps", "--grad-accum", help="Batches a step.", rich_help_panel=_OPTIMISER),
]
MaxSteps = Annotated[
    int | None,
    typer.Option("--max-steps", "--steps", help="Optimizer steps [default: 3 epochs].", rich_help_panel=_RUN),
]
LoggingSteps = Annotated[int, typer.Option(help="Steps between log lines.", rich_help_panel=_RUN)]
SaveStrategy = Annotated[str, typer.Option(help="steps, epoch or no.", rich_help_panel=_RUN)]
SaveSteps = Annotated[int, typer.Option(help="Steps between checkpoints.", rich_help_panel=_RUN)]
KeepCheckpoints = Annotated[int, typer.Option(help="Checkpoints kept.", rich_help_panel=_RUN)]
Resume = Annotated[
    bool, typer.Option(help="Go on from the folder's last checkpoint, if it is this run's.", rich_help_panel=_RUN)
]
Seed = Annotated[int, typer.Option(help="Of the order of the data.", rich_help_panel=_RUN)]
ReportTo = Annotated[
    str,
    typer.Option(help="none, tensorboard, or wandb (offline unless WANDB_MODE says otherwise).", rich_help_panel=_RUN),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.", rich_help_panel=_MACHINE)]
Threads = Annotated[int | None, typer.Option(help="CPU threads.", rich_help_panel=_MACHINE)]
BFloat16 = Annotated[bool, typer.Option("--bf16", help="bfloat16 autocast.", rich_help_panel=_MACHINE)]
Float16 = Annotated[bool, typer.Option("--fp16", help="float16 autocast.", rich_help_panel=_MACHINE)]
GradientCheckpointing = Annotated[
    bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.", rich_help_panel=_MACHINE)
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.", rich_help_panel=_MACHINE)]


def settings_from(ctx: typer.Context, values: dict[str, Any]) -> dict[str, Any]:
    """A command's arguments as its settings' fields; what is no flag of its own is read as TRL's."""
    from onebit.train.trl_options import trl_options

    fields = {name: value for name, value in values.items() if name != "ctx"}
    fields["trl"] = trl_options(ctx.args, ours=list(fields))
    for name in ("exclude", "lora_target_modules"):
        if fields[name] is not None:
            fields[name] = tuple(pattern for pattern in fields[name] if pattern)
    fields["rmsnorm_post_attn"] = bool(fields["rmsnorm_post_attn"])
    return fields
