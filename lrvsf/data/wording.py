"""How a training pair asks in words: by a caption of its product's picture, by the name of the category, or by both.

In the data path a text is its hash. Whoever makes the batches looks up its sentence embedding (a caption store does),
so that neither the model nor the trainer meets a tokenizer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

SOURCES = ("captions", "categories")


def text_hash(text: str) -> int:
    """The number of a text, below 2**64. Of a million texts two share one with a chance of 3 in 100 million."""
    # Not hash(): Python salts it, and the number is kept on the disk.
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


class Random(Protocol):
    """What of numpy's Generator is drawn from; a command line is refused before numpy is imported."""

    def random(self) -> float: ...
    def integers(self, high: int) -> int: ...


@dataclass(frozen=True)
class Wording:
    """Draws a text for a picture.

    Args:
        caption_share: the share, 0..1, of pairs that ask by a caption; the others ask by the category's text. A picture
            that lacks the one is asked for by the other.
        template: the text of a category, "{}" for its name.
    """

    caption_share: float = 1.0
    template: str = "{}"

    @classmethod
    def parse(cls, sources: Sequence[str] | None, template: str = "{}") -> Wording:
        """From words such as captions:0.7 categories:0.3; without numbers, sources have equal shares.

        Raises ValueError: an unknown source, one that is named twice, a share that is none.
        """
        shares: dict[str, float] = {}
        for word in sources or SOURCES[:1]:
            name, colon, number = word.partition(":")
            if name not in SOURCES or name in shares:
                again = "named twice" if name in shares else f"unknown; there are {' and '.join(SOURCES)}"
                raise ValueError(f"text_from={word!r}: {name!r} is {again}")
            try:
                shares[name] = float(number) if colon else 1.0
            except ValueError:
                shares[name] = -1.0
            if not 0 < shares[name] < 1e6:  # not a number is in no range
                raise ValueError(f"text_from={word!r}: a share is a number above 0, as in {name}:0.5")
        return cls(shares.get(SOURCES[0], 0.0) / sum(shares.values()), template)

    def captions(self, image: dict[str, Any]) -> list[str]:
        """The captions of a product row's image that say something."""
        return [text for text in image.get("captions") or () if text and text.strip()]

    def names(self, image: dict[str, Any]) -> list[str]:
        """The text of the image's category; none where it has none."""
        name = image["category"]
        return [self.template.format(name)] if name and name.strip() else []

    def draw(self, image: dict[str, Any], rng: Random) -> str:
        """A text for an image that has one."""
        captions, names = self.captions(image), self.names(image)
        texts = (captions or names) if rng.random() < self.caption_share else (names or captions)
        return texts[int(rng.integers(len(texts)))]

    def drawable(self, image: dict[str, Any]) -> list[str]:
        """All texts that `draw` may give; none for an image that cannot be asked for."""
        captions, names = self.captions(image), self.names(image)
        said = captions if self.caption_share > 0 or not names else []
        return said + (names if self.caption_share < 1 or not captions else [])
