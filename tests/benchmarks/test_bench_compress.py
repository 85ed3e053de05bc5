"""The table of small vectors: what is lossless loses nothing, and every line is there."""

import sys
from pathlib import Path

import numpy as np
import pytest
from vector_shops import VectorShop, drawn, table_of_items, unit

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from bench_compress import CUTS, as_markdown, draw, measured, products_of

from lrvsf.report import Ledger
from lrvsf.search.catalog import Catalog
from lrvsf.search.compress.compressed import FORMS
from lrvsf.search.measuring.asked_queries import CONDITIONED, AskedQueries


@pytest.fixture
def asked(tmp_path):
    """A catalog of 300 items, and 40 queries near to one each; the last one's target is not there."""
    shop = VectorShop(tmp_path / "catalog")
    shop.answer(shop.segment("a", table_of_items(range(300))))
    rows = np.arange(40)
    near = unit(drawn(rows, 64) + 0.02 * np.random.default_rng(0).normal(size=(40, 64))).astype(np.float32)
    targets = [*(f"x{row}" for row in rows[:-1]), None]
    return Catalog.open(tmp_path / "catalog"), AskedQueries(rows, [None] * 40, targets, {CONDITIONED: near}, Ledger())


def test_every_form_at_every_cut(asked, tmp_path):
    lines = measured(*asked)
    assert len(lines) == 2 * len(CUTS) * len(FORMS)
    whole = {(line.form, line.rescored): line for line in lines if line.dims == 64}
    assert whole["float32", False].r1 == whole["float32", False].top == whole["int8", True].top == 1
    assert (whole["float32", False].size, whole["int8", True].size, whole["binary", True].size) == (256, 64, 16)
    text = as_markdown(lines)
    assert text.count("\n") == 1 + len(lines) // 2 and "| float32 | 64 | 256 | 100.0 | 100.0 |" in text
    draw(lines, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_photos_of_one_product_are_refused(tmp_path):
    shop = VectorShop(tmp_path / "catalog")
    items = table_of_items([1, 1])
    shop.answer(shop.segment("a", items))
    with pytest.raises(SystemExit, match="photos of one product"):
        products_of(Catalog.open(tmp_path / "catalog"))
