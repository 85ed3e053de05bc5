"""search_catalog.py against the Hub that HF_ENDPOINT names.

    python hub_builds.py

It reads lines of JSON, [log, 1, token, words], and answers each with the exit status of search_catalog.py WORDS, a fork
of this process. What it prints goes to LOG.said. Files of a data set have 4 rows, and nobody waits before trying again.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[3]))

import datasets
from forks import serve

import search_catalog
from lrvsf import command
from lrvsf.search import build_catalog  # noqa: F401 - imported before the forks
from lrvsf.search.sources import streams


def work(log: str, rank: int, token: str | None, words: list[str]) -> None:
    streams.SPOOL_ROWS = 4
    datasets.config.STREAMING_READ_MAX_RETRIES = 2
    time.sleep = lambda seconds: None
    if token:
        os.environ["HF_TOKEN"] = token
    sys.argv = ["search_catalog.py", *words]
    command.run(search_catalog.main, "search_catalog.py index")


if __name__ == "__main__":
    serve(work)
