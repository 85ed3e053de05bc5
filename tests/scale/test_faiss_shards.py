"""An index in shards is the index that was built in one go: the same bytes, hits and scores."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest
import torch
from examples import ROOT, examples, replaced, run_script
from safetensors.torch import save_file
from waiting import killed_at

from lrvsf.scale import faiss_shards
from lrvsf.scale.faiss_shards import IndexShards, build_in_shards, grow_in_shards
from lrvsf.search import index as module
from lrvsf.search.index import VectorIndex
from lrvsf.search.vectors import Selection, Vectors

COUNT, DIM = 4000, 32
MERGED = ["IVF40,RaBitQ", "IVF40,SQ8", "IVF40,PQ8x4", "OPQ8_32,IVF40,SQfp16", "SQ8", "RaBitQ"]


@pytest.fixture(scope="module")
def segments(tmp_path_factory):
    """Rows in three files of two segments, of sizes that no block divides."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((80, DIM))[rng.integers(80, size=COUNT)] + 0.6 * rng.standard_normal((COUNT, DIM))
    rows = torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).half()
    folder = tmp_path_factory.mktemp("segments")
    places = {"a/item-00000": (0, 1000), "a/item-00001": (1000, 1777), "b/item-00000": (1777, COUNT)}
    for place, (start, stop) in places.items():
        (folder / place).parent.mkdir(exist_ok=True)
        save_file({"embeds": rows[start:stop].clone()}, folder / f"{place}.safetensors")
    return [folder / "a", folder / "b"]


@pytest.fixture
def queries(segments):
    rows = np.random.default_rng(1).integers(COUNT, size=30)
    return Vectors.open(segments).take(rows)


@pytest.fixture(autouse=True)
def small_catalogs(monkeypatch):
    """As if 4,000 rows were many, added in blocks of 150; by one thread, as others may wait for the cores."""
    monkeypatch.setattr(module, "LEAST_TRAINED", 2000)
    monkeypatch.setattr(module, "EXACT_ROWS", 20)
    for place in (module, faiss_shards):
        monkeypatch.setattr(place, "ADDED", 150)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(threads)


@pytest.fixture
def begun(segments, tmp_path):
    """begun(factory): trained shards of some 700 rows, which nobody has filled."""
    return lambda factory: IndexShards.begin(tmp_path / "shards", segments, factory, 0, 700)


