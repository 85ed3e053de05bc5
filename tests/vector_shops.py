"""Catalogs of vectors that are drawn in the test, which no model has made."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from lrvsf.search.build_catalog import write_generation
from lrvsf.search.commands import IndexKind
from lrvsf.search.generations import FORMAT, Generations

MODELS = {"old": ("aaaaaaaaaaaa", 64), "new": ("bbbbbbbbbbbb", 12)}  # name -> digest, dimensions


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def drawn(ids, dim):
    """(n, dim) float32 unit rows, in some clusters: of an id always the same ones."""
    centres = np.random.default_rng(dim).normal(size=(20, dim))
    rows = [centres[one % 20] + 0.5 * np.random.default_rng([one, dim]).normal(size=dim) for one in ids]
    return unit(np.array(rows)).astype(np.float32)


def table_of_items(ids, **columns):
    """Metadata, a row for each of some numbers: an id, a price, a brand."""
    prices, brands = [one % 97 for one in ids], [("ab"[one % 2] if one % 5 else None) for one in ids]
    return pa.table({"id": [f"x{one}" for one in ids], "price": prices, "brand": brands, **columns})


class VectorShop:
    """A catalog in a folder, each of whose generations is written at once."""

    def __init__(self, folder):
        self.catalog = Generations(folder)

    def segment(self, name, items, model="old", ids=None):
        """Items, whose vectors are those of some numbers, by default of those in their ids."""
        ids = ids or [int(one[1:]) for one in items["id"].to_pylist()]
        folder = self.catalog.folder / "segments" / f"s-{name}-{model}"
        folder.mkdir(parents=True)
        embeds = torch.from_numpy(drawn(ids, MODELS[model][1])).half()
        save_file({"embeds": embeds, "row": torch.arange(len(ids))}, folder / "item-00000.safetensors")
        hidden = {"__source": pa.array([0] * len(ids), pa.int16()), "__row": pa.array(range(len(ids)), pa.int64())}
        hidden["__thumbnail"] = pa.array([f"JPEG of {one}".encode() for one in ids])
        hidden["__digest"] = pa.array([hashlib.sha256(str(one).encode()).digest() for one in ids])
        for column, cells in hidden.items():
            items = items.append_column(column, cells)
        pq.write_table(items, folder / "items.parquet", row_group_size=100)
        (folder / "manifest.json").write_text(json.dumps({"format": FORMAT, "sources": [{}], "items": len(ids)}))
        return self.catalog.segment(folder.name)

    def answer(self, *segments, model="old"):
        """Lets a generation of these segments answer; its name."""
        digest, dim = MODELS[model]
        facts = {"model": {"name": f"/models/{model}", "digest": digest, "facts": {}}, "dims": dim}
        name = write_generation(self.catalog, facts, list(segments), IndexKind(None, None, 0))
        self.catalog.switch(name)
        return name


def queries(model="old", count=20):
    """Rows near to items."""
    rng, dim = np.random.default_rng(1), MODELS[model][1]
    return unit(drawn(rng.integers(300, size=count), dim) + 0.1 * rng.normal(size=(count, dim))).astype(np.float32)
