"""The model that answers: opened once, asked in batches, every batch a function of its prompts and its seed alone.

Prompts are padded on the left, so that every answer begins right after its prompt. Needs transformers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onebit.errors import ConfigError, DataError, MissingExtraError

__all__ = ["DTYPES", "Answer", "AnsweringModel", "Sampling", "model_fingerprint", "model_folder", "resolved_device"]

DTYPES = ("auto", "float32", "bfloat16", "float16")
# What decides an answer; optimizer state, logs and what we write beside it do not.
_MODEL_FILES = (
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "*.jinja"),
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model"),
)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are drawn; temperature 0 takes the likeliest token. thinking: let templates that can ask for it."""

    max_new_tokens: int
    temperature: float
    top_p: float
    thinking: bool


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model said; `finished` is False when it ran out of tokens."""

    text: str
    finished: bool


def model_folder(model_path: str) -> Path:
    """The folder of a model: the path itself, or the Hugging Face cache's for a model's name. Asks no network."""
    path = Path(model_path).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise DataError(f"--model-path '{path}' holds no config.json; give a model's folder")
        return path
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError
    except ModuleNotFoundError as missing:
        raise MissingExtraError("train", "onebit selfgen") from missing
    try:
        return Path(snapshot_download(model_path, local_files_only=True))
    except (HFValidationError, OSError):
        raise DataError(
            f"--model-path '{model_path}' is no folder here and no model in the Hugging Face cache; "
            "give a folder, or fetch it first with: hf download NAME"
        ) from None


def model_fingerprint(folder: Path) -> str:
    """Hash of the names and contents of the files that decide what a model answers."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted({path for pattern in _MODEL_FILES for path in folder.glob(pattern)}):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def resolved_device(device: str) -> str:
    """`device` after a check that torch has it; `auto` is the first of cuda, mps and cpu that it has."""
    try:
        import torch

        from onebit.models.devices import check_device
    except ModuleNotFoundError as missing:
        raise MissingExtraError("train", "onebit selfgen") from missing
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    check_device(device)
    return device


class AnsweringModel:
    """A causal language model with its tokenizer, of a local folder."""

    def __init__(self, folder: Path, *, device: str = "cpu", dtype: str = "auto") -> None:
        from onebit.models.quiet import quiet_transformers

        with quiet_transformers():
            self._model, self._tokenizer = _load(folder, dtype)
        self._model = self._model.to(device).eval()
        self._tokenizer.padding_side = "left"
        if self._tokenizer.pad_token_id is None:  # what is padded is masked, so any token will do
            self._tokenizer.pad_token = self._tokenizer.eos_token or self._tokenizer.convert_ids_to_tokens(0)
        self._ends = _end_tokens(self._model, self._tokenizer)

    @property
    def has_chat_template(self) -> bool:
        """Whether prompts are put to it as messages."""
        return bool(self._tokenizer.chat_template)

    def check_room(self, prompts: Sequence[str], sampling: Sampling) -> None:
        """Raise ConfigError when the longest prompt and its answer exceed the model's positions."""
        room = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        longest = max(len(self._tokenizer(text)["input_ids"]) for text in self._rendered(prompts, sampling))
        if room is not None and longest + sampling.max_new_tokens > room:
            raise ConfigError(
                f"--max-new-tokens {sampling.max_new_tokens}: with the longest prompt of {longest} tokens that is more "
                f"than the model's {room} positions; give at most {max(room - longest, 0)}"
            )

    def answer(self, prompts: Sequence[str], sampling: Sampling, seed: int) -> list[Answer]:
        """One answer for each prompt, drawn together; torch's random state is left as it was."""
        import torch

        from onebit.models.quiet import quiet_transformers

        encoded = self._tokenizer(
            self._rendered(prompts, sampling),
            return_tensors="pt",
            padding=True,
            add_special_tokens=not self.has_chat_template,  # a template writes its own
            return_token_type_ids=False,
        ).to(self._model.device)
        drawn: dict[str, Any] = {"do_sample": sampling.temperature > 0}
        if sampling.temperature > 0:
            drawn |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
        devices = [self._model.device] if self._model.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.inference_mode(), quiet_transformers():
            torch.manual_seed(seed)
            ids_BL = self._model.generate(
                **encoded,
                **drawn,
                max_new_tokens=sampling.max_new_tokens,
                pad_token_id=self._tokenizer.pad_token_id,
                eos_token_id=self._ends or None,
            )
        return [self._read(ids) for ids in ids_BL[:, encoded["input_ids"].shape[1] :].tolist()]

    def _rendered(self, prompts: Sequence[str], sampling: Sampling) -> list[str]:
        """The prompts as the model reads them: through its chat template, else as a line of text."""
        if not self.has_chat_template:
            return [f"{prompt}\n" for prompt in prompts]
        return [
            self._tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=sampling.thinking,  # templates that know no thinking do not look at it
            )
            for prompt in prompts
        ]

    def _read(self, ids: list[int]) -> Answer:
        end = next((place for place, token in enumerate(ids) if token in self._ends), None)
        text: str = self._tokenizer.decode(ids[:end], skip_special_tokens=True)
        return Answer(text=text.strip(), finished=end is not None)


def _load(folder: Path, dtype: str) -> tuple[Any, Any]:
    """The model and its tokenizer; a converted one with its BitLinear layers, without which it would babble."""
    try:
        from onebit.models.converted import load_converted, recorded_conversion
        from onebit.models.pretrained import describe_model, load_causal_lm, load_tokenizer_of
    except ModuleNotFoundError as missing:
        raise MissingExtraError("train", "onebit selfgen") from missing
    name = str(folder)
    config = describe_model(name)
    if recorded_conversion(config) is not None:
        return load_converted(folder, dtype=dtype), load_tokenizer_of(name)
    return load_causal_lm(name, config, dtype=dtype), load_tokenizer_of(name)


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end an answer: those of the model's generation settings and the tokenizer's own."""
    told = model.generation_config.eos_token_id
    ends = set(told) if isinstance(told, list) else {told}
    return sorted(int(token) for token in ends | {tokenizer.eos_token_id} if token is not None)
