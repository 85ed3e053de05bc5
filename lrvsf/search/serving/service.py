"""The service's routes. What they answer is what `query --json` prints; every refusal is {"error": one sentence}."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from lrvsf.data.images import BadImage
from lrvsf.data.names import quoted
from lrvsf.search.answers import as_dict, jsonable
from lrvsf.search.catalog import Catalog
from lrvsf.search.filters import FilterError
from lrvsf.search.hits import Hit
from lrvsf.search.serving import described
from lrvsf.search.serving.answering import Answering, Question
from lrvsf.search.serving.gate import Gate
from lrvsf.search.serving.limits import Refused
from lrvsf.search.serving.questions import EMBED, SEARCH, question_of, read_fields

LOOKED = 1.0  # seconds between two looks at CURRENT
PATHS = ("/search", "/embed", "/items/", "/thumbnails/", "/health", "/ready", "/metrics")

router = APIRouter()


def make_app(answering: Answering, token: str | None = None, origins: Sequence[str] = ()) -> FastAPI:
    """The service as an ASGI application. At its end it finishes what it took, and `answering` is closed.

    Args:
        token: what clients have to name; None: nobody is asked.
        origins: of web pages that may ask from a browser, or "*".
    """

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(_watch(answering))
        yield
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        await asyncio.to_thread(answering.close)

    # A slash too many is an unknown path: a redirection would name the host that the client said.
    about = {"title": "lrvsf", "description": described.ABOUT, "redoc_url": None, "redirect_slashes": False}
    app = FastAPI(lifespan=life, **about)
    app.state.answering = answering
    app.include_router(router)
    app.openapi = lambda: described.schema(app, answering.catalog)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _http_error)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(Gate, answering.limits, answering.telemetry, token, PATHS)
    if origins:  # outermost: a browser asks without the token whether it may, and reads refusals too
        allowed = {"allow_methods": ["GET", "POST"], "allow_headers": ["Authorization", "Content-Type"]}
        app.add_middleware(CORSMiddleware, allow_origins=list(origins), **allowed)
    return app


async def _watch(answering: Answering) -> None:
    while True:
        await asyncio.sleep(LOOKED)
        await asyncio.to_thread(answering.reload)


@router.post("/search", summary="Find the items that show the thing meant", openapi_extra=described.SEARCH)
async def search(request: Request) -> Response:
    """A picture, and what is meant in it: `condition`, or `text` in words where the model reads them; again for more.

    Hits are best first, by exact cosine.
    """
    answering: Answering = request.app.state.answering
    question = question_of(await read_fields(request, SEARCH, answering.limits), answering.limits)
    catalog = answering.catalog
    if question.everything and not catalog.conditions:
        raise Refused(400, "the model knows no condition, so leave all out")
    _check(question, catalog)
    try:
        return _json({"results": jsonable(await answering.search(question, catalog))})
    except (BadImage, FilterError) as error:
        raise _as_refused(error) from error


@router.post("/embed", summary="Embeddings, in the form that OpenAI's clients read", openapi_extra=described.EMBED)
async def embed(request: Request) -> Response:
    """Unit rows for a vector database: under each condition of the first picture, then of the second, and so on.

    Items are embedded without a condition, questions with one. JSON may have OpenAI's fields: `input` for `image`, in
    base64, and `encoding_format`.
    """
    answering: Answering = request.app.state.answering
    fields = await read_fields(request, EMBED, answering.limits)
    question = question_of(fields, answering.limits, answering.limits.images)
    form = (fields.get("encoding_format") or ["float"])[0]
    if form not in ("float", "base64"):
        raise Refused(400, 'the field encoding_format must be "float" or "base64"')
    catalog = answering.catalog
    if str((fields.get("dimensions") or [catalog.encoder.dim])[0]) != str(catalog.encoder.dim):
        raise Refused(400, f"embeddings of this catalog have {catalog.encoder.dim} dimensions; leave dimensions out")
    _check(question, catalog)
    try:
        rows = await answering.embed(question, catalog)
    except BadImage as error:
        raise _as_refused(error) from error
    encoded = [base64.b64encode(row.tobytes()).decode() for row in rows] if form == "base64" else rows.tolist()
    data = [{"object": "embedding", "index": place, "embedding": row} for place, row in enumerate(encoded)]
    usage = {"prompt_tokens": 0, "total_tokens": 0}  # of text, which there is none of; clients insist on the field
    return _json({"object": "list", "data": data, "model": _model(catalog), "usage": usage})


@router.get("/items/{name:path}", summary="An item's metadata and thumbnail", responses=described.ITEM)
def item(name: str, request: Request) -> Response:
    """By its id. The thumbnail is a `data:` URL; /thumbnails/ gives it as a JPEG."""
    hit = _item(name, request)
    thumbnail = "data:image/jpeg;base64," + base64.b64encode(hit.thumbnail).decode()
    return _json({"id": hit.id, "metadata": as_dict(hit)["metadata"], "thumbnail": thumbnail})


@router.get("/thumbnails/{name:path}", summary="An item's thumbnail", responses=described.THUMBNAIL)
def thumbnail(name: str, request: Request) -> Response:
    """By its id: a JPEG of at most 128 pixels a side."""
    return Response(_item(name, request).thumbnail, media_type="image/jpeg")


@router.get("/health", summary="Whether the process lives")
async def health() -> Response:
    """Asked without a token."""
    return _json({"status": "ok"})


@router.get("/ready", summary="Whether questions are answered, and from what")
async def ready(request: Request) -> Response:
    """Asked without a token."""
    catalog = request.app.state.answering.catalog
    answering = {"generation": catalog.generation.name, "items": len(catalog), "model": _model(catalog)}
    return _json({"status": "ready", **answering, "reads_texts": catalog.reads_texts})


@router.get("/metrics", summary="Counters, as Prometheus reads them", responses=described.METRICS)
async def metrics(request: Request) -> Response:
    """Requests, times by stage, sizes of batches, memory."""
    return Response(generate_latest(request.app.state.answering.telemetry.registry), media_type=CONTENT_TYPE_LATEST)


def _item(name: str, request: Request) -> Hit:
    answering: Answering = request.app.state.answering
    found = answering.catalog.item(name)
    if found is None:
        raise Refused(404, f"there is no item {quoted(name[: answering.limits.letters])}")
    return found


def _check(question: Question, catalog: Catalog) -> None:
    try:
        question.check(catalog)
    except ValueError as error:
        raise Refused(400, error) from error


def _as_refused(error: BadImage | FilterError) -> Refused:
    return Refused(400, f"the picture cannot be read: {error}" if isinstance(error, BadImage) else error)


def _model(catalog: Catalog) -> str:
    """The model's name alone: where it lies on the server is nobody's business."""
    return Path(catalog.generation.manifest["model"]["name"]).name


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    return Response(text.encode(), status, headers, "application/json")


async def _refused(_: Request, error: Refused) -> Response:
    return _json({"error": str(error)}, error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """What the framework refuses: an unknown path, another method, a malformed form."""
    status = getattr(error, "status_code", 400)
    told = {
        404: f"there is no {quoted(request.url.path[:100])} here; /docs lists what there is",
        405: f"{quoted(request.url.path[:100])} does not take {quoted(request.method[:20])}",
    }
    refused = Refused(status, told.get(status, getattr(error, "detail", "the request is malformed")))
    return _json({"error": str(refused)}, status, getattr(error, "headers", None))


async def _failed(_: Request, error: Exception) -> Response:
    return _json({"error": "The service failed on this request; its log says why."}, 500)
