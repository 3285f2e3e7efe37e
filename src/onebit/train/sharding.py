"""Training in parts: FSDP2 cuts every weight over the processes, and what is written is whole again.

What shaped it: a checkpoint must go on with another number of processes, and without FSDP too, so its files are those
of one process: weights, and the optimizer's state by the order of the parameters. accelerate gives FSDP's checkpoints a
form of their own, writes pickles, and on a CPU trains with DDP without a word when FSDP is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

from onebit.errors import ConfigError

__all__ = [
    "asks_for_fsdp",
    "load_optimizer",
    "load_weights",
    "load_whole_models",
    "shard_on_cpu",
    "share_weights",
    "take_over_sharding",
    "whole",
    "whole_optimizer",
    "whole_weights",
]


def asks_for_fsdp(arguments: Any) -> bool:
    """Whether --fsdp, or accelerate's launcher, wants the model sharded."""
    return bool(arguments.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def take_over_sharding(arguments: Any) -> bool:
    """Whether sharding was asked for, which the caller does then: the Trainer is told nothing of it."""
    asked = asks_for_fsdp(arguments)
    if asked:
        arguments.fsdp = arguments.fsdp_plugin_args = None
        os.environ["ACCELERATE_USE_FSDP"] = "false"
    return asked


def load_whole_models() -> None:
    """Have every process read the whole model, which conversion needs: accelerate's launcher gives it to one alone."""
    if "FSDP_CPU_RAM_EFFICIENT_LOADING" in os.environ:
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"


def shard_on_cpu(trainer: Any) -> None:
    """Make a Trainer's accelerator shard on a CPU as it does on other devices; nothing to do on those.

    Raises:
        ConfigError: the first FSDP is asked for.
    """
    if not asks_for_fsdp(trainer.args):
        return
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    state = trainer.accelerator.state
    plugin = getattr(state, "fsdp_plugin", None) or FullyShardedDataParallelPlugin(
        **(trainer.args.fsdp_plugin_args or {})
    )
    if plugin.fsdp_version != 2:
        raise ConfigError(
            f"FSDP {plugin.fsdp_version} is not supported; give accelerate --fsdp_version 2, or --fsdp to this command"
        )
    if state.distributed_type is DistributedType.MULTI_CPU:
        if state.mixed_precision != "no":
            plugin.set_mixed_precision(state.mixed_precision)
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
        trainer.is_fsdp_enabled = True


@torch.no_grad()
def share_weights(model: nn.Module, device: torch.device) -> None:
    """Give every process the first one's parameters and buffers: sharded parts must be of one and the same model.

    device: the one that the processes talk through, whatever the model is on.
    """
    if dist.is_available() and dist.is_initialized():
        for tensor in (*model.parameters(), *model.buffers()):
            shared = tensor.detach().to(device).contiguous()
            dist.broadcast(shared, 0)
            tensor.copy_(shared)


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is cut over the processes as one; all of them have to ask for it."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state_dict of a sharded model, as one process has it, on the CPU."""
    return {name: whole(value).cpu() for name, value in model.state_dict().items()}


def whole_optimizer(optimizer: Any) -> dict[str, Any]:
    """The state_dict of a sharded optimizer, as one process has it, on the CPU."""
    told: dict[str, Any] = optimizer.state_dict()
    state = {
        number: {name: whole(value).cpu() if isinstance(value, Tensor) else value for name, value in values.items()}
        for number, values in told["state"].items()
    }
    return {**told, "state": state}


def load_weights(model: nn.Module, checkpoint: Path) -> Any:
    """Read the weights of a checkpoint into a model, sharded or not; gives what `load_state_dict` found."""
    own = model.state_dict()
    stored: dict[str, Tensor] = {}
    for file in sorted(checkpoint.glob("model*.safetensors")):
        stored.update(load_file(file))
    return model.load_state_dict(
        {name: _cut(value, own[name]) if name in own else value for name, value in stored.items()}, strict=False
    )


def load_optimizer(optimizer: Any, state: Mapping[str, Any]) -> None:
    """Take up a state_dict of one process, each tensor cut as its parameter is."""
    parameters: dict[int, Tensor] = {}
    for group, stored in zip(optimizer.param_groups, state["param_groups"], strict=True):
        parameters.update(zip(stored["params"], group["params"], strict=True))
    cut = {
        number: {
            name: _cut(value, parameters[number])
            if isinstance(value, Tensor) and value.shape == parameters[number].shape
            else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": cut})


def _cut(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor, where `like` is one that is cut."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return value
    value = value.to(like.device_mesh.device_type)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
