"""The databases that a catalog can be exported to, and what each takes. Nothing heavy is imported.

The limits are those that the databases document; each `write_....py` names the page. What is known before any work is
checked here: a dtype or a number of dimensions that the database's index does not take, and how it spells the columns.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

KEY, VECTOR = "key", "vector"  # fields of an export that are no columns of the catalog
PREFIX = "metadata_"  # before a column whose name is taken
CONTROLS = r"\x00-\x1f\x7f"  # of all names: Lance cuts one at NUL, PostgreSQL refuses it


@dataclass(frozen=True)
class Database:
    """What a database takes.

    Attributes:
        most_dims: dtype of the vectors -> how many dimensions are indexed; None where no limit is documented.
        illegal: a regular expression of what no field's name may hold; it becomes `_`.
        first: one of what a name may begin with.
        reserved: names, in small letters, that are the database's or the export's own.
        longest: bytes of a name.
        most_fields: of one item, those of the export included.
    """

    most_dims: dict[str, int | None]
    illegal: str = f"[{CONTROLS}]"
    first: str = r"."
    reserved: frozenset[str] = frozenset({VECTOR})
    longest: int = 255
    most_fields: int | None = None


DATABASES = {
    "parquet": Database({"float32": None, "float16": None}),
    # A point or a bracket would be a path into the payload.
    "qdrant": Database(
        {"float32": 65_536, "float16": 65_536, "int8": 65_536},
        illegal=rf'[{CONTROLS}.\[\]"]',
        reserved=frozenset(),
    ),
    "milvus": Database(
        {"float32": 32_768, "float16": 32_768},
        illegal=r"[^A-Za-z0-9_]",
        first=r"[A-Za-z_]",
        reserved=frozenset({KEY, VECTOR, "rowid", "timestamp"}),
        most_fields=64,
    ),
    "pgvector": Database(
        {"float32": 2_000, "float16": 4_000},  # of an HNSW index; a column without one takes 16,000
        reserved=frozenset({KEY, VECTOR, "tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"}),
        longest=63,
        most_fields=1_600,
    ),
    "lancedb": Database(
        {"float32": None, "float16": None},
        illegal=rf"[{CONTROLS}.`]",
        reserved=frozenset({VECTOR, "_distance", "_score", "_relevance_score", "_rowid", "_rowaddr"}),
    ),
    # A point would be an object within an object; names that begin with _ are the index's.
    "elasticsearch": Database(
        {"float32": 4_096, "int8": 4_096}, illegal=rf"[{CONTROLS}.]", first="[^_]", most_fields=1_000
    ),
}
DTYPES = ("float32", "float16", "int8")


def check_form(to: str, dtype: str) -> Database:
    """The database of a name. Raises ValueError: there is none, or its documentation has no field for the dtype."""
    if to not in DATABASES:
        raise ValueError(f"to={to} is unknown; take {', '.join(DATABASES)}")
    taken = DATABASES[to].most_dims
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype} is unknown; take {', '.join(taken)}")
    if dtype not in taken:
        raise ValueError(f"dtype={dtype} is no form of vectors for {to}; take {' or '.join(taken)}")
    return DATABASES[to]


def check_dims(to: str, dtype: str, dims: int) -> None:
    """Raises ValueError: the database does not index vectors of so many dimensions; with what can be done."""
    limits = DATABASES[to].most_dims
    most = limits[dtype]
    if most is None or dims <= most:
        return
    wider = [other for other, limit in limits.items() if limit is None or limit >= dims]
    remedy = f"take --dtype {wider[0]}, or " if wider else ""
    raise ValueError(
        f"the catalog's vectors have {dims:,} dimensions, and {to} indexes at most {most:,} of {dtype}; {remedy}"
        f"index the catalog anew with --dims {most}, by a model that was trained with matryoshka_dims"
    )


def field_names(to: str, columns: Sequence[str]) -> dict[str, str]:
    """Column -> the field that it becomes. Most keep their names; no two fields have one, capitals or not.

    Raises ValueError: there are more than the database takes.
    """
    database = DATABASES[to]
    own = len({KEY, VECTOR} & database.reserved)
    if database.most_fields is not None and len(columns) + own > database.most_fields:
        raise ValueError(
            f"the catalog has {len(columns):,} columns, and {to} takes {database.most_fields - own:,}; leave some "
            "out of the table, and `index` it anew with --switch"
        )
    # What can stay as it is has its name first, so that none of them moves for one that must be changed.
    fields = {name: name for name in columns if _usable(name, database) == name}
    taken = {name.lower() for name in fields.values()}
    for name in columns:
        if name not in fields:
            fields[name] = _free(_usable(name, database), taken, database.longest)
            taken.add(fields[name].lower())
    return {name: fields[name] for name in columns}


def _usable(name: str, database: Database) -> str:
    name = _cut(re.sub(database.illegal, "_", name), database.longest)
    if name.lower() in database.reserved or not re.match(database.first, name):
        return _cut(PREFIX + name, database.longest)
    return name


def _free(name: str, taken: Collection[str], longest: int) -> str:
    found, number = name, 1
    while found.lower() in taken:
        number += 1
        found = _cut(name, longest - len(f"_{number}")) + f"_{number}"
    return found


def _cut(name: str, longest: int) -> str:
    """The first bytes of a name, without half a letter at the end."""
    return name.encode()[:longest].decode("utf-8", "ignore")
