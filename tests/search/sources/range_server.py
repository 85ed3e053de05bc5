"""A server on loopback that gives parts of files, as stores of objects do, and writes down which."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class RangeServer(ThreadingHTTPServer):
    """Serves some files until `close`. What begins with /private is answered with 403, what is not there with 404.

    Attributes:
        files: path -> bytes; a path that ends with / is a page that lists links.
        asked: (path, first byte, last byte) of each part that was sent.
        ranges: whether it knows parts; else it sends whole files.
        broken: whether it answers nothing but 503.
    """

    daemon_threads = True

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.asked, self.ranges, self.broken = files, [], True, False
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        self.shutdown()
        self.server_close()

    def sent(self, path):
        return sum(last + 1 - first for one, first, last in self.asked if one == path)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._answer(False)

    def do_GET(self):
        self._answer(True)

    def _answer(self, body):
        data, server = self.server.files.get(self.path), self.server
        if server.broken or self.path.startswith("/private") or data is None:
            self.send_response(503 if server.broken else 403 if self.path.startswith("/private") else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if server.ranges else None
        first, last = (int(part[1]), min(int(part[2]), len(data) - 1)) if part else (0, len(data) - 1)
        self.send_response(206 if part else 200)
        if part:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/octet-stream")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        if body:
            server.asked.append((self.path, first, last))
            self.wfile.write(data[first : last + 1])

    def log_message(self, *given):
        pass
