"""The commands of README.md, run by a shell as they stand, send what the database's documentation asks for."""

import json
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl")


class Recorder(BaseHTTPRequestHandler):
    """Keeps what is asked: (method, path, kind of content, body)."""

    asked: list = []
    answer = b"{}"

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append((self.command, self.path, self.headers["Content-Type"], body))
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.answer)))
        self.end_headers()
        self.wfile.write(self.answer)

    do_POST = do_PUT

    def log_message(self, *args):
        pass


@pytest.fixture
def load(exported, monkeypatch):
    """`load("qdrant", answer)`: runs the commands against a server of loopback; what it was asked, what was printed."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def run(to, answer=b"{}"):
        monkeypatch.setattr(Recorder, "asked", [])
        monkeypatch.setattr(Recorder, "answer", answer)
        folder = exported(to)
        (commands,) = re.findall(r"^```\n(.*?)^```", (folder / "README.md").read_text(), re.MULTILINE | re.DOTALL)
        commands, count = re.subn(r"http://localhost:\d+", f"http://127.0.0.1:{server.server_port}", commands)
        assert count == 1
        commands = commands.replace("mc cp", ": mc cp")  # Milvus' storage is not there
        told = subprocess.run(["sh", "-e"], input=commands, cwd=folder, capture_output=True, text=True, timeout=180)
        assert told.returncode == 0, told.stderr
        return Recorder.asked, told.stdout

    yield run
    server.shutdown()
    server.server_close()
    thread.join()


def test_qdrant(load, exported):
    asked, _ = load("qdrant")
    assert {kind for _, _, kind, _ in asked} == {"application/json"} and {method for method, *_ in asked} == {"PUT"}
    paths = [path for _, path, _, _ in asked]
    fields = len(list(exported("qdrant").glob("indexes/*.json")))
    assert paths == [
        *("/collections/items", *["/collections/items/index"] * fields),
        *["/collections/items/points?wait=true"] * 2,
    ]
    assert sum(len(json.loads(body)["points"]) for *_, body in asked[-2:]) == 1497


def test_elasticsearch(load, exported):
    asked, told = load("elasticsearch", b'{"took":1,"errors":false,"items":[]}')
    assert [(method, path, kind) for method, path, kind, _ in asked] == [
        *(("PUT", "/items", "application/json"), ("POST", "/items/_bulk", "application/x-ndjson"))
    ]
    assert asked[1][3] == (exported("elasticsearch") / "bulk/00000.ndjson").read_bytes()  # with its newlines
    assert "not taken" not in told
    assert "bulk/00000.ndjson was not taken whole" in load("elasticsearch", b'{"errors":true}')[1]


def test_milvus(load):
    asked, _ = load("milvus")
    paths = [(method, path) for method, path, *_ in asked]
    assert paths == [("POST", "/v2/vectordb/collections/create"), ("POST", "/v2/vectordb/jobs/import/create")]
    assert json.loads(asked[1][3]) == {"collectionName": "items", "files": [["items.parquet"]]}
