"""Records of `onebit eval` as lines for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from onebit.eval.record import ResultRecord

__all__ = ["as_text"]


def as_text(records: Sequence[ResultRecord]) -> str:
    """A block of lines for each."""
    return "\n\n".join(_block(record) for record in records)


def _block(record: ResultRecord) -> str:
    config, figures = record.config, record.figures
    lines = [f"{config['model']} ({config.get('runtime', 'unknown')})"]
    if figures.get("loss") is not None:
        windows = f"windows of {config['context']} tokens"
        overlap = "" if config["stride"] == config["context"] else f", scored in steps of {config['stride']}"
        lines[0] = f"{config['model']} on {config['data']} ({config['runtime']}, {windows}{overlap})"
        lines += [
            f"  loss            {figures['loss']:.4f} nats per token, {figures['tokens']} tokens",
            f"  perplexity      {figures['perplexity']:.3f} per token, {figures['perplexity_per_word']:.4g} per word",
            f"  bits per byte   {figures['bits_per_byte']:.4f}, {figures['bytes']} bytes",
            f"  scored          {(figures['tokens'] or 0) / max(figures['seconds'] or 0, 1e-9):.0f} tokens/s",
        ]
    if (size := figures.get("size_bytes")) is not None:
        lines.append(f"  size            {size / 1e6:.2f} MB, {figures['bits_per_weight']:.2f} bits a weight in all")
    if (decode := figures.get("tokens_per_s_decode")) is not None:
        prefill = figures.get("tokens_per_s_prefill")
        lines.append(f"  speed           {decode:.1f} tokens/s written" + (f", {prefill:.0f} read" if prefill else ""))
    if (memory := figures.get("memory_bytes")) is not None:
        lines.append(f"  memory          {memory / 1e6:.1f} MB for one sequence")
    for name, value in figures.items():
        if name.startswith("task/") and "_stderr" not in name and value is not None:
            _, task, metric = name.split("/", 2)
            error = figures.get(stderr_of(name))
            spread = f" +- {error:.4f}" if error else ""
            lines.append(f"  {task:15} {metric} {value:.4f}{spread}")
    return "\n".join(lines)


def stderr_of(name: str) -> str:
    """The figure that holds the standard error of "task/NAME/METRIC" or "task/NAME/METRIC/CHOICE"."""
    head, task, metric, *choice = name.split("/")
    return "/".join([head, task, f"{metric}_stderr", *choice])
