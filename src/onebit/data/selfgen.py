"""Instruction data that a model writes itself: seed prompts asked in batches, answers judged, the good ones kept.

What shaped it: converting a model works best on text of the model's own kind, and a run takes hours, so it may be
killed at any point. Which prompts a batch holds and how its answers are drawn depends on the settings and on the
batch's number alone, and every finished batch is in the journal beside the data: a resumed run gives the same file as
one that was never stopped. Asking for more samples later goes on from there too.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onebit import __version__
from onebit.data.documents import open_source
from onebit.data.selfgen_filters import REASONS, content_hash, drop_reason
from onebit.data.selfgen_journal import Batch, Journal
from onebit.data.selfgen_model import (
    Answer,
    AnsweringModel,
    model_fingerprint,
    model_folder,
    resolved_device,
)
from onebit.data.selfgen_settings import SelfgenResult, SelfgenSettings, summary_path
from onebit.errors import ConfigError, DataError

__all__ = ["SEED_PROMPTS", "judge", "prompts_of_batch", "read_prompts", "selfgen"]

SEED_PROMPTS = Path(__file__).with_name("seed_prompts.txt")
TRIES = 10  # answers asked for each wanted sample before giving up
Progress = Callable[[int, int], None]


def selfgen(settings: SelfgenSettings, progress: Progress | None = None) -> SelfgenResult:
    """Write `num` samples of the model's own to `out`, one a line, and a summary beside it; resumes by itself.

    With a chat template a sample is {"prompt": [user message], "completion": [assistant message], "source"}, without
    one the two are plain text: the forms that TRL's SFTTrainer takes and masks the prompt of (a plain text under
    "prompt" beside a column "messages" would make it fail). Ctrl-C ends the run with what is there, `progress` is
    called with (samples, wanted).

    Raises:
        ConfigError, DataError, MissingExtraError: with one line that says what to change.
    """
    began = time.monotonic()
    prompts = read_prompts(settings.prompts)
    device = resolved_device(settings.device)
    folder = model_folder(settings.model_path)
    identity = _identity(settings, prompts, model_fingerprint(folder), device)
    path = settings.out.with_name(f"{settings.out.name}.journal")
    if settings.resume and settings.out.exists() and not path.exists():
        raise ConfigError(
            f"--out '{settings.out}' is there and no run's; give another name, or --no-resume to replace it"
        )
    with Journal.open(path, identity, resume=settings.resume) as journal:
        status = "complete"
        try:
            if not _is_done(journal, settings):
                model = AnsweringModel(folder, device=device, dtype=settings.dtype)
                model.check_room(prompts, settings.sampling)
                _fill(journal, model, prompts, settings, progress)
        except KeyboardInterrupt:
            status = "interrupted"
        if status == "complete" and len(journal.kept) < settings.num:
            status = "short"
        result = _result(journal, settings, status, time.monotonic() - began)
    if status == "short" and not result.samples:
        raise DataError(
            f"none of {result.asked} answers of '{settings.model_path}' was good (dropped for "
            f"{_reasons(result.dropped)}); look at what the model says, or give it more --max-new-tokens"
        )
    _write(result, journal.kept[: settings.num], settings)
    return result


def read_prompts(path: Path | None) -> list[str]:
    """The prompts of a file: each line of a .txt file but those that begin with #, or the column `prompt` of others.

    Raises:
        DataError: no such file, no such column, or no prompt in it.
    """
    path = SEED_PROMPTS if path is None else path
    if path.suffix == ".txt":
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise DataError(f"--prompts: cannot read '{path}': {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise DataError(f"--prompts: '{path}' is not UTF-8 text: byte {error.start}") from None
        prompts = [line.strip() for line in lines if not line.startswith("#")]
    else:
        prompts = [piece.text.strip() for piece in open_source(str(path), text_column="prompt").pieces()]
    prompts = [prompt for prompt in prompts if prompt]
    if not prompts:
        raise DataError(f"--prompts: '{path}' holds no prompt; write one a line")
    return prompts


def prompts_of_batch(prompts: Sequence[str], batch: int, batch_size: int, seed: int) -> list[str]:
    """The prompts of a batch, counted from 0: all in an order of the seed's, then all again in another one."""
    orders: dict[int, list[str]] = {}
    chosen = []
    for place in range(batch * batch_size, (batch + 1) * batch_size):
        turn, index = divmod(place, len(prompts))
        if turn not in orders:
            orders[turn] = random.Random(f"{seed}:{turn}").sample(list(prompts), len(prompts))
        chosen.append(orders[turn][index])
    return chosen


