"""The phase 4 quick start guide runs as it is written, under its old import name and from `onebit`.

Of its 21 blocks 17 are run, each by the test that holds its first words; only what lies on its author's disk is
replaced: the name of the GPT-2 model, and the file of the phase before. The other four:

=================  ============================================================================================
section            here
=================  ============================================================================================
Installation       not run: a folder on its author's disk
Core Classes       signatures without bodies: test_signatures_are_those_of_the_reference
Helper Functions   the same, and test_helper_functions
Testing            not run: a test file on its author's disk
=================  ============================================================================================
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

import onebit
from onebit.compat import phase4_bitnet

from .documents import blocks_of

DOCUMENT = blocks_of("002_quick_start")
BLOCKS = [block.text for block in DOCUMENT if block.language == "python"]
VOCAB = 100


def tiny_gpt2() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=VOCAB, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    return transformers.GPT2LMHeadModel(config)


def criterion(output: Any, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(output.logits.flatten(0, 1), labels.flatten())


def is_code(block: str) -> bool:
    try:
        ast.parse(block)
    except SyntaxError:
        return False  # the reference lists signatures without bodies
    return True


@pytest.fixture(params=["phase4_bitnet", "onebit"])
def scene(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the guide's blocks take for granted, in a folder of their own."""
    home: ModuleType = phase4_bitnet if request.param == "phase4_bitnet" else onebit
    monkeypatch.setitem(sys.modules, "phase4_bitnet", home)
    monkeypatch.chdir(tmp_path)
    model = tiny_gpt2()
    ids = torch.randint(0, VOCAB, (2, 8), generator=torch.Generator().manual_seed(0))
    load = torch.load
    monkeypatch.setattr(
        torch, "load", lambda path, **kw: tiny_gpt2() if path == "phase3_quietstar.pth" else load(path, **kw)
    )
    for name in ("CompressedModel", "BitNetQuantizer", "Phase4Config"):
        assert getattr(home, name) is getattr(onebit, name)
    return {
        "torch": torch,
        "model": model,
        "input_ids": ids,
        "labels": ids,
        "criterion": criterion,
        "optimizer": torch.optim.AdamW(model.parameters()),
        "train_loader": [{"input_ids": ids, "labels": ids}] * 2,
        "BitLinear": home.BitLinear,
        "replace_linear_with_bitlinear": home.replace_linear_with_bitlinear,
        "load_phase4_model": home.load_phase4_model,
    }


def run(scene: dict[str, Any], start: str) -> dict[str, Any]:
    """Run the one block that holds `start`; what it defines joins the scene."""
    (block,) = [block for block in BLOCKS if start in block and is_code(block)]
    exec(compile(block, f"block with {start!r}", "exec"), scene)
    return scene


def test_every_block_is_run_or_is_a_list_of_signatures() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    starts = [ast.literal_eval(found) for found in re.findall(r'run\(scene, ("[^"]*")\)', source)]
    unread = [block for block in BLOCKS if is_code(block) and not any(start in block for start in starts)]
    assert not unread
    assert len([block for block in BLOCKS if not is_code(block)]) == 2
    others = [block.heading for block in DOCUMENT if block.language != "python"]
    assert others == ["Installation", "Testing"]  # both of paths on its author's disk


def test_too_long_did_not_read(scene: dict[str, Any]) -> None:
    run(scene, "# Convert any PyTorch model to BitNet 1.58-bit")
    assert scene["output"].logits.shape == (2, 8, VOCAB)
    assert len(scene["model"].conversion_report.replaced) == 8


def test_pattern_1_drop_in(scene: dict[str, Any]) -> None:
    assert run(scene, "# Replace single layer")["output"].shape == (2, 10, 1024)


def test_pattern_2_conversion(scene: dict[str, Any]) -> None:
    report = run(scene, "# Automatic conversion")["model"].conversion_report
    assert report.spec.sparsity == 0.1
    assert set(report.kept) == {"lm_head"}


