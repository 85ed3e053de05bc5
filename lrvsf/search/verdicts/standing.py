"""Is there anything like it in the catalog? Where a score stands among those of pictures whose thing is not there.

An index always finds neighbours, and how near they are without meaning anything differs: from condition to condition,
and from catalog to catalog, as a larger one has something nearer to whatever it is asked for. So `calibrate` keeps some
pairs of a scene and the product that it was taken with. A catalog asks itself with these scenes, and sees what it
finds where the thing is not there; what the pair itself scores is what it would find if it were.

The best score is all that is looked at. By how much it leads the following ones tells less
(benchmarks/bench_standing.py has both), as a catalog may hold several things like the one that is meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch

from lrvsf.embedding.store import renormalised
from lrvsf.search.verdicts.calibration_file import Tensors, read_calibration, write_calibration
from lrvsf.search.verdicts.presence import FEWEST

FILE = "standing.safetensors"
PAIRS = 100  # kept for each condition; with 300, Mini's verdicts are no better
DEEP = 8  # rows that a scene's best is looked for in, as the first may show its own product (not tuned)
FAR = 0.2  # of the finds of things that are there: the largest share that is not called close (0.15 was tried, too)


@dataclass(frozen=True)
class KnownPairs:
    """Scenes and the products that they show, as one model embeds them.

    Attributes:
        conditions: the C names.
        model: the digest of the model.
        asked: (n,) int64, which condition each scene is asked under.
        scenes, products: (n, dim) float16, each scene under its condition, and its product without one.
    """

    conditions: tuple[str, ...]
    model: str
    asked: np.ndarray
    scenes: np.ndarray
    products: np.ndarray

    def under(self, condition: str) -> tuple[np.ndarray, np.ndarray]:
        """The scenes and products of a condition, (m, dim) float32 unit rows each."""
        own = self.asked == self.conditions.index(condition)
        scenes, products = (renormalised(torch.from_numpy(rows[own])).numpy() for rows in (self.scenes, self.products))
        return scenes, products

    def save(self, folder: str | Path) -> None:
        """Writes FILE into a folder, whole or not at all."""
        arrays = {"asked": self.asked, "scenes": self.scenes, "products": self.products}
        tensors = {name: torch.from_numpy(np.ascontiguousarray(rows)) for name, rows in arrays.items()}
        write_calibration(Path(folder) / FILE, self.conditions, self.model, tensors)

    @classmethod
    def load(cls, folder: str | Path) -> Self | None:
        """What `save` wrote; None where there is none. Raises ValueError: it is damaged, or a newer program's."""

        def parse(conditions: tuple[str, ...], model: str, tensors: Tensors) -> Self:
            asked, scenes, products = (tensors[name].numpy() for name in ("asked", "scenes", "products"))
            if asked.dtype != np.int64 or not {scenes.dtype, products.dtype} == {np.dtype(np.float16)}:
                raise ValueError(f"{asked.dtype}, {scenes.dtype}, {products.dtype}")
            if (
                asked.ndim != 1
                or scenes.ndim != 2
                or not scenes.shape == products.shape == (len(asked), scenes.shape[1])
            ):
                raise ValueError(f"shapes {asked.shape}, {scenes.shape}, {products.shape}")
            if len(asked) and not 0 <= asked.min() <= asked.max() < len(conditions):
                raise ValueError(f"conditions {asked.min()} to {asked.max()} of {len(conditions)}")
            return cls(conditions, model, asked, scenes, products)

        return read_calibration(Path(folder) / FILE, parse)


def chosen_pairs(asked: np.ndarray, conditions: int) -> np.ndarray:
    """At most PAIRS scenes of each condition, drawn: the numbers of those to keep, ascending, of asked (N,)."""
    draws = np.random.default_rng(0)
    kept = [draws.permutation(np.flatnonzero(asked == place))[:PAIRS] for place in range(conditions)]
    return np.sort(np.concatenate(kept))


@dataclass(frozen=True)
class Scale:
    """What scores under one condition mean in one catalog.

    Attributes:
        missing: (n,) ascending, the best scores of scenes whose thing is not in the catalog.
        floor: the score from which on a hit is close.
    """

    missing: np.ndarray
    floor: float

    @classmethod
    def of(cls, missing: np.ndarray, true: np.ndarray) -> Self | None:
        """The scale of a catalog; None where fewer than FEWEST scenes tell.

        Args:
            missing: (n,) the best scores of scenes whose thing is not in the catalog; -inf where a scene found nothing.
            true: (n,) what the same scenes score with their thing.
        """
        told = np.isfinite(missing)
        if told.sum() < FEWEST:
            return None
        return cls(np.sort(missing[told]), _floor(missing[told], true[told]))

    def standing(self, scores: np.ndarray | Sequence[float]) -> np.ndarray:
        """(m,) in 0..1: the share of pictures whose thing is missing that find nothing as near as these scores (m,)."""
        return np.searchsorted(self.missing, scores, side="left") / len(self.missing)


def _floor(missing: np.ndarray, true: np.ndarray) -> float:
    """Where the rate of close finds of what is there exceeds the rate of what is missing most.

    In a catalog full of near misses that would grey many finds of what is there, so no more than FAR of them are.
    """
    cuts = np.sort(np.maximum(missing, true))  # what these scenes would find if their thing were there
    there = 1 - np.arange(len(cuts)) / len(cuts)  # rates from each cut on; of equal cuts the first has the right one
    gain = there - (1 - np.searchsorted(np.sort(missing), cuts, side="left") / len(missing))
    return float(cuts[min(gain.argmax(), int(FAR * len(cuts)))])


def best_of_others(scores: np.ndarray, products: np.ndarray, own: np.ndarray, near: np.ndarray) -> np.ndarray:
    """The best score of each scene among products that are not its own; -inf where nothing else was found.

    Args:
        scores, products: (n, K) what the scenes found, -inf for nothing, and which product each row shows.
        own, near: (n, L) what the scenes' products themselves found, and where that is the very thing.
    """
    same = ((products[:, :, None] == own[:, None, :]) & near[:, None, :]).any(-1)  # (n, K)
    return np.where(same, -np.inf, scores).max(1)
