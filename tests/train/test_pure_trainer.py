"""Pure training under transformers.Trainer and TRL's SFTTrainer, neither changed nor told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from onebit.compat import onebitllms as onebit_llms
from onebit.nn import (
    Pure1BitLinear,
    create_pure1bit_optimizer,
    pure_weights,
    replace_linear_with_bitnet_linear,
    replace_linear_with_pure1bit_linear,
)

from .fine_tuning import make_base, samples

IDS = torch.randint(1, 300, (32, 16), generator=torch.Generator().manual_seed(0))
BLOCKS = [{"input_ids": ids, "labels": ids} for ids in IDS]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {kind: make_base(folder / kind, kind) for kind in ("llama", "gpt2", "qwen2")}


def pure(base: Path, **arguments: Any) -> Any:
    return replace_linear_with_pure1bit_linear(AutoModelForCausalLM.from_pretrained(base), **arguments)


def options(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1.0,  # the optimizer's own counts
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        **changes,
    }


def run(model: Any, folder: Path, *, resume: str | None = None, **changes: Any) -> tuple[Any, list[float]]:
    """(the optimizer, the losses)"""
    optimizer, _ = create_pure1bit_optimizer(model, lr=1e-2, eta=0.5)
    trainer = Trainer(
        model, TrainingArguments(**options(folder, **changes)), train_dataset=BLOCKS, optimizers=(optimizer, None)
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return optimizer, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_trainer(bases: dict[str, Path], tmp_path: Path, kind: str) -> None:
    model = pure(bases[kind])
    before = {name: weight.codes.clone() for name, weight in pure_weights(model).items()}
    optimizer, losses = run(model, tmp_path, max_steps=16, lr_scheduler_type="cosine", warmup_steps=2)
    assert sum(losses[-4:]) < sum(losses[:4])
    assert len(before) == {"llama": 14, "gpt2": 8, "qwen2": 14}[kind]
    assert all(not torch.equal(weight.codes, before[name]) for name, weight in pure_weights(model).items())
    assert all(int(weight.deposits) == 16 for weight in pure_weights(model).values())
    # The scheduler drove the rate of the codes down with that of the parameters.
    assert optimizer.eta(optimizer.weights[0]) == pytest.approx(0.0, abs=1e-8)


def test_a_resumed_trainer_is_the_same_to_the_bit(bases: dict[str, Path], tmp_path: Path) -> None:
    straight, resumed = pure(bases["llama"]), pure(bases["llama"])
    _, losses = run(straight, tmp_path / "a", save_strategy="steps", save_steps=3)
    _, rest = run(resumed, tmp_path / "b", resume=str(tmp_path / "a" / "checkpoint-3"))
    assert rest[-3:] == losses[-3:]
    theirs = resumed.state_dict()
    assert [name for name, value in straight.state_dict().items() if not torch.equal(value, theirs[name])] == []


def test_gradient_accumulation_and_checkpointing(bases: dict[str, Path], tmp_path: Path) -> None:
    plain, parted = pure(bases["llama"]), pure(bases["llama"])
    _, losses = run(plain, tmp_path / "a")
    optimizer, others = run(
        parted,
        tmp_path / "b",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        gradient_checkpointing=True,
    )
    assert others[0] == pytest.approx(losses[0], rel=1e-5)
    # From the second step on, roundings that fell the other way are real differences.
    assert others == pytest.approx(losses, rel=2e-2)
    assert all(int(weight.deposits) == 6 for weight in optimizer.weights)
    assert all(weight.gradient_sum is None for weight in optimizer.weights)


def test_bfloat16_autocast(bases: dict[str, Path], tmp_path: Path) -> None:
    model = pure(bases["llama"], counter="int4", granularity="per_group", group_size=64)
    _, losses = run(model, tmp_path, bf16=True, max_steps=12)
    assert sum(losses[-4:]) < sum(losses[:4])
    assert model.model.layers[0].mlp.up_proj.weight.counters.dtype == torch.uint8


@pytest.mark.parametrize("changes", [{}, {"packing": True, "gradient_accumulation_steps": 2}])
def test_sft_trainer(bases: dict[str, Path], tmp_path: Path, changes: dict[str, Any]) -> None:
    model = pure(bases["llama"])
    optimizer, _ = create_pure1bit_optimizer(model, lr=1e-2, eta=0.5)
    trainer = SFTTrainer(
        model,
        args=SFTConfig(**options(tmp_path, max_steps=12, max_length=32, **changes)),
        train_dataset=Dataset.from_list([{key: row[key] for key in ("prompt", "completion")} for row in samples()]),
        processing_class=AutoTokenizer.from_pretrained(bases["llama"]),
        optimizers=(optimizer, None),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert all(int(weight.deposits) == 12 for weight in optimizer.weights)
    assert isinstance(model.model.layers[0].self_attn.q_proj, Pure1BitLinear)


@pytest.mark.parametrize("linear_class", ["bitlinear", "autobitlinear"])
def test_packed_codes_are_trained_on(bases: dict[str, Path], tmp_path: Path, linear_class: str) -> None:
    latents = AutoModelForCausalLM.from_pretrained(bases["llama"])
    expected = replace_linear_with_bitnet_linear(latents).eval()
    name = "model.layers.1.mlp.down_proj"
    codes = expected.get_submodule(name).quantized()
    onebit_llms.quantize_to_1bit(bases["llama"], tmp_path / "packed")
    if linear_class == "autobitlinear":  # whose scale is not inverted
        _with_scales_turned_over(tmp_path / "packed")
    packed = AutoModelForCausalLM.from_pretrained(tmp_path / "packed", dtype=torch.float32)
    model = replace_linear_with_pure1bit_linear(packed)
    assert set(model.pure_conversion_report.replaced.values()) == {"codes"}
    assert len(model.pure_conversion_report.replaced) == 14
    assert torch.equal(model.get_submodule(name).quantized().codes_OI, codes.codes_OI)
    with torch.no_grad():
        ours, theirs = model(IDS[:2]).logits, expected(IDS[:2]).logits
    assert (ours - theirs).abs().max() < 0.05 * theirs.abs().max()  # scales and embedding lay in bfloat16
    _, losses = run(model, tmp_path / "out", max_steps=8)
    assert sum(losses[-3:]) < sum(losses[:3])


def _with_scales_turned_over(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in tensors:
        if name.endswith("weight_scale"):
            tensors[name] = (1.0 / tensors[name].float()).to(tensors[name].dtype)
    save_file(tensors, path, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["linear_class"] = "autobitlinear"
    (folder / "config.json").write_text(json.dumps(config))
