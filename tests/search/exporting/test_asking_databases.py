"""The examples of docs/search.md, "Into a vector database", run as they stand, each against its own client."""

import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pyarrow.parquet as pq
import pytest
from examples import examples
from made import squares, write_file

import search_catalog
from lrvsf.search.catalog import Catalog

CLIENTS = "make databases has this client"
BLOCKS = examples("docs/search.md", "Into a vector database", 7)


@pytest.fixture(scope="module")
def place(tmp_path_factory, _shop):
    """A folder with `catalog`, of eight items with prices, its exports, and photo.jpg."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(_shop / "catalog", folder / "catalog")
    write_file(folder / "photo.jpg", squares(103))
    return folder


@pytest.fixture
def ask(place, monkeypatch):
    """`ask("qdrant_client", "qdrant", connect)`: runs the example that imports a client, over an export.

    `connect(folder)` gives what stands for the server that the example names; its connection is patched in.
    """

    def run(module, to, connect=None):
        (block,) = (block for block in BLOCKS[1:] if re.search(rf"^(import|from) {module}\b", block, re.MULTILINE))
        if not (place / f"shop-{to}").exists():
            search_catalog.main(["export", str(place / "catalog"), str(place / f"shop-{to}"), "--to", to])
        monkeypatch.chdir(place)
        if connect:
            connect(place / f"shop-{to}")
        names = {}
        exec(BLOCKS[0], names)
        exec(block, names)
        catalog = Catalog.open("catalog")
        ours = catalog.search("photo.jpg", category="Bags", where="price < 50", group=None)
        scores = {hit.id: hit.score for hit in ours}
        assert [score for _, score in names["found"]] == pytest.approx([hit.score for hit in ours], abs=1e-5)
        assert {name: score for name, score in names["found"]} == pytest.approx(scores, abs=1e-5)  # the model is random
        assert len(scores) == 4

    return run


def test_there_is_an_example_for_each():
    assert len(BLOCKS) == 7


def test_parquet(ask):
    ask("pyarrow.parquet", "parquet")


def test_qdrant(ask, monkeypatch):
    client = pytest.importorskip("qdrant_client", reason=CLIENTS)
    local = client.QdrantClient(":memory:")

    def connect(folder):
        body = client.models.CreateCollection(**json.loads((folder / "collection.json").read_text()))
        local.create_collection("items", vectors_config=body.vectors)
        points = json.loads((folder / "points/00000.json").read_text("utf-8"))["points"]
        local.upsert("items", [client.models.PointStruct(**point) for point in points])
        monkeypatch.setattr(client, "QdrantClient", lambda url: local)

    ask("qdrant_client", "qdrant", connect)


def test_lancedb(ask):
    pytest.importorskip("lancedb", reason=CLIENTS)
    ask("lancedb", "lancedb")


def test_milvus(ask, monkeypatch, tmp_path, milvus_collection):
    client = pytest.importorskip("pymilvus", reason=CLIENTS)
    pytest.importorskip("milvus_lite", reason=CLIENTS)
    local = client.MilvusClient(str(tmp_path / "lite.db"))

    def connect(folder):
        milvus_collection(local, json.loads((folder / "collection.json").read_text()))
        local.insert("items", pq.read_table(folder / "items.parquet").to_pylist())
        monkeypatch.setattr(client, "MilvusClient", lambda url: local)

    ask("pymilvus", "milvus", connect)
    local.close()


def test_pgvector(ask, monkeypatch, postgres):
    psycopg = pytest.importorskip("psycopg", reason=CLIENTS)
    psql, database = postgres

    def connect(folder):
        database.execute("DROP TABLE IF EXISTS items")
        psql(folder)
        connect_to = psycopg.connect
        monkeypatch.setattr(psycopg, "connect", lambda url: connect_to(database.info.dsn))

    ask("psycopg", "pgvector", connect)


class Elastic(BaseHTTPRequestHandler):
    """What the example asks of Elasticsearch, as its documentation has it: exact kNN over the bulk lines."""

    documents: list = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        knn = body["knn"]
        assert (self.path, body["size"], knn["field"]) == ("/items/_search", 10, "vector")
        ((field, bounds),) = knn["filter"]["range"].items()
        passed = [document for document in self.documents if document[field] < bounds["lt"]]
        scores = [(1 + np.dot(document["vector"], knn["query_vector"])) / 2 for document in passed]
        order = np.argsort(scores)[::-1][: knn["k"]]
        hits = [{"_score": scores[place], "_source": passed[place]} for place in order]
        answer = json.dumps({"hits": {"hits": hits}}).encode()
        self.send_response(200)
        for name, value in (("X-Elastic-Product", "Elasticsearch"), ("Content-Length", len(answer))):
            self.send_header(name, str(value))
        self.send_header("Content-Type", "application/vnd.elasticsearch+json; compatible-with=9")
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        pass


@pytest.fixture
def elastic():
    """The address of that server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Elastic)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_elasticsearch(ask, monkeypatch, elastic):
    client = pytest.importorskip("elasticsearch", reason=CLIENTS)
    made = client.Elasticsearch

    def connect(folder):
        lines = (folder / "bulk/00000.ndjson").read_text("utf-8").removesuffix("\n").split("\n")
        monkeypatch.setattr(Elastic, "documents", [json.loads(line) for line in lines[1::2]])
        monkeypatch.setattr(client, "Elasticsearch", lambda url: made(elastic))

    ask("elasticsearch", "elasticsearch", connect)
