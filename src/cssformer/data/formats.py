"""What Pillow gets wrong, or does not tell, of TIFF, BMP and WebP files."""

import ctypes
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

# JPEG (old and new), JPEG 2000 (three ways), JPEG of DNG, WebP, JPEG XL.
_LOSSY_TIFF = {6, 7, 33003, 33005, 34712, 34892, 50001, 50002}
_DEFLATE = {8, 32946}
_COLOURS, _NODATA = 262, 42113
# The tags of what a page tells, and what they are where they are missing.
_TAGS = {
    "bands": (277, 1),
    "bits": (258, 1),
    "kind": (339, 1),
    "compression": (259, 1),
    "colours": (_COLOURS, 1),
    "layout": (284, 1),
    "extra": (338, 0),
    "fill_order": (266, 1),
    "width": (256, 0),
    "height": (257, 0),
    "orientation": (274, 1),
}
# Offsets and sizes of what is compressed, by strips and by tiles.
_PIECES = ((273, 279), (324, 325))
# Transforms and control points, keys of GeoTIFF, GDAL's nodata, RPCs.
_PLACE = (33550, 33922, 34264, 34735, 42113, 50844)
# How many bands there are without alpha: white or black is zero, RGB, palette, CMYK, YCbCr, Lab.
_OWN_BANDS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}
_DRIVERS = ["GTiff", "PNG", "JPEG", "JP2OpenJPEG", "BMP"]
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


# libtiff writes errors to standard error, beside our sentence. Pillow has no switch for that, its copy of libtiff has.
with suppress(OSError, AttributeError):
    ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


@dataclass(frozen=True)
class TiffPage:
    """What a page of a TIFF says of its pixels.

    Attributes:
        bands: how many it has.
        bits, kind: of a value, and whether it is unsigned (1), signed (2) or a floating-point number (3).
        compression: TIFF's number of it.
        colours: what the values mean: white (0) or black (1) is zero, RGB (2), a palette (3) and so on.
        layout: pixel by pixel (1) or each band whole before the next (2).
        extra: what the band beyond grey or RGB is: unknown (0), alpha that colours are multiplied by (1), alpha (2).
        fill_order: whether the bits of compressed bytes begin with the highest (1) or the lowest (2).
        width, height: as stored, in pixels.
        orientation: as EXIF's, 1 to 8.
        is_big_endian_big: whether it is in a BigTIFF whose numbers begin with the highest byte.
        is_georeferenced: whether it tells its place on the Earth, or what stands for no data.
        nodata: what stands for no data in a GeoTIFF.
        pieces: offset and size in the file of each strip or tile.
    """

    bands: int
    bits: int
    kind: int
    compression: int
    colours: int
    layout: int
    extra: int
    fill_order: int
    width: int
    height: int
    orientation: int
    is_big_endian_big: bool
    is_georeferenced: bool
    nodata: float | None
    pieces: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        kind = {1: "", 2: " signed", 3: " floating-point"}.get(self.kind, " complex")
        grey = " grey" if self.colours in (0, 1) else ""
        apart = " stored one after the other" if self.layout == 2 and self.bands > 1 else ""
        return f"{self.bands} band{'s' * (self.bands > 1)} of {self.bits}-bit{kind}{grey} values{apart}"

    @property
    def white_is_zero(self) -> bool:
        return self.colours == 0

    @property
    def is_picture(self) -> bool:
        """Whether it is grey or RGB, perhaps with alpha, of a form that is read."""
        more = self.bands - _OWN_BANDS.get(self.colours, 0)
        # Grey with a band of unknown meaning would be read without it, with alpha of 16 bits not at all.
        known = more == 0 or (more == 1 and (self.colours == 2 or (self.bits <= 8 and self.extra > 0)))
        together = self.layout == 1 or self.bands == 1 or (self.bits <= 8 and (more == 0 or self.extra == 2))
        depth = self.bits in (1, 2, 4, 8, 16) or (self.bits == 12 and self.bands == 1)
        whole_bytes = self.bits in (8, 16) and self.colours != 3
        return (
            self.kind == 1
            and depth
            and known
            and (together or self._is_planar)
            and (whole_bytes or not self.is_big_endian_big)
        )

    @property
    def needs_gdal(self) -> bool:
        """Whether Pillow reads nothing, or wrong pixels."""
        return self.is_big_endian_big or self._is_planar

    @property
    def _is_planar(self) -> bool:
        """Whether it is RGB of 16 bits, each band whole before the next: Pillow and OpenCV read wrong pixels."""
        return self.layout == 2 and self.colours == 2 and self.bits == 16 and self.bands in (3, 4)


