"""`onebit compress`: a checkpoint folder becomes one safetensors file with packed codes, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["compress"]


def compress(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="The checkpoint folder; with --decompress the compressed file.")
    ],
    output: Annotated[
        Path, typer.Option("--output", help="The .safetensors file to write; with --decompress the new folder.")
    ],
    decompress: Annotated[
        bool, typer.Option("--decompress", help="Write the checkpoint folder of a compressed file.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Pack a checkpoint's ternary weights at four codes a byte, and binary ones at eight, into one safetensors file.

    Codes, scales and all other parameters come back bit for bit with --decompress, and the model computes the same.
    Latents do not: keep the checkpoint to train on from it. To run a model with the engine use `onebit export`.
    """
    from json import dumps

    from onebit.errors import ConfigError, FormatError
    from onebit.formats.compressed_file import compress_checkpoint, decompress_to_checkpoint

    if not output.parent.is_dir():
        raise ConfigError(f"--output: the folder {output.parent} does not exist; make it first")
    if decompress:
        if source.is_dir():
            raise FormatError(f"{source} is a folder; with --decompress give a file that onebit compress wrote")
        layers = decompress_to_checkpoint(source, output)
        before, after = source.stat().st_size, _weight_bytes(output)
    else:
        if output.is_dir():
            raise ConfigError(f"--output {output} is a folder; give the name of a file: {output / 'model.safetensors'}")
        if source.is_file():
            raise FormatError(f"{source} is a file; give a checkpoint folder, or --decompress to unpack one")
        layers = compress_checkpoint(source, output)
        before, after = _weight_bytes(source), output.stat().st_size
    figures = {"output": str(output), "layers": len(layers), "bytes_before": before, "bytes_after": after}
    if json:
        typer.echo(dumps(figures))
        return
    typer.echo(f"{output}: {len(layers)} quantised layers, {before / 1e6:.2f} MB became {after / 1e6:.2f} MB")


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
