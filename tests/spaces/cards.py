"""Cards of other people's models, good, odd and broken; and a Hub on loopback that has them."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

DATASET = "Slep/LAION-RVS-Fashion"


def card(*metrics: tuple[str, object], dataset: str = DATASET, split: str = "test") -> str:
    """A model card whose model-index has metrics (type, value)."""
    entries = [
        {
            "task": {"type": "Retrieval"},
            "dataset": {"type": dataset, "name": "LRVS-F", "split": split},
            "metrics": [{"type": kind, "name": kind, "value": value}],
        }
        for kind, value in metrics
    ]
    metadata = {"model-index": [{"name": "a model", "results": entries}], "tags": ["lrvsf-benchmark"]}
    return f"---\n{json.dumps(metadata, ensure_ascii=False)}\n---\n# A model\n"


def eval_results(*scores: tuple[str, float, str], dataset: str = DATASET) -> str:
    """`.eval_results/lrvsf.yaml` with (task, value, notes)."""
    return json.dumps(
        [
            {"dataset": {"id": dataset, "task_id": task}, "value": value, "notes": notes}
            for task, value, notes in scores
        ],
        ensure_ascii=False,
    )


GOOD = card(
    ("recall_at_1|10000", "95.10 ± 0.70"),
    ("recall_at_1|100000", "88.00 ± 1.10"),
    ("recall_at_5|10000", "99.20 ± 0.20"),
    ("conditioning", "category"),
    ("embedding_dim", 512),
)
CARDS: dict[str, dict[str, str]] = {
    "good": {"README.md": GOOD},
    "hundred": {"README.md": card(("recall_at_1|10000", "100.00 ± 0.00"), ("conditioning", "none"))},
    "newer": {
        "README.md": "# no metadata\n",
        ".eval_results/lrvsf.yaml": eval_results(
            ("recall_at_1|10000", 91.5, "conditioning none, ± 0.90 over 20 folds, seed 0")
        ),
    },
    "odd": {"README.md": card(("recall_at_1|10000", "ninety"), ("recall_at_1|100000", 70.25), ("recall@5", 3))},
    "contradicting": {
        "README.md": card(("recall_at_1|10000", "90.00 ± 1.00")),
        ".eval_results/lrvsf.yaml": eval_results(("recall_at_1|10000", 95.0, "")),
    },
    "beyond": {"README.md": card(("recall_at_1|10000", 193.4), ("recall_at_1|100000", ".nan"))},
    "broken": {"README.md": "---\nmodel-index: [unclosed\n---\n# A model\n"},
    "other": {"README.md": card(("recall_at_1|10000", "99.00 ± 0.10"), dataset="somebody/else")},
    "list": {".eval_results/lrvsf.yaml": "just a text"},
    "<img src=x onerror=alert(1)>": {"README.md": card(("recall_at_1|10000", "12.00 ± 0.10"))},
}


def write_cards(folder: Path, names: list[str] | None = None) -> Path:
    for name in CARDS if names is None else names:
        for path, text in CARDS[name].items():
            (folder / name / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / name / path).write_text(text, encoding="utf-8")
    return folder


class CardHub(ThreadingHTTPServer):
    """A Hub with the models me/NAME of some cards; one of them, me/gone, is listed and cannot be had."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.names, self.tags = [*names, "gone"], []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path == "/api/models":
            self.server.tags += re.findall(r"filter=([^&]*)", query)
            return self._json([{"id": f"me/{name}", "_id": name} for name in self.server.names])
        if (found := re.fullmatch(r"/api/models/me/([^/]+)", path)) and found[1] in CARDS:
            files = [{"rfilename": name, "size": len(text.encode())} for name, text in CARDS[found[1]].items()]
            return self._json({"id": f"me/{found[1]}", "_id": "1", "siblings": [*files, {"rfilename": "config.json"}]})
        if found := re.fullmatch(r"/me/([^/]+)/resolve/main/(.+)", path):
            body = CARDS[found[1]][found[2]].encode()
            etag = f'"{hashlib.sha256(body).hexdigest()}"'
            return self._send(body, {"X-Repo-Commit": "a" * 40, "ETag": etag})
        self.send_error(404)

    do_HEAD = do_GET

    def _json(self, value: object) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
