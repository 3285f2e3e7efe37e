"""What `onebit info` says of a GGUF file: its metadata, and each tensor's type and size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

__all__ = ["is_gguf", "print_gguf", "summarise_gguf"]

_LONG = 8  # entries of a list that is told by its length
_WIDE = 72


def is_gguf(path: Path) -> bool:
    """By its first bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def summarise_gguf(path: Path) -> dict[str, Any]:
    """Everything but the weights, as JSON has it; long lists by their length. FormatError for a damaged file."""
    from onebit.formats.gguf_reader import read_gguf

    file = read_gguf(path)
    tensors: list[dict[str, Any]] = [
        {
            "name": tensor.name,
            "rows": tensor.rows,
            "cols": tensor.cols,
            "type": tensor.type_name,
            "bytes": int(tensor.data.size),
            "bits_per_weight": 8 * tensor.data.size / (tensor.rows * tensor.cols),
        }
        for tensor in file.tensors.values()
    ]
    totals: dict[str, dict[str, int]] = {}
    for tensor in tensors:
        of_type = totals.setdefault(tensor["type"], {"tensors": 0, "weights": 0, "bytes": 0})
        of_type["tensors"] += 1
        of_type["weights"] += tensor["rows"] * tensor["cols"]
        of_type["bytes"] += tensor["bytes"]
    return {
        "file": str(path),
        "file_bytes": path.stat().st_size,
        "metadata": {key: _told(value) for key, value in file.metadata.items()},
        "tensors": tensors,
        "totals": totals,
    }


def print_gguf(summary: dict[str, Any]) -> None:
    """The same as a table."""
    typer.echo(f"{summary['file']}: GGUF, {summary['file_bytes'] / 1e6:.3f} MB")
    for key, value in summary["metadata"].items():
        text = f"{value['length']:,} entries" if isinstance(value, dict) else " ".join(str(value).split())
        typer.echo(f"  {key:<40} {text if len(text) <= _WIDE else text[: _WIDE - 3] + '...'}")
    width = max((len(tensor["name"]) for tensor in summary["tensors"]), default=6)
    typer.echo(f"\n{'tensor':<{width}}  {'shape':>13}  {'type':<5} {'bytes':>12}  {'bpw':>6}")
    for tensor in summary["tensors"]:
        shape = f"{tensor['rows']:>6}x{tensor['cols']:<6}"
        typer.echo(
            f"{tensor['name']:<{width}}  {shape}  {tensor['type']:<5} {tensor['bytes']:>12}"
            f"  {tensor['bits_per_weight']:>6.3f}"
        )
    typer.echo("")
    for name, total in sorted(summary["totals"].items(), key=lambda item: -item[1]["bytes"]):
        bits = 8 * total["bytes"] / total["weights"]
        typer.echo(
            f"{name:<5} {total['tensors']:>5} tensors, {total['weights']:,} weights, {total['bytes']:,} bytes,"
            f" {bits:.3f} bits each"
        )


def _told(value: Any) -> Any:
    """A value of the metadata for people and JSON."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return {"length": len(value)} if isinstance(value, list) and len(value) > _LONG else value
