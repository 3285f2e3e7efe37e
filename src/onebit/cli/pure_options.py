"""The options of pure training, which `onebit train` and `onebit sft` share."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["Pure", "PureAccumulation", "PureCounter", "PureEta", "PureFlipBudget"]

_PANEL = "Pure training"

Pure = Annotated[
    bool, typer.Option("--pure", help="Train codes without latents, at 1.25 bytes a weight.", rich_help_panel=_PANEL)
]
PureCounter = Annotated[
    str, typer.Option(help="int8, int4 (0.75 bytes a weight) or none (0.5, worse).", rich_help_panel=_PANEL)
]
PureAccumulation = Annotated[
    str,
    typer.Option(
        help="What several batches a step are summed in: int8 (1.03 bytes a weight), bfloat16 (2) or deposit (0, "
        "worse).",
        rich_help_panel=_PANEL,
    ),
]
PureEta = Annotated[
    float | None, typer.Option(help="Rate of the codes [default: 2 lr / mean|W|].", rich_help_panel=_PANEL)
]
PureFlipBudget = Annotated[
    float | None,
    typer.Option(help="Rate of the codes from how often noise may move each in the run.", rich_help_panel=_PANEL),
]
