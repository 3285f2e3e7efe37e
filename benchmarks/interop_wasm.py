"""How fast the engine decodes in Chromium, beside itself, native, on one thread; interop.py asks what it answers there.

Rounds of both take turns, medians count. A round decodes tokens from an empty context; the first rounds in the browser
are not counted, since its compiler replaces functions while they run.
"""

from __future__ import annotations

import argparse
import base64
import functools
import http.server
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import record
from onebit.cli.model_path import tiny_model_path
from onebit.engine import Model
from onebit.formats.onebit_file import read, write
from onebit.formats.random_shapes import shape_file_name, write_shape
from onebit.formats.web_folder import for_page, page_files, wasm_path

# As root Chromium needs the first; the others keep it from looking for its maker's hosts.
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]
VARIANTS = {"relaxed": "onebit-relaxed.wasm", "plain": "onebit.wasm"}
WARM_UP_SECONDS = 4.0

LOAD = """async ([model, variant]) => {
  const { load } = await import('/onebit.js')
  window.model = await load(model, { wasm: new URL(`/${variant}/`, location.href), contextLength: 1024 })
}"""
DECODE = """async (ids) => {
  await model.hold([0], () => false)
  const begin = performance.now()
  for (const id of ids) model.forward([id])
  return (performance.now() - begin) / 1000
}"""
# Logits of every position of a text as base64 of float32, and the greedy tokens after its first half.
ANSWER = """async ([ids, count]) => {
  const bytes = []
  const keep = () => {
    const all = new Uint8Array(new Float32Array(model.logits).buffer)
    for (let at = 0; at < all.length; at += 8192) bytes.push(String.fromCharCode(...all.subarray(at, at + 8192)))
  }
  await model.hold(ids.slice(0, 1), () => false)
  keep()
  for (const id of ids.slice(1)) {
    model.forward([id])
    keep()
  }
  const greedy = []
  const next = model.sampler({})
  if (count) await model.hold(ids.slice(0, ids.length / 2), () => false)
  while (greedy.length < count) {
    greedy.push(next())
    model.forward([greedy.at(-1)])
  }
  return [btoa(bytes.join('')), greedy]
}"""


@contextmanager
def chromium(models: dict[str, Path]) -> Iterator[Any]:
    """A page in headless Chromium that can import /onebit.js and load /NAME for each of `models`."""
    from playwright.sync_api import sync_playwright

    program = os.environ.get("ONEBIT_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("interop_wasm needs Chromium: the package chromium, or its path in ONEBIT_CHROMIUM")
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder)
        for path in page_files():
            shutil.copy(path, site)
        for variant, build in VARIANTS.items():
            (site / variant).mkdir()
            for name in VARIANTS.values():
                shutil.copy(wasm_path(build), site / variant / name)
        for name, path in models.items():
            (site / name).symlink_to(path.resolve())
        (site / "blank.html").write_text("<!doctype html><title>blank</title>", encoding="utf-8")
        with _served(site) as address, sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=program, args=QUIET)
            page = browser.new_page()
            page.goto(f"{address}/blank.html")
            yield page
            browser.close()


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def answers(path: Path, variant: str, texts_ST: np.ndarray, new_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """(logits [S, T, V], greedy tokens [S, N] after the first half of each text) of a build in Chromium."""
    logits, greedy = [], []
    with chromium({"model.1bit": path}) as page:
        page.evaluate(LOAD, ["/model.1bit", variant])
        for text_T in texts_ST:
            encoded, ids = page.evaluate(ANSWER, [text_T.tolist(), new_tokens])
            logits.append(np.frombuffer(base64.b64decode(encoded), np.float32).reshape(len(text_T), -1))
            greedy.append(ids)
    return np.stack(logits), np.array(greedy, np.int32).reshape(len(texts_ST), new_tokens)


def speed(page: Any, name: str, path: Path, tokens: int, rounds: int) -> dict[str, float]:
    """Tokens a second of decoding, native and of each variant, as medians of rounds in turn."""
    model = Model(path, threads=1)
    ids = [(7 * i + 1) % model.description.vocab_size for i in range(tokens)]

    def native() -> float:
        session = model.session(min(1024, model.description.max_seq_len))
        session.forward([0], "none")
        begin = time.perf_counter()
        for token in ids:
            session.decode(token)
        return time.perf_counter() - begin

    figures: dict[str, float] = {}
    for variant in VARIANTS:
        page.evaluate(LOAD, [f"/{name}", variant])
        programs: dict[str, Callable[[], float]] = {"native": native, variant: lambda: page.evaluate(DECODE, ids)}
        end = time.perf_counter() + WARM_UP_SECONDS
        while time.perf_counter() < end:
            programs[variant]()
        native()
        taken: dict[str, list[float]] = {key: [] for key in programs}
        for _ in range(rounds):
            for key, program in programs.items():
                taken[key].append(program())
        for key, seconds in taken.items():
            figures.setdefault(f"{key}_tokens_per_s", tokens / statistics.median(seconds))
        figures[f"{variant}_over_native"] = statistics.median(taken["native"]) / statistics.median(taken[variant])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="*", default=["45m", "700m"], help="random models of these shapes")
    parser.add_argument("--layouts", nargs="*", default=["ternary_t16", "ternary5_t16", "binary_t16"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "onebit-shapes")
    parser.add_argument("--no-record", action="store_true", help="print only")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    write(arguments.folder / "tiny.1bit", for_page(read(tiny_model_path())))
    models = {"tiny": arguments.folder / "tiny.1bit"}
    for shape in arguments.shapes:
        for layout in arguments.layouts:
            path = arguments.folder / shape_file_name(shape, layout)
            if not path.is_file():
                write_shape(path, shape, layout)
            models[f"{shape}_{layout.removesuffix('_t16')}"] = path
    figures: dict[str, float] = {}
    with chromium(models) as page:
        version = page.context.browser.version
        for name, path in models.items():
            tokens = 200 if name == "tiny" else max(8, int(4e9 / path.stat().st_size))
            for key, value in speed(page, name, path, min(tokens, 200), arguments.rounds).items():
                figures[f"{key}_{name}"] = value
            print(
                name, {key: round(value, 3) for key, value in figures.items() if key.endswith(f"_{name}")}, flush=True
            )
    # Of the layouts that a page has: ternary5 becomes ternary there, and is stated apart.
    figures["wasm_over_native"] = min(
        figures[f"relaxed_over_native_{name}"] for name in models if not name.endswith("ternary5")
    )
    print({key: round(value, 4) for key, value in figures.items() if "over_native" in key})
    if not arguments.no_record:
        config = {"chromium": version, "rounds": arguments.rounds, "models": list(models), "threads": 1}
        print(record.write_result("interop_wasm", config, figures))


if __name__ == "__main__":
    main()
