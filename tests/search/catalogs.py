"""search_catalog.py as processes that die by SIGKILL, many times over.

    python catalogs.py

It reads lines of JSON, [log, 1, fault, at, words], and answers each with the exit status of search_catalog.py WORDS, a
fork of this process, which spares it the imports. The sizes of the batches that the model is given are appended to
LOG.0, and what it prints to LOG.said. Shards have 8 rows. It dies

none
batch       at the AT-th batch
unnamed     before the AT-th file or folder gets its name
named       right after the AT-th file or folder got its name
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from forks import serve

import search_catalog
from lrvsf.embedding import store
from lrvsf.embedding.encoder import Encoder
from lrvsf.search import build_catalog, segments  # noqa: F401 - imported before the forks


def work(log: str, rank: int, fault: str, fault_at: int, words: list[str]) -> None:
    store.ROWS = segments.ROWS = 8
    met: dict[str, int] = {}
    embed, replace = Encoder.embed, os.replace

    def meet(point: str) -> None:
        met[point] = met.get(point, 0) + 1
        if (point, met[point]) == (fault, fault_at):
            os.kill(os.getpid(), signal.SIGKILL)

    def logged(self, pixels, *categories):
        meet("batch")
        with open(f"{log}.{rank}", "a") as file:
            file.write(f"{len(pixels)}\n")
        return embed(self, pixels, *categories)

    def around_the_naming(part, path):
        meet("unnamed")
        replace(part, path)
        meet("named")

    Encoder.embed, os.replace = logged, around_the_naming
    search_catalog.main(words)


if __name__ == "__main__":
    serve(work)
