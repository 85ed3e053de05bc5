"""A Hub on loopback with one data set, me/shop: enough of it for `datasets` to look it up and to stream its files.

One that is not there, one that is private, and connections that break are answered as the Hub answers them.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKEN = "hf_right"
COMMIT = "c" * 40
PRIVATE, SHOP = "me/private", "me/shop"
API = r"/api/datasets/(?P<repo>[^/]+/[^/]+)"


class DatasetHub(ThreadingHTTPServer):
    """Serves the files of a folder as me/shop, and as me/private to whoever has the token, until `close`.

    Attributes:
        asked: "METHOD path" of each request.
        left: bytes of files that are sent before every connection breaks; None: none does.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[str] = []
        self.left: int | None = None
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    def entry(self, name: str) -> dict[str, object]:
        data = self.files[name]
        return {"type": "file", "path": name, "oid": hashlib.sha1(data).hexdigest(), "size": len(data)}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: DatasetHub

    def answer(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        routes = {
            API: self.about,
            rf"{API}/revision/(?P<revision>[^/]+)": self.about,
            rf"{API}/tree/(?P<revision>[^/]+)/?(?P<below>.*)": self.tree,
            rf"{API}/paths-info/(?P<revision>[^/]+)": self.paths_info,
            r"/datasets/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)": self.file,
        }
        for pattern, route in routes.items():
            if match := re.fullmatch(pattern, path.replace("%2F", "/")):
                repo = match["repo"]
                if repo == SHOP or (repo == PRIVATE and self.headers.get("Authorization") == f"Bearer {TOKEN}"):
                    return route(**match.groupdict())
                # As the Hub: who has no token is not told whether there is such a data set. (The Hub leaves the code
                # out, and the client supplies it, but only where an address begins with https.)
                return self.json({"error": "Invalid username or password."}, 401, {"X-Error-Code": "RepoNotFound"})
        self.json({"error": "Not found"}, 404)

    do_GET = do_HEAD = do_POST = answer

    def about(self, repo: str, revision: str = "main") -> None:
        siblings = [{"rfilename": name} for name in self.server.files]
        self.json({"id": repo, "sha": COMMIT, "private": repo == PRIVATE, "gated": False, "siblings": siblings})

    def tree(self, repo: str, revision: str, below: str) -> None:
        """What a folder holds, the folders in it included."""
        entries, start = {}, f"{below}/" if below else ""
        for name in (name for name in self.server.files if name.startswith(start)):
            inner, slash, _ = name.removeprefix(start).partition("/")
            folder = {"type": "directory", "path": start + inner, "oid": "f" * 40, "size": 0}
            entries[inner] = folder if slash else self.server.entry(name)
        if not entries:
            return self.json({"error": f"{below} does not exist"}, 404, {"X-Error-Code": "EntryNotFound"})
        self.json(list(entries.values()))

    def paths_info(self, repo: str, revision: str) -> None:
        wanted = json.loads(self.body)["paths"]
        found = [self.server.entry(name) for name in wanted if name in self.server.files]
        self.json(found)

    def file(self, repo: str, revision: str, name: str) -> None:
        data = self.server.files.get(name)
        if data is None:
            return self.json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        status = 200
        if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(span[1]), int(span[2] or len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"
            data, status = data[first : last + 1], 206
        self.send(data, status, headers)

    def json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def send(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.left is not None and "/resolve/" in self.path:
            self.close_connection = len(data) > self.server.left
            data = data[: self.server.left]
            self.server.left -= len(data)
        self.wfile.write(data)

    def log_message(self, *args) -> None:
        pass
