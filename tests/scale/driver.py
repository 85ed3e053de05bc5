"""A driver that an actor kills by SIGKILL: python driver.py FOLDER ROW."""

import os
import sys
from pathlib import Path

from drawn import Drawn, fill_on_ray, store_of

from lrvsf.embedding import store

if __name__ == "__main__":
    store.ROWS = 8
    folder, row = sys.argv[1:]
    fill_on_ray(store_of(Drawn(Path(folder), fault="driver killed", at=int(row), driver=os.getpid()), "many"))