@pytest.mark.parametrize("factory", MERGED)
def test_shards_merged_or_asked_together_are_one_index(segments, queries, begun, tmp_path, factory):
    whole, shards = VectorIndex.build(Vectors.open(segments), factory), begun(factory)
    assert len(shards.missing()) == 6
    for number in reversed(shards.missing()):  # in any order
        shards.fill(number)
    merged, together = shards.merged(), shards.together()
    allowed = Selection(np.random.default_rng(2).random(COUNT) < 0.3)
    for selection in (None, allowed):
        scores, rows = whole.search(queries, 10, selection)
        for other in (merged, together):
            found = other.search(queries, 10, selection)
            assert (found[0] == scores).all() and (found[1] == rows).all()
    for name, one in (("whole", whole), ("merged", merged)):
        (tmp_path / name).mkdir()
        one.save(tmp_path / name)
    for file in ("index.faiss", "index.json"):
        assert (tmp_path / "merged" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    again = VectorIndex.load(tmp_path / "merged", Vectors.open(segments))
    assert (again.search(queries, 10)[1] == whole.search(queries, 10)[1]).all()


@pytest.mark.parametrize("factory", MERGED)
def test_an_index_grows_in_shards_as_in_one_go(segments, tmp_path, monkeypatch, factory):
    """By the rows of the second segment, in three shards."""
    monkeypatch.setattr(faiss_shards, "SHARD_ROWS", 700)
    whole, grown = (VectorIndex.build(Vectors.open(segments[:1]), factory) for _ in range(2))
    whole.add(Vectors.open(segments), 1777)
    grow_in_shards(tmp_path / "shards", grown, segments)
    assert len(list((tmp_path / "shards").glob("shard-*"))) == 3 and len(grown.vectors) == COUNT
    assert (faiss.serialize_index(grown.index) == faiss.serialize_index(whole.index)).all()


def test_what_cannot_be_merged_is_refused_before_it_is_trained(segments, tmp_path, monkeypatch):
    monkeypatch.setattr(faiss_shards, "train", lambda *_: pytest.fail("it was trained"))
    for factory in ("HNSW16", "HNSW16,SQ8", "PCA16,HNSW16", "NSG16", "IVF40,PQ16x4fs", "PQ16x4fs", "IVF40,RaBitQfs"):
        with pytest.raises(ValueError, match=f"factory={factory} cannot be made in shards: graphs and"):
            build_in_shards(tmp_path / "shards", segments, factory)
    assert not (tmp_path / "shards").exists()


def test_several_fill_at_once_and_the_exact_search_needs_none(segments, queries, tmp_path, monkeypatch):
    monkeypatch.setattr(faiss_shards, "SHARD_ROWS", 700)
    with ThreadPoolExecutor(3) as pool:

        def each(fill, numbers):
            return pool.map(pickle.loads(pickle.dumps(fill)), numbers)  # as it travels to other processes

        built = build_in_shards(tmp_path / "shards", segments, "IVF40,SQ8", each=each)
        assert (
            built.search(queries, 10)[1] == VectorIndex.build(built.vectors, "IVF40,SQ8").search(queries, 10)[1]
        ).all()
        exact = build_in_shards(tmp_path / "none", segments, each=each)
    assert exact.about() == {"factory": "Flat", "items": COUNT} and not (tmp_path / "none").exists()


@pytest.mark.survives("an index in shards is killed while one is filled", "whole ones stay; it is not trained again")
def test_a_killed_fill_costs_one_shard(segments, begun, monkeypatch):
    shards = begun("IVF40,RaBitQ")
    with killed_at(faiss, "write_index", 3):
        list(map(shards.fill, shards.missing()))
    monkeypatch.setattr(faiss_shards, "train", lambda *_: pytest.fail("it was trained again"))
    shards = begun("IVF40,RaBitQ")
    assert shards.missing() == [2, 3, 4, 5]
    with pytest.raises(ValueError, match="shards lacks 4 shards, such as shard-00002.faiss: fill them"):
        shards.merged()
    list(map(shards.fill, shards.missing()))
    assert shards.merged().index.ntotal == COUNT


def test_shards_of_something_else_and_damaged_ones_are_refused(segments, begun, tmp_path):
    shards = begun("IVF40,SQ8")
    with pytest.raises(ValueError, match=r"has shards of another index \(factory\)\. Remove it"):
        begun("IVF30,SQ8")
    with pytest.raises(ValueError, match=r"another index \(segments, items, starts\)"):
        IndexShards.begin(tmp_path / "shards", segments[1:], "IVF40,SQ8", 0, 700)
    list(map(shards.fill, shards.missing()))
    paths = sorted((tmp_path / "shards").glob("shard-*"))
    paths[1].write_bytes(paths[0].read_bytes())
    with pytest.raises(ValueError, match="shard-00001.faiss has 750 rows, not 700. Remove it: it is then filled again"):
        shards.together()
    paths[1].write_bytes(paths[0].read_bytes()[:1000])
    with pytest.raises(ValueError, match="shard-00001.faiss is damaged"):
        shards.merged()
    paths[1].unlink()
    assert shards.missing() == [1]


def test_the_example_of_the_docs_is_a_script(segments, tmp_path, monkeypatch):
    """Started as a file, as its processes read it again."""
    (script,) = examples("docs/scale.md", "The index in shards", 1)
    script = replaced(script, {"IVF4000": "IVF20"})  # of 2,223 rows
    (tmp_path / "catalog/segments").mkdir(parents=True)
    (tmp_path / "catalog/segments/s-1a2b3c4d5e6f").symlink_to(segments[1])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    told = run_script(script + "    print(index.about())\n", tmp_path, ROOT)
    assert told == f"{ {'factory': 'IVF20,RaBitQ', 'items': COUNT - 1777} }\n"
    assert (tmp_path / "shards/shard-00000.faiss").is_file()
