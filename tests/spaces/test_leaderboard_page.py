"""The leaderboard in a real browser: on folders of good, odd and broken cards, and on a Hub on loopback."""

from pathlib import Path

import pytest
from browser import opened, served
from cards import CARDS, CardHub, write_cards

APP = Path(__file__).parents[2] / "spaces/leaderboard/app.py"


@pytest.fixture(scope="module")
def address(chromium, tmp_path_factory):
    cards = write_cards(tmp_path_factory.mktemp("cards"))
    hub = CardHub(["good", "odd"])
    cache = {"HF_HOME": str(tmp_path_factory.mktemp("cache"))}
    with served(APP, cards, "--endpoint", hub.url, env=cache) as url:
        yield url
    hub.close()


def rows(page, table):
    """The texts of a table's cells, row by row."""
    body = page.locator(f"{table} [role=row]:has([data-row]), {table} tbody tr:has([data-row])")
    return [[cell.strip() for cell in row.locator("[data-col]").all_inner_texts()] for row in body.all()]


def wait_for_rows(page, table, text):
    page.locator(f"{table} [data-row]", has_text=text).first.wait_for()


def test_every_card_is_in_one_of_the_two_tables(chromium, address):
    with opened(chromium, address) as page:
        wait_for_rows(page, "#scores", "good")
        scores, problems = rows(page, "#scores"), rows(page, "#problems")
        names = {row[0] for row in scores} | {row[0] for row in problems}
        assert names >= {*CARDS, "me/good", "me/odd", "me/gone", "Slep/CondViT-B16-cat", "Slep/CondViT-B16-txt"}
        assert [row[0] for row in scores[:2]] == ["Slep/CondViT-B16-txt", "Slep/CondViT-B16-cat"]
        assert ["me/good", "category", "512", "95.1", "0.7", "88", "1.1"] in [row[:7] for row in scores]
        href = page.locator("#scores a", has_text="Slep/CondViT-B16-cat").first.get_attribute("href")
        assert href == "https://huggingface.co/Slep/CondViT-B16-cat"
        assert page.locator("#curve img, #curve svg, #curve canvas").count()


def test_filters_and_sorting_by_number(chromium, address):
    with opened(chromium, address) as page:
        wait_for_rows(page, "#scores", "good")
        for size in ("100K", "500K", "1M"):
            page.locator("#sizes").get_by_label(size, exact=True).uncheck()
        page.locator("#scores [data-row='0']", has_text="hundred").wait_for()  # 100 is more than 95.1, as a number
        means = [float(row[3]) for row in rows(page, "#scores")]
        assert means == sorted(means, reverse=True) and len(means) > 4
        for kind in ("none", "text", "not told"):
            page.locator("#conditionings").get_by_label(kind, exact=True).uncheck()
        page.locator("#scores [data-row]", has_text="not told").first.wait_for(state="detached")
        assert {row[1] for row in rows(page, "#scores")} == {"category"}
        page.locator("#k").get_by_label("R@5", exact=True).check()
        page.locator("#scores", has_text="R@5 10K").wait_for()
        page.locator("#scores [data-row='0']", has_text="99.2").wait_for()


def test_a_narrow_window(chromium, address):
    with opened(chromium, address, width=400) as page:
        wait_for_rows(page, "#scores", "good")
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
