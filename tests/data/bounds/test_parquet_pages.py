"""Page headers against what the writer put there, and files that unfold to far more than their bytes."""

import os
import random
import subprocess
import sys
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import product, write_layout, write_shards

from lrvsf.data import parquet, products
from lrvsf.data.bounds.parquet_pages import unfolded
from lrvsf.data.images import Tolerance
from lrvsf.data.parquet import DAMAGE, ParquetBomb, open_parquet
from lrvsf.data.products import ProductShards
from lrvsf.data.schema import PRODUCT_FEATURES
from lrvsf.data.testset import DISTRACTOR_SCHEMA, ProductTestSet

WRITERS = [
    {"compression": codec, "use_dictionary": dictionary, "data_page_version": version, "data_page_size": size}
    for codec, dictionary, version, size in [
        ("none", False, "1.0", 1000),
        ("snappy", True, "1.0", 1000),
        ("zstd", True, "2.0", 1000),
        ("gzip", False, "2.0", 10),
        ("snappy", True, "1.0", 2**20),
    ]
]
ENCODED = {
    "text": "DELTA_BYTE_ARRAY",
    "number": "DELTA_BINARY_PACKED",
    "images.list.element.data": "DELTA_LENGTH_BYTE_ARRAY",
}
WRITERS.append({"use_dictionary": False, "column_encoding": ENCODED, "write_page_index": True})
WRITERS.append({"use_dictionary": False, "write_page_checksum": True, "write_statistics": False, "write_batch_size": 3})


def table(rows=300):
    rng = random.Random(0)
    images = [[{"data": rng.randbytes(rng.randrange(90))} for _ in range(rng.randrange(4))] for _ in range(rows)]
    cells = {"text": [rng.choice(["a", "bc", None, "x" * 300]) for _ in range(rows)], "number": list(range(rows))}
    return pa.table({**cells, "real": [0.5] * rows, "images": images})


@pytest.mark.parametrize("writer", range(len(WRITERS)))
def test_pages_are_those_that_were_written(tmp_path, writer):
    pq.write_table(table(), tmp_path / "t.parquet", row_group_size=130, **WRITERS[writer])
    with pq.ParquetFile(tmp_path / "t.parquet") as file, open(tmp_path / "t.parquet", "rb") as raw:
        for group in range(3):
            for column in range(4):
                chunk = file.metadata.row_group(group).column(column)
                pages = unfolded(raw, chunk)
                assert pages.values == chunk.num_values
                assert 0 < pages.largest_page <= chunk.total_uncompressed_size + 100
                assert pages.plain <= chunk.total_uncompressed_size + 8 * chunk.num_values
                indexed = bool({"RLE_DICTIONARY", "PLAIN_DICTIONARY"} & set(chunk.encodings))
                assert (pages.indexed > 0) == indexed and (pages.prefixed > 0) == (
                    "DELTA_BYTE_ARRAY" in chunk.encodings
                )
    with open_parquet(tmp_path / "t.parquet") as file:
        batches = list(file.iter_batches(7))
        assert pa.Table.from_batches(batches).equals(table().cast(batches[0].schema))
        assert file.read(["number", "text"]).equals(table().select(["number", "text"]))
        for group in range(3):
            file.check_whole(group, ["images", "text"])


def test_damaged_pages_are_damage(tmp_path):
    pq.write_table(table(), tmp_path / "t.parquet", row_group_size=130)
    data, rng, kinds = (tmp_path / "t.parquet").read_bytes(), random.Random(0), Counter()
    for _ in range(200):
        spoilt = bytearray(data)
        for _ in range(rng.randint(1, 9)):
            spoilt[rng.randrange(4, len(data) - 8)] = rng.choice([0, 0x7F, 0xFF, rng.randrange(256)])
        (tmp_path / "bad.parquet").write_bytes(spoilt)
        try:
            with open_parquet(tmp_path / "bad.parquet") as file:
                for batch in file.iter_batches(64):
                    batch.to_pylist()
            kinds["read"] += 1
        except DAMAGE:
            kinds["damage"] += 1
    assert min(kinds["read"], kinds["damage"]) > 10


def dictionary_of(value, rows):
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))


def images_of(values, per_row):
    """Rows of PRODUCT_FEATURES with dictionary-coded images."""
    offsets = pa.array(range(0, len(values) + 1, per_row), pa.int32())
    texts = pa.array(["SIMPLE"] * len(values))
    image = pa.StructArray.from_arrays([values, pa.nulls(len(values), pa.string())], ["bytes", "path"])
    captions = pa.ListArray.from_arrays(pa.array([0] * (len(values) + 1), pa.int32()), pa.array([], pa.string()))
    struct = pa.StructArray.from_arrays([image, texts, texts, captions], ["image", "type", "category", "captions"])
    rows = len(values) // per_row
    return pa.table({"product_id": [f"p{i}" for i in range(rows)], "images": pa.ListArray.from_arrays(offsets, struct)})


def test_what_a_page_holds_is_looked_at_before(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "MAX_PAGE_BYTES", 2**16)
    large = pa.table({"jpg": [bytes(2**17)]})
    for options in ({"use_dictionary": False}, {"use_dictionary": True}):
        pq.write_table(large, tmp_path / "t.parquet", compression="zstd", **options)
        with open_parquet(tmp_path / "t.parquet") as file, pytest.raises(ParquetBomb, match="a page of 1310"):
            list(file.iter_batches())


