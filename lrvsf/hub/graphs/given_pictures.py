"""Pictures that somebody names, as files or folders of them, for what is decided by looking at a few."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lrvsf.data.folders import files_below
from lrvsf.data.foreign.picture_files import NO_SUFFIX, SUFFIXES, read_file
from lrvsf.data.images import BadImage, decode_image
from lrvsf.report import Ledger
from processing_condvit import pad_and_resize

MOST = 64  # pictures that are looked at, spread over all that are named; not tuned


def named_pictures(places: list[Path]) -> tuple[list[Path], Ledger]:
    """The files that are named, those of folders by path, and what of the folders is passed over."""
    files, passed_over = [], Ledger()
    for place in places:
        below = [place]
        if place.is_dir():
            below = sorted(place / path for path in files_below(place, passed_over.add))
        for path in below:
            if path.suffix.lower() in SUFFIXES:
                files.append(path)
            else:
                passed_over.add(NO_SUFFIX, str(path))
    return files, passed_over


def read_pictures(places: list[Path], size: int) -> tuple[np.ndarray, Ledger]:
    """(N, 3, size, size) uint8 of at most MOST pictures, and what was left out.

    Raises ValueError: there is none that can be read.
    """
    files, left_out = named_pictures(places)
    pictures = []
    for path in (files[place] for place in np.linspace(0, len(files) - 1, min(MOST, len(files))).round().astype(int)):
        try:
            image = decode_image(read_file(str(path), path.parent))
        except BadImage as error:
            left_out.add(error.reason, str(path))
            continue
        pictures.append(np.asarray(pad_and_resize(image, size)).transpose(2, 0, 1))
    if not pictures:
        why = ", ".join(f"{count} for {reason!r}" for reason, count in left_out.table().items()) or "there is no file"
        raise ValueError(f"{' '.join(map(str, places))}: no picture can be read ({why}). Give some that can.")
    return np.stack(pictures), left_out
