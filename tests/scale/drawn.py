"""Pictures that are drawn as they are asked for, some of them bad, and what happens to the process that embeds one.

Importable where actors run, as this folder is in their path.
"""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from made import squares, tiny_condvit

from lrvsf.data.images import Tolerance
from lrvsf.data.testset import Origin
from lrvsf.embedding.encoder import Encoder
from lrvsf.embedding.parts import Part
from lrvsf.embedding.store import EmbeddingStore
from lrvsf.scale.engine import Cluster

HALF = Tolerance(0.5)
BAD = (3, 11, 36)
ROWS = 200  # in 25 shards of 8 rows, three of which are one run for two actors


@dataclass
class Drawn(Part):
    """Rows of drawn pictures.

    Attributes:
        folder: where `log` gets a line for each batch that a model is given, with the process and the rows.
        bad: rows that are no pictures.
        fault: what happens once, before the batch with the row `at`: "killed", the process dies by SIGKILL; "driver
            killed", the process `driver` does. "node lost": all batches of the node `node`, from the fifth on, wait.
    """

    folder: Path
    total: int = ROWS
    bad: tuple[int, ...] = BAD
    fault: str | None = None
    at: int = 0
    driver: int = 0
    node: str = ""
    what, kinds = "pictures", ("item",)
    batches = 0

    def __post_init__(self):
        self.folder.mkdir(exist_ok=True)

    def items(self, start, stop):
        for row in range(start, stop):
            yield row, (b"<html>" if row in self.bad else squares(row),)

    def embed(self, encoder, rows, pixels):
        if self.fault == "node lost":
            self._wait_on_the_node()
        elif self.fault and self.at in rows and not (self.folder / "fault").exists():
            (self.folder / "fault").touch()
            os.kill(self.driver or os.getpid(), signal.SIGKILL)
        with open(self.folder / "log", "a") as file:
            file.write(f"{os.getpid()}: {' '.join(map(str, rows))}\n")
        return super().embed(encoder, rows, pixels)

    def _wait_on_the_node(self):
        import ray

        self.batches += 1
        if ray.get_runtime_context().get_node_id() == self.node and self.batches == 5:
            (self.folder / "fault").touch()
            time.sleep(600)

    def origins(self, start, stop):
        return (Origin(f"x{row}", "drawn", row) for row in range(start, stop))

    def describe(self):
        return f"{self.total} drawn pictures"

    def log(self):
        """(process, rows) of each batch."""
        lines = (line.split(": ") for line in (self.folder / "log").read_text().splitlines())
        return [(int(process), [int(row) for row in rows.split()]) for process, rows in lines]


def store_of(drawn, name, tolerance=HALF, model=None, batch_size=3):
    """A store of float32 rows in a folder of that name beside the log, by a tiny model; nothing is embedded yet."""
    encoder = Encoder(model or tiny_condvit(), "none")
    return EmbeddingStore(drawn.folder / name, encoder, [drawn], "drawn", batch_size, tolerance, dtype="float32")


def fill_on_ray(store):
    """By two actors of the cluster to which this process is connected, or of one of its own."""
    from lrvsf.scale.ray_embed import embedding_on_ray

    with embedding_on_ray(Cluster("local", 2, 1), gpu=False) as embed:
        store.fill(embed)
