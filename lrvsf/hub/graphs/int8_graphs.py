"""Graphs whose products have int8 weights, by ONNX Runtime's own quantiser: a third of the bytes, and faster.

The weights of a layer's products get a scale for each column; what they are multiplied with becomes uint8 as it comes,
within the range that it has then. Patches' embedding, attention's products of queries and keys, normalisation and the
last projection stay in float32. `benchmarks/bench_onnx.py` compares this choice with others.

So does a product that uint8 would spoil on given pictures. CLIP's towers may have a few coordinates far larger than all
others, and a range that holds these leaves nothing for the rest: the whole tower in uint8 is then no CLIP any more.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import NodeProto, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

Feeds = dict[str, np.ndarray]  # a graph's inputs by name, the pictures of a batch along the first axis

# Relative error of a product from which it stays in float32. Mini's are 0.003 to 0.022. With coordinates planted in it
# that are 30 times the others, 0.03 keeps its R@1, and without a limit it loses three points (docs/serving.md).
SPOILED = 0.03
AT_ONCE = 2  # pictures whose activations, of all layers, are in memory at a time


def write_int8(path: Path, out: Path, feeds: Feeds, large: bool) -> tuple[int, int]:
    """Writes a float32 graph once more with int8 weights; gives how many products stayed in float32, and of how many.

    Args:
        feeds: inputs of some pictures, by which it is decided which products stay.
        large: whether weights go into a file beside.
    """
    errors = product_errors(path, feeds)
    kept = [name for name, error in errors.items() if not error <= SPOILED]
    facts = {prop.key: prop.value for prop in onnx.load(path, load_external_data=False).metadata_props}
    settings = {"weight_type": QuantType.QInt8, "per_channel": True, "use_external_data_format": large}
    only = {"op_types_to_quantize": ["MatMul"], "extra_options": {"MatMulConstBOnly": True}, "nodes_to_exclude": kept}
    with _silent():
        quantize_dynamic(path, out, **settings, **only)
    graph = onnx.load(out, load_external_data=False)
    onnx.helper.set_model_props(graph, {**facts, "precision": "int8", "float32_products": f"{len(kept)}/{len(errors)}"})
    onnx.save(graph, out)
    return len(kept), len(errors)


def product_errors(path: Path, feeds: Feeds) -> dict[str, float]:
    """Node -> the relative error that int8 weights and uint8 inputs make in its result, on these pictures."""
    model = onnx.load(path, load_external_data=False)  # a copy beside it, with more outputs, shares what lies there
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    products = {node.name: node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights}
    sums = {name: np.zeros(2) for name in products}
    for inputs in _inputs_of(model, path, list(products.values()), feeds):
        for name, node in products.items():
            weight = numpy_helper.to_array(weights[node.input[1]], str(path.parent))  # (in, out)
            exact = inputs[node.input[0]] @ weight
            rounded = _as_uint8(inputs[node.input[0]]) @ _as_int8(weight)
            sums[name] += np.square(rounded - exact).sum(), np.square(exact).sum()
    return {name: float(np.sqrt(error / max(size, 1e-12))) for name, (error, size) in sums.items()}


def _inputs_of(model: onnx.ModelProto, path: Path, nodes: list[NodeProto], feeds: Feeds) -> Iterator[Feeds]:
    """What enters the nodes, by name, of AT_ONCE pictures after another."""
    names = sorted({node.input[0] for node in nodes})
    shown = path.with_name(f"{path.stem}_shown.onnx")
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    onnx.save(model, shown)
    session = onnxruntime.InferenceSession(shown, providers=["CPUExecutionProvider"])
    shown.unlink()
    for start in range(0, len(next(iter(feeds.values()))), AT_ONCE):
        batch = {name: rows[start : start + AT_ONCE] for name, rows in feeds.items()}
        yield dict(zip(names, session.run(names, batch), strict=True))


def _as_uint8(values: np.ndarray) -> np.ndarray:
    """Values as they are after 256 levels between the least and the largest, of which one is 0."""
    low, high = min(values.min(), 0), max(values.max(), 0)
    step = (high - low) / 255 or 1
    zero = np.rint(-low / step)
    return ((np.clip(np.rint(values / step) + zero, 0, 255) - zero) * step).astype(np.float32)


def _as_int8(weight: np.ndarray) -> np.ndarray:
    """Weights as they are after 255 levels for each column."""
    step = np.maximum(np.abs(weight).max(axis=0), 1e-12) / 127
    return (np.rint(weight / step) * step).astype(np.float32)


@contextmanager
def _silent() -> Iterator[None]:
    """The quantiser recommends a preprocessing, through the root logger, which changes nothing in graphs of torch."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
