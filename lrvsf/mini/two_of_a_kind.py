"""A second test set: the test set's products, each worn beside another of its category.

    OUT/two_of_a_kind/      the layout, the targets, the captions and the distractors of OUT/test; the scenes are new

Two figures stand in each scene and both wear, say, a bag: two queries, one for each bag. The category says the same of
both, so that a model which knows no more gives them one embedding; a caption tells which bag is meant.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lrvsf.mini.attributes import CATEGORIES, Garment
from lrvsf.mini.scenes import Stage, outfit, stage

# Not tuned, looked at: two figures fit into the frame, and patterns can be seen at 96 pixels.
SMALLER, APART = 0.86, 0.23


def pairs(products: int) -> list[tuple[int, int]]:
    """The rows of two products each that have one category; a row without a partner is in none."""
    step = len(CATEGORIES)  # the test set's rows go through the categories in turn
    return [(row, row + step) for row in range(products - step) if row // step % 2 == 0]


def stage_two(targets: tuple[Garment, Garment], size: int, rng: np.random.Generator) -> tuple[list[Stage], float]:
    """Poses two figures that wear a target each; and how much is in sight, 0..1, of the target that is hidden more."""
    figures = []
    for side, target in zip((-1, 1), targets, strict=True):
        alone = stage(outfit(target, rng), target, size, rng, cropped=False)
        matrix = SMALLER * alone.matrix
        matrix[:, 2] += size * np.array([(1 - SMALLER) / 2 + side * APART, (1 - SMALLER) / 2])
        figures.append(replace(alone, matrix=matrix))
    behind, before = figures
    return figures, min(behind.shown(targets[0], [before]), before.shown(targets[1]))
