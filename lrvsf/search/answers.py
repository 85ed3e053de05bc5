"""What was found, to look at: a table in 80 columns, a self-contained HTML sheet, or JSON."""

from __future__ import annotations

import base64
import datetime
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from lrvsf.command import WIDTH
from lrvsf.data.foreign.shown import decode_shown
from lrvsf.data.images import BadImage
from lrvsf.data.names import printable
from lrvsf.durable import write_whole
from lrvsf.search.catalog import Catalog
from lrvsf.search.hits import Answer, Hit
from lrvsf.search.segments import thumbnail

Answers = list[tuple[str | None, Answer]]  # a condition, by name or in words, and what was found under it

NOTHING = "nothing found"
ABSENT = "does not seem to be in the picture"
FAR = "no close match"
ID_WIDTH, CELL_WIDTH = 32, 24  # columns of the terminal that one cell may take
TEMPLATE = Path(__file__).with_name("answers.html.jinja")


def ask(
    catalog: Catalog,
    image: Path,
    conditions: Sequence[str] | None,
    k: int,
    where: str | None,
    html: Path | None,
    as_json: bool,
    all_conditions: bool = False,
    texts: Sequence[str] | None = None,
    **how: str | None,
) -> str:
    """What `query` prints; `html` is written. Arguments as those of `Catalog.search`; no condition is None."""
    data, asked = image.read_bytes(), list(texts or conditions or [None])
    try:
        if all_conditions:
            answers: Answers = list(catalog.search_all(data, k, where, **how).items())
        else:
            named = {"text": asked} if texts else {"category": asked}
            found = catalog.search(data, k=k, where=where, **named, **how)
            answers = [(condition, Answer(hits)) for condition, hits in zip(asked, found, strict=True)]
    except BadImage as error:
        raise ValueError(f"{image} cannot be asked with: {error}") from error
    if html:
        write_whole(html, sheet(answers, data, where).encode())
    if as_json:
        return json.dumps(jsonable(answers), indent=1, ensure_ascii=False, allow_nan=False)
    return table(answers) + (f"\n\nWrote {html}." if html else "")


def jsonable(answers: Answers) -> list[dict[str, Any]]:
    """Answers as `query --json`, the service and the page give them; presence where it is told."""
    return [
        {"condition": condition, "hits": [as_dict(hit) for hit in answer.hits]}
        | ({} if answer.presence is None else {"present": answer.present, "presence": round(answer.presence, 3)})
        for condition, answer in answers
    ]


def as_dict(hit: Hit) -> dict[str, Any]:
    """A hit in JSON's types; a date or time is text."""
    known = {
        name: value.isoformat() if isinstance(value, datetime.date | datetime.datetime) else value
        for name, value in hit.metadata.items()
    }
    standing = None if hit.standing is None else round(hit.standing, 3)
    where = {"score": round(hit.score, 6), "rank": hit.rank, "standing": standing, "close": hit.close}
    return {"id": hit.id, **where, "metadata": known}


def table(answers: Answers) -> str:
    """Lines of at most 80 columns: rank, score, id, and as much of the metadata as there is room for.

    A line stands above the hits that are no close match, which come last.
    """
    return "\n\n".join(
        (f"{_cut(condition, WIDTH - len(_remark(answer)))}{_remark(answer)}\n" if condition else "")
        + (_rows(answer.hits) if answer.hits else f"  {NOTHING}")
        for condition, answer in answers
    )


def _remark(answer: Answer) -> str:
    return f" ({ABSENT})" if answer.present is False else ""


def _rows(hits: list[Hit]) -> str:
    columns = [("", [f"{hit.rank:>2}" for hit in hits]), ("score", [f"{hit.score:.3f}" for hit in hits])]
    columns.append(("id", [_cut(hit.id, ID_WIDTH) for hit in hits]))
    for name in hits[0].metadata:
        cells = ["" if hit.metadata[name] is None else _cut(str(hit.metadata[name]), CELL_WIDTH) for hit in hits]
        if name != "product_id" and any(cells):
            columns.append((_cut(name, CELL_WIDTH), cells))
    widths, used = [], 0
    for name, cells in columns:
        width = max(map(_width, [name, *cells]))
        if used + width + 2 > WIDTH:
            break
        widths.append(width)
        used += width + 2
    lines = [
        "  ".join(_filled(cell, width) for cell, width in zip(line, widths, strict=False)).rstrip()
        for line in zip(*([name, *cells] for name, cells in columns), strict=True)
    ]
    if hits[-1].close is False:
        lines.insert(1 + sum(hit.close is not False for hit in hits), f"{FAR}:")
    return "\n".join(lines)


def _cut(text: str, width: int) -> str:
    """What can be shown of a text in a cell; it ends in "..." where something is missing."""
    text = printable(" ".join(text.split()))
    if _width(text) <= width:
        return text
    text = text[:width]  # no letter is narrower than a column, and a sentence may have thousands
    while _width(text) > width - 3:
        text = text[:-1]
    return text.rstrip() + "..."


def _width(text: str) -> int:
    """Columns that a text takes on a terminal: Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _filled(text: str, width: int) -> str:
    return text + " " * (width - _width(text))


def sheet(answers: Answers, data: bytes, where: str | None) -> str:
    """The page: the picture that asked, and under each condition what was found. What comes from data is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["src"] = lambda jpeg: "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    asked = thumbnail(decode_shown(data), 256)
    return template.render(answers=answers, asked=asked, where=where, nothing=NOTHING, absent=ABSENT, far=FAR)
