"""The page that runs a graph itself, in a browser: its pixels are Pillow's, its rows torch's, its order Python's."""

import json
import sys
from base64 import b64encode
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pyarrow.parquet as pq
import pytest
from browser import opened
from drawn_shop import HOSTILE, MODEL
from made import encode, noise, plain, write_file, write_rows
from PIL import Image

pytest.importorskip("onnxscript", reason="no onnx here: pip install -r requirements-onnx.txt")

import publish_lrvsf
from lrvsf.data.foreign.shown import decode_shown
from lrvsf.embedding.encoder import Encoder, load_model
from processing_condvit import pad_and_resize

sys.path.insert(0, str(Path(__file__).parents[2] / "spaces/browser"))

import write_page as page_writer
from write_page import write_page

GET_PIXELS = """async ([base64, size]) => {
  const { pixelsOf } = await import("./pixels.js");
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return Array.from(await pixelsOf(new Blob([bytes]), size));
}"""
GET_ROW = """async ([pixels, size, category]) => {
  const { embed, openGraph } = await import("./graph.js");
  window.graph ??= await openGraph("query.onnx");
  return Array.from(await embed(window.graph, new Uint8Array(pixels), size, category));
}"""


@pytest.fixture(scope="module")
def encoder():
    return Encoder(load_model(str(MODEL)), "category")


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    out = tmp_path_factory.mktemp("graphs")
    publish_lrvsf.main(["onnx", str(MODEL), str(out)])
    return out / "onnx"


@pytest.fixture(scope="module")
def folder(graphs, shop, tmp_path_factory):
    if not page_writer.BUNDLE.is_dir():
        pytest.skip("no onnxruntime-web here: npm ci --ignore-scripts --prefix spaces/browser")
    out = tmp_path_factory.mktemp("page") / "page"
    write_page(graphs, shop, out, items=120, samples=6)
    return out


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address(chromium, folder):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def page(chromium, address):
    with opened(chromium, address) as page:
        page.wait_for_selector("body[data-ready]", timeout=180_000)
        yield page


def pixels_of(page, data, size):
    """What the page makes of an encoded picture, flat."""
    return np.array(page.evaluate(GET_PIXELS, [b64encode(data).decode(), size]))


def found(page):
    return page.locator("#results figure")


def test_rows_of_the_same_bytes_are_torchs(page, encoder, shop):
    scenes = [np.asarray(decode_shown(path.read_bytes())) for path in sorted((shop / "scenes").iterdir())[:3]]
    pictures = [*(Image.fromarray(scene) for scene in scenes), noise(96, 96)]
    for number, picture in enumerate(pictures):
        pixels, category = encoder.pixels_of(picture), 3 * number
        given = [pixels.transpose(1, 2, 0).flatten().tolist(), 96, category]
        expected = encoder.embed([pixels], [encoder.model.config.categories[category]])[0]
        np.testing.assert_allclose(page.evaluate(GET_ROW, given), expected, atol=1e-3)


@pytest.mark.parametrize("size", [96, 33])
def test_pixels_are_pillows_bit_for_bit(page, size):
    for number, shape in enumerate([(160, 120), (37, 90), (33, 33), (96, 96), (20, 31), (1, 7), (401, 300)]):
        picture = noise(*shape, seed=number)
        pixels = pixels_of(page, encode(picture), size)
        expected = np.asarray(pad_and_resize(picture, size)).flatten()
        np.testing.assert_array_equal(pixels, expected, err_msg=str(shape))


def test_pictures_are_upright_and_on_white_as_catalogs_see_theirs(page):
    glass = noise(60, 40).convert("RGBA")
    glass.putalpha(Image.linear_gradient("L").resize((60, 40)))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(noise(6, 5).resize((60, 50), Image.Resampling.NEAREST), "JPEG", quality=95, exif=exif)
    # What shines through is rounded by the canvas, and JPEG by its decoder.
    for data, off in ((encode(glass), 2), (turned, 4)):
        pixels = pixels_of(page, data, 32)
        expected = np.asarray(pad_and_resize(decode_shown(data), 32)).flatten().astype(int)
        assert np.abs(pixels - expected).max() <= off


