"""`onebit bench`: how fast a model runs here, beside this machine's measured limits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from onebit.eval.speed import SpeedResult

__all__ = ["bench"]


def bench(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A .1bit file, a checkpoint folder, or 'tiny': the model inside onebit."),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option("--shape", help="Instead of MODEL: random weights of the shape 2b4t, 700m or 45m."),
    ] = None,
    layout: Annotated[
        str, typer.Option("--layout", help="Layout of the shape's weights: ternary_t16, ternary5_t16, binary_t16.")
    ] = "ternary_t16",
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="Keep the shape's file here and use it again; else it is temporary."),
    ] = None,
    prompt_lengths: Annotated[
        str | None,
        typer.Option("--prompt-lengths", help="Prompts to prefill, in tokens, with commas; 128,512 where they fit."),
    ] = None,
    new_tokens: Annotated[int, typer.Option("--new-tokens", min=1, help="Tokens to decode from nothing.")] = 64,
    threads: Annotated[
        str | None, typer.Option("--threads", help="Numbers of threads, with commas; 1 and all cores when not given.")
    ] = None,
    kv: Annotated[str, typer.Option("--kv", help="How keys and values are kept: float16, float32, int8.")] = "float16",
    isa: Annotated[
        str | None, typer.Option("--isa", help="Kernels to use (scalar, avx2, ...); the best when not given.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds; the medians count.")] = 3,
    json: Annotated[Path | None, typer.Option("--json", help="Write the result record here; - prints it.")] = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="Draw the result here (.png, .svg, .pdf).")] = None,
) -> None:
    """Measure decode and prefill, each beside this machine's limit.

    Decode cannot be faster than memory delivers the weights, prefill not faster than the processor multiplies int8.
    Both limits are measured in turn with the model; the ratio to them says how much a better engine could still gain.
    """
    import tempfile

    from onebit.cli.model_path import resolve_model
    from onebit.cli.progress import ProgressLine
    from onebit.engine import Model
    from onebit.engine.cores import physical_cores
    from onebit.errors import ConfigError
    from onebit.eval.speed import SpeedPlan, measure_speed

    if (model is None) == (shape is None):
        raise ConfigError("name one model: MODEL or --shape")
    if picture is not None:
        import matplotlib  # noqa: F401 - before the measurement, which takes a while
    with tempfile.TemporaryDirectory() as temporary:
        path = resolve_model(model) if shape is None else _shape_file(shape, layout, folder or Path(temporary))
        longest = Model(path, verify=False, isa=isa).description.max_seq_len
        default = [length for length in (128, 512) if length <= longest] or [longest]
        plan = SpeedPlan(
            prompt_lengths=default if prompt_lengths is None else _numbers("--prompt-lengths", prompt_lengths),
            new_tokens=new_tokens,
            threads=sorted({1, physical_cores()}) if threads is None else _numbers("--threads", threads),
            kv=kv,
            isa=isa,
            rounds=rounds,
        )
        result = measure_speed(path, plan, ProgressLine("bench", "measurements"))
    if str(json) != "-":
        _print_table(result)
    if json is not None:
        _write_json(result, json)
    if picture is not None:
        from onebit.eval.speed_picture import draw_speed

        draw_speed(result, picture)
        typer.echo(f"picture: {picture}", err=True)


def _numbers(flag: str, text: str) -> list[int]:
    from onebit.errors import ConfigError

    try:
        return list(dict.fromkeys(int(part) for part in text.split(",") if part.strip()))
    except ValueError:
        raise ConfigError(f"{flag} takes whole numbers with commas between them, got '{text}'") from None


def _shape_file(shape: str, layout: str, folder: Path) -> Path:
    """The shape's file in the folder, written now unless it is there."""
    from onebit.cli.progress import ProgressLine
    from onebit.formats.random_shapes import shape_file_name, write_shape

    path = folder / shape_file_name(shape, layout)
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_shape(path, shape, layout, progress=ProgressLine(f"writing {path.name}", "bytes"))
    return path


def _print_table(result: SpeedResult) -> None:
    from rich.console import Console
    from rich.table import Table

    size = result.bytes
    typer.echo(f"{result.path.name}: {result.layout} on {result.isa}, KV cache {result.plan.kv}")
    typer.echo(
        f"a token reads {size.token(0) / 1e6:.1f} MB: body {size.body / 1e6:.1f}, head {size.head / 1e6:.1f},"
        f" {size.kv_position / 1e3:.1f} KB a cached position"
    )
    table = Table(box=None, pad_edge=False)
    for column, justify in (("", "left"), ("threads", "right"), ("tokens/s", "right"), ("from - to", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for column in ("limit", "of the limit"):
        table.add_column(column, justify="right")
    for speed in result.speeds:
        limit, share = speed.limit, speed.over_limit
        table.add_row(
            f"{speed.what} {speed.tokens}",
            str(speed.threads),
            f"{speed.rate:.1f}",
            f"{min(speed.rates):.1f} - {max(speed.rates):.1f}",
            "-" if limit is None else f"{limit:.1f}",
            "-" if share is None else f"{share:.0%}",
        )
    Console().print(table)
    for threads in result.plan.threads:
        peaks = result.peaks.get(threads)
        int8 = f"{_median(peaks):.0f} GOPS" if peaks else "unknown"
        read = _median(result.bandwidths[threads])
        typer.echo(f"limits, {threads} thread{'s' if threads > 1 else ''}: read {read:.1f} GB/s, int8 {int8}")


def _median(values: list[float]) -> float:
    import statistics

    return statistics.median(values)


def _write_json(result: SpeedResult, path: Path) -> None:
    from json import dumps

    from onebit.eval.record import ResultRecord

    plan = result.plan
    config = {
        "model": result.path.name,
        "layout": result.layout,
        "isa": result.isa,
        "kernels": result.kernels,
        "bytes": vars(result.bytes),
        **{name: list(value) if isinstance(value, list | tuple) else value for name, value in vars(plan).items()},
    }
    record = ResultRecord(benchmark="bench", config=config | {"isa": result.isa}, figures=result.figures()).to_dict()
    record["samples"] = [vars(speed) for speed in result.speeds]
    text = dumps(record, indent=2)
    if str(path) == "-":
        typer.echo(text)
    else:
        path.write_text(text + "\n", encoding="utf-8")
