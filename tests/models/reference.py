"""The whole model written again in float64 numpy, from the formulas of the design, to compare the torch model with.

It reads the model's own quantised weights (`quantized()` is tested by itself) and a plain state dict; everything
else, from positions to the MLP kinds, is worked out here. Slow and plain on purpose: one token at a time.
"""

from __future__ import annotations

import math

import numpy as np

from onebit.models import OneBitConfig, OneBitForCausalLM
from onebit.nn import BitLinear
from onebit.quant import dequantize

Array = np.ndarray


class Reference:
    def __init__(self, model: OneBitForCausalLM) -> None:
        self.config: OneBitConfig = model.config
        self.state = {name: value.detach().double().numpy() for name, value in model.state_dict().items()}
        self.activation: dict[str, str] = {}
        for name, module in model.named_modules():
            if hasattr(module, "weight_quantizer") and module.weight_quantizer is not None:
                self.state[f"{name}.weight"] = dequantize(module.quantized()).double().numpy()
            if isinstance(module, BitLinear):
                self.activation[name] = module.activation_quantizer

    def logits(self, ids: list[int]) -> Array:
        return self.hidden(ids)[0]

    def hidden(self, ids: list[int]) -> tuple[Array, list[Array]]:
        """Logits [L, V] and the residual stream after the embedding and after each layer."""
        c = self.config
        x = self.state["model.embed_tokens.weight"][ids]
        if not c.use_rope:
            x = x + self.state["model.embed_positions.weight"][: len(ids)]
        scale = 1 / math.sqrt(2) if c.use_residual_scaling else 1.0
        states = [x]
        for i in range(c.num_layers):
            name = f"model.layers.{i}"
            x = x + scale * self.attention(f"{name}.attention", self.norm(f"{name}.input_norm", x))
            x = x + scale * self.mlp(f"{name}.mlp", self.norm(f"{name}.mlp_norm", x))
            states.append(x)
        x = self.norm("model.norm", x)
        return self.linear("lm_head", x), states

    def norm(self, name: str, x: Array) -> Array:
        if self.config.use_subln:
            return self.rms(name, x)
        centred = x - x.mean(-1, keepdims=True)
        normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + self.config.norm_eps)
        return normal * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def rms(self, name: str, x: Array) -> Array:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.config.norm_eps) * self.state[f"{name}.weight"]

    def linear(self, name: str, x: Array) -> Array:
        kind, scale = self.activation[name], 1.0
        if kind == "int8":
            peak = np.maximum(np.abs(x).max(-1, keepdims=True), 1e-5)
            x, scale = np.rint(x * (127 / peak)), peak / 127
        elif kind == "sign":
            x, scale = np.where(x >= 0, 1.0, -1.0), np.maximum(np.abs(x).mean(-1, keepdims=True), 1e-5)
        bias = self.state.get(f"{name}.bias")
        # Codes times float32 weights are exact in float64: sums that cancel are 0, and the next sign is +1.
        y = (x @ self.state[f"{name}.weight"].T) * scale
        return y if bias is None else y + bias

    def attention(self, name: str, x: Array) -> Array:
        c = self.config
        length, d = len(x), c.head_dim
        q = self.linear(f"{name}.q_proj", x).reshape(length, c.num_heads, d)
        k = self.linear(f"{name}.k_proj", x).reshape(length, c.num_key_value_heads, d)
        v = self.linear(f"{name}.v_proj", x).reshape(length, c.num_key_value_heads, d)
        if c.use_qk_norm:
            q, k = self.rms(f"{name}.q_norm", q), self.rms(f"{name}.k_norm", k)
        if c.use_rope:
            q, k = self.rotate(q), self.rotate(k)
        out = np.zeros((length, c.num_heads, d))
        for head in range(c.num_heads):
            source = head * c.num_key_value_heads // c.num_heads
            for t in range(length):
                scores = k[: t + 1, source] @ q[t, head] / math.sqrt(d)
                weights = np.exp(scores - scores.max())
                out[t, head] = weights / weights.sum() @ v[: t + 1, source]
        y = out.reshape(length, -1)
        if c.use_sub_norm:
            y = self.rms(f"{name}.sub_norm", y)
        return self.linear(f"{name}.o_proj", y)

    def rotate(self, x: Array) -> Array:
        half = x.shape[-1] // 2
        result = np.empty_like(x)
        for position in range(len(x)):
            for i in range(half):
                angle = position * self.config.rope_theta ** (-2 * i / x.shape[-1])
                a, b = x[position, :, i], x[position, :, i + half]
                result[position, :, i] = a * math.cos(angle) - b * math.sin(angle)
                result[position, :, i + half] = a * math.sin(angle) + b * math.cos(angle)
        return result

    def mlp(self, name: str, x: Array) -> Array:
        c = self.config
        up = self.linear(f"{name}.up_proj", x)
        if c.use_swiglu:
            gate = self.linear(f"{name}.gate_proj", x)
            inner = (np.maximum(gate, 0) ** 2 if c.use_relu2 else gate / (1 + np.exp(-gate))) * up
        elif c.use_relu2:
            inner = np.maximum(up, 0) ** 2
        else:
            inner = 0.5 * up * (1 + np.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
        if c.use_sub_norm:
            inner = self.rms(f"{name}.sub_norm", inner)
        return self.linear(f"{name}.down_proj", inner)
