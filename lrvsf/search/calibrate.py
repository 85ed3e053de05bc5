"""`search_catalog.py calibrate`: how a model's answers look where the thing is in the picture, or in the catalog.

Both are learned from scenes of which one thing each is known, with the product that shows it alone.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lrvsf.data.images import BadImage, BadImageCounter, Tolerance
from lrvsf.data.testset import ProductTestSet
from lrvsf.embedding.encoder import Encoder
from lrvsf.embedding.pipeline import prefetch_map
from lrvsf.search.own_model import load_encoder
from lrvsf.search.segments import digest_of, query_facts
from lrvsf.search.verdicts.presence import FEWEST, Presence
from lrvsf.search.verdicts.standing import KnownPairs, chosen_pairs

SCENES = 16  # embedded together, each under all conditions


def calibrate_model(model: Path, scenes: Path, dims: int | None, device: str | None, bad: Tolerance) -> dict[str, Any]:
    """Fits `Presence` to the queries of a test set, keeps `KnownPairs` of it, and writes both into the model's folder.

    Raises:
        ValueError: the model has no conditions; the test set has categories that it does not know, or too few scenes.
        TooMuchDamage: more queries cannot be read than are tolerated.
    """
    encoder = load_encoder(str(model), dims, device, conditioned=True)
    if encoder.conditioning != "category":
        raise ValueError(
            f"{model} has no conditions, so there is nothing to tell. Take one that was trained with them."
        )
    test_set, known = ProductTestSet(scenes), list(encoder.model.config.categories)
    test_set.check_categories(known)
    conditioned, plain, asked, rows = embed_scenes(encoder, test_set, known, bad)
    digest, skipped = digest_of(query_facts(encoder)), test_set.n_products - len(rows)
    presence = Presence.fit(known, digest, conditioned, plain, asked)
    chosen = chosen_pairs(asked, len(known))
    pairs = known_pairs(encoder, test_set, rows[chosen], asked[chosen], conditioned[chosen, asked[chosen]])
    presence.save(model)
    KnownPairs(tuple(known), digest, *pairs).save(model)
    few = [name for name, count in zip(known, presence.scenes, strict=True) if count < FEWEST]
    return {
        "model": str(model),
        "scenes": len(asked),
        **({"unreadable": skipped} if skipped else {}),
        "pairs kept": len(pairs[0]),
        "by category": dict(zip(known, presence.scenes, strict=True)),
        **({f"no verdict, fewer than {FEWEST} scenes": ", ".join(few)} if few else {}),
    }


def embed_scenes(
    encoder: Encoder, test_set: ProductTestSet, known: list[str], bad: Tolerance
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Every query that can be read, under every condition and none.

    Returns: (N, C, D), (N, D), (N,) the condition that each is asked about, and (N,) its row in the test set.
    """
    counter = BadImageCounter("scenes", bad)
    conditioned, plain, asked, rows = [], [], [], []
    batch: list[np.ndarray] = []

    def embed() -> None:
        if batch:
            repeated = [pixels for pixels in batch for _ in known]
            under_all = encoder.embed(repeated, known * len(batch)).numpy()
            conditioned.append(under_all.reshape(len(batch), len(known), -1))
            plain.append(encoder.embed(batch).numpy())
            batch.clear()

    items = ((product.row, product) for product in test_set.products())
    decoded = prefetch_map(lambda item: encoder.pixels(item[1].query_image), items, ahead=2 * SCENES)
    with closing(decoded), tqdm(desc="scenes", total=test_set.n_products, unit="scene") as bar:
        for (row, product), pixels in decoded:
            bar.update()
            try:
                batch.append(pixels.result())
            except BadImage as error:
                counter.add_bad(f"row {row}", error)
                continue
            counter.add_good()
            asked.append(known.index(product.category))
            rows.append(row)
            if len(batch) == SCENES:
                embed()
        embed()
    counter.finish()
    dim = encoder.dim
    return (
        np.concatenate([np.empty((0, len(known), dim), np.float32), *conditioned]),
        np.concatenate([np.empty((0, dim), np.float32), *plain]),
        np.array(asked, dtype=np.int64),
        np.array(rows, dtype=np.int64),
    )


def known_pairs(
    encoder: Encoder, test_set: ProductTestSet, rows: np.ndarray, asked: np.ndarray, scenes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The products of scenes (n, D) that stand in some rows (n,), ascending, of a test set.

    Returns: (m,) `asked`, (m, D) float16 scenes and (m, D) float16 products of those whose product can be read.
    """
    wanted, read = set(rows.tolist()), np.ones(len(rows), bool)
    products = (product for product in test_set.products() if product.row in wanted)
    decoded = prefetch_map(lambda product: encoder.pixels(product.target_image), products, ahead=2 * SCENES)
    batch: list[np.ndarray] = []
    embeds = [np.empty((0, encoder.dim), np.float32)]
    with closing(decoded):
        for place, (_, pixels) in enumerate(decoded):
            try:
                batch.append(pixels.result())
            except BadImage:
                read[place] = False  # another pair does as well
            if batch and (len(batch) == 4 * SCENES or place == len(rows) - 1):
                embeds.append(encoder.embed(batch).numpy())
                batch.clear()
    return asked[read], scenes[read].astype(np.float16), np.concatenate(embeds).astype(np.float16)
