"""Engine against the torch model it was exported from, over presets, granularities and activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onebit.engine import Model

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


def _exported(path: Path, preset: str, **fields: Any) -> Any:
    from onebit.formats import export, onebit_file
    from onebit.models import OneBitConfig, OneBitForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "hidden_size": 128, "num_layers": 2, "num_heads": 4, "intermediate_size": 192}
    model = OneBitForCausalLM(OneBitConfig.preset(preset, **sizes, **fields)).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:  # larger than the usual start, so that layers do something
            torch.nn.init.normal_(parameter, std=0.05)
    onebit_file.write(path, export.from_model(model, embedding_level="float32"))
    return model


@pytest.mark.parametrize("activation", ["none", "int8"])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_row", "per_group"])
@pytest.mark.parametrize("preset", ["seed", "bitnet", "llama", "qwen3"])
def test_logits(tmp_path: Path, preset: str, granularity: str, activation: str) -> None:
    fields: dict[str, Any] = {"granularity": granularity, "activation_quantizer": activation}
    if granularity == "per_group":
        fields["group_size"] = 64
    model = _exported(tmp_path / "model.1bit", preset, **fields)
    ids = np.random.default_rng(0).integers(0, 97, 40).tolist()
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits[0].numpy()
    error = np.abs(Model(tmp_path / "model.1bit").logits(ids, kv="float32") - theirs) / np.abs(theirs).max()
    # the product's bar; without a rounding flip about 5e-7 is seen
    assert np.median(error) <= 1e-4
    assert np.quantile(error, 0.99) <= (1e-4 if activation == "none" else 1e-3)
    assert error.max() <= (1e-4 if activation == "none" else 2e-2)
