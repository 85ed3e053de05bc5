"""An index that processes of Ray fill: the bytes of one process, also when one of them or the command is killed."""

import os
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import faiss
import pytest
from made import squares, tiny_condvit, write_table
from waiting import killed_at

pytest.importorskip("ray")

import search_catalog
from lrvsf.scale import faiss_shards
from lrvsf.scale.cluster import Pool
from lrvsf.scale.faiss_shards import IndexShards, build_in_shards
from lrvsf.scale.ray_index import build_on_ray, fill_on_ray
from lrvsf.search.build_catalog import index_images
from lrvsf.search.commands import HowToEmbed, IndexKind
from lrvsf.search.index import VectorIndex
from lrvsf.search.vectors import Vectors

COUNT, MORE = 60, 20


@pytest.fixture
def shop(like_actors, tmp_path, monkeypatch):
    """A tiny model, and pictures in a table, of which 20 come later; an index has shards of two of the catalog's."""
    monkeypatch.setattr(faiss_shards, "SHARD_ROWS", 16)
    tiny_condvit().save_pretrained(tmp_path / "model")
    for name, rows in (("items", range(COUNT)), ("more", range(COUNT, COUNT + MORE))):
        columns = {"id": [f"x{row}" for row in rows], "image": [squares(row) for row in rows]}
        write_table(tmp_path / f"{name}.parquet", columns)
    return [str(tmp_path / "model"), str(tmp_path / "items.parquet")]


def indexes_of(out):
    """The bytes of the indexes of all generations of a catalog."""
    return {path.relative_to(out): path.read_bytes() for path in out.glob("generations/*/index.*")}


@pytest.mark.parametrize("factory", ["IVF4,RaBitQ", "IVF4,SQ8", "HNSW8", "Flat"])
def test_a_catalog_has_the_index_of_one_process(cluster, shop, tmp_path, monkeypatch, factory):
    """Then it grows. Graphs have no shards, and are built by the command; the exact search needs no index."""
    monkeypatch.chdir(tmp_path)
    flags, filled = ["--factory", factory], []
    monkeypatch.setattr(
        "lrvsf.scale.ray_index.fill_on_ray",
        lambda pool, fill, numbers: filled.extend(numbers) or fill_on_ray(pool, fill, numbers),
    )
    for out, engine in (("one", []), ("many", ["--engine", "ray", "--actors", "2"])):
        search_catalog.main(["index", *shop, out, *flags, *engine])
        search_catalog.main(["add", "more.parquet", out, *engine])
    assert len(indexes_of(Path("one"))) == (2 if factory == "Flat" else 4)
    assert indexes_of(Path("one")) == indexes_of(Path("many"))
    assert filled == ([0, 1, 2, 3, 0, 1] if "IVF" in factory else [])
    assert not list(Path("many/building").iterdir())


@dataclass(frozen=True)
class KilledOnce(IndexShards):
    """Kills its process before it writes the second shard, where a file says so."""

    def _path(self, number):
        kill = self.folder / "kill"
        if number == 1 and kill.exists():
            kill.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._path(number)


@pytest.fixture
def segment(shop, tmp_path):
    """The embeddings of a catalog of the shop."""
    index_images(*shop, None, None, tmp_path / "out", None, IndexKind("Flat", None, 0), False, HowToEmbed())
    (folder,) = (tmp_path / "out/segments").iterdir()
    return folder


@pytest.mark.survives("a process of a cluster that dies while it fills an index", "another fills its shard; same bytes")
def test_a_killed_process(cluster, segment, tmp_path):
    shards = KilledOnce.begin(tmp_path / "shards", [segment], "IVF4,SQ8", 0, 16)
    missing = shards.missing()
    (shards.folder / "kill").touch()
    assert sorted(fill_on_ray(Pool(2, 1, 0), shards.fill, missing)) == [12, 16, 16, 16]
    assert not (shards.folder / "kill").exists()
    whole = VectorIndex.build(Vectors.open([segment]), "IVF4,SQ8")
    merged, built = (faiss.serialize_index(one.index).tobytes() for one in (shards.merged(), whole))
    assert merged == built


@pytest.mark.survives("the command that fills the index is killed", "the next fills missing shards, trains nothing")
def test_a_killed_command(shop, tmp_path, monkeypatch):
    """Without a cluster, whose processes end with the command: shards are filled in this process."""
    kind, out = IndexKind("IVF4,SQ8", None, 0), tmp_path / "out"

    def index(each):
        how = HowToEmbed(build=lambda *given: build_in_shards(*given[:-1], each, given[-1]))
        index_images(*shop, None, None, out, None, kind, False, how)

    with killed_at(faiss_shards, "add_rows", 3):
        index(map)
    monkeypatch.setattr(faiss_shards, "train", lambda *_: pytest.fail("it was trained again"))
    filled = []
    index(lambda fill, numbers: filled.extend(numbers) or map(fill, numbers))
    assert filled == [2, 3] and not list((out / "building").iterdir())
    monkeypatch.undo()
    index_images(*shop, None, None, tmp_path / "one", None, kind, False, HowToEmbed())
    assert indexes_of(out) == indexes_of(tmp_path / "one")


def test_a_damaged_file_is_named(cluster, segment, tmp_path):
    build = partial(build_on_ray, Pool(1, 1, 0), tmp_path / "shards", [segment], "IVF4,SQ8", None, 0, None)
    build()
    shards = sorted((tmp_path / "shards").glob("shard-*"))
    shards[1].unlink()
    (tmp_path / "shards/trained.faiss").write_bytes(b"no index")
    with pytest.raises(RuntimeError, match=r"the index could not be filled: .*trained\.faiss is damaged"):
        build()
