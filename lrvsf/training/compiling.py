"""The transformer's layers, compiled: one is, in seconds, and serves for all of the same shape.

torch.compile fuses casts, norms and activations between the matrix products, half of a GPU's step. The whole tower at
once is no faster and takes minutes to compile. Names and weights stay as they are.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable

import torch

from modeling_condvit import CondViTModel


def can_compile() -> bool:
    """Whether this machine has what pays: a GPU, Triton to write its kernels and a C compiler to start them."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    return torch.cuda.is_available() and importlib.util.find_spec("triton") is not None and bool(compiler)


def compile_layers(model: CondViTModel, backend: str | Callable = "inductor") -> CondViTModel:
    """Compiles each layer in place, when it is first called; the same model, for chaining."""
    for layer in model.vision_model.encoder.layers:
        layer.compile(backend=backend)
    return model
