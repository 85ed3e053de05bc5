"""Pictures that are drawn as they are asked for, some of them bad, and what happens to the process that embeds one.

Importable where actors run, as this folder is in their path.
"""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from made import squares

from lrvsf.data.testset import Origin
from lrvsf.embedding.parts import Part


@dataclass
class Drawn(Part):
    """Rows of drawn pictures.

    Attributes:
        folder: where `log` gets the rows of every batch that a model is given, a line each, and what faults leave.
        bad: rows that are no pictures.
        fault: what happens once, before the batch with the row `at`: "killed", the process dies by SIGKILL; "victim",
            another one does, whose number is in `victim`; "waits", the process waits until it dies.
    """

    folder: Path
    total: int = 40
    bad: tuple[int, ...] = ()
    fault: str | None = None
    at: int = 0
    victim: int = 0
    what, kinds = "pictures", ("item",)

    def items(self, start, stop):
        for row in range(start, stop):
            yield row, (b"<html>" if row in self.bad else squares(row),)

    def embed(self, encoder, rows, pixels):
        if self.at in rows and self.fault and self._first():
            if self.fault == "waits":
                time.sleep(600)
            os.kill(self.victim or os.getpid(), signal.SIGKILL)
        with open(self.folder / "log", "a") as file:
            file.write(" ".join(map(str, rows)) + "\n")
        return super().embed(encoder, rows, pixels)

    def _first(self):
        try:
            (self.folder / "fault").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def origins(self, start, stop):
        return (Origin(f"x{row}", "drawn", row) for row in range(start, stop))

    def describe(self):
        return f"{self.total} drawn pictures"

    def embedded(self):
        """The rows that any model was given, as often as it was."""
        return [int(row) for row in (self.folder / "log").read_text().split()]
