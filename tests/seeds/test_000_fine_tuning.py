"""The fine-tuning guide: its blocks under the name that it imports, its command with its flags.

=============================  ================================================================================
section                        here
=============================  ================================================================================
Hybrid Approach                test_the_hybrid_block
Pure 1-Bit Approach            test_the_pure_block
Method 1: the SFT script       test_the_command_runs, with examples/sft.py too: the guide calls the two commands
                               almost identical
Method 2: your own loop        test_the_loop; "your-model" is a folder in the working directory
=============================  ================================================================================

What is changed of the command: the names of the model and of the data set, which lie on this machine.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import onebit
from onebit.compat import onebitllms
from onebit.data import END_OF_TEXT, train_tokenizer
from onebit.models.converted import load_converted
from onebit.nn import BitLinear, Pure1BitLinear, bit_layers
from onebit.train import sft as recipe
from onebit.train.metrics_log import read_metrics
from onebit.train.sft_settings import SftSettings

from .documents import EXAMPLES, blocks_of, commands_of

HYBRID, PURE, COMMAND, LOOP = blocks_of("000_fine_tuning")
HOMES = pytest.mark.parametrize("home", [onebitllms, onebit], ids=["onebitllms", "onebit"])
SCRIPTS = pytest.mark.parametrize("script", ["pure1bit_sft.py", "sft.py"])
QUESTION, ANSWER = "Tell me about {}.", "It is {} and no more than {}."


def tiny_llama() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=300,
        max_position_embeddings=128,
    )
    return LlamaForCausalLM(config)


@HOMES
def test_the_hybrid_block(home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the block's comments say: bfloat16 latents are trained, and are ternary in the forward pass alone."""
    monkeypatch.setitem(sys.modules, "onebitllms", home)
    scene: dict[str, Any] = {"model": tiny_llama().bfloat16()}
    exec(compile(HYBRID.text, HYBRID.heading, "exec"), scene)
    model = scene["model"]
    layers = list(bit_layers(model))
    assert len(layers) == 14
    assert type(model.lm_head) is torch.nn.Linear
    layer = model.model.layers[0].mlp.up_proj
    assert isinstance(layer, BitLinear)
    assert layer.weight.dtype == torch.bfloat16
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    w, x_64 = layer.weight.detach().double(), x.double()
    beta = w.abs().mean()
    q_w = (w / beta).round().clamp(-1, 1) * beta
    step = x_64.abs().amax(-1, keepdim=True) / 127
    expected = (x_64 / step).round() * step @ q_w.T
    torch.testing.assert_close(layer(x).double(), expected, rtol=0, atol=0.02 * float(expected.abs().max()))
    assert len(w.unique()) > 3  # what is stored is not on the grid
    ids = torch.arange(8).view(1, 8)
    model(input_ids=ids, labels=ids).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not torch.equal(layer.weight.detach().double(), w)


@HOMES
def test_the_pure_block(home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the block's comments say: the weights are -1, 0 and 1, and no float of a weight's size is left."""
    monkeypatch.setitem(sys.modules, "onebitllms", home)
    scene: dict[str, Any] = {"model": tiny_llama()}
    latents = scene["model"].model.layers[0].mlp.up_proj.weight.detach().double()
    exec(compile(PURE.text, PURE.heading, "exec"), scene)
    model = scene["model"]
    layers = [module for module in model.modules() if isinstance(module, Pure1BitLinear)]
    assert len(layers) == 14
    assert type(model.lm_head) is torch.nn.Linear
    layer = model.model.layers[0].mlp.up_proj
    codes_OI = layer.quantized().codes_OI
    assert torch.equal(codes_OI.double(), (latents / latents.abs().mean()).round().clamp(-1, 1))
    held = [*layer.parameters(), *layer.buffers()]
    assert max(tensor.numel() for tensor in held if tensor.is_floating_point()) <= max(codes_OI.shape)
    # int8 counters beside packed codes; the few bytes more are the scale and one moment for each row and column.
    assert sum(tensor.nbytes for tensor in held) == codes_OI.numel() * 1.25 + 4 * sum(codes_OI.shape) + 4 + 8 + 4


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the place of the revision `prequantized`: latents in bfloat16, a tokenizer, a chat template."""
    folder = tmp_path_factory.mktemp("Falcon-E-1B-Base")
    text = "".join(f"{QUESTION.format(i)}\n{ANSWER.format(i, i)}\n" for i in range(300))
    train_tokenizer([text], 300).save(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token=END_OF_TEXT)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}\n{% endfor %}"
    tokenizer.save_pretrained(folder)
    tiny_llama().bfloat16().save_pretrained(folder)
    return folder


