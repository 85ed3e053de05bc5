"""The demo in a real browser: a photo, two conditions, two rows of the right things; and what people do wrong."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import opened, served
from PIL import Image

from lrvsf.mini.shop import ShopSize, draw_shop, read_scenes

ROOT = Path(__file__).parents[2]
APP, MODEL = ROOT / "spaces/demo/app.py", ROOT / "assets/mini-condvit"
HOSTILE = "<img src=x onerror=alert(1)>${alert(2)}{{alert(3)}}"


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shops") / "shop"
    draw_shop(folder, ShopSize(items=200, scenes=12), processes=1)
    table = pq.read_table(folder / "items.parquet")
    links = pa.array(["javascript:alert(4)", "https://shop.example/a?b=1&c=2"] * 100)
    titles = [HOSTILE if number % 7 == 0 else title for number, title in enumerate(table["title"].to_pylist())]
    table = table.set_column(1, "title", pa.array(titles)).append_column("url", links)
    pq.write_table(table, folder / "items.parquet")
    return folder


@pytest.fixture(scope="module")
def catalog(chromium, shop):
    from lrvsf.search.build_catalog import index_images
    from lrvsf.search.commands import HowToEmbed, IndexKind

    out = shop.parent / "catalog"
    index_images(
        str(MODEL), str(shop / "items.parquet"), None, None, out, None, IndexKind(None, None, 0), False, HowToEmbed()
    )
    return out


@pytest.fixture(scope="module")
def address(chromium, catalog, shop):
    with served(APP, catalog, "--examples", shop / "scenes") as url:
        yield url


def upload(page, path):
    page.locator("#photo input[type=file]").first.set_input_files(str(path))


def rows_of(page):
    """What was found: condition -> ids."""
    return {
        row.get_attribute("data-condition"): [hit.get_attribute("data-id") for hit in row.locator("article").all()]
        for row in page.locator("#results section").all()
    }


def wait_for_rows(page, *names):
    for name in names:
        page.locator(f'#results section[data-condition="{name}"]').wait_for()
    page.wait_for_function(f"document.querySelectorAll('#results section').length == {len(names)}")


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


def test_metadata_is_text_and_only_web_addresses_are_links(chromium, address, shop):
    with opened(chromium, address) as page:  # which fails where a script of the metadata runs
        upload(page, shop / "scenes/00001.jpg")
        page.locator("#where textarea, #where input").fill("title like '%onerror%'")
        page.locator("#go").click()
        page.locator("#results b", has_text=HOSTILE).first.wait_for()
        links = [link.get_attribute("href") for link in page.locator("#results a").all()]
        assert set(links) <= {"https://shop.example/a?b=1&c=2"}


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


def test_a_filter_that_passes_nothing(chromium, address, shop):
    with opened(chromium, address) as page:
        upload(page, shop / "scenes/00000.jpg")
        page.locator("#where textarea, #where input").fill("price > 1000")
        page.locator("#go").click()
        page.locator("#results", has_text="nothing found").wait_for()


def test_an_empty_folder_is_refused_in_a_line(chromium, tmp_path):
    told = subprocess.run([sys.executable, APP, tmp_path], capture_output=True, text=True)
    assert told.returncode == 2 and "is no catalog" in told.stderr and len(told.stderr.splitlines()) == 1
