"""Filters: a text such as "price < 50 and category = 'Bags'" -> which items it passes.

The language is SQL's expressions, evaluated by duckdb over the metadata. The text comes from anybody, through a service
too, so nothing is evaluated that was not recognised. duckdb's parser gives the syntax tree; it has to be one SELECT of
one expression from the items, and every node of that expression a known column, a constant, or an operator, function or
type of the lists below. What is not in a list is refused, whatever it does, so that neither a file nor a setting nor
another statement can be reached, by today's functions or a later version's. The database itself is in memory, without
access to files and with its configuration locked, which alone would do for most.

A filter passes an item for which it is true. Where a cell is empty, a comparison is neither true nor false, and the
item is passed over; `price is null` finds it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from lrvsf.data.names import did_you_mean, printable, quoted
from lrvsf.search.sources.metadata import INTERNAL

MAX_LETTERS = 2000
MAX_NODES = 200  # not tuned
MAX_TEXTS = 10  # parts that make a text: duckdb keeps each of 2,048 rows at once, outside of its memory limit
MAX_NAMED = 30
SHOWN = 120  # letters of a filter that a refusal repeats
SECONDS = 10.0  # a filter over millions of rows takes a fraction of one
CONFIG = {
    "enable_external_access": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "memory_limit": "1GB",
    "threads": 1,  # connections are many, and each would start a thread for every core
    "lock_configuration": True,
}

NODES = {
    "CONJUNCTION",
    "COMPARISON",
    "BETWEEN",
    "OPERATOR",
    "CASE",
    "CONSTANT",
    "COLUMN_REF",
    "CAST",
    "TYPE",
    "FUNCTION",
}
OPERATORS = {
    "OPERATOR_NOT",
    "OPERATOR_IS_NULL",
    "OPERATOR_IS_NOT_NULL",
    "OPERATOR_COALESCE",
    "COMPARE_IN",
    "COMPARE_NOT_IN",
}
BLANKS = str.maketrans("\t\r\n", "   ")
FUNCTIONS = {
    *("+", "-", "*", "/", "//", "%", "~~", "!~~", "~~*", "!~~*"),  # the last four: [not] like, [not] ilike
    *("lower", "upper", "trim", "length", "contains", "starts_with", "ends_with", "abs", "round", "floor", "ceil"),
    *("least", "greatest", "year", "month", "day", "list_contains"),
}
MAKE_TEXTS = {"lower", "upper", "trim"}  # no longer than what they are given; || could make gigabytes of a few columns
TYPES = {
    *("BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "FLOAT", "DOUBLE", "DECIMAL", "VARCHAR", "DATE"),
    *("TIMESTAMP", "TIME"),
}


class FilterError(ValueError):
    """A filter that is not understood, or not allowed; the message is one line for whoever wrote it."""


def rows_where(metadata: pa.Table, where: str) -> np.ndarray:
    """(n,) bool: whether each row of the metadata fulfils the filter.

    Args:
        where: an expression over the columns; those that begin with "__" are unknown to it.

    Raises FilterError: it is not understood, names an unknown column, or has anything in it that filters do without.
    """
    connection = duckdb.connect(config=CONFIG)  # one a call, so that threads need not take turns
    try:
        query = f"select (\n{where}\n) from items"  # on a line of its own, so that a comment in it ends with it
        try:
            expression = _parsed(connection, query, where)
            named = _check(expression, metadata.column_names)
        except RecursionError as error:  # a thousand signs before a number are within the bound on letters
            raise FilterError(f"the filter {_shown(where)} is nested too deeply. Make it simpler.") from error
        try:
            connection.register("items", _table(metadata, named))
            with _ended_after(connection, SECONDS):
                found = connection.sql(query).to_arrow_table().column(0)
        except duckdb.InterruptException as error:
            raise FilterError(f"the filter {_shown(where)} took more than {SECONDS:.0f} s. Make it simpler.") from error
        except duckdb.Error as error:
            types = ", ".join(f"{name} is of type {metadata.schema.field(name).type}" for name in named.values())
            raise FilterError(f"the filter {_shown(where)} cannot be evaluated: {_said(error)}. {types}") from error
    finally:
        connection.close()
    if not pa.types.is_boolean(found.type):
        raise FilterError(
            f"the filter {_shown(where)} is neither true nor false, but {found.type}. Compare it with something."
        )
    # As SQL does: a row passes where the condition is true, and "unknown" is not.
    return found.fill_null(False).to_numpy(zero_copy_only=False).astype(bool)


def _parsed(connection: duckdb.DuckDBPyConnection, query: str, where: str) -> dict[str, Any]:
    """The syntax tree of the expression. Raises FilterError: it is none, or more than that."""
    if len(where) > MAX_LETTERS:
        raise FilterError(f"the filter has {len(where):,} letters; {MAX_LETTERS:,} are the most")
    if not where.strip():
        raise FilterError("the filter is empty. Write, say, price < 50")
    if not where.translate(BLANKS).isprintable():
        raise FilterError(f"the filter {_shown(where)} has letters that cannot be seen. Remove them.")
    tree = _tree(connection, query)
    if tree.get("error"):
        message = " ".join(str(tree.get("error_message")).split())
        raise FilterError(
            f"the filter {_shown(where)} is not understood: {message[:200]}. Write, say, price < 50 and brand = 'x'; "
            'a column that has blanks, or is a word of SQL\'s own, stands in double quotes: "when" is null'
        )
    plain = _tree(connection, "select (\ntrue\n) from items")
    expressions = tree["statements"][0]["node"].get("select_list", [])
    for one in (tree, plain):  # all but the expression has to be as it is around the plainest one
        one["statements"][0]["node"]["select_list"] = None
    # A text such as "true), (false" closes the brackets that it stands in.
    if len(expressions) != 1 or _without_places(tree) != _without_places(plain):
        raise FilterError(f"the filter {_shown(where)} is more than one condition. Join conditions by and, or.")
    return expressions[0]


def _tree(connection: duckdb.DuckDBPyConnection, query: str) -> dict[str, Any]:
    # As a parameter: the text is parsed, and nothing of it runs.
    ((text,),) = connection.execute("select json_serialize_sql(?)", [query]).fetchall()  # all, or it stays unfinished
    return json.loads(text)


def _without_places(node: Any) -> Any:
    """A tree without where in the text its nodes stand."""
    if isinstance(node, dict):
        return {name: _without_places(value) for name, value in node.items() if not name.startswith("query_location")}
    return [_without_places(one) for one in node] if isinstance(node, list) else node


def _check(expression: dict[str, Any], columns: list[str]) -> dict[str, str]:
    """Refuses every node that is not known to be harmless; returns the columns that the filter names, by its spelling.

    SQL's names are the same in capitals: "PRICE" is the column price, unless there is a PRICE too.
    """
    nodes = list(_nodes(expression))
    if len(nodes) > MAX_NODES:
        raise FilterError(f"the filter has {len(nodes):,} parts; {MAX_NODES} are the most")
    if sum(map(_makes_text, nodes)) > MAX_TEXTS:
        raise FilterError(f"the filter has more than {MAX_TEXTS} of lower, upper, trim and cast to a text")
    named: dict[str, str] = {}
    for node in nodes:
        kind, form = node["class"], node.get("type")
        if kind not in NODES:
            raise FilterError(f"a filter has no {kind.lower().replace('_', ' ')}. {_allowed()}")
        if kind == "OPERATOR" and form not in OPERATORS:
            raise FilterError(f"a filter has no {str(form).lower().replace('_', ' ')}. {_allowed()}")
        if kind == "FUNCTION":
            _check_function(node)
        if kind == "TYPE" and (_type_name(node) not in TYPES or node.get("schema") or node.get("catalog")):
            raise FilterError(
                f"a filter has no type {quoted(str(node.get('type_name')))}. It has {', '.join(sorted(TYPES))}"
            )
        if kind == "COLUMN_REF":
            named |= _column(node.get("column_names", []), columns)
    # Capitals make no difference to duckdb, which would see one of the two columns.
    if len({name.lower() for name in named.values()}) < len(set(named.values())):
        raise FilterError(
            f"a filter cannot tell {' from '.join(map(quoted, sorted(set(named.values()))))}. Rename one."
        )
    return named


def _column(parts: list[str], columns: list[str]) -> dict[str, str]:
    """{a column as a filter spells it: the column}. Raises FilterError: there is none such, or there are several."""
    name, seen = ".".join(map(str, parts)), [column for column in columns if not column.startswith(INTERNAL)]
    same = [column for column in seen if column == name] or [c for c in seen if c.lower() == name.lower()]
    if len(parts) == 1 and len(same) == 1:
        return {name: same[0]}
    if len(same) > 1 and len(parts) == 1:
        raise FilterError(f"{quoted(name)} may be {' or '.join(map(quoted, same))}; rename one of these columns")
    there = ", ".join(seen[:MAX_NAMED]) + (f" and {len(seen) - MAX_NAMED} more" if len(seen) > MAX_NAMED else "")
    raise FilterError(f"there is no column {quoted(name)}. There are: {there}.{did_you_mean(name, seen)}")


def _table(metadata: pa.Table, named: dict[str, str]) -> pa.Table:
    """The columns that a filter names, as it spells them; others may be of types that duckdb does not know."""
    spelled = {column: name for name, column in named.items()}  # one spelling a column: duckdb knows ASCII's capitals
    if not spelled:
        return pa.table({INTERNAL: pa.nulls(len(metadata), pa.bool_())})  # as many rows, for a filter such as "true"
    return metadata.select(list(spelled)).rename_columns(list(spelled.values()))


def _makes_text(node: dict[str, Any]) -> bool:
    return (node["class"] == "TYPE" and _type_name(node) == "VARCHAR") or (
        node["class"] == "FUNCTION" and str(node.get("function_name")).lower() in MAKE_TEXTS
    )


def _type_name(node: dict[str, Any]) -> str:
    return str(node.get("type_name")).upper()


def _check_function(node: dict[str, Any]) -> None:
    name = str(node.get("function_name"))
    plain = not (node.get("schema") or node.get("catalog") or node.get("filter") or node.get("distinct"))
    if name.lower() not in FUNCTIONS or not plain or node.get("order_bys", {}).get("orders"):
        raise FilterError(f"a filter has no function {quoted(name)}. {_allowed()}")


def _allowed() -> str:
    words = ", ".join(sorted(name for name in FUNCTIONS if name.isidentifier()))
    return f"It has columns, constants, comparisons, in, between, [i]like, is null, and, or, not, case, cast, {words}"


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every expression in a tree, wherever it stands, so that no field of a node can hide one."""
    if isinstance(value, dict):
        if "class" in value:
            yield value
        for inner in value.values():
            yield from _nodes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _nodes(inner)


class _ended_after:
    """Interrupts a connection's query that takes too long."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, seconds: float) -> None:
        self._timer = threading.Timer(seconds, connection.interrupt)

    def __enter__(self) -> None:
        self._timer.daemon = True
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


def _said(error: duckdb.Error) -> str:
    """duckdb's reason in one line: without its kind, its hints at the program's text, and the place in it."""
    first = str(error).split("\n\n")[0].split("\nLINE")[0]
    return printable(" ".join(first.partition("Error: ")[2].split() or first.split())[:300].rstrip("."))


def _shown(where: str) -> str:
    return quoted(where if len(where) <= SHOWN else where[:SHOWN] + "...")
