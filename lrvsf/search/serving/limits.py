"""What a service puts up with from a client, and how it refuses the rest: a status and one whole sentence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What bounds a request, and all requests together. None of the numbers is tuned but `batch`.

    Memory is bounded by `waiting` bodies and one picture for each thread that decodes.

    Attributes:
        body: bytes of a request.
        pixels: of a picture; a telephone takes 12 to 50 million.
        images: in one request to /embed.
        conditions: in one request, names or texts.
        views: of each picture; each is one row more for the model under each condition.
        letters: of a condition, and of an id; two or three sentences.
        k: hits under each condition.
        waiting: requests that are being answered or wait for it; the next one is sent away with 429.
        seconds: from a request's first byte to its answer; a slower one gets 408 or 504.
        batch: rows that the model embeds at once; on two cores 8 of a B/32 are as quick a row as 32.
    """

    body: int = 16 * 2**20
    pixels: int = 50_000_000
    images: int = 16
    conditions: int = 32
    views: int = 4
    letters: int = 200
    k: int = 200
    waiting: int = 64
    seconds: float = 30.0
    batch: int = 8

    def __post_init__(self) -> None:
        for name in ("waiting", "seconds", "batch"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")


class Refused(Exception):
    """A request that is not answered, with its status and the reason, which the client reads."""

    def __init__(self, status: int, reason: object, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence(str(reason)))
        self.status, self.headers = status, headers or {}


def sentence(text: str) -> str:
    """A reason as one whole sentence: a capital first, a full stop last.

    >>> sentence("k must be 1 or more")
    'K must be 1 or more.'
    """
    text = " ".join(text.split())
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")
