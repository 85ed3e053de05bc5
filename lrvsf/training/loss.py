"""Symmetric InfoNCE over all processes' pairs (CLIP's loss, arXiv 2103.00020; used by CondViT, arXiv 2306.02928).

Exact on any number of processes: each scores its own rows against everybody's, and the gather's backward sums what all
processes have to say about a row. The mean of gradients that distributed training takes is then the gradient of the
global batch's loss, for the encoder and for the temperature, with no factor to remember.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


class _Gather(torch.autograd.Function):
    """(B, D) of each process -> (world x B, D) on each; backward sums over the processes."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)  # what every process's loss asks of every row
        return grad.chunk(dist.get_world_size())[dist.get_rank()]


def gather_rows(rows: Tensor) -> Tensor:
    """All processes' rows in rank order, differentiable; the rows themselves on one process. Equal B everywhere."""
    return _Gather.apply(rows) if dist.is_initialized() and dist.get_world_size() > 1 else rows


def info_nce(queries: Tensor, targets: Tensor, logit_scale: Tensor) -> Tensor:
    """This process's share of the loss; the mean over processes is the global batch's loss.

    Args:
        queries, targets: unit rows (B, D) of this process; row i of one belongs to row i of the other. Half precision
            is raised to float32: at a scale of 100, bfloat16 logits cost a percent of the gradient.
        logit_scale: the parameter before `exp`.

    Returns:
        0-d tensor. With all embeddings equal it is log of the global batch size.
    """
    if queries.shape != targets.shape:
        raise ValueError(f"queries {tuple(queries.shape)} and targets {tuple(targets.shape)} must be pairs of rows")
    with torch.autocast(queries.device.type, enabled=False):
        precision = torch.promote_types(queries.dtype, torch.float32)
        queries, targets = queries.to(precision), targets.to(precision)
        all_queries, all_targets = gather_rows(queries), gather_rows(targets)
        return symmetric_cross_entropy(queries, targets, all_queries, all_targets, logit_scale)


def nested_info_nce(queries: Tensor, targets: Tensor, logit_scale: Tensor, dims: list[int]) -> Tensor:
    """The mean of `info_nce` of whole rows and of their first d dimensions, normalised, for each d of `dims`.

    Embeddings trained so may be cut at any of these (Matryoshka, arXiv 2205.13147). Arguments as for `info_nce`.
    """
    losses = [info_nce(queries, targets, logit_scale)]
    for d in dims:
        short = [F.normalize(rows[:, :d], dim=-1) for rows in (queries, targets)]
        losses.append(info_nce(*short, logit_scale))
    return torch.stack(losses).mean()


def symmetric_cross_entropy(
    queries: Tensor,
    targets: Tensor,
    all_queries: Tensor,
    all_targets: Tensor,
    logit_scale: Tensor,
) -> Tensor:
    """`info_nce` of rows that were gathered: (B, D) of this process, (world x B, D) of all."""
    first = dist.get_rank() * len(queries) if len(all_queries) > len(queries) else 0
    own = torch.arange(first, first + len(queries), device=queries.device)
    scale = logit_scale.to(queries.dtype).exp()
    logits = scale * queries @ all_targets.T, scale * targets @ all_queries.T  # (B, world x B) each
    return sum(F.cross_entropy(each, own) for each in logits) / 2
