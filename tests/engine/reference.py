"""The forward pass of a ``.1bit`` model in numpy float64, written from the format, not from the engine.

Loaded by path from the tests beside it. Legend: n tokens, H hidden, Q heads * head_dim.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onebit.formats.hadamard_section import site_of
from onebit.formats.layout import Activation, Kind
from onebit.formats.onebit_file import OneBitFile

Array = NDArray[np.float64]


def _rounded(x: Array, activation: Activation) -> Array:
    """Inputs as the layer sees them, per token."""
    if activation is Activation.INT8:
        m = np.maximum(np.abs(x).max(-1, keepdims=True), 1e-5)
        return np.round(x * (127 / m)) * (m / 127)
    if activation is Activation.SIGN:
        return np.where(x >= 0, 1.0, -1.0) * np.maximum(np.abs(x).mean(-1, keepdims=True), 1e-5)
    return x


class Reference:
    def __init__(self, file: OneBitFile) -> None:
        self.file, self.d = file, file.description
        self.held: dict[str, tuple[Array, Array]] = {}  # by layer
        self.weights = {name: tensor.values().astype(np.float64) for name, tensor in file.tensors.items()}

    def _turned(self, kind: Kind, x: Array, back: bool = False) -> Array:
        """x times its signs, then each block times the Walsh-Hadamard matrix over sqrt(block); or back."""
        rotation = self.file.rotations[str(site_of(kind))]
        entry = np.ones((1, 1))
        while len(entry) < rotation.block:
            entry = np.block([[entry, entry], [entry, -entry]])
        signs = rotation.signs(x.shape[-1]).astype(np.float64)
        blocks = (x if back else x * signs).reshape(*x.shape[:-1], -1, rotation.block)
        y = (blocks @ entry / np.sqrt(rotation.block)).reshape(x.shape)
        return y * signs if back else y

    def _linear(self, name: str, x: Array) -> Array:
        tensor = self.file.tensors[name + ".weight"]
        x = self._turned(tensor.kind, x) if tensor.turned else x
        y = _rounded(x, self.file.tensors[name + ".weight"].activation) @ self.weights[name + ".weight"].T
        return y + self.weights[name + ".bias"][0] if name + ".bias" in self.weights else y

    def _rms(self, name: str, x: Array) -> Array:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.d.norm_eps) * self.weights[name + ".weight"][0]

    def _norm(self, name: str, x: Array) -> Array:
        if self.d.norm == "rmsnorm":
            return self._rms(name, x)
        centred = x - x.mean(-1, keepdims=True)
        y = centred / np.sqrt(x.var(-1, keepdims=True) + self.d.norm_eps) * self.weights[name + ".weight"][0]
        return y + self.weights[name + ".bias"][0]

    def _rotate(self, x_nhd: Array, first: int = 0) -> Array:
        n, _, dim = x_nhd.shape
        angle = np.arange(first, first + n)[:, None] * self.d.rope_theta ** (-np.arange(0, dim, 2) / dim)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        a, b = x_nhd[..., : dim // 2], x_nhd[..., dim // 2 :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def _with_held(self, prefix: str, k_nhd: Array, v_nhd: Array) -> tuple[Array, Array]:
        """Keys (not rotated yet) and values of everything held, and these after it."""
        if prefix in self.held:
            k_nhd, v_nhd = (np.concatenate(pair) for pair in zip(self.held[prefix], (k_nhd, v_nhd), strict=True))
        self.held[prefix] = k_nhd, v_nhd
        return k_nhd, v_nhd

    def drop(self, keep: int, discard: int) -> None:
        """A context shift: the held rows [keep, keep + discard) are gone, later ones stand that much further up."""
        for prefix, pair in self.held.items():
            k_nhd, v_nhd = (np.concatenate([rows[:keep], rows[keep + discard :]]) for rows in pair)
            self.held[prefix] = k_nhd, v_nhd

    def _attention(self, prefix: str, x: Array) -> Array:
        d, n = self.d, len(x)
        q = self._linear(prefix + "q_proj", x).reshape(n, d.num_heads, d.head_dim)
        k = self._linear(prefix + "k_proj", x).reshape(n, d.num_key_value_heads, d.head_dim)
        v = self._linear(prefix + "v_proj", x).reshape(n, d.num_key_value_heads, d.head_dim)
        if d.qk_norm:
            q, k = self._rms(prefix + "q_norm", q), self._rms(prefix + "k_norm", k)
        k, v = self._with_held(prefix, k, v)
        held = len(k) - n
        if d.position == "rope":
            q, k = self._rotate(q, held), self._rotate(k)
        repeat = d.num_heads // d.num_key_value_heads
        k, v = np.repeat(k, repeat, 1), np.repeat(v, repeat, 1)
        scores = np.einsum("ihd,jhd->hij", q, k) * (d.attention_scale or d.head_dim**-0.5)
        scores = np.where(np.tril(np.ones((n, held + n), bool), held), scores, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        out = np.einsum("hij,jhd->ihd", p / p.sum(-1, keepdims=True), v).reshape(n, -1)
        if d.sub_norm:
            out = self._rms(prefix + "sub_norm", out)
        return self._linear(prefix + "o_proj", out)

    def _mlp(self, prefix: str, x: Array) -> Array:
        up = self._linear(prefix + "up_proj", x)
        gate = self._linear(prefix + "gate_proj", x) if self.d.has_gate else up
        match self.d.mlp:
            case "gelu":
                inner = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
            case "relu2":
                inner = np.maximum(up, 0) ** 2
            case "swiglu":
                inner = gate / (1 + np.exp(-gate)) * up
            case _:
                inner = np.maximum(gate, 0) ** 2 * up
        if self.d.sub_norm:
            inner = self._rms(prefix + "sub_norm", inner)
        return self._linear(prefix + "down_proj", inner)

    def run(self, ids: list[int]) -> tuple[Array, Array]:
        """Logits [n, V] and the residual stream [layers + 1, n, H] of a text."""
        self.held.clear()
        return self.go_on(ids)

    def go_on(self, ids: list[int]) -> tuple[Array, Array]:
        """The same for tokens after those that are held; not for learned positions."""
        x = self.weights["model.embed_tokens.weight"][ids]
        if self.file.tensors["model.embed_tokens.weight"].turned:
            x = self._turned(Kind.TOKEN_EMBEDDING, x, back=True)
        if self.d.position == "learned":
            x = x + self.weights["model.embed_positions.weight"][: len(ids)]
        hidden = [x]
        for i in range(self.d.num_layers):
            prefix = f"model.layers.{i}."
            x = x + self.d.residual_scale * self._attention(prefix + "attention.", self._norm(prefix + "input_norm", x))
            x = x + self.d.residual_scale * self._mlp(prefix + "mlp.", self._norm(prefix + "mlp_norm", x))
            hidden.append(x)
        head = "model.embed_tokens" if self.d.tied_head else "lm_head"
        return self._linear(head, self._norm("model.norm", x)), np.stack(hidden)
