"""What is refused before any work, and how columns are spelled where a database takes other names."""

import re

import pytest

from lrvsf.search.exporting.databases import DATABASES, check_dims, check_form, field_names

COLUMNS = ["id", "key", "vector", "Unit price", "unit_price", "a.b", "a_b", "_id", "1st", "\u00e9" * 200, "n\0ul", 'q"']


@pytest.mark.parametrize("to", DATABASES)
def test_fields_are_legal_and_no_two_are_one(to):
    database, names = DATABASES[to], field_names(to, COLUMNS)
    assert list(names) == COLUMNS and names["id"] == "id"
    fields = [name.lower() for name in names.values()]
    assert len(set(fields)) == len(fields) and not set(fields) & database.reserved
    for name in names.values():
        assert name and not re.search(database.illegal, name) and re.match(database.first, name)
        assert len(name.encode()) <= database.longest


def test_fields_by_hand():
    assert field_names("milvus", COLUMNS[:8]) == {
        **{"id": "id", "key": "metadata_key", "vector": "metadata_vector", "Unit price": "Unit_price_2"},
        **{"unit_price": "unit_price", "a.b": "a_b_2", "a_b": "a_b", "_id": "_id"},
    }
    assert field_names("pgvector", COLUMNS[3:8]) == {name: name for name in COLUMNS[3:8]}
    assert field_names("elasticsearch", ["a.b", "_id"]) == {"a.b": "a_b", "_id": "metadata__id"}
    assert field_names("qdrant", ["id", "vector", "key"]) == {name: name for name in ("id", "vector", "key")}
    assert field_names("parquet", ["id", "vector", "a.b"])["a.b"] == "a.b"


def test_too_many_columns_are_refused():
    columns = ["id", *(f"c{number}" for number in range(61))]
    assert len(field_names("milvus", columns)) == 62
    with pytest.raises(ValueError, match="has 63 columns, and milvus takes 62; leave some out"):
        field_names("milvus", [*columns, "one more"])


@pytest.mark.parametrize(
    "to, dtype, dims, remedy",
    [
        ("pgvector", "float32", 2_001, "take --dtype float16, or index the catalog anew with --dims 2000"),
        ("pgvector", "float16", 4_001, "float16; index the catalog anew with --dims 4000"),
        ("elasticsearch", "int8", 4_097, "indexes at most 4,096 of int8; index"),
        ("milvus", "float32", 40_000, "at most 32,768 of float32; index"),
    ],
)
def test_too_many_dimensions_are_refused(to, dtype, dims, remedy):
    check_dims(to, dtype, DATABASES[to].most_dims[dtype])
    with pytest.raises(ValueError, match=remedy):
        check_dims(to, dtype, dims)


def test_forms_that_a_database_lacks_are_refused():
    for to, database in DATABASES.items():
        assert check_form(to, "float32") is database
    with pytest.raises(ValueError, match="to=chroma is unknown; take parquet, qdrant"):
        check_form("chroma", "float32")
    with pytest.raises(ValueError, match="dtype=int8 is no form of vectors for pgvector; take float32 or float16"):
        check_form("pgvector", "int8")
    with pytest.raises(ValueError, match="dtype=bf16 is unknown; take float32"):
        check_form("parquet", "bf16")
