"""The step `download` with the real img2dataset, against a server on loopback that misbehaves in every way we know.

img2dataset lives in a virtual environment of its own, which these tests do not make: `make img2dataset` does.
"""

import http.server
import io
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from made import encode, noise, rows_of
from PIL import Image
from waiting import wait_for

from lrvsf.prepare.laion.download import ENVIRONMENT, download
from lrvsf.prepare.laion.img2dataset import _installed
from lrvsf.prepare.laion.url_lists import write_list

FOLDER = Path(os.environ.get("LRVSF_IMG2DATASET", ENVIRONMENT)).expanduser()
pytestmark = pytest.mark.skipif(
    not _installed(FOLDER / "bin/python"),
    reason=f"no img2dataset in {FOLDER}: make it with `make img2dataset`, or name another with LRVSF_IMG2DATASET",
)
QUICK = {"processes": 1, "threads": 4, "timeout": 1, "retries": 0, "environment": FOLDER}


GOOD, SMALL = (encode(noise(*size), "JPEG") for size in ((300, 400), (100, 50)))


class Shop(http.server.BaseHTTPRequestHandler):
    """The first part of the path says what happens. `server.asked` counts requests by path."""

    def do_GET(self):
        self.server.asked[self.path] += 1
        kind = self.path.split("/")[1]
        if kind == "second-time":
            kind = "500" if self.server.asked[self.path] == 1 else "good"
        if kind.isdigit():
            self.answer(int(kind))
        elif kind in ("redirect", "loop"):
            self.answer(302, Location="/good/elsewhere" if kind == "redirect" else self.path)
        elif kind == "stall":
            self.server.closing.wait(20)
        elif kind == "stall-inside":
            self.answer(200, GOOD[:5000], length=len(GOOD))
            self.wfile.flush()
            self.server.closing.wait(20)
        elif kind == "drop":
            self.close_connection = True
        elif kind == "slow":
            time.sleep(0.2)
            self.answer(200, SMALL)
        else:
            self.answer(200, **BODIES[kind])

    def answer(self, status, body=b"", length=None, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


BODIES = {
    "good": {"body": GOOD, "Content_Type": "image/jpeg"},
    "small": {"body": SMALL, "Content_Type": "image/jpeg"},
    "png": {"body": encode(Image.new("RGBA", (40, 30), (255, 0, 0, 0))), "Content_Type": "image/png"},
    "mislabelled": {"body": GOOD, "Content_Type": "text/html"},  # still an image
    "html": {"body": b"<html>Sold out</html>", "Content_Type": "image/jpeg"},
    "svg": {"body": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "Content_Type": "image/svg+xml"},
    "empty": {"body": b"", "Content_Type": "image/jpeg"},
    "cut": {"body": GOOD[:5000], "length": len(GOOD)},
    "half": {"body": GOOD[:5000]},  # as long as announced, but not a whole JPEG
    "noai": {"body": GOOD, "X_Robots_Tag": "noai"},
    "noindex": {"body": GOOD, "X_Robots_Tag": "nofollow, NoIndex"},
    "nofollow": {"body": GOOD, "X_Robots_Tag": "nofollow"},  # says nothing of images
    "huge": {"body": bytes(64 * 2**20 + 1), "Content_Type": "image/jpeg"},
}
# What the last try of each ends with, and how often it is tried in two rounds.
EXPECTED = {
    **dict.fromkeys(("good", "small", "png", "mislabelled", "nofollow", "redirect"), ("arrived", 1)),
    "second-time": ("arrived", 2),
    **dict.fromkeys(("noai", "noindex"), ("opted out", 1)),
    "404": ("HTTP 404", 1),
    "410": ("HTTP 410", 1),
    "403": ("HTTP 403", 2),
    "500": ("HTTP 500", 2),
    "loop": ("HTTP 302", None),  # urllib follows it a few times each try
    **dict.fromkeys(("stall", "stall-inside"), ("timeout", 2)),
    "drop": ("connection", 2),
    "cut": ("cut short", 2),
    **dict.fromkeys(("half", "html", "svg", "empty"), ("not an image", 2)),
    "huge": ("too large", 1),
}


@pytest.fixture
def shop():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Shop)
    server.asked, server.closing = Counter(), threading.Event()
    server.root = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()


