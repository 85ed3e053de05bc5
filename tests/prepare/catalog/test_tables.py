"""Tables and folders that would lose rows, cells or files in silence: each is read, refused or counted."""

import os
import uuid

import pyarrow as pa
import pytest
from made import jpeg, write_csv, write_file, write_shop, write_table
from shops import same_parquet, shards_of

from lrvsf.data.foreign.picture_files import read_file
from lrvsf.data.foreign.tables import CsvTable
from lrvsf.data.images import MAX_IMAGE_BYTES
from lrvsf.prepare.catalog.listing import read_listing
from lrvsf.prepare.catalog.write_catalog import catalog

HEAD = "product_id,image,role,category,text\n"


def listed(table):
    return read_listing(table, "*scene*")


def ids(listing):
    return [entry.product_id for entry in listing.entries]


def parquet(path, **columns):
    write_table(path, columns)
    return listed(path)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("hint", [False, True])
def test_a_csv_of_any_separator_is_read(tmp_path, separator, hint):
    rows = ['p,1;5,a.jpg,product,Bags,"two\nlines"', "q,2;5,b.jpg,scene,,"]
    head = "product_id,price,image,role,category,text"
    text = "\n".join([head, *rows]).replace(",", "\0").replace(";", ",").replace("\0", separator) + "\n"
    if separator == ",":
        text = text.replace("1,5", "1.5").replace("2,5", "2.5")
    (tmp_path / "t.csv").write_text("\ufeff" + f"sep={separator}\n" * hint + text)
    listing = listed(tmp_path / "t.csv")
    assert [(e.product_id, e.type, e.category, e.captions) for e in listing.entries] == [
        ("p", "SIMPLE", "Bags", ("two\nlines",)),
        ("q", "COMPLEX", None, ()),
    ]
    assert listing.unused == ["price"] and [e.where for e in listing.entries] == [
        f"line {3 + hint} (a.jpg)",
        f"line {4 + hint} (b.jpg)",
    ]


@pytest.mark.survives("a quote in a table never closes", "refused with its line; no row is swallowed")
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('p,a.jpg,product,Bags,"open\nq,b.jpg,product,Bags,\n', "from line 2 on: unexpected end of data"),
        ('p,a.jpg,product,Bags,"open\nq,b.jpg,product,Bags,"closed"\n', "from line 2 on: ',' expected after"),
        ('p,a.jpg,product,Bags,"open\nq,b.jpg,product,Bags,\nr,c.jpg,scene,,6"\n', "up to line 4: a quoted cell holds"),
        ('p,a.jpg,product,"Bags,x\nq,b.jpg,Scene,Bags,x\nr,c.jpg,scene,6",x\n', "up to line 4: a quoted cell holds"),
    ],
)
def test_a_quote_that_never_closes(tmp_path, rows, message):
    (tmp_path / "t.csv").write_text(HEAD + rows)
    with pytest.raises(ValueError, match=message):
        listed(tmp_path / "t.csv")


def test_quotes_that_are_meant(tmp_path):
    (tmp_path / "t.csv").write_text(
        HEAD + 'p,a.jpg,product,Bags,"5"" wide,\nscene, p,q,scenery"\n\nq,b.jpg,scene,,5" wide\n'
    )
    assert [entry.captions for entry in listed(tmp_path / "t.csv").entries] == [
        ('5" wide,\nscene, p,q,scenery',),
        ('5" wide',),
    ]


@pytest.mark.survives("a table has a column twice, or one whose name is nearly right", "refused; no cell is lost")
def test_heads(tmp_path):
    for head, message in (
        ("product_id,image,role,category,category", "has the column category twice"),
        ("product_id,image,role,Category", "has a column 'Category'; write its name as category"),
        ("product_id, image,role", "has a column ' image'; write its name as image"),
        ("product_id,image,role_,x", r"lacks the column\(s\) role; it has .*Did you mean 'role_'\?"),
        ("", "lacks the column.s. product_id, image, role; it has none"),
    ):
        (tmp_path / "t.csv").write_text(head + "\n")
        with pytest.raises(ValueError, match=message):
            listed(tmp_path / "t.csv")
    columns = ["product_id", "image", "role", "image"]
    table = pa.table([pa.array(["a"])] * 4, names=columns)
    write_table(tmp_path / "t.parquet", table)
    with pytest.raises(ValueError, match="has the column image twice"):
        listed(tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text("product_id,image,role,,\np,a.jpg,product,,\n")
    assert ids(listed(tmp_path / "t.csv")) == ["p"]


def test_columns_of_any_type(tmp_path):
    data = jpeg(1)
    paths = ["a.jpg", "b.jpg"]
    same = {"product_id": ["1", "2"], "role": ["product", "scene"]}
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())):
        found = parquet(tmp_path / "t.parquet", image=pa.array(paths).cast(kind), **same)
        assert [entry.path for entry in found.entries] == [str(tmp_path / path) for path in paths]
    for kind in (pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(len(data))):
        found = parquet(tmp_path / "t.parquet", image=pa.array([data, data], kind), **same)
        assert list(found.images()) == [data, data]
    coded = pa.array([data, data]).dictionary_encode()
    assert list(parquet(tmp_path / "t.parquet", image=coded, **same).images()) == [data, data]
    for image, message in (([1, 2], "image is int64"), ([{"data": data}] * 2, "image is struct<data: binary>")):
        with pytest.raises(ValueError, match=message):
            parquet(tmp_path / "t.parquet", image=image, **same)


