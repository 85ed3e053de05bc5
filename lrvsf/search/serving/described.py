"""What /docs says of the service. Its examples are of the catalog that answers, so that they work as they stand."""

from __future__ import annotations

import base64
import shlex
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from lrvsf.data.foreign.shown import decode_shown
from lrvsf.search.catalog import Catalog
from lrvsf.search.segments import thumbnail

ABOUT = """A photo, and what is meant in it, by name or in words -> the items of a catalog that show it.

Pictures are in the request, never fetched. A refusal is `{"error": "One sentence."}`: 400 what was asked, 401 the
token, 404 no such item, 408 too slow, 413 too large, 429 too many at once (see Retry-After), 504 no answer in time."""

SMALL = 32  # pixels a side of the example's picture, which stands in the page as text
WORDS = "the red one"  # of the example: there is something red in any shop

TEXT, TEXTS = {"type": "string"}, {"type": "array", "items": {"type": "string"}}
FILE = {"type": "string", "format": "binary"}
CONDITION = {**TEXTS, "description": "what is meant, one of the model's conditions; again for more"}
WHOSE = "for a model that reads texts, as /ready says"
IN_WORDS = {**TEXTS, "description": f"what is meant in words, in place of condition, {WHOSE}; again for more"}
VIEWS = {
    **TEXT,
    "description": "looks at the picture, whose embeddings are averaged, such as whole,center0.8,flip; each costs as "
    "much as the picture",
}
K = {"type": "integer", "minimum": 1, "default": 10, "description": "hits under each condition"}
WHERE = {**TEXT, "description": "what the metadata must fulfil, such as price < 50"}
ALL = {"type": "boolean", "default": False, "description": "ask under every condition that the model knows"}
SEARCHED = {"condition": CONDITION, "text": IN_WORDS, "query_views": VIEWS, "k": K, "where": WHERE, "all": ALL}
FORMAT = {"type": "string", "enum": ["float", "base64"], "default": "float"}


def _body(file: dict[str, Any], coded: dict[str, Any], others: dict[str, Any], name: str) -> dict[str, Any]:
    """A request in its three forms: JSON first, whose example a page can send without a file."""
    as_json = {"type": "object", "required": [name], "properties": {name: coded, **others}}
    as_form = {"type": "object", "required": ["image"], "properties": {"image": file, **others}}
    content = {"application/json": as_json, "multipart/form-data": as_form, "image/*": FILE}
    return {"required": True, "content": {kind: {"schema": schema} for kind, schema in content.items()}}


def _answer(description: str, properties: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties}
    return {"200": {"description": description, "content": {"application/json": {"schema": schema}}}}


BASE64 = {**TEXT, "description": "base64, or a data: URL"}
HIT = {
    "id": TEXT,
    "score": {"type": "number"},
    "rank": {"type": "integer"},
    "standing": {
        "type": ["number", "null"],
        "description": "of pictures whose thing is not in the catalog, the share that finds nothing as near",
    },
    "close": {"type": ["boolean", "null"], "description": "whether this is a close match"},
}
HITS = {"type": "array", "items": {"type": "object", "properties": {**HIT, "metadata": {"type": "object"}}}}
MEANT = {"type": ["string", "null"], "description": "the condition, or the text"}
RESULT = {"type": "object", "properties": {"condition": MEANT, "hits": HITS}}
ROW = {"type": "array", "items": {"type": "number"}}
DATA = {"type": "object", "properties": {"object": TEXT, "index": {"type": "integer"}, "embedding": ROW}}
SEARCH = {
    "requestBody": _body(FILE, BASE64, SEARCHED, "image"),
    "responses": _answer("One result a condition.", {"results": {"type": "array", "items": RESULT}}),
}
EMBED = {
    "requestBody": _body(
        {"type": "array", "items": FILE},
        {"type": "array", "items": BASE64},
        {"condition": CONDITION, "text": IN_WORDS, "query_views": VIEWS, "encoding_format": FORMAT},
        "input",
    ),
    "responses": _answer(
        "Unit rows.",
        {"object": TEXT, "data": {"type": "array", "items": DATA}, "model": TEXT, "usage": {"type": "object"}},
    ),
}
ITEM = {200: _answer("The item.", {"id": TEXT, "metadata": {"type": "object"}, "thumbnail": TEXT})["200"]}
THUMBNAIL = {200: {"description": "A JPEG.", "content": {"image/jpeg": {"schema": FILE}}}}
METRICS = {200: {"description": "Prometheus's text.", "content": {"text/plain": {"schema": TEXT}}}}


def schema(app: FastAPI, catalog: Catalog) -> dict[str, Any]:
    """The OpenAPI document, with examples from the catalog."""
    document = get_openapi(title=app.title, version="1", description=app.description, routes=app.routes)
    hit = next(hit for name in catalog.metadata["id"] if (hit := catalog.item(name.as_py())))  # that was not removed
    paths, known = document["paths"], catalog.conditions[:1]
    # Made small, as it stands in the page as text and in each client that reads the document.
    picture = base64.b64encode(thumbnail(decode_shown(hit.thumbnail), SMALL)).decode()
    meant = {"text": [WORDS]} if catalog.reads_texts else {"condition": known}
    _content(paths, "/search")["example"] = {"image": picture, **meant, "k": 3}
    _content(paths, "/embed")["example"] = {"input": [picture], **meant}
    for path in ("/items/{name}", "/thumbnails/{name}"):
        paths[path]["get"]["parameters"][0]["example"] = hit.id
    fields = [word for name, values in meant.items() for value in values for word in ("-F", f"{name}={value}")]
    lines = (
        ["curl", f"ADDRESS/thumbnails/{quote(hit.id)}", "-o", "photo.jpg"],
        [*("curl", "ADDRESS/search", "-F", "image=@photo.jpg", *fields, "-F", "k=3")],
    )
    shown = "\n".join(map(shlex.join, lines))
    paths["/search"]["post"]["description"] += f"\n\n```\n{shown}\n```"
    return document


def _content(paths: dict[str, Any], path: str) -> dict[str, Any]:
    return paths[path]["post"]["requestBody"]["content"]["application/json"]
