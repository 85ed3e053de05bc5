"""What views of a query cost: processor time from a photo's bytes to its embedding, relative to the whole alone.

    python benchmarks/bench_query_views.py [--towers B/32 B/16] [--rounds 20]

Towers have their real shapes and random weights: time does not depend on the weights. The photo is a JPEG of 256 x 341
pixels; its views are embedded in one batch, as a catalog and the service embed them. Medians of rounds that alternate.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench_conditions import TOWERS, model_of
from bench_stream import photos

from lrvsf.data.images import decode_image
from lrvsf.embedding.encoder import Encoder
from lrvsf.embedding.views import averaged, read_views

ASKED = ("whole", "whole,center0.8", "whole,center0.8,flip", "whole,center0.8,center0.6,flip")


def seconds_of(encoder: Encoder, photo: bytes, asked: str) -> float:
    start = time.process_time()
    image, views = decode_image(photo), read_views(asked)
    averaged(encoder.embed([encoder.pixels_of(view.of(image)) for view in views], ["Bags"] * len(views)).numpy())
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--towers", nargs="+", choices=TOWERS, default=list(TOWERS))
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    photo = photos(np.random.default_rng(0))[0]
    print(f"times the whole picture alone, {torch.get_num_threads()} thread(s)")
    print(f"{'views':34}" + "".join(f"{tower:>8}" for tower in args.towers))
    ratios: dict[str, list[float]] = {asked: [] for asked in ASKED}
    for tower in args.towers:
        encoder = Encoder(model_of(tower, "category"), "category")
        seconds: dict[str, list[float]] = {asked: [] for asked in ASKED}
        for turn in range(args.rounds + 2):  # the first two warm up
            for asked in ASKED:
                took = seconds_of(encoder, photo, asked)
                if turn > 1:
                    seconds[asked].append(took)
        for asked in ASKED:
            ratios[asked].append(median(seconds[asked]) / median(seconds[ASKED[0]]))
    for asked, times in ratios.items():
        print(f"{asked:34}" + "".join(f"{ratio:8.2f}" for ratio in times))


if __name__ == "__main__":
    main()
