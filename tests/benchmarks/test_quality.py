"""The figures of benchmarks/quality.py from made-up samples, and one training run that must be repeatable."""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from onebit.eval.perplexity import token_losses, windows
from onebit.models import OneBitConfig

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of benchmarks/ as a module, without leaving its folder on the path."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def sample(method: str, loss: float) -> dict[str, object]:
    figures = {"loss": loss, "bits_per_byte": loss / 3, "perplexity_per_word": math.exp(loss)}
    return {"dataset": "tinyshakespeare", "method": method, **figures}


def test_ratios_are_of_mean_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    quality = load("quality", monkeypatch)
    samples = [sample("float", 4.0), sample("float", 5.0), sample("ternary", 4.4), sample("ternary", 5.0)]
    arguments = argparse.Namespace(dataset=["tinyshakespeare"], methods=["float", "ternary"])
    figures = quality.summarize(samples, arguments)
    assert figures["ternary_over_float_tinyshakespeare"] == pytest.approx(9.4 / 9.0, abs=1e-5)
    assert figures["ternary_over_float_tinyshakespeare_worst_seed"] == pytest.approx(1.1, abs=1e-5)
    assert figures["float_tinyshakespeare_ppl_per_word"] == pytest.approx(math.exp(4.5), rel=1e-3)


def test_twins_share_weights_and_batches_and_a_run_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = load("bare_training", monkeypatch)
    text_N = torch.randint(0, 50, (4000,), generator=torch.Generator().manual_seed(0))

    def losses(quantizer: str) -> list[float]:
        shape = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "intermediate_size": 64, "max_seq_len": 16}
        config = OneBitConfig.preset("bitnet", vocab_size=50, quantizer=quantizer, **shape)
        run = bare.Run(config=config, learning_rate=2e-3, steps=6, seed=1, context=16, evaluations=2)
        trained = bare.train(run, text_N[:3000], text_N[3000:])
        return [*trained.train_losses, *trained.selection_losses]

    first = losses("absmean")
    assert losses("absmean") == first
    assert losses("none") != first


def test_whole_text_loss_scores_every_token_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = load("bare_training", monkeypatch)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "intermediate_size": 64, "max_seq_len": 16}
    model = bare.OneBitForCausalLM(OneBitConfig.preset("bitnet", vocab_size=50, **shape)).eval()
    text_N = torch.randint(0, 50, (75,))
    expected = 0.0
    for w in windows(75, 16):
        with torch.no_grad():
            logits_TV = model(input_ids=text_N[None, w.start : w.stop]).logits[0]
        expected += token_losses(logits_TV.numpy(), text_N[w.start + 1 : w.stop + 1].numpy()).sum()
    # float32 logits summed in float32 by us, in float64 by the reference
    assert bare.total_loss(model, text_N, 16) == pytest.approx(expected, rel=1e-5)
