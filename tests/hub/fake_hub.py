"""A Hub on loopback with one account, "me": enough of it to create a model repository, upload to it and commit.

It keeps what it is sent, gives the files of the last commit to who downloads them, and on request answers an endpoint
with an error, or not at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_right"
SHA = "a" * 40  # of every commit
SILENCE = 0  # a fault's status: take the request and never answer

ROUTES = {
    "create": r"POST /api/repos/create",
    "validate": r"POST /api/validate-yaml",
    "preupload": r"POST /api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<branch>\w+)",
    "batch": r"POST /(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch",
    "xet": r"GET /api/models/(?P<repo>[^/]+/[^/]+)/xet-write-token/(?P<branch>\w+)",  # served by its faults only
    "upload": r"PUT /storage/(?P<oid>[0-9a-f]{64})",
    "commit": r"POST /api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<branch>\w+)",
    "info": r"GET /api/models/(?P<repo>[^/]+/[^/]+)(/revision/\w+)?",
    "tree": r"GET /api/models/(?P<repo>[^/]+/[^/]+)/tree/\w+(/(?P<folder>.+))?",
}
FILE = r"(GET|HEAD) /(?P<repo>[^/]+/[^/]+)/resolve/\w+/(?P<path>.+)"


class FakeHub(ThreadingHTTPServer):
    """Serves from its making until `close`.

    Attributes:
        faults: endpoint (a key of ROUTES) -> (status, headers), for as long as it is there.
        asked: how often each endpoint was asked.
        repositories: name -> whether it is private.
        commits: one dictionary per commit, path -> bytes.
        branches: the branch of each commit.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.faults: dict[str, tuple[int, dict[str, str]]] = {}
        self.asked: Counter[str] = Counter()
        self.repositories: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.commits: list[dict[str, bytes]] = []
        self.branches: list[str] = []
        self.closing = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    # One method per route: the request's body -> (status, answer).

    def create(self, body: bytes) -> tuple[int, dict]:
        wanted = json.loads(body)
        owner = wanted["organization"] or "me"
        if owner != "me":
            return 403, {"error": f"You don't have the rights to create a model under the namespace {owner}"}
        repo = f"{owner}/{wanted['name']}"
        status = 409 if repo in self.repositories else 200
        self.repositories.setdefault(repo, wanted.get("visibility") == "private" or wanted.get("private") is True)
        return status, {"url": f"{self.url}/{repo}"}

    def validate(self, body: bytes) -> tuple[int, dict]:
        return 200, {"warnings": [], "errors": []}

    def preupload(self, body: bytes, repo: str, branch: str) -> tuple[int, dict]:
        """As on the Hub, the weights are large files and text is not."""
        paths = [file["path"] for file in json.loads(body)["files"]]
        large = [path.endswith(".safetensors") or "tfevents" in path for path in paths]
        modes = ["lfs" if is_large else "regular" for is_large in large]
        files = [{"path": path, "uploadMode": mode} for path, mode in zip(paths, modes, strict=True)]
        return 200, {"files": [{**file, "shouldIgnore": False, "oid": None} for file in files]}

    def batch(self, body: bytes, repo: str) -> tuple[int, dict]:
        objects = json.loads(body)["objects"]
        for wanted in objects:
            if wanted["oid"] not in self.objects:
                wanted["actions"] = {"upload": {"href": f"{self.url}/storage/{wanted['oid']}"}}
        return 200, {"transfer": "basic", "objects": objects}

    def upload(self, body: bytes, oid: str) -> tuple[int, dict]:
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {"error": "the bytes are not those of the digest"}
        self.objects[oid] = body
        return 200, {}

    def commit(self, body: bytes, repo: str, branch: str) -> tuple[int, dict]:
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
        self.commits.append(files)
        self.branches.append(branch)
        name = hashlib.sha1(body).hexdigest()
        return 200, {"success": True, "commitOid": name, "commitUrl": f"{self.url}/{repo}/commit/{name}"}

    def info(self, body: bytes, repo: str) -> tuple[int, dict]:
        if repo not in self.repositories or not self.commits:
            return 404, {"error": "Repository not found"}
        files = [{"rfilename": path} for path in self.commits[-1]]
        return 200, {"id": repo, "_id": "1", "sha": SHA, "private": self.repositories[repo], "siblings": files}

    def tree(self, body: bytes, repo: str, folder: str | None) -> tuple[int, list]:
        files = [(path, data) for path, data in self.commits[-1].items() if path.startswith(f"{folder or ''}")]
        return 200, [{"type": "file", "path": path, "size": len(data), "oid": "1"} for path, data in files]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = f"{self.command} {self.path.partition('?')[0]}"
        if wanted := re.fullmatch(FILE, request):
            return self.send_file(wanted["path"])
        matches = {name: re.fullmatch(pattern, request) for name, pattern in ROUTES.items()}
        route = next((name for name, match in matches.items() if match), "")
        self.server.asked[route] += 1
        if route in self.server.faults:
            status, headers = self.server.faults[route]
            if status == SILENCE:
                self.server.closing.wait()
                self.close_connection = True
                return
            page = b"<html>trouble</html>" if status >= 500 else json.dumps({"error": f"told to say {status}"}).encode()
            return self.send(status, page, headers)
        if not route:
            return self.send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        if route != "upload" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.send(401, b'{"error": "Invalid username or password."}', {})
        status, answer = getattr(self.server, route)(body, **matches[route].groupdict())
        self.send(status, json.dumps(answer).encode(), {})

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def send_file(self, path: str) -> None:
        files = self.server.commits[-1] if self.server.commits else {}
        if path not in files:
            return self.send(404, b"Entry not found", {"X-Error-Code": "EntryNotFound"})
        name = hashlib.sha256(files[path]).hexdigest()
        self.send(200, files[path], {"X-Repo-Commit": SHA, "ETag": f'"{name}"'})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args) -> None:
        pass
