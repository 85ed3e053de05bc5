"""What became of each URL of a list: img2dataset's output read back, errors brought down to a few reasons.

img2dataset drops a row that it fails to write, without a word in its output. So the list is the measure, not the
output: a row's key gives its place in the list, and a place that no key names is an outcome too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq

from lrvsf.data.parquet import open_parquet, opened

ARRIVED = "arrived"
OPTED_OUT = "opted out"
NOT_RECORDED = "not recorded"
# The first pattern that an error message holds names the reason. The messages are those of img2dataset and of Python's
# urllib, http.client, socket and ssl.
REASONS = (
    (OPTED_OUT, "X-Robots-Tag"),
    ("HTTP", r"HTTP Error (\d{3})"),
    ("timeout", "timed out"),
    ("unknown host", "Name or service not known|name resolution|nodename nor servname|getaddrinfo|No address assoc"),
    ("TLS", r"SSL|CERTIFICATE|certificate"),
    ("cut short", "IncompleteRead"),
    ("too large", "body over"),  # ours, see img2dataset_runner.py
    (
        "not a URL",
        "control characters|unknown url type|no host given|nonnumeric port|can't encode|label (empty|too long)",
    ),
    ("connection", r"Errno|[Cc]onnection|Remote end closed|BadStatusLine"),
)
# Asking again changes nothing, or is not wanted.
FINAL = frozenset({ARRIVED, OPTED_OUT, "HTTP 404", "HTTP 410", "not a URL", "too large"})


def reason(status: str | None, message: str | None) -> str:
    """img2dataset's status and error message as one of a few words; a HTTP status keeps its number.

    >>> reason("failed_to_download", "HTTP Error 503: Service Unavailable")
    'HTTP 503'
    """
    if status is None:
        return NOT_RECORDED
    if status == "success":
        return ARRIVED
    if status == "failed_to_resize":  # decoding comes before resizing, and is what fails
        return "not an image"
    # Messages hold paths, ports and times: as they are, nearly each would be a reason of its own.
    for name, pattern in REASONS:
        if found := re.search(pattern, message or ""):
            return f"HTTP {found[1]}" if name == "HTTP" else name
    return "other"


def host(url: str) -> str:
    """The host that a URL names, without the port."""
    return urlsplit(url).hostname or ""


def shard_sizes(lists: list[Path], shard_rows: int) -> list[int]:
    """Rows of each output file of img2dataset, in order: a file of the list is cut up by itself."""
    sizes = []
    for file in lists:
        rows = pq.read_metadata(file).num_rows
        sizes += [min(shard_rows, rows - start) for start in range(0, rows, shard_rows)]
    return sizes


def outcomes(lists: list[Path], folder: Path, shard_rows: int) -> Iterator[dict[str, Any]]:
    """The rows of a list in order, each with its `reason` and `error`; one output file in memory at a time.

    Args:
        lists: the files that img2dataset read.
        folder: what it wrote.
        shard_rows: its number_sample_per_shard.
    """
    # A key is the output file's number followed by the row's, in as many digits as the largest row number has.
    digits = math.ceil(math.log10(shard_rows))
    shard = 0
    for file in lists:
        with open_parquet(file) as parquet:
            rows = parquet.read()
        for start in range(0, len(rows), shard_rows):
            recorded = _recorded(folder / f"{shard:05d}.parquet", digits)
            for place, row in enumerate(rows.slice(start, shard_rows).to_pylist()):
                status, message = recorded.get(place, (None, None))
                yield {**row, "reason": reason(status, message), "error": message}
            shard += 1


def _recorded(file: Path, digits: int) -> dict[int, tuple[str, str | None]]:
    """Place in the shard -> status and error message. The images are not read."""
    with opened(file, f"Delete {file.parent} and run the same command again.") as parquet:
        table = parquet.read(["key", "status", "error_message"])
    return {int(row["key"]) % 10**digits: (row["status"], row["error_message"]) for row in table.to_pylist()}
