import logging
import os

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import plain, product, row_image, tar_of, tar_product, write_file, write_layout, write_shards, write_table

from lrvsf.data.images import Tolerance, TooMuchDamage
from lrvsf.data.products import ProductShards, product_files
from lrvsf.data.stream import ProductBatches
from lrvsf.training.source import training_folder, validation_set


@pytest.mark.survives(
    "products without SIMPLE image, scene or known category", "left out, counted, named before the first step"
)
def test_products_that_give_no_pair_are_named_before_training(tmp_path, caplog):
    lonely = product("lonely")
    lonely["images"].pop()
    bare = product("bare")
    bare["images"].pop(0)
    rows = [product("a"), product("b"), lonely, bare, product("odd", category="Hovercraft")]
    with caplog.at_level(logging.WARNING):
        shards = ProductShards.scan(write_shards(tmp_path / "t", rows, 2), ["Bags"], tolerance=Tolerance(0.2))
    assert shards.usable == 2 and shards.faulty == {
        "lonely": "no scene image",
        "bare": "no SIMPLE image",
        "odd": "no SIMPLE image of a known category",
    }
    assert "lonely" in caplog.text and "3 of 5" in caplog.text
    assert ProductShards.scan(tmp_path / "t").usable == 3, "without a condition the category does not matter"
    assert shards.rows.tolist() == [0, 3], "in the order of the files: a, lonely, odd, then b, bare"
    names = [row["product_id"] for group in range(2) for _, row in shards.read(group)]
    assert names == ["a", "lonely", "odd", "b", "bare"]


def test_unusable_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no \\*.parquet"):
        ProductShards.scan(tmp_path / "nothing")
    write_shards(tmp_path / "twice", [product("same"), product("same")], 2)
    with pytest.raises(ValueError, match="'same' is in"):
        ProductShards.scan(tmp_path / "twice")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "x.parquet").write_text("not parquet")
    with pytest.raises(TooMuchDamage, match="1 of 1 shards cannot be read; write.*\n.*x.parquet: "):
        ProductShards.scan(tmp_path / "text")
    write_table(tmp_path / "other/x.parquet", {"url": ["u"]})
    with pytest.raises(ValueError, match=r"lacks product_id, .*it has the columns url"):
        ProductShards.scan(tmp_path / "other")


def test_a_large_share_of_faulty_products_is_refused(tmp_path):
    rows = [product(f"p{i:03d}", category="Bags" if i % 2 else "Boats") for i in range(220)]
    folder = write_shards(tmp_path / "t", rows)
    with pytest.raises(TooMuchDamage, match=r"110 of 220 products.*: 'Boats' \(110\)\.\n.*0\.01.*_fraction 0\.5\."):
        ProductShards.scan(folder, ["Bags"])
    assert ProductShards.scan(folder, ["Bags"], tolerance=Tolerance(0.5)).usable == 110
    for row in rows[:110]:
        del row["images"][1]
    with pytest.raises(TooMuchDamage, match="110 of 220 products.*\n +110  no scene image\n.*0.01"):
        ProductShards.scan(write_shards(tmp_path / "s", rows), ["Bags", "Boats"])


def test_pictures_that_are_never_a_target_are_counted(tmp_path, caplog):
    """Of a product that is trained on by another picture: no product is lost, and so no share of products."""
    rows = [product(f"p{i}") for i in range(9)]
    for row, names in zip(rows, (["bags", None], ["bags"]), strict=False):
        row["images"] += [row_image(plain("red"), "SIMPLE", name) for name in names]
    assert ProductShards.scan(write_shards(tmp_path / "t", rows), ["Bags", "BAGS"]).usable == 9
    assert (
        "3 SIMPLE images of products to train on are left out, as their category was not asked for: 'bags' "
        "(2), none (1)."
    ) in caplog.messages
    assert "'BAGS' and 'Bags' look alike and are two categories." in caplog.messages