@pytest.mark.parametrize(
    ("cells", "expected", "reason"),
    [
        (pa.array([b"1", b"\xff"]), ["1"], "product_id is bytes that are not UTF-8"),
        (pa.array(["1", "nan"]).cast(pa.string_view()), ["1"], "product_id is a word for nothing"),
        (pa.array([1.0, 2.0**53]), ["1"], "product_id is a float of 2^53 or more"),
        (pa.array([1.0, 2.0**24], pa.float32()), ["1"], "product_id is a float of 2^24 or more"),
        (pa.array(["1", "2.38e+16"]).dictionary_encode(), ["1"], "product_id is a number that was shortened"),
        (pa.array([2**64 - 1, None], pa.uint64()), [str(2**64 - 1)], "no product_id"),
        (pa.array([True, None]), [], "product_id is true or false"),
        (pa.array([[1], None]), [], "product_id is a list"),
        (pa.array([uuid.UUID(int=1).bytes, None], pa.uuid()), [str(uuid.UUID(int=1))], "no product_id"),
    ],
)
@pytest.mark.survives("ids that a column's type has rounded, or that are no text", "skipped, counted; never joined")
def test_ids_of_any_type(tmp_path, cells, expected, reason):
    found = parquet(tmp_path / "t.parquet", product_id=cells, image=["a", "b"], role=["product", "product"])
    assert ids(found) == expected
    assert any(name.startswith(reason) for name in found.skips.counts) and found.listed == 2


def test_cells_that_are_no_text(tmp_path):
    same = {"product_id": ["p"] * 2, "image": ["a", "b"], "role": [b"product", b"scene"]}
    found = parquet(tmp_path / "t.parquet", category=[b"Bags", None], text=[{"en": "x"}, None], **same)
    assert [(entry.category, entry.captions) for entry in found.entries] == [("Bags", ()), (None, ())]
    assert found.skips.counts == {"text, not its image: a dict in place of a text; save the column as text": 1}
    for cell in (["Bags"], "\x1b[2J", "NULL", True):
        found = parquet(tmp_path / "t.parquet", category=[cell, None], **same)
        assert len(found.entries) == 1 and next(iter(found.skips.counts)).startswith("category is ")
        assert "\x1b" not in str(found.skips.report("not used"))


@pytest.mark.survives(
    "names that a reader takes for one: blanks, case, accents, invisible characters", "refused, with both"
)
def test_names_that_look_alike(tmp_path):
    rows = [("p", "a", "product", "Lower Body", ""), ("p", "b", "scene", "", "")]
    for other, shown in (
        ("Lower\u00a0Body", r"Lower\xa0Body"),
        ("lower  body", "lower  body"),
        ("Lower\u200b Body", "200b"),
    ):
        table = write_csv(tmp_path / "t.csv", [*rows, ("q", "c", "product", other, ""), rows[0]])
        with pytest.raises(ValueError, match="1 category names in several ways") as error:
            listed(table)
        assert shown in str(error.value) and "'Lower Body' (2 images)" in str(error.value)
    assert len(listed(write_csv(tmp_path / "t.csv", [*rows, ("q", "c", "product", " Lower Body ", "")])).entries) == 3
    table = write_csv(
        tmp_path / "t.csv", [("Caf\u00e9", "a", "product"), ("Cafe\u0301", "b", "scene")], HEAD.split(",")[:3]
    )
    with pytest.raises(ValueError, match="1 product_id names in several ways"):
        listed(table)
    assert (
        len(
            listed(
                write_csv(tmp_path / "t.csv", [("Ab", "a", "product"), ("aB", "b", "scene")], HEAD.split(",")[:3])
            ).entries
        )
        == 2
    )


