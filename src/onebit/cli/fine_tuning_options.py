"""The options that the commands of fine-tuning share: one declaration of flag, type, default and help.

A command takes the fields of a dataclass as its options: these and its own. The names and defaults are those of the
settings that it makes of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

__all__ = ["CONTEXT_SETTINGS", "MODEL", "FineTuningOptions", "LambdaWarmupFrac", "settings_from", "takes"]

# What is no flag of ours passes to TRL's SFTConfig by name.
CONTEXT_SETTINGS = {"ignore_unknown_options": True, "allow_extra_args": True}
MODEL = "Model"
_DATA, _CONVERSION, _OPTIMISER, _RUN, _MACHINE = "Data", "Conversion", "Optimiser", "Run", "Machine"
_ADAPTERS = "Adapters"

LambdaWarmupFrac = Annotated[
    float, typer.Option(help="Share of the steps from float to ternary, 0: none.", rich_help_panel=_OPTIMISER)
]
Command = TypeVar("Command", bound=Callable[..., None])


@dataclass(kw_only=True)
class FineTuningOptions:
    """What every such command can be told; each adds the model that it trains."""

    dataset_name: Annotated[
        str,
        typer.Option(
            "--dataset-name",
            "--dataset",
            help="A .jsonl, .parquet or .txt file, a folder of them, stdlib, or a data set's name.",
            rich_help_panel=_DATA,
        ),
    ]
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "--out-dir", help="For the model and checkpoints.", rich_help_panel=_RUN)
    ]
    model_revision: Annotated[
        str | None, typer.Option(help="Branch or tag, as prequantized.", rich_help_panel=MODEL)
    ] = None
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            "--torch-dtype",
            help="Of the latents: float32, bfloat16, float16 or auto.",
            rich_help_panel=MODEL,
        ),
    ] = "float32"
    val_data: Annotated[str | None, typer.Option(help="Validation rows, as --dataset-name.", rich_help_panel=_DATA)] = (
        None
    )
    val_fraction: Annotated[
        float, typer.Option(help="Share held out when there are no validation rows.", rich_help_panel=_DATA)
    ] = 0.05
    cache_dir: Annotated[
        Path | None, typer.Option(help="For prepared rows [default: OUTPUT_DIR/cache].", rich_help_panel=_DATA)
    ] = None
    packing: Annotated[
        bool, typer.Option("--packing", help="Put several rows into one block.", rich_help_panel=_DATA)
    ] = False
    max_length: Annotated[int, typer.Option(help="Tokens of a row or block.", rich_help_panel=_DATA)] = 1024
    allow_download: Annotated[
        bool,
        typer.Option("--allow-download", help="Fetch model and data when not on this machine.", rich_help_panel=_DATA),
    ] = False
    quantizer: Annotated[
        str | None, typer.Option(help="absmean (default), threshold, sparsity or binary.", rich_help_panel=_CONVERSION)
    ] = None
    granularity: Annotated[
        str | None,
        typer.Option(
            help="per_group (default), per_row or per_tensor (default for BitNet latents).", rich_help_panel=_CONVERSION
        ),
    ] = None
    group_size: Annotated[
        int | None, typer.Option(help="Inputs that share a scale [default: 128].", rich_help_panel=_CONVERSION)
    ] = None
    activation_quantizer: Annotated[
        str | None, typer.Option(help="int8 (default), sign or none.", rich_help_panel=_CONVERSION)
    ] = None
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Layers that stay float; repeatable [default: head and embeddings].",
            rich_help_panel=_CONVERSION,
        ),
    ] = None
    sub_norms: Annotated[
        bool, typer.Option("--sub-norms", help="RMSNorms before o_proj and down_proj.", rich_help_panel=_CONVERSION)
    ] = False
    rmsnorm_post_attn: Annotated[
        int, typer.Option(help="1: an RMSNorm after each attention.", rich_help_panel=_CONVERSION)
    ] = 0
    hadamard_block: Annotated[
        int | None, typer.Option(help="Rotate inputs in blocks of this power of two.", rich_help_panel=_CONVERSION)
    ] = None
    tables: Annotated[
        bool, typer.Option("--tables", help="Quantise embedding and head like the layers.", rich_help_panel=_CONVERSION)
    ] = False
    bit_width_map: Annotated[
        Path | None,
        typer.Option(
            help="Levels of a model of onebit train, as onebit search wrote them.", rich_help_panel=_CONVERSION
        ),
    ] = None
    calibration_rows: Annotated[
        int, typer.Option(help="Rows to fit codes and scales to at the start.", rich_help_panel=_CONVERSION)
    ] = 0
    use_peft: Annotated[
        bool,
        typer.Option(
            "--use-peft", help="Train LoRA adapters over the frozen ternary model.", rich_help_panel=_ADAPTERS
        ),
    ] = False
    lora_r: Annotated[int, typer.Option(help="Rank.", rich_help_panel=_ADAPTERS)] = 16
    lora_alpha: Annotated[int, typer.Option(help="Adapters count alpha / rank.", rich_help_panel=_ADAPTERS)] = 32
    lora_dropout: Annotated[float, typer.Option(help="On the inputs, with beside.", rich_help_panel=_ADAPTERS)] = 0.0
    lora_target_modules: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="As q_proj; repeatable [default: all].", rich_help_panel=_ADAPTERS),
    ] = None
    lora_form: Annotated[
        str,
        typer.Option(
            help="inside the quantiser, so that merging changes nothing, or beside it in float.",
            rich_help_panel=_ADAPTERS,
        ),
    ] = "inside"
    lambda_warmup_frac: LambdaWarmupFrac = 0.4
    lambda_shape: Annotated[
        str, typer.Option(help="linear, cosine, sigmoid or exponential.", rich_help_panel=_OPTIMISER)
    ] = "linear"
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", "--lr", help="Peak learning rate.", rich_help_panel=_OPTIMISER)
    ] = 1e-4
    per_device_train_batch_size: Annotated[
        int, typer.Option("--per-device-train-batch-size", "--bsz", help="Rows in a batch.", rich_help_panel=_OPTIMISER)
    ] = 8
    gradient_accumulation_steps: Annotated[
        int,
        typer.Option(
            "--gradient-accumulation-steps", "--grad-accum", help="Batches a step.", rich_help_panel=_OPTIMISER
        ),
    ] = 1
    max_steps: Annotated[
        int | None,
        typer.Option("--max-steps", "--steps", help="Optimizer steps [default: 3 epochs].", rich_help_panel=_RUN),
    ] = None
    logging_steps: Annotated[int, typer.Option(help="Steps between log lines.", rich_help_panel=_RUN)] = 10
    save_strategy: Annotated[str, typer.Option(help="steps, epoch or no.", rich_help_panel=_RUN)] = "steps"
    save_steps: Annotated[int, typer.Option(help="Steps between checkpoints.", rich_help_panel=_RUN)] = 500
    keep_checkpoints: Annotated[int, typer.Option(help="Checkpoints kept.", rich_help_panel=_RUN)] = 2
    resume: Annotated[
        bool, typer.Option(help="Go on from the folder's last checkpoint, if it is this run's.", rich_help_panel=_RUN)
    ] = True
    seed: Annotated[int, typer.Option(help="Of the order of the data.", rich_help_panel=_RUN)] = 42
    report_to: Annotated[
        str,
        typer.Option(
            help="none, tensorboard, or wandb (offline unless WANDB_MODE says otherwise).", rich_help_panel=_RUN
        ),
    ] = "none"
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.", rich_help_panel=_MACHINE)] = "auto"
    threads: Annotated[int | None, typer.Option(help="CPU threads.", rich_help_panel=_MACHINE)] = None
    bf16: Annotated[bool, typer.Option("--bf16", help="bfloat16 autocast.", rich_help_panel=_MACHINE)] = False
    fp16: Annotated[bool, typer.Option("--fp16", help="float16 autocast.", rich_help_panel=_MACHINE)] = False
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.", rich_help_panel=_MACHINE)
    ] = False
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.", rich_help_panel=_MACHINE)] = False


def takes(options: type) -> Callable[[Command], Command]:
    """Give a command the fields of a dataclass as its options, its own before those that it inherits.

    typer reads a signature, and calls the command with every option by name.
    """
    kinds = get_type_hints(options, include_extras=True)
    parameters = [Parameter("ctx", Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    for field in sorted(fields(options), key=lambda field: field.name not in options.__annotations__):
        default = Parameter.empty if field.default is MISSING else field.default
        parameters.append(Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=kinds[field.name]))

    def give(command: Command) -> Command:
        command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        return command

    return give


def settings_from(ctx: typer.Context, values: dict[str, Any]) -> dict[str, Any]:
    """A command's arguments as its settings' fields; what is no flag of its own is read as TRL's."""
    from onebit.train.trl_options import trl_options

    settings = {**values, "trl": trl_options(ctx.args, ours=list(values))}
    for name in ("exclude", "lora_target_modules"):
        if settings[name] is not None:
            settings[name] = tuple(pattern for pattern in settings[name] if pattern)
    settings["rmsnorm_post_attn"] = bool(settings["rmsnorm_post_attn"])
    return settings