def tiff_pages(data: bytes) -> list[TiffPage]:
    """The pages of a TIFF, overviews and transparency pages left out; none for other formats."""
    return list(_pages(io.BytesIO(data)))


def tiff_head(path: Path) -> TiffPage | None:
    """The first page of a TIFF, by its header alone; None for other files, and where it cannot be read."""
    with suppress(Exception):
        if path.is_file():
            with path.open("rb") as file:
                return next(_pages(file), None)
    return None


def _pages(file: BinaryIO) -> Iterator[TiffPage]:
    head = file.read(16)
    if head[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return
    tags, seen, first = ImageFileDirectory_v2(head if head[:4] == b"II+\0" else head[:8]), set[int](), True
    if head[:4] == b"MM\0+":
        # Pillow 13.0 takes the header for that of a plain TIFF.
        tags._bigtiff, tags.next = True, int.from_bytes(head[8:], "big")
    while tags.next and tags.next not in seen:
        seen.add(tags.next)
        file.seek(tags.next)
        tags.load(file)
        if not first and tags.get(254, 0) & 0b101:
            continue
        first = False
        page = {name: _number(tags, tag, default) for name, (tag, default) in _TAGS.items()}
        pieces = (zip(tags.get(offset, ()), tags.get(size, ()), strict=False) for offset, size in _PIECES)
        nodata: float | None = None
        with suppress(ValueError):
            nodata = float(str(tags[_NODATA]).strip(" \0")) if _NODATA in tags else None
        page["orientation"] = page["orientation"] if page["orientation"] in range(1, 9) else 1
        yield TiffPage(
            **page,
            is_big_endian_big=head[:4] == b"MM\0+",
            nodata=nodata,
            is_georeferenced=any(tag in tags for tag in _PLACE),
            pieces=tuple(chain.from_iterable(pieces)),
        )


def require_checksums(data: bytes, page: TiffPage) -> None:
    """Raise ValueError if a strip or tile of a page compressed by deflate differs from its checksum, or holds too much.

    libtiff does not look, so that one flipped byte may change half of the pixels.
    """
    if page.compression not in _DEFLATE:
        return
    if page.width * page.height > 2 * (Image.MAX_IMAGE_PIXELS or np.inf):
        raise Image.DecompressionBombError
    # Tiles may reach beyond the picture.
    most = 4 * page.width * page.height * page.bands * page.bits // 8 + 2**26
    for offset, size in page.pieces:
        rest = data[offset : offset + size]
        rest = rest.translate(_REVERSED) if page.fill_order == 2 else rest
        stream = zlib.decompressobj()
        while rest and not stream.eof:
            most -= len(stream.decompress(rest, 2**24))
            rest = stream.unconsumed_tail
            if most < 0:
                raise ValueError("its strips or tiles hold more than its pixels")
        # A size of 0 stands for a piece without values.
        if size and not stream.eof:
            raise ValueError("a strip or tile ends too early")


def _number(tags: ImageFileDirectory_v2, tag: int, default: int) -> int:
    """A tag's value; of several, one for each band, the largest."""
    value = tags.get(tag, default)
    return max(map(int, value)) if isinstance(value, tuple) else int(value)


def read_bands(data: bytes) -> tuple[NDArray[Any], tuple[float | None, ...]]:
    """The bands (N, H, W) of a file's first page as stored, by GDAL, and what stands for no data in each.

    Raises:
        ModuleNotFoundError: rasterio is not installed.
        DecompressionBombError: it has over twice Pillow's ``MAX_IMAGE_PIXELS``.
    """
    from rasterio.io import MemoryFile

    silence_missing_places()
    # Other drivers may read other files.
    with MemoryFile(data) as file, file.open(driver=_DRIVERS) as source:
        if source.width * source.height > 2 * (Image.MAX_IMAGE_PIXELS or np.inf):
            raise Image.DecompressionBombError
        return source.read(), source.nodatavals


def silence_missing_places() -> None:
    """Leave out rasterio's warning of files without a place; threads would undo each other's ``catch_warnings``."""
    from rasterio.errors import NotGeoreferencedWarning

    warnings.simplefilter("ignore", NotGeoreferencedWarning, append=True)


def turned(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn stored pixels (H, W, ...) upright as EXIF's ``orientation``, 1 to 8, says."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def as_stored(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Undo :func:`turned`."""
    return turned(pixels, {6: 8, 8: 6}.get(orientation, orientation))


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
