"""What a test set's rows are joined by: what joins is joined whatever the column's type, what does not is named."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding.encoder import Encoder
from lrvsf.evaluation.columns import ids_of, join_categories
from lrvsf.evaluation.embedded import EmbeddedTestSet
from lrvsf.evaluation.paper import evaluate_paper
from lrvsf.evaluation.results import results_table


@pytest.fixture
def made(make_test_set):
    """made(products, distractors): 4 products and 9 distractors of these categories, lists or Arrow arrays."""
    root = make_test_set(products=4, distractors=9)

    def make(products, distractors):
        first, second = sorted((root / "distractors").iterdir())
        tables = [pq.read_table(file, columns=["jpg", "PRODUCT_ID"]) for file in (first, second)]
        second.unlink()
        whole = pa.concat_tables(tables).append_column("CATEGORY", pa.chunked_array([pa.array(distractors)]))
        pq.write_table(whole, first)
        file = root / "products.parquet"
        table = pq.read_table(file).drop_columns(["CATEGORY"])
        pq.write_table(table.append_column("CATEGORY", pa.array(products, pa.string())), file)
        return ProductTestSet(root)

    return make


FINE = ["Bags", "Feet"] * 4 + ["Hats"]


@pytest.mark.parametrize(
    "products, distractors",
    [
        (["Bags", "Feet"] * 2, FINE),
        (["Bags ", "\tFeet"] * 2, FINE),
        (["Bags", "Feet"] * 2, [f" {name} " for name in FINE]),
        (["Bags", "Feet"] * 2, pa.array([name.encode() for name in FINE])),
        (["Bags", "Feet"] * 2, pa.array(FINE).dictionary_encode()),
        (["Bags", "Feet"] * 2, pa.array(FINE, pa.large_string())),
        (["1", "2"] * 2, [1, 2] * 4 + [7]),
        (["1", "2"] * 2, [1.0, 2.0] * 4 + [7.0]),
        (["1", "2"] * 2, pa.array(np.array([1, 2] * 4 + [7], np.float32))),
        (["T\xe9", "Feet"] * 2, ["T\xe9", "Feet"] * 4 + ["Hats"]),
    ],
)
def test_one_name_is_joined_in_columns_of_any_type(made, products, distractors):
    joined = join_categories(made(products, distractors))
    assert joined.products.tolist() == [0, 1, 0, 1] and joined.distractors.tolist() == [0, 1] * 4 + [-1]
    assert joined.names == [name.strip() for name in products[:2]] and not joined.nameless
    assert joined.foreign == {"7" if products[0] == "1" else "Hats": 1}


@pytest.mark.survives(
    "distractors whose category is empty, misspelt, of another case or padded",
    "joined, or refused with counts; if allowed, the table says how many items each category's gallery has",
)
@pytest.mark.parametrize(
    "products, distractors, says",
    [
        (["Bags"] * 4, pa.nulls(9), "9 distractors have no category .the cell is empty.\n.*4 products .*'Bags'"),
        (["Bags"] * 4, ["Bags"] * 8 + [None], "1 distractors have no category .the cell is empty"),
        (["Bags"] * 4, ["Bags"] * 7 + ["", "nan"], "1 distractors .*empty.\n.*1 distractors .*a word for nothing"),
        (["Bags"] * 4, pa.array([1.5] * 9), "9 distractors have no category .*a number with a fraction"),
        (["Bags", "Feet"] * 2, ["Bags"] * 9, "2 products are of category 'Feet', which no distractor has"),
        (["Bags"] * 4, ["bags"] * 9, "'Bags', which no distractor has. Did you mean 'bags'"),
        (["Bags"] * 4, ["Bgas"] * 9, "'Bags', which no distractor has. Did you mean 'Bgas'"),
        (["Bags"] * 4, ["Bags"] * 8 + ["bags"], "'Bags' and 'bags' look alike"),
        (["Bags"] * 4, ["Bags"] * 8 + ["Ba\u200bgs"], "look alike"),
        (["T\xe9"] * 4, ["T\xe9"] * 8 + ["Te\u0301"], "look alike"),
        (["Bags", "bags"] * 2, ["Bags", "bags"] * 4 + ["Bags"], "look alike"),
        (list("abcd"), ["x"] * 9, "1 products are of category 'd', which no distractor has"),
    ],
)
def test_what_does_not_join_is_refused_unless_allowed(made, products, distractors, says):
    test_set = made(products, distractors)
    joined = join_categories(test_set)
    with pytest.raises(ValueError, match=f"(?s){says}.*--allow_unmatched_categories True"):
        joined.check()
    known = int((joined.distractors >= 0).sum())
    assert known + sum(joined.nameless.values()) + sum(joined.foreign.values()) == 9


def test_nested_cells_are_refused(made):
    with pytest.raises(ValueError, match="has list<.*> in CATEGORY, where text must be"):
        join_categories(made(["Bags"] * 4, [["Bags"]] * 9))


def test_products_need_a_category(made):
    with pytest.raises(ValueError, match="1 products of .* have no category, the first is row 2"):
        join_categories(made(["Bags", "Bags", None, "Bags"], ["Bags"] * 9))


def test_results_and_table_say_what_was_allowed(made, tiny_model, make_store):
    test_set = made(["Bags", "Feet"] * 2, ["Bags"] * 3 + ["Baggs"] * 2 + [None] * 4)
    results = evaluate_paper(
        EmbeddedTestSet(make_store(Encoder(tiny_model, "category"), test_set, 8)), allow_unmatched=True
    )
    assert results["unmatched"] == {
        "categories": ["Bags", "Feet"],
        "distractors_without_category": {"the cell is empty": 4},
        "distractors_of_other_categories": {"Baggs": 2},
        "categories_without_distractors": ["Feet"],
    }
    assert results["galleries"]["0"]["items_by_category"] == {"Bags": 2, "Feet": 2}
    assert results["galleries"]["9"]["items_by_category"] == {"Bags": 5, "Feet": 2}
    table = results_table({"model": "a model", **results})
    assert "        9   Bags 5, Feet 2\n" in table and max(map(len, table.splitlines())) <= 80
    flat = " ".join(table.split())
    assert "4 distractors have no category (the cell is empty)" in flat and "No distractor is of Feet: such" in flat
    assert "2 distractors are of categories that no product has: Baggs 2 (did you mean 'Bags'?)." in flat


def test_ids(make_test_set):
    test_set = ProductTestSet(make_test_set(products=4, distractors=9))
    assert ids_of(test_set, "products") == ["p0", "p1", "p2", "p3"]
    assert ids_of(test_set, "distractors")[7:] == ["d7", "d8"]


def test_a_column_that_is_not_there_is_named(make_test_set, tiny_model, make_store):
    test_set = ProductTestSet(make_test_set(products=4, distractors=9))
    file = test_set.root / "distractors" / "1.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["CATEGORY"]), file)
    store = make_store(Encoder(tiny_model, "category"), test_set)
    store.fill = None  # nothing may be embedded
    with pytest.raises(ValueError, match="1.parquet has no column CATEGORY.* it has jpg, PRODUCT_ID"):
        evaluate_paper(EmbeddedTestSet(store))
