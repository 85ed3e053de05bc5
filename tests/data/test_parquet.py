"""Files that hold images: read in bounded memory, and text that is not UTF-8 counts as damage to every reader."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import plain, product, write_shards

from lrvsf.data.images import Tolerance
from lrvsf.data.products import ProductShards
from lrvsf.data.schema import PRODUCT_FEATURES
from lrvsf.data.stream import ProductBatches
from lrvsf.data.testset import DISTRACTOR_SCHEMA, QUERY_SCHEMA, ProductTestSet
from lrvsf.prepare.check import check
from lrvsf.prepare.laion.downloaded import Partitions, Source
from lrvsf.prepare.laion.write_testset import _published

LARGE = 100_000


def one_row_group(path, schema, rows):
    """As pandas writes a file; a page is read as a whole, whoever reads, so pages are small."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, schema)
    pq.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False, write_batch_size=8)


def most_allocated(items):
    before, most = pa.total_allocated_bytes(), 0
    for _ in items:
        most = max(most, pa.total_allocated_bytes() - before)
    return most


@pytest.mark.parametrize("reader", ["queries", "distractors", "published"])
def test_one_row_group_is_not_read_at_once(tmp_path, reader):
    images = [bytes([i]) * LARGE for i in range(250)]
    queries = [{"CATEGORY": "Bags", "SIMPLE_IMG": image, "COMPLEX_IMG": image} for image in images]
    one_row_group(tmp_path / "products.parquet", QUERY_SCHEMA, queries)
    one_row_group(tmp_path / "distractors/0.parquet", DISTRACTOR_SCHEMA, [{"jpg": image} for image in images])
    del queries
    test_set = ProductTestSet(tmp_path)
    items = {
        "queries": test_set.products,
        "distractors": test_set.distractors,
        "published": lambda: _published(tmp_path / "products.parquet"),
    }[reader]()
    columns = 1 if reader == "distractors" else 2
    assert most_allocated(items) < columns * (2 * 64 * LARGE + 2**22), "two batches and buffers, of 25 MB a column"


def spoil(path, text):
    """Makes a text of a file no UTF-8."""
    data = path.read_bytes()
    assert data.count(text.encode()) == 1
    path.write_bytes(data.replace(text.encode(), b"\xff" * len(text)))


def test_a_shard_with_spoilt_text(tmp_path, caplog):
    rows = [product(f"p{i}", category="Bags") for i in range(8)]
    rows[2]["images"][0]["captions"] = ["spoilt caption"]
    one_row_group(tmp_path / "t/0.parquet", PRODUCT_FEATURES.arrow_schema, rows[:4])
    one_row_group(tmp_path / "t/1.parquet", PRODUCT_FEATURES.arrow_schema, rows[4:])
    spoil(tmp_path / "t/0.parquet", "spoilt caption")
    shards = ProductShards.scan(tmp_path / "t", ["Bags"])
    assert shards.usable == 8, "captions are not looked at yet"
    batches = list(ProductBatches(shards, 4, seed=0))
    lost = [row["product_id"] for _, batch, _ in batches for row in batch if not row["images"]]
    assert len(lost) == 2 and "0.parquet, part 0: 'utf-8' codec" in caplog.text and "Lost 2 products" in caplog.text
    with pytest.raises(ValueError, match="(?s)row groups that cannot be read to their end.*near row 0: 'utf-8'"):
        check(tmp_path / "t", processes=1)


def test_a_shard_with_spoilt_structure_is_left_out(tmp_path, caplog):
    folder = write_shards(tmp_path / "t", [product(f"p{i}") for i in range(8)], 2)
    odd = [product("odd", category="spoilt category"), product("even")]
    one_row_group(folder / "2.parquet", PRODUCT_FEATURES.arrow_schema, odd)
    spoil(folder / "2.parquet", "spoilt category")
    assert ProductShards.scan(folder, tolerance=Tolerance(0.4)).usable == 8 and "Skipped the whole of" in caplog.text


@pytest.mark.parametrize("cell", ["blip2_caption1", "CATEGORY"])
def test_a_test_set_with_spoilt_text_is_named(tmp_path, cell):
    row = {"CATEGORY": "Bags", "SIMPLE_IMG": b"s", "COMPLEX_IMG": b"c"} | {cell: "spoilt text"}
    one_row_group(tmp_path / "products.parquet", QUERY_SCHEMA, [row])
    one_row_group(tmp_path / "distractors/0.parquet", DISTRACTOR_SCHEMA, [{"jpg": b"d"}])
    spoil(tmp_path / "products.parquet", "spoilt text")
    test_set = ProductTestSet(tmp_path)
    with pytest.raises(OSError, match="products.parquet is damaged: near row 0: 'utf-8' codec.*Restore"):
        list(test_set.products())
    if cell == "CATEGORY":
        with pytest.raises(OSError, match="products.parquet is damaged: 'utf-8' codec.*Restore"):
            test_set.check_categories(["Bags"])


def test_a_download_with_spoilt_text_loses_its_row_group(tmp_path):
    names = ("url", "product_id", "type", "split", "status")
    schema = pa.schema([(name, pa.string()) for name in names] + [("jpg", pa.binary())])
    cells = {"product_id": "p", "type": "SIMPLE", "split": "train", "status": "success", "jpg": plain("red")}
    for number, url in enumerate(("http://shop/1", "spoilt url")):
        one_row_group(
            tmp_path / f"in/{number}.parquet", schema, [{**cells, "url": url}, {**cells, "url": "http://x/2"}]
        )
    spoil(tmp_path / "in/1.parquet", "spoilt url")
    partitions = Partitions.of(Source(tmp_path / "in", ("train",), 0), tmp_path / "work")
    assert partitions.rows == 2 and partitions.skipped["unusable"] == {"rows in a damaged row group": 2}
