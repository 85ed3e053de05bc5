"""The demo in a real browser: a photo, two conditions, two rows of the right things; and what people do wrong."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from browser import opened, rows_of, served, upload, wait_for_rows
from drawn_shop import HOSTILE
from PIL import Image

from lrvsf.mini.shop import read_scenes

APP = Path(__file__).parents[2] / "spaces/demo/app.py"


@pytest.fixture(scope="module")
def address(chromium, catalog, shop):
    with served(APP, catalog, "--examples", shop / "scenes") as url:
        yield url


def test_two_conditions_give_two_rows_with_the_right_things(chromium, address, shop):
    scene = max(read_scenes(shop), key=lambda one: min(shown["share"] for shown in one["shows"].values()))
    asked = list(scene["shows"])[:2]
    with opened(chromium, address) as page:
        upload(page, scene["image"])
        for name in asked:
            page.locator("#conditions").get_by_label(name, exact=True).check()
        wait_for_rows(page, *asked)
        found = rows_of(page)
        assert list(found) == asked and all(len(ids) == 5 for ids in found.values())
        right = [scene["shows"][name]["id"] in found[name] for name in asked]
        assert all(right), (scene["shows"], found)
        picture = page.locator("#results article img").first
        assert picture.evaluate("image => image.naturalWidth") <= 128  # thumbnails travel, not originals


def test_an_example_a_filter_and_more_like_this(chromium, address):
    with opened(chromium, address) as page:
        page.locator(".gallery-item, .gallery button").first.click()
        wait_for_rows(page, "the picture as a whole")
        page.locator("#where textarea, #where input").fill("price < 60 and category = 'Bags'")
        page.locator("#go").click()
        page.wait_for_function("!document.querySelector('#results').innerText.includes('category: Feet')")
        page.locator("#results", has_text="category: Bags").wait_for()
        page.locator("#results button[data-row]").first.click()
        wait_for_rows(page, "more like this")
        page.locator("#where textarea, #where input").fill("prise < 60")
        page.locator("#go").click()
        page.locator("#results [role=alert]", has_text="There is no column 'prise'").wait_for()


def test_everything_in_it_and_attention(chromium, address, shop):
    with opened(chromium, address) as page:
        upload(page, shop / "scenes/00000.jpg")
        page.locator("#everything").get_by_label("everything in it").check()
        page.wait_for_function("document.querySelectorAll('#results section').length == 10")
        page.locator("#conditions").get_by_label("Bags", exact=True).check()
        page.get_by_text("What does it look at?").click()
        page.locator("#look").click()
        page.locator("#heat img").first.wait_for()


def test_no_close_match_is_said_and_greyed(chromium, address, shop, tmp_path):
    """A picture of nothing asks for two things; then a scene for what is in the catalog."""
    across, down = np.meshgrid(np.arange(200), np.arange(300))
    colours = np.stack([across, down, across * down], axis=-1) % 256
    Image.fromarray(colours.astype(np.uint8)).save(tmp_path / "nothing.png")
    scene = read_scenes(shop)[0]
    name, item = max(scene["shows"].items(), key=lambda one: one[1]["share"])
    with opened(chromium, address) as page:
        upload(page, tmp_path / "nothing.png")
        for asked in ("Bags", "Feet"):
            page.locator("#conditions").get_by_label(asked, exact=True).check()
        wait_for_rows(page, "Bags", "Feet")
        assert page.locator("#results small", has_text="no close match").count() == 2
        assert page.locator("#results article.faint").count() == page.locator("#results article").count() == 10
        page.reload()
        upload(page, scene["image"])
        page.locator("#conditions").get_by_label(name, exact=True).check()
        wait_for_rows(page, name)
        found = page.locator(f'#results article[data-id="{item["id"]}"]')
        assert found.get_attribute("class") == "hit" and page.locator("#results small").count() == 0
        assert "find nothing as near" in found.locator(".score").get_attribute("title")


def test_metadata_is_text_and_only_web_addresses_are_links(chromium, address, shop):
    with opened(chromium, address) as page:  # which fails where a script of the metadata runs
        upload(page, shop / "scenes/00001.jpg")
        page.locator("#where textarea, #where input").fill("title like '%onerror%'")
        page.locator("#go").click()
        page.locator("#results b", has_text=HOSTILE).first.wait_for()
        links = [link.get_attribute("href") for link in page.locator("#results a").all()]
        assert set(links) <= {"https://shop.example/a?b=1&c=2", "http://[none"}  # no script, and no error


@pytest.mark.survives("a photo that is none, or of 400 megapixels, on the page", "said in words; the page goes on")
def test_no_image_and_a_huge_one(chromium, address, shop, tmp_path):
    (tmp_path / "none.jpg").write_bytes(b"this is no image")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    with opened(chromium, address, faults_of_files=True) as page:
        for name in ("none.jpg", "huge.png"):
            upload(page, tmp_path / name)
            page.locator("#results [role=alert]", has_text="no picture that can be read").wait_for()
            page.reload()
        upload(page, shop / "scenes/00000.jpg")
        wait_for_rows(page, "the picture as a whole")


def test_a_narrow_window(chromium, address, shop):
    with opened(chromium, address, width=400) as page:
        upload(page, shop / "scenes/00000.jpg")
        page.locator("#conditions").get_by_label("Bags", exact=True).check()
        wait_for_rows(page, "Bags")
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        boxes = [
            page.locator(name).bounding_box() for name in ("#photo", "#examples", "#conditions", "#go", "#results")
        ]
        tops = [box["y"] for box in boxes]
        assert tops == sorted(tops)  # results follow the button, and nobody has to scroll past the examples
        assert boxes[1]["height"] < 130 and boxes[4]["y"] - (boxes[3]["y"] + boxes[3]["height"]) < 50  # pixels


def test_a_filter_that_passes_nothing(chromium, address, shop):
    with opened(chromium, address) as page:
        upload(page, shop / "scenes/00000.jpg")
        page.locator("#where textarea, #where input").fill("price > 1000")
        page.locator("#go").click()
        page.locator("#results", has_text="nothing found").wait_for()


def test_an_empty_folder_is_refused_in_a_line(chromium, tmp_path):
    told = subprocess.run([sys.executable, APP, tmp_path], capture_output=True, text=True)
    assert told.returncode == 2 and "is no catalog" in told.stderr and len(told.stderr.splitlines()) == 1
