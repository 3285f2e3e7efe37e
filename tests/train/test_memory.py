"""Counted bytes beside measured ones: tensors that are there, tensors saved for backward, the allocator's own log."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, LlamaConfig

from onebit.errors import ConfigError, OnebitError
from onebit.models import OneBitConfig
from onebit.models.converted import Conversion, convert_model
from onebit.nn import Schedule
from onebit.nn.pure_conversion import replace_linear_with_pure1bit_linear
from onebit.nn.pure_training import create_pure1bit_optimizer, pure_weights
from onebit.optim.pure1bit_optimizer import Accumulation
from onebit.quant.counters import CounterName
from onebit.train.lora import add_adapters
from onebit.train.memory import Line, Parameters, StepBytes, largest_fit, memory_of
from onebit.train.memory_methods import METHODS, method_named
from onebit.train.memory_model import ModelOutline, make_fake, outline_of
from onebit.train.memory_step import step_bytes
from onebit.train.trainer import next_token_loss

BATCH, LENGTH = 4, 40
SMALL = {"hidden_size": 48, "num_heads": 4, "num_layers": 3, "intermediate_size": 80, "max_seq_len": 64}
LLAMA = LlamaConfig(
    vocab_size=211,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    tie_word_embeddings=False,
)


def small(kind: str) -> Any:
    """A configuration: a converted Llama with a head of its own, or one of ours."""
    return LLAMA if kind == "llama" else OneBitConfig.preset(kind, vocab_size=211, **SMALL)


@functools.cache
def outline(kind: str) -> ModelOutline:
    return ModelOutline(small(kind))


def real_model(config: Any, dtype: torch.dtype = torch.float32, *, is_float: bool = False) -> Any:
    torch.manual_seed(0)
    config = copy.deepcopy(config)  # a conversion writes into it
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if not is_float and config.model_type != "onebit":
        convert_model(model, Conversion.of(config))
    return model.train()


def pure_model(dtype: torch.dtype, config: Any = LLAMA, counter: CounterName = "int8") -> Any:
    return replace_linear_with_pure1bit_linear(real_model(config, dtype), counter=counter)


def loss_of(model: Any) -> Tensor:
    """A step's loss as the Trainer has it: the logits are let go."""
    ids_BL = torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % 211
    return next_token_loss(model(input_ids=ids_BL, use_cache=False).logits, ids_BL)


def saved_bytes(model: nn.Module) -> int:
    """Bytes that a forward pass saves for its backward pass, each storage once, without the model's own."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(model)
    total = sum(t.untyped_storage().nbytes() for pointer, t in saved.items() if pointer not in own)
    del loss
    return total


def held_tensors(thing: Any) -> list[Tensor]:
    """The tensors that an object's attributes hold, and theirs."""
    if isinstance(thing, Tensor):
        return [thing]
    return [tensor for value in getattr(thing, "__dict__", {}).values() for tensor in held_tensors(value)]


