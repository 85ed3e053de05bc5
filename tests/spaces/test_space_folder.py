"""The folder that `search_catalog.py space` writes, run on its own: elsewhere, without the checkout, in a browser."""

import shutil

from browser import opened, rows_of, served, upload, wait_for_rows
from drawn_shop import MODEL

from lrvsf.search.catalog import Catalog
from lrvsf.search.space.write_space import write_space


def test_it_runs_on_its_own_and_finds_what_the_catalog_finds(chromium, catalog, shop, tmp_path):
    write_space(catalog, tmp_path / "made", shop / "scenes", None)
    # As /app in a container, with nothing above it; and the model and the catalog that it was made of are not asked.
    folder = shutil.move(tmp_path / "made", tmp_path / "app")
    scene = shop / "scenes/00003.jpg"
    hits = Catalog.open(catalog, str(MODEL)).search(scene, category="Bags", k=5)
    copied = Catalog.open(folder / "catalog", str(folder / "model")).search(scene, category="Bags", k=5)
    assert [hit.standing for hit in hits] == [hit.standing for hit in copied] != [None] * 5  # calibrations travel
    (tmp_path / "cwd").mkdir()
    # -I: neither the folder that it is started in nor PYTHONPATH may help it out.
    with served("-I", folder / "app.py", cwd=tmp_path / "cwd") as url, opened(chromium, url) as page:
        page.get_by_text("200 items, model mini-condvit").wait_for()
        upload(page, scene)
        page.locator("#conditions").get_by_label("Bags", exact=True).check()
        wait_for_rows(page, "Bags")
        assert rows_of(page) == {"Bags": [hit.id for hit in hits]}
        assert len(page.locator(".gallery-item, .gallery button").all()) == 12  # the examples
        page.locator("#everything").get_by_label("everything in it").check()
        page.wait_for_function("document.querySelectorAll('#results section').length == 10")
        page.get_by_text("What does it look at?").click()
        page.locator("#look").click()
        page.locator("#heat img").first.wait_for()
    assert not list((tmp_path / "cwd").iterdir())
