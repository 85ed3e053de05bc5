"""The files of an export read back by what is always here: Arrow, JSON, and COPY's binary form by hand.

`test_database_clients.py` reads them back by the databases themselves.
"""

import datetime as dt
import json
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from vector_shops import VectorShop, table_of_items

from lrvsf.search.exporting import write_elasticsearch, write_milvus, write_qdrant
from lrvsf.search.exporting.databases import field_names
from lrvsf.search.exporting.exported_items import key_of


def read_json(path):
    return json.loads(path.read_text("utf-8"))


def top10(ids, vectors):
    """Searches rows as any database does that looks at each: `ask` of `same_as_ours`."""
    unit = vectors / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)

    def ask(query):
        scores = unit @ query
        return [(ids[place], scores[place]) for place in np.argsort(-scores)[:10]]

    return ask


def same_cells(found, kept, to):
    """Whether rows {id: {field: cell}} are the catalog's; times are compared as moments."""
    names = field_names(to, ["id", *next(iter(kept.values()))])
    assert found.keys() == kept.keys()
    for name, row in kept.items():
        for column, cell in row.items():
            assert told(found[name][names[column]], cell) == cell, (name, column)


def told(found, cell):
    """A cell as the catalog has it, of one that a database gives as a text."""
    if isinstance(found, str) and isinstance(cell, dt.datetime):
        found = dt.datetime.fromisoformat(found)
    elif isinstance(found, str) and isinstance(cell, dt.date):
        found = dt.date.fromisoformat(found)
    return found


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_parquet(exported, kept, same_as_ours, dtype):
    items = pq.read_table(exported("parquet", dtype) / "items.parquet")
    assert items.schema.field("vector").type == pa.list_(getattr(pa, dtype)(), 64)
    assert items.schema.field("Unit price").type == pa.float64() and items.schema.field("since").type == pa.date32()
    vectors = items["vector"].combine_chunks().flatten().to_numpy().reshape(len(items), -1)
    same_as_ours(top10(items["id"].to_pylist(), vectors))
    cells = {row.pop("id"): row for row in items.drop_columns(["vector"]).to_pylist()}
    same_cells(cells, kept, "parquet")


def points_of(folder):
    return [point for path in sorted(folder.glob("points/*.json")) for point in read_json(path)["points"]]


def test_qdrant(exported, kept, same_as_ours, monkeypatch):
    folder = exported("qdrant")
    assert read_json(folder / "collection.json") == {"vectors": {"size": 64, "distance": "Cosine"}}
    assert len(list(folder.glob("points/*.json"))) == 2  # 1,497 of at most 1,000
    points = points_of(folder)
    ids = [point["payload"]["id"] for point in points]
    same_as_ours(top10(ids, np.array([point["vector"] for point in points])))
    assert [point["id"] for point in points if point["payload"]["id"] == "x0"] == [str(key_of("x0"))]
    same_cells({point["payload"]["id"]: point["payload"] for point in points}, kept, "qdrant")
    indexes = [read_json(path) for path in sorted(folder.glob("indexes/*.json"))]
    kinds = {index["field_name"]: index["field_schema"] for index in indexes}
    assert kinds["price"] == "integer" and kinds["Unit price"] == "float" and kinds["a_b"] == kinds["id"] == "keyword"
    assert kinds["sold"] == "bool" and kinds["since"] == kinds["seen"] == "datetime"


@pytest.mark.parametrize(
    "dtype, told", [("float16", '"datatype": "float16"'), ("int8", '"scalar": {"type": "int8", "always_ram": true}')]
)
def test_qdrant_keeps_less(exported, dtype, told):
    assert told in json.dumps(read_json(exported("qdrant", dtype) / "collection.json"))


def test_vectors_in_json_are_the_same_float32(exported):
    rows = pq.read_table(exported("parquet") / "items.parquet")["vector"].to_pylist()
    assert all(
        np.array_equal(np.float32(point["vector"]), np.float32(row))
        for point, row in zip(points_of(exported("qdrant")), rows, strict=True)
    )


@pytest.mark.parametrize("most, most_bytes", [(2, 100), (100, 5), (3, 7), (1, 1)])
def test_parts_are_limited_in_length_and_size(most, most_bytes):
    texts = ["a", "bbbb", "cc", "\u00e9\u00e9\u00e9", "d", "eeeeeeeee", "f"]
    parts = list(write_qdrant.parts_of(iter(texts), most, most_bytes))
    assert sum(parts, []) == texts and [] not in parts
    for part in parts:
        assert len(part) <= most and (len(part) == 1 or len("".join(part).encode()) <= most_bytes)


def test_elasticsearch(exported, kept, same_as_ours):
    folder = exported("elasticsearch")
    fields = read_json(folder / "index.json")["mappings"]["properties"]
    assert fields["vector"] == {
        **{"type": "dense_vector", "dims": 64, "similarity": "dot_product", "index_options": {"type": "hnsw"}}
    }
    assert (
        fields["stock"]["type"] == "long" and fields["seen"]["type"] == "date" and fields["title"]["type"] == "keyword"
    )
    text = "".join(path.read_text("utf-8") for path in sorted(folder.glob("bulk/*.ndjson")))
    assert text.endswith("\n")
    lines = [json.loads(line) for line in text.removesuffix("\n").split("\n")]
    documents = lines[1::2]
    assert [line["index"]["_id"] for line in lines[:4:2]] == [str(key_of(name)) for name in ("x0", "x1")]
    assert all(document.keys() == fields.keys() for document in documents)  # the mapping is strict
    vectors = np.array([document["vector"] for document in documents])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    same_as_ours(top10([document["id"] for document in documents], vectors))
    same_cells({document["id"]: document for document in documents}, kept, "elasticsearch")