def judge(prompts: Sequence[str], answers: Sequence[Answer], seen: set[str], *, as_messages: bool) -> Batch:
    """What becomes of the answers of one batch; `seen`: content hashes of all answers kept before."""
    kept: list[dict[str, Any]] = []
    hashes: list[str] = []
    dropped, cut_off = Counter[str](), 0
    for prompt, answer in zip(prompts, answers, strict=True):
        reason = drop_reason(answer.text, seen | set(hashes))
        if reason is not None:
            dropped[reason] += 1
            continue
        kept.append(_sample(prompt, answer.text, as_messages))
        hashes.append(content_hash(answer.text))
        cut_off += not answer.finished
    return Batch(kept=kept, hashes=hashes, dropped=dict(dropped), cut_off=cut_off)


def _sample(prompt: str, answer: str, as_messages: bool) -> dict[str, Any]:
    if not as_messages:
        return {"prompt": f"{prompt}\n", "completion": answer, "source": "selfgen"}
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": answer}],
        "source": "selfgen",
    }


def _fill(
    journal: Journal,
    model: AnsweringModel,
    prompts: Sequence[str],
    settings: SelfgenSettings,
    progress: Progress | None,
) -> None:
    """Ask batch after batch until there is enough, or hope is lost."""
    while not _is_done(journal, settings):
        if progress is not None:
            progress(len(journal.kept), settings.num)
        asked = prompts_of_batch(prompts, journal.batches, settings.batch_size, settings.seed)
        answers = model.answer(asked, settings.sampling, _seed_of(settings.seed, journal.batches))
        journal.append(judge(asked, answers, journal.hashes, as_messages=model.has_chat_template))
    if progress is not None:
        progress(settings.num, settings.num)


def _is_done(journal: Journal, settings: SelfgenSettings) -> bool:
    return len(journal.kept) >= settings.num or journal.batches * settings.batch_size >= TRIES * settings.num


def _seed_of(seed: int, batch: int) -> int:
    """A batch's own seed: far from those of its neighbours and of the same batch under another seed."""
    digest = hashlib.blake2b(f"{seed}:{batch}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def _identity(settings: SelfgenSettings, prompts: Sequence[str], model: str, device: str) -> dict[str, Any]:
    """What two invocations must share for their batches to be the same; `num` only says where to stop."""
    return {
        "model": model,
        "prompts": hashlib.blake2b("\n".join(prompts).encode(), digest_size=16).hexdigest(),
        "seed": settings.seed,
        "batch_size": settings.batch_size,
        **asdict(settings.sampling),
        "device": device.partition(":")[0],
        "dtype": settings.dtype,
    }


def _result(journal: Journal, settings: SelfgenSettings, status: str, seconds: float) -> SelfgenResult:
    return SelfgenResult(
        out=settings.out,
        status=status,
        samples=min(len(journal.kept), settings.num),
        wanted=settings.num,
        asked=journal.batches * settings.batch_size,
        dropped={reason: journal.dropped[reason] for reason in REASONS},
        cut_off=journal.cut_off,
        seconds=seconds,
    )


def _reasons(dropped: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in dropped.items() if count)


def _write(result: SelfgenResult, samples: list[dict[str, Any]], settings: SelfgenSettings) -> None:
    told = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(settings).items()}
    summary = {**result.to_dict(), "settings": told, "onebit": __version__}
    lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
    _replace(result.out, lines)
    _replace(summary_path(result.out), json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def _replace(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all; the journal has it all, so nothing need reach the disk now."""
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
