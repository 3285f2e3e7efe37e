"""A torch model to a ``.1bit`` file: the codes and scales that training used, carried over exactly.

The model's own quantisers say what each matrix becomes; nothing is quantised anew except embeddings and head that were
trained as floats and are stored at ``embedding_level``, and the head's inputs (``head_activation``). The defaults make
the head an integer product: int8 codes on both sides, twice as fast as float16 and half its bytes; what that costs in
loss is measured by ``onebit.eval.tables_cost``. What the format cannot carry is a ConfigError that names the
field, never an approximation. torch stays out of this module's imports: the model brings its own methods.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from onebit.errors import ConfigError, FormatError
from onebit.formats.anatomy import Part, describe_transformers, is_own, parts_of
from onebit.formats.description import ModelDescription, TensorPlan
from onebit.formats.export_tensors import check_choices, tensor_of
from onebit.formats.export_text import binary_of, chat_strings_of, json_of
from onebit.formats.hadamard_section import Rotation, rotation_at
from onebit.formats.layout import Kind
from onebit.formats.onebit_file import OneBitFile

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from onebit.models import OneBitConfig, OneBitForCausalLM

__all__ = ["config_json", "describe", "from_model", "shell_of"]


def from_model(
    model: OneBitForCausalLM | PreTrainedModel,
    tokenizer: Any = None,
    *,
    pack_mode: str | None = None,
    layout: str = "run",
    embedding_level: str | None = None,
    head_activation: str | None = None,
    chat_template: str | None = None,
    manifest: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> OneBitFile:
    """Everything of a model as a OneBitFile: one of ours, or one of transformers with BitLinears (`load_converted`) or
    Pure1BitLinears of the families in `anatomy.FAMILIES`.

    ``tokenizer``: a ``tokenizers.Tokenizer``, a fast transformers tokenizer, the JSON text, or None. ``pack_mode``
    says how ternary matrices are packed (``ternary`` 2 bits, ``ternary5`` 1.6 bits); ``binary`` is for models without
    ternary ones; None takes what the model is. Matrices that ``bit_width_map`` gives another level are stored at that
    level, and so are embedding and head of a model that was converted with ``tables``. Embeddings and head trained as
    floats are stored at ``embedding_level`` (int8 unless given). The head's inputs are rounded to ``head_activation``:
    int8 unless given, when its weights are floats stored as int8 or int4; as in training, when they were quantised.
    """
    choices = check_choices(pack_mode, layout, embedding_level, head_activation)
    shell = shell_of(model, tokenizer, chat_template=chat_template, manifest=manifest)
    description = shell.description
    if description.tied_head:
        choices = replace(choices, head=Kind.TOKEN_EMBEDDING)
    plans, parts = list(description.plan()), parts_of(model, description)
    choices = replace(choices, head_inputs=getattr(parts["lm_head"].module, "activation_quantizer", "none"))
    _refuse_unknown_parameters(model, plans, parts)
    _check_pack_mode(pack_mode, plans, parts)
    tensors = {}
    rotations: dict[str, Rotation] = {}
    for index, plan in enumerate(plans):
        tensor = tensor_of(plan, parts, choices)
        if tensor is not None:
            tensors[plan.name] = tensor
            if tensor.turned:
                rotations |= rotation_at(plan, parts[plan.name.removesuffix(".weight")].module.rotation)
        if progress is not None:
            progress(index + 1, len(plans))
    return replace(shell, tensors=tensors, rotations=rotations)


def shell_of(
    model: OneBitForCausalLM | PreTrainedModel,
    tokenizer: Any = None,
    *,
    chat_template: str | None = None,
    manifest: dict[str, Any] | None = None,
) -> OneBitFile:
    """The file of a model without its tensors; arguments as of `from_model`."""
    description = describe(cast(Any, model.config)) if is_own(model) else _describe_other(model)
    tokenizer_json = json_of(tokenizer)
    template = chat_template or getattr(tokenizer, "chat_template", None)
    return OneBitFile(
        description=description,
        tensors={},
        config=config_json(model.config),
        tokenizer_json=tokenizer_json,
        tokenizer_binary=binary_of(tokenizer_json, description),
        chat_template=template,
        chat_strings=chat_strings_of(template, tokenizer_json, description),
        manifest=manifest,
    )


def describe(config: OneBitConfig) -> ModelDescription:
    """The MODEL section of a configuration; ConfigError names a field that a file cannot carry."""
    values: Any = config
    eos = _one_eos(config)
    try:
        return ModelDescription(
            vocab_size=values.vocab_size,
            hidden_size=values.hidden_size,
            num_layers=values.num_layers,
            num_heads=values.num_heads,
            num_key_value_heads=values.num_key_value_heads,
            head_dim=values.head_dim,
            intermediate_size=values.intermediate_size,
            max_seq_len=values.max_seq_len,
            norm="rmsnorm" if values.use_subln else "layernorm",
            mlp=values.mlp_kind,
            position="rope" if values.use_rope else "learned",
            qk_norm=values.use_qk_norm,
            sub_norm=values.use_sub_norm,
            tied_head=values.tie_word_embeddings,
            norm_eps=values.norm_eps,
            rope_theta=values.rope_theta,
            residual_scale=values.residual_scale,
            bos=values.bos_token_id,
            eos=eos,
            pad=values.pad_token_id,
        )
    except FormatError as error:
        raise ConfigError(f"a .1bit file cannot carry this configuration: {error}") from None


def _describe_other(model: Any) -> ModelDescription:
    try:
        return describe_transformers(model, _one_eos(model.config))
    except FormatError as error:
        raise ConfigError(f"a .1bit file cannot carry this configuration: {error}") from None


def _one_eos(config: Any) -> int | None:
    eos: Any = config.eos_token_id
    if isinstance(eos, list):
        if len(eos) > 1:
            raise ConfigError(f"eos_token_id is {eos}: a .1bit file carries one; keep the one that ends an answer")
        eos = eos[0] if eos else None
    found: int | None = eos
    return found


def _refuse_unknown_parameters(model: Any, plans: list[TensorPlan], parts: dict[str, Part]) -> None:
    known = {"lm_head.weight"}  # a tied one may be a copy
    held = set()
    for plan in plans:
        path, _, parameter = plan.name.rpartition(".")
        known |= {plan.name, f"{plan.name}.log_scale"}
        value = getattr(getattr(parts.get(path), "module", None), parameter, None)
        # Of a weight that is codes, the scale is a parameter.
        held |= {id(value), id(getattr(value, "log_scale", value))}
    own = is_own(model)
    unknown = sorted(
        name for name, value in model.named_parameters() if (name not in known if own else id(value) not in held)
    )
    if unknown:
        names = ", ".join(unknown[:3])
        raise ConfigError(
            f"the model has {len(unknown)} parameters that a .1bit file does not know ({names}); merge adapters first"
        )


def _check_pack_mode(pack_mode: str | None, plans: list[TensorPlan], parts: dict[str, Part]) -> None:
    """A pack mode that names what the model does not have is a mistake, not a wish to convert."""
    found = [parts.get(plan.name.rpartition(".")[0]) for plan in plans if plan.required]
    specs = [part.weight_quantizer for part in found if part is not None]
    levels = Counter("ternary" if spec.is_ternary else spec.quantizer for spec in specs if spec is not None)
    if pack_mode == "binary" and levels["ternary"]:
        raise ConfigError(
            f"pack_mode is binary, but {levels['ternary']} matrices of the model are ternary (config field quantizer"
            " or bit_width_map); use --pack-mode ternary or ternary5"
        )
    if pack_mode == "binary" and not levels["binary"]:
        raise ConfigError("pack_mode is binary, but no matrix of the model is (config field quantizer); leave it out")
    if pack_mode in ("ternary", "ternary5") and not levels["ternary"]:
        other = "binary" if levels["binary"] else "neither ternary nor binary"
        raise ConfigError(
            f"pack_mode is {pack_mode}, but the model is {other} (config field quantizer); use the one that fits"
        )


def config_json(config: Any) -> dict[str, Any]:
    """The configuration as it is saved, without what transformers notes about the machine it was loaded on."""
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    dropped = ("_name_or_path", "transformers_version", "name_or_path")
    return {key: value for key, value in values.items() if key not in dropped}
