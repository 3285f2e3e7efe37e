"""What a loaded model costs: resident memory, idle processor time, and the copy that was asked for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onebit.engine import Model

# Prints the peak resident memory in bytes; with a model, after a prefill of 256 and 16 single tokens.
PROGRAM = """
import resource, sys
from onebit.engine import Model, _library
_library.library()
if len(sys.argv) > 1:
    session = Model(sys.argv[1], threads=2).session(max_positions=2048)
    session.prefill([1 + i % 90 for i in range(256)])
    for token in range(3, 19):
        session.decode(token)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""

# Prints the processor seconds that half a second of idleness takes; in a process of its own, since others have threads.
IDLE = """
import sys, time
from onebit.engine import Model
session = Model(sys.argv[1], threads=4).session()
session.prefill([1, 2, 3])
time.sleep(0.02)  # workers look for work for a fraction of a millisecond
begin = time.process_time()
time.sleep(0.5)
print(time.process_time() - begin)
"""


def _peak(*arguments: Path) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux only")
def test_memory_is_the_file_the_cache_and_little_more(make_file: Callable[..., Any]) -> None:
    fields = {"hidden_size": 1024, "head_dim": 64, "num_heads": 16, "num_key_value_heads": 8, "intermediate_size": 4096}
    path, _ = make_file(fields | {"num_layers": 4, "max_seq_len": 4096, "vocab_size": 20_000})
    file, cache = path.stat().st_size, 4 * 2 * 8 * 64 * 2 * 2048
    assert file > 50e6
    extra = _peak(path) - _peak() - file
    assert extra < cache + 32e6
    assert extra < cache * (256 + 16) / 2048 + 32e6  # the cache takes room only where it is filled


def test_an_idle_session_burns_nothing(make_file: Callable[..., Any]) -> None:
    done = subprocess.run([sys.executable, "-c", IDLE, str(make_file()[0])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.005


def test_a_copied_file_gives_the_same_bits(make_file: Callable[..., Any]) -> None:
    path, _ = make_file()
    model = Model(path, copy=True)
    expected = Model(path).logits([1, 5, 96]).tobytes()
    path.write_bytes(b"")  # a mapped file could not bear this
    assert model.logits([1, 5, 96]).tobytes() == expected
