"""Catalogs of pictures that are drawn in the test, made by a tiny model."""

import shutil

import numpy as np
import pytest
from made import squares, tiny_condvit, write_csv, write_file, write_tiny_reader
from pairs import pairs_of, unit

import search_catalog
from lrvsf.embedding.encoder import Encoder

PRICES = (10, 20, 30, 40, 50, 60, 70, 80)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The folder of a tiny model."""
    folder = tmp_path_factory.mktemp("search") / "tiny"
    tiny_condvit().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def _shop(tmp_path_factory, model):
    """shop.csv of eight pictures with prices, and `catalog` of it."""
    folder = tmp_path_factory.mktemp("shop")
    rows = [(f"x{number}", f"{number}.jpg", price, "ab"[number % 2]) for number, price in enumerate(PRICES)]
    for number in range(len(rows)):
        write_file(folder / f"{number}.jpg", squares(number))
    write_csv(folder / "shop.csv", rows, ("id", "image", "price", "brand"))
    search_catalog.main(["index", str(model), str(folder / "shop.csv"), str(folder / "catalog")])
    return folder


@pytest.fixture
def shop(_shop, tmp_path):
    """A copy of that folder, to be changed."""
    return shutil.copytree(_shop, tmp_path / "shop")


@pytest.fixture(scope="session")
def words_shop(tmp_path_factory, _shop):
    """A folder with the catalog of that shop by `reader`, a model that reads texts, calibrated for "Bags"."""
    from lrvsf.search.catalog import Catalog  # here, as tests without the search extra's packages read this file, too

    folder = tmp_path_factory.mktemp("words")
    reader = write_tiny_reader(folder / "reader")
    search_catalog.main(["index", str(reader), str(_shop / "shop.csv"), str(folder / "catalog")])
    catalog = Catalog.open(folder / "catalog")
    scenes = catalog.embed([squares(100 + number) for number in range(25)], ["Bags"])
    pairs_of(catalog, scenes, np.random.default_rng(0).normal(size=scenes.shape)).save(reader)
    return folder


@pytest.fixture
def step():
    """`step("add", ...)`: runs a step of search_catalog.py in this process."""
    return lambda *words: search_catalog.main(list(map(str, words)))


@pytest.fixture
def embedded(monkeypatch):
    """The sizes of the batches that any model was given."""
    sizes, embed = [], Encoder.embed

    def counted(self, pixels, *categories):
        sizes.append(len(pixels))
        return embed(self, pixels, *categories)

    monkeypatch.setattr(Encoder, "embed", counted)
    return sizes


@pytest.fixture
def own_shop(shop, model, step):
    """The shop's catalog by a copy of the model that may be changed."""
    shutil.copytree(model, shop / "tiny")
    shutil.rmtree(shop / "catalog")
    step("index", shop / "tiny", shop / "shop.csv", shop / "catalog")
    return shop


@pytest.fixture
def calibrated(own_shop, monkeypatch):
    """`calibrated(true)`: the shop's catalog, with known pairs of that score under "Bags"; nothing is near anything."""
    from lrvsf.search.catalog import Catalog  # here, as tests without the search extra's packages read this file, too

    monkeypatch.setattr("lrvsf.search.catalog.NEAR", 2.0)  # a random model's embeddings nearly coincide

    def calibrated(true):
        catalog = Catalog.open(own_shop / "catalog")
        scenes = catalog.embed([squares(100 + number) for number in range(25)], ["Bags"])
        others = unit(np.random.default_rng(0).normal(size=scenes.shape))
        others = unit(others - (others * scenes).sum(1, keepdims=True) * scenes)
        pairs_of(catalog, scenes, true * scenes + (1 - true**2) ** 0.5 * others).save(own_shop / "tiny")
        return Catalog.open(own_shop / "catalog")

    return calibrated
