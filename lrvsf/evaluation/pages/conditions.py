"""Does conditioning help? What a model does with its condition, in one gallery of all products and all distractors.

Three ways to ask are compared: with the condition; without it; and without it but among items of the target's category
only, the published "filter", which needs to know the category of every item in the catalog. A model that is asked by
captions is asked in a fourth way, by the category's name alone. And every query is asked with every other category too:
a model that heeds its condition answers with that category, one that does not gives the same answer.

Queries are embedded once more, under each condition, from images decoded once. The gallery is the embedding store's,
read block by block; items are kept ten to a query.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrvsf.durable import write_whole
from lrvsf.embedding.pipeline import THREADS, prefetch_map
from lrvsf.evaluation.embedded import EmbeddedTestSet
from lrvsf.evaluation.pages.sheet import FOUND, render
from lrvsf.evaluation.paired import bootstrap_interval
from lrvsf.evaluation.recall import ranks_among_all
from lrvsf.evaluation.results import FIRST_KS
from lrvsf.processes import every, own_share

WAYS = ("with the condition", "without", "without, filtered by category")
BY_TEXT = ("by the caption", "by the category's name", *WAYS[1:])
CAPTION = 0  # in place of a category: each query is asked by its own text


def measure_conditions(data: EmbeddedTestSet, batch_size: int = 256, allow_unmatched: bool = False) -> dict[str, Any]:
    """Measures a model that is asked by category or text. Every process must call it; all get the same results.

    Returns, of JSON's types, with categories in the order of `categories`:
        ways[WAY]: recall (K -> 0..1, None where K reaches the gallery) and recall_at_1_by_category (name -> 0..1); of
            WAYS or, of a model that is asked by text, BY_TEXT
        gain[WAY]: difference, low, high of R@1 the first way over this one, 95 % over products
        swap: answers[own][asked], the share of queries whose first item is of the category asked for;
            asked_for, same: this share, and the share of unchanged first items, over all other categories asked for
        confusion[WAY][own][found]: shares of the first ten items; the remainder to 1 has no known category
        queries, items: how many each category has, of queries and in its gallery
        unmatched: what did not join (`lrvsf.evaluation.columns.Categories.facts`)

    Raises ValueError: a model without conditions, or, unless that is allowed, distractors whose categories do not join.
    """
    check_conditions(data, allow_unmatched)
    data.fill()
    names, by_text = data.categories.names, data.encoder.conditioning == "text"
    known = [name for name in data.encoder.model.config.categories if name in names]
    asked = known + [name for name in names if name not in known]  # which only a model that reads texts may meet
    numbers = [names.index(name) for name in asked]
    asking = queries_under(data, asked, batch_size)  # condition -> (P, dim)
    own = data.product_categories  # (P,)
    meant = torch.stack([asking[names[number]][row] for row, number in enumerate(own.tolist())])  # (P, dim)
    asked_so = [*([asking.pop(CAPTION)] if by_text else []), meant, asking[None]]
    unfiltered = dict(zip((BY_TEXT if by_text else WAYS)[:-1], asked_so, strict=True))  # way -> (P, dim)
    hits = {way: hits_of(data, queries, False) for way, queries in unfiltered.items()}
    hits[WAYS[-1]] = hits_of(data, asking[None], True)
    found = {condition: top_of(data, queries) for condition, queries in asking.items()}  # each (P, 10) twice
    items = [int((own == n).sum() + (data.distractor_categories == n).sum()) for n in numbers]
    gallery = dict.fromkeys(unfiltered, len(own) + data.n_distractors) | {WAYS[-1]: max(items)}  # the largest
    ways = {}
    for way, hit in hits.items():
        by_category = {name: _mean(hit[own == number, 0]) for name, number in zip(asked, numbers, strict=True)}
        recall = {str(k): hit[:, at].mean().item() if k < gallery[way] else None for at, k in enumerate(FIRST_KS)}
        ways[way] = {"recall": recall, "recall_at_1_by_category": by_category}
    confusion = {way: _confusion(top_of(data, queries)[1], own, numbers) for way, queries in unfiltered.items()}
    first, *others = hits
    return {
        "categories": asked,
        "queries": [int((own == number).sum()) for number in numbers],
        "items": items,
        "unmatched": data.categories.facts(),
        "n_distractors": data.n_distractors,
        "ways": ways,
        "gain": {way: _gain(hits[first], hits[way]) for way in others},
        "swap": _swap(found, asked, numbers, own),
        "confusion": confusion,
    }


def check_conditions(data: EmbeddedTestSet, allow_unmatched: bool = False) -> None:
    """Raises ValueError, before anything is embedded, where `measure_conditions` would."""
    if data.encoder.conditioning == "none":
        raise ValueError(
            "The page on conditions needs a model that is asked by category or text; this one is asked with "
            "conditioning='none'. Leave --conditioning_page out, or evaluate a model that was trained with a condition."
        )
    categories = data.categories
    if not allow_unmatched:
        categories.check()


def queries_under(data: EmbeddedTestSet, conditions: list[str], batch_size: int) -> dict[str | None, Tensor]:
    """Each condition, None for no condition and, by text, CAPTION -> the queries (P, dim), in the order of `data.rows`,
    on the device."""
    encoder, (start, stop) = data.encoder, own_share(len(data.rows))
    rows = data.rows[start:stop]
    said = {name: [name] * len(rows) for name in conditions} | {None: None}  # condition -> what each query is asked by
    if encoder.conditioning == "text":
        template = encoder.model.config.text_template
        texts = data.test_set.texts(template)
        said |= {name: [template.format(name)] * len(rows) for name in conditions}
        said |= {CAPTION: [texts[row] for row in rows]}
    # One read from the first row to the last; those between that cannot be read are passed over.
    wanted, products = set(rows), data.test_set.products(rows[0], rows[-1] + 1) if rows else ()
    images = ((product.row, product.query_image) for product in products if product.row in wanted)
    parts = {name: [torch.empty(0, encoder.dim)] for name in said}
    batch: list[np.ndarray] = []
    for place, (_, future) in enumerate(prefetch_map(lambda item: encoder.pixels(item[1]), images, ahead=2 * THREADS)):
        batch.append(future.result())
        if len(batch) == batch_size or place == len(rows) - 1:
            these = slice(place + 1 - len(batch), place + 1)
            for name, embeds in parts.items():
                embeds.append(encoder.embed(batch, said[name] and said[name][these]))
            batch = []
    share = {name: torch.cat(embeds) for name, embeds in parts.items()}
    everywhere = every(share)  # in the order of the slices
    return {name: torch.cat([part[name] for part in everywhere]).to(encoder.device) for name in share}


def hits_of(data: EmbeddedTestSet, queries: Tensor, filtered: bool) -> Tensor:
    """(P, 3) float64 on the CPU: is the target among the first 1, 5, 10, everyone among all, or of its category?"""
    categories = data.product_categories if filtered else None
    ranks = ranks_among_all(queries, data.targets, data.blocks(filtered), data.n_distractors, categories)
    return torch.cat([(ranks.expected <= k).double() for k in FIRST_KS], dim=1)


def top_of(data: EmbeddedTestSet, queries: Tensor) -> tuple[Tensor, Tensor]:
    """`best_items` (P, 10), and their categories, -1 where unknown; on the CPU."""
    items = data.best_items(queries, FOUND)
    return items, torch.cat([data.product_categories, data.distractor_categories]).cpu()[items]


def _gain(with_condition: Tensor, other: Tensor) -> dict[str, float]:
    difference = (with_condition - other)[:, :1].numpy()  # (P, 1): R@1 alone
    low, high = bootstrap_interval(difference, np.ones(len(difference)))
    return {"difference": float(difference.mean()), "low": float(low[0]), "high": float(high[0])}


def _swap(
    found: dict[str | None, tuple[Tensor, Tensor]], asked: list[str], numbers: list[int], own: Tensor
) -> dict[str, Any]:
    first_item = torch.stack([found[name][0][:, 0] for name in asked])  # (C, P)
    first_category = torch.stack([found[name][1][:, 0] for name in asked])  # (C, P)
    as_asked = first_category == torch.tensor(numbers)[:, None]
    other = torch.tensor(numbers)[:, None] != own.cpu()  # asked for what the query is not meant for
    meant = torch.tensor([numbers.index(number) for number in own.tolist()])  # (P,), each product's own condition
    same = first_item == first_item[meant, torch.arange(len(meant))]
    answers = [[_mean(as_asked[column, own.cpu() == row]) for column in range(len(asked))] for row in numbers]
    return {"answers": answers, "asked_for": _mean(as_asked[other]), "same": _mean(same[other])}


def _confusion(categories: Tensor, own: Tensor, numbers: list[int]) -> list[list[float]]:
    return [[_mean(categories[own.cpu() == row] == column) for column in numbers] for row in numbers]


def _mean(values: Tensor) -> float | None:
    """None where there is nothing to take the mean of: a category without queries, or no other one to ask for."""
    return values.double().mean().item() if values.numel() else None


def write_conditions(measured: dict[str, Any], path: str | Path, model: str) -> None:
    """The page, one HTML file without links, of what `measure_conditions` found."""
    percent = lambda share: "-" if share is None else f"{100 * share:.1f}"  # noqa: E731
    write_whole(path, render("conditions", {"percent": percent}, model=model, **measured).encode())
