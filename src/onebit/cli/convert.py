"""`onebit convert`: a model in any form to any other, seen by what the input is and what the output is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["convert"]


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A .1bit file, a GGUF file, 'tiny', or a folder: packed BitNet, floats, or a checkpoint.",
        ),
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="NAME.1bit, NAME.gguf, or a new folder for transformers.")
    ],
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            help="1bit, gguf, hf (packed for transformers), a folder of floats: bf16, fp16, fp32, or web: a folder with"
            " a chat page for browsers; by the output's name if not given.",
        ),
    ] = None,
    gguf_type: Annotated[
        str | None,
        typer.Option(
            "--gguf-type",
            help="TQ2_0, TQ1_0, Q2_0, Q1_0 (llama.cpp), I2_S (bitnet.cpp), PQ2_0 or PTQ1_0 (Prism's fork) for binary"
            " and ternary matrices; the first of llama.cpp's that holds each if not given.",
        ),
    ] = None,
    linear_class: Annotated[
        str | None,
        typer.Option(
            "--linear-class",
            help="How a packed folder stores scales: bitlinear (1 / scale) or autobitlinear; what is usual for the"
            " model's class if not given.",
        ),
    ] = None,
    activations: Annotated[
        str | None,
        typer.Option(
            "--activations", help="What layers round their inputs to, which a GGUF file does not say: int8 or none."
        ),
    ] = None,
    layout: Annotated[
        str, typer.Option("--layout", help="Of a .1bit file: run (tiles for the engine) or exchange (row by row).")
    ] = "run",
    lossy: Annotated[
        bool,
        typer.Option(
            "--lossy",
            help="Also what does not come back: float embeddings become int8, rotated weights are turned back.",
        ),
    ] = False,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            "--push-to-hub",
            metavar="USER/NAME",
            help="Upload what was written, with a card of its numbers; log in with `hf auth login` first.",
        ),
    ] = None,
) -> None:
    """Write a model in another form: codes and scales are carried over bit for bit, and read back to prove it.

    BitNet latents become packed codes or, with --to bf16, codes times scale in bfloat16, as their training reads them.
    """
    from onebit.cli.model_path import TINY, tiny_model_path
    from onebit.cli.progress import ProgressLine
    from onebit.errors import ConfigError
    from onebit.formats.convert import form_of, is_latents, open_any, sizes_of, target_of, write_any
    from onebit.formats.export_tensors import FILE_LAYOUTS

    form = target_of(output, to)
    if layout not in FILE_LAYOUTS:
        raise ConfigError(f"--layout is {layout!r}, expected one of {', '.join(FILE_LAYOUTS)}")
    source = tiny_model_path() if str(source) == TINY else source
    read_as = form_of(source)
    if form in ("hf", "bf16") and linear_class is None and read_as in ("hf", "checkpoint") and is_latents(source):
        text = _rewrite_folder(source, output, form)
        typer.echo(f"{text}: {sizes_of(source) / 1e6:.2f} MB of weights became {sizes_of(output) / 1e6:.2f} MB")
        _push(output, push_to_hub, form)
        return
    if activations not in (None, "int8", "none"):
        raise ConfigError(f"--activations is {activations!r}, expected int8 or none")
    if form in ("1bit", "gguf"):
        _check_file(output)
    file = open_any(
        source, layout=layout, lossy=lossy, activation=activations, progress=ProgressLine("reading", "tensors")
    )
    written = write_any(
        output,
        file,
        form,
        gguf_type=gguf_type,
        linear_class=linear_class,
        lossy=lossy,
        progress=ProgressLine("writing", "parts"),
    )
    typer.echo(written.text)
    for note in written.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"{source} ({read_as}): {sizes_of(source) / 1e6:.2f} MB became {sizes_of(output) / 1e6:.2f} MB")
    _push(output, push_to_hub, form, gguf_type=gguf_type, linear_class=linear_class)


def _push(
    output: Path, repo_id: str | None, form: str, gguf_type: str | None = None, linear_class: str | None = None
) -> None:
    if repo_id is not None:
        from onebit.formats import hub

        address = hub.push_to_hub(output, repo_id, forms=(form,), gguf_type=gguf_type, linear_class=linear_class)
        typer.echo(f"pushed to {address}")


def _check_file(output: Path) -> None:
    from onebit.errors import ConfigError

    if not output.parent.is_dir():
        raise ConfigError(f"the folder {output.parent} does not exist; make it first")
    if output.is_dir():
        raise ConfigError(f"the output {output} is a folder; give the name of a file")


def _rewrite_folder(source: Path, output: Path, form: str) -> str:
    from onebit.formats.bitnet_folder import convert_to_bf16, quantize_to_1bit

    return (quantize_to_1bit if form == "hf" else convert_to_bf16)(source, output)
