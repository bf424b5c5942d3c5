"""What the files of masks hold: their values, their palettes, and signs that they were smoothed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cssformer.data.files import read_bytes
from cssformer.data.image_io import decode_mask
from cssformer.prepare.class_file import Colour
from cssformer.utils.errors import UserError

MOST_COLOURS = 65536
"""Of one mask; a picture with more is no mask, and remembering the colours of many would fill the memory."""
TRANSPARENT = 1 << 24
"""The value of transparent pixels, beyond all ids and colours."""


@dataclass(frozen=True)
class MaskStats:
    """What one mask file holds.

    Attributes:
        path: of the file.
        ids: of its opaque pixels; None if they are colours.
        colours: of its opaque pixels, packed as 0xRRGGBB.
        palette: each id's colour in a palette.
        blended: those ids or colours most of whose pixels are unlike all their neighbours, or lie between those left
            and right or above and below; and how many pixels they have.
        transparent: whether some pixels are transparent.
    """

    path: Path
    ids: frozenset[int] | None
    colours: frozenset[int]
    palette: dict[int, Colour] = field(default_factory=dict)
    blended: dict[int, int] = field(default_factory=dict)
    transparent: bool = False

    def values(self, as_colours: bool) -> frozenset[int]:
        """The colours of its opaque pixels, or their ids, of which a mask of colours has none."""
        return self.colours if as_colours else self.ids or frozenset()


def survey(path: Path) -> MaskStats:
    """Read a mask and list its values.

    Raises:
        UserError: the file is missing, truncated, damaged, a JPEG, or of another form.
    """
    mask = decode_mask(read_bytes(path), path)
    see_through = mask.transparent is not None
    if mask.pixels.ndim == 3:
        values = mask.colours(path, TRANSPARENT)
        colours = values_of(values) - {TRANSPARENT}
        if len(colours) > MOST_COLOURS:
            raise UserError(f"The mask {path} has {len(colours)} colours; it is a photograph, not a mask.")
        if any(value % 0x010101 for value in colours):
            blended = _blended(mask.pixels, values) if len(colours) > 3 else {}
            return MaskStats(path, None, colours, blended=blended, transparent=see_through)
    pixels = mask.ids(path, TRANSPARENT)
    ids = values_of(pixels) - {TRANSPARENT}
    if mask.palette is not None:
        rows = {index: unpacked(packed(mask.palette[index])) for index in ids if index < len(mask.palette)}
        return MaskStats(path, ids, frozenset(map(packed, rows.values())), rows, transparent=see_through)
    grey = frozenset(value * 0x010101 for value in ids if value < 256)
    # Only ids with gaps can be those of smoothed masks.
    sparse = len(ids) > 2 and max(ids - {max(ids)}) >= 2 * len(ids)
    blended = _blended(pixels[..., None], pixels) if sparse else {}
    return MaskStats(path, ids, grey, blended=blended, transparent=see_through)


def _blended(channels: NDArray[Any], values: NDArray[Any]) -> dict[int, int]:
    """See :class:`MaskStats`; of ``channels`` (H, W, C), whose pixels have the ``values`` (H, W)."""
    between, alone = np.zeros(values.shape, bool), np.ones(values.shape, bool)
    for view, flat, marked, apart in (
        (channels, values, between, alone),
        (channels.swapaxes(0, 1), values.T, between.T, alone.T),
    ):
        before, middle, after = view[:-2], view[1:-1], view[2:]
        marked[1:-1] |= (((before < middle) & (middle < after)) | ((before > middle) & (middle > after))).any(-1)
        same = flat[1:] == flat[:-1]
        apart[1:] &= ~same
        apart[:-1] &= ~same
    # Compression leaves specks on even ground; where all is specks, they were drawn.
    marks = np.unique(values[between | alone if 4 * alone.sum() < alone.size else between], return_counts=True)
    some = dict(zip(*(each.tolist() for each in marks), strict=True))
    every = zip(*(each.tolist() for each in np.unique(values, return_counts=True)), strict=True)
    return {value: number for value, number in every if 2 * some.get(value, 0) > number}


def values_of(array: NDArray[Any]) -> frozenset[int]:
    """The different values of an array."""
    flat = array.ravel()
    # Masks have long runs; only where a value differs from the one before can it be new.
    starts = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    return frozenset(np.unique(np.append(flat[starts], flat[:1])).tolist())


def packed(colour: Sequence[int]) -> int:
    """A colour as 0xRRGGBB."""
    return int(colour[0]) << 16 | int(colour[1]) << 8 | int(colour[2])


def unpacked(value: int) -> Colour:
    """The inverse of :func:`packed`."""
    return value >> 16, value >> 8 & 255, value & 255
