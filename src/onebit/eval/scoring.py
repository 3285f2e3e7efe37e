"""What a harness of tasks asks of a model: how likely a text is after another, and how it goes on.

A `.1bit` file answers many requests at once through the engine's batch, as a server would; a checkpoint answers padded
batches in torch. Both count a beginning and what follows it as at most `longest` tokens, one less than the context, for
that is what a server can be asked too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from onebit.eval.forms import EngineForm, Form, TorchForm

if TYPE_CHECKING:
    from onebit.engine import Request

__all__ = ["Asker", "Pair", "Prompt", "asker_of"]

Progress = Callable[[int, int], None]

_SLOTS = 8
_STEP_TOKENS = 256  # reading is nearly all that tasks do
_BATCH_TOKENS = 4096  # of a padded batch in torch


@dataclass(frozen=True)
class Pair:
    """Tokens, and those after them that are scored."""

    before: tuple[int, ...]
    text: tuple[int, ...]

    def cut(self, longest: int) -> tuple[list[int], int]:
        """The last `longest` tokens, and the first of them that is scored; one stands before it at least."""
        ids = [*self.before, *self.text][-longest:]
        return ids, max(len(ids) - len(self.text), 1)


@dataclass(frozen=True)
class Prompt:
    """Tokens to continue, greedily, up to one of the strings to stop at."""

    ids: tuple[int, ...]
    max_new_tokens: int
    stop: tuple[str, ...] = ()


class Asker(Protocol):
    """Answers in the order of the questions; `progress` is called with (done, of)."""

    def scores(self, pairs: Sequence[Pair], progress: Progress) -> list[tuple[float, bool]]:
        """Log probability of each text, and whether it is what the model writes by itself."""
        ...

    def answers(self, prompts: Sequence[Prompt], progress: Progress) -> list[str]:
        """The new text of each, without the string that it stopped at."""
        ...


def asker_of(form: Form) -> Asker:
    """For either form of a model."""
    if isinstance(form, EngineForm):
        return _EngineAsker(form)
    assert isinstance(form, TorchForm)
    return _TorchAsker(form)


class _EngineAsker:
    def __init__(self, form: EngineForm) -> None:
        from onebit.engine import Batch

        self._longest = form.context - 1
        self._batch = Batch(form.model, _SLOTS, step_tokens=_STEP_TOKENS)

    def scores(self, pairs: Sequence[Pair], progress: Progress) -> list[tuple[float, bool]]:
        cuts = [pair.cut(self._longest) for pair in pairs]
        requests: dict[int, Request] = {}
        for wave in _waves(cuts):
            for index in wave:
                ids, first = cuts[index]
                requests[index] = self._batch.submit(ids, max_new_tokens=1, logprobs=1, score_from=first)
            for event in self._batch.run():
                if event.stopped_by is not None:
                    progress(sum(one.stats.stopped_by is not None for one in requests.values()), len(pairs))
        told = [requests[index].prompt_logprobs for index in range(len(pairs))]
        return [(sum(one.logprob for one in each), all(one.token == one.top[0][0] for one in each)) for each in told]

    def answers(self, prompts: Sequence[Prompt], progress: Progress) -> list[str]:
        requests = [
            self._batch.submit(prompt.ids, max_new_tokens=prompt.max_new_tokens, stop=prompt.stop) for prompt in prompts
        ]
        done = 0
        for event in self._batch.run():
            done += event.stopped_by is not None
            progress(done, len(prompts))
        return ["".join(request) for request in requests]


def _waves(cuts: Sequence[tuple[list[int], int]]) -> Iterator[list[int]]:
    """Indices that are asked together. Texts after the same beginning wait until the first of them was read: then the
    beginning lies in the cache, and is not read again for each."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, (ids, first) in enumerate(cuts):
        groups.setdefault(tuple(ids[:first]), []).append(index)
    all_groups = list(groups.values())
    for start in range(0, len(all_groups), _SLOTS):
        some = all_groups[start : start + _SLOTS]
        yield [group[0] for group in some]
        if rest := [index for group in some for index in group[1:]]:
            yield rest


class _TorchAsker:
    def __init__(self, form: TorchForm) -> None:
        self._form, self._longest = form, form.context - 1

    def scores(self, pairs: Sequence[Pair], progress: Progress) -> list[tuple[float, bool]]:
        cuts = [pair.cut(self._longest) for pair in pairs]
        longest_first = sorted(range(len(cuts)), key=lambda index: -len(cuts[index][0]))
        found: dict[int, tuple[float, bool]] = {}
        while longest_first:
            count = max(1, _BATCH_TOKENS // len(cuts[longest_first[0]][0]))
            batch, longest_first = longest_first[:count], longest_first[count:]
            found |= zip(batch, self._score([cuts[index] for index in batch]), strict=True)
            progress(len(found), len(cuts))
        return [found[index] for index in range(len(cuts))]

    def _score(self, cuts: Sequence[tuple[list[int], int]]) -> list[tuple[float, bool]]:
        """One padded batch; what stands behind a text is not seen by it."""
        import torch

        model: Any = self._form.model
        width = max(len(ids) for ids, _ in cuts)
        ids_BT = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in cuts], device=_device_of(model))
        with torch.inference_mode():
            logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
            told = []
            for row, (ids, first) in enumerate(cuts):
                logprobs_NV = logits_BTV[row, first - 1 : len(ids) - 1].double().log_softmax(-1)
                wanted_N = ids_BT[row, first : len(ids)]
                total = logprobs_NV.gather(-1, wanted_N[:, None]).sum()
                told.append((float(total), bool((logprobs_NV.argmax(-1) == wanted_N).all())))
        return told

    def answers(self, prompts: Sequence[Prompt], progress: Progress) -> list[str]:
        told = []
        for prompt in prompts:
            told.append(_cut(self._continued(prompt), prompt.stop))
            progress(len(told), len(prompts))
        return told

    def _continued(self, prompt: Prompt) -> str:
        import torch

        model: Any = self._form.model
        prompt_BT = torch.tensor([prompt.ids], device=_device_of(model))
        with torch.inference_mode():
            told_BT = model.generate(
                prompt_BT,
                attention_mask=torch.ones_like(prompt_BT),
                max_new_tokens=prompt.max_new_tokens,
                do_sample=False,
                pad_token_id=0,
            )
        assert self._form.tokenizer is not None
        text: str = self._form.tokenizer.decode(told_BT[0, len(prompt.ids) :].tolist())
        return text


def _device_of(model: Any) -> Any:
    return next(model.parameters()).device


def _cut(text: str, stop: Sequence[str]) -> str:
    places = [place for one in stop if (place := text.find(one)) >= 0]
    return text[: min(places)] if places else text
