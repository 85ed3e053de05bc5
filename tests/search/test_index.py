"""Kinds of index: each finds what an exact search finds, filtered too, and faiss's traps are stepped around."""

from types import SimpleNamespace

import faiss
import numpy as np
import pytest
import torch

from lrvsf.search import index as module
from lrvsf.search.index import VectorIndex, default_factory
from lrvsf.search.vectors import Selection, Vectors

COUNT, DIM = 4000, 32
KINDS = [
    "Flat",
    "SQ8",
    "IVF40,SQ8",
    "IVF40,SQfp16",
    "IVF40,RaBitQ",
    "RaBitQ4",
    "IVF40,PQ16x4fs",
    "HNSW16",
    "HNSW16,SQ8",
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """faiss's threads wait for each other where several suites share two cores."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((80, DIM))[rng.integers(80, size=COUNT)] + 0.6 * rng.standard_normal((COUNT, DIM))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return Vectors([torch.from_numpy(piece).half() for piece in np.array_split(rows, [1000, 1001, 3000])])


@pytest.fixture(scope="module")
def queries(vectors):
    rng = np.random.default_rng(1)
    rows = vectors.take(rng.integers(COUNT, size=40)) + 0.1 * rng.standard_normal((40, DIM), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def small_catalogs(monkeypatch):
    """As if 4,000 rows were many."""
    monkeypatch.setattr(module, "FLAT_ITEMS", 1000)
    monkeypatch.setattr(module, "EXACT_ROWS", 20)
    monkeypatch.setattr(module, "LEAST_TRAINED", 2000)


def selections(vectors):
    """Random ones and ones that are correlated with the vectors, of several sizes."""
    side = vectors.take(np.arange(COUNT)) @ vectors.take(np.array([7]))[0]
    for share in (0.01, 0.1, 0.5):
        yield Selection(np.random.default_rng(2).random(COUNT) < share)
        yield Selection(side >= np.quantile(side, 1 - share))  # near the rows of some queries
        yield Selection(side <= np.quantile(side, share))  # far from them


def selector(allowed):
    """What faiss takes for a filter."""
    return faiss.IDSelectorBitmap(np.packbits(allowed.mask, bitorder="little"))


def recall(rows, truth):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(rows, truth, strict=True)])


@pytest.mark.parametrize("factory", KINDS)
def test_a_kind_finds_what_is_there_filtered_or_not(vectors, queries, factory):
    index = VectorIndex.build(vectors, factory)
    scores, rows = index.search(queries, 10)
    exact_scores, truth = vectors.best(torch.from_numpy(queries), 10)
    assert recall(rows, truth) >= (1 if factory == "Flat" else 0.95)
    assert (np.diff(scores, axis=1) <= 0).all()
    # The scores are those of the stored rows, not of faiss's codes.
    expected = np.einsum("qd,qkd->qk", queries, vectors.take(rows.ravel()).reshape(40, 10, DIM))
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    for allowed in selections(vectors):
        scores, rows = index.search(queries, 10, allowed)
        assert (rows >= 0).all() and allowed.mask[rows].all()
        truth = vectors.best(torch.from_numpy(queries), 10, allowed)[1]
        assert recall(rows, truth) >= 0.95, (factory, allowed.count)


@pytest.mark.parametrize("factory", [kind for kind in KINDS if kind != "Flat"])
@pytest.mark.parametrize("dropped", [3, 30, 300, 2000, 3500])
def test_a_filter_that_drops_what_lies_nearest_leaves_the_best_of_the_rest(vectors, queries, factory, dropped):
    """What comes back first is then far from the best, and says nothing of it."""
    index = VectorIndex.build(vectors, factory)
    recalls = []
    for query in queries[:10]:
        scores = vectors.take(np.arange(COUNT)) @ query
        allowed = Selection(scores <= np.sort(scores)[-dropped])
        truth = vectors.best(torch.from_numpy(query[None]), 10, allowed)[1]
        recalls.append(recall(index.search(query[None], 10, allowed)[1], truth))
    assert np.mean(recalls) >= 0.95, recalls


def test_queries_of_one_batch_look_each_as_deep_as_it_needs(vectors, queries):
    index = VectorIndex.build(vectors, "IVF40,SQ8")
    allowed = Selection(vectors.take(np.arange(COUNT)) @ queries[0] < 0.1)  # near for some queries, not for the first
    scores, rows = index.search(queries, 10, allowed)
    alone = [index.search(query[None], 10, allowed) for query in queries]
    assert (scores == np.concatenate([one for one, _ in alone])).all()
    assert (rows == np.concatenate([one for _, one in alone])).all()


def test_many_hits_are_looked_for_in_more_lists(vectors, queries):
    index = VectorIndex.build(vectors, "IVF200,SQ8")
    truth = vectors.best(torch.from_numpy(queries), 300)[1]
    assert recall(index.search(queries, 300)[1], truth) >= 0.95


def test_past_the_end_there_is_nothing(vectors, queries):
    index = VectorIndex.build(vectors, "IVF40,SQ8")
    few = Selection(np.isin(np.arange(COUNT), [5, 77]))
    scores, rows = index.search(queries[:3], 5, few)
    assert (np.sort(rows, axis=1) == [-1, -1, -1, 5, 77]).all() and np.isneginf(scores[:, 2:]).all()
    scores, rows = index.search(queries[:3], 5, Selection(np.zeros(COUNT, bool)))
    assert (rows == -1).all() and np.isneginf(scores).all()
    assert index.search(queries[:0], 5)[0].shape == (0, 5)


def test_an_ivf_whose_probed_lists_hold_too_little_is_searched_more_widely(vectors, queries, monkeypatch):
    """faiss alone fills up with -1 (faiss #244, #4333)."""
    monkeypatch.setattr(module, "LEAST_PROBED", 1)
    monkeypatch.setattr(module, "PROBED", 0)
    index = VectorIndex.build(vectors, "IVF40,SQ8")
    far = Selection(vectors.take(np.arange(COUNT)) @ queries[0] < -0.2)
    alone = faiss.SearchParametersIVF(sel=selector(far), nprobe=1)
    assert (index.index.search(queries[:1], 10, params=alone)[1] < 0).any()
    rows = index.search(queries[:1], 10, far)[1]
    assert far.mask[rows].all() and recall(rows, vectors.best(torch.from_numpy(queries[:1]), 10, far)[1]) >= 0.9


class Forgetful:
    """An index of faiss that drops its selector without a word, as IndexShardsIVF (#5584) and some HNSW (#5504) do."""

    def __init__(self, index):
        self.index, self.d, self.ntotal = index, index.d, index.ntotal

    def search(self, queries, count, params=None):
        return self.index.search(queries, count)


class Refusing(Forgetful):
    """One that takes no parameters (#5523)."""

    def search(self, queries, count, params=None):
        if params is not None:
            raise RuntimeError("Error in search: search params not supported for this index")
        return super().search(queries, count)


@pytest.mark.parametrize("kind", [Forgetful, Refusing])
def test_nothing_comes_through_a_filter_that_faiss_ignored(vectors, queries, kind, monkeypatch):
    index = VectorIndex.build(vectors, "SQ8")
    monkeypatch.setattr(module, "_parameters", lambda *_: faiss.SearchParameters())
    index.index = kind(index.index)
    for allowed in selections(vectors):
        rows = index.search(queries, 10, allowed)[1]
        assert allowed.mask[rows].all() and (rows >= 0).all()
        assert recall(rows, vectors.best(torch.from_numpy(queries), 10, allowed)[1]) >= 0.95


def in_two_shards(vectors):
    """What faiss makes of an IVF over several GPUs or files."""
    quantizer = faiss.IndexFlatIP(DIM)
    index = faiss.IndexShardsIVF(quantizer, 40)
    parts = [faiss.IndexIVFFlat(quantizer, DIM, 40, faiss.METRIC_INNER_PRODUCT) for _ in range(2)]
    rows = vectors.take(np.arange(COUNT))
    parts[0].train(rows)
    for part in parts:
        part.is_trained, part.nprobe = True, 40
        index.add_shard(part)
    index.add(rows)
    return index, faiss.SearchParametersIVF(nprobe=40), (quantizer, parts)  # which faiss does not keep alive


def graph_without_bounded_queue(vectors):
    index = faiss.IndexHNSWFlat(DIM, 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.search_bounded_queue = False
    index.add(vectors.take(np.arange(COUNT)))
    return index, faiss.SearchParametersHNSW(efSearch=200, bounded_queue=False), ()


@pytest.mark.parametrize("made", [in_two_shards, graph_without_bounded_queue])
def test_indexes_that_drop_a_selector_are_filtered_all_the_same(vectors, queries, made):
    """faiss alone answers rows that are not allowed. (Where it no longer does, this says so.)"""
    index, params, _kept = made(vectors)
    allowed = Selection(np.random.default_rng(2).random(COUNT) < 0.3)
    params.sel = selector(allowed)
    assert not allowed.mask[index.search(queries, 10, params=params)[1]].all()
    rows = VectorIndex(vectors, "made by hand", index).search(queries, 10, allowed)[1]
    assert allowed.mask[rows].all() and (rows >= 0).all()
    assert recall(rows, vectors.best(torch.from_numpy(queries), 10, allowed)[1]) >= 0.95


def test_a_query_alone_takes_one_thread_and_leaves_the_number_as_it_was(vectors, queries, monkeypatch):
    index, seen = VectorIndex.build(vectors, "SQ8"), []
    search = index.index.search

    def noted(*args, **kwargs):
        seen.append(faiss.omp_get_max_threads())
        return search(*args, **kwargs)

    monkeypatch.setattr(module, "_parameters", lambda *_: None)
    index.index = SimpleNamespace(search=noted, ntotal=COUNT, d=DIM)
    faiss.omp_set_num_threads(2)
    try:
        index.search(queries[:1], 10)
        index.search(queries[:3], 10)
        assert seen == [1, 2] and faiss.omp_get_max_threads() == 2
    finally:
        faiss.omp_set_num_threads(1)


def test_maps_and_refining_are_refused():
    for factory in ("IDMap,Flat", "IVF40,PQ16,RFlat", "IDMap2,HNSW16"):
        with pytest.raises(ValueError, match="leave out IDMap and refining"):
            module.made(DIM, factory)


@pytest.mark.parametrize(
    "factory, told",
    [
        ("nonsense", "is no index of 32 dimensions to faiss"),
        ("IVF40,PQ7", "cannot be|is no index"),
        ("IVF9000,SQ8", "cannot be trained on 4000 rows"),
        ("NSG16", "cannot be filled step by step"),
    ],
)
def test_what_faiss_cannot_make_is_refused_in_a_sentence(vectors, factory, told):
    with pytest.raises(ValueError, match=told) as refusal:
        VectorIndex.build(vectors, factory)
    assert "\n" not in str(refusal.value) and ".cpp" not in str(refusal.value)


@pytest.mark.parametrize("factory", ["Flat", "IVF40,SQ8", "HNSW16"])
def test_what_is_added_is_found(vectors, queries, factory, tmp_path):
    part = Vectors([torch.from_numpy(vectors.take(np.arange(3000))).half()])
    index = VectorIndex.build(part, factory)
    index.add(vectors, 3000)
    index.save(tmp_path)
    again = VectorIndex.load(tmp_path, vectors)
    assert again.about()["items"] == COUNT and again.about()["factory"] == factory
    truth = vectors.best(torch.from_numpy(queries), 10)[1]
    assert (truth >= 3000).any() and recall(again.search(queries, 10)[1], truth) >= 0.95
    with pytest.raises(ValueError, match="cannot be added from row 2 on"):
        index.add(vectors, 2)


def test_the_seed_decides_the_sample(vectors, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        VectorIndex.build(vectors, "IVF40,SQ8", seed=seed).save(tmp_path / name)
    one, two, other = ((tmp_path / name / "index.faiss").read_bytes() for name in "abc")
    assert one == two != other


def test_another_catalogs_index_and_damage_are_refused(vectors, tmp_path):
    VectorIndex.build(vectors, "IVF40,SQ8").save(tmp_path)
    with pytest.raises(ValueError, match="is of rows"):
        VectorIndex.load(tmp_path, Vectors([torch.from_numpy(vectors.take(np.arange(10))).half()]))
    path = tmp_path / "index.faiss"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="index.faiss is damaged"):
        VectorIndex.load(tmp_path, vectors)
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(ValueError, match="index.json is damaged"):
        VectorIndex.load(tmp_path, vectors)


def test_other_queries_and_selections_are_refused(vectors, queries):
    index = VectorIndex.build(vectors, "Flat")
    with pytest.raises(ValueError, match="Queries have 16 dimensions, the index has 32"):
        index.search(np.eye(16, dtype=np.float32), 3)
    with pytest.raises(ValueError, match="must be finite and L2-normalised"):
        index.search(2 * queries, 3)
    with pytest.raises(ValueError, match="selection is of 3 rows"):
        index.search(queries, 3, Selection(np.ones(3, bool)))


def test_defaults_by_size_and_storage():
    assert [default_factory(n) for n in (1, 1000)] == ["Flat", "Flat"]
    assert default_factory(1_000_000).startswith("IVF4000,")
    assert default_factory(10, "int8") == "SQ8" and default_factory(250_000, "binary") == "IVF2000,RaBitQ"
    with pytest.raises(ValueError, match="storage=float64"):
        default_factory(10, "float64")
