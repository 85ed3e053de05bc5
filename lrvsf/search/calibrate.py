"""`search_catalog.py calibrate`: how a model's answers look where the thing is in the picture, from known scenes."""

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
from lrvsf.search.catalog import load_encoder
from lrvsf.search.presence import FEWEST, Presence
from lrvsf.search.segments import digest_of, model_facts

SCENES = 16  # embedded together, each under all conditions


def calibrate_model(model: Path, scenes: Path, dims: int | None, device: str | None, bad: Tolerance) -> dict[str, Any]:
    """Fits `Presence` to the queries of a test set, and writes it into the model's folder.

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
    conditioned, plain, asked, skipped = embed_scenes(encoder, test_set, known, bad)
    presence = Presence.fit(known, digest_of(model_facts(encoder)), conditioned, plain, asked)
    presence.save(model)
    few = [name for name, count in zip(known, presence.scenes, strict=True) if count < FEWEST]
    return {
        "model": str(model),
        "scenes": len(asked),
        **({"unreadable": skipped} if skipped else {}),
        "by category": dict(zip(known, presence.scenes, strict=True)),
        **({f"no verdict, fewer than {FEWEST} scenes": ", ".join(few)} if few else {}),
    }


def embed_scenes(
    encoder: Encoder, test_set: ProductTestSet, known: list[str], bad: Tolerance
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Every query that can be read, under every condition and none.

    Returns: (N, C, D), (N, D), (N,) the condition that each is asked about, and how many could not be read.
    """
    counter = BadImageCounter("scenes", bad)
    conditioned, plain, asked = [], [], []
    batch: list[np.ndarray] = []

    def embed() -> None:
        if batch:
            repeated = [pixels for pixels in batch for _ in known]
            rows = encoder.embed(repeated, known * len(batch)).numpy()
            conditioned.append(rows.reshape(len(batch), len(known), -1))
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
            if len(batch) == SCENES:
                embed()
        embed()
    counter.finish()
    dim = encoder.dim
    return (
        np.concatenate([np.empty((0, len(known), dim), np.float32), *conditioned]),
        np.concatenate([np.empty((0, dim), np.float32), *plain]),
        np.array(asked, dtype=np.int64),
        counter.reasons.total(),
    )
