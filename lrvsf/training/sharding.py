"""Where the weights are: whole on every process, or split over them (FSDP2), for towers that one device cannot train.

What is saved does not show it. Checkpoints hold whole tensors in the files of any other run, so that one may be resumed
sharded or not, on any number of processes. `WholeWeights` and `SplitWeights` answer the trainer's questions alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from lrvsf.processes import rank, sum_over, world_size
from lrvsf.training.fast_tower import use_patch_product
from modeling_condvit import CondViTModel


class WholeWeights:
    """A model that every process has whole: one process alone, or several under DistributedDataParallel.

    Nothing is left to do for it; `SplitWeights` says what each method is for.
    """

    def __init__(self, model: CondViTModel) -> None:
        self.model = model

    def logit_scale(self) -> Tensor:
        return self.model.logit_scale

    def average_scale_gradient(self) -> None:
        pass

    def gathered(self, everywhere: bool) -> CondViTModel | None:
        return self.model

    def adopt(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        return optimizer

    def join_save(self, optimizer: torch.optim.Optimizer) -> None:
        pass

    def load_optimizer(self, optimizer: torch.optim.Optimizer, path: Path) -> bool:
        return False


class SplitWeights(WholeWeights):
    """A model that is split over all processes, in place; each holds its share of every weight.

    Afterwards every forward pass is collective, and `load_state_dict` takes unsharded weights.
    """

    def __init__(self, model: CondViTModel, accelerator: Accelerator) -> None:
        super().__init__(model)
        mesh = init_device_mesh(accelerator.device.type, (world_size(),))
        # FSDP splits along the first dimension, and the temperature has none. It stays whole on every process, but as a
        # DTensor like the others: fused AdamW and the clipping take tensors of one kind only.
        model.logit_scale = nn.Parameter(distribute_tensor(model.logit_scale.data, mesh, [Replicate()]))
        for layer in model.vision_model.encoder.layers:  # before the model, which takes what no layer has
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh, ignored_params={model.logit_scale})
        model.register_load_state_dict_pre_hook(_split_weights)
        # Gives it autocast and marks it as prepared, so that it is not wrapped in DistributedDataParallel, too.
        accelerator.prepare_model(model, evaluation_mode=True)

    def logit_scale(self) -> Tensor:
        """The temperature's parameter as the loss wants it: plain, and differentiable."""
        return self.model.logit_scale.to_local()

    def average_scale_gradient(self) -> None:
        """Averages the temperature's gradient over the processes, as FSDP does all others."""
        gradient = self.model.logit_scale.grad.to_local()
        sum_over(gradient)
        gradient.div_(world_size())

    def gathered(self, everywhere: bool) -> CondViTModel | None:
        """A plain copy for reading, on every process or on the first one's CPU alone; all must ask for it together.

        It shares the configuration, and may share `logit_scale`, with the model that trains.
        """
        options = StateDictOptions(full_state_dict=True, cpu_offload=not everywhere)
        weights = get_model_state_dict(self.model, options=options)
        if not weights:
            return None
        with torch.device("meta"):  # no memory for weights that are about to be replaced
            plain = CondViTModel(self.model.config)
        plain.load_state_dict(weights, assign=True)
        for name, buffer in self.model.named_buffers():  # those that are not saved, which are still on "meta"
            owner, _, leaf = name.rpartition(".")
            setattr(plain.get_submodule(owner), leaf, buffer.to(plain.device))
        return use_patch_product(plain)

    def adopt(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Lets a new optimizer save whole tensors and load them; the same optimizer, for chaining."""
        optimizer.register_state_dict_post_hook(_whole_state)
        optimizer.register_load_state_dict_pre_hook(_split_state)
        return optimizer

    def join_save(self, optimizer: torch.optim.Optimizer) -> None:
        """Gives the first process, which alone saves, the other ones' shares of the optimizer's state."""
        if rank() > 0:  # the first one asks by itself; alone it would wait for ever
            optimizer.state_dict()

    def load_optimizer(self, optimizer: torch.optim.Optimizer, path: Path) -> bool:
        """Loads the optimizer's state from a file; False where Trainer may do so."""
        # Trainer would put the whole state onto every device before it is split. Mapped, it stays in the file.
        optimizer.load_state_dict(torch.load(path, map_location="cpu", mmap=True, weights_only=True))
        return True


def _split(whole: Tensor, like: DTensor) -> DTensor:
    """This process's shard of a tensor that all processes hold; no communication."""
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _split_weights(model: nn.Module, weights: dict[str, Any], *_: Any) -> None:
    # Run before `load_state_dict`, whose file holds whole tensors: their shapes would not fit.
    for name, parameter in model.named_parameters():
        if name in weights:
            weights[name] = _split(weights[name], parameter)


def _split_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    # A state names parameters by their numbers, in the order of the groups.
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    like = dict(zip(numbers, parameters, strict=True))
    state = {
        # AdamW's step is a number; its moments have the shape of their parameter.
        number: {name: value if name == "step" else _split(value, like[number]) for name, value in entry.items()}
        for number, entry in saved["state"].items()
    }
    return {**saved, "state": state}


def _whole_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    def whole(value: Any) -> Any:
        value = value.full_tensor() if isinstance(value, DTensor) else value
        return value.cpu() if rank() == 0 else None  # tensor by tensor: no device ever holds all of the moments

    state["state"] = {
        number: {name: whole(value) for name, value in entry.items()} for number, entry in state["state"].items()
    }
    return state
