"""The distillation recipe: a float teacher and rows in, a ternary student out; the rest is fine-tuning's (`sft`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onebit.data.selfgen_model import model_fingerprint
from onebit.errors import ConfigError
from onebit.models.converted import load_converted, recorded_conversion
from onebit.models.pretrained import describe_model, load_causal_lm, load_tokenizer_of
from onebit.train.distill_settings import DistillSettings
from onebit.train.distill_trainer import DistillTrainer
from onebit.train.progress import ProgressLines
from onebit.train.recipe import TrainResult
from onebit.train.sft import fine_tune
from onebit.train.sft_manifest import tokenizer_sha256
from onebit.train.teacher_cache import TeacherCache, fill, open_cache
from onebit.train.trained_rows import rows_fingerprint

__all__ = ["check_tokenizers", "distill"]


def distill(settings: DistillSettings) -> TrainResult:
    """Train a ternary student on its teacher's answers; resumes by itself, as `sft` does, and leaves the same files.

    Raises:
        ConfigError, DataError, MissingExtraError: with one line that says what to change.
    """
    teacher = settings.teacher_name_or_path
    where: dict[str, Any] = {"revision": settings.teacher_revision, "allow_download": settings.allow_download}
    config = describe_model(teacher, **where)
    check_tokenizers(
        load_tokenizer_of(
            settings.model_name_or_path, revision=settings.model_revision, allow_download=settings.allow_download
        ),
        load_tokenizer_of(teacher, **where),
        teacher,
    )

    def make_trainer(**rest: Any) -> DistillTrainer:
        return DistillTrainer(settings=settings, **rest)

    def prepare(trainer: DistillTrainer, progress: ProgressLines) -> None:
        _prepare_teacher(settings, trainer, config, where, progress)

    return fine_tune(settings, make_trainer, prepare)


def check_tokenizers(student: Any, teacher: Any, name: str) -> None:
    """Refuse a teacher whose tokens are not the student's: their logits would be of different things."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    differing = [token for token, number in ours.items() if theirs.get(token) != number]
    if differing:
        raise ConfigError(
            f"the tokenizers of teacher and student differ in {len(differing)} of {len(ours)} tokens (first "
            f"{differing[0]!r}), and distillation compares token by token; give a teacher of the student's family "
            f"instead of '{name}', or let it write data (onebit selfgen) and run onebit sft"
        )


def _prepare_teacher(
    settings: DistillSettings, trainer: DistillTrainer, config: Any, where: dict[str, Any], progress: ProgressLines
) -> None:
    """Give the trainer the teacher's answers, asking it for those that are not on disk, and its attention."""
    student: Any = trainer.model
    shared = min(config.get_text_config().vocab_size, student.config.get_text_config().vocab_size)
    trainer.shared_vocabulary = shared
    teacher: Any = None
    if settings.hard_label_weight < 1.0:
        rows: Any = trainer.train_dataset
        k = min(settings.top_k, shared)
        identity = {
            "teacher": model_fingerprint(_folder_of(settings, where)),
            "teacher_dtype": settings.teacher_dtype,
            "data": rows_fingerprint(rows),
            "tokenizer": tokenizer_sha256(trainer.processing_class),
            "top_k": k,
            "temperature": settings.temperature,
            "vocabulary": shared,
        }
        lengths = [len(ids) for batch in rows.iter(1000) for ids in batch["input_ids"]]
        cache, done = open_cache(settings.teacher_cache, identity, lengths, k)
        if not cache.is_whole:
            teacher = _load_teacher(settings, config, where, trainer.args.device)
            progress.say(f"asking the teacher for {len(lengths) - done} rows")
            cache = _ask(teacher, trainer, cache, done, shared)
        trainer.answers = cache
    if settings.relation_weight > 0:
        teacher = teacher if teacher is not None else _load_teacher(settings, config, where, trainer.args.device)
        trainer.listen_to(teacher)


def _ask(teacher: Any, trainer: DistillTrainer, cache: TeacherCache, done: int, shared: int) -> TeacherCache:
    rows: Any = trainer.train_dataset
    args = trainer.args

    def batches(numbers: Any) -> dict[str, Any]:
        batch: dict[str, Any] = trainer.data_collator([rows[number] for number in numbers])
        return {name: value.to(args.device) if isinstance(value, Tensor) else value for name, value in batch.items()}

    @torch.no_grad()
    def logits_of(inputs: dict[str, Any]) -> Tensor:
        told = {name: value for name, value in inputs.items() if name not in ("labels", "rows")}
        logits: Tensor = teacher(**told, use_cache=False).logits
        return logits

    return fill(
        cache,
        done,
        batches,
        logits_of,
        batch_size=args.per_device_train_batch_size,
        temperature=trainer.settings.temperature,
        vocabulary=shared,
    )


def _load_teacher(settings: DistillSettings, config: Any, where: dict[str, Any], device: torch.device) -> Any:
    name = settings.teacher_name_or_path
    if recorded_conversion(config) is not None:
        model = load_converted(name, dtype=settings.teacher_dtype)
    else:
        model = load_causal_lm(name, config, dtype=settings.teacher_dtype, **where)
    return model.to(device).eval().requires_grad_(False)


def _folder_of(settings: DistillSettings, where: dict[str, Any]) -> Path:
    """The folder that holds the teacher's files, in the cache when it was given by name."""
    path = Path(settings.teacher_name_or_path).expanduser()
    if path.is_dir():
        return path
    from transformers.utils.hub import cached_file

    found = cached_file(
        settings.teacher_name_or_path,
        "config.json",
        revision=where["revision"],
        local_files_only=not settings.allow_download,
    )
    return Path(str(found)).parent
