"""What is worth telling of picture files: what is read, but perhaps not as people expect."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class PictureFacts(NamedTuple):
    """What is worth telling of a picture's file.

    Attributes:
        orientation: the EXIF orientation by which the file's pixels were turned upright, 1 to 8; 1 is upright already.
        pages: how many pages or frames it has; only the first is read.
        largest: a value of 0 to 65535 that no pixel of a picture of 16 bits exceeds, at most 255 too high; None for 8
            bits.
    """

    orientation: int
    pages: int
    largest: int | None


def notes(facts: Mapping[Any, PictureFacts]) -> list[str]:
    """What is to be told of pictures, path -> facts, that are read, but perhaps not as people expect."""
    found = []
    several = [path for path, each in facts.items() if each.pages > 1]
    if several:
        found.append(
            f"{len(several)} {'picture has' if len(several) == 1 else 'pictures have'} several pages or frames, of "
            f"which the first is read: {several[0]} is the first."
        )
    wide = {path: each.largest for path, each in facts.items() if each.largest is not None}
    dark = [path for path, largest in wide.items() if largest < 32768]
    # Single pictures may be of the night.
    if dark and 2 * len(dark) >= len(wide):
        some = "The" if len(dark) == len(wide) else f"{len(dark)} of {len(wide)}"
        found.append(
            f"{some} pictures of 16 bits use no value above {max(wide[path] for path in dark)} of 65535, so they are "
            f"read nearly black, {dark[0]} for one; multiply their values or save them with 8 bits, here and for "
            "prediction alike."
        )
    return found
