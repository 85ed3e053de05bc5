"""Which product of a catalog is trained on, which is a query, and which is a distractor.

A product's place between 0 and 1 is a hash of the seed and its id. In each category, the first of that line are the
test set, the next the validation set, and the rest is trained on; so each category has its share of each. Products that
are added later move no old one of another category, and of their own those few that stood where the shares end.

Products that share a picture stay together (see lrvsf.data.sharing), and of those that show one thing one is a query:
the others' pictures would be right answers that count as wrong.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median_low
from typing import Any

from lrvsf.data.products import why_no_pair
from lrvsf.data.schema import SCENES, SIMPLE
from lrvsf.data.sharing import SharedPictures, marks, number_of
from lrvsf.prepare.catalog.listing import ListedImage
from lrvsf.prepare.rows import TWICE, type_rank, unjoined_categories
from lrvsf.report import Ledger

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SETS = (VALIDATION, TEST)
SPLIT_FROM = 5  # groups of a category: of fewer, none is held out unless its share rounds to one


@dataclass(frozen=True)
class Shares:
    """How much of the products goes where.

    Attributes:
        validation, test: fractions of 1; the rest is trained on.
        seed: of the hash.
    """

    validation: float
    test: float
    seed: int

    def __post_init__(self) -> None:
        if min(self.validation, self.test) < 0 or not self.validation + self.test < 1:
            raise ValueError(
                f"validation {self.validation} and test {self.test} must be fractions, 0 or more, and leave some of 1 "
                "to train on"
            )

    def share(self, name: str) -> float:
        return {VALIDATION: self.validation, TEST: self.test}[name]

    def position(self, product_id: str) -> float:
        # A hash of the id alone: a product keeps its position whatever else is added to the catalog.
        seeded = hashlib.blake2b(product_id.encode(), digest_size=8, key=str(self.seed).encode())
        return int.from_bytes(seeded.digest(), "big") / 2**64

    def counts(self, groups: int) -> dict[str, int]:
        """How many of the groups of a category are in each test set: the share, rounded, and at least one of a few."""
        counts = {}
        for name in (TEST, VALIDATION):
            least = 1 if self.share(name) and groups >= SPLIT_FROM else 0
            counts[name] = max(least, int(groups * self.share(name) + 0.5))
        # Rounding up twice may leave none to train on.
        while sum(counts.values()) >= max(groups, 1):
            counts[max(counts, key=counts.__getitem__)] -= 1
        return counts

    def set_of_distractors(self, product_id: str) -> str:
        """The test set that a product serves as a distractor: in proportion to the shares, one of which is not 0."""
        return TEST if self.position(product_id) * (self.validation + self.test) < self.test else VALIDATION


class Splits:
    """The products of a catalog, each in its split.

    Attributes:
        complete: split -> product id -> its images, SIMPLE before scenes, in a shuffled order of products.
        distractors: test set -> SIMPLE images of products that cannot be trained on.
        borrowed: test set -> SIMPLE images of the other test set's products, where it had too few distractors of its
            own, or none of a category.
        conditioned: whether the catalog has categories at all.
        products: counts.
        skips: of images, and of products that a test set leaves out.
        mixed: products whose rows name several categories.
        shared: the pictures of all products.
    """

    def __init__(self, images: Iterable[ListedImage], shares: Shares) -> None:
        self.shares, self.skips, self.mixed = shares, Ledger(), Ledger()
        self.products: Counter[str] = Counter(usable=0, complete=0)
        self.complete: dict[str, dict[str, list[ListedImage]]] = {name: {} for name in (TRAIN, *SETS)}
        self.distractors: dict[str, list[ListedImage]] = {name: [] for name in SETS}
        self.borrowed: dict[str, list[ListedImage]] = {name: [] for name in SETS}
        found: dict[str, list[ListedImage]] = defaultdict(list)
        for image in images:
            found[image.product_id].append(image)
        self.conditioned = any(image.category for images in found.values() for image in images)
        # The order of everything below, and so of the rows that are written: of the hash, whatever the table's was.
        order = sorted(found, key=lambda name: (shares.position(name), name))
        products = {name: self._distinct(found[name]) for name in order}
        # Two unions: what shares a picture stays in one split, what shows one thing gives one query (see data.sharing).
        self.shared, same_thing = SharedPictures(), SharedPictures()
        for name, images in products.items():
            category = images[0].category
            self.shared.add(name, [number_of(image.digest) for image in images])
            same_thing.add(name, [m for image in images for m in marks(image.digest, image.type, category)])
        self._things = {name: group[0] for group in same_thing.groups() for name in group}
        groups = {name: group for group in self.shared.groups() for name in group}
        self._assign({name: images for name, images in products.items() if self._is_complete(images)}, groups)
        self._assign_distractors(products, groups)
        for name in SETS:
            self._drop_repeats(name)
        for name, other in zip(SETS, reversed(SETS), strict=True):
            self._drop_answers(name, self.distractors)
            asked = {images[0].category for images in self.complete[name].values()}
            known = {image.category for image in self.distractors[name]}
            # The other set's products make the gallery larger without a picture that is trained on.
            if len(self.distractors[name]) < len(self.complete[name]) or asked - known:
                self.borrowed[name] = [image for images in self.complete[other].values() for image in _simple(images)]
                self._drop_answers(name, self.borrowed)

    def _distinct(self, images: list[ListedImage]) -> list[ListedImage]:
        """The images without repeated ones, SIMPLE first; these alone have a category: their own or the product's."""
        first: dict[bytes, ListedImage] = {}
        for image in images:
            if first.setdefault(image.digest, image) is not image:
                self.skips.add(TWICE, f"{image.where} of {image.product_id}")
        kept = sorted(first.values(), key=lambda image: type_rank(image.type))  # stable: else as listed
        named = list(dict.fromkeys(image.category for image in (*kept, *images) if image.category))
        category = next((image.category for image in kept if image.category), None)
        for image in kept:  # a scene is asked about by the product's
            image.category = (image.category or category) if image.type == SIMPLE else None
        if len(named) > 1:
            stands = f"{kept[0].product_id} ({', '.join(named)}: counted as {kept[0].category or category})"
            self.mixed.add("several categories", stands)
        return kept

    def _is_complete(self, images: list[ListedImage]) -> bool:
        """Whether a product can be trained on; counts it as what it is."""
        types = [image.type for image in images]
        self.products["usable"] += 1
        if why_no_pair(types, [], None) is None and (images[0].category or not self.conditioned):
            self.products["complete"] += 1
            return True
        lacks = "product image" if SIMPLE not in types else "category" if set(types) & set(SCENES) else "scene"
        self.products[f"without {lacks}"] += 1
        return False

    def _assign(self, products: dict[str, list[ListedImage]], groups: dict[str, list[str]]) -> None:
        """Puts complete products into splits, category by category and group by group."""
        strata: dict[str | None, dict[str, list[str]]] = defaultdict(dict)
        for name, images in products.items():
            together = [other for other in groups.get(name, [name]) if other in products]
            if together[0] == name:
                strata[images[0].category][name] = together
        split = {}
        # By category, so that each has its share of each set; by group, so that none is cut.
        for stratum in strata.values():
            left, sizes = self.shares.counts(len(stratum)), [len(together) for together in stratum.values()]
            usual = 3 * median_low(sizes)  # not tuned
            for together in stratum.values():
                # A group larger than usual, and than a set's share, most likely hangs on a picture that says "no
                # picture": it is trained on.
                fits = (n for n in left if left[n] and len(together) <= max(usual, sum(sizes) * self.shares.share(n)))
                if (part := next(fits, TRAIN)) != TRAIN:
                    left[part] -= 1
                split.update(dict.fromkeys(together, part))
        for name, images in products.items():
            self.complete[split[name]][name] = images

    def _assign_distractors(self, products: dict[str, list[ListedImage]], groups: dict[str, list[str]]) -> None:
        """Gives each SIMPLE image that cannot be trained on to a test set: its group's, if that has queries."""
        if not self.shares.validation + self.shares.test:
            return
        split = {name: part for part, complete in self.complete.items() for name in complete}
        for name, images in products.items():
            if name in split or not (simple := _simple(images)):
                continue
            group = groups.get(name, [name])
            part = next((split[other] for other in group if other in split), None)
            if part == TRAIN:  # the model has seen its picture
                for image in simple:
                    self.skips.add("distractor that shares a picture with a product to train on", image.where)
            else:
                self.distractors[part or self.shares.set_of_distractors(group[0])] += simple

    def _drop_repeats(self, name: str) -> None:
        """Leaves one query of those that show one thing."""
        seen: set[str] = set()
        for product in list(self.complete[name]):
            thing = self._things.get(product, product)
            if thing in seen:
                del self.complete[name][product]
                self.skips.add("product of a test set that shows the same as another one there", product)
            seen.add(thing)

    def _drop_answers(self, name: str, distractors: dict[str, list[ListedImage]]) -> None:
        """Leaves out distractors that show what a query's product is: they would be right answers. And the very photos
        that are asked with: a model that heeds no condition would find nothing else."""
        answers = {self._things.get(product, product) for product in self.complete[name]}
        photos = {s.digest for images in self.complete[name].values() for s in images if s.type != SIMPLE}
        kept = []
        for image in distractors[name]:
            product = image.product_id
            if self._things.get(product, product) in answers:
                self.skips.add("distractor that shows the product of a query", image.where)
            elif image.digest in photos:
                self.skips.add("distractor that is the photo of a query", image.where)
            else:
                kept.append(image)
        distractors[name] = kept

    def categories(self) -> dict[str, dict[str, int]]:
        """Category -> split -> complete products, sorted by category. Products stand under their first SIMPLE image's.

        Raises:
            ValueError: a category that the command line would take for a flag.
        """
        names = {image.category for split in self.complete.values() for images in split.values() for image in images}
        counts = {name: {split: 0 for split in self.complete} for name in sorted(names - {None})}
        for split, products in self.complete.items():
            for first, *_ in products.values():
                if first.category is not None:
                    counts[first.category][split] += 1
        if flags := [name for name in counts if name.startswith("-")]:
            raise ValueError(f"category {flags[0]!r} begins with a dash, like a flag; give it another name")
        return counts

    def report(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"products": dict(self.products), **self.shared.report()}
        parts |= self.mixed.report("products whose rows name")
        if train := self.complete[TRAIN]:
            parts[TRAIN] = {"products": len(train), "images": sum(map(len, train.values()))}
        unused = 0
        for name in SETS:
            single, borrowed = len(self.distractors[name]), len(self.borrowed[name])
            if queries := len(self.complete[name]):
                parts[name] = {"queries": queries, "distractors": single + borrowed}
                if borrowed:
                    parts[name]["of them products of the other test set"] = borrowed
                if self.conditioned:
                    parts[name] |= self._unjoined(name)
            else:
                unused += single
        if unused:
            parts["distractors without queries, not used"] = unused
        return parts

    def _unjoined(self, name: str) -> dict[str, Any]:
        asked = Counter(images[0].category for images in self.complete[name].values())
        return unjoined_categories(asked, Counter(s.category for s in self.distractors[name] + self.borrowed[name]))


def _simple(images: list[ListedImage]) -> list[ListedImage]:
    return [image for image in images if image.type == SIMPLE]
