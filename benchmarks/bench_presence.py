"""Presence on drawn scenes, of which it is known what each shows: precision and recall of "is it in the picture?"

    python prepare_lrvsf.py mini_shop data/scenes --scenes 500 --items 2500 --seed 11
    python benchmarks/bench_presence.py assets/mini-condvit data/scenes

A thing is there if at least a quarter of it is in sight, and absent if nobody wears it; scenes that hide more of it are
left out. AUC is the chance that of a scene with and one without the thing the first has the higher presence. Beside it
stands the AUC of the best score that the shop's items reach under the condition, which one would look at otherwise.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent.parent))

from lrvsf.mini.shop import ITEMS, read_scenes
from lrvsf.search.own_model import load_encoder
from lrvsf.search.verdicts.presence import Presence

SEEN = 0.25


def auc(values: np.ndarray, there: np.ndarray) -> float:
    ranks = values.argsort().argsort()
    count = int(there.sum())
    return float((ranks[there].sum() - count * (count - 1) / 2) / (count * (len(there) - count)))


def embedded(encoder, images: list[bytes], name: str | None) -> np.ndarray:
    rows = []
    for start in range(0, len(images), 50):
        pixels = [encoder.pixels(image) for image in images[start : start + 50]]
        rows.append(encoder.embed(pixels, None if name is None else [name] * len(pixels)).numpy())
    return np.concatenate(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a calibrated model")
    parser.add_argument("shop", type=Path, help="what prepare_lrvsf.py mini_shop drew")
    args = parser.parse_args()
    encoder = load_encoder(args.model, None, "cpu", conditioned=True)
    names, scenes = list(encoder.model.config.categories), read_scenes(args.shop)
    images = [scene["image"].read_bytes() for scene in scenes]
    plain = embedded(encoder, images, None)
    conditioned = np.stack([embedded(encoder, images, name) for name in names], axis=1)  # (N, C, D)
    items = embedded(encoder, pq.read_table(args.shop / ITEMS)["image"].to_pylist(), None)
    told = Presence.load(args.model).probability(conditioned, plain)
    print("| condition | scenes with it | precision | recall | AUC | AUC of the best score |")
    print("| --- | --- | --- | --- | --- | --- |")
    lines = []
    for place, name in enumerate(names):
        share = np.array([scene["shows"].get(name, {"share": 0})["share"] for scene in scenes])
        clear = (share >= SEEN) | (share == 0)
        there, likely = share[clear] >= SEEN, told[clear, place]
        best = (conditioned[clear, place] @ items.T).max(1)
        yes = likely >= 0.5
        right = (yes & there).sum()
        lines.append(
            [there.mean(), right / max(yes.sum(), 1), right / there.sum(), auc(likely, there), auc(best, there)]
        )
        print(f"| {name} | {lines[-1][0]:.0%} | " + " | ".join(f"{number:.2f}" for number in lines[-1][1:]) + " |")
    mean = np.mean(lines, axis=0)
    print(f"| mean | {mean[0]:.0%} | " + " | ".join(f"{number:.2f}" for number in mean[1:]) + " |")


if __name__ == "__main__":
    main()
