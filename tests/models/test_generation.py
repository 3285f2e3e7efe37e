"""Cache, masks and generate(): every way to the next token gives the same one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from onebit.errors import OnebitError
from onebit.models import OneBitForCausalLM

MakeModel = Callable[..., OneBitForCausalLM]
PRESETS = ["seed", "bitnet", "llama", "qwen3"]


def ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, 61, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("preset", PRESETS)
@torch.no_grad()
def test_cache_equals_the_full_forward(make_model: MakeModel, preset: str) -> None:
    model = make_model(preset, num_key_value_heads=2)
    tokens = ids(2, 20)
    full = model(tokens).logits
    output = model(tokens[:, :7], use_cache=True)
    pieces = [output.logits]
    for start, end in ((7, 8), (8, 9), (9, 15), (15, 20)):
        output = model(tokens[:, start:end], past_key_values=output.past_key_values, use_cache=True)
        pieces.append(output.logits)
    # attention sums in another order; a flipped int8 code would show as 1e-3
    assert (torch.cat(pieces, dim=1) - full).abs().max() <= 1e-4 * full.abs().max()


@pytest.mark.parametrize("preset", PRESETS)
@torch.no_grad()
def test_left_padding_changes_nothing(make_model: MakeModel, preset: str) -> None:
    model = make_model(preset)
    short, long = ids(1, 6, seed=1), ids(1, 11, seed=2)
    batch = torch.cat([torch.cat([torch.zeros(1, 5, dtype=torch.long), short], dim=1), long])
    mask = (torch.arange(11) >= torch.tensor([[5], [0]])).long()
    together = model.generate(batch, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0)
    for row, prompt in enumerate((short, long)):
        alone = model.generate(prompt, max_new_tokens=12, do_sample=False, pad_token_id=0)
        assert torch.equal(together[row, 11:], alone[0, prompt.shape[1] :])


@torch.no_grad()
def test_right_padding_is_masked(make_model: MakeModel) -> None:
    model = make_model("bitnet")
    tokens = ids(1, 9)
    padded = torch.cat([tokens, ids(1, 4, seed=5)], dim=1)
    mask = torch.tensor([[1] * 9 + [0] * 4])
    torch.testing.assert_close(model(padded, attention_mask=mask).logits[:, :9], model(tokens).logits)


@torch.no_grad()
def test_greedy_equals_argmax_without_a_cache(make_model: MakeModel) -> None:
    model = make_model("bitnet")
    tokens = ids(1, 4)
    expected = tokens
    for _ in range(10):
        expected = torch.cat([expected, model(expected, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(model.generate(tokens, max_new_tokens=10, do_sample=False), expected)
    assert torch.equal(model.generate(tokens, max_new_tokens=10, do_sample=False, use_cache=False), expected)
    static = model.generate(
        tokens, max_new_tokens=10, do_sample=False, cache_implementation="static", disable_compile=True
    )
    assert torch.equal(static, expected)


@torch.no_grad()
def test_sampling_is_seeded_and_beams_run(make_model: MakeModel) -> None:
    model = make_model("bitnet")
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(model.generate(ids(1, 4), max_new_tokens=20, do_sample=True, temperature=1.5, top_k=20))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert model.generate(ids(1, 4), max_new_tokens=5, num_beams=3, do_sample=False).shape == (1, 9)


@torch.no_grad()
def test_stops_at_the_end_token(make_model: MakeModel) -> None:
    model = make_model("bitnet")
    free = model.generate(ids(1, 4), max_new_tokens=10, do_sample=False)[0, 4:].tolist()
    stopped = model.generate(ids(1, 4), max_new_tokens=10, do_sample=False, eos_token_id=free[3])[0, 4:].tolist()
    assert stopped == free[: free.index(free[3]) + 1]


@torch.no_grad()
def test_eager_attention_equals_sdpa(make_model: MakeModel) -> None:
    model = make_model("bitnet", num_key_value_heads=2)
    tokens, mask = ids(2, 10), torch.tensor([[0, 0, 0] + [1] * 7, [1] * 10])
    expected = model(tokens, attention_mask=mask).logits
    model.set_attn_implementation("eager")
    output = model(tokens, attention_mask=mask, output_attentions=True)
    assert (output.logits - expected)[mask.bool()].abs().max() <= 1e-5 * expected.abs().max()
    assert output.attentions[0].shape == (2, 4, 10, 10)
    assert output.attentions[0][1].triu(1).abs().max() == 0


@torch.no_grad()
def test_too_long_a_text_is_refused(make_model: MakeModel) -> None:
    for preset in ("seed", "bitnet"):
        model = make_model(preset)
        assert model(ids(1, 40)).logits.shape == (1, 40, 61)
        with pytest.raises(OnebitError, match="41 tokens do not fit max_seq_len 40"):
            model(ids(1, 41))
    with pytest.raises(OnebitError, match="exactly one of input_ids and inputs_embeds"):
        model()


@torch.no_grad()
def test_inputs_embeds_and_logits_to_keep(make_model: MakeModel) -> None:
    model = make_model("bitnet")
    tokens = ids(2, 8)
    full = model(tokens).logits
    assert torch.equal(model(inputs_embeds=model.get_input_embeddings()(tokens)).logits, full)
    torch.testing.assert_close(model(tokens, logits_to_keep=2).logits, full[:, -2:])
    assert isinstance(model(tokens, return_dict=False), tuple)