def run_script(name: str, argv: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a script of examples/ with these arguments."""
    monkeypatch.setattr("sys.argv", [name, *argv])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert isinstance(left.value.code, int)
    return left.value.code


def codes_of(model: Any) -> torch.Tensor:
    """All codes of a model, int8 [N]."""
    codes = [layer.quantized().codes_OI for layer in model.modules() if isinstance(layer, Pure1BitLinear)]
    assert all(set(codes_OI.unique().tolist()) <= {-1, 0, 1} for codes_OI in codes)
    return torch.cat([codes_OI.flatten() for codes_OI in codes])


@HOMES
def test_the_loop(home: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, with a model under the guide's name and batches of the guide's keys; codes learn and stay codes."""
    monkeypatch.setitem(sys.modules, "onebitllms", home)
    monkeypatch.chdir(tmp_path)
    tiny_llama().save_pretrained("your-model")
    rows_BL = torch.randint(0, 30, (8, 33), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": rows_BL[:, :-1], "labels": rows_BL[:, 1:].contiguous()}
    scene: dict[str, Any] = {"dataloader": [batch] * 40}
    losses: list[float] = []
    moved = 0
    step = home.pure1bit_training_step

    def watched(model: Any, *rest: Any) -> torch.Tensor:
        nonlocal moved
        before = codes_of(model)
        loss: torch.Tensor = step(model, *rest)
        losses.append(float(loss))
        difference = (codes_of(model) - before).abs()
        assert int(difference.max()) <= 1  # by one level, never across
        moved += int(difference.sum())
        return loss

    monkeypatch.setattr(home, "pure1bit_training_step", watched)
    exec(compile(LOOP.text, LOOP.heading, "exec"), scene)
    assert len(losses) == 40
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.2
    assert moved > 0
    # After cleanup() a backward pass changes nothing in the layers, and another optimizer may take the model.
    model = scene["model"]
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    model(input_ids=rows_BL[:2], labels=rows_BL[:2]).loss.backward()
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    home.create_pure1bit_optimizer(model, lr=1e-4)[1].cleanup()


@SCRIPTS
def test_the_command_runs(script: str, latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three epochs with the flags as they stand; rows as those of Capybara, conversations of several turns."""
    monkeypatch.chdir(tmp_path)
    turns = [(QUESTION.format(i), ANSWER.format(i, i)) for i in range(72)]
    rows = [
        {
            "source": "guide",
            "messages": [
                {"role": role, "content": text}
                for turn in turns[start : start + 2]
                for role, text in zip(("user", "assistant"), turn, strict=True)
            ],
        }
        for start in range(0, len(turns), 2)
    ]
    Path("Capybara.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (words,) = commands_of(COMMAND)
    assert words[:2] == ["python", "examples/pure1bit_sft.py"]
    names = {"tiiuae/Falcon-E-1B-Base": str(latents), "trl-lib/Capybara": "Capybara.jsonl"}
    assert names.keys() <= set(words)
    monkeypatch.setattr(recipe, "draw_loss_curve", lambda folder: [])
    assert run_script(script, [names.get(word, word) for word in words[2:]], monkeypatch) == 0

    out = Path("Falcon-E-Capybara-Pure1Bit")
    losses = [entry["loss"] for entry in read_metrics(out) if "loss" in entry]
    about = json.loads((out / "training_manifest.json").read_text())
    assert len(losses) == about["training_steps"] >= 3  # --logging_steps 1
    assert all(0 < loss < 10 for loss in losses)
    assert (about["settings"]["packing"], about["settings"]["dtype"]) == (True, "bfloat16")
    assert about["settings"]["pure"] is (script == "pure1bit_sft.py")
    model = load_converted(out)
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert sum(1 for _ in bit_layers(model)) == 14
    assert AutoModelForCausalLM.from_pretrained(out).config.model_type == "llama"  # latents, for any kit
    assert AutoTokenizer.from_pretrained(out).chat_template is not None


@SCRIPTS
def test_the_commands_flags_mean_what_they_say(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every flag and value of the block, with its own names: nothing is fetched without --allow-download."""
    seen: list[SftSettings] = []

    def keep(settings: SftSettings) -> Any:
        seen.append(settings)
        return type("Result", (), {"signal": None})

    monkeypatch.setattr(recipe, "sft", keep)
    (words,) = commands_of(COMMAND)
    assert run_script(script, words[2:], monkeypatch) == 0
    (settings,) = seen
    assert (settings.model_name_or_path, settings.model_revision) == ("tiiuae/Falcon-E-1B-Base", "prequantized")
    assert (settings.dataset_name, settings.output_dir) == ("trl-lib/Capybara", Path("Falcon-E-Capybara-Pure1Bit"))
    assert (settings.dtype, settings.learning_rate, settings.packing) == ("bfloat16", 1e-4, True)
    assert (settings.save_strategy, settings.save_steps, settings.logging_steps) == ("steps", 100, 1)
    assert (settings.per_device_train_batch_size, settings.gradient_accumulation_steps) == (1, 16)
    assert settings.allow_download is False
    assert settings.pure is (script == "pure1bit_sft.py")