def place(i):
    """In the metadata: beyond what float64 would keep, and not known of some rows."""
    return 2**53 + 1 + i if i % 3 else None


def list_of(folder, shop, kinds):
    with write_list(folder) as written:
        for i, kind in enumerate(kinds):
            category, captions = (None, []) if i % 2 else ("Bags", ["a 'bag'", 'in "red", é'])
            row = {"product_id": str(i), "type": "SIMPLE", "split": "test_distractors", "metadata_row": place(i)}
            written.add({"url": f"{shop.root}/{kind}/{i}", **row, "category": category, "captions": captions})
    return folder


@pytest.mark.survives(
    "servers that answer 403, 404, 500, redirect, stall, cut bodies short, or send 64 MiB",
    "a table of reasons; what failed is asked for again",
)
def test_good_images_arrive_and_bad_ones_have_reasons(tmp_path, shop):
    kinds = list(EXPECTED)
    report = download(list_of(tmp_path / "urls", shop, kinds), tmp_path / "out", rounds=2, file_rows=10, **QUICK)

    reasons = Counter(outcome for outcome, _ in EXPECTED.values())
    assert report["arrived"] == reasons.pop("arrived")
    assert report["failed, by reason"] == dict(reasons)
    asked = {kind: shop.asked[f"/{kind}/{i}"] for i, kind in enumerate(kinds) if EXPECTED[kind][1]}
    assert asked == {kind: times for kind, (_, times) in EXPECTED.items() if times}

    rows = [row for round_number in (1, 2) for row in rows_of(tmp_path / f"out/round-{round_number}")]
    assert all(row["metadata_row"] == place(int(row["product_id"])) for row in rows)
    arrived = {kinds[int(row["product_id"])]: row for row in rows if row["status"] == "success"}
    assert set(arrived) == {kind for kind, (outcome, _) in EXPECTED.items() if outcome == "arrived"}
    sizes = {kind: Image.open(io.BytesIO(row["jpg"])).size for kind, row in arrived.items()}
    assert (sizes["good"], sizes["small"], sizes["png"]) == ((256, 341), (100, 50), (40, 30))
    assert arrived["small"]["jpg"] == SMALL  # small enough: not compressed again
    assert (arrived["good"]["original_width"], arrived["good"]["height"]) == (300, 341)
    assert len(arrived["good"]["sha256"]) == 64 and arrived["good"]["sha256"] == arrived["redirect"]["sha256"]
    for row in rows:
        i = int(row["product_id"])
        assert (row["type"], row["split"]) == ("SIMPLE", "test_distractors")
        assert (row["category"], row["captions"]) == ((None, []) if i % 2 else ("Bags", ["a 'bag'", 'in "red", é']))
        assert (row["jpg"] is None) == (row["status"] != "success")


def test_a_killed_download_goes_on_where_it_was(tmp_path, shop):
    urls = list_of(tmp_path / "urls", shop, ["slow"] * 40)
    code = (
        "import sys; from pathlib import Path; from lrvsf.prepare.laion.download import download\n"
        "urls, out, environment = map(Path, sys.argv[1:])\n"
        "download(urls, out, rounds=1, file_rows=10, processes=1, threads=1, timeout=5, environment=environment)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(urls), str(tmp_path / "out"), str(FOLDER)])
    first = tmp_path / "out.unfinished/round-1/00000_stats.json"
    assert wait_for(lambda: first.exists() or parent.poll() is not None, 120) and parent.poll() is None
    parent.kill()
    parent.wait()
    assert not list((tmp_path / "out").rglob("*.parquet"))  # nothing half done is where the next step looks

    report = download(urls, tmp_path / "out", rounds=1, file_rows=10, **{**QUICK, "timeout": 5})
    assert report["arrived"] == 40
    assert [shop.asked[f"/slow/{i}"] for i in range(10)] == [1] * 10  # the file that was done
    assert sorted(int(row["product_id"]) for row in rows_of(tmp_path / "out/round-1")) == list(range(40))
