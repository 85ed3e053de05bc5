"""Product tars: what comes out, and what is counted when they are cut, damaged or odd."""

import bz2
import gzip
import io
import json
import logging
import lzma
import random
import tarfile
import tracemalloc
import zlib
from collections import Counter

import pytest

from lrvsf.data import tars
from lrvsf.data.bounds import tar_members
from lrvsf.data.schema import PRODUCT_FEATURES
from lrvsf.data.tars import open_tar, read_distractors, read_products


def described(kind="SIMPLE", category="Bags", **further):
    return {"URL": "http://x", "TYPE": kind, "CATEGORY": category, "SPLIT": "train", **further}


def members_of(name, content=b"image", kinds=("SIMPLE", "COMPLEX")):
    """[(path, bytes)] of a whole product: its images, then its JSON."""
    images = [(f"{name}.{i}.jpg", content + b"%d of %s" % (i, name.encode())) for i in range(len(kinds))]
    metadata = {str(i): described(kind, "Bags" if kind == "SIMPLE" else None) for i, kind in enumerate(kinds)}
    return [*images, (f"{name}.json", json.dumps(metadata).encode())]


def tar_of(members, mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for path, data in members:
            info = tarfile.TarInfo(path)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def read(data, reader=read_products):
    """(rows, counts)"""
    skipped = Counter()
    return list(reader(io.BytesIO(data), skipped)), dict(skipped)


def ids(rows):
    return [row["product_id"] for row in rows]


class Pipe(io.RawIOBase):
    def __init__(self, data):
        self.inner = io.BytesIO(data)

    def readable(self):
        return True

    def read(self, size=-1):
        return self.inner.read(size)


THREE = [part for name in ("a", "b", "c") for part in members_of(name)]


def test_a_product_becomes_a_row():
    metadata = {
        "0": described("COMPLEX", float("nan"), blip2_caption1="worn"),
        "1": described(blip2_caption10="ten", blip2_caption2="two", blip2_caption1=" one ", blip2_caption3=None),
        "10": described("PARTIAL_COMPLEX", None),
    }
    tar = tar_of([("7.10.jpg", b"C"), ("7.1.PNG", b"B"), ("7.json", json.dumps(metadata).encode()), ("7.0.jpg", b"A")])
    rows, skipped = read(tar)
    assert skipped == {}
    assert rows == [
        {
            "product_id": "7",
            "images": [
                {
                    "image": {"bytes": data, "path": path},
                    "type": kind,
                    "category": category,
                    "captions": captions,
                }
                for data, path, kind, category, captions in [
                    (b"A", "7.0.jpg", "COMPLEX", None, ["worn"]),
                    (b"B", "7.1.jpg", "SIMPLE", "Bags", ["one", "two", "ten"]),
                    (b"C", "7.10.jpg", "PARTIAL_COMPLEX", None, []),
                ]
            ],
        }
    ]
    PRODUCT_FEATURES.encode_example(rows[0])


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_path_url_and_open_file_give_the_same(tmp_path, mode):
    data = tar_of(THREE, mode)
    path = tmp_path / "0.tar"
    path.write_bytes(data)
    expected, _ = read(data)
    for source in (path, str(path), f"file://{path}"):
        skipped = Counter()
        assert list(read_products(source, skipped)) == expected and not skipped
    file = io.BytesIO(data)
    with open_tar(file) as opened:
        assert opened is file
    list(read_products(file, Counter()))
    assert not file.closed
    with pytest.raises(FileNotFoundError):
        list(read_products(tmp_path / "none.tar", Counter()))


def test_a_pipe_that_cannot_seek():
    assert ids(read_products(Pipe(tar_of(THREE)), Counter())) == ["a", "b", "c"]


@pytest.mark.survives("a tar cut anywhere", "what came before is used")
def test_wherever_a_tar_is_cut_what_came_before_is_used():
    # a header and a block of content each: a.0, a.1, a.json, b.0, ... begin at multiples of 1024
    data = tar_of(THREE)
    whole, _ = read(data)
    for end in range(0, 9 * 1024 + 1, 128):
        rows, skipped = read(data[:end])
        # JSON begins at 2048 and is 512 + 180 or so bytes: two blocks; its product is whole when it is
        assert skipped[tars.DAMAGED] == 1, end
        assert rows == whole[: len(rows)]
        complete = [name for name, last in (("a", 3), ("b", 6), ("c", 9)) if end >= last * 1024]
        assert ids(rows)[: len(complete)] == complete and len(rows) <= len(complete) + 1
        if end in (2048, 2048 + 512, 5 * 1024):  # images are there, their JSON is not
            assert skipped[tars.NO_JSON] == 1
    assert read(data[: 9 * 1024 + 512]) == (whole, {})  # one empty block is an end


def test_after_damaged_blocks_the_next_whole_member_is_found():
    data = bytearray(tar_of(THREE))
    data[3 * 1024 : 3 * 1024 + 512] = b"?" * 512  # the header of b.0.jpg
    rows, skipped = read(bytes(data))
    assert ids(rows) == ["a", "b", "c"] and len(rows[1]["images"]) == 1
    assert skipped == {tars.NOT_IN_TAR: 1, tars.DAMAGED: 1}


def test_tars_that_were_put_behind_one_another_are_read_to_the_end():
    data = tar_of(members_of("a")) + tar_of(members_of("b"))
    rows, skipped = read(data)
    assert ids(rows) == ["a", "b"] and skipped == {}


@pytest.mark.parametrize(
    "data", [b"", b"<html>404</html>" * 100, b"\x1f\x8b\x08" + b"\0" * 50, tar_of(THREE, "w:gz")[:150]]
)
def test_what_is_no_tar_is_counted(data):
    rows, skipped = read(data)
    assert rows == [] and skipped[tars.DAMAGED] == 1


def test_an_empty_tar_is_whole():
    assert read(tar_of([])) == ([], {})


@pytest.mark.survives("a product in a tar without JSON, or JSON without an image's key", "skipped, counted by reason")
def test_faults_of_products_and_images():
    wrong = {
        "0": described(),
        "1": described("SKETCH"),
        "2": described(),
        "3": "text",
        "5": described("COMPLEX"),
        "source": {"TYPE": "SIMPLE"},
    }
    members = [
        ("nojson.0.jpg", b"x"),
        ("broken.0.jpg", b"x"),
        ("broken.json", b'{"0": '),
        ("list.0.jpg", b"x"),
        ("list.json", b"[1]"),
        ("deep.0.jpg", b"x"),
        ("deep.json", b"[" * 100_000),
        *[(f"some.{i}.jpg", b"" if i == 2 else b"x") for i in range(5)],
        ("some.json", json.dumps(wrong).encode()),
        ("alone.json", b"{}"),
    ]
    rows, skipped = read(tar_of(members))
    assert [(row["product_id"], [i["image"]["path"] for i in row["images"]]) for row in rows] == [
        ("some", ["some.0.jpg"])
    ]
    assert skipped == {
        tars.NO_JSON: 1,
        tars.BAD_JSON: 3,
        tars.NO_TYPE: 1,
        tars.EMPTY: 1,
        tars.NOT_IN_JSON: 2,  # 3, which is a text, and 4
        tars.NOT_IN_TAR: 1,  # 5
        tars.NO_IMAGES: 1,
    }


def test_odd_members_are_counted_and_not_read(monkeypatch):
    monkeypatch.setattr(tars, "MAX_MEMBER_BYTES", 1000)
    buffer = io.BytesIO(tar_of([*members_of("a"), ("notes.txt", b"x"), ("._a.0.jpg", b"x"), ("a.7.jpg", b"x" * 1001)]))
    with tarfile.open(fileobj=buffer, mode="a") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo("b.0.jpg" if kind == tarfile.SYMTYPE else "folder")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("a.0.jpg")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"other"))
    rows, skipped = read(buffer.getvalue())
    assert rows == read(tar_of(members_of("a")))[0]  # of two members of one name the first stays
    assert skipped == {tars.ODD: 3, tars.TOO_LARGE: 1, tars.TWICE: 1}


