"""The product row: one row is one product, with all its pictures (training shards, Parquet).

A training pair is one SIMPLE image (the target) and one scene, COMPLEX or PARTIAL_COMPLEX (the query), conditioned by
the SIMPLE image's category or by one of its captions.
"""

from __future__ import annotations

from datasets import Features, Image, List, Value

SIMPLE = "SIMPLE"
SCENES = ("COMPLEX", "PARTIAL_COMPLEX")
MAX_IMAGES = 10_000  # of a product; a few bytes of Parquet can list millions

PRODUCT_FEATURES = Features(
    {
        "product_id": Value("string"),
        "images": List(
            {
                "image": Image(),  # struct<bytes, path>; bytes are the encoded file
                "type": Value("string"),
                "category": Value("string"),
                "captions": List(Value("string")),
            }
        ),
    }
)
