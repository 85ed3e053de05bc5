"""The step `search_catalog.py export`: what it takes, and what is wrong before anything is read."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from lrvsf.paths import check_new_folder, table_of
from lrvsf.search.exporting.databases import DATABASES, DTYPES, check_dims, check_form, field_names


def export(
    catalog: Annotated[Path, Argument(help="the catalog's folder")],
    out: Annotated[Path, Argument(help="the folder to write, which is not there yet")],
    to: Annotated[str, Option(help=", ".join(DATABASES))],
    dtype: Annotated[str, Option(help=f"of the vectors there, where it has such: {', '.join(DTYPES)}")] = "float32",
) -> dict[str, Any]:
    """Write a catalog's vectors, ids and metadata in the bulk form of a vector database.

    README.md in OUT says which commands load it. Items that were removed are not written.
    """
    check_form(to, dtype)
    from lrvsf.search.generations import Generations

    if table_of(catalog):
        raise ValueError(f"{catalog} is a Lance table; export the catalog that it was written from")
    generation = Generations(catalog).answering()
    check_dims(to, dtype, generation.manifest["dims"])
    field_names(to, list(generation.columns()))
    check_new_folder(out, "OUT", catalog)
    if to == "lancedb" and find_spec("lancedb") is None:
        raise ImportError('--to lancedb needs the client of LanceDB: pip install "lrvsf[databases]"')
    from lrvsf.search.exporting.export_catalog import export_catalog

    return export_catalog(catalog, out, to, dtype)
