"""Data sets of the Hub, read over HTTP from one on loopback; and what is said when it does not give one."""

from pathlib import Path

import datasets
import pytest
from dataset_hub import PRIVATE, SHOP, TOKEN, DatasetHub
from forks import forks_of
from made import encode, noise

from lrvsf.search.catalog import Catalog
from lrvsf.search.generations import BUILDING

ROWS, FILES = 20, 5


def photo(number):
    """A picture of some 4 kB."""
    return encode(noise(40, 30, number), "PNG")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    rows = {"image": [{"bytes": photo(n), "path": None} for n in range(ROWS)], "price": list(range(ROWS))}
    features = datasets.Features({"image": datasets.Image(), "price": datasets.Value("int64")})
    (folder / "data").mkdir()
    made = datasets.Dataset.from_dict(rows, features=features)
    for number in range(FILES):
        shard = made.shard(FILES, number, contiguous=True)
        shard.to_parquet(folder / f"data/train-{number:05d}-of-{FILES:05d}.parquet")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A shop\n")
    served = DatasetHub(folder)
    yield served
    served.close()


@pytest.fixture(scope="module")
def builds(hub, tmp_path_factory):
    """The process that builds are forks of."""
    # Read once, when huggingface_hub is imported.
    told = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path_factory.mktemp("cache")), "HF_HUB_OFFLINE": "0"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in told.items():
            patch.setenv(name, value)
        patch.delenv("HF_TOKEN", raising=False)
        with forks_of(Path(__file__).with_name("hub_builds.py")) as ask:
            yield ask


@pytest.fixture
def index(builds, hub, model, tmp_path):
    """`index(name)`: the exit status of `search_catalog.py index MODEL name tmp_path/catalog`, and what it said."""

    def index(name, token=None, out="catalog"):
        (status,), said = builds(tmp_path / "log", 1, token, ["index", str(model), name, str(tmp_path / out)])
        return status, said

    hub.left = None
    hub.asked.clear()
    return index


@pytest.mark.parametrize("name", [SHOP, f"hf://datasets/{SHOP}", f"hf://datasets/{SHOP}/data"])
def test_a_data_set_of_the_hub_becomes_a_catalog(index, hub, tmp_path, name):
    status, said = index(name)
    assert status == 0, said
    catalog = Catalog.open(tmp_path / "catalog")
    hit = catalog.search(photo(7), where="price > 5")[0]
    assert (hit.id, hit.metadata["price"], len(catalog)) == ("7", 7, ROWS)
    assert catalog.generation.sources() == {name: ROWS}
    assert any("train-00004-of-00005.parquet" in request for request in hub.asked)


def test_a_private_one_is_read_by_who_has_the_token(index, tmp_path):
    assert index(PRIVATE, TOKEN)[0] == 0
    assert len(Catalog.open(tmp_path / "catalog")) == ROWS


@pytest.mark.survives("a data set that the Hub does not have, or not for us", "said in a line; nothing is written")
@pytest.mark.parametrize("name, token", [("me/gone", None), (PRIVATE, None), (PRIVATE, "hf_wrong"), ("me/gone", TOKEN)])
def test_one_that_may_not_be_read_is_told_in_a_line(index, tmp_path, name, token):
    status, said = index(name, token)
    assert status == 2 and len(said.splitlines()) == 1, said
    assert f"there is no data set {name} on the Hub that you may read" in said and "`hf auth login`" in said
    assert not (tmp_path / "catalog").exists()


@pytest.mark.survives("a connection to the Hub that breaks", "tried again; then told, and the same command goes on")
def test_what_broke_goes_on(index, hub, tmp_path):
    hub.left = 150_000  # a file has 31,000, and is asked for twice
    status, said = index(SHOP)
    assert status == 2, said
    last = said.splitlines()[-1]
    assert f"the Hub was not reached for {SHOP}" in last and "The same command goes on after what was read" in last
    kept = list((tmp_path / "catalog" / BUILDING).glob("stream-*/pictures-*.parquet"))
    assert 0 < len(kept) < FILES
    hub.left = None
    status, said = index(SHOP)
    assert status == 0, said
    assert len(Catalog.open(tmp_path / "catalog")) == ROWS
