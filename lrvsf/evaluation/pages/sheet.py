"""Retrieval as a page to look at: what queries found, successes and worst failures, in one HTML file without links.

Every product is asked once, among the targets of all products and all distractors. That is a larger gallery than the
protocols' folds, so the page's recall is its own. Ranks are counted (`lrvsf.evaluation.recall`); the ten best items are
kept for the shown queries only, in one pass over blocks of the gallery, in memory of one block.
"""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from jinja2 import Environment, StrictUndefined
from torch import Tensor

from lrvsf.data.images import decode_image
from lrvsf.data.testset import Product, ProductTestSet
from lrvsf.durable import write_whole
from lrvsf.evaluation.embedded import EmbeddedTestSet
from lrvsf.evaluation.recall import ranks_among_all
from lrvsf.evaluation.results import views_of
from processing_condvit import pad_and_resize

FOUND = 10  # products shown of each query's answer
DEPTH = 50  # items looked at for them: a product may have several pictures
TILE = 128  # pixels


class Answer(NamedTuple):
    """A product among a query's answers, by its best picture: is it the target's, and how many more were found."""

    is_target: bool
    name: str
    image: bytes | None
    product_id: str | None = None
    more: int = 0


@dataclass(frozen=True)
class Retrieval:
    """What one query found.

    Attributes:
        rank: expected rank of its target from 1; a half where an odd number of items tie with it.
        found: the best products, best first.
    """

    product: Product
    rank: float
    found: list[Answer]
    product_id: str | None = None


def choose(ranks: Tensor, count: int, seed: int) -> tuple[list[int], list[int]]:
    """Ranks (P,) -> `count` of the queries of rank 1, drawn, and the `count` worst of the others, worst first.

    Either list is shorter where there are fewer.
    """
    first = (ranks <= 1).nonzero().flatten()
    # Drawn, as the first rows may be of one category; the worst are not drawn, so that nothing bad is left out.
    drawn = torch.randperm(len(first), generator=torch.Generator().manual_seed(seed))[:count]
    worst = ranks.argsort(descending=True, stable=True)[: min(count, len(ranks) - len(first))]
    return first[drawn].sort().values.tolist(), worst.tolist()


def write_sheet(data: EmbeddedTestSet, path: str | Path, count: int, seed: int = 0, model: str = "") -> None:
    """Embeds what is missing and writes the page, on the main process. Every process must call it.

    Args:
        count: how many successes and how many failures to show, if there are.
        seed: of the draw of successes.
        model: the name that the page gives.
    """
    data.fill()
    test_set = data.test_set
    ranks = ranks_among_all(data.queries, data.targets, data.blocks(), data.n_distractors).expected.flatten()  # (P,)
    successes, failures = choose(ranks, count, seed)
    shown = successes + failures
    # From places to rows of the test set, a distractor's after all products'. Collective: before the others leave.
    rows = torch.cat([torch.tensor(data.rows), data.distractor_rows + test_set.n_products])
    answers = rows[data.best_items(data.queries[shown], DEPTH)].tolist()
    if not PartialState().is_main_process:
        return
    ids = _found_ids(test_set, answers)
    grouped = [by_product(answer, ids)[:FOUND] for answer in answers]
    images = _found_images(test_set, [[group[0] for group in answer] for answer in grouped])
    retrievals = []
    for index, answer in zip(shown, grouped, strict=True):
        row = data.rows[index]
        product = next(test_set.products(row, row + 1))
        found = [Answer(row in items, *images[items[0]], ids[items[0]], len(items) - 1) for items in answer]
        retrievals.append(Retrieval(product, ranks[index].item(), found, data.product_ids[index]))
    facts = {
        "model": model,
        "conditioning": data.encoder.conditioning,
        "views": views_of(data.facts),
        "n_products": len(ranks),
        "n_distractors": data.n_distractors,
        "n_first": int((ranks <= 1).sum()),
        "recalls": {k: (ranks <= k).double().mean().item() for k in (1, 10) if k < len(ranks) + data.n_distractors},
        "seed": seed,
    }
    page = render_sheet(retrievals[: len(successes)], retrievals[len(successes) :], facts)
    write_whole(path, page.encode())


def by_product(items: list[int], ids: dict[int, str | None]) -> list[list[int]]:
    """Items, best first, of which those of one product id are one group, where its best item stands."""
    groups: dict[Any, list[int]] = {}
    for item in items:
        groups.setdefault(item if ids[item] is None else ids[item], []).append(item)  # in the order of the best ones
    return list(groups.values())


def render_sheet(successes: list[Retrieval], failures: list[Retrieval], facts: dict[str, Any]) -> str:
    """The page. What comes from the data, captions above all, is escaped; images are embedded as JPEG."""
    return render("sheet", {"src": thumbnail}, successes=successes, failures=failures, tile=TILE, depth=DEPTH, **facts)


def render(page: str, filters: dict[str, Callable], **facts: Any) -> str:
    """A page from PAGE.html.jinja; a name that it uses and does not get is an error."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= filters
    template = Path(__file__).with_name(f"{page}.html.jinja")
    return environment.from_string(template.read_text(encoding="utf-8")).render(**facts)


def thumbnail(data: bytes | None) -> str:
    """An encoded image as a `data:` address of a JPEG of `TILE` x `TILE`, padded as the model sees it."""
    out = io.BytesIO()
    pad_and_resize(decode_image(data), TILE).save(out, "JPEG", quality=85, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def _found_ids(test_set: ProductTestSet, answers: list[list[int]]) -> dict[int, str | None]:
    """Item number -> the id of its product, None where it has none."""
    ids, first = {}, test_set.n_products
    for item in sorted({item for answer in answers for item in answer}):
        what, row = ("products", item) if item < first else ("distractors", item - first)
        (origin,) = test_set.origins(what, row, row + 1)
        ids[item] = origin.product_id
    return ids


def _found_images(test_set: ProductTestSet, answers: list[list[int]]) -> dict[int, tuple[str, bytes | None]]:
    """Item number -> its name and its encoded image, each read once."""
    images: dict[int, tuple[str, bytes | None]] = {}
    for item in sorted({item for answer in answers for item in answer}):
        if (row := item - test_set.n_products) < 0:
            images[item] = f"product {item}", next(test_set.products(item, item + 1)).target_image
        else:
            images[item] = f"distractor {row}", next(test_set.distractors(row, row + 1))[1]
    return images
