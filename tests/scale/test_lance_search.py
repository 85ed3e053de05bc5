"""A Lance table is searched by the rules of every catalog; what is no table of ours is refused in a line."""

import json
import re
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from vector_shops import MODELS, VectorShop, drawn, queries, table_of_items

import search_catalog
from lrvsf.command import explain, is_refusal
from lrvsf.paths import table_of
from lrvsf.search import index as search_index
from lrvsf.search.catalog import Catalog
from lrvsf.search.vectors import Selection

lance = pytest.importorskip("lance")

from lrvsf.scale import lance_index  # noqa: E402 - it needs Lance
from lrvsf.scale.lance_search import TableVectors  # noqa: E402
from lrvsf.scale.write_lance import write_lance  # noqa: E402

COUNT = 900


@pytest.fixture(scope="module")
def shops(tmp_path_factory):
    """`shops[model]`: a catalog of 900 items and indexed.lance of it, of which 100 came after the index was built."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lance_index, "FLAT_ITEMS", 500)
        for model in MODELS:
            folder = tmp_path_factory.mktemp(model)
            shop = VectorShop(folder / "catalog")
            first, more = (
                shop.segment(str(ids[0]), table_of_items(ids), model) for ids in (range(800), range(800, COUNT))
            )
            shop.answer(first, model=model)
            write_lance(folder / "catalog", folder / "indexed.lance", None)
            shop.answer(first, more, model=model)
            write_lance(folder / "catalog", folder / "indexed.lance", None)
            made[model] = folder
    return made


def recall(rows, truth):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(rows, truth, strict=True)])


@pytest.fixture(params=MODELS)
def asked(request, shops, monkeypatch):
    """An opened table with its queries; 900 rows are many."""
    monkeypatch.setattr(search_index, "EXACT_ROWS", 20)
    catalog = Catalog.open(shops[request.param] / "indexed.lance")
    return SimpleNamespace(
        catalog=catalog, model=request.param, queries=queries(request.param), folder=shops[request.param]
    )


def test_the_index_has_all_rows_and_its_own_kind(asked):
    kind = {"old": "IVF_RQ", "new": "IVF_SQ"}[asked.model]  # of 16 dimensions, and of 12
    assert asked.catalog.index.factory == f"Lance {kind}"
    table = asked.catalog.generation.table
    about = table.stats.index_stats(table.describe_indices()[0].name)
    assert (about["num_indexed_rows"], about["num_unindexed_rows"]) == (COUNT, 0)


def test_hits_are_exact_where_all_lists_are_probed(asked, monkeypatch):
    monkeypatch.setattr(search_index, "LEAST_PROBED", 10_000)
    monkeypatch.setattr(search_index, "LEAST_CANDIDATES", COUNT // 2)  # codes of one bit are coarse at 64 dimensions
    twin = Catalog.open(asked.folder / "catalog")
    assert twin.index.factory == "Flat"
    for where in (None, "brand = 'a'", "price < 5"):
        one, other = (catalog.nearest(asked.queries, 10, where) for catalog in (asked.catalog, twin))
        assert [[(hit.id, hit.score) for hit in hits] for hits in one] == [
            [(hit.id, hit.score) for hit in hits] for hits in other
        ], where


def selections(vectors):
    side = vectors.take(np.arange(COUNT)) @ vectors.take(np.array([7]))[0]
    for share in (0.03, 0.1, 0.5):
        yield Selection(np.random.default_rng(2).random(COUNT) < share)
        yield Selection(side >= np.quantile(side, 1 - share))  # near the rows of some queries
        yield Selection(side <= np.quantile(side, share))  # far from them


def test_recall_filtered_or_not(asked):
    vectors, index = asked.catalog.vectors, asked.catalog.index
    for allowed in (None, *selections(vectors)):
        scores, rows = index.search(asked.queries, 10, allowed)
        truth = vectors.best(torch.from_numpy(asked.queries), 10, allowed)[1]
        assert recall(rows, truth) >= 0.95, allowed and allowed.count
        assert allowed is None or allowed.mask[rows].all()
        expected = np.einsum("qd,qkd->qk", asked.queries, vectors.take(rows.ravel()).reshape(*rows.shape, -1))
        np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_queries_of_a_batch_are_answered_as_alone(asked):
    scores, rows = asked.catalog.index.search(asked.queries, 7)
    alone = [asked.catalog.index.search(query[None], 7) for query in asked.queries]
    assert (scores == np.concatenate([one for one, _ in alone])).all()
    assert (rows == np.concatenate([one for _, one in alone])).all()


def test_candidates_come_nearest_first_and_then_nothing(asked, monkeypatch):
    monkeypatch.setattr(search_index, "LEAST_PROBED", 10_000)
    codes, named = asked.catalog.index._nearest_codes(asked.queries, 10, 2 * COUNT)
    assert (np.diff(codes[:, :COUNT]) <= 0).all() and np.isneginf(codes[:, COUNT:]).all()
    assert (np.sort(named[:, :COUNT]) == np.arange(COUNT)).all() and (named[:, COUNT:] == -1).all()
    scores = np.take_along_axis(asked.queries @ drawn(range(COUNT), MODELS[asked.model][1]).T, named[:, :COUNT], 1)
    assert (scores[:, :10].mean(1) > scores[:, 300:].mean(1)).all()
    assert np.corrcoef(scores[0], codes[0, :COUNT])[0, 1] > 0.5, "codes of one bit tell this much"


def test_vectors_of_a_table_are_those_of_the_catalog(asked):
    ours, theirs = asked.catalog.vectors, Catalog.open(asked.folder / "catalog").vectors
    assert isinstance(ours, TableVectors) and ours.shape == theirs.shape
    for rows in ([], [5], [COUNT - 1, 0, 0, 17], range(COUNT)):
        numbers = np.array(rows, np.int64)
        assert torch.equal(ours.stored(numbers), theirs.stored(numbers))
    assert torch.equal(ours.lengths, theirs.lengths)
    for first in (0, 100, 799, 801):
        one, other = (np.concatenate([rows for _, rows in vectors.blocks(64, first)]) for vectors in (ours, theirs))
        assert (one == other).all() and next(ours.blocks(64, first))[0] == first
    with pytest.raises(IndexError, match="Rows 900 to 900 of 900"):
        ours.take(np.array([COUNT]))


def test_compacted_fragments_are_read_in_their_order(asked, tmp_path):
    path = shutil.copytree(asked.folder / "indexed.lance", tmp_path / "compacted.lance")
    table = lance.dataset(path)
    table.delete("price = 3")
    table.optimize.compact_files()
    table.tags.update("answers", table.latest_version)
    before = asked.catalog.nearest(asked.queries, 10, "price <> 3")
    manifest = Catalog.open(f"{path}@1").generation.manifest | {"items": table.count_rows()}
    table.update_schema_metadata({"lrvsf": json.dumps(manifest)})
    table.tags.update("answers", table.latest_version)
    found = Catalog.open(path).nearest(asked.queries, 10)
    same = [{hit.id for hit in one} & {hit.id for hit in other} for one, other in zip(found, before, strict=True)]
    assert np.mean([len(ids) / 10 for ids in same]) >= 0.95


@pytest.mark.survives("a file of a Lance table is cut short or gone, or its manifest damaged", "named in one line")
@pytest.mark.parametrize("damage", ["cut", "gone", "manifest", "no tag"])
def test_damage_is_named_when_it_is_opened(shops, tmp_path, damage):
    path = shutil.copytree(shops["old"] / "indexed.lance", tmp_path / "shop.lance")
    file = next((path / "data").iterdir())
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "gone":
        file.unlink()
    elif damage == "manifest":
        for manifest in (path / "_versions").glob("*.manifest"):
            manifest.write_bytes(b"x" * 50)
    else:
        (path / "_refs/tags/answers.json").unlink()
    with pytest.raises(ValueError) as told:
        Catalog.open(path)
    line = explain(told.value)
    assert is_refusal(told.value) and "\n" not in line and str(path) in line and "/rust/" not in line, line
    assert ("lance has not written" if damage == "no tag" else "is damaged") in line


def test_a_foreign_table_is_refused(tmp_path, shops):
    lance.write_dataset(pa.table({"id": ["a"]}), tmp_path / "their.lance")
    with pytest.raises(ValueError, match="is a Lance table that search_catalog.py lance has not written"):
        Catalog.open(tmp_path / "their.lance")
    with pytest.raises(ValueError, match="was not written by search_catalog.py lance; name another one"):
        write_lance(shops["old"] / "catalog", tmp_path / "their.lance", None)
    with pytest.raises(ValueError, match="is the table of .*old.*, and not of .*new.*; name another one"):
        write_lance(shops["new"] / "catalog", shops["old"] / "indexed.lance", None)


def step(*words):
    search_catalog.main(list(map(str, words)))


def test_steps_that_change_a_catalog_refuse_a_table(shops, tmp_path):
    table = shops["old"] / "indexed.lance"
    for words in (["remove", table, "x1"], ["compact", table], ["rollback", table], ["switch", table, "g-000001"],
                  ["space", table, tmp_path / "space"], ["lance", table, tmp_path / "t.lance"]):  # fmt: skip
        with pytest.raises(ValueError, match="is a Lance table: change its catalog, and then the table with"):
            step(*words)
    for words, told in (
        (["lance", shops["old"] / "catalog", shops["new"] / "catalog"], "is a catalog; name a new folder"),
        (["lance", shops["old"] / "catalog", shops["old"] / "catalog/t.lance"], "is inside"),
        (["lance", shops["old"] / "catalog", shops["old"]], "is no Lance table and is not empty"),
    ):
        with pytest.raises((ValueError, FileExistsError), match=told):
            step(*words)


def test_info_and_a_run_of_the_step(shops, capsys):
    step("lance", shops["old"] / "catalog", shops["old"] / "indexed.lance")
    printed = capsys.readouterr().out
    assert re.search(r"appended +0\n", printed) and re.search(r"index +IVF_RQ\n", printed)
    step("info", shops["old"] / "indexed.lance")
    printed = capsys.readouterr().out
    assert re.search(r"items +900\n", printed) and "g-000001" in printed and "g-000002" in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_without_lance_a_line_says_what_to_install(shops, monkeypatch):
    for name in [*(one for one in sys.modules if one.startswith("lrvsf.scale.")), "lance"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lance", None)
    with pytest.raises(ImportError, match=r'a Lance table needs Lance: pip install "lrvsf\[ray\]"') as told:
        Catalog.open(shops["old"] / "indexed.lance")
    assert is_refusal(told.value)


def test_names_of_tables_and_versions(shops, tmp_path):
    table = shops["old"] / "indexed.lance"
    assert table_of(table) == (table, None) and table_of(f"{table}@7") == (table, "7")
    assert table_of(shops["old"] / "catalog") is None and table_of(tmp_path / "a@b") is None and table_of("@x") is None


def test_a_ray_cluster_fills_the_index(shops, tmp_path, monkeypatch, cluster):
    pytest.importorskip("lance_ray")
    monkeypatch.setattr(lance_index, "FLAT_ITEMS", 500)
    monkeypatch.setattr("lrvsf.scale.write_lance.FRAGMENT", 300)
    path = tmp_path / "by-ray.lance"
    write_lance(shops["old"] / "catalog", path, "local")
    catalog = Catalog.open(path)
    (about,) = catalog.generation.table.describe_indices()
    assert len(catalog.generation.table.get_fragments()) == 3 and about.index_type == "IVF_RQ"
    for allowed in (None, *selections(catalog.vectors)):
        rows = catalog.index.search(queries(), 10, allowed)[1]
        truth = catalog.vectors.best(torch.from_numpy(queries()), 10, allowed)[1]
        assert recall(rows, truth) >= 0.95
