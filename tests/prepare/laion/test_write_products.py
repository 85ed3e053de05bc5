"""Grouping downloads by product: what is kept, in which order, and that every URL is accounted for."""

import hashlib
import json
import random
import resource
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import download_row, jpeg, rows_of, spoil_page, write_download, write_rows, write_shop, write_table
from waiting import killed_at

from lrvsf.durable import InUse
from lrvsf.prepare.catalog.write_catalog import catalog
from lrvsf.prepare.laion import downloaded
from lrvsf.prepare.laion.write_products import products
from lrvsf.prepare.writers import ProductShardWriter


def contents(folder):
    """file name -> bytes, below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def many(tmp_path):
    """40 products of a SIMPLE and two scenes, in three files, shuffled; the folder and the rows."""
    rows = []
    for number in range(40):
        kinds = ("SIMPLE", "COMPLEX", "PARTIAL_COMPLEX")
        rows += [download_row(f"p{number}", kind, jpeg(3 * number + i)) for i, kind in enumerate(kinds)]
    random.Random(0).shuffle(rows)
    folder = tmp_path / "downloaded"
    for number in range(3):
        write_download(folder / f"part{number}/0000{number}.parquet", rows[number::3])
    return folder, rows


def test_order_is_of_seed_and_ids_alone(many, tmp_path, monkeypatch):
    folder, rows = many
    products(folder, tmp_path / "a", processes=1)

    def place(seed):
        return lambda name: hashlib.blake2b(name.encode(), digest_size=8, key=str(seed).encode()).digest()

    names = [row["product_id"] for row in rows_of(tmp_path / "a/train")]
    assert names == sorted({row["product_id"] for row in rows}, key=place(0)) != sorted(names)

    # Other files, other rows in them, another number of partitions and small batches, two processes: the same shards.
    write_download(tmp_path / "other/one.parquet", rows[::-1])
    monkeypatch.setattr(downloaded, "PARTITIONS", 3)
    monkeypatch.setattr(downloaded, "BATCH_ROWS", 2)
    products(tmp_path / "other", tmp_path / "b", processes=2)
    first, second = contents(tmp_path / "a/train"), contents(tmp_path / "b/train")
    assert first.keys() == second.keys() == {"00000.parquet", "manifest.json"}
    assert first["00000.parquet"] == second["00000.parquet"]

    products(folder, tmp_path / "c", seed=1, processes=1)
    assert [row["product_id"] for row in rows_of(tmp_path / "c/train")] == sorted(names, key=place(1)) != names


def test_images_of_a_product_are_its_own(many, tmp_path):
    folder, rows = many
    products(folder, tmp_path / "out", processes=1)
    for product in rows_of(tmp_path / "out/train"):
        own = [row for row in rows if row["product_id"] == product["product_id"]]
        for kind, image in zip(("SIMPLE", "COMPLEX", "PARTIAL_COMPLEX"), product["images"], strict=True):
            (row,) = (row for row in own if row["type"] == kind)
            assert (image["type"], image["category"], image["captions"]) == (kind, row["category"], row["captions"])
            assert image["image"]["bytes"] == row["jpg"]


def test_counts_by_hand(tmp_path):
    row, good = download_row, jpeg
    twice = jpeg(7)
    rows = [
        # a: complete; one scene is there under two URLs, another is cut short, a third is a web page
        row("a", "SIMPLE", good(0)),
        row("a", "COMPLEX", twice, url="u1"),
        row("a", "COMPLEX", twice, url="u2"),
        row("a", "COMPLEX", good(2)[:-20], url="u3"),
        row("a", "COMPLEX", b"<html>gone</html>", url="u4"),
        # b: its SIMPLE image is dead; c: its scene is; d: both
        row("b", "SIMPLE", None, category="Feet"),
        row("b", "COMPLEX", good(3)),
        row("c", "SIMPLE", good(4), category="Feet"),
        row("c", "PARTIAL_COMPLEX", None, status="failed_to_resize"),
        row("d", "SIMPLE", None, category=None),
        row("d", "COMPLEX", None),
        # e: the same image as SIMPLE and as a scene is no pair
        row("e", "SIMPLE", good(5)),
        row("e", "COMPLEX", good(5)),
        # f: dead in this round, there in the next one
        row("f", "SIMPLE", None, url="f1", category="Neck"),
        row("f", "COMPLEX", good(9)),
        # not ours, or not usable
        row("t", "SIMPLE", good(11), split="test"),
        row("t", "SIMPLE", good(12), split=None),
        row(None, "SIMPLE", good(13)),
        row("", "SIMPLE", good(15)),
        row("g", "MODEL", good(14)),
    ]
    write_download(tmp_path / "in/0.parquet", rows)
    write_download(tmp_path / "in/1.parquet", [row("f", "SIMPLE", good(8), url="f1", category="Neck")])
    report = products(tmp_path / "in", tmp_path / "out", processes=1)
    assert report["URLs"] == {"listed": 15, "fetched": 11, "decodable": 9, "kept": 4}
    assert report["images not kept"] == {
        "failed_to_download": 3,
        "failed_to_resize": 1,
        "truncated": 1,
        "not an image": 1,
        "the same image twice in a product": 2,
        "readable, but of an incomplete product": 3,
    }
    assert report["URLs"]["listed"] == report["URLs"]["kept"] + sum(report["images not kept"].values())
    assert report["products"] == {
        "listed": 6,
        "complete": 2,
        "without SIMPLE image": 1,
        "without scene image": 2,
        "without either": 1,
    }
    assert report["categories"] == {
        "Bags": {"complete": 1, "without scene image": 1},
        "Feet": {"without SIMPLE image": 1, "without scene image": 1},
        "Neck": {"complete": 1},
        "without category": {"without either": 1},
    }
    assert report["other splits"] == {"test": 1, "None": 1}
    assert report["unusable"] == {"rows without URL or product id": 2, "rows of unknown type": 1}
    found = {row["product_id"]: [image["type"] for image in row["images"]] for row in rows_of(tmp_path / "out/train")}
    assert found == {"a": ["SIMPLE", "COMPLEX"], "f": ["SIMPLE", "COMPLEX"]}
    assert json.loads((tmp_path / "out/products-train.json").read_text()) == report


def test_products_that_share_a_picture_are_counted(tmp_path):
    """a and b show one photo, under two URLs, one of them downloaded without a digest; c is whole, d is not."""
    rows = [
        download_row(name, kind, jpeg(number), url=f"http://{name}/{kind}", sha256=None if name == "b" else digest)
        for name, pictures in {"a": (0, 1), "b": (0, 2), "c": (3, 4), "d": (3, None)}.items()
        for kind, number in zip(("SIMPLE", "COMPLEX"), pictures, strict=True)
        if number is not None
        for digest in [hashlib.sha256(jpeg(number)).hexdigest()]
    ]
    write_download(tmp_path / "in/0.parquet", rows)
    report = products(tmp_path / "in", tmp_path / "out", processes=1)
    shared = report["products that share a picture"]
    assert (shared["products"], shared["groups"], set(shared["such as"].split(", "))) == (2, 1, {"a", "b"})


def test_damaged_files_are_counted_and_the_rest_is_used(many, tmp_path, caplog):
    folder, _ = many
    whole = folder / "part0/00000.parquet"
    (folder / "unfinished.parquet").write_bytes(whole.read_bytes()[:-50])
    spoil_page(whole, 1)
    report = products(folder, tmp_path / "out", processes=1)
    assert report["unusable"] == {"files without a readable footer": 1, "rows in a damaged row group": 3}
    assert report["URLs"]["listed"] == 117
    assert "unfinished.parquet" in caplog.text and "row group 1" in caplog.text


def test_captions_as_list_or_json_or_text(tmp_path):
    cells = {"SIMPLE": '["a bag", "a red bag"]', "COMPLEX": "a person", "PARTIAL_COMPLEX": None}
    rows = [download_row("a", kind, jpeg(i), captions=cells[kind]) for i, kind in enumerate(cells)]
    write_rows(tmp_path / "in/0.parquet", rows)
    products(tmp_path / "in", tmp_path / "out", processes=1)
    (product,) = rows_of(tmp_path / "out/train")
    assert [image["captions"] for image in product["images"]] == [["a bag", "a red bag"], ["a person"], []]


@pytest.mark.survives("SIGKILL while shards are prepared", "started again, ends with the same bytes")
@pytest.mark.parametrize("moment", ["partitioning", "partitioned", "half-written", "named", "reported"])
def test_a_killed_run_started_again_ends_with_the_same_bytes(many, tmp_path, monkeypatch, moment):
    """Kills are exceptions that no one may clean up after, thrown at each stage."""
    folder, _ = many
    products(folder, tmp_path / "expected", processes=1)
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        killed = _kill_at(patched, moment)
        with pytest.raises(KeyboardInterrupt):
            products(folder, out, processes=1)
        assert killed
    assert (out / "train").exists() == (moment in ("named", "reported"))
    if moment in ("partitioned", "half-written", "named"):  # the first pass is not done again
        monkeypatch.setattr(downloaded._PartitionWriter, "add_files", None)
    products(folder, out, processes=1)
    report = json.loads((out / "products-train.json").read_text())
    assert report.pop("folder") == str(out / "train")
    (out / "products-train.json").unlink()
    expected = json.loads((tmp_path / "expected/products-train.json").read_text())
    assert {"folder": str(tmp_path / "expected/train"), **report} == expected
    (tmp_path / "expected/products-train.json").unlink()
    assert contents(out) == contents(tmp_path / "expected")


def _kill_at(patch, moment):
    killed = []

    def kill(*args, **kwargs):
        killed.append(moment)
        raise KeyboardInterrupt

    # What a SIGKILL leaves behind is what no `finally` may tidy away.
    patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
    if moment == "partitioning":
        patch.setattr(downloaded._PartitionWriter, "finish", kill)
    elif moment == "partitioned":
        patch.setattr(downloaded.Partitions, "products", kill)
    elif moment == "half-written":
        patch.setattr(ProductShardWriter, "finish", kill)
    elif moment == "named":
        patch.setattr("lrvsf.prepare.laion.write_products.read_manifest", kill)
    else:

        def kill_when_reported(path, **_):
            if Path(path).name == "train.partitions" and Path(path).with_name("products-train.json").exists():
                kill()

        patch.setattr(shutil, "rmtree", kill_when_reported)
    return killed


def test_done_is_done_and_other_input_is_refused(many, tmp_path, monkeypatch):
    folder, _ = many
    report = products(folder, tmp_path / "out", processes=1)
    with monkeypatch.context() as patched:
        patched.setattr(downloaded.Partitions, "of", None)
        assert products(folder, tmp_path / "out") == report
    with pytest.raises(ValueError, match=r"out/train holds something made from other input.*remove it"):
        products(folder, tmp_path / "out", seed=1)
    write_download(folder / "later.parquet", [download_row("new", "SIMPLE", jpeg(900))])
    with pytest.raises(ValueError, match="made from other input"):
        products(folder, tmp_path / "out")


def test_refusals(many, tmp_path):
    folder, _ = many
    with pytest.raises(ValueError, match=r"no complete product of the split 'validation'; .*--split(.|\n)*train +120"):
        products(folder, tmp_path / "out", split="validation", processes=1)
    assert not (tmp_path / "out/validation").exists()
    with pytest.raises(FileNotFoundError, match="no .*parquet in .*nowhere; fill it with"):
        products(tmp_path / "nowhere", tmp_path / "out")
    write_table(folder / "urls.parquet", {"URL": ["u"], "jpg": [b""]})
    with pytest.raises(ValueError, match=r"urls.parquet lacks the column\(s\) url, status, product_id, type, split"):
        products(folder, tmp_path / "out2")


def test_names_that_lose_something_are_counted(tmp_path):
    rows = []
    for number, (name, category) in enumerate([("a", "Bags"), (" a", "Bags"), ("nan", "Bags"), ("b", "x\x1b[2J")]):
        kinds = ("SIMPLE",) if name == "a" else ("COMPLEX",) if name == " a" else ("SIMPLE", "COMPLEX")
        rows += [download_row(name, kind, jpeg(9 * number + len(kind)), category=category) for kind in kinds]
    rows[0]["captions"] = ["fine", "\x00"]
    write_download(tmp_path / "in/0.parquet", rows)
    report = products(tmp_path / "in", tmp_path / "out", processes=1)
    assert [row["product_id"] for row in rows_of(tmp_path / "out/train")] == ["a"]
    assert rows_of(tmp_path / "out/train")[0]["images"][0]["captions"] == ["fine"]
    assert {reason.partition(";")[0]: count for reason, count in report["unusable"].items()} == {
        "rows whose product_id is a word for nothing (nan, None, NULL)": 2,
        "rows whose category is a text with a control character": 2,
        "text, not its image: a text with a control character": 1,
    }


def test_ids_of_float_columns(tmp_path):
    rows = [download_row("x", kind, jpeg(i)) for i, kind in enumerate(("SIMPLE", "COMPLEX", "SIMPLE", "COMPLEX"))]
    write_download(tmp_path / "in/0.parquet", rows)
    table = pq.read_table(tmp_path / "in/0.parquet")
    for kind, limit in ((pa.float64(), 2.0**53), (pa.float32(), 2.0**24)):
        ids = pa.array([12.0, 12.0, limit, limit], kind)
        write_table(tmp_path / "in/0.parquet", table.set_column(1, "product_id", ids))
        report = products(tmp_path / "in", tmp_path / str(kind), processes=1)
        assert [row["product_id"] for row in rows_of(tmp_path / str(kind) / "train")] == ["12"]
        assert list(report["unusable"].values()) == [2]


@pytest.mark.survives(
    "partitions of a killed run have lost a file, or the end of one", "made again; no product is lost"
)
@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-8])])
def test_partitions_are_not_believed_by_their_list_alone(many, tmp_path, damage):
    folder, _ = many
    products(folder, tmp_path / "whole", processes=1)
    with killed_at(ProductShardWriter, "finish"):
        products(folder, tmp_path / "out", processes=1)
    damage(next((tmp_path / "out/train.partitions").glob("*.arrow")))
    products(folder, tmp_path / "out", processes=1)
    assert contents(tmp_path / "out/train") == contents(tmp_path / "whole/train")


def test_downloads_of_other_types_are_refused(many, tmp_path):
    folder, _ = many
    file = next(folder.rglob("*.parquet"))
    table = pq.read_table(file)
    images = [{"bytes": image, "path": None} for image in table["jpg"].to_pylist()]
    write_table(file, table.drop_columns("jpg").append_column("jpg", pa.array(images)))
    write_table(folder / "a.parquet", {name: ["a"] for name in table.column_names})
    with pytest.raises(ValueError, match="has text in jpg, where encoded images must be. Give the folder that"):
        products(folder, tmp_path / "out", processes=1)
    (folder / "a.parquet").unlink()
    with pytest.raises(ValueError, match="has something else in jpg, where encoded images must be"):
        products(folder, tmp_path / "out", processes=1)


@pytest.mark.survives("two steps write one data folder at once", "the second is refused and names the first")
def test_two_runs_in_one_folder(tmp_path, locked_elsewhere):
    write_download(
        tmp_path / "in/0.parquet", [download_row("a", "SIMPLE", jpeg(0)), download_row("a", "COMPLEX", jpeg(1))]
    )
    with locked_elsewhere(tmp_path / "out") as other:
        for step, source in ((products, tmp_path / "in"), (catalog, write_shop(tmp_path / "shop"))):
            with pytest.raises(InUse, match=f"is in use by a rehearsal: .*process {other} on "):
                step(source, tmp_path / "out", processes=1)
    assert products(tmp_path / "in", tmp_path / "out", processes=1)["products"]["complete"] == 1


@pytest.mark.survives("few files may be open at once (ulimit -n)", "fewer partitions; the same shards")
def test_few_open_files(tmp_path, monkeypatch):
    kinds = ("SIMPLE", "COMPLEX")
    rows = [download_row(f"p{i // 2}", kinds[i % 2], jpeg(i)) for i in range(200)]
    write_download(tmp_path / "in/0.parquet", rows)
    products(tmp_path / "in", tmp_path / "many", processes=1)
    asked = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (40, 48))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    counts = []
    of = downloaded.Partitions.of
    monkeypatch.setattr(downloaded.Partitions, "of", lambda *args: counts.append(of(*args)) or counts[-1])
    products(tmp_path / "in", tmp_path / "few", processes=1)
    assert asked == [(48, 48)] and len(counts[0].files) == 48 - downloaded.OTHER_FILES
    shards = [pq.read_table(tmp_path / name / "train/00000.parquet") for name in ("many", "few")]
    assert shards[0].equals(shards[1])
