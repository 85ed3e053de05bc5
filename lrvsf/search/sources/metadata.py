"""What a catalog knows of its items besides their pictures: columns of types that a filter can compare.

A column is text, whole numbers, numbers, true or false, a date or a time. A CSV has texts only, so what they look like
decides: a column is numbers only where every cell is one, and an article number that begins with 0 stays text. What is
nested or binary is not kept, and named.
"""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc

from lrvsf.data.names import NOTHING, quoted

INTERNAL = "__"  # begins the names of columns that are the catalog's own, which nobody sees or filters by
WHOLE = r"^[+-]?(0|[1-9][0-9]{0,17})$"  # below 10^18, which int64 holds
NUMBER = r"^[+-]?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?$"
COMMA_NUMBER = r"^[+-]?(0|[1-9][0-9]*)(,[0-9]{1,2})?$"  # not 1,000, which is a thousand to others


def check_names(source: str, names: Collection[str]) -> None:
    """Refuses columns that a filter could not tell apart, or that the catalog keeps for itself.

    Raises:
        ValueError: with the names and what to do.
    """
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.get(name.lower())) is not None:
            raise ValueError(
                f"{source} has the columns {quoted(other)} and {quoted(name)}, which a filter takes for one; rename one"
            )
        seen[name.lower()] = name
        if name.startswith(INTERNAL) or not name.strip():
            raise ValueError(f"{source} has a column {quoted(name)}; give it a name that does not begin with __")


def as_numbers(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of texts as what all of its cells look like: whole numbers, numbers (49,90 too), true or false, or
    texts."""
    texts = pc.if_else(pc.equal(texts, ""), None, texts)
    # As spreadsheets and pandas write a cell that has nothing: they do not make a column of prices one of texts.
    nothing = pc.is_in(pc.utf8_lower(texts), value_set=pa.array(sorted(NOTHING)))
    found = pc.if_else(nothing, None, texts)
    # A column of nothing but "n/a" stays text.
    if found.null_count == len(found):
        return texts
    # The narrowest that fits all cells; what fits none stays as it was written.
    if _all_match(found, WHOLE):
        return found.cast(pa.int64())
    if _all_match(found, NUMBER):
        return _finite(found.cast(pa.float64()))
    if _all_match(found, COMMA_NUMBER):
        return pc.replace_substring(found, ",", ".").cast(pa.float64())
    if _all_match(found, "^(?i)(true|false)$"):
        return pc.equal(pc.utf8_lower(found), "true")
    return texts


def comparable(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """A typed column as the catalog keeps it, or None where it is nested or binary."""
    kind = column.type
    # Files of one table may have a column once as a dictionary and once plain, and are joined.
    if pa.types.is_dictionary(kind):
        return comparable(column.cast(kind.value_type))
    if pa.types.is_null(kind):
        return column.cast(pa.string())
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_string(kind):
        return column.cast(pa.string())
    if pa.types.is_uint64(kind):
        # Beyond int64 there are floats only, which round.
        return column.cast(pa.int64() if (pc.max(column).as_py() or 0) < 2**63 else pa.float64())
    if pa.types.is_integer(kind):
        return column.cast(pa.int64())
    if pa.types.is_decimal(kind) or pa.types.is_floating(kind):
        return _finite(column.cast(pa.float64()))
    if pa.types.is_boolean(kind) or pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return column
    return None


def _all_match(texts: pa.ChunkedArray, pattern: str) -> bool:
    return pc.all(pc.match_substring_regex(texts, pattern)).as_py() is True


def _finite(numbers: pa.ChunkedArray) -> pa.ChunkedArray:
    """Not a number becomes no value: to a filter it would be above every price, and JSON has no word for it."""
    return pc.if_else(pc.is_finite(numbers), numbers, None)
