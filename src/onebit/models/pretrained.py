"""Float and latent models by folder or name, from this machine alone unless a download is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from onebit.errors import ConfigError, DataError, nearest_name
from onebit.models.pure_checkpoint import fill_with_codes, unreadable_codes, weights_of_codes
from onebit.models.quiet import quiet_transformers
from onebit.nn.packed_bitnet import replace_packed_with_linear

__all__ = ["DTYPES", "describe_model", "load_causal_lm", "load_tokenizer_of"]

DTYPES = ("auto", "float32", "bfloat16", "float16")


def describe_model(
    name: str, *, revision: str | None = None, allow_download: bool = False, takes_codes: bool = False
) -> Any:
    """The configuration of a model's folder, or of a model by name. takes_codes: packed BitNet codes will do.

    Raises:
        DataError: there is no such model here, or it holds packed codes, which cannot be trained.
    """
    config = _fetch(AutoConfig, name, revision, allow_download, "model")
    told = getattr(config, "quantization_config", None)
    if told is not None:
        told = told if isinstance(told, dict) else told.to_dict()
        method = str(getattr(told["quant_method"], "value", told["quant_method"]))
        if (method != "bitnet" or _is_packed(config)) and not (takes_codes and method == "bitnet"):
            told_pure = ", or train its codes themselves with onebit sft --pure" if method == "bitnet" else ""
            raise DataError(
                f"'{name}' holds weights packed by '{method}', which cannot be trained; give its revision or "
                "repository of latents (Falcon-E: --model-revision prequantized; BitNet 2B-4T: the one ending in -bf16)"
                + told_pure
            )
    return config


def load_causal_lm(
    name: str,
    config: Any,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    allow_download: bool = False,
    codes_follow: bool = False,
) -> Any:
    """The causal language model of a configuration that `describe_model` gave, its latents, or the codes times scale
    of packed ones, as plain linear layers.

    A checkpoint of pure training holds codes: with `codes_follow` the caller fills them in (`fill_with_codes`) when the
    layers are converted; in models of `onebit train` they are filled in here.

    Raises:
        ConfigError: an unknown dtype. DataError: weights are missing, damaged or of other shapes, or are codes and
            nothing says how they are read.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"--dtype is '{dtype}'; it must be one of {', '.join(DTYPES)}{nearest_name(dtype, DTYPES)}")
    is_packed = _is_packed(config)
    if not is_packed and getattr(config, "quantization_config", None) is not None:
        # Latents of a model that quantises itself: plain linear layers, for ours to replace.
        del config.quantization_config
    folder = Path(name).expanduser()
    codes = weights_of_codes(folder)
    if codes and not (codes_follow or config.model_type == "onebit"):
        raise DataError(unreadable_codes(name))
    model, loading = _fetch(
        AutoModelForCausalLM,
        name,
        revision,
        allow_download,
        "model",
        config=config,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    for what in ("missing_keys", "mismatched_keys"):
        found = {key if isinstance(key, str) else str(key[0]) for key in loading.get(what) or ()}
        if names := sorted(found - codes):
            raise DataError(
                f"'{name}': its weights do not fit its config.json: {len(names)} {what.replace('_', ' ')} "
                f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            )
    if is_packed:
        replace_packed_with_linear(model, model.dtype)
        if left := [each for each, tensor in model.state_dict().items() if tensor.dtype == torch.uint8]:
            raise DataError(f"'{name}': packed layers of a kind that cannot be trained ({left[0]}); give its latents")
    if not codes_follow:
        fill_with_codes(model, folder, codes)
    return model


def _is_packed(config: Any) -> bool:
    """Whether weights lie there as codes; of a model that quantises itself they are latents."""
    told = getattr(config, "quantization_config", None)
    if told is None:
        return False
    told = told if isinstance(told, dict) else told.to_dict()
    return told.get("quantization_mode") != "online"


def load_tokenizer_of(name: str, *, revision: str | None = None, allow_download: bool = False) -> Any:
    """The tokenizer of a model's folder or name, as transformers wraps it.

    Raises:
        DataError: there is none.
    """
    return _fetch(AutoTokenizer, name, revision, allow_download, "tokenizer")


def _fetch(kind: Any, name: str, revision: str | None, allow_download: bool, what: str, **more: Any) -> Any:
    path = Path(name).expanduser()
    is_folder = path.is_dir()
    if is_folder and not (path / "config.json").is_file():
        raise DataError(f"the folder '{name}' holds no config.json; give a model's folder")
    if not is_folder and (path.is_absolute() or name.startswith((".", "~"))):
        raise DataError(f"no folder '{name}'; give a model's folder or its name")
    try:
        with quiet_transformers():
            return kind.from_pretrained(
                str(path) if is_folder else name,
                revision=None if is_folder else revision,
                local_files_only=is_folder or not allow_download,
                **more,
            )
    except Exception as error:  # transformers and the hub client raise many kinds, all of which mean: not to be had
        if isinstance(error, (DataError, MemoryError)):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        if not is_folder and not allow_download:
            raise DataError(
                f"the {what} '{name}' is no folder here and not in the cache; give a folder, or --allow-download"
            ) from error
        raise DataError(f"the {what} '{name}' cannot be loaded: {reason[:300]}") from error
