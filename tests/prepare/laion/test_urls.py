"""The metadata of these tests is laid out as the published files are: three a split, no two with the same columns."""

import json
from collections import Counter

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import rows_of, write_rows, write_table

from lrvsf.prepare.laion import url_lists
from lrvsf.prepare.laion.url_lists import SPLITS, URL_SCHEMA
from lrvsf.prepare.laion.urls import resolve, urls


def simple(url, product, split="train", **more):
    return {"URL": url, "TYPE": "SIMPLE", "SPLIT": split, "PRODUCT_ID": product, "CATEGORY": "Bags", **more}


def scene(url, product, split="train", kind="COMPLEX"):
    return {"URL": url, "TYPE": kind, "SPLIT": split, "PRODUCT_ID": product}


def write(folder, **files):
    for name, rows in files.items():
        write_rows(folder / (name.replace("__", "/") + ".parquet"), rows)
    return folder


def test_files_that_differ_in_columns_become_one_list(tmp_path):
    meta = write(
        tmp_path / "meta",
        data__train__products_simple=[
            simple("http://a/1.jpg", 7, blip2_caption2="second", blip2_caption1=" first ", punsafe=0.1)
        ],
        data__train__products_complex=[scene("https://a/2 b.jpg", 7, kind="PARTIAL_COMPLEX")],
        data__validation__distractors=[{"URL": "http://a/3.jpg", "SPLIT": "val_gallery", "CATEGORY": None}],
        data__test__products_complex=[scene("http://a/é%20.jpg", 8, "test_query")],
        data__test__products_simple_metadata=[simple("http://a/4.jpg", 8, "test_gallery")],
    )
    report = urls(str(meta), tmp_path / "out")
    columns = URL_SCHEMA.names
    expected = [
        ("http://a/1.jpg", "7", "SIMPLE", "train", "Bags", ["first", "second"], 3),
        ("https://a/2%20b.jpg", "7", "PARTIAL_COMPLEX", "train", None, [], 2),
        ("http://a/3.jpg", None, "SIMPLE", "validation_distractors", None, [], 4),
        ("http://a/%C3%A9%20.jpg", "8", "COMPLEX", "test", None, [], 0),
        ("http://a/4.jpg", "8", "SIMPLE", "test", "Bags", [], 1),
    ]  # numbered through the files in the order of their paths
    rows = sorted(rows_of(tmp_path / "out/urls"), key=lambda row: row["url"])
    assert rows == [dict(zip(columns, row, strict=True)) for row in sorted(expected)]
    assert (report["rows"], report["URLs to download"], report["skipped"]) == (5, 5, 0)
    assert report["splits"]["validation_distractors"] == {"URLs": 1, "products": 0}
    assert json.loads((tmp_path / "out/urls.json").read_text()) == report


def test_what_cannot_be_used_is_counted_by_reason(tmp_path):
    bad = [None, "", "ftp://a/1.jpg", "//a/1.jpg", "http:///1.jpg", "http://[a/1.jpg"]
    meta = write(
        tmp_path / "meta",
        a=[simple(url, 1) for url in bad] + [simple("http://a/good.jpg", 1)],
        b=[{**simple(f"http://a/{kind}.jpg", 2), "TYPE": kind} for kind in ("ODD", None)],
        c=[simple(f"http://a/{split}.jpg", 3, split) for split in ("dev", None, "train_gallery")],
        d=[simple("http://a/none.jpg", None), simple("http://a/float.jpg", 12.0)],
    )
    report = urls(str(meta), tmp_path / "out")
    assert report["skipped"] == {
        "no usable URL": 6,
        "unknown type: ODD": 1,
        "unknown type: None": 1,
        "unknown split: dev": 1,
        "unknown split: None": 1,
        "unknown split: train_gallery": 1,
        "no product id": 1,
    }
    assert {row["product_id"] for row in rows_of(tmp_path / "out/urls")} == {"1", "12"}
    unusable = write(tmp_path / "unusable", c=pq.read_table(meta / "c.parquet").to_pylist())
    with pytest.raises(ValueError, match="none of the 3 rows of .*unknown split: dev"):
        urls(str(unusable), tmp_path / "nowhere")


