"""Stores of a small test set, in shards of eight rows."""

import pytest

from lrvsf.data.images import Tolerance
from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding import store as store_module
from lrvsf.embedding.encoder import Encoder
from lrvsf.evaluation.embedded import StoredTestSet

BAD = {"SIMPLE_IMG": {6: b""}, "COMPLEX_IMG": {1: b"<html>"}, "jpg": {0: b"", 8: b"no", 19: b"", 20: None, 33: b""}}
HALF = Tolerance(0.5)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(store_module, "ROWS", 8)  # of the test set below: 2 shards of products, 6 of distractors


@pytest.fixture
def test_set(make_test_set):
    return ProductTestSet(make_test_set(products=12, distractors=41, bad=BAD))


@pytest.fixture
def open_store(small_shards, test_set, tiny_model, tmp_path):
    """`open_store(folder="embeds", **choices)`: a store of the test set by the tiny model, as a new run opens it."""

    def make(folder="embeds", *, encoder=None, data=None, batch_size=3, tolerance=HALF):
        encoder = encoder or Encoder(tiny_model, "category")
        return StoredTestSet(tmp_path / folder, encoder, data or test_set, batch_size=batch_size, tolerance=tolerance)

    return make


@pytest.fixture
def embedded(monkeypatch):
    """The sizes of the batches that the model was given."""
    sizes, plain = [], Encoder.embed
    monkeypatch.setattr(Encoder, "embed", lambda *args: sizes.append(len(args[1])) or plain(*args))
    return sizes
