"""Products that share a picture: one photo under several ids, for sizes, colours, or listings of one thing.

Products that share any picture belong to one split: what was trained on must not be asked about. They show one thing,
as far as anybody can tell, if they share a SIMPLE picture, or a scene and the category that is asked about it; by two
categories, one scene is a fair question about two things. `marks` puts that into numbers: equal numbers, one thing.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable
from typing import Any

import numpy as np

from lrvsf.data.schema import SIMPLE

EXAMPLES = 3
NAMED = 4  # products of an example


def marks(digest: bytes, kind: str, condition: object) -> list[int]:
    """The numbers of a picture: products with one in common show one thing.

    Args:
        digest: SHA-256 of the picture's file.
        kind: its type.
        condition: what the product is asked for by: a category, its number, or None.

    Returns:
        numbers from 1 to 2**63 - 1: enough of them that no two pictures share one by chance.
    """
    # The picture with what it is asked by; a SIMPLE one also alone, as it shows one thing whatever it is filed under.
    names = [digest + str(condition).encode()] + [digest] * (kind == SIMPLE)
    # torch's int64 is signed, so 63 bits; 0 fills the places of products with fewer pictures (`PairMaker.batch`).
    return [int.from_bytes(hashlib.sha256(name).digest()[:8], "big") >> 1 or 1 for name in names]


class SharedPictures:
    """Collects the pictures of products, and finds the groups that hang together by shared ones.

    It holds 12 bytes a picture, so that millions fit.

    Attributes:
        products: the names that were added, in their order.
    """

    def __init__(self) -> None:
        self.products: list[str] = []
        self._numbers = array("Q")
        self._owners = array("I")

    def add(self, product: str, numbers: Iterable[int]) -> None:
        """Adds one product with numbers of its pictures, below 2**64."""
        for number in numbers:
            self._numbers.append(number)
            self._owners.append(len(self.products))
        self.products.append(product)

    def groups(self) -> list[list[str]]:
        """The groups of two products or more, and their products, in the order of adding."""
        parents = list(range(len(self.products)))  # union-find: a product's group is where its chain of parents ends

        def root(index: int) -> int:
            while parents[index] != index:
                parents[index] = index = parents[parents[index]]  # halves the chain for the next one who walks it
            return index

        for one, other in self._pairs():
            first, second = sorted((root(one), root(other)))  # to the one added first, so that the order is kept
            parents[second] = first
        members: dict[int, list[str]] = {}
        for index, product in enumerate(self.products):
            members.setdefault(root(index), []).append(product)
        return [group for group in members.values() if len(group) > 1]

    def _pairs(self) -> list[tuple[int, int]]:
        """Pairs of products, enough to connect all that share a picture."""
        numbers, owners = np.array(self._numbers, np.uint64), np.array(self._owners, np.int64)
        # Neighbours among the sorted numbers connect all of a number: no table of numbers is held.
        order = np.argsort(numbers, kind="stable")
        same = np.flatnonzero(numbers[order][1:] == numbers[order][:-1])
        return list(zip(owners[order[same]].tolist(), owners[order[same + 1]].tolist(), strict=True))

    def also_in(self, other: SharedPictures) -> list[int]:
        """The numbers, in the order of adding, of the products here of which some picture is there too."""
        numbers, owners = np.array(self._numbers, np.uint64), np.array(self._owners, np.int64)
        return np.unique(owners[np.isin(numbers, np.array(other._numbers, np.uint64))]).tolist()

    def report(self) -> dict[str, Any]:
        """One part of a report; empty if no product shares a picture."""
        groups = sorted(self.groups(), key=len, reverse=True)
        if not groups:
            return {}
        shown = (", ".join(group[:NAMED]) + ", ..." * (len(group) > NAMED) for group in groups[:EXAMPLES])
        numbers = {"products": sum(map(len, groups)), "groups": len(groups), "in the largest group": len(groups[0])}
        return {"products that share a picture": {**numbers, "such as": "; ".join(shown)}}


def number_of(digest: bytes | str) -> int:
    """A picture's number, from the SHA-256 of its file as bytes or as text."""
    name = digest if isinstance(digest, bytes) else digest.encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")