def test_overlap_goes_to_the_test_set(tmp_path):
    meta = write(
        tmp_path / "meta",
        train=[
            simple("http://a/shared.jpg", 1),  # the test set has this picture, of another product
            simple("http://a/1.jpg", 1),
            simple("http://a/2.jpg", 2),  # the test set has this product
            simple("http://a/3.jpg", 3),  # a distractor: a gallery picture goes before training
            simple("http://a/4.jpg", 4),
            simple("http://a/4.jpg", 4),  # the same again
            simple("http://a/4.jpg", 5),  # two products, one picture
        ],
        test=[simple("http://a/shared.jpg", 9, "test"), simple("http://a/2-test.jpg", 2, "test")],
        dist=[simple("http://a/3.jpg", 30, "test_gallery"), simple("http://a/5.jpg", 5, "test_gallery")],
        val=[simple("http://a/3.jpg", 31, "val_gallery")],
    )
    report = urls(str(meta), tmp_path / "out")
    kept = sorted((row["split"], row["url"][9:], row["product_id"]) for row in rows_of(tmp_path / "out/urls"))
    assert kept == [
        ("test", "2-test.jpg", "2"),
        ("test", "shared.jpg", "9"),
        ("test_distractors", "3.jpg", "30"),
        ("test_distractors", "5.jpg", "5"),
        ("train", "1.jpg", "1"),
        ("train", "4.jpg", "4"),
        ("train", "4.jpg", "5"),
    ]
    assert report["URLs in several splits"] == 2
    assert report["products in several splits"] == 1
    assert report["dropped for an earlier split"] == {"validation_distractors": 1, "train": 3}
    assert report["dropped as repeated in a split"] == 1
    assert report["URLs of several products (kept)"] == 1
    assert report["distractors with a product's id (kept)"] == 1
    assert report["splits"]["train"] == {"URLs": 3, "products": 3}


def test_resolution_equals_its_naive_twin():
    rng = np.random.default_rng(0)
    n = 2000
    url, product = rng.integers(0, 900, n).astype(np.uint64), rng.integers(1, 500, n).astype(np.uint64)
    rank = rng.integers(0, len(SPLITS), n).astype(np.uint8)
    has_product = rng.random(n) < 0.9
    product[~has_product] = 0
    keep, report = resolve(url, product, rank, has_product)

    seen, expected, dropped = set(), [], Counter()
    for i in range(n):
        rivals = [rank[j] for j in range(n) if url[j] == url[i]]
        if has_product[i] and rank[i] in (0, 2, 4):
            rivals += [
                rank[j] for j in range(n) if has_product[j] and product[j] == product[i] and rank[j] in (0, 2, 4)
            ]
        outranked = min(rivals) < rank[i]
        dropped[SPLITS[rank[i]]] += int(outranked)
        expected.append(not outranked and (url[i], product[i]) not in seen)
        if expected[-1]:
            seen.add((url[i], product[i]))
    assert keep.tolist() == expected
    assert report["dropped for an earlier split"] == {split: count for split, count in dropped.items() if count}
    assert keep.sum() + sum(dropped.values()) + report["dropped as repeated in a split"] == n


def test_lists_are_cut_shuffled_and_always_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(url_lists, "FILE_ROWS", 4)
    meta = write(tmp_path / "meta", train=[simple(f"http://a/{i}.jpg", i) for i in range(10)])
    (tmp_path / "out/urls.writing").mkdir(parents=True)  # of a run that was killed
    (tmp_path / "out/urls.writing/00009.parquet").touch()
    for out in ("out", "again", "out"):
        urls(str(meta), tmp_path / out)
    assert [len(pq.read_table(f)) for f in sorted((tmp_path / "out/urls").iterdir())] == [4, 4, 2]
    assert rows_of(tmp_path / "out/urls") == rows_of(tmp_path / "again/urls")
    first = [row["product_id"] for row in pq.read_table(tmp_path / "out/urls/00000.parquet").to_pylist()]
    assert sorted(first) == list("0123") != first
    assert [p.name for p in (tmp_path / "out").iterdir() if p.name.endswith(".writing")] == []