def test_members_may_be_apart_by_fewer_than_spread_products(monkeypatch):
    monkeypatch.setattr(tars, "SPREAD", 2)
    first, second, text = members_of("a")
    near = [first, *members_of("b"), second, text, *members_of("c")]
    rows, skipped = read(tar_of(near))
    assert ids(rows) == ["a", "b", "c"] and len(rows[0]["images"]) == 2 and skipped == {}
    # With c begun, a is finished: what comes of it afterwards is on its own.
    far = [first, text, *members_of("b"), *members_of("c"), second]
    rows, skipped = read(tar_of(far))
    assert ids(rows) == ["a", "b", "c"] and len(rows[0]["images"]) == 1
    assert skipped == {tars.NOT_IN_TAR: 1, tars.NO_JSON: 1}


def test_folders_keep_products_apart_and_a_leading_dot_does_not():
    first, second, text = members_of("a")
    assert len(read(tar_of([(f"./{first[0]}", first[1]), second, text]))[0][0]["images"]) == 2
    rows, _ = read(tar_of([(f"{folder}/{path}", data) for folder in "xy" for path, data in members_of("a")]))
    assert ids(rows) == ["a", "a"]


@pytest.mark.survives("names in a tar that are not UTF-8, or stand for nothing", "skipped, counted; never joined")
def test_names_that_lose_something_are_counted():
    metadata = {"0": described(category="Ba\ud800gs"), "1": described(category=7.0), "2": described(category=[1])}
    fine = [("p.json", json.dumps(metadata).encode()), *((f"p.{i}.jpg", b"x") for i in range(3))]
    names = ("caf\udce9", "caf\udce8", "nan", "p\x1b[2J")
    bad = [(f"{name}.{end}", json.dumps({"0": described()}).encode()) for name in names for end in ("json", "0.jpg")]
    rows, lost = read(tar_of([*fine, *bad]))
    assert [(row["product_id"], [image["category"] for image in row["images"]]) for row in rows] == [("p", ["7"])]
    assert {reason.partition(";")[0]: count for reason, count in lost.items()} == {
        "images whose CATEGORY is a name that is not UTF-8": 1,
        "images whose CATEGORY is a list in place of a text": 1,
        "products whose name is a name that is not UTF-8": 2,
        "products whose name is a word for nothing (nan, None, NULL)": 1,
        "products whose name is a control character": 1,
    }


