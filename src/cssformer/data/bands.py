"""Pictures taken as the channels that their files store, by GDAL: GeoTIFFs above all."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cssformer.data.channels import Channels, Moments, Pixels, described, from_bands, moments, without_data
from cssformer.data.files import Readable, read_bytes
from cssformer.data.formats import read_bands, turned
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

    def __str__(self) -> str:
        return described(len(self.values), self.values.dtype.name)


def decode_bands(data: bytes, path: Path) -> Bands:
    """Decode what a file stores, without any meaning of colours; of several pages the first is read.

    Raises:
        UserError: no picture, damaged, truncated, too large, its values are indices of a palette, or rasterio is not
            installed; ``path`` is named.
    """
    with readable(data, path) as pages:
        if pages and pages[0].colours not in (0, 1, 2):
            raise UserError(f"{path} holds no channels but {pages[0]} of a palette, of inks or the like.")
        values, nodata = read_bands(data)
    orientation = pages[0].orientation if pages else read_orientation(data)
    facts = PictureFacts(orientation, max(1, len(pages)), None)
    return Bands(np.moveaxis(turned(np.moveaxis(values, 0, -1), orientation), -1, 0), nodata, facts)


def read_pixels(path: Readable, channels: Channels | None) -> tuple[Pixels, PictureFacts]:
    """Read a picture as a network or a data set of these channels takes it, None for photographs.

    Raises:
        UserError: as :func:`decode_image` and :func:`decode_bands`, or the file has other channels.
    """
    data, where = read_bytes(path), Path(str(path))
    if channels is None:
        picture = decode_image(data, where)
        return Pixels(picture.pixels, None), picture.facts
    bands = decode_bands(data, where)
    if str(bands) != str(channels):
        raise UserError(f"{where} has {bands}, but {channels} are wanted.")
    return from_bands(bands.values, channels, bands.nodata), bands.facts
