"""A shop and its scenes: the same from the same seed, and each scene's garments are items of the shop."""

import io

import pyarrow.parquet as pq
import pytest
from PIL import Image

from lrvsf.mini.shop import ITEMS, ShopSize, draw_shop, read_scenes

SIZE = ShopSize(items=40, scenes=4, image_size=64)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shops") / "shop"
    assert draw_shop(folder, SIZE, processes=1)
    return folder


def test_every_garment_of_a_scene_is_an_item(shop):
    items = {row["id"]: row for row in pq.read_table(shop / ITEMS).to_pylist()}
    scenes = read_scenes(shop)
    assert (len(items), len(scenes)) == (40, 4)
    for scene in scenes:
        assert Image.open(scene["image"]).size == (64, 64)
        assert 3 <= len(scene["shows"]) <= 5
        for category, shown in scene["shows"].items():
            assert items[shown["id"]]["category"] == category and 0 < shown["share"] <= 1
    worn = [shown["id"] for scene in scenes for shown in scene["shows"].values()]
    assert len(set(worn)) == len(worn)


def test_items_have_what_a_shop_has(shop):
    rows = pq.read_table(shop / ITEMS).to_pylist()
    assert all(" with " in row["title"] for row in rows)  # titles tell what words can
    assert all(row["price"] == round(row["price"], 2) and 5 <= row["price"] <= 150 for row in rows)
    assert max(Image.open(io.BytesIO(rows[0]["image"])).size) == 64


def test_the_same_seed_gives_the_same_bytes_on_any_number_of_processes(shop, tmp_path):
    assert draw_shop(tmp_path / "again", SIZE, processes=2)
    files = sorted(path.relative_to(shop) for path in shop.rglob("*") if path.is_file())
    assert all((shop / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in files)


def test_a_finished_shop_is_not_drawn_again_and_others_are_left_alone(shop, tmp_path):
    assert not draw_shop(shop, SIZE)
    (tmp_path / "note.txt").touch()
    for folder, size in ((tmp_path, SIZE), (shop, ShopSize(items=41, scenes=4, image_size=64))):
        with pytest.raises(ValueError, match="holds other data, or a shop drawn with other settings"):
            draw_shop(folder, size)
    with pytest.raises(ValueError, match="ask for 1 scene at least, and for 20 items"):
        ShopSize(items=19, scenes=4)
