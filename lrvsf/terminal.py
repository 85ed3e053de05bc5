"""Output that no terminal refuses: one of ASCII gets +- for \u00b1, and \\u795e for what else it cannot show."""

from __future__ import annotations

import codecs
import io
import sys

PLAIN = {"\u00b1": "+-", "\u2013": "-", "\u2026": "..."}


def never_refuse() -> None:
    """From here on stdout writes out what its encoding lacks, in place of an exception at the end of a long run."""
    codecs.register_error("plainly", _plainly)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="plainly")


def _plainly(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    # `error` is of a run of characters: each by itself, as some have a plain form and others only a number.
    return "".join(PLAIN.get(character) or ascii(character)[1:-1] for character in missing), error.end
