"""Makes the page's folder: the page, ONNX Runtime for the browser, a model's query graph, and a gallery of its rows.

    python publish_lrvsf.py onnx MODEL
    npm ci --ignore-scripts --prefix spaces/browser
    python spaces/browser/write_page.py MODEL/onnx SHOP OUT [--items 300] [--samples 12]

SHOP is a folder with items.parquet (id, title, image) and pictures to ask by in scenes/: `prepare_lrvsf.py mini_shop`
draws one. OUT is a folder of plain files, for any file server.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lrvsf import command
from lrvsf.data.foreign.shown import decode_shown
from lrvsf.data.images import BadImage
from lrvsf.durable import whole_folder
from lrvsf.hub.graphs.condvit_onnx import CondViTOnnx
from lrvsf.report import Ledger, as_table
from processing_condvit import pad_and_resize

HERE = Path(__file__).resolve().parent
PAGE = ("index.html", "page.css", "page.js", "graph.js", "pixels.js", "README.md")
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
BUNDLE = HERE / "node_modules/onnxruntime-web/dist"
BATCH = 32


def read_items(shop: Path, most: int, left_out: Ledger) -> list[tuple[dict, Image.Image]]:
    """At most so many rows, spread over the table, with their pictures; those that cannot be read are left out.

    Raises FileNotFoundError or ValueError: there is no table, or nothing in it.
    """
    table, items = shop / "items.parquet", []
    if not table.is_file():
        raise FileNotFoundError(f"There is no {table}. Draw a shop by prepare_lrvsf.py mini_shop.")
    rows = pq.read_table(table, columns=["id", "title", "image"])
    chosen = np.linspace(0, max(len(rows) - 1, 0), min(most, len(rows))).round().astype(int)
    for row in rows.take(chosen).to_pylist():
        try:
            items.append((row, decode_shown(row["image"])))
        except BadImage as error:
            left_out.add(error.reason, str(row["id"]))
    if not items:
        raise ValueError(f"{table}: none of {len(chosen)} pictures can be read. Give a table that has some.")
    return items


def write_gallery(model: CondViTOnnx, items: list[tuple[dict, Image.Image]], out: Path) -> list[dict]:
    """Writes rows and thumbnails; gives what gallery.json says of each item."""
    (out / "items").mkdir()
    pixels = [np.asarray(pad_and_resize(image, model.image_size)).transpose(2, 0, 1) for _, image in items]
    starts = range(0, len(items), BATCH)
    rows = [model(pixels=np.stack(pixels[start : start + BATCH])).image_embeds for start in starts]
    np.concatenate(rows).astype("<f4").tofile(out / "gallery.bin")
    for number, (_, image) in enumerate(items):
        image.thumbnail((160, 160))
        image.save(out / f"items/{number}.jpg", quality=85)
    names = [{key: row[key] for key in ("id", "title")} for row, _ in items]
    return [{**name, "picture": f"items/{number}.jpg"} for number, name in enumerate(names)]


def write_page(graphs: Path, shop: Path, out: Path, items: int, samples: int) -> str:
    """Writes the folder, whole or not at all. Raises FileNotFoundError or ValueError: something it needs is missing."""
    if missing := [name for name in RUNTIME if not (BUNDLE / name).is_file()]:
        remedy = f"npm ci --ignore-scripts --prefix {HERE}"
        raise FileNotFoundError(f"There is no {BUNDLE / missing[0]}. Fetch it: {remedy}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is there already. Name a new folder.")
    model = CondViTOnnx(graphs)
    if (model.condition, model.reads) != ("category", "pixels"):
        raise ValueError(f"{graphs} reads {model.reads} and {model.condition}. The page asks by pixels and category.")
    left_out = Ledger()
    found, asked = read_items(shop, items, left_out), sorted(shop.glob("scenes/*.jpg"))[:samples]
    with whole_folder(out) as writing:
        for folder, files in ((HERE, PAGE), (BUNDLE, RUNTIME), (graphs, ("query.onnx",))):
            (target := writing / ("ort" if folder == BUNDLE else "")).mkdir(exist_ok=True)
            for name in files:
                shutil.copy(folder / name, target)
        (writing / "samples").mkdir()
        for path in asked:
            shutil.copy(path, writing / "samples")
        told = {"items": write_gallery(model, found, writing), "samples": [f"samples/{path.name}" for path in asked]}
        about = {"model": model.name, "image_size": model.image_size, "dim": model.dim, "categories": model.categories}
        (writing / "gallery.json").write_text(json.dumps({**about, **told}))
    served = ["python", "-m", "http.server", "--bind", "127.0.0.1", "--directory"]
    return as_table(
        {"items": len(found), **left_out.report("left out"), "look at it by": command.Command([*served, out])}
    )


def main() -> None:
    parser = command.OneLineParser(__doc__)
    parser.add_argument("graphs", type=Path, help="folder of query.onnx and gallery.onnx")
    parser.add_argument("shop", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--samples", type=int, default=12)
    args = parser.parse_args()
    print(write_page(args.graphs, args.shop, args.out, args.items, args.samples))


if __name__ == "__main__":
    command.run(main)