def test_elasticsearch_keeps_less():
    kind = write_elasticsearch.mappings(pa.schema([("id", pa.string())]), 8, "int8")["properties"]["vector"]
    assert kind["index_options"] == {"type": "int8_hnsw"}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_milvus(exported, kept, same_as_ours, dtype):
    folder = exported("milvus", dtype)
    items, body = pq.read_table(folder / "items.parquet"), read_json(folder / "collection.json")
    fields = {field["fieldName"]: field for field in body["schema"]["fields"]}
    assert list(fields) == items.column_names and body["indexParams"][0]["metricType"] == "COSINE"
    assert fields["key"]["isPrimary"] and fields["vector"]["elementTypeParams"] == {"dim": "64"}
    kinds = {name: field["dataType"] for name, field in fields.items()}
    assert (kinds["stock"], kinds["sold"], kinds["Unit_price"], kinds["seen"]) == ("Int64", "Bool", "Double", "VarChar")
    vectors = np.array(items["vector"].to_pylist())
    if dtype == "float16":
        assert kinds["vector"] == "Float16Vector" and vectors.shape[1] == 128
        vectors = vectors.astype(np.uint8).view("<f2")
    same_as_ours(top10(items["id"].to_pylist(), vectors))
    rows = items.drop_columns(["vector", "key"]).to_pylist()
    same_cells({row["id"]: row for row in rows}, kept, "milvus")


def test_a_text_too_long_for_milvus_is_refused(odd_shop, tmp_path, step, monkeypatch):
    monkeypatch.setattr(write_milvus, "MOST_BYTES", 15)
    with pytest.raises(ValueError, match="item 'x1' has 17 bytes in 'title', and milvus takes 15; shorten it"):
        step("export", odd_shop, tmp_path / "out", "--to", "milvus")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype, number", [("float32", ">f4"), ("float16", ">f2")])
def test_pgvector(exported, kept, same_as_ours, dtype, number):
    folder = exported("pgvector", dtype)
    kind = {"float32": "vector", "float16": "halfvec"}[dtype]
    sql = (folder / "load.sql").read_text()
    assert f'"vector" {kind}(64) NOT NULL' in sql and f'USING hnsw ("vector" {kind}_cosine_ops)' in sql
    names = [line.split('"')[1] for line in sql.splitlines() if line.startswith("    ")]
    rows = [dict(zip(names, row, strict=True)) for row in copied((folder / "items.copy").read_bytes())]
    same_as_ours(
        top10(
            [row["id"].decode() for row in rows], np.array([np.frombuffer(row["vector"][4:], number) for row in rows])
        )
    )
    assert {row["vector"][:4] for row in rows} == {struct.pack(">hh", 64, 0)}
    read = {
        **{"title": bytes.decode, "brand": bytes.decode, "stock": lambda cell: struct.unpack(">q", cell)[0]},
        **{"Unit price": lambda cell: struct.unpack(">d", cell)[0], "sold": lambda cell: cell == b"\1"},
        "since": lambda cell: dt.date(2000, 1, 1) + dt.timedelta(struct.unpack(">i", cell)[0]),
        "made": lambda cell: dt.datetime(2000, 1, 1) + dt.timedelta(microseconds=struct.unpack(">q", cell)[0]),
    }
    for ident, row in {row["id"].decode(): row for row in rows}.items():
        for name, reader in read.items():
            assert (None if row[name] is None else reader(row[name])) == kept[ident][name]


@pytest.mark.parametrize(
    "to, text, told",
    [("pgvector", "n\0ul", "texts with a NUL, now U+FFFD"), ("elasticsearch", "x" * 8192, "texts over 8,191")],
)
def test_what_a_database_cannot_keep_is_counted_and_named(tmp_path, step, capsys, to, text, told):
    shop = VectorShop(tmp_path / "catalog")
    shop.answer(shop.segment("a", table_of_items(range(4), title=["a", None, text, "x" * 8191])))
    step("export", tmp_path / "catalog", tmp_path / "out", "--to", to)
    printed = capsys.readouterr().out
    assert told in printed and "x2" in printed and f": 1 {told}" in (tmp_path / "out/README.md").read_text()


def copied(data):
    """The rows of COPY's binary form, as PostgreSQL's manual describes it: lists of bytes, None for an empty cell."""
    assert data[:19] == b"PGCOPY\n\xff\r\n\0" + bytes(8)
    place = 19
    while (count := struct.unpack_from(">h", data, place)[0]) != -1:
        place, row = place + 2, []
        for _ in range(count):
            (length,) = struct.unpack_from(">i", data, place)
            place += 4
            row.append(None if length == -1 else data[place : place + length])
            place += max(length, 0)
        yield row
    assert place + 2 == len(data)
