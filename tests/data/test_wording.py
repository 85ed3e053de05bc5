"""What a training pair asks in words, and which products words can ask for."""

import logging

import numpy as np
import pytest
from made import product, write_products

from lrvsf.data.images import TooMuchDamage
from lrvsf.data.pairs import PairMaker
from lrvsf.data.products import ProductShards, target_images
from lrvsf.data.wording import Wording, text_hash

BOTH = Wording(0.5, "a photo of {}")


def test_sources_are_named_with_or_without_shares():
    assert Wording.parse(None) == Wording.parse(["captions"]) == Wording(1.0)
    assert Wording.parse(["categories"], "the {}") == Wording(0.0, "the {}")
    assert Wording.parse(["captions", "categories"]).caption_share == 0.5
    assert Wording.parse(["categories:1", "captions:3"]).caption_share == 0.75
    for words, said in (
        (["titles"], "'titles' is unknown; there are captions and categories"),
        (["captions", "captions:2"], "named twice"),
        (["captions:0"], "a number above 0, as in captions:0.5"),
        (["captions:nan"], "a number above 0"),
        (["captions:half"], "text_from='captions:half'"),
    ):
        with pytest.raises(ValueError, match=said):
            Wording.parse(words)


def test_shares_and_what_takes_the_place_of_what_is_missing():
    image, rng = {"category": "Bags", "captions": ["a bag", "", None, "  ", "the bag"]}, np.random.default_rng(0)
    drawn = [BOTH.draw(image, rng) for _ in range(2000)]
    counts = {text: drawn.count(text) for text in sorted(set(drawn))}
    assert list(counts) == ["a bag", "a photo of Bags", "the bag"] == sorted(BOTH.drawable(image))
    assert abs(counts["a photo of Bags"] - 1000) < 100 and abs(counts["a bag"] - counts["the bag"]) < 100
    bare, untold = {"category": "Bags", "captions": None}, {"category": None, "captions": ["a bag"]}
    for share in (0.0, 0.5, 1.0):
        wording = Wording(share, "a photo of {}")
        assert wording.drawable(bare) == [wording.draw(bare, rng)] == ["a photo of Bags"]
        assert wording.drawable(untold) == [wording.draw(untold, rng)] == ["a bag"]
        assert wording.drawable({"category": " ", "captions": [" "]}) == []
    assert Wording(1.0).drawable(image) == ["a bag", "the bag"] and Wording(0.0).drawable(image) == ["Bags"]


def test_a_pair_s_words_come_from_seed_epoch_and_product_and_leave_its_crops_as_they_were():
    rows = [product(f"p{i}", captions=[f"bag {i}", f"sack {i}"]) for i in range(6)]
    maker = PairMaker(16, None, 3, BOTH)
    first, alone = maker.batch(0, rows, []), maker.batch(0, rows[4:5], [])
    hashes = first["text_hashes"]
    assert hashes.dtype == np.uint64 and hashes[4] == alone["text_hashes"][0]
    texts = [{text_hash(text) for text in BOTH.drawable(row["images"][0])} for row in rows]
    assert all(int(number) in known for number, known in zip(hashes, texts, strict=True))
    assert maker.batch(1, rows, [])["text_hashes"].tolist() != hashes.tolist()
    assert maker.batch(0, rows, [])["text_hashes"].tolist() == hashes.tolist()
    by_category = PairMaker(16, ["Bags"], 3).batch(0, rows, [])
    assert "category_indices" not in first and "text_hashes" not in by_category
    for name in ("pixel_values", "target_pixel_values"):
        assert first[name].equal(by_category[name])


def test_products_that_no_words_ask_for_are_left_out_and_counted(tmp_path, caplog):
    rows = [product(f"p{i}", captions=[f"bag {i}"]) for i in range(6)]
    rows += [product("bare"), product("untold", category=None, captions=["a bag"])]
    rows += [product("neither", category=None, captions=[" "])]
    for row in rows[:-1]:
        row["images"][1]["captions"] = ["a scene is never asked for by its own caption"]
    write_products(tmp_path / "0.parquet", rows)
    with caplog.at_level(logging.WARNING):
        shards = ProductShards.scan(str(tmp_path), words=True)
    assert shards.rows.tolist() == list(range(8))
    assert shards.faulty == {"neither": "no SIMPLE image that has a caption or a category"}
    assert "1 of 8 products in" in caplog.text and "the text of their category asks for them" in caplog.text
    texts = [text for image in target_images(str(tmp_path)) for text in Wording(1.0).drawable(image)]
    assert texts == [*(f"bag {i}" for i in range(6)), "Bags", "a bag"]
    write_products(tmp_path / "0.parquet", rows[-1:])
    with pytest.raises(TooMuchDamage, match="no SIMPLE image that has a caption or a category"):
        ProductShards.scan(str(tmp_path), words=True)
