"""The table of queries: by hand, against a loop over draws, and against the recalls of whole evaluations."""

import pickle

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from made import measured_products

from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding.encoder import Encoder
from lrvsf.evaluation import paper
from lrvsf.evaluation.bootstrap import BootstrapSettings, evaluate_bootstrap
from lrvsf.evaluation.embedded import EmbeddedTestSet
from lrvsf.evaluation.paper import evaluate_paper
from lrvsf.evaluation.queries import COLUMNS, QueryTable, load_queries
from lrvsf.evaluation.recall import GalleryRanks
from lrvsf.evaluation.stored_folds import convert


def test_by_hand(tmp_path):
    """Three products, two folds; the second was never drawn, and one item ties with the third's target."""
    above, tied = torch.tensor([[0, 7], [0, 0], [4, 2]]), torch.tensor([[0, 0], [0, 0], [1, 0]])
    ranks = GalleryRanks(above, tied, weights=torch.tensor([[3.0, 1], [0, 0], [2, 1]]))
    table = QueryTable()
    table.add(500, ranks, measured_products([4, 5, 9], ["Bags", "Feet", "Neck"], ["a", "b", None]), "galleries")
    table.save(tmp_path / "new" / "queries.parquet")
    first, third = load_queries(tmp_path / "new").to_pylist()
    head = {"galleries": "galleries", "size": 500}
    assert first == head | {
        "product_row": 4, "product_id": "a", "category": "Bags", "draws": 4, "mean_rank": (3 * 1 + 8) / 4,
        "hit_at_1": 0.75, "hit_at_5": 0.75, "hit_at_10": 1.0,
    }  # fmt: skip
    assert third == head | {
        "product_row": 9, "product_id": None, "category": "Neck", "draws": 3,
        "mean_rank": pytest.approx((2 * 5.5 + 3) / 3),
        "hit_at_1": 0.0, "hit_at_5": pytest.approx(1 / 3), "hit_at_10": 1.0,
    }  # fmt: skip
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["queries.parquet"]


def naive_rows(ranks):
    """The twin: one draw after the other."""
    rows = {}
    for product, (weights, expected) in enumerate(zip(ranks.weights.tolist(), ranks.expected.tolist(), strict=True)):
        drawn = [rank for weight, rank in zip(weights, expected, strict=True) for _ in range(int(weight))]
        if drawn:
            hits = [sum(rank <= k for rank in drawn) / len(drawn) for k in (1, 5, 10)]
            rows[product] = [len(drawn), sum(drawn) / len(drawn), *hits]
    return rows


@pytest.mark.parametrize("seed", range(3))
def test_equals_a_loop_over_draws(tmp_path, seed):
    generator = torch.Generator().manual_seed(seed)
    above, tied, weights = (torch.randint(0, n, (13, 5), generator=generator) for n in (14, 3, 2))
    ranks = GalleryRanks(above, tied, weights.float())
    table = QueryTable()
    table.add(9, ranks, measured_products(list(range(13)), ["Bags"] * 13), "galleries")
    table.save(tmp_path / "queries.parquet")
    found = {row["product_row"]: [row[name] for name in COLUMNS[4:]] for row in load_queries(tmp_path).to_pylist()}
    expected = naive_rows(ranks)
    assert found.keys() == expected.keys()
    assert all(found[product] == pytest.approx(expected[product]) for product in expected)


def pooled(table, galleries, size, k):
    chosen = table.filter((pc.field("galleries") == galleries) & (pc.field("size") == size))
    draws = chosen["draws"]
    return pc.sum(pc.multiply(chosen[f"hit_at_{k}"], draws)).as_py() / pc.sum(draws).as_py(), pc.sum(draws).as_py()


def test_a_bootstrap_evaluation_adds_up_to_its_recalls(make_test_set, make_store, tiny_model, tmp_path):
    """Product 4 cannot be read, so rows are not positions."""
    test_set, queries = ProductTestSet(make_test_set(bad={"SIMPLE_IMG": {4: b""}})), QueryTable()
    settings = BootstrapSettings([10, 40], folds=3)
    results = evaluate_bootstrap(
        EmbeddedTestSet(make_store(Encoder(tiny_model, "category"), test_set, 8, 0.5)), settings, queries
    )
    queries.save(tmp_path / "queries.parquet")
    table = load_queries(tmp_path)
    for size in (10, 40):
        for k in (1, 5, 10):
            mean = results["galleries"][str(size)]["recall"][str(k)]["mean"]
            assert pooled(table, "galleries", size, k) == (pytest.approx(mean), 3 * 11)
    names = test_set.categories()
    assert 4 not in table["product_row"].to_pylist() and 11 in table["product_row"].to_pylist()
    assert all(names[row["product_row"]] == row["category"] for row in table.to_pylist())
    assert all(f"p{row['product_row']}" == row["product_id"] for row in table.to_pylist())
    skipped = results["skipped_rows"]["products"]
    place = {"product_id": "p4", "file": "products.parquet", "row_in_file": 4}
    assert skipped == [{"row": 4, **place, "reason": "empty"}]


def test_a_paper_evaluation_has_both_its_parts(make_test_set, make_store, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(paper, "SIZES", (0, 40))
    draws = {"test_subsets": [["p3", "p3", "p0"], ["p7", "p5", "p1"]], "dist_3_subsets": [["d2", "d2", "d9"]] * 2}
    (tmp_path / "ids.pkl").write_bytes(pickle.dumps(draws))
    convert(tmp_path / "ids.pkl", tmp_path / "folds.safetensors")
    test_set, queries = ProductTestSet(make_test_set()), QueryTable()
    folds = str(tmp_path / "folds.safetensors")
    results = evaluate_paper(
        EmbeddedTestSet(make_store(Encoder(tiny_model, "category"), test_set, 8)), folds, queries=queries
    )
    queries.save(tmp_path / "queries.parquet")
    table = load_queries(tmp_path)
    for part, galleries, sizes, queries_of_all in (
        ("galleries", results["galleries"], (0, 40), 12),
        ("stored_folds", results["stored_folds"]["galleries"], (0, 3), 6),
    ):
        for size in sizes:
            mean = galleries[str(size)]["recall"]["5"]["mean"]
            assert pooled(table, part, size, 5) == (pytest.approx(mean), queries_of_all)
    assert len(table) == 2 * 12 + 2 * 5


def test_another_or_no_table_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="queries.parquet does not exist. Evaluate the model again"):
        load_queries(tmp_path)
    pq.write_table(pa.table({"size": [1]}), tmp_path / "queries.parquet")
    with pytest.raises(ValueError, match="lacks galleries, product_row.* it has size"):
        load_queries(tmp_path)
