"""A ``.1bit`` model ready to run: the thin Python face of the C engine.

Legend: n tokens, V vocab_size, H hidden_size, L num_layers. Arrays that come back are fresh and belong to the caller.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onebit.engine import _library as c
from onebit.engine.cores import physical_cores
from onebit.engine.description import LAYOUTS, Description, TensorInfo
from onebit.engine.session import Session, token_array
from onebit.errors import EngineError, nearest_name

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from onebit.engine.generate import Generation

__all__ = ["Model", "Session"]

_ISAS = ("auto", "scalar", "avx2", "avxvnni", "avx512", "amx", "neon", "i8mm", "wasm")


class Model:
    """A model file, mapped and checked. Read-only; many sessions may use it, also from several Python threads.

    ``threads`` None takes the physical cores this process may use. ``verify`` False skips the tensors' checksums (the
    header's is always checked). ``isa`` forces one of the instruction sets; the logits are the same bits in each.
    ``copy`` reads the file into large pages, which decodes faster where mapped files have small ones, and takes its
    size in memory.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        threads: int | None = None,
        verify: bool = True,
        isa: str | None = None,
        copy: bool = False,
    ) -> None:
        self._handle = ctypes.c_void_p()
        self.path = Path(path)
        self.threads = physical_cores() if threads is None else threads
        if not 1 <= self.threads <= 256:
            raise EngineError(f"threads must be 1 to 256, got {self.threads}")
        if isa is not None and isa not in _ISAS:
            raise EngineError(f"isa must be one of {', '.join(_ISAS)}, got {isa!r}{nearest_name(isa, _ISAS)}")
        number = c.library().ob_isa_from_name((isa or "auto").encode())
        if not c.library().ob_isa_available(number):
            raise EngineError(f"this processor or build cannot run isa={isa!r}; leave it out to take the best there is")
        options = c.CModelOptions(
            isa=number, skip_tensor_check=0 if verify else 1, num_threads=self.threads, copy=int(copy)
        )
        error = c.Error()
        status = c.library().ob_load(
            os.fsencode(self.path), ctypes.byref(options), ctypes.byref(self._handle), ctypes.byref(error)
        )
        c.check(status, error, "" if status == 5 else str(self.path))
        weakref.finalize(self, c.library().ob_unload, self._handle)  # at the latest before the interpreter goes
        described = c.CDescription()
        c.library().ob_model_describe(self._handle, ctypes.byref(described))
        self.description = Description.from_c(described)

    def __repr__(self) -> str:
        d = self.description
        return (
            f"<onebit.engine.Model {self.path.name}: {d.num_layers} layers of {d.hidden_size}, {self.threads} threads>"
        )

    def section(self, name: str) -> bytes | None:
        """The bytes of a section of the file ("CONFIG", "MANIFEST", ...), None when it has none."""
        size = ctypes.c_uint64()
        address = c.library().ob_model_section(self._handle, name.encode(), ctypes.byref(size))
        return None if address is None else ctypes.string_at(address, size.value)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer inside the file. EngineError when it has none."""
        from tokenizers import Tokenizer

        text = self.section("TOKJSON")
        if text is None:
            raise EngineError(f"{self.path} has no tokenizer inside; export it with one, or pass token ids")
        return Tokenizer.from_str(text.decode("utf-8"))

    def encode(self, text: str) -> list[int]:
        """Token ids that start a text: the model's BOS, when it has one, and the text. Nothing at all is a new line."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        bos = self.description.bos
        if bos is not None and ids[:1] != [bos]:
            return [bos, *ids]
        return ids or self.tokenizer.encode("\n", add_special_tokens=False).ids

    @cached_property
    def chat_template(self) -> str | None:
        """The Jinja chat template inside the file, if any."""
        text = self.section("CHATTPL")
        return None if text is None else text.decode("utf-8")

    def tensors(self) -> list[TensorInfo]:
        """Every tensor in file order."""
        return list(self._tensors())

    def _tensors(self) -> Iterator[TensorInfo]:
        for index in range(c.library().ob_model_num_tensors(self._handle)):
            info, error = c.CTensorInfo(), c.Error()
            status = c.library().ob_model_tensor(self._handle, index, ctypes.byref(info), ctypes.byref(error))
            c.check(status, error)
            yield TensorInfo(
                info.name.decode(), info.rows, info.cols, LAYOUTS[info.layout], info.data_bytes, info.scale_bytes
            )

    def kernels(self) -> list[str]:
        """What the dispatch chose for each operation, and why, one line each."""
        lines: list[str] = []
        line = ctypes.create_string_buffer(c.KERNEL_LINE)
        while c.library().ob_model_kernel(self._handle, len(lines), line):
            lines.append(line.value.decode())
        return lines

    def session(
        self, max_positions: int | None = None, max_batch: int | None = None, kv: str = "default", sequences: int = 1
    ) -> Session:
        """A new session. ``max_positions`` None is the model's max_seq_len, which is also the most allowed.

        ``kv`` is how keys and values are kept: float16 (the default), float32 or int8. Each of the ``sequences`` has
        ``max_positions`` of its own.
        """
        return Session(self, max_positions, max_batch, kv, sequences)

    def logits(self, ids: Sequence[int] | NDArray[Any], kv: str = "default") -> NDArray[np.float32]:
        """Teacher-forced logits [n, V]: row i is what the model expects after ids[: i + 1]."""
        tokens = token_array(ids)
        return self.session(self._fit(tokens), kv=kv).forward(tokens, "all")

    def hidden(self, ids: Sequence[int] | NDArray[Any], kv: str = "default") -> NDArray[np.float32]:
        """The residual stream [L + 1, n, H]: after the embedding, then after each layer."""
        tokens = token_array(ids)
        d = self.description
        out_LNH = np.empty((d.num_layers + 1, tokens.size, d.hidden_size), np.float32)

        def keep(_: object, point: int, position: int, hidden: Any, num_tokens: int, size: int) -> None:
            rows_NH = np.ctypeslib.as_array(hidden, (num_tokens, size))
            out_LNH[point, position : position + num_tokens] = rows_NH

        session = self.session(self._fit(tokens), kv=kv)
        session.trace(c.TRACE(keep))
        session.forward(tokens, "none")
        return out_LNH

    def _fit(self, tokens: NDArray[np.uint32]) -> int:
        """A context just long enough; one that is too long is left to the session to refuse."""
        return min(int(tokens.size), self.description.max_seq_len)

    def generate(self, prompt: str | Sequence[int], **options: Any) -> Generation:
        """An iterator over pieces of text that follow the prompt (text or token ids), with ``stats`` and ``ids``.

        Options: max_new_tokens (256), temperature (0: the likeliest token), top_k (0: all), top_p (1: all), min_p (0),
        repetition_penalty (1: off) over the last repetition_window (64) tokens, seed (0), stop (a string or several),
        session (one to go on from); lookup (False) and draft (a smaller model) for more than one token a pass, with at
        most speculate_tokens proposed at once; context_shift (None: stop where the context is full; N: keep the first N
        tokens and the newer half of the others, and go on).
        """
        from onebit.engine.generate import Generation

        return Generation(self, prompt, **options)
