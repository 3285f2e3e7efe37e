"""The hand-over file of the phase 4 guide: a converted model for whoever trains it further.

The guide writes a dictionary with ``torch.save`` and calls the file ``.safetensors``. Such files are read, by their
first bytes and not by their name, without pickle; what `save_phase4_model` writes is safetensors. Two kinds of weights
travel:

- latents, where the dictionary holds a converted model's ``state_dict()``: the model comes back converted, with the
  same codes;
- codes * scale in float16, which `save_phase4_model` writes: the model comes back as its own float class, in float32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onebit.errors import FormatError, OnebitError
from onebit.formats.atomic import beside

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["load_phase4_model", "save_phase4_model"]

_ZIP = b"PK\x03\x04"  # what torch.save has written since 2020
_KEY = "model_state_dict"


def save_phase4_model(model: nn.Module, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write codes * scale of a converted model as safetensors, in float16 unless `dtype` says otherwise.

    The file holds the model's configuration too, so that `load_phase4_model` needs nothing else.
    """
    import torch
    from safetensors.torch import save_file

    from onebit.nn.compressed_model import CompressedModel, dequantized_state_dict

    model = model.base_model if isinstance(model, CompressedModel) else model
    about = _description_in(model.state_dict())
    if about is None:
        raise OnebitError("the model is not converted; call replace_linear_with_bitlinear or CompressedModel first")
    about["replaced"] = []  # what is in the file is float
    state = dequantized_state_dict(model, dtype or torch.float16)
    shared = _tied_names(model)
    tensors = {name: tensor.contiguous() for name, tensor in state.items() if name not in shared}
    with beside(Path(path)) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", "onebit": json.dumps(about)})


def load_phase4_model(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The model in a file of `save_phase4_model`, or in a ``torch.save`` of a converted model's ``state_dict()``, alone
    or as ``model_state_dict`` in a dictionary.

    model: where to put the weights, for models that are no transformers models; converted beforehand if the weights are
    latents. Raises OnebitError when the file does not say what model it is and none is given, FormatError for a file
    that is neither kind.
    """
    path = Path(path)
    state, about = _read(path)
    if model is None:
        if about is None or about.get("config") is None:
            raise OnebitError(
                f"{path} holds weights but not what model they belong to; pass it: load_phase4_model(path, model)"
            )
        model = _make(about)
    expected = {name for name in model.state_dict() if "schedule." not in name}
    missing = sorted(expected - set(state) - _tied_names(model))
    unexpected = sorted(name for name in set(state) - expected if "schedule." not in name)
    if missing or unexpected:
        what, names = ("lacks", missing) if missing else ("has unexpected", unexpected)
        raise OnebitError(f"{path} {what} {len(names)} weights of {type(model).__name__}: {', '.join(names[:3])}")
    try:
        model.load_state_dict(dict(state), strict=False)
    except RuntimeError as error:
        raise OnebitError(f"{path} does not fit {type(model).__name__}: {' '.join(str(error).split())}") from None
    return model


def _read(path: Path) -> tuple[Mapping[str, torch.Tensor], dict[str, Any] | None]:
    """(weights by the model's names, what the file says of the model or None)."""
    with open(path, "rb") as file:
        is_zip = file.read(4) == _ZIP
    return _read_torch(path) if is_zip else _read_safetensors(path)


def _read_safetensors(path: Path) -> tuple[Mapping[str, torch.Tensor], dict[str, Any] | None]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(metadata["onebit"]) if "onebit" in metadata else None
    except (SafetensorError, ValueError) as error:
        raise FormatError(f"{path} is neither safetensors nor a file of torch.save: {error}") from None
    return state, about


def _read_torch(path: Path) -> tuple[Mapping[str, torch.Tensor], dict[str, Any] | None]:
    import pickle

    import torch

    try:
        # The guide's list of tokens ends in a literal `...`: a constant, which cannot run anything.
        constant: Any = (Ellipsis, "builtins.Ellipsis")
        # An open file: by its name, torch would take it for safetensors.
        with torch.serialization.safe_globals([constant]), open(path, "rb") as file:
            saved = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise FormatError(
            f"{path} holds more than tensors and plain values, which could run code on loading; save its "
            f"state_dict() instead ({' '.join(str(error).split())[:120]})"
        ) from None
    state = saved.get(_KEY, saved) if isinstance(saved, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise FormatError(f"{path} holds no state_dict, alone or as '{_KEY}'; expected one of a converted model")
    about = _description_in(state)
    prefix = "base_model."  # of a CompressedModel
    if about is not None and all(name.startswith(prefix) for name in state):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state, about


def _description_in(state: Mapping[str, Any]) -> dict[str, Any] | None:
    from onebit.nn.conversion import DESCRIPTION

    for metadata in getattr(state, "_metadata", {}).values():
        if DESCRIPTION in metadata:
            about: dict[str, Any] = json.loads(metadata[DESCRIPTION])
            return about
    return None


def _make(about: dict[str, Any]) -> nn.Module:
    """The model of a description, with random weights; converted where the description says so."""
    import transformers

    from onebit.nn.conversion import convert_layers
    from onebit.quant import WeightQuantizer

    settings = dict(about["config"])
    settings.pop("dtype", None)  # float32: what follows trains
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    kind = getattr(transformers, about["class"], None)
    if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
        model: nn.Module = kind(config)
    else:
        model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    if not (about["replaced"] or about["sub_norms"] or about["rmsnorm_post_attn"]):
        return model
    layers = {name: model.get_submodule(name) for name in about["replaced"]}
    return convert_layers(
        model,
        layers,
        WeightQuantizer(**about["quantizer"]),
        about["activation_quantizer"],
        hadamard_block=about["hadamard_block"],
        sub_norms=about["sub_norms"],
        rmsnorm_post_attn=about["rmsnorm_post_attn"],
    )


def _tied_names(model: nn.Module) -> set[str]:
    """Names of parameters beyond the first of each tensor: safetensors holds a tied weight once."""
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first.setdefault(id(parameter), name)
    return {n for n, p in model.named_parameters(remove_duplicate=False) if first[id(p)] != n}
