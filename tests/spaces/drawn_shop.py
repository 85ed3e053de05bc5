"""A small drawn shop with a catalog of it, for the tests of its page; some titles would be scripts, if they ran."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lrvsf.mini.shop import ShopSize, draw_shop

MODEL = Path(__file__).parents[2] / "assets/mini-condvit"
HOSTILE = "<img src=x onerror=alert(1)>${alert(2)}{{alert(3)}}"


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    """Its folder: `items.parquet`, and `scenes` that show its items."""
    folder = tmp_path_factory.mktemp("shops") / "shop"
    draw_shop(folder, ShopSize(items=200, scenes=12), processes=1)
    table = pq.read_table(folder / "items.parquet")
    links = pa.array(["javascript:alert(4)", "https://shop.example/a?b=1&c=2", "http://[none", "//none]"] * 50)
    titles = [HOSTILE if number % 7 == 0 else title for number, title in enumerate(table["title"].to_pylist())]
    table = table.set_column(1, "title", pa.array(titles)).append_column("url", links)
    pq.write_table(table, folder / "items.parquet")
    return folder


def index_shop(model, shop, out):
    """Makes its catalog by a model; gives the catalog's folder."""
    from lrvsf.search.build_catalog import index_images
    from lrvsf.search.commands import HowToEmbed, IndexKind

    table, kind = str(shop / "items.parquet"), IndexKind(None, None, 0)
    index_images(str(model), table, None, None, out, None, kind, False, HowToEmbed())
    return out


@pytest.fixture(scope="session")
def catalog(chromium, shop):
    """Its catalog, by the Mini model."""
    return index_shop(MODEL, shop, shop.parent / "catalog")
