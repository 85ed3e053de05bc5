"""A catalog that answers: an image and a condition, or several, or none -> the items that show the thing meant.

    catalog = Catalog.open("out")
    for hit in catalog.search(open("scene.jpg", "rb").read(), category="Bags", k=10):
        print(hit.rank, hit.score, hit.id, hit.metadata)

A catalog that is open keeps answering as it was opened, whatever is built, switched to or removed meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import pyarrow as pa
from PIL import Image

from lrvsf.data.foreign.shown import as_shown, decode_shown
from lrvsf.data.images import MAX_IMAGE_BYTES
from lrvsf.data.names import did_you_mean, quoted
from lrvsf.embedding.encoder import Encoder
from lrvsf.embedding.views import ONCE, Views, averaged, each_asked, read_views
from lrvsf.search.copies import ALIKE, Copies
from lrvsf.search.filters import rows_where
from lrvsf.search.generations import Generation
from lrvsf.search.hits import Answer, Hit
from lrvsf.search.opening.opened import Parts, open_answering
from lrvsf.search.own_model import load_own_encoder, load_reader, query_digest
from lrvsf.search.vectors import Selection
from lrvsf.search.verdicts.presence import Presence
from lrvsf.search.verdicts.standing import DEEP, KnownPairs, Scale, best_of_others

Picture = bytes | str | Path | Image.Image  # encoded, a file's path, or decoded
# Cosine from which an item is taken for the product of a known pair, which may be here under another id. On Mini, 99 of
# 100 pictures stay above 0.989 with themselves when they are recompressed (JPEG quality 60) or cut by 2 pixels.
NEAR = 0.99
Calibration = TypeVar("Calibration", Presence, KnownPairs)
FILTERS = 16  # that are kept with the rows that they pass, at most 4 bytes an item each; not tuned
DEEPER = 4  # how many times more rows are looked at where groups leave too few hits


class Catalog:
    """One generation of a catalog, with everything that it needs open. Threads may share it.

    Attributes:
        generation: which one.
        metadata: `id` and the columns, a row for each item, removed ones included.
        index, vectors: what is searched, and the rows that scores come from.
    """

    def __init__(
        self, generation: Generation, parts: Parts, model: str | None = None, device: str | None = None
    ) -> None:
        self.generation, self._model, self._device = generation, model, device
        self.metadata, self.vectors, self.index = parts.metadata, parts.vectors, parts.index
        self._thumbnails = parts.thumbnails
        self._copies = Copies(self._thumbnails)
        self._left = np.ones(generation.total, bool)
        self._left[generation.removed] = False
        self._scales: dict[str, Scale | None] = {}
        # What is open does not change, so neither does what a filter passes, which pages and services ask again and
        # again. A function of its own: a cached method would hold the catalog, and it its cache.
        self._selection = lru_cache(FILTERS)(partial(_selection, self.metadata, self._left))

    @classmethod
    def open(cls, folder: str | Path, model: str | None = None, device: str | None = None) -> Self:
        """Opens the generation that answers.

        Args:
            folder: a catalog's, or a Lance table's that `search_catalog.py lance` has written; TABLE@VERSION names a
                version of it, by its number or its generation's name.
            model: where its model is now; by default where it was when the catalog was made.
            device: "cpu" or "cuda"; a GPU by default where there is one.

        Raises:
            FileNotFoundError: there is no catalog.
            ValueError: it is damaged.
        """
        return cls(*open_answering(folder), model, device)

    def __len__(self) -> int:
        return len(self.generation)

    @cached_property
    def encoder(self) -> Encoder:
        """The model, loaded at the first question. Raises ValueError: it is not the one that made the catalog."""
        return load_own_encoder(self.generation, self._model, self._device, conditioned=True)

    @cached_property
    def presence(self) -> Presence | None:
        """What `calibrate` wrote into the model's folder; None where there is none, or it is of other weights."""
        return self._calibrated(Presence.load(self.encoder.model.name_or_path))

    @cached_property
    def known_pairs(self) -> KnownPairs | None:
        """Likewise, by which `scale` sees what scores mean in this catalog."""
        return self._calibrated(KnownPairs.load(self.encoder.model.name_or_path))

    def _calibrated(self, found: Calibration | None) -> Calibration | None:
        known = found is not None and (found.model, list(found.conditions))
        return found if known == (query_digest(self.generation, self.encoder), self.conditions) else None

    def scale(self, condition: str | None) -> Scale | None:
        """What scores under a condition mean in this catalog; measured at the first question, and then kept.

        None while the model is not calibrated, and where too few scenes are known. Without a condition nothing is
        meant that could be missing.
        """
        if condition not in self._scales:
            self._scales[condition] = self._measured_scale(condition)
        return self._scales[condition]

    def _measured_scale(self, condition: str | None) -> Scale | None:
        if condition is None or self.known_pairs is None or not len(self):
            return None
        scenes, products = self.known_pairs.under(condition)
        depth = min(DEEP, len(self))
        selection = Selection(self._left) if len(self.generation.removed) else None
        scores, rows = self.index.search(scenes, depth, selection)
        near, own = self.index.search(products, depth, selection)
        if self._keys is not None:
            rows, own = self._keys[rows], self._keys[own]
        return Scale.of(best_of_others(scores, rows, own, near >= NEAR), (scenes * products).sum(1))

    @property
    def conditions(self) -> list[str]:
        """The names under which the model can be asked; none for a model without conditions."""
        return list(self.encoder.model.config.categories) if self.encoder.conditioning == "category" else []

    @property
    def reads_texts(self) -> bool:
        """Whether the model can be asked in words: it is a text model that knows its text encoder."""
        config = self.encoder.model.config
        return config.condition == "text" and config.text_encoder is not None

    @cached_property
    def reader(self) -> Encoder:
        """The model as it is asked in words, loaded at the first text. Raises as `load_reader` does."""
        return load_reader(self.encoder)

    def embed(
        self, images: Sequence[Picture], conditions: Sequence[str | None] = (None,), query_views: str | None = None
    ) -> np.ndarray:
        """Unit rows (images x conditions, dim), float32: all conditions of the first image, then of the second, ...

        `query_views`: of each image, whose embeddings are averaged, as "whole,center0.8,flip".

        Raises:
            ValueError: an unknown condition, or view.
            BadImage: a picture cannot be read.
        """
        for name in conditions:
            self.check_condition(name)
        return self._embed_views(images, conditions, read_views(query_views))

    def embed_texts(
        self, images: Sequence[Picture], texts: Sequence[str], query_views: str | None = None
    ) -> np.ndarray:
        """As `embed`, with words in place of names. Raises as `check_text` does."""
        for text in texts:
            self.check_text(text)
        return self._embed_views(images, texts, read_views(query_views), in_words=True)

    def _embed_views(
        self, images: Sequence[Picture], conditions: Sequence[str | None], views: Views, in_words: bool = False
    ) -> np.ndarray:
        pixels = [[self.encoder.pixels_of(view.of(whole)) for view in views] for whole in map(_decoded, images)]
        rows = self.embed_pixels(*each_asked(pixels, conditions), in_words)  # (images x conditions x V, dim)
        return averaged(rows.reshape(-1, len(views), rows.shape[1]))

    def embed_pixels(
        self, pixels: Sequence[np.ndarray], conditions: Sequence[str | None], in_words: bool = False
    ) -> np.ndarray:
        """Unit rows (B, dim), float32, of B arrays (3, S, S), each under a condition of its own or none.

        `in_words`: conditions are texts, which may be any, and not names.
        """
        encoder = self.reader if in_words else self.encoder
        rows = np.empty((len(pixels), encoder.dim), np.float32)
        for named in (True, False):  # a pass each: a sequence with a condition is one token longer
            places = [place for place, name in enumerate(conditions) if (name is not None) == named]
            if places:
                names = [conditions[place] for place in places] if named else None
                rows[places] = encoder.embed([pixels[place] for place in places], names).numpy()
        return rows

    def search(
        self,
        image: Picture | Sequence[Picture],
        category: str | None | Sequence[str | None] = None,
        k: int = 10,
        where: str | None = None,
        group: str | None = "product",
        near_duplicates: str = "keep",
        text: str | Sequence[str] | None = None,
        query_views: str | None = None,
    ) -> list:
        """The best k items.

        Args:
            image: one, or several.
            category: a condition, None, or several of them.
            text: the condition in words, or several, for a model that reads them.
            where: what the metadata must fulfil, as "price < 50 and brand = 'x'".
            group: "product": photos of one product (the same `product_id`, or id) are one hit, with its best photo.
            near_duplicates: "fold" takes items for one hit that show one picture, in whatever size or compression.
            query_views: as `embed` takes them.

        Returns: hits, best first; a list of such lists for several conditions, and for several images a list of those.
        """
        if category is not None and text is not None:
            raise ValueError("category and text were given; a question has one condition: give one of them")
        images, asked = [image] if isinstance(image, Picture) else list(image), category if text is None else text
        conditions = [asked] if asked is None or isinstance(asked, str) else list(asked)
        rows = (self.embed if text is None else self.embed_texts)(images, conditions, query_views)
        # What scores mean is known under names, and of pictures that are seen once.
        named = conditions if text is None and read_views(query_views) == ONCE else [None] * len(conditions)
        found = self.nearest(rows, k, where, group, near_duplicates, named * len(images))
        by_image = [found[start : start + len(conditions)] for start in range(0, len(found), max(len(conditions), 1))]
        if asked is None or isinstance(asked, str):
            by_image = [answers[0] for answers in by_image]
        return by_image[0] if isinstance(image, Picture) else by_image

    def search_all(
        self,
        image: Picture,
        k: int = 10,
        where: str | None = None,
        group: str | None = "product",
        near_duplicates: str = "keep",
        query_views: str | None = None,
    ) -> dict[str, Answer]:
        """What is found under every condition that the model knows, and whether the thing seems to be there at all."""
        if not self.conditions:
            raise ValueError(f"{self.encoder.model.name_or_path} knows no condition; ask with `search`")
        if read_views(query_views) != ONCE:  # what is in the picture was not learnt from views, nor what scores mean
            found = self.search(image, self.conditions, k, where, group, near_duplicates, query_views=query_views)
            return dict(zip(self.conditions, map(Answer, found), strict=True))
        rows = self.embed([image], [*self.conditions, None])  # (C + 1, dim), the last without a condition
        found = self.nearest(rows[:-1], k, where, group, near_duplicates, self.conditions)
        told = zip(self.conditions, found, self.verdicts(rows), strict=True)
        return {name: Answer(hits, *verdict) for name, hits, verdict in told}

    def verdicts(self, rows: np.ndarray) -> list[tuple[bool | None, float | None]]:
        """Whether the thing of each condition seems to be in a picture, and how likely; None for what is not told.

        Args:
            rows: (C + 1, dim), the picture's embedding under each condition, and the plain one last.
        """
        if self.presence is None:
            return [(None, None)] * (len(rows) - 1)
        likely = self.presence.probability(rows[None, :-1], rows[-1:])[0].tolist()
        return [(None, None) if np.isnan(one) else (one >= 0.5, one) for one in likely]

    def nearest(
        self,
        queries: np.ndarray,
        k: int = 10,
        where: str | None = None,
        group: str | None = "product",
        near_duplicates: str = "keep",
        conditions: Sequence[str | None] | None = None,
    ) -> list[list[Hit]]:
        """The best k items of each of some embeddings (Q, dim); arguments as those of `search`.

        Args:
            conditions: (Q,) under which each was embedded, so that hits know where they stand.
        """
        _check(k, group, near_duplicates)
        selection = self._selection(where)
        most = selection.count
        if not most or not len(queries):
            return [[] for _ in queries]
        allowed = None if most == len(selection.mask) else selection
        keys = self._keys if group == "product" else None
        fold = near_duplicates == "fold"
        depth = min(k if keys is None and not fold else DEEPER * k, most)
        while True:
            scores, rows = self.index.search(queries, depth, allowed)
            grouped = [self._grouped(own, keys, fold) for own in rows]
            if depth == most or all(len(groups) >= k for groups in grouped):
                break
            depth = min(DEEPER * depth, most)
        scales = [self.scale(name) for name in conditions or [None] * len(queries)]
        return [
            [
                self._hit(own[group[0]], points[group[0]], rank, len(group) - 1, scale)
                for rank, group in enumerate(groups[:k], 1)
            ]
            for own, points, groups, scale in zip(rows, scores, grouped, scales, strict=True)
        ]

    def item(self, name: str) -> Hit | None:
        """An item by its id, the first of its photos; None where there is none."""
        found = self._rows_of_ids.get(name)
        return None if found is None else self._hit(found, 1.0, 1, 0)

    def like(self, row: int, k: int = 10, where: str | None = None) -> list[Hit]:
        """The items most like one that is here, which is left out."""
        found = self.nearest(self.vectors.take(np.array([row])), k + 1, where)[0]
        return [hit for hit in found if self._key(hit.row) != self._key(row)][:k]

    def thumbnail(self, row: int) -> bytes:
        """The JPEG of a row."""
        return self._thumbnails.take([row])[0]

    def _grouped(self, rows: np.ndarray, keys: np.ndarray | None, fold: bool) -> list[list[int]]:
        """The places of some rows, best first, in groups that are one hit each."""
        rows = rows[rows >= 0]
        vectors = self.vectors.take(rows) if fold else None
        groups: list[list[int]] = []
        seen: dict[Any, int] = {}
        for place, row in enumerate(rows):
            key = row if keys is None else keys[row]
            if fold and key not in seen and groups:
                bests = np.array([group[0] for group in groups])
                near = (vectors[bests] @ vectors[place] >= ALIKE).nonzero()[0]  # others need not be looked at
                if (found := self._copies.first(row, rows[bests[near]].tolist())) is not None:
                    seen[key] = int(near[found])
            if key in seen:
                groups[seen[key]].append(place)
            else:
                seen[key] = len(groups)
                groups.append([place])
        return groups

    @cached_property
    def _keys(self) -> np.ndarray | None:
        """(n,) a number for the product of each row; None where every row is a product of its own."""
        ids = self.metadata["id"]
        if "product_id" in self.metadata.column_names:
            products = self.metadata["product_id"].cast(pa.string())
            ids = pa.chunked_array([pa.compute.coalesce(products.combine_chunks(), ids.combine_chunks())])
        codes = ids.combine_chunks().dictionary_encode()
        return codes.indices.to_numpy() if len(codes.dictionary) < len(ids) else None

    @cached_property
    def _rows_of_ids(self) -> dict[str, int]:
        ids = self.metadata["id"].to_pylist()
        return {ids[row]: int(row) for row in self._left.nonzero()[0][::-1]}

    def _key(self, row: int) -> int:
        return row if self._keys is None else int(self._keys[row])

    def _hit(self, row: int, score: float, rank: int, more: int, scale: Scale | None = None) -> Hit:
        known = self.metadata.slice(int(row), 1).to_pylist()[0]
        told = (None, None) if scale is None else (float(scale.standing([score])[0]), bool(score >= scale.floor))
        return Hit(known.pop("id"), float(score), rank, known, int(row), *told, more, self)

    def check_condition(self, name: str | None) -> None:
        """Raises ValueError: the model does not know it; with those that it knows."""
        if name is not None and name not in self.conditions:
            known = ", ".join(self.conditions) or "none"
            raise ValueError(
                f"condition {quoted(name)} is not one of the model's: {known}.{did_you_mean(name, self.conditions)}"
            )

    def check_text(self, text: str) -> None:
        """Raises ValueError: the model reads no texts, with the conditions that it has; a text says nothing."""
        if not self.reads_texts:
            known = ", ".join(self.conditions) or "none"
            raise ValueError(
                f"the model has no text encoder, so it reads no words; its conditions are: {known}. "
                "Ask by one of them, or a catalog of a model that was trained with --condition text"
            )
        if not text.strip():
            raise ValueError(f"text {quoted(text)} says nothing; for no condition, leave it out")
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair, which no tokenizer takes
            raise ValueError(f"text {quoted(text)} is no Unicode; write it in UTF-8") from error


def _selection(metadata: pa.Table, left: np.ndarray, where: str | None) -> Selection:
    """The rows that are left and pass a filter, or all that are left. Raises FilterError."""
    return Selection(left if where is None else left & rows_where(metadata, where))


def _check(k: int, group: str | None, near_duplicates: str) -> None:
    if k < 1:
        raise ValueError(f"k={k} must be 1 or more")
    if group not in (None, "product"):
        raise ValueError(f"group={group!r} is unknown; take 'product' or None")
    if near_duplicates not in ("keep", "fold"):
        raise ValueError(f"near_duplicates={near_duplicates!r} is unknown; take 'keep' or 'fold'")


def _decoded(image: Picture) -> Image.Image:
    """Any picture as RGB, as a browser shows it. Raises BadImage; FileNotFoundError."""
    if isinstance(image, Image.Image):
        return as_shown(image, [])
    if isinstance(image, str | Path):
        with open(image, "rb") as file:
            image = file.read(MAX_IMAGE_BYTES + 1)
    return decode_shown(image)
