"""Masks of every kind of file, drawn at random."""

import io
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from tests.data.encoders import bmp, png, tiff

#: The kinds of pixels that each format has, and their bits a channel.
FORMS = {
    ("png", "grey"): (1, 2, 4, 8, 16),
    ("png", "palette"): (1, 2, 4, 8),
    ("png", "rgb"): (8, 16),
    ("png", "alpha"): (8, 16),
    ("tiff", "grey"): (1, 2, 4, 8, 16),
    ("tiff", "palette"): (1, 2, 4, 8),
    ("tiff", "rgb"): (8, 16),
    ("tiff", "alpha"): (8, 16),
    ("bmp", "grey"): (1, 4, 8),
    ("bmp", "palette"): (1, 4, 8),
    ("bmp", "rgb"): (8,),
    ("bmp", "alpha"): (8,),
    ("gif", "grey"): (1, 2, 4, 8),
    ("gif", "palette"): (1, 2, 4, 8),
    ("webp", "rgb"): (8,),
    ("webp", "alpha"): (8,),
}
CONTENTS = ("0/255", "ids", "colours")
SUFFIX = {"png": ".png", "tiff": ".tif", "bmp": ".bmp", "gif": ".gif", "webp": ".webp"}


class Drawn(NamedTuple):
    """A mask's file and what was drawn."""

    data: bytes
    #: Upright ids (H, W), or colours (H, W, 3).
    values: np.ndarray
    #: Where it is transparent, bool (H, W), upright.
    transparent: np.ndarray
    #: Whether it must be refused; None if it may be.
    refused: bool | None


def upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """What EXIF says of its eight values, by Pillow's names for them."""
    # Of 2 to 8.
    names = ["FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"]
    if orientation == 1:
        return stored
    planes = np.atleast_3d(stored).astype(np.int32)
    way = Image.Transpose[names[orientation - 2]]
    parts = [np.asarray(Image.fromarray(planes[..., channel]).transpose(way)) for channel in range(planes.shape[2])]
    return np.stack(parts, -1).reshape(*parts[0].shape, *stored.shape[2:]).astype(stored.dtype)


def saved(pixels: np.ndarray, kind: str, mode: str | None = None, **options: object) -> bytes:
    """Pillow's file of uint8 pixels."""
    picture = Image.fromarray(pixels.astype(np.uint8))
    data = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(data, kind, **options)
    return data.getvalue()


def drawn_mask(
    form: tuple[str, str],
    bits: int,
    content: str,
    orientation: int,
    rng: np.random.Generator,
    pixels: np.random.Generator,
    block: int = 1,
) -> Drawn:
    """Draw a mask of a form of :data:`FORMS`, in squares of ``block`` pixels.

    ``rng`` decides what is alike in the masks of one folder, ``pixels`` what differs.
    """
    fmt, kind = form
    shape = tuple(block * int(side) for side in pixels.integers(1, 24 // block + 1, 2))
    most = 2 ** min(bits, 8 if kind != "grey" else 16)
    known = {"0/255": [0, most - 1], "ids": np.arange(min(most, rng.integers(2, 7)))}.get(content)
    known = rng.permutation(most)[:4] if known is None else np.asarray(known)
    ids = np.kron(pixels.choice(known, [side // block for side in shape]), np.ones((block, block), int))
    ramp = np.repeat(np.arange(2 ** min(bits, 8))[:, None], 3, 1)
    colours = {"0/255": ramp, "ids": ramp}.get(content, rng.integers(0, 256, ramp.shape))
    orientation = orientation if fmt in ("png", "tiff", "webp") else 1
    opaque = np.zeros(shape, bool)
    if kind in ("grey", "palette"):
        data = _indexed(fmt, kind, bits, ids, colours, orientation, rng)
        return Drawn(data, upright(ids, orientation), upright(opaque, orientation), False)
    values, refused = colours[ids], None if bits == 16 else False
    clear, half = bool(rng.random() < 0.7), bool(rng.random() < 0.2)
    alpha = np.kron(pixels.choice([0, 255] if clear else [255], ids[::block, ::block].shape), np.ones((block, block)))
    if half:
        alpha.flat[0] = 128
    channels = values
    if kind == "alpha":
        grey = content != "colours" and fmt in ("png", "tiff") and bool(rng.random() < 0.5)
        channels = np.concatenate([values[..., :1] if grey else values, alpha[..., None].astype(int)], -1)
        refused = True if half else refused
        opaque = alpha == 0
    stored = channels * 257 if bits == 16 else channels
    if fmt == "png":
        data = png(stored, bits, orientation=orientation, interlaced=bool(rng.random() < 0.5))
    elif fmt == "tiff":
        extra, planar = (2 if kind == "alpha" else None), kind == "rgb" and bool(rng.random() < 0.3)
        colour = 1 if channels.shape[2] == 2 else 2
        data = tiff(stored, bits, colour, extra=extra, planar=planar, orientation=orientation)
    elif fmt == "webp":
        lossless, exif = bool(rng.random() < 0.8), Image.Exif()
        exif[0x112] = orientation
        data = saved(channels, "WEBP", lossless=lossless, exact=True, exif=exif)
        refused = True if not lossless else refused
    else:
        data = cv2.imencode(".bmp", channels[..., [2, 1, 0, *range(3, channels.shape[2])]].astype(np.uint8))[
            1
        ].tobytes()
    return Drawn(data, upright(values, orientation), upright(opaque, orientation), refused)


def _indexed(
    fmt: str, kind: str, bits: int, ids: np.ndarray, colours: np.ndarray, orientation: int, rng: np.random.Generator
) -> bytes:
    """A file of grey values or of indices of a palette."""
    palette = colours if kind == "palette" else None
    if fmt == "png":
        alpha = [0] if palette is not None and rng.random() < 0.5 else None
        return png(ids, bits, palette, alpha, bool(rng.random() < 0.5), orientation)
    if fmt == "tiff":
        meaning = 3 if palette is not None else int(rng.integers(2))
        return tiff(ids, bits, meaning, palette=palette, orientation=orientation, order=str(rng.choice(["<", ">"])))
    ramp = np.repeat(np.arange(2**bits)[:, None], 3, 1)
    palette = ramp if palette is None else palette
    if fmt == "bmp":
        return bmp(ids, bits, palette, top_down=bool(rng.random() < 0.3), old=bool(rng.random() < 0.3))
    picture = Image.fromarray(ids.astype(np.uint8), "P")
    picture.putpalette(palette.astype(np.uint8).tobytes())
    file = io.BytesIO()
    # Without optimising, Pillow keeps the indices.
    picture.save(file, "GIF", optimize=False)
    return file.getvalue()
