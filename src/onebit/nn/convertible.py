"""Which modules of a model can become a BitLinear, and for each linear layer that cannot, why.

A tied weight is changed only if all who read it can be; an embedding only where tables are asked for. Needs no
transformers: its Conv1D and its trainable BitNet layer are known by their class names.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from onebit.errors import ConfigError, OnebitError, nearest_name
from onebit.nn.bit_linear import BitLinear

__all__ = ["DEFAULT_EXCLUDE", "choose", "is_conv1d", "is_linear", "matching"]

DEFAULT_EXCLUDE = ("lm_head", "embed")
"""What stays float unless `exclude_patterns` is given; so does the layer that `get_output_embeddings()` names."""

# Names of the float ends in one architecture or another. A list of them serves many models, so none must match.
_CUSTOMARY = frozenset({"lm_head", "embed", "embedding", "embeddings", "embed_tokens", "embed_out", "wte", "wpe"})


def choose(
    model: nn.Module, exclude_patterns: Sequence[str] | None, *, tables: bool = False, required: bool = True
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """(layers to replace, reasons of those kept), both by name.

    tables: the embedding of tokens and the head too, which no pattern of DEFAULT_EXCLUDE keeps then. Raises OnebitError
    when a pattern names no module, when nothing can be replaced and nothing was before (unless not required), or
    tables cannot.
    """
    names = {module: name for name, module in model.named_modules()}
    table = _token_embedding(model) if tables else None
    if exclude_patterns is None:
        excluded = matching(names, DEFAULT_EXCLUDE) | _output_embeddings(model)
        excluded -= {table, *_output_embeddings(model)} if table is not None else set()
    else:
        _check_patterns(names, exclude_patterns)
        excluded = matching(names, exclude_patterns)
    kept = {id(module): why for module in names if (why := _why_kept(module, module in excluded))}
    if table is not None and (why := _why_table_kept(table, table in excluded)):
        kept[id(table)] = why
    chosen = [module for module in names if (is_linear(module) or module is table) and id(module) not in kept]
    _keep_tied(model, chosen, kept)
    if table is not None and id(table) in kept and table not in excluded:
        raise OnebitError(f"tables: the embedding {names[table]} cannot be quantised: {kept[id(table)]}")
    layers = {names[module]: module for module in chosen if id(module) not in kept}
    if required and not layers and not any(isinstance(module, BitLinear) for module in names):
        raise OnebitError(_nothing_to_replace(names, kept))
    return layers, {name: kept[id(module)] for module, name in names.items() if id(module) in kept}


def _matches(name: str, pattern: str) -> bool:
    if any(sign in pattern for sign in "*?["):
        return fnmatch.fnmatchcase(name, pattern)
    # "layer.1" must not find "layer.10".
    before = r"(?<!\d)" if pattern[:1].isdigit() else ""
    after = r"(?!\d)" if pattern[-1:].isdigit() else ""
    return re.search(before + re.escape(pattern) + after, name) is not None


def matching(names: dict[nn.Module, str], patterns: Iterable[str]) -> set[nn.Module]:
    """The modules whose name one of the patterns finds."""
    patterns = list(patterns)
    return {module for module, name in names.items() if any(_matches(name, pattern) for pattern in patterns)}


def _check_patterns(names: dict[nn.Module, str], patterns: Sequence[str]) -> None:
    if isinstance(patterns, str):
        raise ConfigError(f"exclude_patterns is {patterns!r}, expected a list of patterns: [{patterns!r}]")
    for pattern in patterns:
        if pattern in _CUSTOMARY or (pattern and any(_matches(name, pattern) for name in names.values())):
            continue
        parts = {part for name in names.values() for part in name.split(".")}
        hint = nearest_name(pattern, names.values()) or nearest_name(pattern, parts)
        hint = hint or f"; its modules are named like {', '.join(sorted(part for part in parts if part)[:8])}"
        raise OnebitError(f"exclude_patterns: {pattern!r} is in the name of no module of the model{hint}")


def _output_embeddings(model: nn.Module) -> set[nn.Module]:
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if callable(getter) else None
    return {head} if isinstance(head, nn.Module) else set()


def _token_embedding(model: nn.Module) -> nn.Module | None:
    """The table to quantise; None where it is quantised already."""
    getter = getattr(model, "get_input_embeddings", None)
    table = getter() if callable(getter) else None
    if not isinstance(table, nn.Embedding):
        raise OnebitError(f"tables: {type(model).__name__} has no nn.Embedding of tokens; convert without tables")
    return None if getattr(table, "weight_quantizer", None) is not None else table


def is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and hasattr(module, "nx")


def is_linear(module: nn.Module) -> bool:
    return type(module) is nn.Linear or is_conv1d(module) or _is_online_bitlinear(module)


def _is_online_bitlinear(module: nn.Module) -> bool:
    """transformers' trainable BitNet layer: latents that it rounds in every forward pass, as BitLinear does."""
    is_online = type(module).__name__ == "AutoBitLinear" and getattr(module, "online_quant", False)
    return bool(is_online and getattr(module, "rms_norm", None) is None)


