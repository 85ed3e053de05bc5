"""Training a model's queries against a gallery that stays as it is: an index of it stays valid.

All training targets are embedded once, by the model inside that embeds whatever has no condition. So each query has all
of them as negatives, exact and never stale, for one product of matrices a step, and only scenes pass the tower that is
trained. (A stage with fixed negatives after the usual training: SPN4CIR, arXiv 2404.11317.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lrvsf.data.pairs import target_cells
from lrvsf.data.products import ProductShards
from lrvsf.data.testset import Origin
from lrvsf.embedding.encoder import Encoder
from lrvsf.embedding.parts import Item, Part
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
    """

    def __init__(self, targets: Tensor, places: np.ndarray, dims: list[int]):
        self.targets, self.places = targets, places
        some = targets[:: max(1, len(targets) // SAMPLE)]
        cosines = some @ targets.T
        self.alike = cosine_of_copies(cosines)
        share = ((cosines > self.alike).sum(1) - 1).float().mean().item() / max(1, len(targets) - 1)
        if share > TOO_ALIKE:
            raise ValueError(
                f"{share:.0%} of the training targets have a cosine above {self.alike:.3f} with any one of them, as "
                "copies have: nothing would be learnt. Train the model that the run starts from first"
            )
        self._cut = [targets, *(F.normalize(targets[:, :dim], dim=1) for dim in dims)]

    @classmethod
    def embedded(
        cls, model: CondViTModel, args: CondViTTrainingArguments, shards: ProductShards, dims: list[int]
    ) -> FrozenGallery:
        """Embeds what OUTPUT_DIR/targets lacks. Every process must call it.

        Raises:
            ValueError: no target can be read; the folder holds those of another model or of other products.
            TooMuchDamage: more cannot be read than the tolerance allows.
        """
        part = TrainingTargets(model, args, shards)
        encoder = Encoder(model.gallery, "none", args.bf16, args.device)
        store = EmbeddingStore(
            *(Path(args.output_dir, FOLDER), encoder, [part], "training targets"),
            batch_size=args.per_device_eval_batch_size,
            tolerance=args.tolerance,
            remedy=f"remove {Path(args.output_dir, FOLDER)}",
        )
        store.fill()
        model.gallery.train(model.training)
        read = shards.rows[store.rows(part.what).numpy()]
        places = np.full(int(shards.starts[-1]), -1)
        places[read] = np.arange(len(read))
        return cls(store.whole("target").to(args.device), places, dims)

    def loss(self, queries: Tensor, places: Tensor, logit_scale: Tensor) -> Tensor:
        """Cross-entropy of each query's own target among all, which is the mean over whole and cut embeddings.

        Args:
            queries: (B, D) unit rows.
            places: (B,) of their targets.
        """
        with torch.autocast(queries.device.type, enabled=False):
            queries = queries.float()
            alike = self.targets[places] @ self.targets.T > self.alike  # (B, M)
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


class TrainingTargets(Part):
    """The first picture of each usable product that may be its target."""

    what, kinds = "training targets", ("target",)

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
                cells = target_cells(rows[number], self.categories, self.wording) if number in rows else []
                image = cells[0]["image"] if cells else None
                yield place, (image and image["bytes"],)
                place += 1

    def origins(self, start: int, stop: int) -> Iterator[Origin]:
        for number in self.shards.rows[start:stop].tolist():
            group = int(np.searchsorted(self.shards.starts, number, side="right")) - 1
            yield Origin(None, self.shards.row_groups[group], number - int(self.shards.starts[group]))

    def describe(self) -> str:
        asked = self.categories if self.wording is None else repr(self.wording)
        return f"{self.shards.fingerprint}, {asked}"
