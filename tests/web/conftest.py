"""What the tests of the web page share: a file server, headless Chromium, node, and models that can be talked to."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from onebit.formats import onebit_file, web_folder
from onebit.formats.export_text import binary_of, chat_strings_of
from onebit.formats.random_model import random_description, random_file

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# As root Chromium needs the first; the others keep it from looking for its maker's hosts.
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
_FIND_WASM = web_folder.wasm_path
QUIET += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="session")
def real_wasm_path() -> Callable[[str], Path]:
    """What finds the engine outside the tests."""
    return _FIND_WASM


@pytest.fixture(scope="session", autouse=True)
def _fresh_engine(wasm_engines: Path) -> Iterator[None]:
    """Folders get the engine of this source tree."""
    patch = pytest.MonkeyPatch()
    patch.setattr(web_folder, "wasm_path", lambda name: wasm_engines / name)
    yield
    patch.undo()


def write_model(path: Path, *, template: str | None = None, **fields: Any) -> Path:
    """A random model of single bytes, with a tokenizer that C reads."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = tokenizer.to_str()
    description = random_description(**{"vocab_size": 256, "tied_head": False, "bos": None, "eos": None, **fields})
    sections = {
        "tokenizer_json": text,
        "tokenizer_binary": binary_of(text, description),
        "chat_template": template,
        "chat_strings": chat_strings_of(template, text, description),
    }
    onebit_file.write(path, random_file(description, embedding_layout="int8", **sections))
    return path


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a chat template, slow enough to be stopped in an answer, which never ends by itself."""
    path = tmp_path_factory.mktemp("chat") / "chat.1bit"
    shape = {"hidden_size": 512, "num_heads": 8, "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 2048}
    return write_model(path, template=TEMPLATE, num_layers=8, max_seq_len=8192, **shape)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a plain file server over a folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def serve() -> Callable[[Path], Any]:
    return served


@contextmanager
def running(app: Any) -> Iterator[str]:
    """The address of an application of onebit.serve, in a thread."""
    import uvicorn

    from onebit.serve.listen import Server

    told: list[str] = []
    started = threading.Event()

    def tell(address: str) -> None:
        told.append(address)
        started.set()

    server = Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=2), tell)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        assert started.wait(30)
        yield told[0]
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="session")
def run_app() -> Callable[[Any], Any]:
    return running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, driven by playwright. Ended with the module: while it lasts, its event loop counts as running
    in this thread, and tests elsewhere that run one of their own (lm-eval's clients, another playwright) would fail."""
    program = os.environ.get("ONEBIT_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium: the package chromium, or its path in ONEBIT_CHROMIUM")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra dev")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture
def node(wasm_engines: Path) -> Callable[..., Any]:
    """``node(script, argument)``: what tests/web/SCRIPT prints as JSON when it is given an argument as JSON."""
    if shutil.which("node") is None:
        pytest.skip("needs node: the package nodejs (18 or newer)")

    def run(script: str, argument: dict[str, Any]) -> Any:
        given = json.dumps({"wasm": f"{wasm_engines.as_uri()}/", **argument})
        command = ["node", str(Path(__file__).with_name(script))]
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
        return json.loads(done.stdout)

    return run
