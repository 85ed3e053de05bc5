"""Training a model's queries against a gallery that stays as it is: an index of it stays valid.

All training targets are embedded once, by the model inside that embeds whatever has no condition. So each query has all
of them as negatives, exact and never stale, for one product of matrices a step, and only scenes pass the tower that is
trained. (A stage with fixed negatives after the usual training: SPN4CIR, arXiv 2404.11317.)
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional as F

from lrvsf.data.folders import names_and_sizes
from lrvsf.data.pairs import picture_numbers, target_cells
from lrvsf.data.products import ProductShards
from lrvsf.data.sharing import SharedPictures
from lrvsf.data.testset import Origin
from lrvsf.embedding.encoder import Encoder
from lrvsf.embedding.parts import Decoded, Item, Part
from lrvsf.embedding.store import EmbeddingStore
from lrvsf.training.arguments import CondViTTrainingArguments
from lrvsf.training.source import wording_of
from modeling_condvit import CondViTModel

FOLDER = "targets"  # of a run's output_dir
SAMPLE = 256  # targets whose likenesses are counted
TOO_ALIKE = 0.1  # share of all targets; a catalog holds few products ten times, and not tuned
# From a cosine in this range on another target is a copy, and no negative: where it leaves out no more than COPIES
# others of a target, on average, as catalogs hold few products twice. Not tuned.
ALIKE, COPIES = (0.95, 0.995), 0.25


class FrozenGallery:
    """The embeddings of all training targets, the same on every process.

    Attributes:
        targets: (M, D) float32 unit rows on the device: 4 bytes a number, 560 MB for LRVS-F's 272,451 at 512.
        places: (rows of the shards,) int64, where each row's target is among them; -1 without one.
        alike: the cosine with a query's target above which another target counts as its copy and is no negative.
        things: (M,) equal numbers for targets of products that hang together by shared pictures, as `data.sharing`
            says: none of them is another's negative. None: no two do.
    """

    def __init__(self, targets: Tensor, places: np.ndarray, dims: list[int], things: Tensor | None = None):
        self.targets, self.places, self.things = targets, places, things
        some = targets[:: max(1, len(targets) // SAMPLE)]
        cosines = some @ targets.T
        self.alike = cosine_of_copies(cosines)
        if things is not None and (most := int(things.bincount().max())) - 1 > TOO_ALIKE * (len(targets) - 1):
            raise ValueError(
                f"{most:,} of {len(targets):,} products hang together by shared pictures and would be no negatives of "
                "one another: little would be learnt. Take out the pictures that they share, such as one that stands "
                "for a missing photo, or train without --freeze_gallery"
            )
        share = ((cosines > self.alike).sum(1) - 1).float().mean().item() / max(1, len(targets) - 1)
        if share > TOO_ALIKE:
            raise ValueError(
                f"{share:.0%} of the training targets have a cosine above {self.alike:.3f} with any one of them, as "
                "copies have: nothing would be learnt. Train the model that the run starts from first"
            )
        self._cut = [targets, *(F.normalize(targets[:, :dim], dim=1) for dim in dims)]

    def told(self) -> str:
        """What it holds, in a line."""
        shared = 0 if self.things is None else int((self.things.bincount()[self.things] > 1).sum())
        return (
            f"a frozen gallery of {len(self.targets):,} targets, {shared:,} of products that share pictures; copies "
            f"from a cosine of {self.alike:.3f}"
        )

    @classmethod
    def embedded(
        cls, model: CondViTModel, args: CondViTTrainingArguments, shards: ProductShards, dims: list[int]
    ) -> FrozenGallery:
        """Embeds what OUTPUT_DIR/targets lacks. Every process must call it.

        Raises:
            ValueError: no target can be read; most products share pictures; the folder is damaged, or holds those of
                another model or of other products.
            TooMuchDamage: more cannot be read than the tolerance allows.
        """
        part = TrainingTargets(model, args, shards)
        encoder = Encoder(model.gallery, "none", args.bf16, args.device)
        store = EmbeddingStore(
            *(Path(args.output_dir, FOLDER), encoder, [part], "training targets"),
            batch_size=args.per_device_eval_batch_size,
            tolerance=args.tolerance,
            remedy="give another --output_dir",
        )
        store.fill()
        model.gallery.train(model.training)
        rows = store.rows(part.what)
        read = shards.rows[rows.numpy()]
        places = np.full(int(shards.starts[-1]), -1)
        places[read] = np.arange(len(read))
        try:
            things = things_of(store.beside(part.what), rows.tolist())
        except (OSError, ValueError) as error:  # pyarrow's of damage are ValueErrors
            raise ValueError(f"{store.folder} is damaged ({error}); remove it, and it is made again") from error
        targets = store.whole("target").to(args.device)
        return cls(targets, places, dims, None if things is None else things.to(args.device))

    def loss(self, queries: Tensor, places: Tensor, logit_scale: Tensor) -> Tensor:
        """Cross-entropy of each query's own target among all, which is the mean over whole and cut embeddings.

        Args:
            queries: (B, D) unit rows.
            places: (B,) of their targets.
        """
        with torch.autocast(queries.device.type, enabled=False):
            queries = queries.float()
            alike = self.targets[places] @ self.targets.T > self.alike  # (B, M)
            if self.things is not None:
                alike |= self.things[places, None] == self.things
            alike[torch.arange(len(places)), places] = False
            losses = []
            for targets in self._cut:
                cut = F.normalize(queries[:, : targets.shape[1]], dim=1)
                logits = logit_scale.float().exp() * cut @ targets.T
                losses.append(F.cross_entropy(logits.masked_fill(alike, -math.inf), places))
            return torch.stack(losses).mean()


def cosine_of_copies(cosines: Tensor) -> float:
    """The cosine above which another target counts as a copy, see ALIKE.

    A fixed one would not do: a model may have dozens of targets above 0.95 around each one, and they are those from
    which a query has most to learn. What is the same picture is above the range in any model.

    Args:
        cosines: (N, M) of some targets with all, themselves among them.
    """
    most = int((1 + COPIES) * len(cosines))  # each is most like itself
    # A row's largest first: those of all of LRVS-F at once would need a gigabyte for a moment.
    nearest = cosines.topk(min(most + 1, cosines.shape[1])).values.flatten()
    if len(nearest) <= most:
        return ALIKE[0]
    *_, last, below = nearest.topk(most + 1).values.tolist()
    # Between the two, as a product of another shape may round a cosine in another way.
    return max(ALIKE[0], min(ALIKE[1], (last + below) / 2))


def things_of(files: list[Path], rows: list[int]) -> Tensor | None:
    """`FrozenGallery.things` from what `TrainingTargets` keeps beside the embeddings of some rows.

    Raises ValueError: the files are damaged, or of other rows.
    """
    beside = pa.concat_tables(pq.read_table(file) for file in files)
    if beside["row"].to_pylist() != rows:
        raise ValueError("the pictures' numbers are of other targets than the embeddings")
    shared = SharedPictures()
    for place, numbers in enumerate(beside["pictures"].to_pylist()):
        shared.add(str(place), numbers)
    things = torch.arange(len(rows))
    for group in (groups := shared.groups()):
        places = torch.tensor([int(place) for place in group])
        things[places] = places[0]
    return things if groups else None


class TrainingTargets(Part):
    """The first picture of each usable product that may be its target; beside it, the numbers of all its pictures."""

    what, kinds, beside = "training targets", ("target",), ".parquet"

    def __init__(self, model: CondViTModel, args: CondViTTrainingArguments, shards: ProductShards):
        self.shards, self.total = shards, shards.usable
        config = model.config
        self.categories = config.categories if config.condition == "category" else None
        self.wording = wording_of(args, config)

    def items(self, start: int, stop: int) -> Iterator[Item]:
        wanted = self.shards.rows[start:stop]
        groups = np.searchsorted(self.shards.starts, wanted, side="right") - 1
        place = start
        for group in np.unique(groups).tolist():
            here = wanted[groups == group].tolist()
            asked = set(here)
            rows = {number: row for number, row in self.shards.read(group) if number in asked}
            for number in here:
                yield place, rows.get(number)
                place += 1

    def decode(self, encoder: Encoder, row: dict | None) -> Decoded:
        cells = [] if row is None else target_cells(row, self.categories, self.wording)
        image = cells[0]["image"] if cells else None
        pixels = encoder.pixels(image and image["bytes"])
        name = cells[0]["category"]
        # As `PairMaker.pair` names it, for the numbers of a batch.
        return Decoded([pixels], picture_numbers(row, name if self.categories is None else self.categories.index(name)))

    def pack(self, rows: list[int], extras: list[Any]) -> bytes:
        out = io.BytesIO()
        # Types are said, as a shard of which nothing can be read has no numbers to tell them.
        columns = pa.array(rows, pa.int64()), pa.array(extras, pa.list_(pa.int64()))
        pq.write_table(pa.table(columns, names=["row", "pictures"]), out)
        return out.getvalue()

    def origins(self, start: int, stop: int) -> Iterator[Origin]:
        for number in self.shards.rows[start:stop].tolist():
            group = int(np.searchsorted(self.shards.starts, number, side="right")) - 1
            yield Origin(None, self.shards.row_groups[group], number - int(self.shards.starts[group]))

    def describe(self) -> str:
        asked = self.categories if self.wording is None else repr(self.wording)
        # The fingerprint is of ids. Files that were written anew with other pictures rarely have the same sizes.
        files = {name.rpartition(", part ")[0] for name in self.shards.row_groups}
        folder = min(files).rpartition("/")[0]  # of all of them
        sizes = names_and_sizes(folder, {file.rpartition("/")[2] for file in files})
        return f"{self.shards.fingerprint}, {sizes}, {asked}"
