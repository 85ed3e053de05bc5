"""What queries of a test set look at under each condition (`lrvsf.embedding.rollout`), as one PNG."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from lrvsf.data.images import decode_image
from lrvsf.data.testset import Product, ProductTestSet
from lrvsf.durable import whole_file
from lrvsf.embedding.encoder import Encoder
from lrvsf.embedding.rollout import attention_maps, draw_heat
from lrvsf.evaluation.pages.picture import FRAME, GAP, INK, LINE, TILE
from processing_condvit import pad_and_resize

LABELS = ("[CLS]", "[CLS], more\nthan on average\nover conditions", "condition token")
LABEL = 120  # pixels for a line's name
LETTERS = 17  # that fit over a column
NOTE = "Attention rollout. Red: each map's largest value; no colour: its smallest, or not above the average."


def draw_attention(
    queries: Sequence[tuple[Product, Tensor]], known: Sequence[str], shown: Sequence[str]
) -> Image.Image:
    """A block of three lines for each query: its picture, then a column for each condition in `shown`.

    Args:
        queries: a product and its scene's maps (conditions, 3, side, side).
        known: the categories or texts of the maps, in their order.
        shown: those to draw. The one that the query belongs to is framed.
    """
    block = len(LABELS) * (TILE + GAP)
    left = 3 * GAP + block + LABEL
    heads = [textwrap.wrap(name, LETTERS) for name in shown]  # a category has one line, a text several
    head = LINE * max(map(len, heads))
    size = left + len(shown) * (TILE + GAP), head + LINE + len(queries) * (block + GAP)
    canvas = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    draw.text((GAP, 4), "query", INK, font)
    draw.text((GAP, canvas.height - LINE), NOTE, INK, font)
    for column, lines in enumerate(heads):
        for number, line in enumerate(lines):
            draw.text((left + column * (TILE + GAP), 4 + number * LINE), line, INK, font)
    for number, (product, maps) in enumerate(queries):
        top = head + number * (block + GAP)
        scene = decode_image(product.query_image)
        canvas.paste(pad_and_resize(scene, block - GAP), (GAP, top))
        tile = pad_and_resize(scene, TILE - 6)
        for line, label in enumerate(LABELS):
            draw.text((2 * GAP + block, top + line * (TILE + GAP) + TILE // 3), label, INK, font)
        for column, name in enumerate(shown):
            frame = FRAME if name in (product.category, product.caption) else (255, 255, 255)
            for line, heat in enumerate(maps[known.index(name)]):
                framed = ImageOps.expand(draw_heat(tile, heat), 3, frame)
                canvas.paste(framed, (left + column * (TILE + GAP), top + line * (TILE + GAP)))
    return canvas


def write_attention(
    encoder: Encoder,
    test_set: ProductTestSet,
    rows: Sequence[int],
    categories: Sequence[str] | None,
    path: str | Path,
    texts: Sequence[str] = (),
) -> None:
    """Draws the queries of some rows of a test set under some categories, by default all that the model knows, or under
    texts.

    Raises:
        ValueError: a model that is not asked by categories or texts, a row or a category that there is not.
        BadImage: a query that cannot be read.
    """
    if encoder.conditioning == "none":
        raise ValueError("Attention is drawn for each condition; this model runs with conditioning='none'.")
    encoder = encoder.asked_by("text" if texts else "category")
    known = list(texts) or encoder.model.config.categories
    shown = list(categories or known)
    if wrong := [row for row in rows if not 0 <= row < test_set.n_products]:
        raise ValueError(f"There is no query {wrong[0]}: the test set has rows 0 to {test_set.n_products - 1}.")
    if unknown := [name for name in shown if name not in known]:
        raise ValueError(f"Unknown category {unknown[0]!r}. This model knows {', '.join(known)}.")
    products = [next(test_set.products(row, row + 1)) for row in rows]
    queries = [(product, attention_maps(encoder, decode_image(product.query_image), known)) for product in products]
    with whole_file(path) as part:
        draw_attention(queries, known, shown).save(part, "PNG", optimize=True)
