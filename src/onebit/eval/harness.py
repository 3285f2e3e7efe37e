"""lm-evaluation-harness over a checkpoint in torch, a `.1bit` file in the engine, or a served address.

Importing this needs the extra `eval`. Texts start with the model's BOS when it has one, as in the harness's own `hf`.
The harness's client for servers leaves it out; `ServedLM` does not, so that a model scores the same wherever it runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from onebit.engine.conversation import render_template
from onebit.errors import ConfigError, FormatError, nearest_name
from onebit.eval.forms import EngineForm, Form, TorchForm, open_form
from onebit.eval.scoring import Pair, Prompt, asker_of
from onebit.eval.served import Server

__all__ = ["OneBitLM", "ServedLM", "evaluate_tasks"]

_NEW_TOKENS = 256  # what tasks get that name no number, as with the harness's other models


@register_model("onebit")
class OneBitLM(TemplateLM):  # type: ignore[misc]
    """A form of a model, or the path of one. FormatError for a model without a tokenizer.

    add_bos_token: whether texts start with the model's BOS [default: when it has one].
    """

    def __init__(
        self,
        model: Form | str | Path,
        device: str = "cpu",
        threads: int | None = None,
        add_bos_token: bool | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        form = open_form(Path(model), device=device, threads=threads) if isinstance(model, str | Path) else model
        if form.tokenizer is None:
            raise FormatError(f"{form.name} has no tokenizer, so tasks of text cannot be asked of it")
        assert isinstance(form, EngineForm | TorchForm)
        self.form, self._tokenizer, self._asker = form, form.tokenizer, asker_of(form)
        self._adds_bos = form.bos is not None and add_bos_token is not False

    @property
    def eot_token_id(self) -> int:
        """What stands before a text that follows nothing, in models without a BOS."""
        return 0 if self.form.eos is None else self.form.eos

    @property
    def prefix_token_id(self) -> int:
        return self.eot_token_id if self.form.bos is None else self.form.bos

    @property
    def tokenizer_name(self) -> str:
        """Names the harness's cache of requests."""
        return self.form.name.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        ids: list[int] = self._tokenizer.encode(string, add_special_tokens=False).ids
        return _with_bos(ids, self.form.bos) if self._adds_bos and add_special_tokens is not False else ids

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [Pair(tuple(before), tuple(text)) for _key, before, text in requests]
        with _progress("log probabilities", disable_tqdm) as progress:
            return self._asker.scores(pairs, progress)

    def loglikelihood_rolling(self, requests: Iterable[Any], disable_tqdm: bool = False) -> list[float]:
        texts = [request.args[0] for request in requests]
        owners, pairs = [], []
        for index, text in enumerate(texts):
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.form.context - 2,  # with the token before it: one less than the context
                context_len=1,
            ):
                before, scored = make_disjoint_window(window)
                owners.append(index)
                pairs.append(Pair(tuple(before), tuple(scored)))
        with _progress("windows of texts", disable_tqdm) as progress:
            told = self._asker.scores(pairs, progress)
        totals = [0.0] * len(texts)
        for index, (logprob, _) in zip(owners, told, strict=True):
            totals[index] += logprob
        return totals

    def generate_until(self, requests: Iterable[Any], disable_tqdm: bool = False) -> list[str]:
        prompts = [self._prompt(*request.args) for request in requests]
        with _progress("answers", disable_tqdm) as progress:
            return self._asker.answers(prompts, progress)

    def _prompt(self, text: str, options: dict[str, Any]) -> Prompt:
        """The end of a text that leaves room for the answer."""
        until = options.get("until") or []
        stop = [until] if isinstance(until, str) else until
        longest = self.form.context - 1
        most = min(int(options.get("max_gen_toks") or _NEW_TOKENS), longest // 2)
        ids = self.tok_encode(text)[-(longest - most) :] or [self.prefix_token_id]
        return Prompt(tuple(ids), most, tuple(one for one in stop if one))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        template = self.form.chat_template
        if template is None:
            raise FormatError(f"{self.form.name} has no chat template; leave out --apply-chat-template")
        text = render_template(template, chat_history, self.form.specials, add_generation_prompt)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"]  # it goes on, so nothing that ends the turn may follow it
        return text[: text.rindex(last) + len(last)]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.form.chat_template


class ServedLM(LocalCompletionsAPI):  # type: ignore[misc]
    """A model behind a server with OpenAI's interface and vLLM's paths for tokens. `bos` starts texts."""

    def __init__(self, bos: int | None, **options: Any) -> None:
        super().__init__(**options)
        self._bos = bos

    def tok_encode(self, string: Any, add_special_tokens: bool | None = None, **options: Any) -> Any:
        ids = super().tok_encode(string, **options)
        if self._bos is None or add_special_tokens is False:
            return ids
        return _with_bos(ids, self._bos) if isinstance(string, str) else [_with_bos(one, self._bos) for one in ids]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
        bos, self._bos = self._bos, None  # the harness puts it before every window itself
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm)
        finally:
            self._bos = bos


