"""A CondViT as two ONNX graphs: `query` reads pixels and a condition, `gallery` pixels alone.

Pixels enter as bytes and are normalised within the graph: a browser or a Java service that normalised in another way
would lose accuracy in silence.

They are traced by torch.export, with eager attention. On Mini that gives 143 nodes, of which one asks for a shape at
run time; with sdpa there are 183, whose further ones find shapes at run time; torch's older exporter gives 406, is
deprecated, and takes what Python checks on the way for constants.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from lrvsf.embedding.fingerprint import weights_digest
from lrvsf.embedding.rollout import eager_attention
from modeling_condvit import CondViTModel
from processing_condvit import IMAGE_MEAN, IMAGE_STD

QUERY, GALLERY = "query", "gallery"
INPUTS = {"category": "category_indices", "text": "text_embeds"}  # a query's condition, by the model's own names
OUTPUT = "image_embeds"
OPSET = 20  # the first with Gelu as one node: ONNX Runtime runs it since 1.17, of January 2024
PROTOBUF_LIMIT = 2 * 10**9  # bytes in one file; it breaks at 2^31
AT_ONCE = 8  # pictures in a batch where rows are compared


class _Graph(nn.Module):
    """Pixels (B, 3, S, S) and perhaps a condition -> unit rows (B, P).

    Args:
        float_pixels: pixels are the processor's `pixel_values`, float32 and normalised; otherwise they are bytes.
    """

    def __init__(self, model: CondViTModel, float_pixels: bool) -> None:
        super().__init__()
        self.model, self.float_pixels = model, float_pixels
        self.register_buffer("mean", 255 * torch.tensor(IMAGE_MEAN).view(3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(IMAGE_STD).view(3, 1, 1))

    def forward(self, pixels: Tensor, condition: Tensor | None = None) -> Tensor:
        values = pixels if self.float_pixels else (pixels.float() - self.mean) / self.std
        if condition is None:
            return self.model(pixel_values=values).image_embeds
        config = self.model.config
        if config.condition == "category":
            # ONNX counts negative numbers from the end: -1 would be the last category, in silence.
            condition = torch.where(condition < 0, len(config.categories), condition)
        return self.model(pixel_values=values, **{INPUTS[config.condition]: condition}).image_embeds


def pixels_name(float_pixels: bool) -> str:
    """What a graph's pixels are called. Bytes have another name than floats, so that nobody feeds one for the other."""
    return "pixel_values" if float_pixels else "pixels"


def facts_of(model: CondViTModel, name: str) -> dict[str, str]:
    """What each graph says of itself, in its metadata: text by name, lists in JSON."""
    config = model.config
    facts = {
        "model": name,
        "weights": weights_digest(model),
        "condition": config.condition,
        "image_size": str(config.image_size),
        "image_mean": json.dumps(IMAGE_MEAN),
        "image_std": json.dumps(IMAGE_STD),
        "preprocessing": "RGB, centred on a white square, resized bilinearly as by Pillow",
        "projection_dim": str(config.projection_dim),
        "opset": str(OPSET),
        "precision": "float32",
    }
    if config.condition != "none":
        facts["categories"] = json.dumps(config.categories)
    return facts | ({"text_dim": str(config.text_dim)} if config.condition == "text" else {})


def write_graphs(model: CondViTModel, folder: Path, facts: dict[str, str], float_pixels: bool = False) -> list[str]:
    """Writes gallery.onnx and, for a model with conditions, query.onnx; gives their names.

    Weights of more than PROTOBUF_LIMIT go into a file beside, NAME.onnx.data.
    """
    names = [QUERY, GALLERY] if model.config.condition != "none" else [GALLERY]
    with eager_attention(model):
        for name in names:
            program = _trace(model, name == QUERY, float_pixels)
            for node in program.model.graph:  # each has a stack trace with the folders of this machine
                node.metadata_props.clear()
            program.model.metadata_props.update(facts)
            weights = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
            program.save(folder / f"{name}.onnx", external_data=weights > PROTOBUF_LIMIT)
    return names


def graph_bytes(path: Path) -> int:
    """The size of a graph's file, and of weights that lie beside it."""
    return sum(file.stat().st_size for file in (path, path.with_name(f"{path.name}.data")) if file.exists())


def feeds_of(model: CondViTModel, name: str, pixels: np.ndarray, float_pixels: bool) -> dict[str, np.ndarray]:
    """A graph's inputs by name, of uint8 pixels (N, 3, S, S); queries are asked by each condition in turn."""
    values = (pixels - 255 * np.float32(IMAGE_MEAN).reshape(3, 1, 1)) / (255 * np.float32(IMAGE_STD).reshape(3, 1, 1))
    feeds = {pixels_name(float_pixels): values if float_pixels else pixels}
    if name == QUERY:
        feeds[INPUTS[model.config.condition]] = _conditions(model, len(pixels)).numpy()
    return feeds


def rows_of(session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """(N, P) from a graph's inputs, some at a time."""
    starts = range(0, len(next(iter(feeds.values()))), AT_ONCE)
    batches = ({name: rows[start : start + AT_ONCE] for name, rows in feeds.items()} for start in starts)
    return np.concatenate([session.run([OUTPUT], batch)[0] for batch in batches])


@torch.inference_mode()
def torch_rows(model: CondViTModel, name: str, pixels: np.ndarray) -> np.ndarray:
    """(N, P), what the model itself makes of `feeds_of` the same."""
    feeds = {key: torch.from_numpy(rows) for key, rows in feeds_of(model, name, pixels, float_pixels=True).items()}
    starts = range(0, len(pixels), AT_ONCE)
    batches = ({key: rows[start : start + AT_ONCE] for key, rows in feeds.items()} for start in starts)
    return np.concatenate([model(**batch).image_embeds.numpy() for batch in batches])


def open_graph(path: Path) -> onnxruntime.InferenceSession:
    """A graph to run on the CPU, by as many threads as torch has here."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _trace(model: CondViTModel, asked: bool, float_pixels: bool) -> torch.onnx.ONNXProgram:
    size, batch = model.config.image_size, torch.export.Dim("batch")
    pixels = torch.zeros(2, 3, size, size, dtype=torch.float32 if float_pixels else torch.uint8)
    given = (pixels, _conditions(model, 2)) if asked else (pixels,)
    names = [pixels_name(float_pixels), *([INPUTS[model.config.condition]] if asked else [])]
    shapes = {argument: {0: batch} for argument in ("pixels", "condition")[: len(given)]}
    settings = {"input_names": names, "output_names": [OUTPUT], "dynamic_shapes": shapes, "opset_version": OPSET}
    with _quiet_exporter():
        return torch.onnx.export(_Graph(model, float_pixels).eval(), given, dynamo=True, verbose=False, **settings)


def _conditions(model: CondViTModel, count: int) -> Tensor:
    """Conditions of `count` queries, the categories in turn or random texts."""
    if model.config.condition == "category":
        return torch.arange(count) % len(model.config.categories)
    return torch.randn(count, model.config.text_dim, generator=torch.Generator().manual_seed(0))


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the warnings of its parts about each other, and of packages that are no matter here."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
