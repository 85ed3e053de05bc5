"""All that the folder of a model's ONNX graphs holds, compared with torch before anybody sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lrvsf.hub.graphs.int8_graphs import write_int8
from lrvsf.hub.graphs.onnx_graphs import (
    OPSET,
    PROTOBUF_LIMIT,
    facts_of,
    feeds_of,
    graph_bytes,
    open_graph,
    rows_of,
    torch_rows,
    write_graphs,
)
from modeling_condvit import CondViTModel

RUNNER = Path(__file__).with_name("condvit_onnx.py")
TEXTS = "category_text_embeds.npy"  # a text model's categories, which CondViTOnnx asks by number
TOLERANCE = 1e-4  # of a unit row's coordinates
LEAST_COSINE = 0.99  # of int8 with float32, on average over the pictures; not tuned: Mini's is 0.9999


def write_checked(
    model: CondViTModel, folder: Path, name: str, pictures: np.ndarray | None = None, float_pixels: bool = False
) -> dict[str, Any]:
    """Writes graphs, with int8 where there are pictures (N, 3, S, S) uint8, and what runs them; gives a report.

    Raises ValueError: ONNX Runtime's rows are not torch's, or those of int8 not near enough.
    """
    names = write_graphs(model, folder, facts_of(model, name), float_pixels)
    (folder / RUNNER.name).write_bytes(RUNNER.read_bytes())
    if model.config.condition == "text":
        np.save(folder / TEXTS, model.category_text_embeds.float().numpy())
    shown = drawn_pictures(model.config.image_size)
    if pictures is not None:
        shown = np.concatenate([shown, pictures])
    off = max(_difference(model, folder, one, shown, float_pixels) for one in names)
    size = model.config.image_size
    report: dict[str, Any] = {
        "pixels": f"{'float32 pixel_values' if float_pixels else 'uint8'} (B, 3, {size}, {size})",
        "opset": OPSET,
        "differ from torch's by at most": f"{off:.0e}",
    }
    for one in names if pictures is not None else []:
        report |= _write_int8(model, folder, one, pictures, float_pixels)
    return {"MB": _megabytes(folder), **report}


def drawn_pictures(size: int) -> np.ndarray:
    """(16, 3, size, size) uint8: noise, and noise as smooth as photographs are."""
    random = np.random.default_rng(0)
    rough = random.integers(0, 256, (8, 3, size, size), np.uint8)
    coarse = random.integers(0, 256, (8, 3, 4, 4)).astype(np.float32)
    places = np.linspace(0, 3, size)
    weights = np.maximum(1 - np.abs(places[:, None] - np.arange(4)), 0)  # (size, 4), bilinear
    smooth = np.einsum("yi,nkij,xj->nkyx", weights, coarse, weights)
    return np.concatenate([rough, smooth.astype(np.uint8)])


def _difference(model: CondViTModel, folder: Path, name: str, pixels: np.ndarray, float_pixels: bool) -> float:
    """The largest between ONNX Runtime's rows and torch's. Raises ValueError: it is above TOLERANCE, or no number."""
    found = rows_of(open_graph(folder / f"{name}.onnx"), feeds_of(model, name, pixels, float_pixels))
    off = float(np.abs(found - torch_rows(model, name, pixels)).max())
    if not off <= TOLERANCE:
        raise ValueError(
            f"{name}.onnx gives rows that differ from torch's by {off:.1e}, more than {TOLERANCE:.0e}. Nothing was "
            "written. See whether the weights are finite, or take other versions of torch, onnxscript or onnxruntime."
        )
    return off


def _write_int8(
    model: CondViTModel, folder: Path, name: str, pictures: np.ndarray, float_pixels: bool
) -> dict[str, Any]:
    """A part of the report. Raises ValueError: the rows' cosine with the exact ones is below LEAST_COSINE."""
    exact, rounded = folder / f"{name}.onnx", folder / f"{name}_int8.onnx"
    feeds = feeds_of(model, name, pictures, float_pixels)
    kept, products = write_int8(exact, rounded, feeds, large=graph_bytes(exact) > PROTOBUF_LIMIT)
    cosines = (rows_of(open_graph(exact), feeds) * rows_of(open_graph(rounded), feeds)).sum(axis=1)
    if not cosines.mean() >= LEAST_COSINE:
        raise ValueError(
            f"With int8 weights the rows of {name}.onnx have a cosine of {cosines.mean():.3f} with the exact ones, on "
            f"average over {len(pictures)} pictures; below {LEAST_COSINE} nothing is written. Leave --int8 out."
        )
    told = {
        "cosine with float32": f"{cosines.mean():.4f}, at least {cosines.min():.4f}",
        "pictures": len(pictures),
        "products in float32": f"{kept} of {products}",
    }
    return {rounded.name: told}


def _megabytes(folder: Path) -> dict[str, float]:
    """The size of each graph, weights beside it included."""
    return {path.name: graph_bytes(path) / 1e6 for path in sorted(folder.glob("*.onnx"))}
