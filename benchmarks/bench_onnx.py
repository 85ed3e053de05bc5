"""What each export of a model costs on a test set: R@1, cosine with torch's float32 rows, bytes, images a second.

    python prepare_lrvsf.py mini data/mini
    python benchmarks/bench_onnx.py assets/mini-condvit data/mini [--markdown]

The gallery is all targets and distractors of the test set; queries and gallery are embedded by the same export.
Pictures of the validation set say which products stay float, and calibrate where it is said. Rates are of the gallery's
pictures in batches of 32, at rest, a second of processor time, so that they are of one core.

"Planted" is the model itself by other weights: two coordinates are 30 times as large where layers' products begin, as
some are in CLIP's towers, and the weights that read them are as much smaller. Its float32 rows are the same.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench_train import table
from graph_encoder import GraphEncoder

from lrvsf.command import quiet_libraries
from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding.encoder import Encoder, load_model
from lrvsf.evaluation.ranks import count_above
from lrvsf.hub.graphs import int8_graphs
from lrvsf.hub.graphs.onnx_folder import write_checked
from lrvsf.hub.graphs.onnx_graphs import GALLERY, QUERY, feeds_of
from modeling_condvit import CondViTModel

HEADER = ["export", "R@1", "cosine", "least", "MB", "images/s"]
BATCH, PICTURES, PLANTED = 32, 64, 30
PRODUCTS = {"op_types_to_quantize": ["MatMul"], "extra_options": {"MatMulConstBOnly": True}}
# Ways in which int8 was not chosen: a name, and what makes one graph of another.
DYNAMIC = {
    "int8 dynamic, one scale a tensor, every node": {"weight_type": QuantType.QUInt8},
    "int8 dynamic, one scale a tensor, products": {"weight_type": QuantType.QInt8, **PRODUCTS},
}
STATIC = {
    "int8 calibrated, a scale a column, every node": {"per_channel": True},
    "int8 calibrated, a scale a column, products": {"per_channel": True, **PRODUCTS},
}


class Pixels:
    """A test set's pictures, decoded once, and what is asked."""

    def __init__(self, root: Path, encoder: Encoder, most: int | None = None) -> None:
        test_set = ProductTestSet(root)
        products = list(test_set.products(0, most))
        self.queries = [encoder.pixels(product.query_image) for product in products]
        self.targets = [encoder.pixels(product.target_image) for product in products]
        self.asked = [product.category for product in products]
        self.distractors = [encoder.pixels(data) for _, data in (test_set.distractors() if most is None else ())]


def embedded(encoder: Encoder, pixels: list[np.ndarray], asked: list[str] | None = None) -> Tensor:
    starts = range(0, len(pixels), BATCH)
    return torch.cat([encoder.embed(pixels[s : s + BATCH], asked and asked[s : s + BATCH]) for s in starts])


def measured(encoder: Encoder, test: Pixels, exact: Tensor | None) -> tuple[list[str], Tensor]:
    """(R@1, cosine, least cosine, images a second) as they are shown, and all rows."""
    queries, targets = embedded(encoder, test.queries, test.asked), embedded(encoder, test.targets)
    start = time.process_time()
    distractors = embedded(encoder, test.distractors)
    rate = len(distractors) / (time.process_time() - start)
    above = torch.zeros(len(queries), 1)
    for items, own in ((targets, True), (distractors, False)):
        wins, ties = count_above(queries, targets, items, torch.ones(len(items), 1), own)
        above += wins + ties / 2
    rows = torch.cat([queries, targets, distractors])
    cosines = (rows * (rows if exact is None else exact)).sum(1)
    shown = [f"{100 * (above < 1).float().mean():.1f}", f"{cosines.mean():.4f}", f"{cosines.min():.4f}", f"{rate:.0f}"]
    return shown, rows


def planted(model: CondViTModel) -> CondViTModel:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for layer in other.vision_model.encoder.layers:
            attention = [getattr(layer.self_attn, f"{name}_proj").weight for name in "qkv"]
            for norm, weights in ((layer.layer_norm1, attention), (layer.layer_norm2, [layer.mlp.fc1.weight])):
                for values in (norm.weight, norm.bias):
                    values[:2] *= PLANTED
                for weight in weights:
                    weight[:, :2] /= PLANTED
    return other


class _Reader(CalibrationDataReader):
    def __init__(self, feeds: dict[str, np.ndarray]) -> None:
        rows = range(0, PICTURES, 8)
        self.batches = iter([{name: values[row : row + 8] for name, values in feeds.items()} for row in rows])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def other_graphs(folder: Path, feeds: dict[str, dict[str, np.ndarray]]) -> Iterator[tuple[str, Path]]:
    """(name, folder) of graphs that the step does not write, each made when it is asked for."""
    ways = ["float16", *DYNAMIC, *STATIC]
    for number, way in enumerate(ways):
        place = folder.with_name(f"{folder.name}-{number}")
        place.mkdir()
        for name, given in feeds.items():
            exact, made = str(folder / f"{name}.onnx"), str(place / f"{name}.onnx")
            if way in DYNAMIC:
                quantize_dynamic(exact, made, **DYNAMIC[way])
            elif way in STATIC:
                quantize_static(exact, made, _Reader(given), weight_type=QuantType.QInt8, **STATIC[way])
            else:
                onnx.save(convert_float_to_float16(onnx.load(exact), keep_io_types=True), made)
        yield way, place


@contextmanager
def no_limit() -> Iterator[None]:
    """All products get int8 weights, also those that it spoils."""
    before, int8_graphs.SPOILED = int8_graphs.SPOILED, float("inf")
    try:
        yield
    finally:
        int8_graphs.SPOILED = before


def megabytes(*files: Path) -> str:
    return f"{sum(file.stat().st_size for file in files) / 1e6 / len(files):.1f}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="of categories")
    parser.add_argument("data", type=Path, help="folder with test/ and validation/")
    parser.add_argument("--markdown", action="store_true", help="print a table for a page")
    args = parser.parse_args(arguments)
    quiet_libraries()
    model = load_model(args.model)
    encoder = Encoder(model, "category")
    test, seen = Pixels(args.data / "test", encoder), Pixels(args.data / "validation", encoder, PICTURES)
    shown, exact = measured(encoder, test, None)
    rows = [["torch float32", *shown[:3], megabytes(Path(args.model, "model.safetensors")), shown[3]]]
    with tempfile.TemporaryDirectory() as temporary:
        folder, pictures = Path(temporary, "graphs"), np.stack([*seen.queries[::2], *seen.targets[::2]])
        folder.mkdir()
        write_checked(model, folder, "model", pictures)

        def add(way: str, place: Path, int8: bool = False) -> None:
            told, _ = measured(GraphEncoder(model, "category", place, int8), test, exact)
            suffix = "_int8" if int8 else ""
            files = [place / f"{name}{suffix}.onnx" for name in (QUERY, GALLERY)]
            rows.append([way, *told[:3], megabytes(*files), told[3]])

        add("ONNX float32", folder)
        add("ONNX int8, as `--int8` writes it", folder, int8=True)
        feeds = {name: feeds_of(model, name, pictures, False) for name in (QUERY, GALLERY)}
        for way, place in other_graphs(folder, feeds):
            add(way, place)
        write_checked(planted(model), folder, "planted", pictures)
        add("planted, int8, as `--int8` writes it", folder, int8=True)
        with no_limit():
            write_checked(planted(model), folder, "planted", pictures)
        add("planted, int8, every product", folder, int8=True)
    print(table(HEADER, rows, args.markdown))


if __name__ == "__main__":
    main()
