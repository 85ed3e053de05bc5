"""Questions to the catalog that answers now: pictures are decoded by threads, embedded by one, searched by another.

    decode (a thread for each core) -> embed (one thread, in batches) -> search (one thread, in batches)
                                                                      -> search with a filter (two threads)

While the model is at work on one batch, pictures of the next are decoded and those of the last are searched. A filter
may take seconds, and keeps only other filters waiting.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lrvsf.data.foreign.shown import as_shown
from lrvsf.data.images import BadImage, decode_image
from lrvsf.embedding.views import ONCE, Views, averaged, each_asked
from lrvsf.search.answers import Answers
from lrvsf.search.catalog import Catalog
from lrvsf.search.generations import generations_in
from lrvsf.search.hits import Answer, Hit
from lrvsf.search.serving.batching import Batcher
from lrvsf.search.serving.limits import Limits
from lrvsf.search.serving.telemetry import Telemetry

logger = logging.getLogger(__name__)

AGAIN = 30.0  # seconds until a generation that could not be opened is tried once more
FILTERING = 2  # filters that are evaluated at once, each of which may take a gigabyte


@dataclass(frozen=True)
class Question:
    """What a client asks.

    Attributes:
        pictures: encoded; one to search with, several to embed.
        conditions: None asks without one.
        in_words: conditions are texts, for a model that reads them, and not names.
        everything: ask under every condition that the model knows instead.
        views: of each picture, whose embeddings are averaged.
    """

    pictures: tuple[bytes, ...]
    conditions: tuple[str | None, ...] = (None,)
    k: int = 10
    where: str | None = None
    everything: bool = False
    in_words: bool = False
    views: Views = ONCE

    def check(self, catalog: Catalog) -> None:
        """Raises ValueError: the model does not know a condition, or cannot read a text."""
        check = catalog.check_text if self.in_words else catalog.check_condition
        for condition in self.conditions:
            check(condition)


@dataclass(frozen=True)
class ToEmbed:
    catalog: Catalog
    pixels: list[np.ndarray]  # (3, S, S) each
    conditions: list[str | None]  # one for each
    in_words: bool


@dataclass(frozen=True)
class ToFind:
    catalog: Catalog
    rows: np.ndarray  # (Q, dim)
    conditions: Sequence[str | None]  # (Q,) of whose scores it is known what they mean
    k: int


class Answering:
    """A catalog and the threads that answer from it.

    Args:
        folder, model, device: as `Catalog.open` takes them.

    Attributes:
        catalog: what answers now. A request keeps the one that it began with.

    Raises:
        FileNotFoundError: there is no catalog.
        ValueError: it is damaged, or made by another model.
    """

    def __init__(
        self, folder: Path, model: str | None, device: str | None, limits: Limits, telemetry: Telemetry
    ) -> None:
        self.folder, self.model, self.device, self.limits, self.telemetry = folder, model, device, limits, telemetry
        self.catalog = self._opened(None)
        self._failed: str | None = None  # a generation that could not be opened
        self._again = 0.0  # when it is tried again
        self._decoding = ThreadPoolExecutor(os.cpu_count(), "decode")
        # A pool of its own: a filter of seconds must not keep the one thread that searches for all others.
        self._filtering = ThreadPoolExecutor(FILTERING, "filter")
        self._embedding = Batcher(self._embed, limits.batch, "embed")
        self._searching = Batcher(_find, limits.batch, "search")

    async def embed(self, question: Question, catalog: Catalog) -> np.ndarray:
        """Unit rows (pictures x conditions, dim): all conditions of the first picture, then of the second, ...

        Raises:
            ValueError: an unknown condition, a text that cannot be read.
            BadImage: a picture that cannot be read, or is larger than the limit.
        """
        question.check(catalog)
        with self.telemetry.stage("decode"):
            work = [self._in(self._decoding, self._pixels, catalog, data, question.views) for data in question.pictures]
            pixels, conditions = each_asked(await asyncio.gather(*work), question.conditions)
        with self.telemetry.stage("embed"):
            # In parts, so that a request of many rows is no larger a batch than others, and takes turns with them.
            parts = [slice(start, start + self.limits.batch) for start in range(0, len(pixels), self.limits.batch)]
            jobs = [ToEmbed(catalog, pixels[part], conditions[part], question.in_words) for part in parts]
            futures = [self._embedding.submit(job, len(job.pixels)) for job in jobs]
            rows = np.concatenate(await asyncio.gather(*map(asyncio.wrap_future, futures)))
        return averaged(rows.reshape(-1, len(question.views), rows.shape[1]))

    async def search(self, question: Question, catalog: Catalog) -> Answers:
        """What is found under each condition. Raises as `embed` does, and FilterError."""
        conditions = tuple(catalog.conditions) if question.everything else question.conditions
        once = question.views == ONCE
        # A plain row at the end tells, with the others, what is in a picture that is seen once.
        further = (None,) if question.everything and once else ()
        rows = await self.embed(replace(question, conditions=conditions + further), catalog)  # (conditions, dim)
        asked = rows[: len(conditions)]
        verdicts = catalog.verdicts(rows) if further else [(None, None)] * len(conditions)
        # What scores mean is known under names, and of pictures that are seen once.
        named = conditions if once and not question.in_words else [None] * len(conditions)
        with self.telemetry.stage("search"):
            if question.where is None:
                job = self._searching.submit(ToFind(catalog, asked, named, question.k), len(asked))
                found = await asyncio.wrap_future(job)
            else:
                filtered = partial(catalog.nearest, asked, question.k, question.where, conditions=named)
                found = await self._in(self._filtering, filtered)
        return [(name, Answer(hits, *verdict)) for name, hits, verdict in zip(conditions, found, verdicts, strict=True)]

    def reload(self) -> None:
        """Opens the generation that CURRENT names, where it is another one; what is there answers until it is ready.

        One that cannot be opened is logged, and tried again after a while: its catalog may still be arriving.
        """
        name = None
        try:
            name = generations_in(self.folder).current_name()
            if name in (None, self.catalog.generation.name) or (
                name == self._failed and time.monotonic() < self._again
            ):
                return
            fresh = self._opened(self.catalog)
        except Exception as error:  # the disk may be lost or full, memory short: the service goes on with what it has
            if name != self._failed:
                logger.error("%s cannot be opened, %s goes on: %s", name, self.catalog.generation.name, error)
            self.telemetry.failed_reloads.inc()
            self._failed, self._again = name, time.monotonic() + AGAIN
            return
        before, self.catalog, self._failed = self.catalog.generation.name, fresh, None
        logger.warning("%s answers now, after %s.", fresh.generation.name, before)

    def close(self) -> None:
        """Finishes what was begun."""
        self._decoding.shutdown()
        self._embedding.close()
        self._searching.close()
        self._filtering.shutdown()

    def _opened(self, before: Catalog | None) -> Catalog:
        """The catalog, with all that is loaded at a first question."""
        catalog = Catalog.open(self.folder, self.model, self.device)
        made, own = catalog.generation.manifest, before and before.generation.manifest
        if own and (made["model"]["digest"], made["dims"]) == (own["model"]["digest"], own["dims"]):
            catalog.encoder = before.encoder  # one model in memory, and requests of both share batches
        catalog.search(Image.new("RGB", (8, 8)), k=1)
        if catalog.reads_texts:
            _ = catalog.reader
        catalog.item("")
        _ = catalog.presence
        for name in catalog.conditions:  # 0.7 s each among 100,000 rows of 512 dimensions
            catalog.scale(name)
        self.telemetry.answers(catalog.generation.name, len(catalog))
        return catalog

    def _pixels(self, catalog: Catalog, data: bytes, views: Views) -> list[np.ndarray]:
        """(3, S, S) uint8 of each view."""

        def shown(image: Image.Image) -> Image.Image:
            # The header is read and nothing decoded yet; the library's own bound is for a machine's own pictures.
            if (pixels := image.width * image.height) > self.limits.pixels:
                most = f"{self.limits.pixels:,} pixels are the most"
                raise BadImage("too large", f"{image.width} x {image.height} are {pixels:,} pixels; {most}")
            return as_shown(image, [])

        whole = decode_image(data, shown)
        return [catalog.encoder.pixels_of(view.of(whole)) for view in views]

    def _embed(self, jobs: Sequence[ToEmbed]) -> list[np.ndarray]:
        """Rows of each job; jobs of generations that share a model are one batch, but names and words are two."""
        results: dict[int, np.ndarray] = {}
        groups = defaultdict(list)
        for place, job in enumerate(jobs):
            groups[id(job.catalog.encoder), job.in_words].append(place)
        for (_, in_words), places in groups.items():
            own = [jobs[place] for place in places]
            pixels = [one for job in own for one in job.pixels]
            conditions = [name for job in own for name in job.conditions]
            self.telemetry.batch.observe(len(pixels))
            rows = own[0].catalog.embed_pixels(pixels, conditions, in_words)
            ends = np.cumsum([len(job.pixels) for job in own])
            results |= zip(places, np.split(rows, ends[:-1]), strict=True)
        return [results[place] for place in range(len(jobs))]

    @staticmethod
    def _in(pool: ThreadPoolExecutor, work: Any, *arguments: Any) -> asyncio.Future:
        return asyncio.get_running_loop().run_in_executor(pool, work, *arguments)


def _find(jobs: Sequence[ToFind]) -> list[list[list[Hit]]]:
    """Hits of each job; those that ask one catalog for as many hits are searched at once."""
    results: dict[int, list[list[Hit]]] = {}
    groups = defaultdict(list)
    for place, job in enumerate(jobs):
        groups[id(job.catalog), job.k].append(place)
    for (_, k), places in groups.items():
        own = [jobs[place] for place in places]
        conditions = [name for job in own for name in job.conditions]
        found = iter(own[0].catalog.nearest(np.concatenate([job.rows for job in own]), k, conditions=conditions))
        for place, job in zip(places, own, strict=True):
            results[place] = [next(found) for _ in job.rows]
    return [results[place] for place in range(len(jobs))]
