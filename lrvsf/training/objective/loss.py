"""Symmetric InfoNCE over all processes' pairs (CLIP's loss, arXiv 2103.00020; used by CondViT, arXiv 2306.02928).

Exact on any number of processes: each scores its own rows against everybody's, and the gather's backward sums what all
processes have to say about a row. The mean of gradients that distributed training takes is then the gradient of the
global batch's loss, for the encoder and for the temperature, with no factor to remember.

Products of one picture are not told apart: neither is a negative of the other. In a batch without such products the
loss is the published one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lrvsf.processes import gather_rows, largest_over, rank, world_size

Pairs = tuple[Tensor, Tensor]  # queries and targets


def rows_that_share(pictures: Tensor) -> Tensor | None:
    """Which rows of all processes share a picture with each row of this one.

    Args:
        pictures: int64 (B, P), numbers of the pictures of each row, each once; 0 where it has fewer. P may differ
            between processes, B may not.

    Returns:
        bool (B, world x B), never true of a row and itself; None, on all processes, if no two rows share one.
    """
    if world_size() > 1:
        # Gathered rows must be equally wide: 0, no picture's number, fills up those of processes with fewer.
        width = largest_over(torch.tensor(pictures.shape[1], device=pictures.device))
        everybody = gather_rows(F.pad(pictures, (0, int(width) - pictures.shape[1])))  # (world x B, P)
    else:
        everybody = pictures
    # (n,) numbers that occur, (world x B, P) the place of each among them, (n,) how often. A row has a picture once:
    # what occurs twice is in two rows.
    numbers, codes, counts = everybody.unique(return_inverse=True, return_counts=True)
    shared = (counts > 1) & (numbers != 0)
    if not shared.any():
        return None
    rows, places = shared[codes].nonzero(as_tuple=True)
    # Only shared pictures get a column: they are few, and B x world x B x P x P comparisons would be many.
    column = shared.cumsum(0) - 1  # (n,) its column, of a shared one
    holds = torch.zeros(len(everybody), int(shared.sum()), device=pictures.device)  # (world x B, shared pictures)
    holds[rows, column[codes[rows, places]]] = 1
    own = _own_rows(pictures, everybody)
    # How many pictures two rows share. In float32, exact at this size: GPUs multiply no matrices of integers.
    together = holds[own] @ holds.T > 0  # (B, world x B)
    together[torch.arange(len(own)), own] = False
    return together


def _own_rows(rows: Tensor, everybody: Tensor) -> Tensor:
    """(B,) where this process's rows are among all."""
    first = rank() * len(rows) if len(everybody) > len(rows) else 0
    return torch.arange(first, first + len(rows), device=rows.device)


def info_nce(queries: Tensor, targets: Tensor, logit_scale: Tensor, together: Tensor | None = None) -> Tensor:
    """This process's share of the loss; the mean over processes is the global batch's loss.

    Args:
        queries, targets: unit rows (B, D) of this process; row i of one belongs to row i of the other. Half precision
            is raised to float32: at a scale of 100, bfloat16 logits cost a percent of the gradient.
        logit_scale: the parameter before `exp`.
        together: what `rows_that_share` gives: pairs of rows that are not negatives of each other.

    Returns:
        0-d tensor. With all embeddings equal it is log of the global batch size.
    """
    if queries.shape != targets.shape:
        raise ValueError(f"queries {tuple(queries.shape)} and targets {tuple(targets.shape)} must be pairs of rows")
    with torch.autocast(queries.device.type, enabled=False):
        precision = torch.promote_types(queries.dtype, torch.float32)
        queries, targets = queries.to(precision), targets.to(precision)
        # Differentiable: a row is a negative on every process, and its gradient comes back as the sum of all of theirs.
        everybody = gather_rows(queries), gather_rows(targets)  # (world x B, D) each
        return symmetric_cross_entropy((queries, targets), everybody, logit_scale, together)


def nested_info_nce(
    queries: Tensor, targets: Tensor, logit_scale: Tensor, dims: list[int], together: Tensor | None = None
) -> Tensor:
    """The mean of `info_nce` of whole rows and of their first d dimensions, normalised, for each d of `dims`.

    Embeddings trained so may be cut at any of these (Matryoshka, arXiv 2205.13147). Arguments as for `info_nce`.
    """
    losses = [info_nce(queries, targets, logit_scale, together)]
    for d in dims:
        short = [F.normalize(rows[:, :d], dim=-1) for rows in (queries, targets)]
        losses.append(info_nce(*short, logit_scale, together))
    return torch.stack(losses).mean()


def checked_dims(dims: list[int] | None, whole: int) -> list[int]:
    """The dimensions of `nested_info_nce`, of embeddings of `whole` ones. Raises ValueError: one of no use."""
    dims = dims or []
    if len(set(dims)) < len(dims):
        raise ValueError(f"matryoshka_dims={dims} names a dimension twice; give each once")
    if wrong := [d for d in dims if not 0 < d < whole]:
        raise ValueError(f"matryoshka_dims={wrong} must be above 0 and below the embedding's {whole}")
    return dims


def symmetric_cross_entropy(
    pairs: Pairs, everybody: Pairs, logit_scale: Tensor, together: Tensor | None = None
) -> Tensor:
    """`info_nce` of rows that were gathered: (B, D) of this process, (world x B, D) of all."""
    (queries, targets), (all_queries, all_targets) = pairs, everybody
    own = _own_rows(queries, all_queries)
    scale = logit_scale.to(queries.dtype).exp()
    logits = scale * queries @ all_targets.T, scale * targets @ all_queries.T  # (B, world x B) each
    if together is not None:
        # exp(-inf) is 0: such a row is in no denominator. One mask serves both ways, as sharing is mutual.
        logits = tuple(each.masked_fill(together, -math.inf) for each in logits)
    # The right column of a row is its own place among all: process 1's first row has its target at B.
    return sum(F.cross_entropy(each, own) for each in logits) / 2
