"""Known pairs of a scene and a product, made by hand."""

import numpy as np

from lrvsf.search.verdicts.standing import KnownPairs


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def pairs_of(catalog, scenes, products, condition="Bags"):
    asked = np.full(len(scenes), catalog.conditions.index(condition))
    digest = catalog.generation.manifest["model"]["digest"]
    return KnownPairs(
        tuple(catalog.conditions), digest, asked, np.float16(scenes), np.float16(unit(np.asarray(products)))
    )
