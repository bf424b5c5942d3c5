"""Pictures and masks as files: the one place that decodes and encodes them.

Everything is read upright, as viewers show it: turned as its EXIF orientation says. Pillow decodes all formats, GDAL
the TIFFs that Pillow cannot, and those of :mod:`cssformer.data.bands`.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from cssformer.data.channels import from_bands
from cssformer.data.files import read_bytes, require_file, require_whole
from cssformer.data.formats import (
    TiffPage,
    black_is_zero,
    bmp_indices,
    is_lossy,
    read_bands,
    require_checksums,
    tiff_pages,
    turned,
)
from cssformer.data.mask import Mask
from cssformer.data.picture_facts import PictureFacts
from cssformer.utils.atomic import atomic_write
from cssformer.utils.errors import UserError

_FORMATS = ["JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "JPEG2000", "PPM"]
_FORMATS += ["AVIF"] if find_spec("PIL.AvifImagePlugin") else []
_WITH_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")
_MASK_FORMATS = ("PNG", "TIFF", "BMP", "GIF", "WEBP")


class Picture(NamedTuple):
    """A picture, RGB uint8 (H, W, 3), upright, and the facts of its file."""

    pixels: NDArray[np.uint8]
    facts: PictureFacts


def decode_image(data: bytes, path: Path) -> Picture:
    """Decode a picture; transparency is dropped, 16 bits become 8, and of several pages the first is read.

    Raises:
        UserError: no picture, damaged, truncated, too large, or of a kind that is neither grey nor colour of up to 16
            bits; ``path`` is named.
    """
    with readable(data, path) as pages:
        page = pages[0] if pages else None
        _require_picture(page, path)
        if page and page.needs_gdal:
            pixels = turned(from_bands(read_bands(data)[0], None).pixels, page.orientation)
            orientation, bits, count = page.orientation, page.bits, len(pages)
        else:
            with _opened(data, pages) as picture:
                orientation, bits, count = (
                    _orientation(picture, data),
                    _bits(data, picture, page),
                    _count(picture, pages),
                )
                indexed = bmp_indices(data) if picture.format == "BMP" else None
                pixels = to_rgb(picture, bits) if indexed is None else indexed[1].take(indexed[0], axis=0, mode="clip")
            pixels = pixels if page else turned(pixels, orientation)
        if page and page.white_is_zero:
            pixels = 255 - pixels
        return Picture(pixels, PictureFacts(orientation, count, int(pixels.max()) * 256 + 255 if bits == 16 else None))


def inspect_image(data: bytes, path: Path) -> tuple[tuple[int, int], PictureFacts]:
    """The upright height and width of a picture and its facts; raises as :func:`decode_image`, but is faster."""
    with readable(data, path) as pages, _opened(data, pages) as picture:
        if picture.format in ("JPEG", "PNG") and _orientation(picture, data) == 1 and _bits(data, picture, None) <= 8:
            # All is decoded, to see that it is sound, but a JPEG without its colours, and nothing is converted.
            picture.draft("L", picture.size)
            picture.load()
            return (picture.height, picture.width), PictureFacts(1, _count(picture, []), None)
    pixels, facts = decode_image(data, path)
    return (pixels.shape[0], pixels.shape[1]), facts


def to_rgb(picture: Image.Image, bits: int = 16) -> NDArray[np.uint8]:
    """The pixels of a Pillow image as RGB uint8 (H, W, 3): transparency dropped, the highest 8 of ``bits`` bits kept.

    Args:
        picture: of any mode but F; grey values of more than 8 bits are in the modes I and I;16.
        bits: of these grey values.

    Raises:
        UserError: the values are floating-point numbers, or beyond ``bits``.
    """
    if picture.mode == "P":
        return _palette(picture).take(np.array(picture), axis=0, mode="clip")
    if picture.mode != "F" and not picture.mode.startswith("I"):
        return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))
    grey = np.array(picture)
    if grey.dtype.kind == "f" or not 0 <= grey.min() <= grey.max() < 1 << bits:
        raise UserError(
            f"A grey picture has {'floating-point ' * (grey.dtype.kind == 'f')}values from {grey.min()} to "
            f"{grey.max()}; give 8 or 16 bits."
        )
    return np.repeat((grey >> (bits - 8)).astype(np.uint8)[..., None], 3, axis=-1)


def _palette(picture: Image.Image) -> NDArray[np.uint8]:
    return np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)


def read_size(path: Path) -> tuple[int, int]:
    """Read the width and height of a picture, upright; mostly from the file's header alone.

    Raises:
        UserError: as :func:`decode_image`, as far as the header tells.
    """
    require_file(path)
    with suppress(Exception), Image.open(path, formats=_FORMATS) as picture:
        if _orientation(picture, b"eXIf" if "exif" in picture.info else b"") < 5:
            return picture.size
    data = read_bytes(path)
    with readable(data, path) as pages:
        if pages:
            width, height = pages[0].width, pages[0].height
            return (width, height) if pages[0].orientation < 5 else (height, width)
    height, width, _ = decode_image(data, path).pixels.shape
    return width, height


def read_orientation(data: bytes) -> int:
    """The EXIF orientation of a picture or mask, 1 to 8; 1 where the data name none."""
    if b"eXIf" not in data and data[:4] == b"\x89PNG":
        return 1
    with suppress(Exception), Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
        return _orientation(picture, data)
    return 1


def decode_mask(data: bytes, path: Path) -> Mask:
    """Decode a mask to the values that its file stores.

    Raises:
        UserError: no picture, damaged, truncated or too large, of a lossy format, of several pages, half transparent
            somewhere, or of values that are no ids from 0 to 65535 and no colours of 8 bits; ``path`` is named.
    """
    with readable(data, path) as pages, _opened(data, pages) as picture:
        page = pages[0] if pages else None
        if picture.format == "PPM":
            raise UserError(f"The mask {path} is a PGM or PPM, whose values are not read as stored; save masks as PNG.")
        if picture.format not in _MASK_FORMATS or is_lossy(data, page):
            kind = picture.format if picture.format not in _MASK_FORMATS else f"lossy {picture.format}"
            raise UserError(
                f"The mask {path} is a {'JPEG' if kind == 'MPO' else kind}, whose compression changes the ids; "
                "save masks as PNG."
            )
        if (count := _count(picture, pages)) > 1:
            raise UserError(f"The mask {path} has {count} pages or frames; give each as a file of its own.")
        orientation = _orientation(picture, data)
        pixels, palette, clear = _mask_pixels(picture, data, page, path)
        clear = _transparent(picture, path) if clear is None else clear
    if picture.format != "TIFF":
        pixels, clear = turned(pixels, orientation), None if clear is None else turned(clear, orientation)
    return Mask(pixels, palette, orientation, clear)


def read_ids(data: bytes, path: Path) -> NDArray[Any]:
    """Decode a mask to its ids, uint8 or uint16 (H, W); raises as :func:`decode_mask` and :meth:`Mask.ids` do."""
    return decode_mask(data, path).ids(path)


def encode_png(pixels: NDArray[Any]) -> bytes:
    """Encode ids or grey values, uint8 or uint16 (H, W), or a picture, RGB uint8 (H, W, 3), as PNG."""
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", pixels)[1].tobytes()


def write_image(path: Path, pixels: NDArray[np.uint8], note: str = "") -> None:
    """Write a picture, RGB (H, W, 3), grey (H, W) or with alpha (H, W, 2), in the format of the suffix of ``path``.

    Args:
        path: the file.
        pixels: the picture.
        note: kept in a PNG, for :func:`read_note`.

    Raises:
        UserError: the file cannot be written.
    """
    kept = PngInfo()
    kept.add_text("cssformer", note)
    with atomic_write(path, sync=False) as temporary:
        # The fastest level: a few per cent more bytes of a photograph, in a quarter of the time.
        Image.fromarray(pixels).save(temporary, quality=92, compress_level=1, pnginfo=kept if note else None)


def read_note(path: Path) -> str:
    """The note that :func:`write_image` left in a PNG; empty without one."""
    with suppress(Exception), Image.open(path, formats=["PNG"]) as picture:
        return str(picture.info.get("cssformer", ""))
    return ""


def write_label(path: Path, labels: NDArray[Any], colours: Sequence[tuple[int, int, int]]) -> None:
    """Write class indices (H, W) as PNG: 8 bits with the classes' colours as palette, 16 bits grey above 255 classes.

    In 8 bits 255 is transparent.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_write(path, sync=False) as temporary:
        if len(colours) > 255:
            temporary.write_bytes(encode_png(labels.astype(np.uint16)))
            return
        indexed = Image.fromarray(labels.astype(np.uint8))
        # All 256 entries: with fewer, Pillow packs pixels into fewer bits, which some programs misread.
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(colours)] = colours
        indexed.putpalette(palette.tobytes())
        indexed.save(temporary, "PNG", **({"transparency": 255} if (labels == 255).any() else {}))


