"""One rule for ids, categories and texts: what is taken, and what is refused because something would be lost."""

import random
import uuid
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from lrvsf.data.names import UnusableCell, did_you_mean, identifier, lists_of_others, lookalikes, quoted, text
from lrvsf.data.parquet import rows_of


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        *[(None, None), (float("nan"), None), (np.float32("nan"), None), ("", None), (" \u00a0\t", None)],
        *[(12, "12"), (12.0, "12"), (np.float32(12), "12"), (np.int64(12), "12"), (Decimal("12.00"), "12")],
        *[("12", "12"), (" 12 ", "12"), (b"12", "12"), ("12.0", "12.0"), ("007", "007"), ("12E5", "12E5")],
        *[(2**64 - 1, "18446744073709551615"), (2**53 - 1.0, "9007199254740991"), (-0.0, "0"), (-3.0, "-3")],
        *[(np.float32(2**24 - 1), "16777215"), (Decimal("12.50"), "12.50"), (Decimal("1E+20"), "1" + "0" * 20)],
        *[("Gr\u00fcn".encode(), "Gr\u00fcn"), ("Manta\u00f1a 9\u20ac", "Manta\u00f1a 9\u20ac")],
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ("nanette", "nanette"),
    ],
)
def test_identifiers(cell, expected):
    assert identifier(cell) == expected


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        *[(2.0**53, "2.53 or more"), (1e300, "2.53 or more"), (float("inf"), "2.53"), (np.float32(2**24), "2.24 or")],
        *[(1.5, "fraction"), (np.float32(0.1), "fraction"), (np.float16(2048), "2.11 or more")],
        *[
            ("2.38e+16", "shortened"),
            ("2.38E16", "shortened"),
            ("2,38E+16", "shortened"),
            ("1e+16", "shortened"),
            ("9007199254740993.0", "shor"),
        ],
        *[(True, "true or false"), (np.bool_(False), "true or false"), ([1], "a list"), ({"en": "x"}, "a dict")],
        *[(name, "written out") for name in ("['Bags']", '["Bags", "Head"]', "{'en': 'Bags'}", "('Bags')")],
        *[(b"Gr\x81n", "not UTF-8"), (b"Gr\x81n".decode(errors="surrogateescape"), "not UTF-8")],
        *[(name, "word for nothing") for name in ("nan", "None", "NULL", " null ", "NaN", "<NA>", "N/A", b"nan")],
        *[
            (name, "word for nothing")
            for name in ("n.a.", "-", " -- ", "?", "(null)", "\\N", "#REF!", "#DIV/0!", "#NV")
        ],
        *[(name, "show nothing") for name in ("\u200b", "\ufeff\u034f", "\u3164", "\u2800 \u2800", "\u00ad")],
        *[(f"a{c}b", "control") for c in "\x00\x1b\x07\n\t\x7f\x9b\u2028\u202e\u2066"],
    ],
)
def test_what_would_lose_something_is_refused(cell, reason):
    with pytest.raises(UnusableCell, match=reason) as refusal:
        identifier(cell)
    assert refusal.value.reason == str(refusal.value)


def test_different_numbers_stay_different():
    """Whatever the type of the column: each number of it comes back, or is refused."""
    draw = random.Random(0)
    numbers = [draw.randrange(2 ** draw.randrange(1, 70)) for _ in range(2000)]
    for kind in (int, float, np.float32, Decimal):
        for number in numbers:
            try:
                assert identifier(kind(number)) == str(number)
            except UnusableCell:
                assert (kind is float and number >= 2**53) or (kind is np.float32 and number >= 2**24 - 1)


def test_texts():
    assert text(" two\nlines ") == "two\nlines" and text("\u200fright to left") == "\u200fright to left"
    assert text(None) is None and text(12.0) == "12" and text("1e+16") == "1e+16"
    for cell in ("\x1b]0;title\x07", {"en": "x"}, ["x"], b"\xff", "nan"):
        with pytest.raises(UnusableCell):
            text(cell)


