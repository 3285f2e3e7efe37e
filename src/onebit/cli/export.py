"""`onebit export`: a checkpoint folder becomes one .1bit file, and a C header where asked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from onebit.eval.forms import Form
    from onebit.eval.verify import VerifyReport
    from onebit.formats.convert import Written

__all__ = ["export"]

LARGE_HEADER = 30_000_000  # bytes of C; measured: gcc took 2.6 GB and a minute for 72 MB


def export(
    model_dir: Annotated[Path, typer.Option("--model-dir", help="The checkpoint folder.")],
    target: Annotated[Path | None, typer.Argument(metavar="[OUTPUT]", help="The same as --output.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="What to write: the name of a file, or of a new folder.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            help="1bit (the default), gguf (that of NAME.gguf), hf: a folder that transformers loads packed, one of"
            " floats: bf16, fp16, fp32, or web: a folder with a chat page that runs the model in a browser.",
        ),
    ] = None,
    pack_mode: Annotated[
        str | None,
        typer.Option(
            "--pack-mode", help="ternary (2 bits), ternary5 (1.6 bits) or binary; what the model is if not given."
        ),
    ] = None,
    layout: Annotated[
        str, typer.Option("--layout", help="run: tiles that the engine reads in place; exchange: row by row.")
    ] = "run",
    embedding_level: Annotated[
        str | None,
        typer.Option(
            "--embedding-level",
            help="float32, float16, int8 or int4 for embedding and head that were trained as floats, or trained: as"
            " they are; int8 if not given, trained in a folder.",
        ),
    ] = None,
    head_activation: Annotated[
        str | None,
        typer.Option(
            "--head-activation",
            help="What the head's inputs are rounded to: int8 (twice as fast) or none; int8 before int8 and int4 if"
            " not given.",
        ),
    ] = None,
    bit_width_map: Annotated[
        Path | None,
        typer.Option("--bit-width-map", help="Levels of the matrices, as onebit search wrote them; its budget holds."),
    ] = None,
    val_data: Annotated[
        str | None,
        typer.Option(
            "--val-data",
            help="Text on which to measure what storing embedding and head costs; what training held out if not given.",
        ),
    ] = None,
    emit_c_header: Annotated[
        bool,
        typer.Option(
            "--emit-c-header",
            help="Also write NAME.h with the weights, and NAME_firmware: model and engine in C for a microcontroller.",
        ),
    ] = False,
    gguf_type: Annotated[
        str | None,
        typer.Option("--gguf-type", help="Of binary and ternary matrices in GGUF; see onebit convert."),
    ] = None,
    linear_class: Annotated[
        str | None,
        typer.Option("--linear-class", help="bitlinear or autobitlinear for --to hf; see onebit convert."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Run file and checkpoint on the same text before naming it.")
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="Print what was written and verified as JSON.")] = False,
) -> None:
    """Write a checkpoint as one .1bit file: weights, tokenizer, chat template and manifest; or, with --to, for another
    program.

    The codes and scales are those of training. Embedding and head trained as floats become int8 unless asked otherwise;
    what that costs in loss is measured, printed and kept in the file. The file gets its name only when the engine
    computes from it what torch computes from the checkpoint; what was at --output before stays until then. Other forms
    are read back and compared, code for code; folders keep embedding and head as they were trained.
    """
    from json import dumps

    from onebit.cli.progress import ProgressLine
    from onebit.eval.forms import open_checkpoint
    from onebit.eval.tables_cost import with_tables_cost
    from onebit.formats.atomic import beside
    from onebit.formats.c_header import write_c_header
    from onebit.formats.checkpoint import from_checkpoint
    from onebit.formats.convert import target_of, write_any
    from onebit.formats.export_text import what_stayed_behind
    from onebit.formats.firmware import write_firmware
    from onebit.formats.onebit_file import write
    from onebit.formats.statistics import summarise
    from onebit.models.bit_width_map import read_bit_width_map

    output = _output(target, output)
    form = target_of(output, to or ("gguf" if output.suffix == ".gguf" else "1bit"))
    header = output.with_suffix(".h") if emit_c_header else None
    firmware = output.with_name(f"{output.stem}_firmware")
    _check_output(output, header, form)
    levels, max_bytes = (None, None) if bit_width_map is None else read_bit_width_map(bit_width_map)
    if form not in ("1bit", "gguf", "web"):
        embedding_level = embedding_level or "trained"
    file = from_checkpoint(
        model_dir,
        pack_mode=pack_mode,
        layout=layout,
        embedding_level=embedding_level,
        head_activation=head_activation,
        bit_width_map=levels,
        progress=ProgressLine("export", "tensors"),
    )
    if form != "1bit":
        written = write_any(output, file, form, gguf_type=gguf_type, linear_class=linear_class, lossy=True)
        _print_written(written, as_json=json)
        return
    checkpoint = open_checkpoint(model_dir, bit_width_map=levels)
    file, cost = with_tables_cost(file, checkpoint, val_data, ProgressLine("measuring embedding and head", "windows"))
    with beside(output) as unproven:
        _check_budget(write(unproven, file), max_bytes)
        report = _verify(checkpoint, unproven, output) if verify else None
    header_bytes = None if header is None else write_c_header(header, file)
    image_bytes = None if header is None else write_firmware(firmware, file)
    summary, notes = summarise(file), what_stayed_behind(file)
    if json:
        record = {
            "output": str(output),
            "file_bytes": output.stat().st_size,
            "totals": summary["totals"],
            "tables_cost": summary["tables_cost"],
            "verified": None if report is None else report.to_dict(),
            "c_header": None if header is None else {"output": str(header), "file_bytes": header_bytes},
            "firmware": None if header is None else {"output": str(firmware), "image_bytes": image_bytes},
            "notes": notes,
        }
        typer.echo(dumps(record, indent=2))
        return
    if cost:
        typer.echo(cost)
    _print_report(output, summary, notes, report)
    if header_bytes is not None:
        typer.echo(f"wrote {header}, {header_bytes / 1e6:.2f} MB of C")
        typer.echo(f"wrote {firmware}: the engine in C and an image of {(image_bytes or 0) / 1e6:.2f} MB for flash")
        if header_bytes > LARGE_HEADER:
            typer.echo("note: a compiler needs about 36 times that in memory; a model this large is better mapped")


def _output(target: Path | None, output: Path | None) -> Path:
    from onebit.errors import ConfigError

    if (target is None) == (output is None):
        raise ConfigError("give what to write once: as OUTPUT or with --output")
    return Path(target or output or "")


def _print_written(written: Written, *, as_json: bool) -> None:
    from json import dumps

    if as_json:
        typer.echo(dumps({"form": written.form, "text": written.text, "notes": written.notes}, indent=2))
        return
    typer.echo(f"wrote {written.text}")
    for note in written.notes:
        typer.echo(f"note: {note}")


def _check_output(output: Path, header: Path | None, form: str) -> None:
    """Refuse before the work what would fail after it."""
    from onebit.errors import ConfigError

    if header is not None and form != "1bit":
        raise ConfigError(f"--emit-c-header writes the weights of a .1bit file; --to is {form}")

    if not output.parent.is_dir():
        raise ConfigError(f"--output: the folder {output.parent} does not exist; make it first")
    if output.is_dir() and form in ("1bit", "gguf"):
        raise ConfigError(f"--output {output} is a folder; give the name of a file, such as {output / 'model.1bit'}")
    if header == output:
        raise ConfigError(
            f"--output {output} is what the C header would be called; give the model another ending: .1bit"
        )
    if not os.access(output.parent, os.W_OK):
        raise ConfigError(f"--output: the folder {output.parent} cannot be written to")


def _check_budget(file_bytes: int, max_bytes: int | None) -> None:
    """Hold the file to the budget of the search that chose its levels."""
    from onebit.errors import ConfigError

    if max_bytes is not None and file_bytes > max_bytes:
        raise ConfigError(
            f"--bit-width-map: the file would have {file_bytes:,} bytes, and the map was searched for at most"
            f" {max_bytes:,}. A checkpoint trained since has the map in its configuration, and a longer manifest:"
            " leave the flag out, or search with less. For another checkpoint, --pack-mode or --layout, search again"
        )


def _verify(checkpoint: Form, unproven: Path, output: Path) -> VerifyReport | None:
    """Hold the file against the checkpoint; an OnebitError says how they differ. None: there is no engine to run it."""
    from onebit.engine import library_path
    from onebit.errors import EngineError, OnebitError
    from onebit.eval.verify import verify

    try:
        library_path()
    except EngineError as error:
        typer.echo(f"warning: {output} is not verified: {error}", err=True)
        return None
    report = verify(checkpoint, unproven)
    if not report.passed:
        raise OnebitError(
            f"the file does not compute what {checkpoint.name} computes, so {output} was not written: "
            f"{'; '.join(report.reasons)}; please report it, or look closer with --no-verify and onebit verify"
        )
    return report


def _print_report(output: Path, summary: dict[str, Any], notes: list[str], report: VerifyReport | None) -> None:
    """What the comparison found, the table of sizes, and what could not be compiled for C."""
    from onebit.formats.statistics import format_by_layout

    if report is not None:
        typer.echo(f"verified on {report.tokens} tokens: logits within {report.max_relative:.1e} of the largest")
        for note in report.notes:
            typer.echo(f"  {note}")
    typer.echo(format_by_layout(summary))
    for note in notes:
        typer.echo(f"note: {note}")
    totals = summary["totals"]
    typer.echo(
        f"wrote {output}, {output.stat().st_size / 1e6:.2f} MB: {totals['weights']:,} weights at"
        f" {totals['bits_per_weight']:.2f} bits, {totals['smaller_than_float16']:.1f} times smaller than float16"
    )