def evaluate_tasks(
    model: Form | Server,
    tasks: Sequence[str],
    *,
    task_path: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, bool]]]:
    """What lm-evaluation-harness says: task -> metric -> value, and task -> metric -> whether more is better.

    tasks: names that the harness knows, or of YAML files below task_path. Raises ConfigError for names that nobody
    knows and for a server that does not answer.
    """
    with _quiet():
        manager = _manager(tasks, task_path)
        found = simple_evaluate(
            model=_served(model) if isinstance(model, Server) else OneBitLM(model),
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            num_fewshot=num_fewshot,
            apply_chat_template=apply_chat_template,
            log_samples=False,
        )
    return found["results"], found["higher_is_better"]


def _manager(tasks: Sequence[str], task_path: Path | None) -> TaskManager:
    """What finds the tasks. The harness's own are thousands of files, read only where they are needed."""
    include = None if task_path is None else str(task_path)
    if include is not None:
        manager = TaskManager(include_path=include, include_defaults=False)
        if set(tasks) <= set(manager.all_tasks):
            return manager
    manager = TaskManager(include_path=include)
    known = set(manager.all_tasks)
    if unknown := [name for name in tasks if name not in known]:
        raise ConfigError(
            f"no task {unknown[0]!r}{nearest_name(unknown[0], sorted(known))}; 'lm-eval ls tasks' lists the harness's"
            " own, --task-path adds a folder's"
        )
    return manager


def _served(server: Server) -> ServedLM:
    """The server's model, with the server's tokenizer and context."""
    bos, context = server.bos, server.context
    more = {} if server.api_key is None else {"auth_token": server.api_key, "header": server.headers}
    return ServedLM(
        bos,
        base_url=f"{server.address}/v1/completions",
        model=server.name,
        tokenizer_backend="remote",
        max_length=context,
        max_gen_toks=min(_NEW_TOKENS, (context - 1) // 2),
        num_concurrent=_CONCURRENT,
        custom_prefix_token_id=next((token for token in (bos, server.eos) if token is not None), 0),
        max_retries=1,
        **more,
    )


_CONCURRENT = 8  # as many as a server has slots, unless told otherwise


def _with_bos(ids: list[int], bos: int | None) -> list[int]:
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


@contextmanager
def _progress(what: str, is_off: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar as the harness has them."""
    with tqdm(desc=what, disable=is_off or None, leave=False) as bar:

        def tell(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield tell


@contextmanager
def _quiet() -> Iterator[None]:
    """Its log tells what it does in general; what goes wrong stays. No git and pip are run to describe the machine, of
    which git complains outside of a repository: a result record has that."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (
            patch("lm_eval.evaluator.get_git_commit_hash", return_value=None, create=True),
            patch("lm_eval.evaluator.add_env_info", create=True),
        ):
            yield
    finally:
        logger.setLevel(level)
