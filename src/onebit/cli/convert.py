"""`onebit convert`: a folder of latents becomes one that transformers runs, packed or in bfloat16."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["convert"]


class Form(StrEnum):
    """What to write."""

    one_bit = "1bit"
    bf16 = "bf16"


def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="The checkpoint folder.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The folder to write; must not be there yet.")],
    to: Annotated[
        Form,
        typer.Option(
            "--to", help="1bit: codes packed at two bits with one scale a tensor; bf16: codes * scale as bfloat16."
        ),
    ] = Form.one_bit,
) -> None:
    """Write a BitNet checkpoint's latents as a folder that transformers runs without onebit.

    Only the linear layers change; the head, embeddings and norms become bfloat16. With --to bf16 the source may also be
    a packed folder. To run a model with the engine use `onebit export`.
    """
    from onebit.formats.bitnet_folder import convert_to_bf16, quantize_to_1bit

    (quantize_to_1bit if to is Form.one_bit else convert_to_bf16)(source, output)
    before, after = _weight_bytes(source), _weight_bytes(output)
    typer.echo(f"{output}: {before / 1e6:.2f} MB of weights became {after / 1e6:.2f} MB")


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