def test_the_hub_is_asked_for_what_is_no_folder(tmp_path, monkeypatch):
    meta = write(tmp_path / "snapshot", data__train__x=[simple("http://a/1.jpg", 1)])
    asked = []

    def snapshot_download(*args, **kwargs):
        asked.append((args, kwargs))
        return str(meta)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    urls("Slep/LAION-RVS-Fashion", tmp_path / "out")
    assert asked == [(("Slep/LAION-RVS-Fashion",), {"repo_type": "dataset", "allow_patterns": ["*.parquet"]})]
    assert len(rows_of(tmp_path / "out/urls")) == 1

    def offline(*args, **kwargs):
        raise RuntimeError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(OSError, match="some/where is not a folder.*no network"):
        urls("some/where", tmp_path / "out")


def test_refusals_name_the_file_and_the_remedy(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty holds no"):
        urls(str(tmp_path / "empty"), tmp_path / "out")
    other = write(tmp_path / "other", x=[{"url": "http://a/1.jpg", "SPLIT": "train"}])
    with pytest.raises(ValueError, match=r"x.parquet lacks the column\(s\) URL; it has url, SPLIT"):
        urls(str(other), tmp_path / "out")
    (other / "x.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(OSError, match="x.parquet is not a readable Parquet file.*Fetch it again"):
        urls(str(other), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [pa.binary(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())])
def test_text_of_any_type_is_read(tmp_path, kind):
    table = pa.table({name: pa.array([cell]).cast(kind) for name, cell in simple("http://a/1.jpg", "p").items()})
    write_table(tmp_path / "meta.parquet", table)
    urls(str(tmp_path), tmp_path / "out")
    (row,) = rows_of(tmp_path / "out/urls")
    assert row | {"captions": None} == dict(
        zip(URL_SCHEMA.names, ("http://a/1.jpg", "p", "SIMPLE", "train", "Bags", None, 0), strict=True)
    )


def test_ids_and_categories_that_lose_something_are_counted(tmp_path):
    floats = [12.0, 2.0**53, 1.5]
    rows = [simple(f"http://a/{i}.jpg", name) for i, name in enumerate(floats)]
    texts = [simple(f"http://a/{name}.jpg", name, blip2_caption1="\x1b[2J") for name in ("NULL", "7")]
    odd = [{**simple("http://a/c.jpg", "c"), "CATEGORY": 3}]
    report = urls(str(write(tmp_path / "meta", a=rows, b=texts, c=odd)), tmp_path / "out")
    assert [reason.partition(" is ")[0] for reason in report["skipped"]] == [
        *("PRODUCT_ID", "PRODUCT_ID", "PRODUCT_ID", "text, not its image: a text with a control character; remove it")
    ]
    found = {row["product_id"]: row["category"] for row in rows_of(tmp_path / "out/urls")}
    assert found == {"12": "Bags", "7": "Bags", "c": "3"}


def test_metadata_behind_links_is_found(tmp_path):
    write(tmp_path / "disk", a=[simple("http://a/1.jpg", 1)])
    (tmp_path / "meta [1]").mkdir()
    (tmp_path / "meta [1]/link").symlink_to(tmp_path / "disk")
    (tmp_path / "meta [1]/._a.parquet").write_bytes(b"attributes")
    assert urls(str(tmp_path / "meta [1]"), tmp_path / "out")["rows"] == 1
    (tmp_path / "meta [1]/gone.parquet").symlink_to("nowhere")
    with pytest.raises(OSError, match="gone.parquet: link that leads nowhere; repair or remove it"):
        urls(str(tmp_path / "meta [1]"), tmp_path / "out")