@contextmanager
def readable(data: bytes, path: Path) -> Iterator[list[TiffPage]]:
    """Each page of a TIFF; whatever goes wrong with the file is a sentence."""
    require_whole(data, path)
    pages: list[TiffPage] = []
    try:
        pages = tiff_pages(data)
        if pages:
            require_checksums(data, pages[0])
        yield pages
    except UserError:
        raise
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise UserError(
            f"{path} cannot be read: it has over {limit} million pixels; cut it into pieces, for instance by GDAL's "
            "gdal_retile.py -ps 8192 8192 -targetDir PIECES FILE."
        ) from None
    except ModuleNotFoundError as error:
        what = pages[0] if pages else "channels"
        raise UserError(f'{path} has {what}; to read it: pip install "cssformer[geo]" ({error.name}).') from None
    except UnidentifiedImageError:
        if data[4:8] == b"ftyp" and b"heic" in data[8:64]:
            raise UserError(f"{path} is HEIC, as phones write it, which is not read; save it as JPEG.") from None
        _require_picture(pages[0] if pages else None, path)
        raise UserError(f"{path} cannot be read as a picture; it is damaged or of another format.") from None
    # Decoders raise errors of every kind for damaged data.
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UserError(f"{path} cannot be read as a picture; it is damaged or of another format: {reason}.") from None


