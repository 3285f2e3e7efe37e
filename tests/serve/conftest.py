"""Servers on free ports, each with a random model of bytes, and clients for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from onebit.engine import Model
from onebit.formats import onebit_file
from onebit.formats.random_model import random_description, random_file
from onebit.serve.app import create_app
from onebit.serve.listen import Server
from onebit.serve.settings import ServeSettings

CONTEXT = 96
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write_model(path: Path, template: str | None, bos: int | None = None, eos: int | None = None) -> Path:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    description = random_description(vocab_size=256, eos=eos, bos=bos, max_seq_len=CONTEXT, tied_head=False)
    sections = {"tokenizer_json": tokenizer.to_str(), "chat_template": template}
    onebit_file.write(path, random_file(description, embedding_layout="int8", seed=5, **sections))
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(write_model(tmp_path_factory.mktemp("serve") / "bytes.1bit", TEMPLATE), threads=1)


@pytest.fixture(scope="session")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Without a chat template."""
    return Model(write_model(tmp_path_factory.mktemp("serve") / "plain.1bit", None), threads=1)


class Running:
    """A server in a thread."""

    def __init__(self, model: Model, **settings: Any) -> None:
        import uvicorn

        self.app = create_app(model, ServeSettings(name="bytes", shutdown_seconds=5, **settings))
        config = uvicorn.Config(self.app, port=0, log_level="warning", timeout_graceful_shutdown=6)
        self._started = threading.Event()
        self.server = Server(config, self._tell)
        self._thread = threading.Thread(target=self.server.run, daemon=True)
        self._thread.start()
        assert self._started.wait(20)

    def _tell(self, address: str) -> None:
        self.address = address
        self._started.set()

    @property
    def worker(self) -> Any:
        return self.app.state.service.worker

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture
def run_server(model: Model) -> Iterator[Callable[..., Running]]:
    running: list[Running] = []

    def run(model: Model = model, **settings: Any) -> Running:
        running.append(Running(model, **settings))
        return running[-1]

    yield run
    for one in running:
        one.stop()


@pytest.fixture(scope="session")
def server(model: Model) -> Iterator[Running]:
    running = Running(model, slots=4)
    yield running
    running.stop()
