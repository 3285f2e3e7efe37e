"""Sequences of tokens and their KV cache in the C engine.

Legend: n and N tokens, V vocab_size. Arrays that come back are fresh and belong to the caller.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onebit.engine import _library as c
from onebit.errors import EngineError, nearest_name

if TYPE_CHECKING:
    from onebit.engine.model import Model

__all__ = ["KV_TYPES", "Session", "token_array"]

KV_TYPES = ("default", "float32", "float16", "int8")
_PREFILL_STEP = 256  # tokens per call into C: Ctrl-C is answered between calls


def token_array(ids: Sequence[int] | NDArray[Any]) -> NDArray[np.uint32]:
    """Token ids as the engine takes them; EngineError when they are not whole numbers from 0 on."""
    array = np.asarray(ids)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise EngineError(f"token ids must be a non-empty list of whole numbers, got {_shorten(ids)}")
    if array.min() < 0 or array.max() > 0xFFFFFFFE:
        raise EngineError(f"token ids must not be negative, got {int(array.min())} to {int(array.max())}")
    return np.ascontiguousarray(array, np.uint32)


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."


class Session:
    """Sequences of tokens with their KV cache, usually one. Not for several threads at once.

    ``forward``, ``prefill``, ``decode``, ``continue_with``, ``truncate`` and ``shift`` work on sequence 0, whose tokens
    are ``tokens``. Each of the other sequences has what ``forward_batch``, ``copy_sequence``, ``truncate_sequence`` and
    ``shift_sequence`` give it.
    """

    def __init__(
        self,
        model: Model,
        max_positions: int | None = None,
        max_batch: int | None = None,
        kv: str = "default",
        sequences: int = 1,
    ) -> None:
        self._handle = ctypes.c_void_p()
        self._model = model  # keeps the mapped file alive
        self._trace: Any = None
        longest = model.description.max_seq_len
        if max_positions is not None and not 1 <= max_positions <= longest:
            raise EngineError(f"max_positions must be 1 to the model's {longest}, got {max_positions}")
        if max_batch is not None and not 1 <= max_batch <= 256:
            raise EngineError(f"max_batch must be 1 to 256, got {max_batch}")
        if kv not in KV_TYPES:
            raise EngineError(f"kv must be one of {', '.join(KV_TYPES)}, got {kv!r}{nearest_name(kv, KV_TYPES)}")
        if not 1 <= sequences <= 1024:
            raise EngineError(f"sequences must be 1 to 1024, got {sequences}")
        self._tokens: list[list[int]] = [[] for _ in range(sequences)]
        self._intact = [longest] * sequences  # leading tokens whose rows have seen nothing that a shift dropped
        options = c.CSessionOptions(
            max_positions=max_positions or 0,
            max_batch=max_batch or 0,
            num_threads=model.threads,
            kv_type=KV_TYPES.index(kv),
            num_sequences=sequences,
        )
        error = c.Error()
        status = c.library().ob_session_create(
            model._handle, ctypes.byref(options), ctypes.byref(self._handle), ctypes.byref(error)
        )
        c.check(status, error)
        weakref.finalize(self, c.library().ob_session_free, self._handle)

    @property
    def model(self) -> Model:
        """The model it runs."""
        return self._model

    @property
    def tokens(self) -> list[int]:
        """The ids that sequence 0 holds."""
        return self._tokens[0]

    def tokens_of(self, sequence: int) -> list[int]:
        """The ids that a sequence holds."""
        return self._tokens[self._known(sequence)]

    @property
    def num_sequences(self) -> int:
        """How many sequences there are."""
        return len(self._tokens)

    @property
    def position(self) -> int:
        """How many tokens sequence 0 holds."""
        return int(c.library().ob_session_position(self._handle))

    def position_of(self, sequence: int) -> int:
        """How many tokens a sequence holds."""
        return int(c.library().ob_sequence_position(self._handle, self._known(sequence)))

    @property
    def max_positions(self) -> int:
        """How many each sequence can hold."""
        return int(c.library().ob_session_max_positions(self._handle))

    def forward(self, ids: Sequence[int] | NDArray[Any], logits: str = "last") -> NDArray[np.float32]:
        """Append tokens. ``logits`` "last" gives [V], "all" [n, V], "none" an empty array.

        When the tokens do not all fit or one is not in the vocabulary, EngineError says so and nothing has changed.
        """
        tokens = token_array(ids)
        vocab = self._model.description.vocab_size
        self._check_room(0, tokens.size)
        self._check_vocabulary(tokens)
        if logits not in ("last", "all", "none"):
            raise EngineError(f'logits must be "last", "all" or "none", got {logits!r}')
        rows = tokens.size if logits == "all" else 1 if logits == "last" else 0
        out_NV = np.empty((rows, vocab), np.float32)
        for start in range(0, tokens.size, _PREFILL_STEP):
            part = tokens[start : start + _PREFILL_STEP]
            is_last = start + part.size == tokens.size
            if logits == "all":
                self._forward(part, c.LOGITS_ALL, out_NV[start:])
            elif logits == "last" and is_last:
                self._forward(part, c.LOGITS_LAST, out_NV)
            else:
                self._forward(part, c.LOGITS_NONE, out_NV)
        return out_NV[0] if logits == "last" else out_NV

    def _check_room(self, sequence: int, count: int) -> None:
        held = self.position_of(sequence)
        if count > self.max_positions - held:
            raise EngineError(
                f"the context is full: {count} tokens more do not fit after {held} of {self.max_positions}; start a"
                " new session or a longer one"
            )

    def _check_vocabulary(self, tokens: NDArray[np.uint32]) -> None:
        vocab = self._model.description.vocab_size
        if int(tokens.max()) >= vocab:
            raise EngineError(f"token {int(tokens.max())} is outside the vocabulary of {vocab}")

    def _forward(self, tokens: NDArray[np.uint32], which: int, out: NDArray[np.float32]) -> None:
        error = c.Error()
        status = c.library().ob_forward(
            self._handle,
            tokens.ctypes.data,
            tokens.size,
            which,
            out.ctypes.data if which else None,
            ctypes.byref(error),
        )
        c.check(status, error)
        self.tokens.extend(tokens.tolist())

    def prefill(self, ids: Sequence[int] | NDArray[Any]) -> NDArray[np.float32]:
        """Append tokens; logits [V] after the last."""
        return self.forward(ids, "last")

    def decode(self, token: int) -> NDArray[np.float32]:
        """Append one token; logits [V] after it."""
        return self.forward([token], "last")

    def forward_batch(
        self, tokens: Sequence[int] | NDArray[Any], sequences: Sequence[int], wants: Sequence[bool] | None = None
    ) -> NDArray[np.float32]:
        """Append tokens[i] to sequence sequences[i]; logits [number of true ``wants``, V] in that order, None: all.

        Tokens of several sequences share the reading of the weights, and each gets the bits it gets alone. When one
        does not fit or is not in the vocabulary, EngineError says so and nothing has changed.
        """
        array = token_array(tokens)
        wanted = np.ones(array.size, bool) if wants is None else np.asarray(wants, bool)
        if len(sequences) != array.size or wanted.size != array.size:
            raise EngineError(f"{array.size} tokens, {len(sequences)} sequences and {wanted.size} wants: give as many")
        order, counts = np.unique([self._known(sequence) for sequence in sequences], return_counts=True)
        for sequence, count in zip(order.tolist(), counts.tolist(), strict=True):
            self._check_room(sequence, count)
        self._check_vocabulary(array)
        items_N3 = np.ascontiguousarray(np.stack([array, np.asarray(sequences, np.uint32), wanted], 1), np.uint32)
        out_NV = np.empty((int(wanted.sum()), self._model.description.vocab_size), np.float32)
        begin = 0
        for start in range(0, array.size, _PREFILL_STEP):
            part = items_N3[start : start + _PREFILL_STEP]
            self._forward_items(part, out_NV[begin:])
            begin += int(part[:, 2].sum())
        return out_NV

    def _forward_items(self, items_N3: NDArray[np.uint32], out: NDArray[np.float32]) -> None:
        error = c.Error()
        status = c.library().ob_forward_batch(
            self._handle, items_N3.ctypes.data, len(items_N3), out.ctypes.data, ctypes.byref(error)
        )
        c.check(status, error)
        for token, sequence, _ in items_N3.tolist():
            self._tokens[sequence].append(token)

    def continue_with(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Make sequence 0 hold exactly ``ids``, keeping what it shares with them from the start; logits [V].

        After a shift, what has seen the dropped tokens is kept only when ``ids`` go on from all that is held.
        """
        wanted = token_array(ids).tolist()
        shared = 0
        limit = min(len(self.tokens), len(wanted) - 1)  # at least one token must run to give logits
        while shared < limit and self.tokens[shared] == wanted[shared]:
            shared += 1
        if shared < len(self.tokens):
            shared = min(shared, self._intact[0])
        self.truncate(shared)
        return self.prefill(wanted[shared:])

    def truncate(self, position: int) -> None:
        """Forget the tokens from ``position`` on."""
        self.truncate_sequence(0, position)

    def truncate_sequence(self, sequence: int, position: int) -> None:
        """Forget a sequence's tokens from ``position`` on."""
        held = self.position_of(sequence)
        if not 0 <= position <= held:
            raise EngineError(f"cannot truncate to {position}: the sequence holds {held} tokens")
        error = c.Error()
        c.check(c.library().ob_sequence_truncate(self._handle, sequence, position, ctypes.byref(error)), error)
        del self._tokens[sequence][position:]
        if position <= self._intact[sequence]:
            self._intact[sequence] = self.max_positions

    def copy_sequence(self, source: int, target: int, num_positions: int | None = None) -> None:
        """Make ``target`` the first tokens of ``source`` (None: all): a shared beginning is computed once."""
        held = self.position_of(source)
        count = held if num_positions is None else num_positions
        if not 0 <= count <= held:
            raise EngineError(f"cannot copy {count} tokens: sequence {source} holds {held}")
        error = c.Error()
        status = c.library().ob_sequence_copy(self._handle, source, self._known(target), count, ctypes.byref(error))
        c.check(status, error)
        self._tokens[target] = self._tokens[source][:count]
        self._intact[target] = self._intact[source] if count > self._intact[source] else self.max_positions

    def shift(self, keep: int, discard: int) -> None:
        """Make room in sequence 0: drop ``discard`` tokens after the first ``keep``. See ``shift_sequence``."""
        self.shift_sequence(0, keep, discard)

    def shift_sequence(self, sequence: int, keep: int, discard: int) -> None:
        """Drop ``discard`` tokens after the first ``keep`` and move the rest up, so that a full context can go on.

        Nothing is computed again: what is held has seen the dropped tokens, what follows sees the rest at the distances
        they now have. EngineError for models with learned positions, which must run the text again.
        """
        held = self.position_of(sequence)
        if not (keep >= 0 and discard >= 0 and keep + discard <= held):
            raise EngineError(f"cannot drop {discard} tokens after {keep}: the sequence holds {held}")
        error = c.Error()
        c.check(c.library().ob_sequence_shift(self._handle, sequence, keep, discard, ctypes.byref(error)), error)
        del self._tokens[sequence][keep : keep + discard]
        if discard and held > keep + discard:
            self._intact[sequence] = min(self._intact[sequence], keep)

    def _known(self, sequence: int) -> int:
        if not 0 <= sequence < len(self._tokens):
            raise EngineError(f"sequence must be 0 to {len(self._tokens) - 1}, got {sequence}")
        return sequence

    def reset(self) -> None:
        """Forget everything that sequence 0 holds."""
        self.truncate(0)

    def trace(self, callback: Any) -> None:
        """Call a ``_library.TRACE`` function with the residual stream after the embedding and each layer."""
        self._trace = callback  # ctypes does not keep it alive
        c.library().ob_session_set_trace(self._handle, callback, None)
