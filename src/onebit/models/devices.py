"""Which devices a model can run on here."""

from __future__ import annotations

import torch

from onebit.errors import ConfigError, nearest_name

__all__ = ["DEVICES", "check_device"]

DEVICES = ("cpu", "cuda", "mps")


def check_device(device: str) -> None:
    """Raise ConfigError unless this torch can compute on `device`: cpu, cuda, cuda:1, mps."""
    kind, _, index = device.partition(":")
    if kind not in DEVICES or (index and not index.isdigit()):
        raise ConfigError(
            f"--device is {device!r}; it must be one of {', '.join(DEVICES)}{nearest_name(kind, DEVICES)}"
        )
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if not counts[kind]:
        raise ConfigError(f"--device {device}: this torch ({torch.__version__}) finds none; give --device cpu")
    if int(index or 0) >= counts[kind]:
        raise ConfigError(f"--device {device}: there are {counts[kind]}, counted from 0")
