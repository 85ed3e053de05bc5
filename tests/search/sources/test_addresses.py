"""Parquet files behind addresses: the pictures of files on a disk, of which only the parts that are needed are sent."""

import sys

import fsspec
import numpy as np
import pytest
import torch
from made import squares, write_table
from range_server import RangeServer
from safetensors.torch import load_file

import search_catalog
from lrvsf.command import explain, is_refusal
from lrvsf.data import parquet
from lrvsf.data.bounds import remote_file
from lrvsf.data.bounds.remote_file import RemoteFile
from lrvsf.data.folders import Address
from lrvsf.search.sources.kinds import open_source

ROWS = 24


@pytest.fixture
def shop(tmp_path):
    """Two files of a table in shop/, of six row groups, large beside their footers."""
    noise = np.random.default_rng(0).bytes(2**18)
    for name, rows in (("a", range(16)), ("b", range(16, ROWS))):
        pictures = [squares(row) + noise[row:] for row in rows]  # a JPEG, and what a decoder passes over
        columns = {"id": [f"x{row}" for row in rows], "image": pictures, "price": list(rows)}
        write_table(tmp_path / f"shop/{name}.parquet", columns, row_group_size=4)
    return tmp_path / "shop"


@pytest.fixture
def server(shop):
    files = {f"/shop/{path.name}": path.read_bytes() for path in shop.iterdir()}
    listed = "".join(f'<a href="{name}.parquet">{name}</a> <a href="notes.txt">notes</a>' for name in "ba")
    server = RangeServer(files | {"/shop/": listed.encode()})
    yield server
    server.close()


def in_memory(shop):
    store = fsspec.filesystem("memory")
    for path in shop.iterdir():
        store.pipe(f"/bucket/shop/{path.name}", path.read_bytes())
    return "memory://bucket/shop"


@pytest.mark.parametrize("kind", ["http", "memory", "file"])
def test_what_is_listed_and_read_is_what_a_folder_has(shop, server, kind):
    url = {"http": f"{server.url}/shop/", "memory": in_memory(shop), "file": f"file://{shop}"}[kind]
    here, there = open_source(str(shop)), open_source(url)
    assert there.items.equals(here.items) and len(there) == ROWS
    assert list(there.pictures(0, ROWS)) == list(here.pictures(0, ROWS))
    assert list(there.pictures(13, 18)) == list(here.pictures(13, 18))
    again = open_source(url)
    assert again.fingerprint == there.fingerprint


def test_only_what_is_needed_is_sent(server):
    size = len(server.files["/shop/a.parquet"])
    source = open_source(f"{server.url}/shop/a.parquet")
    tails = server.sent("/shop/a.parquet")
    assert 0 < tails < size / 4, "listing reads footers, ids and prices"
    server.asked.clear()
    list(source.pictures(9, 11))
    group = size / 4
    assert group <= server.sent("/shop/a.parquet") < 2.2 * group + 2**16, "the third row group, and the next one ahead"
    server.asked.clear()
    list(source.pictures(0, 16))
    assert server.sent("/shop/a.parquet") < size + 2**17, "no byte of a picture twice"


def test_small_row_groups_are_fetched_together(server, tmp_path):
    write_table(tmp_path / "small.parquet", {"image": [squares(row) for row in range(60)]}, row_group_size=1)
    server.files["/small.parquet"] = (tmp_path / "small.parquet").read_bytes()
    source = open_source(f"{server.url}/small.parquet")
    server.asked.clear()
    assert list(source.pictures(0, 60)) == [squares(row) for row in range(60)]
    assert server.sent("/small.parquet") <= 2 * len(server.files["/small.parquet"]) + 2**16


def test_any_reading_gives_the_file_s_bytes(monkeypatch):
    """Against bytes in memory, at places drawn at random, with ranges kept and not."""
    monkeypatch.setattr(remote_file, "TAIL", 50)
    monkeypatch.setattr(remote_file, "KEPT", 300)
    data, rng = np.random.default_rng(1).bytes(1000), np.random.default_rng(2)
    store = fsspec.filesystem("memory")
    store.pipe("/drawn", data)
    file = RemoteFile(store, "/drawn", "memory://drawn")
    for _ in range(200):
        start, size = rng.integers(0, 1010, size=2)
        if rng.random() < 0.3:
            spans = np.sort(rng.integers(-50, 1200, size=4)).reshape(2, 2)
            file.keep([tuple(map(int, span)) for span in spans])
            assert sum(len(held) for _, held in file._kept) <= 300
        assert file.seek(int(start)) == start
        assert file.read(int(size)) == data[start : start + size]
    file.seek(-7, 2)
    assert file.read() == data[-7:] and file.tell() == 1000 and file.read(1) == b""