def test_no_more_than_held_bytes_wait_for_their_products(monkeypatch):
    monkeypatch.setattr(tars, "HELD_BYTES", 1000)
    monkeypatch.setattr(tars, "MEMBER_OVERHEAD", 0)
    first, second, text = members_of("a")
    between = ("b.0.jpg", b"x" * 990)
    rows, skipped = read(tar_of([first, text, between, second]))
    assert ids(rows) == ["a"] and len(rows[0]["images"]) == 1
    assert skipped == {tars.NOT_IN_TAR: 1, tars.NO_JSON: 2}  # b, and a's second image


@pytest.mark.parametrize("products, size, limit", [(400, 20_000, 16 * 40_000 + 1_000_000), (2000, 1, 1_000_000)])
def test_memory_does_not_grow_with_the_tar(tmp_path, products, size, limit):
    path = tmp_path / "large.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(products):
            for name, data in members_of(str(number), b"x" * size):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            tar.members.clear()
    tracemalloc.start()
    found = sum(1 for _ in read_products(path, Counter()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == products and peak < limit  # SPREAD products and buffers; not the 16 MB, nor 6,000 headers


def test_distractors():
    members = [
        ("1.jpg", b"one"),
        ("1.json", json.dumps(described(blip2_caption1="a bag") | {"PRODUCT_ID": 12.0}).encode()),
        ("2.jpg", b"two"),
        ("3.json", b"{}"),
        ("4.jpg", b"four"),
        ("4.json", b"{"),
        ("5.jpg", b""),
        ("6.0.jpg", b"six"),
    ]
    unknown = {"PRODUCT_ID": None, "TYPE": None, "CATEGORY": None, "blip2_caption1": None}
    rows, skipped = read(tar_of(members), read_distractors)
    assert rows == [
        {"PRODUCT_ID": "12", "TYPE": "SIMPLE", "CATEGORY": "Bags", "blip2_caption1": "a bag", "jpg": b"one"},
        unknown | {"jpg": b"two"},
        unknown | {"jpg": b"four"},
    ]
    assert skipped == {tars.NO_IMAGES: 2, tars.BAD_JSON: 1, tars.EMPTY: 1, tars.ODD: 1}


def test_the_log_names_the_first_tenth_and_hundredth(caplog):
    with caplog.at_level(logging.WARNING):
        read(tar_of([(f"p{i}.0.jpg", b"x") for i in range(120)]))
    named = [record.getMessage().split(":")[0] for record in caplog.records]
    assert named == ["Skipped p0", "Skipped p9", "Skipped p99"]


def header_of(path="h.0.jpg", size=0, kind=tarfile.REGTYPE, **fields):
    """512 bytes; a size of eight gigabytes or more, or a negative one, is written in base 256."""
    info = tarfile.TarInfo(path)
    info.size, info.type = size, kind
    for name, value in fields.items():
        setattr(info, name, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def member(path, content, kind=tarfile.REGTYPE):
    return header_of(path, len(content), kind) + content + bytes(-len(content) % 512)


def pax(*records, kind=tarfile.XHDTYPE):
    body = b""
    for key, value in records:
        line = b" " + key + b"=" + value + b"\n"
        length = len(line) + 1
        while len(str(length)) + len(line) != length:
            length = len(str(length)) + len(line)
        body += str(length).encode() + line
    return member("pax", body, kind)


def with_sum(block):
    """A header whose bytes were changed, with the right checksum."""
    block = bytearray(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def sparse_10(lines):
    """A file of pax 1.0, whose map stands before its content."""
    body = str(lines).encode() + b"\n" + b"0\n" * 2 * lines
    fields = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"60000000")]
    return pax(*fields) + member("h.0.jpg", body)


def sparse_old(extended):
    """A sparse file of GNU's old format, whose map goes on in blocks of its own."""
    first = bytearray(header_of(size=512, kind=tarfile.GNUTYPE_SPARSE))
    first[483:495] = b"00444444444\0"  # a real size of 600 MB
    first[482] = bool(extended)
    blocks = [bytes(504) + bytes([i < extended - 1]) + bytes(7) for i in range(extended)]
    return with_sum(first) + b"".join(blocks) + bytes(512)


WHOLE = tar_of(THREE)
LONG_BODY = b"n" * (tars.MAX_HEADER_BYTES + 1)
HOSTILE = {
    "a size of 1 TiB": (header_of(size=2**40), {tars.DAMAGED: 1}),
    "a size of 8 EiB": (header_of(size=2**63), {tars.DAMAGED: 1}),
    "a size of 2**90 behind the end": (header_of(size=2**90 // 2**8), {tars.DAMAGED: 1}),
    "one byte more than is left": (header_of(size=len(WHOLE) + 1), {tars.DAMAGED: 1}),
    "a link of 1 TiB": (header_of(size=2**40, kind=tarfile.SYMTYPE), {tars.ODD: 1}),
    "an unknown kind of 1 TiB": (header_of(size=2**40, kind=b"Z"), {tars.DAMAGED: 1}),
    "a volume's header": (member("h.0.jpg", b"x", b"V"), {tars.ODD: 1}),
    "a negative size": (header_of(size=-1), {tars.DAMAGED: 1}),
    "a very negative size": (header_of(size=-(2**80)), {tars.DAMAGED: 1}),
    "a pax size of 10**30": (pax((b"size", b"1" + b"0" * 30)) + header_of(), {tars.DAMAGED: 1}),
    "a pax size of 1 TiB": (pax((b"size", b"%d" % 2**40)) + header_of(), {tars.DAMAGED: 1}),
    "a negative pax size": (pax((b"size", b"-512")) + header_of(), {tars.DAMAGED: 1}),
    "a pax size that is no number": (pax((b"size", b"1e3")) + header_of(), {tars.DAMAGED: 1}),
    "a global size": (pax((b"size", b"512"), kind=tarfile.XGLTYPE), {tars.DAMAGED: 1}),
    "a global comment": (pax((b"comment", b"made by git"), kind=tarfile.XGLTYPE) * 10_000, {}),
    "10,000 long names": (member("l", b"n" * 200, b"L") * 10_000 + header_of(), {tars.UNREADABLE: 1}),
    "10,000 pax headers": (pax((b"path", b"n")) * 10_000 + header_of(), {tars.UNREADABLE: 1}),
    "a long name over the bound": (member("l", LONG_BODY, b"L") + header_of(), {tars.UNREADABLE: 1}),
    "a long link over the bound": (member("l", LONG_BODY, b"K") + header_of(), {tars.UNREADABLE: 1}),
    "pax records over the bound": (member("p", LONG_BODY, b"x") + header_of(), {tars.UNREADABLE: 1}),
    "a long name of 1 TiB": (header_of(size=2**40, kind=b"L"), {tars.DAMAGED: 1}),
    "a name of 5,000 letters": (member("l", b"n" * 5000 + b".0.jpg", b"L") + header_of(), {tars.UNREADABLE: 1}),
    "pax records that do not end": (member("p", b"99 path=x\n", b"x") + header_of(), {tars.UNREADABLE: 1}),
    "pax records of length 0": (member("p", b"0 path=x\n", b"x") + header_of(), {tars.UNREADABLE: 1}),
    "pax records without a length": (member("p", b"path=x\n", b"x") + header_of(), {tars.UNREADABLE: 1}),
    "a long name before nothing": (member("l", b"n", b"L") + bytes(512), {tars.DAMAGED: 1}),
    "a sparse file": (sparse_old(0), {tars.ODD: 1}),
    "a sparse file with 1,000 blocks of map": (sparse_old(1000), {tars.ODD: 1}),
    "a sparse file of pax 1.0": (sparse_10(100_000), {tars.ODD: 1}),
    "a sparse file of pax 0.0": (pax((b"GNU.sparse.numblocks", b"-1")) + member("h.0.jpg", b"x"), {tars.ODD: 1}),
    "a wrong checksum": (header_of()[:-1] + b"x", {tars.DAMAGED: 1}),
    "a checksum that is no number": (header_of()[:148] + b"\xff" * 8 + header_of()[156:], {tars.DAMAGED: 1}),
    "a size that is no number": (with_sum(header_of()[:124] + b"z" * 12 + header_of()[136:]), {tars.DAMAGED: 1}),
    "bytes that are no header": (b"?" * 5000 + bytes(120), {tars.DAMAGED: 1}),
    "long JSON": (member("h.json", b"[" + b"{}," * 400_000 + b"0]"), {tars.LONG_JSON: 1}),
}


@pytest.mark.survives(
    "a tar whose headers lie: sizes beyond the end or negative, chains of headers, sparse files",
    "that member is lost and counted, the others are read",
)
@pytest.mark.parametrize("fault", HOSTILE)
@pytest.mark.parametrize("pipe", [False, True])
def test_a_lying_header_costs_its_member_only(fault, pipe):
    lie, counts = HOSTILE[fault]
    data = lie + WHOLE
    if pipe and fault == "one byte more than is left":
        return  # nobody knows how much is left of a pipe: then that member takes what comes
    tracemalloc.start()
    skipped = Counter()
    rows = list(read_products(Pipe(data) if pipe else io.BytesIO(data), skipped))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ids(rows) == ["a", "b", "c"] and all(len(row["images"]) == 2 for row in rows)
    assert dict(skipped) == counts and peak < 4 * 2**20


def test_what_a_member_claimed_of_a_pipe_is_looked_through():
    data = WHOLE[:1024] + header_of("b.7.jpg", size=len(WHOLE)) + WHOLE[1024:]
    skipped = Counter()
    rows = list(read_products(Pipe(data), skipped))
    assert ids(rows) == ["a", "b", "c"] and all(len(row["images"]) == 2 for row in rows)
    assert skipped == {tars.DAMAGED: 1}


@pytest.mark.survives("a compressed tar that is cut, or unfolds to gigabytes", "what came before is used; counted")
@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_tars(mode):
    rng = random.Random(0)
    members = [part for name in "abcdefgh" for part in members_of(name, rng.randbytes(5000))]
    data = tar_of(members, mode)
    expected = read(tar_of(members))
    assert read(data) == expected and len(expected[0]) == 8
    rows, skipped = read(data[: len(data) // 2])
    assert skipped[tars.DAMAGED] == 1 and rows == expected[0][: len(rows)]
    assert len(rows) > 2 or mode == "w:bz2", "bzip2 gives blocks of 900 kB"


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_tar_of_several_streams(compress):
    """As parallel compressors write them; padding and other bytes behind the last lose nothing."""
    parts = [compress(WHOLE[start : start + 3000]) for start in range(0, len(WHOLE), 3000)]
    for data in (b"".join(parts), compress(WHOLE) + bytes(8)) + (
        (bytes(4).join(parts), lzma.compress(WHOLE) + b"more") if compress is lzma.compress else ()
    ):
        rows, skipped = read(data)
        assert ids(rows) == ["a", "b", "c"] and not skipped
    rows, skipped = read(b"".join(parts)[:-40])
    assert len(rows) < 4 and skipped[tars.DAMAGED] == 1


def test_a_compressed_tar_that_unfolds_for_ever(monkeypatch):
    monkeypatch.setattr(tar_members, "RATIO_FROM", 2**20)
    squeezed = zlib.compressobj(wbits=31)
    data = squeezed.compress(WHOLE) + squeezed.compress(bytes(2**25)) + squeezed.flush()
    rows, skipped = read(data)
    assert ids(rows) == ["a", "b", "c"] and skipped == {tars.DAMAGED: 1}


def test_a_file_that_fails_is_no_damage():
    class Failing(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > 2000:
                raise TimeoutError("the network is gone")
            return super().read(min(size, 1000))

    for data in (WHOLE, tar_of([("a.0.jpg", random.Random(0).randbytes(9000))], "w:gz")):
        with pytest.raises(TimeoutError):
            list(read_products(Failing(data), Counter()))


def test_a_product_of_very_many_images(monkeypatch):
    monkeypatch.setattr(tars, "MAX_IMAGES", 3)
    rows, skipped = read(tar_of(members_of("a") + members_of("b", kinds=["SIMPLE"] * 4) + members_of("c")))
    assert ids(rows) == ["a", "c"] and skipped == {tars.TOO_MANY: 1}


def test_members_of_no_bytes_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(tars, "HELD_BYTES", 2**18)
    data = b"".join(header_of(f"a.{i}.jpg") for i in range(5000)) + WHOLE
    tracemalloc.start()
    rows, skipped = read(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ids(rows) == ["a", "b", "c"] and peak < 2**20


def test_damage_anywhere_ends_nothing():
    """Whatever bytes change, reading ends, rows are rows, and a product that is not read is counted."""
    rng = random.Random(1)
    hostile = b"".join(lie for lie, _ in list(HOSTILE.values())[:4])
    for plain in (WHOLE, hostile + WHOLE):
        for _ in range(150):
            data = bytearray(plain)
            for _ in range(rng.randint(1, 20)):
                data[rng.randrange(len(data))] = rng.choice([0, 0x80, 0xFF, 0x30, 0x37, rng.randrange(256)])
            for file in (io.BytesIO(data), Pipe(bytes(data))):
                skipped = Counter()
                rows = list(read_products(file, skipped))
                for row in rows:
                    PRODUCT_FEATURES.encode_example(row)
                assert len(rows) >= 3 or skipped, "WHOLE has three products"