def test_narrow_floats_come_as_such():
    ids = pa.array([16777217.0, None], pa.float32())
    columns = {"id": ids, "coded": ids.dictionary_encode(), "wide": [1.0, None], "text": ["a", None]}
    first, second = rows_of(pa.RecordBatch.from_pydict(columns))
    assert isinstance(first["id"], np.float32) and isinstance(first["coded"], np.float32)
    assert type(first["wide"]) is float and first["text"] == "a"
    assert identifier(second["id"]) is None and second["wide"] is None
    with pytest.raises(UnusableCell, match="2.24"):
        identifier(first["id"])


@pytest.mark.parametrize(
    "others",
    [
        *[("Bags", f"Ba{c}gs") for c in "\u034f\u115f\u180b\u200d\u2060\u2800\u3164\ufe0f\uffa0\U000e0101"],
        *[("T-Shirts", f"T{c}Shirts") for c in "\u2010\u2011\u2013\u2014\u2212"],
        *[("Women's", f"Women{c}s") for c in "\u2018\u2019\u02bc\u00b4`"],
        ("Caf\u00e9", "Cafe\u200b\u0301"),
        *[("Bags", "B\u0430gs"), ("Bags", "\u0412ags"), ("\u0412\u0415\u041a", "\u0432\u0435\u043a")],
        *[("A1", "\u04101"), ("Bags", '"Bags"'), ("Bags", "'bags'"), ("Shoes & Bags", "Shoes &amp; Bags")],
    ],
)
def test_names_that_a_reader_takes_for_one(others):
    """Signs that show nothing, and those that are typed or drawn alike; a message shows which is which."""
    assert len(lookalikes(["Other", *others])) == 1
    assert quoted(others[0]) != quoted(others[1])


def test_lookalikes():
    names = ["Lower Body", "Lower\u00a0Body", "lower  body", "Caf\u00e9", "Cafe\u0301", "B\u200bags", "Bags", "Neck"]
    assert lookalikes(names) == [
        ["Bags", "B\u200bags"],
        ["Cafe\u0301", "Caf\u00e9"],
        ["Lower Body", "Lower\u00a0Body", "lower  body"],
    ]
    assert lookalikes(["A1", "a1", "\uff211"]) == [["A1", "a1", "\uff211"]]
    assert lookalikes(["A1", "a1", "\uff211"], case=True) == [["A1", "\uff211"]]
    assert lookalikes(["Stra\u00dfe", "STRASSE", "Bag\ufe0f", "Bag"]) == [
        ["Bag", "Bag\ufe0f"],
        ["STRASSE", "Stra\u00dfe"],
    ]
    assert lookalikes(["12", "12.0", "012", "1.20", "1.2"], case=True) == [["12", "12.0"]]
    assert lookalikes(["-", "b", "A-1", "A1", "C'", "C", '5"', "5", "[x]", "x"]) == []
    assert lookalikes([]) == lookalikes(["Bags", "Bags"]) == []


def test_lists_of_others():
    names = ["Bags", "Head", "Bags, Head", "bags;HEAD", "Bags / Neck", "Men, women", "Head,"]
    assert lists_of_others(names) == ["Bags, Head", "bags;HEAD"] and lists_of_others([]) == []


def test_did_you_mean():
    known = ["Bags", "Lower Body", "Upper Body"]
    assert did_you_mean("bags", known) == did_you_mean("Bagz", known) == " Did you mean 'Bags'?"
    assert did_you_mean("Lower\u00a0Body", known) == " Did you mean 'Lower Body'?"
    assert did_you_mean("Shoes", known) == did_you_mean("Bags", ["Bags"]) == did_you_mean("x", []) == ""


def test_what_cannot_be_seen_is_written_out():
    assert quoted("Lower\u00a0Body") == r"'Lower\xa0Body'" and quoted("\x1b[2J") == r"'\x1b[2J'"
    assert quoted("B\u200bags") == r"'B\u200bags'" and quoted("Cafe\u0301") == r"'Cafe\u0301'"
    assert quoted("Caf\u00e9") == "'Caf\u00e9'" and quoted("Gr\udc81n") == r"'Gr\udc81n'"
    assert quoted("\u0e1a\u0e31\u0e07") == "'\u0e1a\u0e31\u0e07'"  # marks that have no other form are letters
