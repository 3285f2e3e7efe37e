"""`onebit chat`: talk to a model on the terminal, or feed it lines through a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onebit.cli.sampling import (
    ContextShift,
    Draft,
    Isa,
    Kv,
    Lookup,
    MaxNewTokens,
    MinP,
    ModelDir,
    RepetitionPenalty,
    Seed,
    SpeculateTokens,
    Stop,
    Temperature,
    Threads,
    TopK,
    TopP,
)
from onebit.errors import ConfigError

if TYPE_CHECKING:
    from onebit.engine import Model
    from onebit.engine.conversation import Conversation

__all__ = ["chat"]

HELP = """\
/reset          forget the conversation
/system TEXT    set the system message and start over; without TEXT, drop it
/save FILE      write the conversation as JSON
/help           this list
/exit           leave (Ctrl-D too); Ctrl-C stops an answer"""


def chat(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="A .1bit file, a checkpoint folder, or 'tiny' (the default): the model inside onebit."
        ),
    ] = None,
    model_dir: ModelDir = None,
    system: Annotated[str | None, typer.Option("--system", help="System message.")] = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.7,
    top_k: TopK = 40,
    top_p: TopP = 0.9,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.2,
    seed: Seed = None,
    stop: Stop = None,
    threads: Threads = None,
    isa: Isa = None,
    draft: Draft = None,
    lookup: Lookup = False,
    speculate_tokens: SpeculateTokens = None,
    context_shift: ContextShift = None,
    kv: Kv = "default",
) -> None:
    """Talk to a model.

    Ctrl-C stops an answer, /help lists the commands, Ctrl-D leaves. Lines from a pipe are answered one by one.
    """
    import secrets

    from onebit.cli.model_path import resolve_model
    from onebit.engine import Model

    if model_dir is not None and model is not None:
        raise ConfigError(f"--model-dir and MODEL ('{model}') both name a model; drop one of them")
    path = resolve_model(model_dir or model)
    loaded = Model(path, threads=threads, isa=isa)
    session = loaded.session(kv=kv)  # keeps what the next prompt shares with the last one
    drafting = Model(resolve_model(draft), threads=threads, isa=isa).session() if draft else None
    draws = secrets.randbits(32) if seed is None else seed

    def answer(ids: list[int], turn: int) -> Iterator[str]:
        return loaded.generate(
            ids,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=draws + turn,
            stop=stop or [],
            session=session,
            draft=drafting,
            lookup=lookup,
            speculate_tokens=speculate_tokens,
            context_shift=context_shift,
        )

    conversation = _conversation(loaded, system, max_new_tokens)
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if interactive:
        _greet(path, conversation)
    Chat(conversation, answer, interactive).run()


def _conversation(loaded: Model, system: str | None, reserve: int) -> Conversation:
    from onebit.engine.conversation import Conversation, encoder_of, specials_of

    return Conversation(
        encode=encoder_of(loaded),
        context=loaded.description.max_seq_len,
        reserve=reserve,
        template=loaded.chat_template,
        specials=specials_of(loaded),
        system=system,
    )


def _greet(path: Path, conversation: Conversation) -> None:
    typer.secho(f"{path.name}: /help lists the commands, Ctrl-D leaves.", dim=True)
    if conversation.template is None:
        typer.secho("It has no chat template: it was not trained to answer, it continues what you type.", dim=True)


class Chat:
    """The loop: a line, an answer, a line. `answer(ids, turn)` streams the text of a turn."""

    def __init__(
        self, conversation: Conversation, answer: Callable[[list[int], int], Iterator[str]], interactive: bool
    ) -> None:
        self.conversation = conversation
        self.answer = answer
        self.interactive = interactive
        self.turn = 0
        if interactive:
            with suppress(ImportError):  # line editing and history of input()
                import readline  # noqa: F401

    def run(self) -> None:
        """Read lines until the end of input or /exit."""
        while (line := self._read()) is not None:
            if not line.strip():
                continue
            if line.startswith("/"):
                if not self._command(line):
                    return
            else:
                self._turn(line)

    def _read(self) -> str | None:
        if not self.interactive:
            line = sys.stdin.readline()
            return line.rstrip("\n") if line else None
        while True:
            try:
                return input("> ")
            except EOFError:
                print()
                return None
            except KeyboardInterrupt:
                typer.secho("\nCtrl-D or /exit leaves.", dim=True)

    def _turn(self, line: str) -> None:
        conversation = self.conversation
        conversation.add("user", line)
        parts: list[str] = []
        try:
            ids, dropped = conversation.prompt()
            if dropped:
                what = "turns" if conversation.template is not None else "tokens"
                self._say(f"[dropped the {dropped} oldest {what}: the context holds {conversation.context} tokens]")
            for piece in self.answer(ids, self.turn):
                parts.append(piece)
                sys.stdout.write(piece)
                sys.stdout.flush()
        except KeyboardInterrupt:
            self._say(" [stopped]")
        self.turn += 1
        conversation.add("assistant", "".join(parts))
        sys.stdout.write("\n")
        sys.stdout.flush()

    def _command(self, line: str) -> bool:
        """Carry out a /command; False ends the chat."""
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        match name:
            case "/exit" | "/quit":
                return False
            case "/reset":
                self.conversation.reset()
                self._say("The conversation is forgotten.")
            case "/system":
                self.conversation.system = rest or None
                self.conversation.reset()
                self._say("System message set; the conversation starts over." if rest else "No system message.")
            case "/save":
                self._save(rest)
            case "/help":
                self._say(HELP)
            case _:
                from onebit.errors import nearest_name

                known = ("/exit", "/reset", "/system", "/save", "/help")
                self._say(f"no command {name}{nearest_name(name, known) or '; /help lists them'}")
        return True

    def _save(self, name: str) -> None:
        if not name:
            self._say("/save FILE: name a file")
            return
        try:
            self.conversation.save(Path(name))
        except OSError as problem:
            self._say(f"{name}: {problem.strerror}")
        else:
            self._say(f"Saved to {name}.")

    def _say(self, text: str) -> None:
        """A word of ours, not of the model: to stderr, so that a pipe gets answers only."""
        sys.stdout.flush()
        typer.secho(text, dim=True, err=True)
