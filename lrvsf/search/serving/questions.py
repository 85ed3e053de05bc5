"""A request's body as a question: multipart fields, JSON, or the picture's bytes with the rest in the address.

A picture is bytes that are in the request. An address in its place is refused, whatever it names: the service fetches
nothing.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Collection, Mapping
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request

from lrvsf.data.names import did_you_mean, quoted
from lrvsf.embedding.views import Views, read_views
from lrvsf.search.filters import MAX_LETTERS
from lrvsf.search.serving.answering import Question
from lrvsf.search.serving.limits import Limits, Refused

SEARCH = ("image", "condition", "text", "query_views", "k", "where", "all")
EMBED = ("image", "input", "condition", "text", "query_views", "encoding_format", "model", "dimensions", "user")
TEXT_BYTES = 4 * MAX_LETTERS  # of a field of a form

Fields = dict[str, list[Any]]


async def read_fields(request: Request, known: Collection[str], limits: Limits) -> Fields:
    """Name -> values, as they were sent: texts, or what JSON has; pictures are bytes, under "image".

    Raises Refused: the body is malformed, or has a field that is not known.
    """
    fields: Fields = {}

    def add(name: str, *values: Any) -> None:
        if name not in known:  # at the first one: a body may have a million
            hint = did_you_mean(name[: limits.letters], known)
            raise Refused(400, f"there is no field {_short(name)}; there are {', '.join(known)}.{hint}")
        fields.setdefault(name, []).extend(values)

    for name, value in request.query_params.multi_items():
        add(name, value)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        # Each condition is a field of its own.
        most = {"max_files": limits.images, "max_fields": limits.conditions + len(known), "max_part_size": TEXT_BYTES}
        async with request.form(**most) as form:
            for name, value in form.multi_items():
                add(name, await value.read() if isinstance(value, UploadFile) else value)
    elif kind == "application/json":
        for name, value in _json(await request.body()).items():
            if value is not None:
                add(name, *(value if isinstance(value, list) else [value]))
    # Whatever the type is called: the decoder finds out what the bytes are.
    elif body := await request.body():
        add("image", body)
    fields["image"] = [_picture(value) for value in fields.get("image", []) + fields.pop("input", [])]
    return fields


def question_of(fields: Mapping[str, list[Any]], limits: Limits, most_images: int = 1) -> Question:
    """The question that fields ask. Raises Refused: one is missing, malformed or beyond the limits."""
    images, (kind, conditions) = fields["image"], _meant(fields)
    if not 1 <= len(images) <= most_images:
        most = "one is needed" if most_images == 1 else f"1 to {most_images} are needed"
        raise Refused(400, f"the request has {len(images)} pictures, and {most}, as the field image or as the body")
    if len(conditions) > limits.conditions:
        raise Refused(400, f"the request has {len(conditions)} {kind}s; {limits.conditions} are the most")
    for asked in conditions:
        if not isinstance(asked, str) or len(asked) > limits.letters:
            raise Refused(400, f"a {kind} is a string of at most {limits.letters} letters, and {_short(asked)} is not")
    everything = _one(fields, "all", "false")
    if str(everything).lower() not in ("true", "false", "1", "0"):
        raise Refused(400, f"the field all is true or false, and {_short(everything)} is neither")
    everything = str(everything).lower() in ("true", "1")
    if everything and conditions:
        raise Refused(400, f"the field all asks under every condition; leave {kind} out")
    where = _one(fields, "where", None)
    if where is not None and not isinstance(where, str):
        raise Refused(400, f"the field where is a text, and {_short(where)} is not")
    # An empty field of a form was not filled in; so is a condition that is empty.
    asked = tuple(conditions) if kind == "text" else tuple(name or None for name in conditions) or (None,)
    how = {"in_words": kind == "text", "views": _views(fields, limits)}
    return Question(tuple(images), asked, _count(fields, limits.k), where or None, everything, **how)


def _meant(fields: Mapping[str, list[Any]]) -> tuple[str, list[Any]]:
    """What is meant: by which field, "condition" or "text", and its values. Raises Refused: by both."""
    if not (texts := fields.get("text")):
        return "condition", fields.get("condition", [])
    if any(fields.get("condition", [])):
        raise Refused(400, "the fields condition and text each say what is meant; give one of them")
    return "text", texts


def _count(fields: Mapping[str, list[Any]], most: int) -> int:
    given = _one(fields, "k", 10)
    text = str(given).strip()
    # str.isdigit also takes the digits of other scripts, and int() a thousand of them.
    k = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if not 1 <= k <= most:
        raise Refused(400, f"the field k is a whole number from 1 to {most}, and {_short(given)} is not")
    return k


def _views(fields: Mapping[str, list[Any]], limits: Limits) -> Views:
    given = _one(fields, "query_views", None)
    if given is not None and (not isinstance(given, str) or len(given) > limits.letters):
        raise Refused(400, f"the field query_views is names with commas between, and {_short(given)} is not")
    try:
        views = read_views(given or None)
    except ValueError as error:
        raise Refused(400, error) from error
    if len(views) > limits.views:
        raise Refused(400, f"the field query_views has {len(views)} views; {limits.views} are the most")
    return views


def _one(fields: Mapping[str, list[Any]], name: str, default: Any) -> Any:
    values = fields.get(name) or [default]
    if len(values) > 1:
        raise Refused(400, f"the field {name} was given {len(values)} times; give it once")
    return values[0]


def _picture(value: Any) -> bytes:
    """A picture's bytes, which JSON has as base64 or as a data: URL."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise Refused(400, f"a picture is base64 in JSON, and {_short(value)} is not")
    if "://" in value[:32]:
        raise Refused(400, "a picture must be in the request; the service fetches no address")
    head, comma, rest = value.partition(",")
    coded = rest if comma and head.startswith("data:") else value
    try:
        return base64.b64decode("".join(coded.split()), validate=True)  # many encoders break lines
    except (binascii.Error, ValueError) as error:
        raise Refused(400, f"a picture is a file, or base64 in JSON, and {_short(value)} is neither") from error


def _json(body: bytes) -> dict[str, Any]:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "the body is no JSON, as its content type says that it is") from error
    if not isinstance(given, dict):
        raise Refused(400, "the body's JSON must be an object, {...}")
    return given


def _short(value: Any) -> str:
    text = str(value)[:100]
    return quoted(text if len(text) < 60 else text[:60] + "...")