def _why_kept(module: nn.Module, is_excluded: bool) -> str | None:
    """Why a layer that computes x W^T stays as it is; None for one to be replaced and for every other module."""
    kind = type(module).__name__
    if isinstance(module, BitLinear):
        return "already a BitLinear"
    if not is_linear(module):
        if isinstance(module, nn.Linear):
            return f"a subclass of nn.Linear ({kind}), whose forward may do more"
        packed = getattr(module, "weight", None)
        if kind.endswith("Linear") and isinstance(packed, torch.Tensor) and packed.dtype == torch.uint8:
            return f"packed codes ({kind}); load a revision with latent weights to train it"
        return None
    if is_excluded:
        return "excluded by its name"
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        return "its weight is computed by a hook or a parametrisation"
    if not module._parameters["weight"].is_floating_point():  # type: ignore[union-attr]
        return f"its weight is {module.weight.dtype}, not float"
    if module.weight.numel() == 0:  # type: ignore[operator]
        return "its weight is empty"
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance; convert before dispatching or patching the model"
    return None


def _why_table_kept(table: nn.Module, is_excluded: bool) -> str | None:
    if is_excluded:
        return "excluded by its name"
    kind = type(table).__name__
    # Any other class may do more than look up; one of ours has no quantiser here.
    if type(table) is not nn.Embedding and kind != "BitEmbedding":
        return f"a subclass of nn.Embedding ({kind}), whose forward may do more"
    if table.max_norm is not None or table.scale_grad_by_freq or table.sparse:
        return "it renormalises its rows or their gradients (max_norm, scale_grad_by_freq or sparse)"
    return None


def _keep_tied(model: nn.Module, chosen: list[nn.Module], kept: dict[int, str]) -> None:
    """Keep a layer whose weight another module reads that stays float."""
    readers: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                readers.setdefault(id(parameter), []).append((name, module))
    becoming = {id(module) for module in chosen}
    for module in chosen:
        for name, other in readers[id(module.weight)]:
            # A Conv1D reads it transposed, so that one weight cannot serve both.
            if id(other) not in becoming or is_conv1d(other) != is_conv1d(module):
                kept[id(module)] = f"its weight is tied to {name} ({type(other).__name__}), which stays float"
                break


def _nothing_to_replace(names: dict[nn.Module, str], kept: dict[int, str]) -> str:
    reasons = [f"{name or 'the model'}: {kept[id(module)]}" for module, name in names.items() if id(module) in kept]
    if not reasons:
        return "the model has no nn.Linear or Conv1D layer to replace; expected a model with linear layers"
    return f"none of the model's {len(reasons)} linear layers can be replaced ({reasons[0]}); see exclude_patterns"
