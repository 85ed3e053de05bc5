"""Small vectors: codes of fewer bytes, of all dimensions or the first ones, with and without rescoring."""

import numpy as np
import pytest
import torch
from examples import examples, replaced
from made import squares, write_file

from lrvsf.search.compress.compressed import FORMS, bytes_per_item, compressed, search_codes
from lrvsf.search.index import VectorIndex
from lrvsf.search.vectors import Selection, Vectors

DIM = 48


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def rows():
    """(700, DIM) unit rows in clusters, whose first dimensions vary most, as a Matryoshka model's do."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(30, DIM)) * np.linspace(1.5, 0.5, DIM)
    return unit(centres[rng.integers(30, size=700)] + 0.4 * rng.normal(size=(700, DIM)))


@pytest.fixture
def vectors(rows):
    half = torch.from_numpy(rows).half()
    return Vectors([half[:100], half[100:]])


@pytest.fixture
def queries(rows):
    rng = np.random.default_rng(1)
    return unit(rows[:20] + 0.05 * rng.normal(size=(20, DIM))).astype(np.float32)


def naive(vectors, queries, dims=DIM):
    """(Q, n) cosines of the first dimensions, in float64."""
    stored = unit(vectors.take(np.arange(len(vectors))).astype(np.float64)[:, :dims])
    return unit(queries.astype(np.float64)[:, :dims]) @ stored.T


@pytest.mark.parametrize("dims", [None, 1, 17, DIM])
@pytest.mark.parametrize("form, within", [("float32", 1e-6), ("float16", 1e-3), ("int8", 0.03), ("binary", 0.6)])
def test_scores_of_the_codes_are_near_to_cosines(vectors, queries, form, within, dims):
    if (form, dims) == ("binary", 1):
        pytest.skip("one bit says nothing of one dimension")
    scores, rows = search_codes(compressed(vectors, form, dims), queries, 10)
    exact = naive(vectors, queries, dims or DIM)
    assert scores.shape == rows.shape == (20, 10) and (np.diff(scores, axis=1) <= 0).all()
    np.testing.assert_allclose(scores, np.take_along_axis(exact, rows, 1), atol=within)
    if form == "float32" and dims != 1:
        np.testing.assert_array_equal(rows, np.argsort(-exact, axis=1, kind="stable")[:, :10])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dims", [None, 24])
def test_rescored_hits_have_exact_scores_of_all_dimensions(vectors, queries, form, dims):
    small = compressed(vectors, form, dims)
    scores, rows = small.search(queries, 10)
    exact = naive(vectors, queries)
    np.testing.assert_allclose(scores, np.take_along_axis(exact, rows, 1), atol=1e-6)
    best, _ = vectors.best(torch.from_numpy(queries), 10)
    alone = np.sort(np.take_along_axis(exact, search_codes(small, queries, 10)[1], 1), axis=1)[:, ::-1]
    assert (scores <= best + 1e-9).all() and (scores >= alone - 1e-6).all()  # never worse than what the codes found


def test_with_candidates_enough_rescoring_is_the_exact_search(vectors, queries):
    few = Vectors([torch.from_numpy(vectors.take(np.arange(50))).half()])  # all of them are candidates
    for form in FORMS:
        scores, rows = compressed(few, form, 8).search(queries, 10)
        exact, best = VectorIndex.build(few).search(queries, 10)
        np.testing.assert_array_equal(rows, best)
        np.testing.assert_array_equal(scores, exact)


def test_a_filter_is_kept(vectors, queries):
    mask = np.arange(len(vectors)) % 3 == 0
    _, rows = compressed(vectors, "int8", 24).search(queries, 10, Selection(mask))
    assert mask[rows].all()


@pytest.mark.parametrize(
    "form, dims, size", [("float32", None, 192), ("float16", None, 96), ("int8", 24, 24), ("binary", None, 14)]
)
def test_bytes(vectors, form, dims, size):
    assert bytes_per_item(compressed(vectors, form, dims)) == size  # binary: 48 bits, and two numbers of 4 bytes


def test_what_is_refused(vectors):
    with pytest.raises(ValueError, match="form=int4 is unknown; take float32, float16, int8, binary"):
        compressed(vectors, "int4")
    for dims in (0, 49, -1):
        with pytest.raises(ValueError, match=f"dims={dims} must be above 0 and at most 48"):
            compressed(vectors, "int8", dims)


def test_fewer_rows_than_asked_for(vectors, queries):
    small = compressed(Vectors([torch.from_numpy(vectors.take(np.arange(3))).half()]), "int8")
    assert (search_codes(small, queries, 5)[1][:, 3:] == -1).all()


def test_the_example_of_the_docs_runs(shop, monkeypatch, capsys):
    (example,) = examples("docs/search.md", "Small vectors", 1)
    write_file(shop / "photo.jpg", squares(103))
    monkeypatch.chdir(shop)
    exec(replaced(example, {"dims=64": "dims=8", "k=10": "k=5"}), {})  # eight items of 16 dimensions
    assert "x" in capsys.readouterr().out
