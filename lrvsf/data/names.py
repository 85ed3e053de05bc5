"""What a cell says: one rule for ids, categories and texts, whatever a column's type. It loses nothing, or refuses.

Things are joined by ids and categories, so two that become one are wrong without a word, and one that becomes two is
lost in halves. A cell is therefore taken only where another one could not have given the same name. This file imports
little, so that a wrong name can be found before anything else is loaded.
"""

from __future__ import annotations

import difflib
import html
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from decimal import Decimal
from numbers import Integral
from typing import Any
from uuid import UUID

import numpy as np

# As programs write an empty cell, spreadsheets one whose formula failed, and people one that they have nothing for.
NOTHING = {"nan", "-nan", "none", "null", "(null)", "\\n", "nil", "na", "n/a", "n.a.", "#n/a", "#nv", "<na>", "nat"}
NOTHING |= {"undefined", "#ref!", "#value!", "#name?", "#div/0!", "#num!", "#null!", "-", "--", "?"}
# As spreadsheets, pandas (1e+16) and Java (1.0E16) write whole numbers that were floats; an article number is 12E5.
SHORTENED = re.compile(r"[+-]?(\d+([.,]\d+)?[eE]\+|\d[.,]\d+[eE])\d+")
FLOAT = re.compile(r"[+-]?(\d+)\.0+")
CAPTION = re.compile(r"blip2_caption(\d{1,9})")
SEPARATOR = re.compile(r"[,;|/]")
LIST = re.compile(r"""[\[({]\s*["'].*["']\s*[\])}]""", re.DOTALL)  # as Python, JSON and pandas write one
IN_QUOTES = re.compile(r"""(["'])(.+)\1""")
WHOLE = re.compile(r"^(\d+)\.0+$")
# Characters that move, hide or turn round what stands next to them, on a screen or in a file.
CONTROLS = {"Cc", "Zl", "Zp"}
TURNING = set("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
ORDINARY = set("\t\n\r")  # in a text
# Letters, marks and symbols that show nothing, besides the formats (Cf): joiners, fillers, selectors of a variant, the
# empty pattern of Braille.
UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
# What is typed as one of these on one keyboard is another sign on the next: T\u2013Shirts, Women\u2019s.
SIGNS = {ord(c): "-" for c in "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"}
SIGNS |= {ord(c): "'" for c in "`\u00b4\u02bc\u2018\u2019"}
RARE_SIGNS = set("\u2010\u2011\u2012\u2015\u2212\u02bc")  # which most fonts draw as the common ones
# Cyrillic letters as a reader of Latin ones takes them; in one case or the other they are drawn the same.
_FROM, _TO = (
    "\u0430\u0432\u0435\u043a\u043c\u043d\u043e\u0440\u0441\u0442\u0443\u0445\u0456\u0458\u0455",
    "abekmhopctyxijs",
)
CYRILLIC = str.maketrans(_FROM + _FROM.upper(), _TO + _TO.upper())


class UnusableCell(ValueError):
    """A cell that cannot be taken. `reason` is one of a few, so that it can be counted, and ends with the remedy."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def identifier(cell: Any) -> str | None:
    """A product id or a category as text without outer blanks; None for an empty cell.

    Whole numbers are the same in columns of integers, floats and decimals: pandas writes 12.0 for 12 where a column has
    gaps, and NaN in the gaps. A cell of a float32 column must come as numpy.float32 (see `parquet.rows_of`), for from
    2^24 on such numbers are no longer told apart.

    Raises:
        UnusableCell: the cell is of another kind, shows nothing, or another cell could have become the same text.
    """
    name = _as_text(cell)
    if name is None:
        return None
    if not name.isascii() and not appearance(name):
        raise UnusableCell("characters that show nothing; leave the cell empty")
    if not name.isprintable() and any(map(_is_control, name)):
        raise UnusableCell("a text with a control character; remove it")
    if LIST.fullmatch(name):
        raise UnusableCell("a list that is written out (as ['Bags'] is); give one name")
    if name[0] in "+-0123456789" and (
        SHORTENED.fullmatch(name) or ((whole := FLOAT.fullmatch(name)) and int(whole[1]) >= 2**53)
    ):
        raise UnusableCell("a number that was shortened (as 2.38e+16 is); save the column as text")
    return name


def identified(cell: Any) -> tuple[str | None, str | None]:
    """The `identifier`, and None; or None, and why the cell cannot be taken: it could be that of several things."""
    try:
        return identifier(cell), None
    except UnusableCell as error:
        return None, error.reason


def identifiers(cells: Mapping[str, Any], columns: Iterable[str]) -> list[str | None]:
    """The `identifier` of each of these columns of a row; None for one that is not there.

    Raises:
        UnusableCell: as `identifier` does; the reason begins with the column.
    """
    names = []
    for column in columns:
        try:
            names.append(identifier(cells.get(column)))
        except UnusableCell as error:
            raise UnusableCell(f"{column} is {error.reason}") from error
    return names


def texts(cells: Iterable[Any], skip: Callable[[str], None]) -> list[str]:
    """The texts of some cells. One that cannot be used costs only itself: `skip` is called with the reason."""
    found = []
    for cell in cells:
        try:
            found.append(text(cell))
        except UnusableCell as error:
            skip(f"text, not its image: {error.reason}")
    return [words for words in found if words]


def captions(row: Mapping[str, Any], skip: Callable[[str], None]) -> list[str]:
    """The texts of blip2_caption1, 2, ... of a row, in the order of their numbers. `skip`: see `texts`."""
    names = sorted((int(match[1]), name) for name in row if (match := CAPTION.fullmatch(name)))
    return texts((row[name] for _, name in names), skip)


def text(cell: Any) -> str | None:
    """A caption without outer blanks, which may have several lines; None for an empty cell.

    Raises:
        UnusableCell: the cell is of another kind, is not UTF-8, or holds control characters.
    """
    words = _as_text(cell)
    if words and any(unicodedata.category(c) == "Cc" and c not in ORDINARY for c in words if not c.isprintable()):
        raise UnusableCell("a text with a control character; remove it")
    return words


def _as_text(cell: Any) -> str | None:
    if isinstance(cell, float | np.floating):
        cell = _whole(cell)
    elif isinstance(cell, Decimal):
        # A decimal is exact and its column has one scale, so 12.50 stays 12.50.
        cell = None if cell.is_nan() else format(cell.to_integral_value() if cell == int(cell) else cell, "f")
    elif isinstance(cell, bytes):
        try:
            cell = cell.decode()
        except UnicodeDecodeError as error:
            raise UnusableCell("bytes that are not UTF-8; save them as text") from error
    elif isinstance(cell, bool | np.bool_):
        raise UnusableCell("true or false in place of a name; save the column as text")
    elif isinstance(cell, Integral | UUID):
        cell = str(cell)
    if cell is None:
        return None
    if not isinstance(cell, str):
        raise UnusableCell(f"a {type(cell).__name__} in place of a text; save the column as text")
    words = cell.strip()
    if not words.isascii() and any(unicodedata.category(character) == "Cs" for character in words):
        raise UnusableCell("a name that is not UTF-8; rename it")  # Python gives half a character for each such byte
    if len(words) < 10 and words.lower() in NOTHING:
        raise UnusableCell("a word for nothing (nan, None, NULL); leave the cell empty, or give it another name")
    return words or None


def _whole(number: float | np.floating) -> str | None:
    if math.isnan(number):
        return None
    digits = np.finfo(type(number)).nmant + 1  # 53 for Python's
    if math.isinf(number) or abs(number) >= 2.0**digits:
        raise UnusableCell(f"a float of 2^{digits} or more, where whole numbers are rounded; save the column as text")
    if number != int(number):
        raise UnusableCell("a number with a fraction, whose last zeros are lost (12.10 is 12.1); save it as text")
    return str(int(number))


def _is_control(character: str) -> bool:
    return character in TURNING or unicodedata.category(character) in CONTROLS


def appearance(name: str, case: bool = False) -> str:
    """What a reader sees of a name: without invisible characters, accents, widths, dashes, apostrophes and like letters
    in one form, blanks joined, 12.0 as 12, and without the quotes or the escapes of the file that it came from.

    Args:
        case: whether capitals count.
    """
    name = WHOLE.sub(r"\1", html.unescape(IN_QUOTES.sub(r"\2", name) if IN_QUOTES.fullmatch(name) else name))
    if name.isascii():
        return " ".join((name if case else name.lower()).translate(SIGNS).split())
    # First without soft hyphens, joiners, zero-width spaces and marks of direction (Cf), which keep accents apart.
    seen = UNSEEN.sub("", "".join(c for c in name.translate(SIGNS) if unicodedata.category(c) != "Cf"))
    form = unicodedata.normalize("NFKC", seen)
    form = form if case else unicodedata.normalize("NFKC", form.casefold())
    return " ".join(form.translate(SIGNS | CYRILLIC).split())


def lookalikes(names: Iterable[str], case: bool = False) -> list[list[str]]:
    """Groups of different names that a reader takes for one, each sorted, in the order of their appearances.

    Args:
        case: whether capitals tell names apart, as they do in ids.
    """
    groups: dict[str, set[str]] = defaultdict(set)
    for name in names:
        groups[appearance(name, case)].add(name)
    return [sorted(groups[seen]) for seen in sorted(groups) if len(groups[seen]) > 1]


def lists_of_others(names: Collection[str]) -> list[str]:
    """Those names that are lists of other ones: 'Bags, Head' where 'Bags' and 'Head' are names too."""
    seen = {appearance(name) for name in names}
    parts = {name: [appearance(part) for part in SEPARATOR.split(name)] for name in names if SEPARATOR.search(name)}
    return sorted(name for name, others in parts.items() if seen.issuperset(others))


def plurals(names: Collection[str]) -> list[tuple[str, str]]:
    """Pairs of names of which the second is the plural of the first, as far as an "s" tells; sorted."""
    seen = {appearance(name): name for name in names}
    pairs = ((name, seen.get(form + end)) for form, name in seen.items() for end in ("s", "es"))
    return sorted((one, many) for one, many in pairs if many is not None)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A sentence that begins with a blank and proposes the nearest of the names, or "" where none is near.

    >>> "Unknown category 'bags'." + did_you_mean("bags", ["Bags", "Neck"])
    "Unknown category 'bags'. Did you mean 'Bags'?"
    """
    seen = {appearance(other): other for other in names if other != name}
    near = difflib.get_close_matches(appearance(name), seen, n=1, cutoff=0.7)
    return f" Did you mean {quoted(seen[near[0]])}?" if near else ""


def printable(name: str) -> str:
    """A name in which what cannot be seen is written out: Lower\\xa0Body, Bag\\u200bs, \\x1b[2J, Gr\\udc81n.

    Accents are shown as they are, unless they are of two parts where one would do, and so are Cyrillic letters, unless
    they are among Latin ones, or all could be Latin ones.
    """
    if name.isascii() and name.isprintable():
        return name
    composed, others = unicodedata.is_normalized("NFC", name), [c for c in name if not c.isascii()]
    latin = any(c.isascii() and c.isalpha() for c in name) or all(ord(c) in CYRILLIC for c in others)

    def is_plain(c: str) -> bool:
        hidden = c in RARE_SIGNS or UNSEEN.match(c) or (latin and ord(c) in CYRILLIC)
        return c.isprintable() and not hidden and (composed or not unicodedata.combining(c))

    return "".join(c if is_plain(c) else ascii(c)[1:-1] for c in name)


def quoted(name: str) -> str:
    """The printable name in quotes."""
    return f"'{printable(name)}'"
