"""All that `onebit eval` measures of one model, as one record: loss on a text, tasks, size, pace and memory.

A model is a checkpoint folder (torch), a `.1bit` file (engine) or the address of a server. Memory is what this process
takes more than before it opened the model, so it says something only where nothing else was done before.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onebit.errors import ConfigError
from onebit.eval.evaluate import Progress, evaluate, read_text
from onebit.eval.forms import EngineForm, Form, TorchForm, open_form
from onebit.eval.record import ResultRecord
from onebit.eval.served import ServedForm, Server, is_address

__all__ = ["JudgeSettings", "judge"]

_PROMPT, _NEW = 128, 64


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """What to measure, and how."""

    data: Path | None = None
    context: int | None = None
    stride: int | None = None
    max_tokens: int | None = None
    tasks: tuple[str, ...] = ()
    task_path: Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool = False
    speed: bool = False
    threads: int | None = None
    device: str = "cpu"
    api_key: str | None = None

    def __post_init__(self) -> None:
        if self.data is None and not self.tasks and not self.speed:
            raise ConfigError("nothing to measure: give --data FILE, --tasks NAMES, --speed or --report FILE")


def judge(model: str, path: Path | None, settings: JudgeSettings, progress: Progress | None = None) -> ResultRecord:
    """The record of one model, named as the user named it; `path` is where it lies, None for an address.

    Figures, as far as they were asked for and can be had: those of `Quality`; "task/NAME/METRIC", with `_stderr` behind
    it for its standard error; size_bytes, num_weights, bits_per_weight; tokens_per_s_decode, tokens_per_s_prefill;
    memory_bytes.
    """
    text = None if settings.data is None else read_text(settings.data)
    if is_address(model):
        return _judge_server(model, text, settings, progress)
    assert path is not None
    paced = _pace(path, settings) if settings.speed else {}
    form = open_form(path, device=settings.device, threads=settings.threads)
    figures: dict[str, Any] = {**_size(Path(model) if Path(model).exists() else path, form), **paced}
    config: dict[str, Any] = {"model": model, "runtime": form.runtime}
    if text is not None:
        told = _quality(form, model, text, settings, progress)
        config |= told.config
        figures |= told.figures
    if settings.tasks:
        scores, how = _tasks(form, settings)
        figures |= scores
        config |= how
    return ResultRecord(benchmark="eval", config=config, figures=figures)


def _quality(
    form: Form | ServedForm, model: str, text: str, settings: JudgeSettings, progress: Progress | None
) -> ResultRecord:
    result = evaluate(
        form,
        text,
        context=settings.context,
        stride=settings.stride,
        max_tokens=settings.max_tokens,
        progress=progress,
    )
    return result.record(model=model, data=str(settings.data))


def _judge_server(address: str, text: str | None, settings: JudgeSettings, progress: Progress | None) -> ResultRecord:
    server = Server(address, settings.api_key)
    config: dict[str, Any] = {"model": address, "runtime": "server", "served_model": server.name}
    figures: dict[str, Any] = {}
    if text is not None:
        told = _quality(ServedForm(server), address, text, settings, progress)
        config |= told.config
        figures |= told.figures
    if settings.speed:
        from onebit.eval.pace import served_pace

        prompt, new = _lengths(server.context)
        figures["tokens_per_s_decode"] = served_pace(server, _any_ids(server.encode("the"), prompt), new)
    if settings.tasks:
        scores, how = _tasks(server, settings)
        figures |= scores
        config |= how
    return ResultRecord(benchmark="eval", config=config, figures=figures)


def _tasks(model: Form | Server, settings: JudgeSettings) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures, and what says how they came about."""
    from onebit.eval.harness import evaluate_tasks

    found, directions = evaluate_tasks(
        model,
        settings.tasks,
        task_path=settings.task_path,
        limit=settings.limit,
        num_fewshot=settings.num_fewshot,
        apply_chat_template=settings.apply_chat_template,
    )
    figures, better = {}, {}
    for task, metrics in found.items():
        for key, value in metrics.items():
            metric, _, choice = key.partition(",")
            if not choice or isinstance(value, str):  # names and lengths; "N/A"
                continue
            name = "/".join(["task", task, metric, *([] if choice == "none" else [choice])])
            figures[name] = float(value)
            if (is_higher := directions.get(task, {}).get(metric)) is not None:
                better[name] = is_higher
    asked = asdict(settings)
    told = {name: asked[name] for name in ("tasks", "limit", "num_fewshot", "apply_chat_template")}
    return figures, {**told, "higher_is_better": better}


def _size(path: Path, form: Form) -> dict[str, Any]:
    """Bytes of what a user ships, tokenizer included in a `.1bit` file, and the weights in it."""
    if isinstance(form, TorchForm):
        weights = sum(parameter.numel() for parameter in form.model.parameters())
    else:
        assert isinstance(form, EngineForm)
        weights = form.num_weights
    files = list(path.glob("*.safetensors")) if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
    return {"size_bytes": size, "num_weights": weights, "bits_per_weight": 8 * size / max(weights, 1)}


def _pace(path: Path, settings: JudgeSettings) -> dict[str, float | int | None]:
    """One sequence, read and written, and what that takes in memory. In the engine nothing but it is open by then."""
    from onebit.eval.pace import engine_pace, torch_pace

    if path.is_dir():
        import transformers  # noqa: F401  # its own size is not the model's
    before = _resident_bytes()
    if path.is_dir():
        form = open_form(path, device=settings.device)
        assert isinstance(form, TorchForm)
        prompt, new = _lengths(form.context)
        figures = {"tokens_per_s_decode": torch_pace(form.model, _any_ids(range(1, 100), prompt), new)}
    else:
        from onebit.engine import Model

        model = Model(path, threads=settings.threads)
        prompt, new = _lengths(model.description.max_seq_len)
        writing, reading = engine_pace(model, _any_ids(range(1, 100), prompt), new)
        figures = {"tokens_per_s_decode": writing, "tokens_per_s_prefill": reading}
    after = _peak_bytes()
    return {**figures, "memory_bytes": None if before is None or after is None else after - before}


def _lengths(context: int) -> tuple[int, int]:
    """(prompt, new tokens) that fit into a context."""
    prompt = min(_PROMPT, context // 2)
    return prompt, min(_NEW, context - prompt - 1)


def _any_ids(some: Any, count: int) -> list[int]:
    """Which tokens they are makes no difference to the time."""
    ids = list(some)
    return [ids[index % len(ids)] for index in range(count)]


def _resident_bytes() -> int | None:
    """What this process has in memory now; the most so far where the system tells nothing else."""
    return _status("VmRSS") or _peak_bytes()


def _peak_bytes() -> int | None:
    """The most that this process ever had in memory; None where the system does not tell."""
    if peak := _status("VmHWM"):
        return peak
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def _status(name: str) -> int | None:
    """A line of Linux's account of this process. getrusage's peak counts what came before an exec, too."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name}:")), None)