@pytest.mark.parametrize("form", ["dictionary", "plain", "prefixes"])
def test_batches_have_fewer_rows_where_cells_are_large(tmp_path, monkeypatch, form):
    monkeypatch.setattr(parquet, "BATCH_BYTES", 10**6)
    values = pa.array([bytes(300_000)] * 50) if form != "dictionary" else dictionary_of(bytes(300_000), 50)
    encoding = {"column_encoding": {"jpg": "DELTA_BYTE_ARRAY"}} if form == "prefixes" else {}
    plain = {"use_dictionary": form == "dictionary", "store_schema": False, "compression": "zstd"}
    pq.write_table(pa.table({"jpg": values}), tmp_path / "t.parquet", **plain, **encoding)
    with open_parquet(tmp_path / "t.parquet") as file:
        sizes = [len(batch) for batch in file.iter_batches(64)]
    assert sum(sizes) == 50 and max(sizes) <= 3


def test_lists_of_millions_are_refused_and_long_ones_left_out(tmp_path, monkeypatch, caplog):
    rows = [product(f"p{i}") for i in range(8)]
    folder = write_shards(tmp_path / "t", rows, 2)
    monkeypatch.setattr(products, "MAX_IMAGES", 1)
    with pytest.raises(products.TooMuchDamage, match="more than 1 images"):
        ProductShards.scan(folder)
    monkeypatch.setattr(products, "MAX_IMAGES", 10)
    monkeypatch.setattr(parquet, "MAX_EMPTY_VALUES", 1000)
    table = images_of(pa.nulls(2000, pa.binary()), 2000).cast(PRODUCT_FEATURES.arrow_schema)
    pq.write_table(table, folder / "2.parquet")
    assert ProductShards.scan(folder, tolerance=Tolerance(0.4)).usable == 8
    assert "has 2000 values in the lists of 1 rows" in caplog.text or "has 2000 values in a file" in caplog.text


def test_a_shard_that_unfolds_is_lost_and_named(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(parquet, "MAX_BYTES", 10**6)
    folder = write_shards(tmp_path / "t", [product(f"q{i}") for i in range(8)], 2)
    bomb = images_of(dictionary_of(bytes(200_000), 20), 2).cast(PRODUCT_FEATURES.arrow_schema)
    bomb = bomb.set_column(0, "product_id", pa.array([f"b{i}" for i in range(10)]))
    kinds = [
        [{**image, "type": kind} for image, kind in zip(row, ("SIMPLE", "COMPLEX"), strict=True)]
        for row in bomb["images"].to_pylist()
    ]
    bomb = bomb.set_column(1, "images", pa.array(kinds, PRODUCT_FEATURES.arrow_schema.field("images").type))
    pq.write_table(bomb, folder / "2.parquet", compression="zstd")
    shards = ProductShards.scan(folder)
    assert shards.usable == 18, "its structure is small"
    assert [len(list(shards.read(group))) for group in range(len(shards.row_groups))] == [4, 4, 0]
    assert "2.parquet, part 0" in caplog.text and "Lost 10 products" in caplog.text


def test_a_large_dictionary_of_different_images_is_no_bomb(tmp_path, monkeypatch):
    """The guess, each image the largest dictionary's only one, is far above the limit; what counts is not."""
    monkeypatch.setattr(parquet, "MAX_BYTES", 10**6)
    values = pa.array([random.Random(i).randbytes(4000) for i in range(200)]).dictionary_encode()
    table = images_of(values, 2).cast(PRODUCT_FEATURES.arrow_schema)
    pq.write_table(table, tmp_path / "t.parquet", compression="none")
    with open_parquet(tmp_path / "t.parquet") as file:
        file.check_whole(0, ["product_id", "images"])
        assert sum(len(batch) for batch in file.iter_batches(64)) == 100


@pytest.mark.survives(
    "a Parquet file of kilobytes that unfolds to gigabytes: a page, a dictionary, lists of millions",
    "refused or read row by row, in bounded memory",
)
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="limits of memory are Linux's here")
def test_kilobytes_do_not_take_gigabytes(tmp_path):
    """In a process that may take 1 GB more than its imports."""
    rows = dictionary_of(bytes(2**26), 64)
    write_layout(tmp_path, {}, {"jpg": rows}, compression="zstd", store_schema=False)
    with pq.ParquetWriter(
        tmp_path / "distractors/1.parquet", DISTRACTOR_SCHEMA, compression="zstd", use_dictionary=False
    ) as file:
        cells = [{"jpg": bytes(2**25)}] * 4
        for _ in range(6):
            file.write_table(pa.Table.from_pylist(cells, DISTRACTOR_SCHEMA))
    code = (
        "import resource; from lrvsf.data.testset import *; test_set = ProductTestSet('.')\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))\n"
        "assert sum(len(data) for _, data in test_set.distractors()) == 64 * 2**26 + 24 * 2**25\n"
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    assert sum(file.stat().st_size for file in (tmp_path / "distractors").iterdir()) < 200_000
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment).returncode == 0


def test_a_page_of_two_gigabytes_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "MAX_PAGE_BYTES", 2**20)
    write_layout(tmp_path, {}, {"jpg": [bytes(2**21)]}, compression="zstd")
    with pytest.raises(OSError, match="0.parquet is damaged: near row 0: column jpg .* has a page of 2097"):
        list(ProductTestSet(tmp_path).distractors())