def test_a_sample_and_a_category_rank_as_python_does(page, encoder, folder, shop):
    gallery = json.loads((folder / "gallery.json").read_text())
    images = dict(
        zip(*(pq.read_table(shop / "items.parquet")[name].to_pylist() for name in ("id", "image")), strict=True)
    )
    items = encoder.embed([encoder.pixels(images[item["id"]]) for item in gallery["items"]])
    page.locator("#samples button").nth(2).click()
    for category in ("Bags", "Whole Body"):
        page.get_by_label(category, exact=True).check()
        page.locator(f'#results[data-category="{category}"]').wait_for()
        pixels = encoder.pixels((folder / gallery["samples"][2]).read_bytes())
        scores = (encoder.embed([pixels], [category]) @ items.T)[0]
        told = [float(text) for text in found(page).locator("figcaption").all_inner_texts()]
        assert told == sorted(told, reverse=True)
        np.testing.assert_allclose(told, scores.sort(descending=True).values[:12], atol=0.02)
        ids = [item["id"] for item in gallery["items"]]
        shown = [scores[ids.index(figure.get_attribute("data-id"))] for figure in found(page).all()]
        np.testing.assert_allclose(told, shown, atol=0.02)
    assert any(item["title"] == HOSTILE for item in gallery["items"])  # which `opened` would have noticed


def test_a_photo_of_ones_own_and_a_file_that_is_none(page, tmp_path):
    write_file(tmp_path / "photo.png", plain("red"))
    write_file(tmp_path / "notes.txt", b"notes")
    page.get_by_label("Feet", exact=True).check()
    page.locator("#file").set_input_files(str(tmp_path / "photo.png"))
    found(page).first.wait_for()
    page.locator("#file").set_input_files(str(tmp_path / "notes.txt"))
    page.locator("#status", has_text="no picture that the browser can read").wait_for()
    assert found(page).count() == 0
    write_file(tmp_path / "long.png", plain(size=(1, 8193)))
    page.locator("#file").set_input_files(str(tmp_path / "long.png"))
    page.locator("#status", has_text="1 x 8193 pixels; 8192 a side are the most").wait_for()
    page.locator("#file").set_input_files(str(tmp_path / "photo.png"))
    found(page).first.wait_for()


def test_a_narrow_window(chromium, address):
    with opened(chromium, address, width=400) as page:
        page.wait_for_selector("body[data-ready]", timeout=180_000)
        page.locator("#samples button").first.click()
        page.get_by_label("Head", exact=True).check()
        found(page).first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_what_a_page_cannot_be_made_of_is_refused(folder, graphs, shop, tmp_path, monkeypatch):
    with pytest.raises(FileExistsError, match="is there already"):
        write_page(graphs, shop, folder, 10, 2)
    with pytest.raises(FileNotFoundError, match="Draw a shop by prepare_lrvsf.py mini_shop"):
        write_page(graphs, tmp_path, tmp_path / "out", 10, 2)
    with pytest.raises(FileNotFoundError, match="Write it by publish_lrvsf.py onnx"):
        write_page(tmp_path, shop, tmp_path / "out", 10, 2)
    monkeypatch.setattr(page_writer, "BUNDLE", tmp_path)
    with pytest.raises(FileNotFoundError, match="Fetch it: npm ci"):
        write_page(graphs, shop, tmp_path / "out", 10, 2)
    assert not (tmp_path / "out").exists()


def test_items_that_cannot_be_read_are_counted_and_named(folder, graphs, shop, tmp_path):
    rows = pq.read_table(shop / "items.parquet").slice(0, 4).to_pylist()
    rows[1]["image"] = b"no picture"
    write_rows(tmp_path / "shop/items.parquet", rows)
    told = write_page(graphs, tmp_path / "shop", tmp_path / "out", 300, 12)
    assert "not an image" in told and rows[1]["id"] in told
    gallery = json.loads((tmp_path / "out/gallery.json").read_text())
    assert [item["id"] for item in gallery["items"]] == [rows[row]["id"] for row in (0, 2, 3)]
    assert (tmp_path / "out/gallery.bin").stat().st_size == 3 * 4 * gallery["dim"]
    write_rows(tmp_path / "shop/items.parquet", rows[1:2])
    with pytest.raises(ValueError, match="none of 1 pictures can be read"):
        write_page(graphs, tmp_path / "shop", tmp_path / "another", 300, 12)