def measured_peak(model: Any) -> int:
    """The most that the allocator had given out during a step beyond what was there before, by the profiler's log."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        loss_of(model).backward()  # type: ignore[no-untyped-call]
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    now = peak = 0
    for _, change in changes:
        now += change
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("float-fp32", 16.0),
        ("float-bf16", 8.0),
        ("hybrid-fp32", 16.0),
        ("hybrid-bf16", 8.0),
        ("hybrid-8bit", 2 + 2 + 2 * (1 + 4 / 256)),
        ("pure-int8", 0.25 + 1),
        ("pure-int4", 0.25 + 0.5),
        ("pure-none", 0.25 + 0.25),
    ],
)
def test_bytes_a_weight_are_those_of_the_definition(name: str, expected: float) -> None:
    rows, cols = 4096, 11008
    memory = memory_of(Parameters(((rows, cols),), (), (), ()), name)
    # Of a pure matrix: a float32 a row and column, 12 bytes, and a float32 scale with AdamW; else AdamW's step.
    rest = 4 * (rows + cols) + 12 + (4 + 4 + 8 + 4) if name.startswith("pure") else 0 if "8bit" in name else 4
    assert memory.kept == expected * rows * cols + rest
    assert memory.bytes_per_weight == pytest.approx(expected, abs=2e-3)


def test_binary_codes_take_a_bit_and_odd_rows_whole_bytes() -> None:
    one = Parameters(((3, 9),), (), (), ())
    ternary, binary = (memory_of(one, "pure-int4", codes=codes).parts["matrices"] for codes in ("ternary", "binary"))
    assert (ternary.weights, binary.weights) == (3 * 3 + 4, 3 * 2 + 4)
    assert ternary.counters == binary.counters == 3 * 5


@pytest.mark.parametrize("kind", get_args(Accumulation))
def test_accumulation_needs_a_buffer_where_no_gradient_stays(kind: Accumulation) -> None:
    model = pure_model(torch.bfloat16)
    _, helper = create_pure1bit_optimizer(model, lr=1e-3, gradient_accumulation_steps=2, accumulation=kind)
    loss_of(model).backward()  # type: ignore[no-untyped-call]
    sums = [weight.gradient_sum for weight in pure_weights(model).values()]
    held = sum(tensor.nbytes for total in sums for tensor in held_tensors(total))
    helper.cleanup()
    counted = memory_of(outline("llama").parameters, "pure-int8", accumulate=True, accumulation=kind)
    assert counted.by_kind()["accumulation"] == held
    hybrid = memory_of(outline("llama").parameters, "hybrid-bf16", accumulate=True, accumulation=kind)
    assert hybrid == memory_of(outline("llama").parameters, "hybrid-bf16")


def test_the_sum_that_is_counted_is_the_optimizer_s() -> None:
    default = inspect.signature(create_pure1bit_optimizer).parameters["accumulation"].default
    shape = Parameters(((256, 256),), (), (), ())
    as_told = memory_of(shape, "pure-int8", accumulate=True, accumulation=default)
    assert memory_of(shape, "pure-int8", accumulate=True) == as_told
    sums = {kind: memory_of(shape, "pure-int8", accumulate=True, accumulation=kind) for kind in get_args(Accumulation)}
    added = {kind: memory.by_kind()["accumulation"] / 256**2 for kind, memory in sums.items()}
    assert default == "int8"
    # int8: a bfloat16 for 64 weights, and the sizes of 256 columns
    assert added == {"bfloat16": 2.0, "int8": pytest.approx(1 + 2 / 64 + 4 * 256 / 256**2, abs=1e-4), "deposit": 0.0}


def test_scales_in_groups_of_128_cost_little() -> None:
    """In the shape of BitNet b1.58 2B-4T, whose narrowest inputs are 2560: below the bar of 1.3 bytes a weight."""
    scales = (2560, 2560 * 20)
    shape = Parameters(((2560, 2560),), (), (), (), scales=(scales,))
    assert memory_of(shape, "pure-int8").bytes_per_weight == pytest.approx(1.25 + 2 / 128 + (16 + 8) / 2560, abs=1e-4)
    assert memory_of(shape, "pure-int8").bytes_per_weight < 1.28


def test_frozen_tables_keep_their_weights_alone() -> None:
    parameters = Parameters(((8, 16),), (8,), (640,), (320,))
    frozen = memory_of(parameters, "pure-int8", freeze_tables=True)
    assert [(part.weights, part.total) for part in (frozen.parts["embeddings"], frozen.parts["head"])] == [
        (1280, 1280),
        (640, 640),
    ]
    trained = memory_of(parameters, "pure-int8")
    assert trained.parts["embeddings"].total == 8 * 640 + 4
    assert trained.parts["matrices"] == frozen.parts["matrices"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "bitnet", "seed"])
def test_what_a_hybrid_run_keeps_is_counted_to_the_byte(kind: str, dtype: str) -> None:
    model = real_model(small(kind), getattr(torch, dtype))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    parameters = list(model.parameters())
    counted = memory_of(outline(kind).parameters, "hybrid-fp32" if dtype == "float32" else "hybrid-bf16").by_kind()
    states = [value for state in optimizer.state.values() for value in state.values()]
    assert counted["weights"] == sum(t.nbytes for t in (*parameters, *model.buffers()))
    assert counted["gradients"] == sum(p.grad.nbytes for p in parameters)
    assert counted["optimizer"] == sum(state.nbytes for state in states)


@pytest.mark.parametrize("counter", ["int8", "int4", "none"])
def test_what_a_pure_run_keeps_is_counted_to_the_byte(counter: CounterName) -> None:
    model = pure_model(torch.bfloat16, counter=counter)
    optimizer, helper = create_pure1bit_optimizer(model, lr=1e-3, gradient_accumulation_steps=1)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    helper.cleanup()
    counters = sum(weight.counters.nbytes for weight in pure_weights(model).values())
    states = [value for state in optimizer.state.values() for value in state.values()]
    gradients = [p.grad for p in model.parameters()]
    everything = (*model.parameters(), *model.buffers(), *gradients, *states)
    counted = memory_of(outline("llama").parameters, f"pure-{counter}")
    assert counted.by_kind()["counters"] == counters
    assert counted.by_kind()["gradients"] == sum(gradient.nbytes for gradient in gradients)
    assert counted.kept == sum(tensor.nbytes for tensor in everything)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("llama", "hybrid-fp32"),
        ("llama", "hybrid-bf16"),
        ("llama", "float-fp32"),
        ("bitnet", "hybrid-fp32"),
        ("seed", "hybrid-fp32"),
        ("llama", "pure-int8"),
        ("bitnet", "pure-int8"),
    ],
)
def test_activations_are_what_is_saved_for_backward(kind: str, name: str) -> None:
    """Within 1 %: saved tensors leave out what only Python holds."""
    method = method_named(name)
    config = small(kind)
    step = outline(kind).step(method)
    dtype = getattr(torch, method.dtype)
    model = (
        pure_model(dtype, config)
        if method.kind == "pure"
        else real_model(config, dtype, is_float=method.kind == "float")
    )
    assert step.kept.at(BATCH, LENGTH) == pytest.approx(saved_bytes(model), rel=0.01)


def test_a_hybrid_keeps_more_while_it_goes_from_float_to_ternary() -> None:
    method = method_named("hybrid-fp32")
    schedule = Schedule(uses_lambda=True)
    schedule.set(lambda_=0.5)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(LLAMA))
    convert_model(model, Conversion.of(model.config), schedule=schedule)
    soft = outline("llama").step(method, lambda_warmup=True).kept
    assert soft.at(BATCH, LENGTH) == pytest.approx(saved_bytes(model.train()), rel=0.01)
    assert soft.constant > 4 * outline("llama").parameters.weights


@pytest.mark.parametrize(
    ("name", "checkpointing"), [("hybrid-fp32", False), ("hybrid-fp32", True), ("pure-int8", False)]
)
def test_the_peak_of_a_step_is_the_allocator_s(name: str, checkpointing: bool) -> None:
    """Within 10 %, gradients being there already, as in accumulation: what kernels take for themselves is not counted.

    Without gradients the peak is lower than counted: they come while activations go.
    """
    method = method_named(name)
    step = outline("llama").step(method, accumulate=True, checkpointing=checkpointing)
    parameters = outline("llama").parameters
    counted = memory_of(parameters, method, step=step, batch=BATCH, length=LENGTH, accumulate=True)
    model = real_model(LLAMA) if name == "hybrid-fp32" else pure_model(torch.bfloat16)
    if checkpointing:
        enable: Any = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    without_gradients = measured_peak(model)
    peak = measured_peak(model)
    assert peak == pytest.approx(counted.total - counted.kept, rel=0.1)
    assert without_gradients < counted.total - counted.kept + counted.by_kind()["gradients"]


def test_two_layers_stand_for_all() -> None:
    """Three layers counted as two and one more are what three layers are."""
    with torch.device("meta"):
        model = real_model(LLAMA)
    with FakeTensorMode():
        make_fake(model)
        whole = step_bytes(model, model.model.layers, 3)
    counted = outline("llama").step(method_named("hybrid-fp32"))
    assert counted.kept == whole.kept
    for size in ((1, 1), (1, 64), (4, 40), (300, 64)):
        assert counted.working_at(*size) == whole.working_at(*size)


def test_checkpointing_and_codes_keep_less() -> None:
    def kept(name: str, **how: Any) -> int:
        return outline("llama").step(method_named(name), **how).kept.at(8, 64)

    latents = kept("hybrid-fp32")
    assert kept("hybrid-fp32", accumulate=True, checkpointing=True) < 0.5 * latents
    assert kept("hybrid-fp32", bf16=True) < latents
    assert kept("pure-int8") <= kept("hybrid-bf16") < latents


def test_adapters_are_those_that_are_trained() -> None:
    model = add_adapters(real_model(LLAMA, torch.bfloat16), rank=4)
    trained = [p for p in model.parameters() if p.requires_grad]
    memory = memory_of(outline("llama").parameters, "lora", rank=4)
    assert memory.parts["adapters"].weights == sum(p.nbytes for p in trained)
    assert memory.by_kind()["gradients"] == memory.parts["adapters"].gradients
    assert memory.by_kind()["weights"] == sum(t.nbytes for t in (*model.parameters(), *model.buffers()))


def test_adapters_go_onto_a_model_of_our_own() -> None:
    for form in ("inside", "beside"):
        model = add_adapters(real_model(small("bitnet")), rank=4, form=form)
        ids_BL = torch.arange(40).reshape(2, 20)
        with torch.no_grad():
            adapted_BLV, plain_BLV = model(ids_BL).logits, model.unload()(ids_BL).logits
        assert torch.equal(adapted_BLV, plain_BLV)  # an adapter begins at zero
    assert outline("bitnet").step(method_named("lora"), rank=4).kept.token > 0


@pytest.mark.parametrize("budget", [0.0, 99.0, 100.0, 1234.0, 1e6])
def test_the_largest_batch_fits_and_one_more_does_not(budget: float) -> None:
    def total(batch: int, length: int) -> int:
        return 90 + length * (2 + 8 * batch)

    fit = largest_fit(total, budget, 16)
    if fit is None:
        assert total(1, 1) > budget
        return
    batch, length = fit
    assert total(batch, length) <= budget
    assert total(batch + 1, length) > budget if length == 16 else batch == 1 and total(1, length + 1) > budget


def test_a_line_is_bytes_a_position_and_a_token() -> None:
    step = StepBytes(Line(1000, 4, 32), (Line(1000, 4, 42), Line(6000, 4, 33)))
    memory = memory_of(Parameters(((4, 4),), (), (), ()), "hybrid-fp32", step=step, batch=3, length=7)
    assert (memory.copies, memory.activations, memory.working) == (1000, 4 * 7 + 32 * 21, 5021)
    assert memory.total == memory.kept + 1000 + 28 + 672 + 5021 == sum(memory.by_kind().values())


def test_shapes_come_from_files_folders_and_presets(tmp_path: Path) -> None:
    (tmp_path / "shape.json").write_text(json.dumps(LLAMA.to_dict()))
    LLAMA.save_pretrained(tmp_path / "folder")
    file, folder = outline_of(tmp_path / "shape.json"), outline_of(tmp_path / "folder")
    assert file.parameters == folder.parameters
    assert (file.layers, file.longest, file.codes, file.tied) == (3, 64, "ternary", False)
    assert file.parameters.matrices[0] == (48, 48)
    assert file.parameters.embeddings == file.parameters.head == (211 * 48,)
    assert file.parameters.weights == 3 * (2 * 48 * 48 + 2 * 24 * 48 + 3 * 48 * 80)
    seed = outline_of("seed")
    assert (seed.codes, seed.tied) == ("binary", True)


def test_scales_are_those_of_the_conversion() -> None:
    matrices = outline("llama").parameters.matrices
    # One group of 128 a row, as there are 48 and 80 inputs; one or two of 64.
    assert outline("llama").parameters.scales == tuple((rows, rows) for rows, _ in matrices)
    small_groups = ModelOutline(LLAMA, group_size=64).parameters.scales
    assert small_groups == tuple((rows, rows * (1 if cols == 48 else 2)) for rows, cols in matrices)
    assert ModelOutline(LLAMA, granularity="per_row").parameters.scales == tuple((rows, 0) for rows, _ in matrices)
    assert set(ModelOutline(LLAMA, granularity="per_tensor").parameters.scales) == {(1, 0)}
    with pytest.raises(ConfigError, match="its own granularity"):
        ModelOutline(small("bitnet"), granularity="per_row")


def test_a_large_model_is_counted_without_being_made(tmp_path: Path) -> None:
    """The shape of BitNet 2B-4T: 2.1 billion weights."""
    shape = {"hidden_size": 2560, "intermediate_size": 6912, "num_hidden_layers": 30, "num_attention_heads": 20}
    more = {"num_key_value_heads": 5, "vocab_size": 128256, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bitnet", **shape, **more}))
    parameters = outline_of(tmp_path).parameters
    assert parameters.weights == 30 * (2 * 2560 * 2560 + 2 * 2560 * 640 + 3 * 2560 * 6912)
    frozen = {method.name: memory_of(parameters, method, freeze_tables=True) for method in METHODS}
    assert frozen["hybrid-fp32"].parts["matrices"].total > 33e9
    assert frozen["pure-int8"].bytes_per_weight <= 1.3
    assert frozen["pure-int4"].bytes_per_weight <= 0.85
    assert frozen["hybrid-bf16"].bytes_per_weight >= 6 * frozen["pure-int8"].bytes_per_weight


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ('{"model_type": "lama"}', "did you mean 'llama'"),
        (
            '{"model_type": "llama", "vocab_size": 9, "num_hidden_layers": 2}',
            "hidden_size, num_attention_heads missing",
        ),
        ('{"hidden_sizes": 32}', "did you mean 'hidden_size'"),
        ('{"quantizer": "none", "hidden_size": 32}', "no ternary or binary layer"),
        (json.dumps({**LLAMA.to_dict(), "hidden_size": 50}), "not a multiple of the number of attention heads"),
    ],
)
def test_a_wrong_configuration_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "shape.json"
    path.write_text(text)
    with pytest.raises(OnebitError, match=message):
        outline_of(path)


def test_a_method_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'pure-int8'"):
        method_named("pure-int")


def test_the_code_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/plan-memory.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.S)
    exec(compile(block, "docs/how-to/plan-memory.md", "exec"), {})
    assert "'counters': 20447232" in capsys.readouterr().out
