"""An Encoder whose rows ONNX Runtime computes, so that benchmarks and evaluation ask both in the same way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from lrvsf.embedding.encoder import Encoder
from lrvsf.hub.graphs.condvit_onnx import CondViTOnnx
from modeling_condvit import CondViTModel


class GraphEncoder(Encoder):
    """
    Args:
        folder: of the model's graphs, which take bytes.
        int8: whether those with int8 weights run.
    """

    def __init__(self, model: CondViTModel, conditioning: str, folder: Path, int8: bool = False) -> None:
        super().__init__(model, conditioning)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting would count as work
        self.graphs = CondViTOnnx(folder, int8, sess_options=options)

    def embed(self, pixels: list[np.ndarray], asked: list[str] | None = None) -> Tensor:
        return torch.from_numpy(self.graphs(pixels=np.stack(pixels), **self.condition(asked)).image_embeds)
