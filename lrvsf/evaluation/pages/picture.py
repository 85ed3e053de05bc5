"""One scene, several conditions, what each finds: a PNG to look at.

    evaluate_lrvsf.py picture --model assets/mini-condvit \\
        --data_root data/mini/test --product 37 \\
        --categories Bags "Lower Body" "Upper Body" --out docs/retrieval.png

A model that reads texts is asked by `--texts`.
"""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Iterable

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from lrvsf.command import OneLineParser, script_name
from lrvsf.data.images import decode_image
from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding.encoder import Encoder, load_model
from lrvsf.embedding.parts import Distractors, Products
from lrvsf.embedding.pipeline import embed_share
from lrvsf.evaluation.columns import told_of_ids
from lrvsf.terminal import never_refuse
from processing_condvit import pad_and_resize

TILE, GAP, LINE = 120, 8, 24  # pixels
LETTER, WRAPPED = 7, 20  # pixels that a letter takes, at most; letters of a line of a condition
INK, FRAME = (32, 32, 36), (30, 140, 60)


def gallery_of(encoder: Encoder, test_set: ProductTestSet) -> tuple[torch.Tensor, list[bytes]]:
    """All products' target images and all distractors: (n, dim) unit rows, and the encoded images in the same order."""
    # All in memory: this is for a small test set. An evaluation's store is not asked for.
    products, distractors = (embed_share(encoder, part(test_set), 256) for part in (Products, Distractors))
    targets, others = list(test_set.products()), dict(test_set.distractors())
    images = [targets[row].target_image for row in products.rows] + [others[row] for row in distractors.rows]
    return torch.cat([products.embeds["target"], distractors.embeds["distractor"]]), images


def retrieve(
    encoder: Encoder, scene: bytes, conditions: Iterable[str], gallery: torch.Tensor, count: int
) -> dict[str, list[int]]:
    """For each condition the gallery rows that the scene finds under it, best first."""
    pixels = encoder.pixels(scene)  # decoded once for all conditions
    found = {}
    for condition in conditions:
        query = encoder.embed([pixels], [condition])  # (1, dim)
        found[condition] = (query @ gallery.T)[0].topk(count).indices.tolist()  # ties in any order, as it is a picture
    return found


def known_products(test_set: ProductTestSet) -> list[list[int]]:
    """For each product the rows, ascending, of those that its scene is known to show: those that are asked for by it,
    and those that, by the test set's manifest.json, are worn in it (Mini LRVS-F says so under "note").

    Raises ValueError: what is worn is no product of the test set; and as `told_of_ids` does.
    """
    ids = [origin.product_id for origin in test_set.origins("products")]
    rows, worn = {product_id: row for row, product_id in enumerate(ids)}, told_of_ids(test_set, "worn")
    asking = defaultdict(list)  # by scene
    for product in test_set.products():
        asking[product.query_image].append(product.row)
    known = [set()] * len(ids)
    for together in asking.values():
        for row in together:
            things = worn.get(ids[row], {})
            others = things.values() if isinstance(things, dict) else [None]
            if not all(isinstance(other, str) and other in rows for other in others):
                raise ValueError(
                    f"{test_set.root / 'manifest.json'} tells that {things} is worn in the scene of {ids[row]}, where "
                    "a mapping to PRODUCT_IDs of products must be. Correct it, or take it out."
                )
            known[row] = {*together, *(rows[other] for other in others)}
    return [sorted(shown) for shown in known]


def draw_retrieval(scene: bytes, found: dict[str, list[int]], images: list[bytes], targets: set[int]) -> Image.Image:
    """The scene on the left, one row of answers for each condition; known targets are framed."""
    rows, count = len(found), max(map(len, found.values()))
    labels = {condition: textwrap.wrap(condition, WRAPPED) for condition in found}
    label = GAP + LETTER * max(14, *(len(line) for lines in labels.values() for line in lines))
    height = LINE + rows * (TILE + GAP)
    side = height - LINE - GAP
    width = GAP + side + GAP + label + count * (TILE + GAP)
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    sheet.paste(pad_and_resize(decode_image(scene), side), (GAP, LINE))
    draw.text((GAP, 4), "query", INK, font)
    draw.text((2 * GAP + side, 4), "condition", INK, font)
    draw.text((2 * GAP + side + label, 4), "found among all products and distractors, best first", INK, font)
    for line, (condition, answers) in enumerate(found.items()):
        top = LINE + line * (TILE + GAP)
        middle = top + (TILE - 16 * len(labels[condition])) // 2
        draw.text((2 * GAP + side, middle), "\n".join(labels[condition]), INK, font)
        for place, row in enumerate(answers):
            tile = pad_and_resize(decode_image(images[row]), TILE - 6)
            tile = ImageOps.expand(tile, 3, FRAME if row in targets else (224, 224, 228))
            sheet.paste(tile, (2 * GAP + side + label + place * (TILE + GAP), top))
    return sheet


def main(arguments: list[str] | None = None) -> None:
    parser = OneLineParser(__doc__, prog=f"{script_name()} picture")
    parser.add_argument("--model", required=True, help="a CondViT model")
    parser.add_argument("--data_root", required=True, help="test set folder")
    parser.add_argument("--out", required=True, help="PNG to write")
    parser.add_argument("--product", type=int, default=0, help="row of the test set's product whose scene is asked")
    parser.add_argument("--categories", nargs="+", help="conditions; by default the product's own")
    parser.add_argument("--texts", nargs="+", help="conditions in words instead, for a model that reads texts")
    parser.add_argument("--count", type=int, default=5, help="answers for each condition")
    args = parser.parse_args(arguments)
    never_refuse()
    conditioning, test_set = "text" if args.texts else "category", ProductTestSet(args.data_root)
    encoder = Encoder(load_model(args.model), conditioning)
    if not 0 <= args.product < test_set.n_products:
        raise ValueError(f"--product {args.product}: the test set has products 0..{test_set.n_products - 1}")
    product = next(iter(test_set.products(args.product, args.product + 1)))
    conditions = args.texts or args.categories or [product.category]
    if not args.texts and (unknown := [name for name in conditions if name not in encoder.model.config.categories]):
        raise ValueError(f"--categories {unknown}: this model knows {encoder.model.config.categories}")
    targets = list(test_set.products())
    known = {targets[row].target_image for row in known_products(test_set)[product.row]}
    gallery, images = gallery_of(encoder, test_set)
    found = retrieve(encoder, product.query_image, conditions, gallery, args.count)
    framed = {row for row, image in enumerate(images) if image in known}
    draw_retrieval(product.query_image, found, images, framed).save(args.out, optimize=True)
    print(f"{args.out}: product {args.product} ({product.caption}) asked for {', '.join(conditions)}")