@pytest.mark.survives("a category of products that the run does not ask for", "named, counted; refused from 1 % on")
@pytest.mark.parametrize("category", ["lamps", "Lamp", "rugs"])
def test_products_of_a_category_that_was_not_asked_for_are_refused_however_few(tmp_path, category, caplog):
    """Two of a hundred: judged, where two damaged products would not be."""
    rows = [product(f"p{i:03d}", category=category if i < 2 else "chairs") for i in range(100)]
    folder = write_shards(tmp_path / "t", rows)
    hint = "" if category == "rugs" else f" '{category}': Did you mean 'lamp'?"
    text = f"2 of 100 products in {folder} are of categories that were not asked for: '{category}' (2).{hint}"
    with pytest.raises(TooMuchDamage) as caught:
        ProductShards.scan(folder, ["chairs", "lamp"])
    assert str(caught.value) == (
        f"{text}\nThat is more than max_bad_fraction=0.01. Ask for all with --categories chairs {category}, or leave "
        "these products out with --max_bad_fraction 0.02."
    )
    near = "" if category == "rugs" else f" Did you mean '{category}'?"
    assert f"No product in {folder} is of category 'lamp'.{near}" in caplog.messages
    caplog.clear()
    assert ProductShards.scan(folder, ["chairs", "lamp"], tolerance=Tolerance(0.02)).usable == 98
    assert f"{text} They are left out." in caplog.messages
    caplog.clear()
    assert ProductShards.scan(folder, ["chairs", category]).usable == 100 and not caplog.messages


def test_products_without_a_category_are_not_of_an_unknown_one(tmp_path):
    rows = [product("odd", category=None), product("a"), product("mixed", category=None)]
    rows[0]["images"][1]["category"] = "Boats"  # a scene's does not count
    rows[2]["images"].append(row_image(plain("red"), "SIMPLE", "Bags"))
    folder = write_shards(tmp_path / "t", rows, 1)
    shards = ProductShards.scan(folder, ["Bags"])
    assert shards.faulty == {"odd": "no SIMPLE image that has a category"} and shards.rows.tolist() == [1, 2]
    write_shards(folder, rows[:1], 1)
    with pytest.raises(TooMuchDamage, match=r"no SIMPLE image that has a category\n.*\(--condition none\), or raise"):
        ProductShards.scan(folder, ["Bags"])


@pytest.mark.survives("a shard without its footer", "named; left out where that is tolerated, else refused")
@pytest.mark.parametrize("tolerated", [True, False])
def test_a_shard_cut_short(tmp_path, tolerated, caplog):
    folder = write_shards(tmp_path / "t", [product(f"p{i}") for i in range(8)], 4)
    cut = folder / "2.parquet"
    cut.write_bytes(cut.read_bytes()[:-10])
    if tolerated:
        shards = ProductShards.scan(folder, tolerance=Tolerance(0.3))
        assert shards.usable == 6 and "Skipped the whole of" in caplog.text and "2.parquet" in caplog.text
        names = [row["product_id"] for group in range(3) for _, row in shards.read(group)]
        assert names == ["p0", "p4", "p1", "p5", "p3", "p7"]
    else:
        with pytest.raises(TooMuchDamage, match="1 of 4 shards"):
            ProductShards.scan(folder)


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_shard_that_is_gone_after_the_scan(tmp_path, kind, caplog):
    names = [f"p{i}" for i in range(8)]
    if kind == "parquet":
        folder = write_shards(tmp_path / "t", [product(name) for name in names], 2)
    else:
        folder = write_tars(tmp_path / "t", names)
    shards = ProductShards.scan(folder)
    (folder / f"1.{kind}").unlink()
    batches = list(ProductBatches(shards, 2, seed=0))
    there = {row["product_id"] for _, batch, _ in batches for row in batch if row["images"]}
    assert len(batches) == 4 and there == {"p0", "p2", "p4", "p6"} and "Lost 4 products" in caplog.text


def test_shards_behind_a_url(tmp_path):
    write_shards(tmp_path / "t", [product(f"p{i}") for i in range(10)], 2)
    store = fsspec.filesystem("memory")
    store.put(f"{tmp_path}/t/*.parquet", "/bucket/train/")
    near, far = ProductShards.scan(tmp_path / "t"), ProductShards.scan("memory://bucket/train")
    assert (
        len(far.row_groups) == 4
        and far.row_groups[1].startswith("memory://")
        and far.rows.tolist() == near.rows.tolist()
    )
    assert [list(far.read(group)) for group in range(4)] == [list(near.read(group)) for group in range(4)]


def write_tars(folder, names, files=2):
    images = (("SIMPLE", plain("white")), ("COMPLEX", plain("red")))
    for index in range(files):
        members = [member for name in names[index::files] for member in tar_product(name, *images)]
        write_file(folder / f"{index}.tar", tar_of(members))
    return folder


