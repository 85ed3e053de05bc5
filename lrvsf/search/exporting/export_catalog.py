"""`search_catalog.py export`: the generation of a catalog that answers, in the bulk form of a vector database.

The folder is whole or absent, and has a README.md that says which commands load it and how columns were renamed. A
question still needs the catalog's model: docs/search.md shows how it is asked of each database.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from lrvsf.durable import whole_folder
from lrvsf.paths import public_name
from lrvsf.report import Ledger
from lrvsf.search.exporting.databases import field_names
from lrvsf.search.exporting.exported_items import ExportedItems
from lrvsf.search.generations import Generation, Generations

STORED = ("parquet", "milvus", "pgvector", "lancedb")  # whose float16 is what the catalog stores, bit for bit
WITH_KEYS = ("qdrant", "milvus", "pgvector", "elasticsearch")
HEAD = """\
# {items:,} items for {to}

Written by `search_catalog.py export` from generation {generation} of a catalog. The vectors have {dim} dimensions and
are the embeddings of `{model}` (digest {digest}); a question is embedded by the same model.

"""
KEYED = """
An item's key is `uuid.uuid5(uuid.NAMESPACE_URL, id)`, the same in every export; of photos that share an id, the second
has `id + "\\0" + "1"` in its place, the third `id + "\\0" + "2"`. Load a later export into a new collection, and let
that take the old one's name: loaded over it, what the catalog no longer has would stay.
"""
CHANGED = "\nNot everything could be kept as it was: {what}.\n"
RENAMED = "\nThese columns have another name here: {names}.\n"


def export_catalog(catalog: Path, out: Path, to: str, dtype: str) -> dict[str, Any]:
    """Writes the folder.

    Args:
        to: one of `DATABASES`.
        dtype: of the vectors, one that the database takes.

    Raises:
        FileNotFoundError: there is no catalog.
        ValueError: it is damaged, or the database does not take what an item has.
        OSError: the folder cannot be written.
    """
    generation, items = _opened(catalog, stored=dtype == "float16" and to in STORED)
    names = field_names(to, items.columns.names)
    items.rename(names)
    renamed = {column: field for column, field in names.items() if column != field}
    model = generation.manifest["model"]
    with whole_folder(out) as folder:
        loading = import_module(f"lrvsf.search.exporting.write_{to}").write(items, folder, dtype)
        head = HEAD.format(
            **{"items": len(items), "to": to, "generation": generation.name, "dim": items.dim},
            **{"model": public_name(model["name"]), "digest": model["digest"]},
        )
        text = head + loading + KEYED * (to in WITH_KEYS) + _notes(renamed, items.changed)
        (folder / "README.md").write_text(text, "utf-8")
    taken = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    report = {"export": str(out), "for": to, "generation": generation.name, "items": len(items)}
    report |= {"dimensions": items.dim, "dtype": dtype}
    if renamed:
        report["renamed columns"] = renamed
    report |= items.changed.report("changed")
    return report | {"megabytes": round(taken / 1e6, 1), "how to load it": str(out / "README.md")}


def _notes(renamed: dict[str, str], changed: Ledger) -> str:
    """What is otherwise than in the catalog."""
    names = ", ".join(f"`{column}` is `{field}`" for column, field in renamed.items())
    what = "; ".join(f"{count:,} {reason}" for reason, count in changed.counts.items())
    return (RENAMED.format(names=names) if names else "") + (CHANGED.format(what=what) if what else "")


def _opened(catalog: Path, stored: bool) -> tuple[Generation, ExportedItems]:
    """The generation that answers, and its items with all files open."""
    generations = Generations(catalog)
    for _ in range(3):
        generation = generations.answering()
        try:
            return generation, ExportedItems(generation, stored)
        except FileNotFoundError:
            if generations.answering().name == generation.name:
                raise  # otherwise `compact` removed it between two looks, and another one answers
    generation = generations.answering()
    return generation, ExportedItems(generation, stored)
