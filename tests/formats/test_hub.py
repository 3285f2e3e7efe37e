"""Pushed to a hub and fetched from it: against a stand-in on this machine, through huggingface_hub itself."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("huggingface_hub")
pytest.importorskip("gguf")

import huggingface_hub

from onebit.engine import Model
from onebit.errors import ConfigError, DataError
from onebit.formats.hub import from_pretrained, push_to_hub
from onebit.formats.model_card import without_paths
from onebit.formats.onebit_file import OneBitFile, write
from onebit.formats.random_model import random_description, random_file

_SPEC = importlib.util.spec_from_file_location("onebit_hub_stand_in", Path(__file__).with_name("hub_stand_in.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
hub_stand_in: Any = importlib.util.module_from_spec(_SPEC)
sys.modules["onebit_hub_stand_in"] = hub_stand_in
_SPEC.loader.exec_module(hub_stand_in)

SIZES = {
    "hidden_size": 64,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 64,
    "vocab_size": 40,
}
MANIFEST = {
    "status": "complete",
    "base_model": "someone/base",
    "final_metrics": {"eval_loss": 3.25, "eval_bits_per_byte": 2.1, "note": "x"},
    "settings": {"data": "/secret/novel.txt", "output_dir": "runs/mine", "lr": 0.1},
}
IDS = np.arange(3, 20)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    # The tests forbid the network; this server is on this machine. Clients remember what was allowed to them.
    huggingface_hub.close_session()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with hub_stand_in.stand_in() as server:
        yield server
    huggingface_hub.close_session()


def model() -> OneBitFile:
    return random_file(random_description(**SIZES), manifest=MANIFEST, embedding_layout="int8")


def push(hub: Any, source: Any, **options: Any) -> str:
    return push_to_hub(source, "me/mine", endpoint=hub.address, token="a-token", **options)


def fetch(hub: Any, tmp_path: Path, **options: Any) -> Model:
    return from_pretrained("me/mine", endpoint=hub.address, cache_dir=tmp_path / "cache", threads=1, **options)


@pytest.mark.parametrize("forms", [("1bit", "hf"), ("gguf",), ("hf",), ("fp32", "gguf")])
def test_what_was_pushed_is_what_is_fetched(forms: tuple[str, ...], hub: Any, tmp_path: Path) -> None:
    write(tmp_path / "m.1bit", model())
    expected = Model(tmp_path / "m.1bit", threads=1).logits(IDS)
    address = push(hub, tmp_path / "m.1bit", forms=forms, commit_message="The first")
    files = hub.repositories["me/mine"]["main"]
    assert address.startswith(f"{hub.address}/me/mine/commit/")
    assert hub.messages == ["The first"]
    assert "README.md" in files
    assert ("mine.1bit" in files) == ("1bit" in forms)
    assert ("mine.gguf" in files) == ("gguf" in forms)
    assert ("model.safetensors" in files) == any(form in ("hf", "fp32") for form in forms)
    assert np.array_equal(fetch(hub, tmp_path).logits(IDS), expected)
    assert np.array_equal(fetch(hub, tmp_path).logits(IDS), expected)  # from the cache


def test_a_path_here_needs_no_hub(tmp_path: Path) -> None:
    write(tmp_path / "m.1bit", model())
    expected = Model(tmp_path / "m.1bit", threads=1).logits(IDS)
    from onebit.formats.convert import write_any

    write_any(tmp_path / "m.gguf", model(), "gguf")
    write_any(tmp_path / "packed", model(), "hf")
    for name in ("m.1bit", "m.gguf", "packed"):
        assert np.array_equal(from_pretrained(tmp_path / name, threads=1).logits(IDS), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.1bit", "m.gguf", "packed"]


def test_a_branch_of_its_own(hub: Any, tmp_path: Path) -> None:
    push(hub, model(), forms=("1bit",), revision="ternary")
    branches = hub.repositories["me/mine"]
    assert "mine.1bit" in branches["ternary"]
    assert branches["main"] == {}
    assert fetch(hub, tmp_path, revision="ternary").description.hidden_size == 64


def test_the_card_says_what_was_measured_and_nothing_private(hub: Any) -> None:
    push(hub, model(), forms=("1bit", "hf"), license="apache-2.0")
    files = hub.repositories["me/mine"]["main"]
    card = files["README.md"].decode()
    header = card.split("---")[1]
    assert 'library_name: "transformers"' in header
    assert "- onebit\n- ternary\n- bitnet" in header
    assert 'base_model: "someone/base"' in header
    assert 'license: "apache-2.0"' in header
    assert "| validation loss, nats a token | 3.2500 |" in card
    assert "| validation bits a byte | 2.1000 |" in card
    size = len(files["mine.1bit"])
    assert f"| `mine.1bit` | {size / 1e6:.2f} MB |" in card
    assert 'onebit.from_pretrained("me/mine")' in card
    assert '"eval_loss": 3.25' in card
    assert "novel.txt" in card
    for name, content in files.items():
        assert b"secret" not in content, name
    assert json.loads(files["training_manifest.json"])["settings"]["data"] == "novel.txt"


def test_without_a_manifest_the_card_has_no_numbers_of_training(hub: Any) -> None:
    push(hub, replace(model(), manifest=None), forms=("1bit",))
    card = hub.repositories["me/mine"]["main"]["README.md"].decode()
    assert "validation" not in card
    assert "How it was made" not in card
    assert "| weights | " in card


def test_paths_lose_all_but_their_end() -> None:
    given = {"a": ["/x/y/z.txt", "x/y"], "b": {"c": "C:\\me\\z.txt"}, "d": "~/z", "e": 3, "f": "stdlib"}
    assert without_paths(given) == {"a": ["z.txt", "x/y"], "b": {"c": "z.txt"}, "d": "z", "e": 3, "f": "stdlib"}


def test_forms_that_do_not_go_together_are_refused_before_anything_is_sent(hub: Any) -> None:
    for forms, message in ((("hf", "bf16"), "room for one"), ((), "forms are none"), (("onnx",), "'onnx'")):
        with pytest.raises(ConfigError, match=message):
            push(hub, model(), forms=forms)
    with pytest.raises(ConfigError, match="one scale a tensor"):
        push(hub, random_file(random_description(**SIZES), granularity="per_row"))
    assert hub.requests == []


def test_a_hub_that_refuses_is_one_line(hub: Any, tmp_path: Path) -> None:
    hub.refuse = 403
    with pytest.raises(DataError, match="the hub did not take 'me/mine'") as caught:
        push(hub, model(), forms=("1bit",))
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="neither a path here nor a model of the hub"):
        from_pretrained("nobody/nothing", endpoint=hub.address, cache_dir=tmp_path / "cache")


def test_the_command_pushes_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from onebit.cli.main import execute
    from onebit.formats import hub as module

    given: list[Any] = []
    monkeypatch.setattr(module, "push_to_hub", lambda *args, **options: given.append((args, options)) or "an address")
    write(tmp_path / "m.1bit", model())
    command = ["convert", str(tmp_path / "m.1bit"), str(tmp_path / "m.gguf"), "--push-to-hub", "me/mine"]
    assert execute(command) == 0
    assert capsys.readouterr().out.endswith("pushed to an address\n")
    options = {"forms": ("gguf",), "gguf_type": None, "linear_class": None}
    assert given == [((tmp_path / "m.gguf", "me/mine"), options)]
