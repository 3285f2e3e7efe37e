"""The block of the README's section on pure training, to the letter: a test holds the two to each other.

    python examples/readme_example_pure1bit.py          # seconds on a CPU

It shows the four calls on a small Llama of random weights, and what a layer's weights then are; a real model is loaded
with AutoModelForCausalLM.from_pretrained instead.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from onebit import create_pure1bit_optimizer, pure1bit_training_step, replace_linear_with_pure1bit_linear

size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
model = LlamaForCausalLM(LlamaConfig(vocab_size=256, **size))
replace_linear_with_pure1bit_linear(model)  # codes and int8 counters in the place of float weights
optimizer, helper = create_pure1bit_optimizer(model, lr=2e-3)


def loss_fn(outputs, targets):
    return torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), targets.flatten())


text = torch.tensor(list(b"Codes move when their counters are full. " * 4))
for step in range(40):
    loss = pure1bit_training_step(model, optimizer, helper, loss_fn, text[None, :-1], text[None, 1:])
    if step % 13 == 0:
        print(f"step {step}: loss {loss:.2f}")
helper.cleanup()

weight = model.model.layers[0].mlp.up_proj.weight
print("codes:", weight.quantized().codes_OI.unique().tolist())  # [-1, 0, 1]
print("bytes a weight:", (weight.codes.nbytes + weight.counters.nbytes) / weight.shape.numel())  # 1.25
