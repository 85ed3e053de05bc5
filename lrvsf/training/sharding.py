"""Weights, gradients and optimizer state split over the processes (FSDP2), for towers that one device cannot train.

What is saved does not show it. Checkpoints hold whole tensors in the files of any other run, so that one may be resumed
sharded or not, on any number of processes.

The temperature cannot be split, and only the loss reads it: it stays whole on every process, as a replicated DTensor,
so that the optimizer and the clipping meet one kind of tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from lrvsf.processes import rank, sum_over, world_size
from lrvsf.training.patches import use_patch_product
from modeling_condvit import CondViTModel


def shard(model: CondViTModel, accelerator: Accelerator) -> None:
    """Splits the model over all processes, in place; each holds its share of every weight.

    It then computes on any process only when it does on all, and loads whole weights.
    """
    mesh = init_device_mesh(accelerator.device.type, (world_size(),))
    model.logit_scale = nn.Parameter(distribute_tensor(model.logit_scale.data, mesh, [Replicate()]))
    for layer in model.vision_model.encoder.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params={model.logit_scale})
    model.register_load_state_dict_pre_hook(_split_weights)
    # Gives it autocast and marks it as prepared, so that it is not wrapped in DistributedDataParallel, too.
    accelerator.prepare_model(model, evaluation_mode=True)


def shard_state(optimizer: torch.optim.Optimizer) -> None:
    """Lets a sharded model's optimizer save whole tensors and load them.

    All processes must ask for its state together; the first one gets it.
    """
    optimizer.register_state_dict_post_hook(_whole_state)
    optimizer.register_load_state_dict_pre_hook(_split_state)


def whole_model(model: CondViTModel, everywhere: bool) -> CondViTModel | None:
    """A plain copy of a sharded model, which all processes must ask for together.

    It is for reading: it shares the configuration, and may share `logit_scale`, with the model that trains.

    Args:
        everywhere: a copy on every process, on its device; else one on the first process's CPU, None on the others.
    """
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=not everywhere))
    if not weights:
        return None
    with torch.device("meta"):
        plain = CondViTModel(model.config)
    plain.load_state_dict(weights, assign=True)
    for name, buffer in model.named_buffers():  # those that are not saved
        owner, _, leaf = name.rpartition(".")
        setattr(plain.get_submodule(owner), leaf, buffer.to(plain.device))
    return use_patch_product(plain)


def whole_parameter(parameter: Tensor) -> Tensor:
    """A parameter as the loss wants it: plain, and differentiable."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def average_gradient(parameter: nn.Parameter) -> None:
    """The mean over processes of the gradient of a parameter that is whole on each, as FSDP gives it for the others."""
    if isinstance(parameter, DTensor):
        gradient = parameter.grad.to_local()
        sum_over(gradient)
        gradient.div_(world_size())


def _split(whole: Tensor, like: DTensor) -> DTensor:
    """This process's share of a tensor that every process has, without a word between them."""
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _split_weights(model: nn.Module, weights: dict[str, Any], *_: Any) -> None:
    for name, parameter in model.named_parameters():
        if name in weights:
            weights[name] = _split(weights[name], parameter)


def _split_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    like = dict(zip(numbers, parameters, strict=True))
    state = {
        number: {name: value if name == "step" else _split(value, like[number]) for name, value in entry.items()}
        for number, entry in saved["state"].items()
    }
    return {**saved, "state": state}


def _whole_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    def whole(value: Any) -> Any:
        value = value.full_tensor() if isinstance(value, DTensor) else value
        return value.cpu() if rank() == 0 else None

    state["state"] = {
        number: {name: whole(value) for name, value in entry.items()} for number, entry in state["state"].items()
    }
    return state
