"""Run ``.1bit`` models: the Python face of the C engine. Needs numpy and tokenizers, no torch.

model = onebit.engine.load("model.1bit")
for piece in model.generate("def fib(n):", max_new_tokens=100):
    print(piece, end="", flush=True)
"""

from __future__ import annotations

from onebit.engine._library import library_path
from onebit.engine.batch import Batch, Event, Request
from onebit.engine.description import Description, TensorInfo
from onebit.engine.generate import Generation, Stats
from onebit.engine.model import Model, Session
from onebit.engine.sampling import Sampler
from onebit.engine.speculate import Speculation

__all__ = [
    "Batch",
    "Description",
    "Event",
    "Generation",
    "Model",
    "Request",
    "Sampler",
    "Session",
    "Speculation",
    "Stats",
    "TensorInfo",
    "library_path",
    "load",
]

load = Model
