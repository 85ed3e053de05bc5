"""evaluate_lrvsf.py as processes that write down what they embed and meet a fault, many times over.

    python evaluations.py

It reads lines of JSON, [log, processes, fault, at, flags], and answers each with the exit statuses of so many processes
that evaluate together; once one fails, the others are killed, as a launcher does. They are forks of this one, which
spares them the imports. Each rank appends the sizes of the batches that the model is given to LOG.RANK, and what it
prints to LOG.said. Shards have 8 rows. The last rank dies by SIGKILL at its own

none
batch       AT-th batch
half        AT-th file of the store, half of it written
unnamed     AT-th file, before it gets its name
named       AT-th file, right after it got its name
count       AT-th block of distractors whose ranks are counted

or meets, at its AT-th batch,

ctrl-c      SIGINT, in the middle of something that hangs
terminate   SIGTERM, likewise
"""

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from accelerate import PartialState
from forks import serve

import evaluate_lrvsf
from lrvsf.embedding import store
from lrvsf.embedding.encoder import Encoder
from lrvsf.evaluation.recall import RankCounter
from lrvsf.signals import end_at_once


def evaluate(log: str, rank: int, fault: str, fault_at: int, flags: list[str]) -> None:
    store.ROWS = 8
    met: dict[str, int] = {}
    embed, write, count = Encoder.embed, store.write_whole, RankCounter.add

    def meet(point: str) -> bool:
        """Whether to die here."""
        met[point] = met.get(point, 0) + (rank == PartialState().num_processes - 1)
        return (point, met[point]) == (fault, fault_at)

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def logged(self, pixels, *categories):
        if meet("batch"):
            die()
        for point, number in (("ctrl-c", signal.SIGINT), ("terminate", signal.SIGTERM)):
            if meet(point):
                os.kill(os.getpid(), number)
                time.sleep(100)
        with open(f"{log}.{rank}", "a") as file:
            file.write(f"{len(pixels)}\n")
        return embed(self, pixels, *categories)

    def around_the_writing(path, data):
        for point, there in (("half", data[: len(data) // 2]), ("unnamed", data)):
            if meet(point):
                path.with_name(f"{path.name}.part").write_bytes(there)
                die()
        write(path, data)
        if meet("named"):
            die()

    def counted(self, *block):
        if meet("count"):
            die()
        count(self, *block)

    Encoder.embed, store.write_whole, RankCounter.add = logged, around_the_writing, counted
    end_at_once("as the script does.")
    evaluate_lrvsf.main(flags)


if __name__ == "__main__":
    serve(evaluate)
