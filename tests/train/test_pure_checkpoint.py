"""Checkpoints of pure training hold codes and counters, and everything that reads latents reads them too."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from onebit.cli.main import execute
from onebit.errors import DataError
from onebit.formats.checkpoint import from_checkpoint, load_model
from onebit.formats.onebit_file import write
from onebit.models import OneBitConfig, OneBitForCausalLM
from onebit.models.converted import load_converted
from onebit.models.pretrained import describe_model, load_causal_lm
from onebit.nn import bit_layers, replace_linear_with_pure1bit_linear
from onebit.packing import binary, ternary
from onebit.train import sft as recipe
from onebit.train.metrics_log import read_metrics
from onebit.train.sft import sft
from onebit.train.sft_settings import SftSettings

from .fine_tuning import TEXT, make_base, samples, small_run, write_rows

# What a run is of -> its settings. `onebit`: a model of onebit train, whose layers are BitLinears from the start.
RUNS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {"dtype": "bfloat16", "granularity": "per_group", "group_size": 64, "pure_counter": "int4"},
    "qwen2": {"quantizer": "binary", "granularity": "per_row", "hadamard_block": 16, "pure_counter": "none"},
    "onebit": {},
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", samples())


def make_own(folder: Path) -> Path:
    make_base(folder, "gpt2")  # for its tokenizer
    torch.manual_seed(0)
    config = OneBitConfig(
        vocab_size=300,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        intermediate_size=48,
        max_seq_len=64,
        use_ternary=True,
    )
    (folder / "model.safetensors").unlink()
    OneBitForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=RUNS)
def run(request: pytest.FixtureRequest, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> SftSettings:
    """A finished run of three steps whose last checkpoint is that of the last step."""
    folder, kind = tmp_path_factory.mktemp(request.param), request.param
    base = make_own(folder / "base") if kind == "onebit" else make_base(folder / "base", kind)
    given = {**small_run(base, rows, folder / "run"), "max_steps": 3, "save_steps": 1, "learning_rate": 1e-2}
    settings = SftSettings(**given, **RUNS[kind], pure=True, pure_eta=0.3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "draw_loss_curve", lambda folder: [])
        sft(settings)
    return settings


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "draw_loss_curve", lambda folder: [])


def trained(run: SftSettings) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(codes [O, I], scales) by the layer's name, read from the last checkpoint's bytes."""
    state = load_file(run.output_dir / "checkpoint-3" / "model.safetensors")
    layout = binary if run.quantizer == "binary" else ternary
    found = {}
    for key, packed in state.items():
        if key.endswith(".weight.codes"):
            name = key.removesuffix(".weight.codes")
            scale = state[f"{name}.weight.log_scale"].exp()
            if (groups := state.get(f"{name}.weight.group_scales")) is not None:
                scale = (scale[:, None] * groups.float()).half()
            codes_OI = layout.unpack(packed.numpy(), state[f"{name}.weight.column_moments"].numel())
            found[name] = codes_OI, scale.numpy()
    return found


@pytest.mark.parametrize("source", ["checkpoint-3", "."])
def test_codes_and_scales_of_checkpoint_and_of_output_are_those_trained(run: SftSettings, source: str) -> None:
    expected = trained(run)
    layers = dict(bit_layers(load_model(run.output_dir / source)))
    assert layers.keys() == expected.keys()
    assert len(layers) >= 8
    for name, layer in layers.items():
        quantized = layer.quantized()
        np.testing.assert_array_equal(quantized.codes_OI.numpy(), expected[name][0])
        scale = quantized.scale.numpy()
        assert scale.dtype == expected[name][1].dtype
        # A few float32 scales are no mean of float32 latents: then the nearest one (`latents_from_codes`).
        np.testing.assert_allclose(scale, expected[name][1], rtol=0 if scale.ndim == 2 else 2.0**-22)


def test_both_are_exported_to_the_same_matrices(run: SftSettings) -> None:
    files = [from_checkpoint(run.output_dir / source) for source in ("checkpoint-3", ".")]
    assert files[0].tensors.keys() == files[1].tensors.keys()
    for name, tensor in files[0].tensors.items():
        np.testing.assert_array_equal(tensor.data, files[1].tensors[name].data, err_msg=name)
        np.testing.assert_array_equal(tensor.scale_data, files[1].tensors[name].scale_data, err_msg=name)


