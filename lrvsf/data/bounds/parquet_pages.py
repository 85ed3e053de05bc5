"""What the pages of a Parquet column unfold to, read from their headers: a few bytes a page, nothing is decompressed.

A footer says how large a column is, but a reader believes the pages: one of 60 kB may unfold to two gigabytes, and a
dictionary of one value may stand for any number of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow.parquet as pq

DATA, DICTIONARY, DATA_2 = 0, 2, 3
PLAIN, DELTA_LENGTH = 0, 6
BY_DICTIONARY = (2, 8)
BY_PREFIX = 7  # of the value before: a byte of the page can give as many as the longest value has
MAX_HEADER_BYTES = 2**24  # as Arrow; a header can hold the smallest and the largest value


@dataclass
class Unfolded:
    """The pages of one column in one row group.

    Attributes:
        values: how many, nulls included.
        largest_page: bytes.
        value: bytes that one value may take, on the average of the page where they take most.
        plain: bytes of values that stand in pages as they are.
        indexed: bytes of values that stand in a dictionary, were each its only entry.
        prefixed: bytes of values that repeat the beginning of the one before, were each as long as the page.
    """

    values: int = 0
    largest_page: int = 0
    value: int = 0
    plain: int = 0
    indexed: int = 0
    prefixed: int = 0


def unfolded(file: BinaryIO, chunk: pq.ColumnChunkMetaData) -> Unfolded:
    """Reads the headers of all pages of a column in a row group.

    Raises:
        OSError: a header is damaged.
    """
    found, dictionary = Unfolded(), 0
    for header in _headers(file, chunk):
        kind, size = header[1], header[2]
        found.largest_page = max(found.largest_page, size, header[3])
        if kind == DICTIONARY:
            dictionary = size
        elif kind in (DATA, DATA_2):
            values, encoding = (header[5][1], header[5][2]) if kind == DATA else (header[8][1], header[8][4])
            found.values += values
            if encoding in BY_DICTIONARY:
                value = dictionary
                found.indexed += value * values
            elif encoding == BY_PREFIX:
                value = size
                found.prefixed += value * values
            else:  # plain, or numbers of eight bytes at most
                value = max(size // max(values, 1), 0 if encoding in (PLAIN, DELTA_LENGTH) else 8)
                found.plain += value * values
            found.value = max(found.value, value)
    return found


def _headers(file: BinaryIO, chunk: pq.ColumnChunkMetaData) -> Iterator[dict[int, Any]]:
    place = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < (chunk.dictionary_page_offset or 0) < place:
        place = chunk.dictionary_page_offset
    end, values = place + chunk.total_compressed_size, 0
    try:
        while place < end and values < chunk.num_values:
            header, length = _header(file, place)
            if min(header[2], header[3], length) < 0:
                raise ValueError("a page of negative size")
            values += header.get(5, header.get(8, {})).get(1, 0)
            place += length + header[3]
            yield header
    except (IndexError, KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise OSError(f"the header of a page of {chunk.path_in_schema} is damaged: {error}") from error


def _header(file: BinaryIO, place: int) -> tuple[dict[int, Any], int]:
    """(fields of a page's header, its bytes)."""
    size = 256
    while True:
        file.seek(place)
        data = file.read(size)
        try:
            return _structure(data, 0)
        except IndexError:
            if len(data) < size or size >= MAX_HEADER_BYTES:
                raise
            size *= 16


# Parquet's headers are structures of Thrift's compact protocol: numbers of seven bits a byte, fields told apart by the
# difference of their numbers.
def _structure(data: bytes, place: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """(field number -> value, place behind it). IndexError: the bytes end before the structure does."""
    fields, number = {}, 0
    while kind := data[place]:
        step, kind, place = kind >> 4, kind & 15, place + 1
        if step:
            number += step
        else:
            number, place = _signed(data, place)
        fields[number], place = _value(data, place, kind, depth)
    return fields, place + 1


def _value(data: bytes, place: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2):
        return kind == 1, place
    if kind == 3:
        return data[place], place + 1
    if kind in (4, 5, 6):
        return _signed(data, place)
    if kind == 7:
        return None, place + 8
    if kind == 8:  # bytes, which nobody here asks for
        length, place = _unsigned(data, place)
        if place + length >= len(data):
            raise IndexError("bytes go on behind the end")
        return None, place + length
    if kind == 12 and depth < 8:
        return _structure(data, place, depth + 1)
    raise ValueError(f"a field of kind {kind}")


def _unsigned(data: bytes, place: int) -> tuple[int, int]:
    number = shift = 0
    while shift < 70:
        byte = data[place]
        number, shift, place = number | (byte & 127) << shift, shift + 7, place + 1
        if byte < 128:
            return number, place
    raise ValueError("a number of too many bytes")


def _signed(data: bytes, place: int) -> tuple[int, int]:
    number, place = _unsigned(data, place)
    return (number >> 1) ^ -(number & 1), place
