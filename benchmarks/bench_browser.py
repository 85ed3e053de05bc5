"""How far an embedding moves in a browser: by its arithmetic, its decoder, and the resizing of its canvas.

    python benchmarks/bench_browser.py assets/mini-condvit runs/browser/page data/shop [--pictures 24]

The page is what spaces/browser/write_page.py wrote with this model's graph; its pictures are the shop's scenes, each
asked under every category. Rows are compared with torch's, of pixels that Pillow decoded and resized. It needs the
environment of the pages, .venv-app, and Debian's chromium.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from base64 import b64encode
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench_train import table

from lrvsf.command import quiet_libraries
from lrvsf.data.foreign.shown import decode_shown
from lrvsf.embedding.encoder import Encoder, load_model

HEADER = ["pixels", "differ by, mean", "at most", "cosine", "least"]
# Each way gives (size, size, 3) bytes of a picture that is fetched.
WAYS = {
    "of Pillow": None,
    "of the page": "(blob, size) => pixelsOf(blob, size)",
    **{
        f"of the canvas, quality {quality}": f'(blob, size) => drawn(blob, size, "{quality}")'
        for quality in ("low", "medium", "high")
    },
}
SCRIPT = """async ([base64, size, given, categories, way]) => {
  const { embed, openGraph } = await import("./graph.js");
  const { pixelsOf } = await import("./pixels.js");
  async function drawn(blob, size, quality) {
    const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
    const context = new OffscreenCanvas(size, size).getContext("2d", { willReadFrequently: true });
    const scale = size / Math.max(bitmap.width, bitmap.height);
    const [width, height] = [bitmap.width * scale, bitmap.height * scale];
    Object.assign(context, { fillStyle: "white", imageSmoothingQuality: quality });
    context.fillRect(0, 0, size, size);
    context.drawImage(bitmap, (size - width) / 2, (size - height) / 2, width, height);
    return context.getImageData(0, 0, size, size).data.filter((_, place) => place % 4 < 3);
  }
  window.graph ??= await openGraph("query.onnx");
  const blob = new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))]);
  const pixels = given === null ? await (WAY)(blob, size) : new Uint8Array(given);
  const rows = [];
  for (let category = 0; category < categories; category++) {
    rows.push(Array.from(await embed(window.graph, pixels, size, category)));
  }
  return [Array.from(pixels), rows];
}"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


def compare(page: Page, encoder: Encoder, pictures: list[bytes], way: str | None) -> list[str]:
    """A row of the table."""
    names, size = encoder.model.config.categories, encoder.image_size
    off, cosines = [], []
    for data in pictures:
        pixels = encoder.pixels_of(decode_shown(data))
        flat = pixels.transpose(1, 2, 0).flatten()
        given = [b64encode(data).decode(), size, None if way else flat.tolist(), len(names)]
        found, rows = page.evaluate(SCRIPT.replace("WAY", way or "null"), given)
        off.append(np.abs(np.array(found) - flat.astype(int)))
        cosines.append((np.array(rows) * encoder.embed([pixels] * len(names), list(names)).numpy()).sum(1))
    return [f"{np.mean(off):.2f}", f"{np.max(off)}", f"{np.mean(cosines):.5f}", f"{np.min(cosines):.5f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="of categories")
    parser.add_argument("page", type=Path)
    parser.add_argument("shop", type=Path, help="folder with pictures in scenes/")
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--markdown", action="store_true", help="print a table for a page")
    args = parser.parse_args()
    quiet_libraries()
    encoder = Encoder(load_model(args.model), "category")
    pictures = [path.read_bytes() for path in sorted(args.shop.glob("scenes/*.jpg"))[: args.pictures]]
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(args.page)))
    Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        rows = [[name, *compare(page, encoder, pictures, way)] for name, way in WAYS.items()]
        print(f"{len(pictures)} pictures, Chromium {browser.version}\n")
        browser.close()
    server.shutdown()
    print(table(HEADER, rows, args.markdown))


if __name__ == "__main__":
    main()