def test_pattern_3_wrapper(scene: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    run(scene, "# Get statistics")
    stats = scene["stats"]
    assert capsys.readouterr().out == f"Compression: {stats['compression_ratio']:.2f}x\n"
    saved = torch.load("bitnet_model.pth", weights_only=True)
    assert torch.equal(saved["base_model.lm_head.weight"], scene["model"].lm_head.weight)


def test_automatic_quantisation(scene: dict[str, Any]) -> None:
    assert run(scene, "# No manual quantization needed")["output"].logits.shape == (2, 8, VOCAB)


def test_gradient_flow(scene: dict[str, Any]) -> None:
    scene["replace_linear_with_bitlinear"](scene["model"])
    scene["optimizer"] = torch.optim.AdamW(scene["model"].parameters())
    before = scene["model"].transformer.h[0].mlp.c_fc.weight.detach().clone()
    run(scene, "# Gradients work automatically")
    assert not torch.equal(before, scene["model"].transformer.h[0].mlp.c_fc.weight)


def test_memory_savings(scene: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    run(scene, "footprint['original_fp32'] / 1024")
    # The guide says 8.2x; 32 bits over 1.58 bits are 20.25.
    assert capsys.readouterr().out == "Original: 2048.00 KB\nQuantized: 101.12 KB\nSavings: 20.25x\n"


def test_quantised_state(scene: dict[str, Any]) -> None:
    scene["layer"] = scene["BitLinear"](512, 1024)
    run(scene, "# Save quantized state")
    x = torch.randn(2, 512)
    assert torch.equal(scene["layer_new"](x), scene["layer"](x))


def test_pipeline(scene: dict[str, Any]) -> None:
    run(scene, "# Get statistics")
    run(scene, "# Phase 3: Load Quiet-STaR model")
    model, loaded = scene["compressed"].base_model, scene["model"]
    assert type(loaded) is transformers.GPT2LMHeadModel
    assert isinstance(loaded.transformer.h[1].attn.c_attn, onebit.BitLinear)
    assert loaded.conversion_report.spec == model.conversion_report.spec or scene["BitLinear"] is onebit.BitLinear
    loaded(scene["input_ids"], labels=scene["labels"]).loss.backward()


def test_sparsity(scene: dict[str, Any]) -> None:
    layer = run(scene, "# More aggressive: 30% zeros")["layer"]
    assert layer.weight_quantizer.sparsity == 0.05


def test_exclusion(scene: dict[str, Any]) -> None:
    assert run(scene, "# Quantize everything (not recommended)")["exclude_patterns"] == []


def test_no_gradients_flowing(scene: dict[str, Any]) -> None:
    scene |= {"bitlinear_layer": scene["BitLinear"](4, 4), "x": torch.randn(2, 4), "quantize": torch.round}
    run(scene, "# ✓ Correct (automatic)")
    scene["output"].sum().backward()
    assert scene["bitlinear_layer"].weight.grad is not None


def test_memory_not_reduced(scene: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    scene["layer"] = scene["BitLinear"](512, 1024)
    run(scene, "# Practical (int8 storage): 4x")
    practical, theoretical = capsys.readouterr().out.split()
    assert float(practical) == 4.0
    assert float(theoretical) == pytest.approx(20.25, abs=0.01)


def test_accuracy_dropped(scene: dict[str, Any]) -> None:
    epochs: list[Any] = []
    scene["train_one_epoch"] = lambda model, loader, optimizer: epochs.append(model)
    run(scene, "# Fine-tune for 1-2 epochs")
    assert epochs == [scene["model"]] * 2


def test_example_1_single_layer(scene: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(scene, "layer = BitLinear(768, 3072, bias=True)")["output"].shape == (2, 128, 3072)
    assert "compression_ratio_practical" in capsys.readouterr().out


def test_example_2_gpt2(
    scene: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "gpt2"
    tiny_gpt2().save_pretrained(folder)
    words = {"<unk>": 0, "Hello": 1} | {f"w{n}": n for n in range(2, VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<unk>", model_input_names=["input_ids"]
    ).save_pretrained(folder)
    monkeypatch.chdir(tmp_path)  # 'gpt2' is this folder
    run(scene, "# Load GPT-2")
    assert scene["outputs"].shape[1] == 50
    assert capsys.readouterr().out.startswith("Hello")


def test_example_3_training_loop(scene: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    run(scene, "# Training loop")
    losses = [float(line.split("loss=")[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 10
    assert losses[-1] < losses[0]


def test_signatures_are_those_of_the_reference() -> None:
    """The last two blocks list signatures; these are the names, the order and the defaults."""
    listed = "\n".join(block for block in BLOCKS if not is_code(block))
    assert "class CompressedModel(nn.Module)" in listed
    expected = {
        phase4_bitnet.BitLinear: ["in_features", "out_features", "bias", "weight_sparsity_threshold"],
        phase4_bitnet.replace_linear_with_bitlinear: ["module", "weight_sparsity_threshold", "exclude_patterns"],
        phase4_bitnet.CompressedModel: ["base_model", "quantizer", "config", "use_bitlinear"],
        phase4_bitnet.activation_quant: ["x"],
        phase4_bitnet.apply_ste: ["x", "x_quantized"],
    }
    for function, names in expected.items():
        assert list(inspect.signature(function).parameters)[: len(names)] == names
        assert all(name in listed for name in names)
    parameters = inspect.signature(phase4_bitnet.BitLinear).parameters
    assert (parameters["bias"].default, parameters["weight_sparsity_threshold"].default) == (True, 0.1)
    assert issubclass(phase4_bitnet.BitLinear, nn.Linear)


def test_helper_functions() -> None:
    x = torch.tensor([[0.5, -1.0, 0.25]], requires_grad=True)
    q_x = phase4_bitnet.activation_quant(x)
    assert torch.allclose(q_x, torch.tensor([[64, -127, 32]]) / 127)
    y = phase4_bitnet.apply_ste(x, q_x)
    assert torch.equal(y, q_x)
    (y * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert x.grad.tolist() == [[1.0, 2.0, 3.0]]
