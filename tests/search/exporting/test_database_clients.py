"""Each export is read back by the database's own client: the top 10 are ours, and so are ids, texts, numbers and days.

`make databases` has the clients. Elasticsearch has no server in Python: its helpers make the same lines of the same
documents.
"""

import datetime as dt
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from examples import blocks_of

from lrvsf.search.exporting.exported_items import key_of

CLIENTS = "make databases has this client"


@pytest.fixture(scope="module", params=["float32", "float16", "int8"])
def qdrant(request, exported):
    """A local Qdrant with an export loaded as its README.md says, by the client in place of curl."""
    qdrant_client = pytest.importorskip("qdrant_client", reason=CLIENTS)
    from qdrant_client import models

    folder, client = exported("qdrant", request.param), qdrant_client.QdrantClient(":memory:")
    body = models.CreateCollection(**json.loads((folder / "collection.json").read_text()))
    client.create_collection("items", vectors_config=body.vectors, quantization_config=body.quantization_config)
    for path in sorted(folder.glob("indexes/*.json")):
        models.CreateFieldIndex(**json.loads(path.read_text()))  # the local one has none
    for path in sorted(folder.glob("points/*.json")):
        points = models.PointsList(**json.loads(path.read_text("utf-8"))).points
        client.upsert("items", points)
    return client


def test_qdrant(qdrant, kept, same_as_ours):
    from qdrant_client import models

    assert qdrant.count("items").count == 1497

    def ask(query):
        found = qdrant.query_points("items", query=query.tolist(), limit=10).points
        return [(point.payload["id"], point.score) for point in found]

    same_as_ours(ask)
    (point,) = qdrant.retrieve("items", [str(key_of("x8"))])
    assert {name: point.payload[name] for name in ("title", "stock", "Unit price", "sold", "since")} == {
        **{name: kept["x8"][name] for name in ("title", "stock", "Unit price", "sold")},
        "since": str(kept["x8"]["since"]),
    }
    late = models.FieldCondition(key="since", range=models.DatetimeRange(gte=dt.datetime(1972, 1, 1)))
    found, _ = qdrant.scroll("items", models.Filter(must=[late]), limit=2000)
    since = {name: row["since"] for name, row in kept.items()}
    assert {point.payload["id"] for point in found} == {
        name for name, day in since.items() if day and day >= dt.date(1972, 1, 1)
    }


@pytest.mark.parametrize("dtype, within", [("float32", 1e-5), ("float16", 2e-3)])  # the query becomes float16, too
def test_lancedb(exported, kept, same_as_ours, dtype, within):
    lancedb = pytest.importorskip("lancedb", reason=CLIENTS)
    table = lancedb.connect(exported("lancedb", dtype)).open_table("items")
    assert table.count_rows() == 1497

    def ask(query):
        found = table.search(query).distance_type("cosine").limit(10).to_list()
        return [(row["id"], 1 - row["_distance"]) for row in found]

    same_as_ours(ask, within)
    rows = table.search().limit(2000).to_arrow().drop_columns(["vector"]).to_pylist()
    found = {row.pop("id"): row for row in rows}
    for name, row in kept.items():
        assert list(found[name].values()) == list(row.values())
    found = table.search().where("`Unit price` > 100").select(["id"]).limit(2000).to_list()
    assert {row["id"] for row in found} == {name for name, row in kept.items() if (row["Unit price"] or 0) > 100}


@pytest.fixture
def readme_s(exported, monkeypatch):
    """`readme_s("parquet", dtype, where)(query)`: the names that the example of an export's README.md leaves.

    It is run in the export's folder, or where the folder lies.
    """

    def of_export(to, dtype, beside=False):
        folder = exported(to, dtype)
        ((_, block),) = blocks_of((folder / "README.md").read_text("utf-8"))
        monkeypatch.chdir(folder.parent if beside else folder)

        def run(query):
            names = {"query": query}
            exec(block, names)
            return names

        return run

    return of_export


@pytest.mark.parametrize("dtype, within", [("float32", 1e-5), ("float16", 2e-3)])
def test_the_example_beside_a_parquet_file(readme_s, same_as_ours, dtype, within):
    run = readme_s("parquet", dtype)

    def ask(query):
        names = run(query)
        best = np.argsort(-names["scores"])[:10]
        return [(names["items"]["id"][int(row)].as_py(), names["scores"][row]) for row in best]

    same_as_ours(ask, within)


@pytest.mark.parametrize("dtype, within", [("float32", 1e-5), ("float16", 2e-3)])  # the query becomes float16, too
def test_the_example_beside_a_lancedb(readme_s, same_as_ours, dtype, within):
    pytest.importorskip("lancedb", reason=CLIENTS)
    run = readme_s("lancedb", dtype, beside=True)
    same_as_ours(lambda query: [(row["id"], 1 - row["_distance"]) for row in run(query)["found"]], within)


