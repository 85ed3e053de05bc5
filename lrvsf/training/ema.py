"""The exponential moving average of the weights, which is evaluated and kept in place of the last ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

FILE = "ema.safetensors"


class WeightAverage:
    """Averages a model's parameters over steps t: decay is min(`decay`, (1 + t) / (10 + t)), so that it starts soon."""

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = model, decay
        self.mean = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        parameters = dict(self.model.named_parameters())
        torch._foreach_lerp_(list(self.mean.values()), [parameters[name] for name in self.mean], weight)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the model's weights and the average."""
        for name, parameter in self.model.named_parameters():
            held = parameter.clone()
            parameter.copy_(self.mean[name])
            self.mean[name].copy_(held)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model with averaged weights."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def save(self, folder: Path) -> None:
        save_file({name: value.contiguous() for name, value in self.mean.items()}, folder / FILE)

    def load(self, folder: Path) -> None:
        for name, value in load_file(folder / FILE).items():
            self.mean[name].copy_(value)
