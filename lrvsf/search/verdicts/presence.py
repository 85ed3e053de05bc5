"""Is the thing in the picture? A small calibration of a model, from scenes of which one category each is known.

Scores tell less, and need a catalog: a picture without a bag, asked for its bag, gets some bag with nearly as good a
score. What tells is how the answer moves with the question. Where the thing is there, the embedding under its condition
goes its own way; where it is not, it stays near the plain one and near those under other conditions. So a logistic
regression for each condition reads the embedding under it, its cosines with the embeddings under all conditions, and
with the plain one.

Nobody writes down what a scene does not show. Known is one category of each scene, the one that it is asked about. So
the regression learns to tell the scenes asked under a condition from all others, some of which show the thing too: it
ranks pictures as one with full labels would (Elkan and Noto, KDD 2008). The threshold needs no more labels either: with
a share p of the others showing the thing, the rate above the threshold among the known ones minus the rate among the
others is (1 - p) times the true minus the false positive rate, so the largest of the one is the largest of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from lrvsf.search.verdicts.calibration_file import Tensors, read_calibration, write_calibration

FILE = "presence.safetensors"
FOLDS = 5  # of scenes, each judged by a regression that did not see it
PENALTIES = (0.01, 0.03, 0.1, 0.3)  # of the squared weights; which one, the folds decide
FEWEST = 20  # scenes asked under a condition, below which it gets no verdict (not tuned)


def features(conditioned: np.ndarray, plain: np.ndarray) -> np.ndarray:
    """What a regression reads.

    Args:
        conditioned: (N, C, D) unit rows, a picture's embedding under each condition.
        plain: (N, D) unit rows, without a condition.

    Returns: (N, C, D + C + 1).
    """
    between = np.einsum("ncd,nkd->nck", conditioned, conditioned)  # (N, C, C)
    between[:, range(between.shape[1]), range(between.shape[1])] = 0  # 1 but for rounding, which scaling would blow up
    moved = np.einsum("ncd,nd->nc", conditioned, plain)[..., None]  # (N, C, 1)
    return np.concatenate([conditioned, between, moved], axis=-1)


@dataclass(frozen=True)
class Presence:
    """Verdicts of one model, for each of its conditions.

    Attributes:
        conditions: the C names.
        model: the digest of the model that it is calibrated for.
        scenes: (C,) how many scenes were asked under each; below `FEWEST` there is no verdict.
        weights, bias: (C, F) and (C,) float64, of logits whose 0 is the threshold.
    """

    conditions: tuple[str, ...]
    model: str
    scenes: tuple[int, ...]
    weights: np.ndarray
    bias: np.ndarray

    @classmethod
    def fit(
        cls, conditions: Sequence[str], model: str, conditioned: np.ndarray, plain: np.ndarray, asked: np.ndarray
    ) -> Self:
        """Calibrates on scenes.

        Args:
            conditioned, plain: (N, C, D) and (N, D), as `features` takes them.
            asked: (N,) which condition each scene is known to show.

        Raises ValueError: no condition has `FEWEST` scenes.
        """
        rows = features(conditioned, plain)
        scenes = np.bincount(asked, minlength=len(conditions))
        if (scenes < FEWEST).all():
            most = int(scenes.max(initial=0))
            raise ValueError(f"No category has {FEWEST} scenes that ask about it (at most {most}). Give more scenes.")
        weights, bias = np.zeros((len(conditions), rows.shape[-1])), np.zeros(len(conditions))
        for place in range(len(conditions)):
            if scenes[place] >= FEWEST:
                weights[place], bias[place] = _calibrated(rows[:, place], asked == place)
        return cls(tuple(conditions), model, tuple(scenes.tolist()), weights, bias)

    def probability(self, conditioned: np.ndarray, plain: np.ndarray) -> np.ndarray:
        """(N, C) float64 in 0..1, from 0.5 on the thing seems to be there; NaN where a condition has no verdict.

        It ranks pictures and has a threshold; it is no share of pictures.
        """
        logits = np.einsum("ncf,cf->nc", features(conditioned, plain).astype(np.float64), self.weights) + self.bias
        told = np.array(self.scenes) >= FEWEST
        return np.where(told, 1 / (1 + np.exp(-logits.clip(-50, 50))), np.nan)

    def save(self, folder: str | Path) -> None:
        """Writes FILE into a folder, whole or not at all."""
        tensors = {"scenes": torch.tensor(self.scenes), "weights": torch.from_numpy(self.weights)}
        tensors["bias"] = torch.from_numpy(self.bias)
        write_calibration(Path(folder) / FILE, self.conditions, self.model, tensors)

    @classmethod
    def load(cls, folder: str | Path) -> Self | None:
        """What `save` wrote; None where there is none. Raises ValueError: it is damaged, or a newer program's."""

        def parse(conditions: tuple[str, ...], model: str, tensors: Tensors) -> Self:
            scenes, weights, bias = (tensors[name] for name in ("scenes", "weights", "bias"))
            if not len(conditions) == len(scenes) == len(weights) == len(bias):
                raise ValueError(f"{len(conditions)} conditions")
            return cls(conditions, model, tuple(scenes.tolist()), weights.numpy(), bias.numpy())

        return read_calibration(Path(folder) / FILE, parse)


def _calibrated(rows: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights (F,) and bias of logits whose 0 is the threshold, from rows (N, F) of which some are known to show it."""
    inputs = torch.from_numpy(rows.astype(np.float64))
    mean, deviation = inputs.mean(0), inputs.std(0) + 1e-6  # the diagonal has none
    inputs, labels = (inputs - mean) / deviation, torch.from_numpy(known.astype(np.float64))
    fold = torch.from_numpy(np.where(known, known.cumsum(), (~known).cumsum()) % FOLDS)  # known ones in each
    judged = [_judged(inputs, labels, fold, penalty) for penalty in PENALTIES]
    best = min(range(len(PENALTIES)), key=lambda i: float(binary_cross_entropy_with_logits(judged[i], labels)))
    weight, bias = _regression(inputs, labels, PENALTIES[best])
    weight, threshold = weight / deviation, _threshold(judged[best].numpy(), known)
    return weight.numpy(), float(bias - mean @ weight) - threshold


def _judged(inputs: Tensor, labels: Tensor, fold: Tensor, penalty: float) -> Tensor:
    """(N,) logits, each by a regression on the other folds."""
    logits = torch.empty_like(labels)
    for own in range(FOLDS):
        weight, bias = _regression(inputs[fold != own], labels[fold != own], penalty)
        logits[fold == own] = inputs[fold == own] @ weight + bias
    return logits


def _regression(inputs: Tensor, labels: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Logistic regression: the minimum of the mean loss plus `penalty` times the squared weights."""
    weight, bias = inputs.new_zeros(inputs.shape[1], requires_grad=True), inputs.new_zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = binary_cross_entropy_with_logits(inputs @ weight + bias, labels) + penalty * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach()


def _threshold(logits: np.ndarray, known: np.ndarray) -> float:
    """The logit from which on the rate among the known ones exceeds the rate among the others most."""
    order = np.argsort(-logits, kind="stable")
    gain = np.cumsum(known[order] / known.sum() - ~known[order] / (~known).sum())  # (N,) of the first 1, 2, ... rows
    last = int(gain.argmax())
    below = logits[order[min(last + 1, len(order) - 1)]]
    return float((logits[order[last]] + below) / 2)
