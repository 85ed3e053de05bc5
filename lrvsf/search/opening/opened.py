"""A generation that is open, whatever keeps it: a catalog's folder, or a Lance table that was written from one.

Lance is imported where a table is named: few have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyarrow as pa

from lrvsf.paths import table_of
from lrvsf.search.generations import Generation, Generations
from lrvsf.search.index import VectorIndex
from lrvsf.search.segments import Thumbnails
from lrvsf.search.vectors import Vectors


@dataclass(frozen=True)
class Parts:
    """What a generation consists of, open: what is searched, and what a hit tells.

    Attributes:
        metadata: `id` and the columns, a row for each item, removed ones included.
        thumbnails: has `take`, as `Thumbnails`.
    """

    metadata: pa.Table
    vectors: Vectors
    index: VectorIndex
    thumbnails: Thumbnails

    @classmethod
    def of(cls, generation: Generation) -> Self:
        """Of a catalog's generation. Raises FileNotFoundError, ValueError: a file is gone, or damaged."""
        vectors = Vectors.open([segment.folder for segment in generation.segments])
        index = VectorIndex.load(generation.folder, vectors)
        return cls(read_metadata(generation), vectors, index, Thumbnails(generation.segments))


def read_metadata(generation: Generation) -> pa.Table:
    """`id` and the metadata of all rows, removed ones included; where a segment lacks a column, cells are empty."""
    tables = [segment.metadata() for segment in generation.segments]
    return pa.concat_tables(tables, promote_options="permissive").combine_chunks()


def open_answering(folder: str | Path) -> tuple[Generation, Parts]:
    """The generation that answers, and what it consists of.

    Raises:
        FileNotFoundError: there is no catalog.
        ValueError: it is damaged.
        ImportError: it is a Lance table, and Lance is not installed.
    """
    if table_of(folder):
        from lrvsf.scale.lance_search import open_table

        return open_table(folder)
    generations = Generations(folder)
    for _ in range(3):
        generation = generations.answering()
        try:
            return generation, Parts.of(generation)
        except FileNotFoundError:
            if generations.answering().name == generation.name:
                raise  # otherwise `compact` removed it between two looks, and another one answers
    generation = generations.answering()
    return generation, Parts.of(generation)
