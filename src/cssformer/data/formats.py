"""What Pillow gets wrong, or does not tell, of TIFF, BMP and WebP files."""

import io
import os
import struct
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import ImageFileDirectory_v2

# JPEG (old and new), JPEG 2000 (three ways), JPEG of DNG, WebP, JPEG XL.
_LOSSY_TIFF = {6, 7, 33003, 33005, 34712, 34892, 50001, 50002}
_COLOURS = 262


@dataclass(frozen=True)
class TiffPage:
    """What a page of a TIFF says of its pixels."""

    bands: int
    #: Of a value, and whether it is unsigned (1), signed (2) or a floating-point number (3).
    bits: int
    kind: int
    compression: int
    white_is_zero: bool
    #: Each band is stored whole before the next, not pixel by pixel.
    apart: bool
    #: What the first band beyond grey or RGB is: 0 unknown, 1 alpha that colours are multiplied by, 2 alpha.
    extra: int

    def __str__(self) -> str:
        kind = {1: "", 2: " signed", 3: " floating-point"}.get(self.kind, " complex")
        apart = " stored one after the other" if self.apart and self.bands > 1 else ""
        return f"{self.bands} band{'s' * (self.bands > 1)} of {self.bits}-bit{kind} values{apart}"

    @property
    def is_picture(self) -> bool:
        """Whether it is grey or RGB, perhaps with alpha, of a form that Pillow reads."""
        known = self.bands in (1, 3, 4) or (self.bands == 2 and self.bits <= 8 and self.extra in (1, 2))
        # Of bands that stand one after the other Pillow reads wrong pixels where they have 16 bits.
        together = not self.apart or self.bands == 1 or (self.bits <= 8 and (self.bands == 3 or self.extra == 2))
        return known and together and self.bits <= 16 and self.kind == 1


_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def quiet_libtiff() -> Iterator[None]:
    """Keep libtiff's own messages off standard error; Pillow has no other way."""
    with _ONE_AT_A_TIME, tempfile.TemporaryFile() as nowhere:
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def tiff_pages(data: bytes) -> list[TiffPage]:
    """The pages of a TIFF, overviews and transparency pages left out; none for other formats."""
    if data[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return []
    tags = ImageFileDirectory_v2(data[:16] if b"+" in data[:4] else data[:8])
    file, seen, pages = io.BytesIO(data), set[int](), list[TiffPage]()
    while tags.next and tags.next not in seen:
        seen.add(tags.next)
        file.seek(tags.next)
        tags.load(file)
        if pages and tags.get(254, 0) & 0b101:
            continue
        bits, kind, extra = max(tags.get(258, (1,))), tags.get(339, (1,))[0], tags.get(338, (0,))[0]
        white_is_zero, apart = tags.get(_COLOURS) == 0, tags.get(284) == 2
        pages.append(TiffPage(tags.get(277, 1), bits, kind, tags.get(259, 1), white_is_zero, apart, extra))
    return pages


def black_is_zero(data: bytes) -> bytes:
    """The TIFF with another word for what its values mean, because Pillow inverts white-is-zero, but not always."""
    order, big = "<" if data[:1] == b"I" else ">", b"+" in data[:4]
    (place,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, place)
    changed = bytearray(data)
    for number in range(count):
        entry = place + (8 + 20 * number if big else 2 + 12 * number)
        if struct.unpack_from(order + "H", data, entry)[0] == _COLOURS:
            struct.pack_into(order + "H", changed, entry + (12 if big else 8), 1)
    return bytes(changed)


def is_lossy(data: bytes, page: TiffPage | None) -> bool:
    """Tell whether a WebP or a TIFF, whose first page is ``page``, is compressed with loss."""
    if data[8:12] != b"WEBP":
        return page is not None and page.compression in _LOSSY_TIFF
    place = 12
    while place < len(data) and data[place : place + 4] not in (b"VP8 ", b"VP8L"):
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        place += 8 + size + size % 2
    return data[place : place + 4] == b"VP8 "


def bmp_indices(data: bytes) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
    """Indices (H, W) and palette (n, 3) of an uncompressed BMP of up to 8 bits a pixel; None for others.

    Pillow takes each byte for eight pixels where the palette is black and white.
    """
    offset, header = (int.from_bytes(data[at : at + 4], "little") for at in (10, 14))
    old = header == 12
    size, at = (2, 24) if old else (4, 28)
    width, height = (int.from_bytes(data[18 + i * size :][:size], "little", signed=not old) for i in (0, 1))
    bits = data[at]
    if bits not in (1, 4, 8) or (not old and data[30] != 0):
        return None
    stride = (width * bits + 31) // 32 * 4
    rows = np.frombuffer(data, np.uint8, stride * abs(height), offset).reshape(abs(height), stride)
    values = np.unpackbits(rows, axis=1).reshape(abs(height), -1, bits)[:, :width]
    indices = np.packbits(values, axis=2)[..., 0] >> (8 - bits)
    entry, count = (3, 2**bits) if old else (4, int.from_bytes(data[46:50], "little") or 2**bits)
    palette = np.frombuffer(data, np.uint8, entry * count, 14 + header).reshape(-1, entry)[:, 2::-1]
    return np.ascontiguousarray(indices[::-1] if height > 0 else indices), palette
