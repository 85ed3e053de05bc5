"""A test set drawn on the spot, with bad images where a test wants them."""

import io
from itertools import count

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lrvsf.evaluation.store import EmbeddingStore


def jpeg(seed: int) -> bytes:
    """A few coloured squares on white, 36 x 30."""
    draw = np.random.default_rng(seed)
    pixels = np.repeat(np.repeat(draw.integers(0, 256, (5, 6, 3), dtype=np.uint8), 6, axis=0), 6, axis=1)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=95)
    return out.getvalue()


@pytest.fixture
def make_test_set(tmp_path):
    """`make_test_set(products, distractors, bad={"SIMPLE_IMG": {row: bytes}, "jpg": {...}}, same=False)` -> its folder.

    With `same`, a product's query is its target.
    """

    def make(products: int = 12, distractors: int = 40, bad: dict | None = None, same: bool = False):
        columns = {
            "SIMPLE_IMG": [jpeg(i) for i in range(products)],
            "COMPLEX_IMG": [jpeg(i if same else 1000 + i) for i in range(products)],
            "jpg": [jpeg(2000 + i) for i in range(distractors)],
        }
        for name, rows in (bad or {}).items():
            for row, data in rows.items():
                columns[name][row] = data
        root = tmp_path / "test"
        (root / "distractors").mkdir(parents=True)
        jpg = columns.pop("jpg")
        columns["CATEGORY"] = [("Bags", "Feet", "Neck")[i % 3] for i in range(products)]
        columns["blip2_caption1"] = ["a thing"] * products
        columns["PRODUCT_ID"] = [f"p{i}" for i in range(products)]
        known = {"CATEGORY": [("Feet", "Bags", "Hats", "Neck")[i % 4] for i in range(distractors)]}
        known["PRODUCT_ID"] = [f"d{i}" for i in range(distractors)]
        pq.write_table(pa.table(columns), root / "products.parquet", row_group_size=5)
        half = distractors // 2 + 3
        for number, part in enumerate((slice(half), slice(half, None))):
            table = pa.table({"jpg": jpg[part], **{name: values[part] for name, values in known.items()}})
            pq.write_table(table, root / "distractors" / f"{number}.parquet", row_group_size=7)
        return root

    return make


@pytest.fixture
def make_store(tmp_path):
    """`make_store(encoder, test_set, batch_size, max_bad)`: an empty store, each time in a folder of its own."""
    numbers = count()

    def make(encoder, test_set, batch_size: int = 256, max_bad: float = 0.01):
        return EmbeddingStore(tmp_path / f"embeds-{next(numbers)}", encoder, test_set, batch_size, max_bad)

    return make