def test_eval_says_the_same_of_both(run: SftSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT[:400])
    losses = []
    for source in ("checkpoint-3", "."):
        assert execute(["eval", str(run.output_dir / source), "--data", str(text), "--json"]) == 0
        losses.append(json.loads(capsys.readouterr().out)["figures"]["loss"])
    assert losses[0] == losses[1]


def test_verify_holds_a_file_against_a_checkpoint(
    run: SftSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, file = run.output_dir / "checkpoint-3", tmp_path / "model.1bit"
    write(file, from_checkpoint(checkpoint))
    for other in (file, run.output_dir):
        assert execute(["verify", str(checkpoint), str(other), "--num-tokens", "40"]) == 0, capsys.readouterr()
        assert capsys.readouterr().out.startswith("same: ")
    # The step before moved codes, scales and what is float.
    assert execute(["verify", str(checkpoint.with_name("checkpoint-2")), str(file), "--num-tokens", "40"]) == 1
    assert capsys.readouterr().out.startswith("DIFFERENT: ")


@pytest.mark.parametrize("pure", [True, False], ids=["pure", "hybrid"])
def test_another_run_begins_with_a_checkpoint(run: SftSettings, pure: bool, tmp_path: Path) -> None:
    base = str(run.output_dir / "checkpoint-3")
    own = run.granularity is None and run.quantizer is None
    given = {"model_name_or_path": base, "output_dir": tmp_path / "next", "pure": pure, "max_steps": 1}
    sft(replace(run, **given, pure_eta=0.3 if pure else None, **({} if own else {"hadamard_block": None})))
    (entry, *_) = (entry for entry in read_metrics(tmp_path / "next") if "loss" in entry)
    (*_, before) = (entry for entry in read_metrics(run.output_dir) if "loss" in entry)
    assert entry["loss"] < before["loss"] + 0.5


def test_convert_packs_the_output_alone_and_says_so_of_a_checkpoint(
    run: SftSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if run.output_dir.parent.name.startswith("onebit"):
        pytest.skip("a model of onebit's own has no form that transformers knows")
    assert execute(["convert", str(run.output_dir / "checkpoint-3"), str(tmp_path / "a"), "--to", "bf16"]) == 2
    assert "a checkpoint of pure training" in capsys.readouterr().err
    # What the message says to do.
    load_converted(run.output_dir / "checkpoint-3").save_pretrained(tmp_path / "latents")
    assert execute(["convert", str(tmp_path / "latents"), str(tmp_path / "b"), "--to", "bf16"]) == 0
    assert execute(["convert", str(run.output_dir), str(tmp_path / "c"), "--to", "bf16"]) == 0
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("b", "c"))
    assert one.keys() == other.keys()
    # Scales of float32 latents may differ in their last bit, which bfloat16 may round either way.
    assert all(torch.allclose(one[name].float(), other[name].float(), rtol=2.0**-7, atol=0) for name in one)


def test_a_folder_that_does_not_say_how_it_is_read_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """What `model.save_pretrained` leaves of a loop of one's own: weights without a record of the conversion."""
    base = make_base(tmp_path / "base", "llama")
    model = replace_linear_with_pure1bit_linear(AutoModelForCausalLM.from_pretrained(base))
    shutil.copytree(base, tmp_path / "saved")
    save_file(model.state_dict(), tmp_path / "saved" / "model.safetensors", {"format": "pt"})
    said = "holds codes and counters of pure training, but its config.json does not say"
    for read in (load_converted, load_model):
        with pytest.raises(DataError, match=said):
            read(tmp_path / "saved")
    with pytest.raises(DataError, match=said):
        load_causal_lm(str(tmp_path / "saved"), describe_model(str(tmp_path / "saved")))
    # It would be read in another way than it was trained in.
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    changed = {"quantizer": "absmean", "granularity": "per_row", "group_size": None}
    config["onebit_conversion"] = changed
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"layers\.\d\.\S+\.weight cannot be read: not the codes and counters"):
        load_converted(tmp_path / "saved")
    config["onebit_conversion"] = {**changed, "granularity": "per_tensor", "exclude": ["down_proj"]}
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="codes of 2 layers that its config"):
        load_converted(tmp_path / "saved")
