"""Pictures taken as the channels that their files store, by GDAL: GeoTIFFs above all."""

from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cssformer.data.channels import (
    TYPES,
    Channels,
    Form,
    Moments,
    Pixels,
    from_bands,
    in_all_bands,
    moments,
    without_data,
)
from cssformer.data.files import Readable, read_bytes
from cssformer.data.formats import read_bands, tiff_pages, turned
from cssformer.data.image_io import decode_image, read_orientation, readable
from cssformer.data.picture_facts import PictureFacts
from cssformer.utils.errors import UserError


class Bands(NamedTuple):
    """What a file stores.

    Attributes:
        values: (N, H, W), upright.
        nodata: what stands for no data in each band, None where nothing does.
        facts: of the file.
    """

    values: NDArray[Any]
    nodata: tuple[float | None, ...]
    facts: PictureFacts

    def moments(self) -> Moments:
        return moments(self.values, without_data(self.values, self.nodata))

    def pixels(self, channels: Channels | None, path: Path) -> Pixels:
        """As :func:`cssformer.data.channels.from_bands`; ``path`` is named in its errors."""
        return from_bands(self.values, channels, self.nodata, path)

    def missing(self) -> NDArray[np.bool_] | None:
        """Where no band has data, bool (H, W); None if there is no such place."""
        return in_all_bands(without_data(self.values, self.nodata))

    @property
    def form(self) -> Form:
        return Form(len(self.values), self.values.dtype.name)


def decode_bands(data: bytes, path: Path) -> Bands:
    """Decode what a file stores, without any meaning of colours; of several pages the first is read.

    Raises:
        UserError: no picture, damaged, truncated, too large, its values are indices of a palette or of a type that is
            not in ``TYPES``, or rasterio is not installed; ``path`` is named.
    """
    with readable(data, path) as pages:
        if pages and pages[0].colours not in (0, 1, 2):
            raise UserError(f"{path} holds no channels but {pages[0]} of a palette, of inks or the like.")
        values, nodata = read_bands(data)
    if values.dtype.name not in TYPES:
        raise UserError(f"{path} has {Form(len(values), values.dtype.name)}; values are {', '.join(TYPES)}.")
    orientation = pages[0].orientation if pages else read_orientation(data)
    facts = PictureFacts(orientation, max(1, len(pages)), None)
    return Bands(np.moveaxis(turned(np.moveaxis(values, 0, -1), orientation), -1, 0), nodata, facts)


def is_photograph(data: bytes) -> bool:
    """Whether a file is taken as RGB of 8 bits unless told otherwise: all are but TIFFs neither grey nor RGB."""
    with suppress(Exception):
        return all(page.is_picture or page.colours not in (0, 1, 2) for page in tiff_pages(data)[:1])
    return True


def decode_pixels(data: bytes, path: Path, channels: Channels | None) -> tuple[Pixels, PictureFacts]:
    """Decode a picture as a network or a data set of these channels takes it, None for photographs.

    Raises:
        UserError: as :func:`decode_image` and :func:`decode_bands`, or the file has other channels.
    """
    if channels is not None:
        bands = decode_bands(data, path)
        return bands.pixels(channels, path), bands.facts
    picture = decode_image(data, path)
    # What a GeoTIFF says of its values concerns them as stored.
    void = any(page.nodata is not None and page.colours in (0, 1, 2) for page in tiff_pages(data)[:1])
    return Pixels(picture.pixels, decode_bands(data, path).missing() if void else None), picture.facts


def read_pixels(path: Readable, channels: Channels | None) -> tuple[Pixels, PictureFacts]:
    """:func:`decode_pixels` of a file; raises as it and :func:`read_bytes` do."""
    return decode_pixels(read_bytes(path), Path(str(path)), channels)
