"""Folders as img2dataset leaves them, with images drawn on the spot."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

DOWNLOAD_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("url", "product_id", "type", "split", "category", "status", "sha256")]
    + [("captions", pa.list_(pa.string())), ("jpg", pa.binary()), ("metadata_row", pa.int64())]
)


@pytest.fixture(scope="session")
def encoded() -> Callable[[int], bytes]:
    """`encoded(number)`: a small JPEG, another one for each number."""

    def encode(number: int) -> bytes:
        buffer = io.BytesIO()
        colour = (number % 256, number // 256 % 256, 90)
        Image.new("RGB", (8 + number % 3, 9), colour).save(buffer, "JPEG", quality=95)
        return buffer.getvalue()

    return encode


@pytest.fixture
def downloaded_row() -> Callable[..., dict[str, Any]]:
    """`downloaded_row("p1", "SIMPLE", jpg or None, **cells)`: one row of img2dataset's output."""

    def make(product_id: str, kind: str, jpg: bytes | None, **cells: Any) -> dict[str, Any]:
        arrived = jpg is not None
        digest = hashlib.sha256(jpg).hexdigest() if arrived else None
        row = {
            "url": f"http://shop/{product_id}/{kind}/{(digest or 'dead')[:8]}",
            "product_id": product_id,
            "type": kind,
            "split": "train",
            "category": "Bags" if kind == "SIMPLE" else None,
            "captions": [f"{kind} of {product_id}"],
            "status": "success" if arrived else "failed_to_download",
            "sha256": digest,
            "jpg": jpg,
        }
        return row | cells

    return make


@pytest.fixture
def write_download() -> Callable[[Path, list[dict]], None]:
    """`write_download(path, rows)`: a file of img2dataset's, row groups of 3."""

    def write(path: Path, rows: list[dict]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=DOWNLOAD_SCHEMA), path, row_group_size=3)

    return write