def test_published_tars_are_read_as_they_are(tmp_path):
    folder = write_tars(tmp_path / "TRAIN", [f"p{i}" for i in range(7)])
    whole = (folder / "1.tar").read_bytes()
    (folder / "1.tar").write_bytes(whole[: 512 * 9])  # cut in the second of its three products
    shards = ProductShards.scan(training_folder(str(tmp_path)), ["Bags"])
    assert shards.usable == 5 and shards.starts.tolist() == [0, 4, 5] and shards.row_groups[1].endswith("1.tar, part 0")
    for _ in range(2):
        rows = [row for group in range(2) for _, row in shards.read(group)]
        assert [row["product_id"] for row in rows] == ["p0", "p2", "p4", "p6", "p1"]
    assert rows[0]["images"][1]["type"] == "COMPLEX" and rows[0]["images"][1]["image"]["bytes"] == plain("red")
    batches = ProductBatches(shards, 2, seed=0)
    assert len({row["product_id"] for _, batch, _ in batches for row in batch}) == 4


def test_a_data_folder_behind_a_url(tmp_path):
    write_shards(tmp_path / "d/train", [product("p")], 1)
    write_layout(tmp_path / "d/validation", {}, {"jpg": [b"d", b"e"]})
    store = fsspec.filesystem("memory")
    store.put(f"{tmp_path}/d/", "/far/", recursive=True)
    assert training_folder("memory://far") == "memory://far/train"
    for _ in range(2):
        far = validation_set("memory://far", tmp_path / "cache")
        assert (far.n_products, far.n_distractors, far.categories()) == (1, 2, ["Bags"])
        if store.isdir("/far/validation"):
            store.rm("/far/validation", recursive=True)  # the copy is enough
    with pytest.raises(ValueError, match="cache/validation is a copy from memory://far, not from memory://else"):
        validation_set("memory://else", tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match="memory://near has no train/ folder; write one with prepare_lrvsf.py"):
        training_folder("memory://near")


@pytest.mark.survives("names of folders and shards with [ ] * ? in them, files of macOS", "read as they are called")
def test_names_are_no_patterns(tmp_path):
    root = write_shards(tmp_path / "data [spring]*?" / "train", [product(f"p{i}") for i in range(12)])
    for old, new in (("0", "part[0]"), ("1", "a*b"), ("2", "aab")):
        (root / f"{old}.parquet").rename(root / f"{new}.parquet")
    (root / "._aab.parquet").write_bytes(b"attributes")
    assert training_folder(str(root.parent)) == str(root)
    shards = ProductShards.scan(str(root))
    names = [row["product_id"] for group in range(len(shards.row_groups)) for _, row in shards.read(group)]
    assert names == [f"p{i}" for first in (1, 2, 0) for i in range(first, 12, 3)] and shards.usable == 12


def test_a_name_that_would_be_two_is_refused(tmp_path):
    write_shards(tmp_path / "a::b/train", [product("p")], files=1)
    for asked in (training_folder, product_files):
        with pytest.raises(ValueError, match="a::b has '::' in its name, which is read as two places; rename it"):
            asked(str(tmp_path / "a::b"))
    (tmp_path / "a::b").rename(tmp_path / "c")
    (tmp_path / "c/train/0.parquet").rename(tmp_path / "c/train/0::1.parquet")
    with pytest.raises(ValueError, match="0::1.parquet has '::' in its name"):
        product_files(str(tmp_path / "c/train"))


def test_shards_of_other_types_are_refused(tmp_path):
    write_shards(tmp_path / "train", [product("p"), product("q")], files=1)
    table = pq.read_table(tmp_path / "train/0.parquet")
    write_table(tmp_path / "train/0.parquet", table.set_column(0, "product_id", pa.array([1, 2])))
    with pytest.raises(ValueError, match=r"0.parquet has INT64 \(NONE\) in product_id, where text must be"):
        ProductShards.scan(str(tmp_path / "train"))


@pytest.mark.survives("a file of the name that a tar gives an image lies where training runs", "not opened")
def test_an_image_of_a_tar_is_not_taken_from_the_disk(tmp_path, monkeypatch):
    members = tar_product("p", ("SIMPLE", plain("red")), ("COMPLEX", plain("blue")))
    write_file(tmp_path / "train/0.tar", tar_of(members[::-1]))  # the JSON first
    (tmp_path / "p.0.jpg").write_bytes(b"another file")
    monkeypatch.chdir(tmp_path)
    ((_, row),) = ProductShards.scan(str(tmp_path / "train")).read(0)
    assert [image["image"]["bytes"] for image in row["images"]] == [plain("red"), plain("blue")]


@pytest.mark.survives("a pipe or device among the files of a data folder", "refused; nothing waits for it")
def test_a_pipe_is_not_waited_for(tmp_path):
    write_shards(tmp_path / "train", [product("p")], files=1)
    os.mkfifo(tmp_path / "train/1.parquet")
    with pytest.raises(OSError, match="1.parquet is neither file nor folder; remove it"):
        product_files(str(tmp_path / "train"))
