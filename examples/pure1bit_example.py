"""The smallest loop of pure 1-bit training: a small network learns to continue this very text, byte by byte.

    python examples/pure1bit_example.py          # seconds on a CPU

Four calls make it pure: replace the linear layers, create the optimizer, train by steps, clean up. Any PyTorch module
will do; what stays float (here the embedding, the norm and the head) is trained by AdamW inside the same optimizer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from onebit import create_pure1bit_optimizer, pure1bit_training_step, replace_linear_with_pure1bit_linear

CONTEXT = 16  # bytes that the next one is predicted from


class NextByte(nn.Module):
    """bytes [B, CONTEXT] -> logits of the next byte [B, 256]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, 16)
        self.mix = nn.Linear(CONTEXT * 16, 256)
        self.think = nn.Linear(256, 256)
        self.norm = nn.LayerNorm(256)
        self.lm_head = nn.Linear(256, 256)  # a layer of this name stays float

    def forward(self, bytes_BC: Tensor) -> Tensor:
        x = torch.relu(self.mix(self.embed(bytes_BC).flatten(1)))
        logits: Tensor = self.lm_head(self.norm(x + torch.relu(self.think(x))))
        return logits


def main(steps: int = 150) -> list[float]:
    """Train, print what happens, and return the losses."""
    torch.manual_seed(0)
    windows = torch.tensor(list((__doc__ or "").encode())).unfold(0, CONTEXT + 1, 1)
    model = replace_linear_with_pure1bit_linear(NextByte())
    optimizer, helper = create_pure1bit_optimizer(model, lr=1e-3)
    losses = []
    for step in range(steps):
        batch = windows[torch.randint(len(windows), (64,))]
        loss = pure1bit_training_step(
            model, optimizer, helper, nn.functional.cross_entropy, batch[:, :-1], batch[:, -1]
        )
        losses.append(float(loss))
        if step % 30 == 0 or step == steps - 1:
            codes = helper.telemetry()
            print(f"step {step}: loss {loss:.3f}, codes moved {codes['flips']:.2%}, zeros {codes['zeros']:.0%}")
    helper.cleanup()
    print("codes of the first row:", model.think.quantized().codes_OI[0, :16].tolist())
    return losses


if __name__ == "__main__":
    main()
