"""Masks of every kind of file, drawn at random."""

import io

import cv2
import numpy as np
from PIL import Image

from tests.data.encoders import bmp, png, tiff

KINDS = [(fmt, mode) for fmt in ("png", "tiff", "bmp", "gif", "webp") for mode in ("grey", "palette", "rgb", "alpha")]
SUFFIX = {"png": ".png", "tiff": ".tif", "bmp": ".bmp", "gif": ".gif", "webp": ".webp"}


def upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """What EXIF says of its eight values, by Pillow's names for them."""
    # Of 2 to 8.
    names = ["FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"]
    if orientation == 1:
        return stored
    planes = np.atleast_3d(stored).astype(np.int32)
    way = Image.Transpose[names[orientation - 2]]
    parts = [np.asarray(Image.fromarray(planes[..., channel]).transpose(way)) for channel in range(planes.shape[2])]
    return np.stack(parts, -1).reshape(*parts[0].shape, *stored.shape[2:])


def saved(pixels: np.ndarray, kind: str, mode: str | None = None, **options: object) -> bytes:
    """Pillow's file of uint8 pixels."""
    picture = Image.fromarray(pixels.astype(np.uint8))
    data = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(data, kind, **options)
    return data.getvalue()


def drawn_mask(
    rng: np.random.Generator, pixels: np.random.Generator, block: int = 1
) -> tuple[str, bytes, np.ndarray, bool, bool]:
    """Draw a file's kind by ``rng`` and what it holds by ``pixels``, in squares of ``block`` pixels.

    Returns:
        Its format and more to name it by, the file, its upright ids (H, W) or colours (H, W, 3), whether it may be
        refused, and whether it must be.
    """
    shape = tuple(int(side) for side in pixels.integers(1, 30, 2))
    fmt, mode = KINDS[rng.integers(len(KINDS))]
    bits = int(rng.choice([1, 2, 4, 8, 16]))
    orientation = int(rng.integers(1, 9)) if fmt in ("png", "tiff", "webp") else 1
    values = int(rng.choice([2, 3, 2**bits]))
    coarse = pixels.integers(0, min(values, 2**bits), [-(-side // block) for side in shape])
    ids = np.kron(coarse, np.ones((block, block), int))[: shape[0], : shape[1]]
    if rng.random() < 0.3:
        ids = np.where(ids % 2 == 1, 2**bits - 1, 0)
    colours = rng.integers(0, 256, (2 ** min(bits, 8), 3))
    if rng.random() < 0.3:
        colours = np.array([[0, 0, 0], [255, 255, 255]])
    indices = ids % len(colours)
    name = f"{fmt} {mode} {bits} bits, orientation {orientation}, {shape}"
    clear = bool(rng.random() < 0.5)
    alpha = np.where(pixels.random(shape) < 0.5, 255, 0 if clear else 255)[..., None]
    if fmt in ("png", "tiff") and mode in ("grey", "palette"):
        if mode == "palette" and bits == 16:
            bits, indices = 8, indices % 256
        if fmt == "png":
            options = {"interlaced": bool(rng.random() < 0.5)}
            if mode == "palette":
                data = png(
                    indices, bits, colours[: 2**bits], alpha=[0] if clear else None, orientation=orientation, **options
                )
            else:
                data = png(ids, bits, orientation=orientation, **options)
        else:
            order = str(rng.choice(["<", ">"]))
            if mode == "palette":
                data = tiff(indices, bits, 3, palette=colours[: 2**bits], orientation=orientation, order=order)
            else:
                data = tiff(ids, bits, int(rng.integers(2)), orientation=orientation, order=order)
        return name, data, upright(indices if mode == "palette" else ids, orientation), False, False
    if fmt == "bmp" and mode in ("grey", "palette"):
        bits = int(rng.choice([1, 4, 8]))
        ramp = np.repeat(np.arange(2**bits)[:, None], 3, 1)
        table = ramp if mode == "grey" else colours[: 2**bits]
        indices = ids % len(table)
        data = bmp(indices, bits, table, top_down=bool(rng.random() < 0.3), old=bool(rng.random() < 0.3))
        return name, data, indices, False, False
    if fmt == "gif" and mode in ("grey", "palette"):
        picture = Image.fromarray(indices.astype(np.uint8), "P")
        picture.putpalette(colours.astype(np.uint8).tobytes())
        file = io.BytesIO()
        # Without optimising, Pillow keeps the indices.
        picture.save(file, "GIF", optimize=False)
        return name, file.getvalue(), indices, False, False
    drawn = colours[indices] if mode != "grey" else np.repeat((ids % 256)[..., None], 3, -1)
    channels = np.concatenate([drawn, alpha], -1) if mode == "alpha" else drawn
    wide = bits == 16 and fmt in ("png", "tiff") and bool(rng.random() < 0.5)
    see_through = mode == "alpha" and alpha.min() < 255
    if fmt == "png":
        data = png(channels * 257 if wide else channels, 16 if wide else 8, orientation=orientation)
    elif fmt == "tiff":
        planar = mode == "rgb" and bool(rng.random() < 0.3)
        extra = 2 if mode == "alpha" else None
        stored = channels * 257 if wide else channels
        data = tiff(stored, 16 if wide else 8, 2, extra=extra, planar=planar, orientation=orientation)
    elif fmt == "webp":
        lossless = bool(rng.random() < 0.8)
        exif = Image.Exif()
        exif[0x112] = orientation
        data = saved(channels, "WEBP", lossless=lossless, exact=True, exif=exif)
        return name, data, upright(drawn, orientation), False, see_through or not lossless
    elif fmt == "bmp":
        # OpenCV's bitmaps of 24 bits; GIF has no more than its palette.
        data, see_through = cv2.imencode(".bmp", drawn[..., ::-1].astype(np.uint8))[1].tobytes(), False
    else:
        return drawn_mask(rng, pixels, block)
    return name, data, upright(drawn, orientation), wide, see_through
