"""Checks of a model configuration: every message names the field, what it holds and what it may hold."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Any, get_args

from onebit.errors import ConfigError, nearest_name
from onebit.quant import ActivationQuantizer, Granularity, QuantizerName
from onebit.quant.spec import check_name

if TYPE_CHECKING:
    from onebit.models.config import OneBitConfig

__all__ = ["LEVELS", "fill_derived", "validate"]

LEVELS = ("binary", "ternary", "int4", "int8", "float16", "float32")

_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_heads",
    "num_layers",
    "intermediate_size",
    "max_seq_len",
    "num_key_value_heads",
    "head_dim",
)
_FLAGS = (
    "use_ternary",
    "use_relu2",
    "use_swiglu",
    "use_subln",
    "use_rope",
    "use_qk_norm",
    "use_residual_scaling",
    "use_dynamic_threshold",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "use_sub_norm",
    "center_binary",
)
_POSITIVE = ("ste_scale_factor", "rope_theta", "norm_eps", "initializer_range")
_FRACTIONS = ("anneal_fraction", "lambda_warmup_fraction")


def fill_derived(config: OneBitConfig) -> None:
    """Fill in what follows from other fields when it is not given: key-value heads, head size, an empty map."""
    if config.bit_width_map is None:
        config.bit_width_map = {}
    if config.num_key_value_heads is None:
        config.num_key_value_heads = config.num_heads
    if config.head_dim is None:
        for name in ("hidden_size", "num_heads"):
            value = getattr(config, name)
            _expect(config, name, _is_int(value) and value > 0, "a positive whole number")
        if config.hidden_size % config.num_heads:
            raise ConfigError(
                f"num_heads is {config.num_heads}, which does not divide hidden_size {config.hidden_size}; "
                "change one or give head_dim"
            )
        config.head_dim = config.hidden_size // config.num_heads


def validate(config: OneBitConfig) -> None:
    """Raise ConfigError for the first value that cannot work."""
    _check_types(config)
    _check_heads(config)
    _check_quantisation(config)
    _check_token_ids(config)


def _check_types(config: OneBitConfig) -> None:
    for name in _SIZES:
        _expect(config, name, _is_int(getattr(config, name)) and getattr(config, name) > 0, "a positive whole number")
    for name in _FLAGS:
        _expect(config, name, isinstance(getattr(config, name), bool), "true or false")
    for name in _POSITIVE:
        _expect(config, name, _is_number(getattr(config, name)) and getattr(config, name) > 0, "a positive number")
    for name in _FRACTIONS:
        value = getattr(config, name)
        optional = value is None and name == "lambda_warmup_fraction"
        _expect(config, name, optional or (_is_number(value) and 0 <= value <= 1), "a fraction between 0 and 1")
    clamp, arenas = config.latent_clamp_max, config.arenas_initial
    _expect(config, "latent_clamp_max", clamp is None or (_is_number(clamp) and clamp > 0), "a positive number or null")
    _expect(config, "arenas_initial", arenas is None or (_is_number(arenas) and arenas >= 0), "a number >= 0 or null")
    steps = config.arenas_anneal_steps
    _expect(config, "arenas_anneal_steps", _is_int(steps) and steps > 0, "a positive whole number")


def _check_heads(config: OneBitConfig) -> None:
    heads, kv_heads, head_dim = config.num_heads, config.num_key_value_heads, config.head_dim
    assert kv_heads is not None  # filled in before validation
    assert head_dim is not None
    if heads % kv_heads:
        raise ConfigError(f"num_key_value_heads is {kv_heads}, which does not divide num_heads {heads}")
    if config.use_rope and head_dim % 2:
        raise ConfigError(f"head_dim is {head_dim}, expected an even number with use_rope")


def _check_quantisation(config: OneBitConfig) -> None:
    if config.quantizer is not None:
        check_name("quantizer", config.quantizer, (*get_args(QuantizerName), "none"))
    check_name("granularity", config.granularity, get_args(Granularity))
    check_name("activation_quantizer", config.activation_quantizer, get_args(ActivationQuantizer))
    if config.weight_sparsity_threshold is not None and config.resolved_quantizer != "sparsity":
        raise ConfigError(
            f"weight_sparsity_threshold is {config.weight_sparsity_threshold}, which needs quantizer 'sparsity' "
            f"(or use_ternary with quantizer null), but the quantizer is {config.resolved_quantizer!r}"
        )
    bit_width_map = config.bit_width_map
    _expect(config, "bit_width_map", isinstance(bit_width_map, dict), "an object: module name pattern -> level")
    assert bit_width_map is not None
    names = config.module_names()
    for pattern, level in bit_width_map.items():
        check_name(f"bit_width_map[{pattern!r}]", level, LEVELS)
        if not fnmatch.filter(names, pattern):
            hint = nearest_name(pattern, names)
            raise ConfigError(f"bit_width_map names {pattern!r}, which matches no module of this model{hint}")
    # Patterns are settled now: a saved configuration has its keys sorted, so that another one would match first.
    matches = {name: [p for p in bit_width_map if fnmatch.fnmatchcase(name, p)] for name in names}
    config.bit_width_map = {name: bit_width_map[found[0]] for name, found in matches.items() if found}
    config.weight_quantizer("layers.0.mlp.up_proj")  # group size and sparsity are checked by the spec
    if config.tie_word_embeddings and config.weight_quantizer("embed_tokens") != config.weight_quantizer("lm_head"):
        raise ConfigError(
            f"bit_width_map gives embed_tokens the level {config.level('embed_tokens')!r} and lm_head "
            f"{config.level('lm_head')!r}, but tie_word_embeddings makes them one tensor; give both the same level"
        )


def _check_token_ids(config: OneBitConfig) -> None:
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(config, name)
        for token in value if isinstance(value, list) else [value]:
            in_range = token is None or (_is_int(token) and 0 <= token < config.vocab_size)
            _expect(config, name, in_range, f"null or a token id below vocab_size {config.vocab_size}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _expect(config: OneBitConfig, name: str, holds: bool, wanted: str) -> None:
    if not holds:
        raise ConfigError(f"{name} is {getattr(config, name)!r}, expected {wanted}")
