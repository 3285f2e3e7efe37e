"""Settings every test shares: one torch thread, no network, repeatable randomness."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure() -> None:
    try:
        import torch
    except ImportError:  # the core must be testable without torch
        return
    torch.set_num_threads(1)
