"""A catalog by a text model: its categories' names ask, as those of a category model do."""

import numpy as np
import pytest
from made import squares, tiny_condvit, write_layout

import search_catalog
from lrvsf.search.catalog import Catalog


@pytest.fixture
def catalog(tmp_path):
    """Made by a model that reads sentence embeddings and has those of its categories, but no text encoder."""
    model = tiny_condvit(condition="text", text_dim=32)
    model.category_text_embeds.normal_()
    model.save_pretrained(tmp_path / "model")
    images = [squares(number) for number in range(6)]
    root = write_layout(tmp_path / "test", {"SIMPLE_IMG": images, "COMPLEX_IMG": images}, {"jpg": [squares(50)]})
    search_catalog.main(["index", str(tmp_path / "model"), str(root), str(tmp_path / "out"), "--device", "cpu"])
    return Catalog.open(tmp_path / "out", device="cpu")


def test_names_ask_and_other_words_are_refused(catalog):
    assert catalog.conditions[:2] == ["Bags", "Feet"] and len(catalog) == 7
    bags, feet, plain = catalog.embed([squares(3)], ["Bags", "Feet", None])
    assert not np.allclose(bags, feet) and not np.allclose(bags, plain)
    np.testing.assert_allclose(plain, catalog.vectors.take(np.array([3]))[0], atol=2e-3)
    assert len(catalog.search(squares(3), "Bags", k=4)) == 4
    with pytest.raises(ValueError, match="condition 'the red bag' is not one of the model's"):
        catalog.search(squares(3), "the red bag")
