"""What lists of hits are worth, as pure functions: is the target among them, what has an index missed, and is it said
where nothing is close?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Found(NamedTuple):
    """A hit as far as it is counted: a product, the score of its best photo, whether that is close (None: not told)."""

    product: str
    score: float
    close: bool | None = None


HitList = Sequence[Found]  # best first, each product once


def expected_rank(hits: HitList, target: str) -> float:
    """The target's rank from 1, half of the products that tie with it before it; infinite where it is not among them.

    That is what evaluate_lrvsf.py counts: a model that maps everything to one point then finds nothing, not all.
    """
    score = next((hit.score for hit in hits if hit.product == target), None)
    if score is None:
        return math.inf
    above = sum(hit.score > score for hit in hits)
    tied = sum(hit.score == score for hit in hits) - 1
    return 1 + above + tied / 2


def depth_for_ties(k: int) -> int:
    """How many hits decide whether a target's expected rank is at most k.

    Where fewer are before the target or tie with it, all of them are seen. Where more do, at least 2k - 1 other hits
    are above or tied, half of which is k - 1/2 already: the rank is beyond k, whatever is further down.
    """
    return 2 * k


def target_recall(lists: Sequence[HitList], targets: Sequence[str | None], k: int) -> float | None:
    """R@K: the share of the queries whose target is among the first k. A query whose target is None does not count.

    Args:
        lists: a query's hits, at least k of them; `depth_for_ties(k)` of them where ties matter.

    Returns: 0..1; None where no query counts.
    """
    found = [
        expected_rank(hits, target) <= k for hits, target in zip(lists, targets, strict=True) if target is not None
    ]
    return sum(found) / len(found) if found else None


def index_recall(lists: Sequence[HitList], exact: Sequence[HitList], k: int) -> float | None:
    """recall@K of an index: the share of the k best that it finds, mean over queries.

    Scores are compared, not names: of products that tie, the one is as good as the other.

    Args:
        lists, exact: the hits of the index and of the exact search, for the same queries.

    Returns: 0..1; None where no query has any hit.
    """
    shares = []
    for hits, best in zip(lists, exact, strict=True):
        if best := best[:k]:
            shares.append(sum(hit.score >= best[-1].score for hit in hits[:k]) / len(best))
    return sum(shares) / len(shares) if shares else None


def no_close_match(lists: Sequence[HitList], targets: Sequence[str | None]) -> dict[str, float | int | None] | None:
    """How good the verdict "no close match" is. Each query that has a target asks twice, with it and without.

    Args:
        lists: a query's hits, two at least where there are that many.

    Returns: `queries` that count; `said_with_target` and `said_without_target`, how often it was said; `precision`, the
    share of what was said that is true, None where nothing was; `recall`, the share of the queries without their target
    of which it was said. None where no query is told anything.
    """
    said = []
    for hits, target in zip(lists, targets, strict=True):
        if target is None or not hits or any(hit.close is None for hit in hits):
            continue  # of nothing at all, nothing is said to be far
        others = [hit for hit in hits if hit.product != target]
        said.append((not any(hit.close for hit in hits), not any(hit.close for hit in others)))
    if not said:
        return None
    wrong, right = (sum(column) for column in zip(*said, strict=True))
    precision = right / (wrong + right) if wrong + right else None
    counts = {"queries": len(said), "said_with_target": wrong, "said_without_target": right}
    return counts | {"precision": precision, "recall": right / len(said)}