@pytest.fixture(scope="module")
def milvus(exported, tmp_path_factory, milvus_collection):
    """Milvus Lite with an export: the collection of the request, and the rows of the file."""
    pytest.importorskip("milvus_lite", reason=CLIENTS)
    pymilvus = pytest.importorskip("pymilvus", reason=CLIENTS)
    folder, client = exported("milvus"), pymilvus.MilvusClient(str(tmp_path_factory.mktemp("milvus") / "lite.db"))
    body = json.loads((folder / "collection.json").read_text())
    milvus_collection(client, body)
    client.insert("items", pq.read_table(folder / "items.parquet").to_pylist())
    yield client
    client.close()


def test_milvus(milvus, kept, same_as_ours):
    def ask(query):
        (found,) = milvus.search("items", data=[query.tolist()], limit=10, output_fields=["id"])
        return [(hit["entity"]["id"], hit["distance"]) for hit in found]

    same_as_ours(ask)
    (row,) = milvus.query("items", filter=f'key == "{key_of("x8")}"', output_fields=["title", "stock", "sold", "since"])
    assert {name: row[name] for name in ("title", "stock", "sold")} == {
        name: kept["x8"][name] for name in ("title", "stock", "sold")
    }
    assert row["since"] == str(kept["x8"]["since"])
    found = milvus.query("items", filter="Unit_price > 100", output_fields=["id"], limit=2000)
    assert {row["id"] for row in found} == {name for name, row in kept.items() if (row["Unit price"] or 0) > 100}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_pgvector(postgres, exported, kept, same_as_ours, dtype):
    psql, database = postgres
    database.execute("DROP TABLE IF EXISTS items")
    psql(exported("pgvector", dtype))
    kind = {"float32": "vector", "float16": "halfvec"}[dtype]

    def ask(query):
        # Exactly, as an HNSW is approximate; a float16 column compares in float32 with a cast.
        statement = "SELECT id, 1 - (vector::vector(64) <=> %(query)s::vector) FROM items ORDER BY 2 DESC LIMIT 10"
        return database.execute(statement, {"query": str(query.tolist())}).fetchall()

    same_as_ours(ask)
    cursor = database.execute("SELECT * FROM items")
    names = [column.name for column in cursor.description]
    rows = {row[1]: dict(zip(names, row, strict=True)) for row in cursor.fetchall()}
    assert rows["x0"]["key"] == key_of("x0")
    for name, row in kept.items():
        for column, cell in row.items():
            assert rows[name]["metadata_vector" if column == "vector" else column] == cell, (name, column)
    database.execute("SET enable_seqscan = off")
    plan = database.execute(
        f"EXPLAIN SELECT id FROM items ORDER BY vector <=> '{[0.1] * 64}'::{kind} LIMIT 10"
    ).fetchall()
    assert "items_vector_idx" in str(plan)  # the operators of the query are those of the index


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_milvus_own_bulk_writer_makes_the_same_file(exported, milvus_collection, tmp_path, dtype):
    pymilvus = pytest.importorskip("pymilvus.bulk_writer", reason=CLIENTS, exc_type=ImportError)
    folder = exported("milvus", dtype)
    ours, schema = pq.read_table(folder / "items.parquet"), json.loads((folder / "collection.json").read_text())
    writer = pymilvus.LocalBulkWriter(
        milvus_collection.schema(schema), str(tmp_path), file_type=pymilvus.BulkFileType.PARQUET
    )
    for row in ours.to_pylist():
        if dtype == "float16":
            row["vector"] = np.array(row["vector"], np.uint8).view("<f2")
        writer.append_row(row)
    writer.commit()
    ((path,),) = writer.batch_files
    theirs = pq.read_table(path)
    assert theirs.column_names == ours.column_names
    # Whole numbers beyond 2^53 next to empty cells are rounded by their writer, which goes through pandas.
    assert theirs.drop_columns(["stock"]).to_pylist() == ours.drop_columns(["stock"]).to_pylist()
    plain = [field for field in ours.schema if field.name != "vector"]
    assert [theirs.schema.field(field.name).type for field in plain] == [field.type for field in plain]
    assert theirs.schema.field("vector").type.value_type == ours.schema.field("vector").type.value_type


def test_elasticsearchs_helpers_make_the_same_lines(exported):
    helpers = pytest.importorskip("elasticsearch.helpers", reason=CLIENTS)
    from elasticsearch import JsonSerializer

    serializer = JsonSerializer()
    for path in sorted(exported("elasticsearch").glob("bulk/*.ndjson")):
        lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
        for action, document in zip(lines[::2], lines[1::2], strict=True):
            made = helpers.expand_action(
                {"_op_type": "index", "_id": json.loads(action)["index"]["_id"], "_source": json.loads(document)}
            )
            assert [json.loads(serializer.dumps(part)) for part in made] == [json.loads(action), json.loads(document)]
