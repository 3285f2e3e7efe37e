"""`onebit info`: what a .1bit or GGUF file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["info"]


def info(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="A .1bit or GGUF file; the small model inside onebit if not given."),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Check a .1bit file's checksums.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show a file's model, sections, tensors, sizes, bits per weight and share of -1, 0 and +1.

    Bits per weight are measured: scales and padding included. The header's checksum is always checked. Of a GGUF file:
    its metadata, and type, size and bits per weight of each tensor.
    """
    from json import dumps

    from onebit.cli.info_gguf import is_gguf, print_gguf, summarise_gguf
    from onebit.cli.model_path import TINY, tiny_model_path
    from onebit.errors import FormatError
    from onebit.eval.tables_cost import describe_cost
    from onebit.formats.onebit_file import read
    from onebit.formats.statistics import summarise

    if file is None or str(file) == TINY:
        file = tiny_model_path()
    if file.is_dir():
        raise FormatError(f"{file}: a folder, and this reads files; make one with 'onebit convert {file} NAME.1bit'")
    if is_gguf(file):
        found = summarise_gguf(file)
        typer.echo(dumps(found, indent=2)) if json else print_gguf(found)
        return
    contents = read(file, verify=verify)
    summary: dict[str, Any] = {"file": str(file), "file_bytes": file.stat().st_size} | summarise(contents)
    summary["checksums"] = {"header": "good", "tensors": "good" if verify else "not checked"}
    if json:
        typer.echo(dumps(summary, indent=2))
        return
    _print_model(summary)
    typer.echo("")
    print_tensors(summary["tensors"])
    typer.echo("")
    print_totals(summary["totals"], summary["file_bytes"])
    if summary["tables_cost"] is not None:
        typer.echo(describe_cost(summary["tables_cost"]))


def _print_model(summary: dict[str, Any]) -> None:
    model = summary["description"]
    sections = [name for name, there in summary["sections"].items() if there]
    flags = [name.replace("_", " ") for name in ("qk_norm", "sub_norm", "tied_head") if model[name]]
    tokens = ", ".join(f"{name} {model[name]}" for name in ("bos", "eos", "pad") if model[name] is not None)
    checksums = summary["checksums"]
    lines = {
        "shape": f"{model['num_layers']} layers, hidden {model['hidden_size']}, mlp {model['intermediate_size']},"
        f" vocabulary {model['vocab_size']}, context {model['max_seq_len']}",
        "attention": f"{model['num_heads']} heads of {model['head_dim']}, {model['num_key_value_heads']} for keys and"
        f" values, {model['position']} positions",
        "blocks": ", ".join([model["norm"], model["mlp"], *flags]),
        "numbers": f"norm_eps {model['norm_eps']:.3g}, rope_theta {model['rope_theta']:g},"
        f" residual_scale {model['residual_scale']:.4g}",
        "tokens": tokens or "none",
        "sections": ", ".join(sections) or "none beside MODEL",
        "checksums": f"header {checksums['header']}, tensors {checksums['tensors']}",
    }
    typer.echo(f"{summary['file']}: .1bit version 1, {summary['file_bytes'] / 1e6:.3f} MB")
    for name, text in lines.items():
        typer.echo(f"  {name:<10} {text}")


def print_tensors(tensors: list[dict[str, Any]]) -> None:
    """A table with a line for each tensor."""
    width = max(len(tensor["name"]) for tensor in tensors)
    head = f"{'tensor':<{width}}  {'shape':>13}  {'layout':<12} {'scales':<11} {'input':<5}"
    head += f" {'bytes':>11}  {'bpw':>6}  -1 / 0 / +1"
    typer.echo(head)
    for tensor in tensors:
        group = tensor["group_size"]
        scales = f"group {group}" if group else tensor["granularity"].removeprefix("per_")
        shares = "" if tensor["shares"] is None else " / ".join(f"{share:.3f}" for share in tensor["shares"])
        line = (
            f"{tensor['name']:<{width}}  {tensor['rows']:>6}x{tensor['cols']:<6}  {tensor['layout']:<12}"
            f" {scales:<11} {tensor['activation']:<5} {tensor['bytes']:>11}"
            f"  {tensor['bits_per_weight']:>6.3f}  {shares}"
        )
        typer.echo(line.rstrip())


def print_totals(totals: dict[str, Any], file_bytes: int) -> None:
    """Sums against float16."""
    typer.echo(
        f"weights {totals['weights']:,}: {totals['tensor_bytes'] / 1e6:.3f} MB,"
        f" {totals['bits_per_weight']:.3f} bits each; float16 would take {totals['float16_bytes'] / 1e6:.3f} MB"
        f" ({totals['smaller_than_float16']:.2f} times as much)"
    )
    if totals["shares"] is not None:
        shares = ", ".join(f"{name}: {share:.1%}" for name, share in totals["shares"].items())
        typer.echo(
            f"binary and ternary {totals['coded_weights']:,}: {totals['coded_bits_per_weight']:.3f} bits each; {shares}"
        )
    typer.echo(f"file {file_bytes:,} bytes, {file_bytes - totals['tensor_bytes']:,} of them not tensors")