def refusal(name):
    with pytest.raises((OSError, ValueError, ImportError)) as error:
        source = open_source(name)
        list(source.pictures(0, len(source)))
    assert is_refusal(error.value) and "\n" not in explain(error.value)
    return explain(error.value)


def test_what_cannot_be_read_is_told_in_a_line(server, tmp_path):
    assert (
        refusal(f"{server.url}/none.parquet") == f"there is nothing at {server.url}/none.parquet; look at the address"
    )
    assert "/private.parquet may not be read (403" in (said := refusal(f"{server.url}/private.parquet"))
    assert said.endswith("give this machine the credentials, where the store's own tools look for them, or an address "
                         "that is signed")  # fmt: skip
    server.files["/page/"] = b"<a href='x.csv'>x</a>"
    assert "has no .parquet file; only such are read from an address" in refusal(f"{server.url}/page/")
    server.files["/torn.parquet"] = b"PAR1 torn"
    assert "torn.parquet is not a readable Parquet file" in refusal(f"{server.url}/torn.parquet")
    assert "is of no store that is known" in refusal("shop://x/y.parquet")
    assert "127.0.0.1:1/a.parquet was not reached (" in refusal("http://127.0.0.1:1/a.parquet")
    server.ranges = False
    assert "the server gives no parts of a file; download it" in refusal(f"{server.url}/shop/a.parquet")


def test_a_store_whose_package_is_not_here(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as if it were not installed
    assert refusal("s3://b/x.parquet") == "s3://b/x.parquet needs a package that is not here: Install s3fs to access S3"


def test_a_connection_that_ends_is_no_damage(server, monkeypatch):
    monkeypatch.setattr(parquet, "AHEAD_BYTES", 0)
    source = open_source(f"{server.url}/shop/a.parquet")
    pictures = source.pictures(0, 16)
    next(pictures)
    server.broken = True
    with pytest.raises(ConnectionError, match="a.parquet was not reached .503.*The same command goes on after what"):
        list(pictures)


def test_no_path_of_a_table_behind_an_address_is_opened(server, tmp_path):
    write_table(tmp_path / "paths.parquet", {"image": ["/etc/hostname", "a.jpg"]})
    cells = [{"bytes": None, "path": "/etc/hostname"}, {"bytes": squares(1), "path": "a.jpg"}]
    write_table(tmp_path / "structs.parquet", {"image": cells})
    for name in ("paths", "structs"):
        server.files[f"/{name}.parquet"] = (tmp_path / f"{name}.parquet").read_bytes()
    assert "has paths in image, which lead nowhere from here; write" in refusal(f"{server.url}/paths.parquet")
    source = open_source(f"{server.url}/structs.parquet")
    assert list(source.pictures(0, 2)) == [None, squares(1)]


def test_a_catalog_of_an_address_is_that_of_the_folder(shop, server, tmp_path, tiny_model):
    tiny_model.save_pretrained(tmp_path / "model")
    for out, images in (("here", str(shop)), ("there", f"{server.url}/shop/")):
        search_catalog.main(["index", str(tmp_path / "model"), images, str(tmp_path / out), "--batch_size", "5"])
    here, there = (sorted((tmp_path / out / "segments").glob("s-*/item-*")) for out in ("here", "there"))
    assert len(here) == len(there) == 1  # they name their source, so the files differ
    assert torch.equal(load_file(here[0])["embeds"], load_file(there[0])["embeds"])
    search_catalog.main(["index", str(tmp_path / "model"), str(tmp_path / "there"), "--switch"])  # it is read again


def test_an_address_has_no_query_in_its_name():
    assert Address("https://x/y/a.parquet?signature=1/2").name == "a.parquet"
