"""Sentence embeddings of texts, computed once: a caption store gives the row of a text's hash.

    FOLDER/DIGEST/manifest.json        what encoder made the rows
    FOLDER/DIGEST/00000.hashes.npy     (n,) uint64, ascending
    FOLDER/DIGEST/00000.rows.npy       (n, E) float16, in the same order

A part is whole or absent, new texts only add parts, and one encoder's rows are never taken for another's: DIGEST is of
its weights and its tokenizer. Both files are memory-mapped, so that a million texts cost a process no memory of its
own, and all processes and loading processes of a machine share one copy in the system's cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lrvsf.data.wording import text_hash
from lrvsf.durable import locked, whole_file, write_whole
from lrvsf.embedding.fingerprint import weights_digest
from lrvsf.processes import has_fast_bf16
from text_condvit import CondViTTextEncoder

PART = 16_384  # texts of a part: at E = 768 it has 25 MB, and a killed computation loses one at most; not tuned
AT_ONCE = 512  # texts of one call of the encoder, which makes batches of them; not tuned
MANIFEST = "manifest.json"

Embed = Callable[[list[str]], Tensor]  # n texts -> (n, E)


class CaptionStore:
    """The rows of one encoder. It is pickled as its folder's name, for loading processes.

    Args:
        folder: FOLDER/DIGEST; need not be there.
        dim: E.

    Raises ValueError: a part is damaged, or of another width.
    """

    def __init__(self, folder: Path, dim: int) -> None:
        self.folder, self.dim = folder, dim
        self.parts: list[tuple[np.ndarray, np.ndarray]] = []
        self._open_parts()

    def __reduce__(self) -> tuple[Any, ...]:
        return CaptionStore, (self.folder, self.dim)  # a memory map would be pickled as its whole content

    def __len__(self) -> int:
        return sum(len(hashes) for hashes, _ in self.parts)

    def _open_parts(self) -> None:
        """Maps the parts that are there and not yet open."""
        while (path := self._path(len(self.parts), "hashes")).is_file():
            try:
                hashes, rows = (
                    np.load(self._path(len(self.parts), what), mmap_mode="r") for what in ("hashes", "rows")
                )
                if hashes.dtype != np.uint64 or rows.dtype != np.float16 or rows.shape != (len(hashes), self.dim):
                    raise ValueError(f"rows of shape {rows.shape}, {rows.dtype}, for {len(hashes)} texts")
            except (OSError, ValueError, EOFError) as error:
                raise ValueError(
                    f"{path} or its rows are damaged ({error}). Remove {self.folder}; the next run makes it again."
                ) from error
            self.parts.append((hashes, rows))

    def _path(self, number: int, what: str) -> Path:
        return self.folder / f"{number:05}.{what}.npy"

    def has(self, hashes: np.ndarray) -> np.ndarray:
        """Which of the texts (n,) are here, bool."""
        found = np.zeros(len(hashes), bool)
        for known, _ in self.parts:
            found |= _places(known, hashes)[1]
        return found

    def __call__(self, hashes: np.ndarray) -> Tensor:
        """Hashes of texts, uint64 (n,), to their sentence embeddings (n, E) float32.

        Raises KeyError: one is not here.
        """
        rows, found = np.empty((len(hashes), self.dim), np.float32), np.zeros(len(hashes), bool)
        # Part by part, in the files: a table of all hashes would be memory of each process, and parts are few.
        for known, stored in self.parts:
            places, there = _places(known, hashes)
            rows[there] = stored[places[there]]
            found |= there
        if not found.all():
            raise KeyError(
                f"{(~found).sum()} of {len(hashes)} texts are not in {self.folder}. Processes on several machines need "
                "a folder that all of them see: name one with --caption_store."
            )
        return torch.from_numpy(rows)

    def of_texts(self, texts: list[str]) -> Tensor:
        """Texts to their sentence embeddings (n, E) float32. Raises KeyError: one is not here."""
        return self(np.array([text_hash(text) for text in texts], np.uint64))

    def add(self, texts: Iterable[str], embed: Embed, about: dict[str, Any] | None = None) -> Iterator[int]:
        """Embeds the texts that are not here yet, and keeps them, part by part: gives the number of texts of each.

        One process may do so at a time.

        Args:
            texts: in any order, repeated or not; they are read once, and few are in memory.
            embed: gives (n, E) for n texts of similar length.
            about: what the manifest says of the encoder.

        Raises:
            InUse: another run adds texts.
            OSError: the folder cannot be written.
            ValueError: an embedding is not finite, or does not fit into float16.
        """
        missing: dict[int, str] = {}
        with ExitStack() as work:
            bar = work.enter_context(tqdm(desc="captions", unit="text", delay=1))
            for chunk in _chunks(texts):
                hashes = np.fromiter(chunk, np.uint64, len(chunk))
                new = hashes[~self.has(hashes)].tolist()
                if new and not missing:
                    # Locked only where something is missing: what is whole anybody may read. Another run may have
                    # added parts until now.
                    work.enter_context(locked(self.folder, "embedding captions"))
                    self._open_parts()
                    new = hashes[~self.has(hashes)].tolist()
                missing |= {number: chunk[number] for number in new}
                while len(missing) >= PART:
                    yield self._add_part(dict(missing.popitem() for _ in range(PART)), embed, about, bar)
            if missing:
                yield self._add_part(missing, embed, about, bar)

    def _add_part(self, texts: dict[int, str], embed: Embed, about: dict[str, Any] | None, bar: tqdm) -> int:
        # Texts of one length together: a batch is as long as its longest.
        order = sorted(texts, key=lambda number: len(texts[number]))
        rows = np.empty((len(order), self.dim), np.float16)
        for start in range(0, len(order), AT_ONCE):
            batch = [texts[number] for number in order[start : start + AT_ONCE]]
            rows[start : start + len(batch)] = embed(batch).half().cpu().numpy()
            bar.update(len(batch))
        if not (finite := np.isfinite(rows).all(1)).all():
            wrong = texts[order[int(finite.argmin())]]
            raise ValueError(f"The embedding of {wrong!r:.80} is not finite in float16. Look at the text encoder.")
        hashes = np.array(order, np.uint64)
        ascending = hashes.argsort()
        if not (self.folder / MANIFEST).is_file():
            write_whole(self.folder / MANIFEST, json.dumps({"dim": self.dim, **(about or {})}, indent=1).encode())
        # A part counts as soon as its hashes are there: they come last.
        for what, array in (("rows", rows), ("hashes", hashes)):
            with whole_file(self._path(len(self.parts), what)) as part, part.open("wb") as file:
                np.save(file, array[ascending])
        self._open_parts()
        return len(texts)


def _chunks(texts: Iterable[str]) -> Iterable[dict[int, str]]:
    """Texts by their hashes, some at a time, each once in a chunk."""
    chunk: dict[int, str] = {}
    for text in texts:
        chunk[text_hash(text)] = text
        if len(chunk) == PART:
            yield chunk
            chunk = {}
    if chunk:
        yield chunk


def _places(known: np.ndarray, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each hash is in a part's ascending ones, and whether it is there; (n,) each."""
    places = np.searchsorted(known, hashes).clip(max=len(known) - 1)
    return places, known[places] == hashes


def encoder_digest(encoder: CondViTTextEncoder, tokenizer: Any) -> str:
    """What tells one encoder's rows from another's, whatever the files that it came from."""
    # Padding and truncation are a call's, which the tokenizer remembers.
    tokens = json.loads(tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
    told = {
        "weights": weights_digest(encoder),
        "tokenizer": tokens,
        "max_length": tokenizer.model_max_length,
        "pooling": encoder.pooling,
        "normalize": encoder.normalize,
        "activations": [type(activation).__name__ for activation in encoder.activations],
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def sentence_embedder(encoder: CondViTTextEncoder, tokenizer: Any, device: torch.device) -> Embed:
    """Embeds texts on a device, in bfloat16 where that is fast."""
    encoder.to(device)

    def embed(texts: list[str]) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device)):
            return encoder.embed(texts, tokenizer)

    return embed
