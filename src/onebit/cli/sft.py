"""`onebit sft`: turn a Hugging Face model ternary while fine-tuning it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from onebit.cli.fine_tuning_options import CONTEXT_SETTINGS, MODEL, FineTuningOptions, settings_from, takes
from onebit.cli.pure_options import Pure, PureAccumulation, PureCounter, PureEta, PureFlipBudget

__all__ = ["CONTEXT_SETTINGS", "sft"]


@dataclass(kw_only=True)
class SftOptions(FineTuningOptions):
    """The options of `onebit sft`."""

    model_name_or_path: Annotated[
        str,
        typer.Option(
            "--model-name-or-path",
            "--base-model",
            help="Folder or cached model: float, latents (prequantized), converted, or made by onebit train.",
            rich_help_panel=MODEL,
        ),
    ]
    pure: Pure = False
    pure_counter: PureCounter = "int8"
    pure_accumulation: PureAccumulation = "int8"
    pure_eta: PureEta = None
    pure_flip_budget: PureFlipBudget = None


@takes(SftOptions)
def sft(ctx: typer.Context, **given: Any) -> None:
    """Fine-tune a model with ternary weights; the folder can be given again to sft and distill.

    Rows are conversations, prompts with completions (the loss is on these alone), or text. Any other --name value is a
    field of TRL's SFTConfig. The same command goes on where a killed run stopped, to the same losses. Exit codes: 0
    done, 2 something given is wrong, 143 or 130 stopped by SIGTERM or Ctrl-C after saving a checkpoint.
    """
    from onebit.train.sft import sft as run
    from onebit.train.sft_settings import SftSettings

    result = run(SftSettings(**settings_from(ctx, given)))
    if result.signal is not None:
        raise typer.Exit(128 + result.signal)