@pytest.mark.survives("a folder has links, loops, names that are not UTF-8, or cannot be read", "followed, or counted")
def test_no_file_of_a_folder_vanishes(tmp_path, monkeypatch):
    root = tmp_path / "shop [spring]*"
    for number, name in enumerate(["Bags/1/a.jpg", "Bags/1/scene?.jpg", "Bags/2/a.mpo"]):
        write_file(root / name, jpeg(number))
    write_file(tmp_path / "disk/3/a.jpg", jpeg(7))
    (root / "Linked").symlink_to(tmp_path / "disk")
    (root / "Bags/2/link.jpg").symlink_to(tmp_path / "disk/3/a.jpg")
    (root / "Bags/2/gone.jpg").symlink_to(tmp_path / "nowhere")
    (root / "Bags/loop").symlink_to(root)
    (root / "Bags/self.jpg").symlink_to("self.jpg")
    os.mkfifo(root / "Bags/1/pipe.jpg")
    write_file(root / "Bags/1/._a.jpg", b"attributes")
    broken = os.fsdecode(b"Gr\x81n")
    write_file(root / "Bags" / broken / "a.jpg", jpeg(8))
    write_file(root / "Closed/1/a.jpg", jpeg(9))
    listdir = os.listdir

    def refuses(folder):
        if str(folder).endswith("Closed"):
            raise PermissionError
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", refuses)  # root may read everything
    listing = listed(root)
    assert [entry.where for entry in listing.entries] == [
        *("Bags/1/a.jpg", "Bags/1/scene?.jpg", "Bags/2/a.mpo", "Bags/2/link.jpg", "Linked/3/a.jpg")
    ]
    names = listing.skips.report("not used")["not used, the first"]
    assert names == {
        "link that leads nowhere": "Bags/2/gone.jpg; Bags/self.jpg",
        "neither file nor folder": "Bags/1/pipe.jpg",
        "companion file of macOS, without content": "Bags/1/._a.jpg",
        "folder's name is a name that is not UTF-8; rename it": r"Bags/Gr\udc81n/a.jpg",
        "link to a folder that it is in": "Bags/loop",
        "folder that cannot be read": "Closed",
    }
    assert listing.listed == len(listing.entries) + 7
    report = catalog(root, tmp_path / "out", validation=0, test=0, processes=1)
    assert shards_of(tmp_path / "out").keys() == {"Bags/1"} and report["products"]["without scene"] == 2


@pytest.mark.survives("a catalog names files elsewhere, of any size, or devices", "counted; not read")
def test_files_that_a_table_may_not_name(tmp_path):
    shop = tmp_path / "shop"
    write_file(shop / "a.jpg", jpeg(0))
    write_file(tmp_path / "shop2/secret.jpg", jpeg(1))
    (shop / "linked").symlink_to(tmp_path / "shop2")
    os.mkfifo(shop / "pipe.jpg")
    with (shop / "big.jpg").open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)

    def outcome(name):
        try:
            return read_file(os.path.join(shop, name), shop)
        except ValueError as error:
            return str(error)

    outside = "path out of the folder of images; name that folder with --images"
    assert outcome("a.jpg") == outcome("linked/../a.jpg") == outcome("../shop/a.jpg") == jpeg(0)
    assert outcome("linked/secret.jpg") == jpeg(1)
    for name in ("../shop2/secret.jpg", str(tmp_path / "shop2/secret.jpg"), "/dev/zero", "/proc/self/environ"):
        assert outcome(name) == outside
    assert outcome("pipe.jpg") == "no file, but a folder or device"
    assert outcome("big.jpg") == "file over 64 MiB" and outcome("x.jpg") == "missing file"


def test_paths_may_start_from_another_folder(tmp_path):
    table = write_shop(tmp_path / "shop")
    catalog(table, tmp_path / "one", processes=1)
    (tmp_path / "elsewhere").mkdir()
    moved = table.rename(tmp_path / "elsewhere/t.csv")
    with pytest.raises(ValueError, match="missing file"):
        catalog(moved, tmp_path / "two", processes=1)
    catalog(moved, tmp_path / "two", images=tmp_path / "shop", processes=1)
    assert same_parquet(tmp_path / "one", tmp_path / "two")
    with pytest.raises(ValueError, match="--images goes with a table only"):
        catalog(tmp_path / "shop", tmp_path / "three", images=tmp_path)


def test_the_separator_is_the_one_of_the_head(tmp_path):
    (tmp_path / "t.csv").write_text("product_id;image;role;a,b,c,d,e,f\n")
    assert CsvTable(tmp_path / "t.csv", ("product_id", "image", "role")).separator == ";"


def test_a_list_of_categories_is_no_category(tmp_path):
    rows = [("p", "a", "product", name, "") for name in ("Bags", "Head", "Bags, Head", "Men, women")]
    with pytest.raises(ValueError, match="1 categories that are lists of others, such as 'Bags, Head' .1 images."):
        listed(write_csv(tmp_path / "t.csv", rows))


def test_a_table_of_tabs_is_read_under_its_own_name(tmp_path):
    for number in range(2):
        write_file(tmp_path / f"{number}.jpg", jpeg(number))
    (tmp_path / "t.TSV").write_text("product_id\timage\trole\np\t0.jpg\tproduct\np\t1.jpg\tscene\n")
    catalog(tmp_path / "t.TSV", tmp_path / "out", validation=0, test=0, processes=1)
    assert shards_of(tmp_path / "out").keys() == {"p"}