def _opened(data: bytes, pages: list[TiffPage]) -> Image.Image:
    """The picture, not yet decoded."""
    if pages and pages[0].bands > 4:
        raise UnidentifiedImageError
    return Image.open(io.BytesIO(black_is_zero(data) if pages and pages[0].white_is_zero else data), formats=_FORMATS)


def _require_picture(page: TiffPage | None, path: Path) -> None:
    if page and not page.is_picture:
        rgb = " (written with photometric RGB, if these bands are it)" if page.colours == 1 and page.bands > 2 else ""
        raise UserError(f"{path} has {page}; give grey or RGB{rgb} of 8 or 16 bits, with or without alpha.")


def _mask_pixels(
    picture: Image.Image, data: bytes, page: TiffPage | None, path: Path
) -> tuple[NDArray[Any], NDArray[np.uint8] | None, NDArray[np.bool_] | None]:
    """What the file stores: ids or colours, the palette of ids if it has one, and where a GeoTIFF has no data."""
    if picture.format == "BMP" and (indexed := bmp_indices(data)) is not None:
        return *indexed, None
    bits, signed, many = _bits(data, picture, page), page is not None and page.kind == 2, len(picture.getbands()) > 1
    dropped = page is not None and page.bands == 2 and not many
    if picture.mode in ("F", "CMYK", "YCbCr", "LAB") or (many and bits > 8) or dropped:
        what = page or f"pixels of the kind {picture.mode}, of {bits} bits"
        raise UserError(f"The mask {path} has {what}; give ids of up to 16 bits in one band, or RGB colours of 8 bits.")
    if picture.mode in _WITH_ALPHA:
        picture = picture.convert({"L": "L", "P": "P"}.get(picture.mode[0], "RGB"))
    pixels = np.array(picture)
    if picture.mode == "P":
        return pixels, _palette(picture), None
    if picture.mode == "1":
        return pixels.astype(np.uint8), None, None
    if picture.mode == "L":
        # Pillow stretches grey values of 2 and 4 bits to 0..255.
        pixels = pixels // (255 // (2**bits - 1)) if bits < 8 else pixels
        pixels = pixels.view(np.int8) if signed else pixels
    # What is ignored anyway needs no other word.
    nodata = page.nodata if page and pixels.ndim == 2 and page.nodata != (255 if bits <= 8 else 65535) else None
    void = None if nodata is None else pixels == nodata
    if void is not None and void.any():
        pixels = np.where(void, pixels.dtype.type(0), pixels)
    else:
        void = None
    if pixels.ndim == 2 and pixels.dtype != np.uint8:
        if not 0 <= pixels.min() <= pixels.max() < 1 << 16:
            raise UserError(f"The mask {path} has values from {pixels.min()} to {pixels.max()}; ids are 0 to 65535.")
        pixels = pixels.astype(np.uint8 if signed and bits == 8 else np.uint16)
    return pixels, None, void


def _transparent(picture: Image.Image, path: Path) -> NDArray[np.bool_] | None:
    """Where a mask's alpha is 0, None if it is so nowhere."""
    if picture.mode not in _WITH_ALPHA:
        return None
    alpha = np.array(picture.getchannel(len(picture.getbands()) - 1))
    if not np.isin(alpha, (0, 255)).all():
        raise UserError(
            f"The mask {path} is half transparent in places, as smoothed drawings are; draw it without smoothing, or "
            "save it without alpha."
        )
    return None if alpha.all() else alpha == 0


def _bits(data: bytes, picture: Image.Image, page: TiffPage | None) -> int:
    """Bits a channel."""
    if page:
        return page.bits
    if picture.format == "PNG":
        return data[24]
    return 16 if picture.mode.startswith("I") else 8


def _count(picture: Image.Image, pages: list[TiffPage]) -> int:
    # The second picture of a photograph is a preview or its brightness.
    return len(pages) or (1 if picture.format == "MPO" else getattr(picture, "n_frames", 1))


def _orientation(picture: Image.Image, data: bytes) -> int:
    # Pillow would decode a PNG to look for EXIF data behind its pixels.
    if picture.format == "PNG" and b"eXIf" not in data:
        return 1
    try:
        value = picture.getexif().get(0x112, 1)
    # EXIF data are often damaged in sound pictures.
    except Exception:
        return 1
    return value if value in range(1, 9) else 1
