"""The step `search_catalog.py lance`: what it takes, and what is wrong before Lance is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from lrvsf.paths import check_output, table_of
from lrvsf.scale.engine import Address, cluster_asked
from lrvsf.search.commands import Out


def lance(
    out: Out,
    table: Annotated[Path, Argument(help="the table's folder, as shop.lance")],
    engine: Annotated[str | None, Option(help="ray: fill the index on the machines of a Ray cluster")] = None,
    address: Address = None,
) -> dict[str, Any]:
    """Write a catalog into a Lance table, or what has changed of it; the table answers as the catalog does.

    What is there is not written again, and older versions stay: TABLE@g-000001 is the table as that generation left it.
    """
    cluster = cluster_asked(engine, address, None, None)
    from lrvsf.search.generations import Generations, is_catalog

    Generations(out).answering()
    check_output(table, "TABLE")
    if table.resolve().is_relative_to(out.resolve()):
        raise ValueError(f"{table} is inside {out}, which is a catalog's alone; choose another folder")
    if not table_of(table) and table.is_dir() and any(table.iterdir()):
        what = "is a catalog" if is_catalog(table) else "is no Lance table and is not empty"
        raise FileExistsError(f"{table} {what}; name a new folder, such as {table}.lance")
    from lrvsf.scale.write_lance import write_lance

    return write_lance(out, table, cluster.address if cluster else None)
