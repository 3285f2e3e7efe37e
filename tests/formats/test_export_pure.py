"""A model of pure training becomes a file as it is: the codes and scales that were trained, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from onebit.engine import library_path  # noqa: E402
from onebit.errors import EngineError  # noqa: E402
from onebit.formats.export import from_model  # noqa: E402
from onebit.formats.onebit_file import read, write  # noqa: E402
from onebit.models import OneBitConfig, OneBitForCausalLM  # noqa: E402
from onebit.nn import (  # noqa: E402
    create_pure1bit_optimizer,
    replace_linear_with_pure1bit_linear,
    replace_pure1bit_linear_with_bitlinear,
)

IDS = np.random.default_rng(0).integers(3, 120, 48)
SIZE = {"vocab_size": 120, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
ENDS = {"bos_token_id": 1, "eos_token_id": 2}


def make(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "onebit":
        own = {"num_layers": 2, "num_heads": 4, "max_seq_len": 64, "intermediate_size": 80, "use_ternary": True}
        return OneBitForCausalLM(OneBitConfig(vocab_size=120, hidden_size=48, **own, **ENDS))
    if kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=120, n_embd=48, n_layer=2, n_head=4, n_positions=64, **ENDS)
    else:
        name = {"llama": "LlamaConfig", "phi3": "Phi3Config"}[kind]
        more = {"intermediate_size": 80, "max_position_embeddings": 64, "sliding_window": None, "pad_token_id": 0}
        config = getattr(transformers, name)(**SIZE, **more, **ENDS)
    return transformers.AutoModelForCausalLM.from_config(config)


# phi3 has one projection for queries, keys and values, which a file holds as three.
@pytest.mark.parametrize(
    ("kind", "conversion"),
    [
        ("gpt2", {}),
        ("llama", {"quantizer": "binary", "granularity": "per_row"}),
        ("phi3", {"granularity": "per_group", "group_size": 64, "counter": "int4"}),
        ("onebit", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_file_is_that_of_the_codes_and_the_engine_computes_as_the_model(
    kind: str, conversion: dict[str, Any], tmp_path: Path
) -> None:
    model = replace_linear_with_pure1bit_linear(make(kind), activation_quantizer="none", **conversion)
    optimizer, helper = create_pure1bit_optimizer(model, lr=1e-2, eta=0.5)
    ids = torch.as_tensor(IDS)[None]
    for _ in range(3):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    helper.cleanup()
    with torch.inference_mode():
        expected = model.eval()(ids, use_cache=False).logits[0].numpy()
    file = from_model(model, embedding_level="float32")
    write(tmp_path / "model.1bit", file)

    latents = from_model(replace_pure1bit_linear_with_bitlinear(model), embedding_level="float32")
    dtype = np.float16 if "group_size" in conversion else np.float32
    stored = read(tmp_path / "model.1bit").tensors
    assert stored.keys() == latents.tensors.keys()
    for name, tensor in latents.tensors.items():
        assert stored[name].geometry == tensor.geometry
        assert stored[name].activation == tensor.activation
        np.testing.assert_array_equal(stored[name].data, tensor.data, err_msg=name)
        scales = [each.scale_data.view(dtype) for each in (stored[name], tensor)]
        np.testing.assert_allclose(*scales, rtol=2.0**-22, err_msg=name)  # as near as float32 latents can come

    try:
        library_path()
    except EngineError as problem:
        pytest.skip(str(problem))
    from onebit.engine import Model

    logits = Model(tmp_path / "model.1bit").logits(IDS, kv="float32")
    # As tests/parity: without rounded activations only the order of sums differs. Our own model rounds to int8.
    assert np.abs(logits - expected).max() < (2e-2 if kind == "onebit" else 1e-4) * np.abs(expected).max()
