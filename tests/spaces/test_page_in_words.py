"""The demo of a model that reads texts, in a real browser: words ask, beside what is ticked and without it."""

import runpy
from pathlib import Path

import pytest
import torch
from browser import opened, rows_of, served, upload, wait_for_rows
from drawn_shop import index_shop

from lrvsf.search.catalog import Catalog
from modeling_condvit import CondViTModel
from processing_condvit import CondViTProcessor
from text_condvit import load_tokenizer

ROOT = Path(__file__).parents[2]
APP = ROOT / "spaces/demo/app.py"
CLIP = ROOT / "assets/mini-clip"
WHOLE = "the picture as a whole"
WORDS = ["the red bag", "a blue hat", "a green scarf", "yellow shoes", "white trousers", "a black dress", "stripes"]
HOSTILE = "<img src=x onerror=alert(1)>${alert(2)}{{alert(3)}} {} the red bag"


@pytest.fixture(scope="session")
def reader(chromium, tmp_path_factory):
    """The folder of Mini CLIP as a text model, whose words nobody has trained it to understand."""
    folder = tmp_path_factory.mktemp("readers") / "reader"
    torch.manual_seed(0)
    model = CondViTModel.from_clip(CLIP, text_encoder=str(CLIP), text_encoder_in_checkpoint=True)
    model.save_pretrained(folder)
    tokenizer = load_tokenizer(str(CLIP), model.config.text_encoder)
    CondViTProcessor(size=model.config.image_size, tokenizer=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def words_catalog(shop, reader):
    return index_shop(reader, shop, reader.parent / "catalog")


@pytest.fixture(scope="module")
def address(words_catalog, shop):
    with served(APP, words_catalog, "--examples", shop / "scenes") as url:
        yield url


def say(page, words):
    page.locator("#said textarea, #said input").fill(words)
    page.locator("#said textarea, #said input").press("Enter")


def ids(hits):
    return [hit.id for hit in hits]


def test_words_find_what_the_catalog_finds(chromium, address, words_catalog, shop):
    scene, catalog = shop / "scenes/00003.jpg", Catalog.open(words_catalog)
    found = {words: ids(catalog.search(scene, text=words, k=5)) for words in WORDS}
    # An untrained model hardly listens: which of these finds other items than the first does is chance.
    other = next(words for words in WORDS if found[words] != found[WORDS[0]])
    expected = {words: found[words] for words in (WORDS[0], other)}
    with opened(chromium, address) as page:
        upload(page, scene)
        wait_for_rows(page, WHOLE)
        for words, rows in expected.items():
            say(page, words)
            wait_for_rows(page, words)
            assert rows_of(page) == {words: rows}
        assert page.locator("#results .faint, #results .score[title]").count() == 0  # no standing is known of words
        page.locator("#conditions").get_by_label("Bags", exact=True).check()
        wait_for_rows(page, other, "Bags")  # words first
        assert list(rows_of(page).items()) == [
            (other, expected[other]),
            ("Bags", ids(catalog.search(scene, "Bags", k=5))),
        ]
        page.locator("#conditions").get_by_label("Bags", exact=True).uncheck()
        say(page, "  ")
        wait_for_rows(page, WHOLE)


def test_everything_and_words(chromium, address, shop):
    with opened(chromium, address) as page:
        upload(page, shop / "scenes/00000.jpg")
        page.locator("#everything").get_by_label("everything in it").check()
        page.wait_for_function("document.querySelectorAll('#results section').length == 10")
        say(page, "the red bag")
        page.wait_for_function("document.querySelectorAll('#results section').length == 11")
        assert next(iter(rows_of(page))) == "the red bag"


def test_what_it_looks_at_under_words(chromium, address, shop):
    with opened(chromium, address) as page:
        upload(page, shop / "scenes/00000.jpg")
        page.locator("#conditions").get_by_label("Bags", exact=True).check()
        say(page, "the red bag")
        page.get_by_text("What does it look at?").click()
        page.locator("#look").click()
        page.locator("#heat .caption-label", has_text="the red bag").first.wait_for()
        assert page.locator("#heat .caption-label").all_inner_texts() == ["the red bag", "Bags"]


def test_what_is_said_is_text_and_bounded(chromium, address, shop):
    with opened(chromium, address, width=400) as page:  # which fails where a script of it runs
        upload(page, shop / "scenes/00000.jpg")
        say(page, HOSTILE)
        page.locator("#results h3", has_text=HOSTILE).wait_for()
        page.locator("#said textarea, #said input").fill("")
        page.locator("#said textarea, #said input").press_sequentially("w" * 210, delay=0)
        page.locator("#said textarea, #said input").press("Enter")
        page.locator("#results h3", has_text="w" * 200).wait_for()
        assert page.locator("#results h3").inner_text() == "w" * 200
        assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_more_than_the_box_takes_is_refused(words_catalog, shop):
    """As a program may send it."""
    page = runpy.run_path(str(APP))["Page"](Catalog.open(words_catalog))
    photo = str(shop / "scenes/00000.jpg")
    assert "201 letters long. Say it in at most 200" in page.search(photo, [], "w" * 201, False, "", 5)


def test_a_category_model_has_no_box_for_words(chromium, catalog):
    with served(APP, catalog) as url, opened(chromium, url) as page:
        page.locator("#conditions").wait_for()
        assert page.locator("#said").count() == 0 and page.get_by_text("in words").count() == 0
