"""Tars that lie about their members: each costs what it lies about, in bounded memory, and the others are read."""

import bz2
import gzip
import io
import lzma
import random
import tarfile
import tracemalloc
import zlib
from collections import Counter

import pytest
from made import tar_of, tar_product

from lrvsf.data import tars
from lrvsf.data.bounds import tar_members
from lrvsf.data.schema import PRODUCT_FEATURES
from lrvsf.data.tars import read_products


def read(data):
    """(rows, counts)"""
    skipped = Counter()
    return list(read_products(io.BytesIO(data), skipped)), dict(skipped)


def ids(rows):
    return [row["product_id"] for row in rows]


class Pipe(io.RawIOBase):
    def __init__(self, data):
        self.inner = io.BytesIO(data)

    def readable(self):
        return True

    def read(self, size=-1):
        return self.inner.read(size)


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


WHOLE = tar_of(member for name in "abc" for member in tar_product(name))
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
    products = {name: [(kind, rng.randbytes(5000)) for kind in ("SIMPLE", "COMPLEX")] for name in "abcdefgh"}
    members = [member for name, images in products.items() for member in tar_product(name, *images)]
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
