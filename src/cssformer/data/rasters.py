"""TIFFs read and written part by part, by GDAL: those larger than memory, and those with a place on the Earth."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cssformer.data.channels import Channels, Form, Pixels, from_bands, rgb_view
from cssformer.data.formats import silence_missing_places
from cssformer.utils.atomic import atomic_write
from cssformer.utils.errors import UserError

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

LARGE = 2**26
"""Pixels of a TIFF above which it is read part by part."""

TILE = 512
"""Height and width in pixels of the tiles that are written."""

SHOWN = 1024
"""Pixels, on the longer side, of the picture whose values tell how others are shown."""

CACHE_MB = 256
"""What GDAL keeps of what it read and of what it is to write."""


@contextmanager
def opened(path: Path) -> Iterator["DatasetReader"]:
    """A TIFF that is open for reading.

    Raises:
        UserError: it cannot be opened, or read within the block.
        ModuleNotFoundError: rasterio is not installed.
    """
    import rasterio

    silence_missing_places()
    # Other drivers may read other files, and a path that is none may be an address.
    with (
        rasterio.Env(GDAL_CACHEMAX=CACHE_MB),
        _reading(path),
        rasterio.open(path.resolve(), driver="GTiff") as source,
    ):
        yield source


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    from rasterio.errors import RasterioIOError

    try:
        yield
    except RasterioIOError as error:
        raise UserError(f"{path} cannot be read; it is truncated, damaged or no TIFF: {_reason(error)}.") from None


def _reason(error: Exception) -> str:
    return " ".join(str(error.__cause__ or error).split()).rstrip(".")


def on_earth(path: Path) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """What turns corners x, y (n, 2) in a TIFF's pixels into degrees east and north (WGS 84), if it has a CRS.

    It raises UserError where the CRS, such as one of a building site, tells no degrees.
    """
    with opened(path) as file:
        crs, affine = file.crs, file.transform
    if crs is None:
        return in_pixels

    def degrees(corners: NDArray[np.float64]) -> NDArray[np.float64]:
        try:
            return _transformed(crs, "EPSG:4326", *(affine * corners.T)).T
        except _Nowhere as error:
            raise UserError(
                f"The coordinates of {path} cannot be told in degrees, as GeoJSON wants them: {error}; leave geojson "
                "out, or remove the coordinate system."
            ) from None

    return degrees


def in_pixels(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Corners as they are."""
    return corners


def pixel_area(source: "DatasetReader") -> float | None:
    """Square metres on the ellipsoid that the pixel in the middle covers; None without a place on the Earth.

    Not the side squared: a pixel of a map in Web Mercator covers half of that in Germany.
    """
    if source.crs is None or source.transform.is_identity:
        return None
    corners = np.array([[0, 0], [-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    x, y = source.transform * (np.array([source.width, source.height]) / 2 + corners).T
    # Coordinates may be those of a building site, or of another planet.
    with suppress(_Nowhere):
        (east, *_), (north, *_) = _transformed(source.crs, "EPSG:4326", x, y)
        # An equal-area map of the surroundings.
        local = f"+proj=laea +lat_0={north} +lon_0={east} +datum=WGS84 +units=m"
        x, y = _transformed(source.crs, local, x[1:], y[1:])
        return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)
    return None


class _Nowhere(Exception):
    """Coordinates that another system has not."""


def _transformed(source: Any, target: str, x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
    """Coordinates x and y (2, n) in another system; raises ``_Nowhere``."""
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import CRSError
    from rasterio.warp import transform

    try:
        found = np.array(transform(source, target, x, y))
    except (CPLE_BaseError, CRSError):
        raise _Nowhere("GDAL knows no way there") from None
    if not np.isfinite(found).all():
        raise _Nowhere("they lie outside of their system")
    return found


class Raster:
    """A TIFF as a picture (1, C, H, W), of which :func:`cssformer.inference.views.predict_blocks` takes parts.

    Args:
        source: the file.
        path: named in errors.
        channels: of the network; None for photographs.

    Raises:
        UserError: the file has other channels, or is stored in pieces too large to be read one by one.
    """

    def __init__(self, source: "DatasetReader", path: Path, channels: Channels | None) -> None:
        kinds, given = [kind.name for kind in source.colorinterp], Form(source.count, source.dtypes[0])
        form = source.tags(ns="IMAGE_STRUCTURE")
        if channels is not None and (given != channels.form or "palette" in kinds):
            raise UserError(f"{path} has {given}{' of a palette' * ('palette' in kinds)}, but {channels} are wanted.")
        if channels is None and (
            (
                kinds[:3] != ["red", "green", "blue"][: source.count]
                and not (kinds[0] == "gray" and kinds[1:] in ([], ["alpha"]))
            )
            or source.count > 4
            or source.dtypes[0] not in ("uint8", "uint16")
            or "NBITS" in form
            or "MINISWHITE" in form
        ):
            raise UserError(
                f"{path} has {given} ({', '.join(kinds)}); give grey or RGB of 8 or 16 bits, with or without alpha."
            )
        height, width = source.block_shapes[0]
        if height * width * source.count * np.dtype(source.dtypes[0]).itemsize > CACHE_MB * 2**20 // 2:
            raise UserError(
                f"{path} is stored in pieces of {width}x{height} pixels, too large to be read one by one; store it in "
                "tiles: gdal_translate -co TILED=YES -co COMPRESS=DEFLATE FILE TILED."
            )
        self.source, self.path, self.channels = source, path, channels
        count = 3 if channels is None else source.count
        self.shape = (1, count, source.height, source.width)

    def read(self, top: int, bottom: int, left: int, right: int) -> Pixels:
        """The pixels of a part as the network takes them."""
        # Here, because a part may be read while a file is written, whose errors are others.
        with _reading(self.path):
            bands = self.source.read(window=((top, bottom), (left, right)))
        return from_bands(bands, self.channels, self.source.nodatavals)

    def missing(self, top: int, bottom: int, left: int, right: int) -> NDArray[np.bool_]:
        """Where a part has no data, by its values, by nodata, by a mask or by alpha: bool (h, w)."""
        pixels = self.read(top, bottom, left, right)
        return _missing(self.source, pixels, self.channels, window=((top, bottom), (left, right)))

    def view(self, top: int, bottom: int, left: int, right: int) -> NDArray[np.uint8]:
        """A part for people, RGB uint8 (h, w, 3)."""
        pixels, missing = self.read(top, bottom, left, right)
        return rgb_view(pixels, self.channels, missing, self._whole)

    @cached_property
    def _whole(self) -> Pixels | None:
        """The picture at a size that fits the memory; None for photographs, which are shown as they are."""
        if self.channels is None:
            return None
        step = -(-max(self.shape[2:]) // SHOWN)
        with _reading(self.path):
            small = self.source.read(out_shape=(self.shape[1], *(-(-side // step) for side in self.shape[2:])))
        return from_bands(small, self.channels, self.source.nodatavals)

    def __getitem__(self, part: tuple[slice, slice, slice, slice]) -> Tensor:
        (top, bottom, _), (left, right, _) = (
            each.indices(size) for each, size in zip(part[2:], self.shape[2:], strict=True)
        )
        return torch.from_numpy(self.read(top, bottom, left, right).pixels).permute(2, 0, 1)[None]


def _missing(source: "DatasetReader", pixels: Pixels, channels: Channels | None, **window: Any) -> NDArray[np.bool_]:
    """Where pixels have no data, by their values or the file's nodata, mask or alpha; a network's channel is no alpha.

    Returns:
        bool (h, w).
    """
    missing = np.zeros(pixels.pixels.shape[:2], bool) if pixels.missing is None else pixels.missing
    if channels is not None and "alpha" in [kind.name for kind in source.colorinterp]:
        return missing
    return missing | (source.dataset_mask(**window) == 0)


def with_mask(pixels: Pixels, path: Path, channels: Channels | None) -> Pixels:
    """The pixels of a small TIFF, of which those without data by its nodata, its mask or its alpha are missing."""
    with opened(path) as source:
        missing = _missing(source, pixels, channels)
    return Pixels(pixels.pixels, missing if missing.any() else None)


def write_raster(
    path: Path,
    like: "DatasetReader",
    strips: Iterable[NDArray[Any]],
    *,
    colours: Mapping[int, tuple[int, int, int]] | None = None,
    classes: Mapping[int, str] | None = None,
    nodata: int | None = None,
) -> None:
    """Write a tiled, compressed TIFF in the place of another one, with overviews where that has some.

    Args:
        path: the file.
        like: has its size, its coordinate system, and its transform, control points or RPCs.
        strips: uint8 or uint16 (h, W), or RGB uint8 (h, W, 3), from the top to the bottom.
        colours: of values of 8 bits.
        classes: names of values, kept as ``CLASS_0=NAME`` and so on.
        nodata: the value that stands for no data.

    Raises:
        UserError: the file cannot be written.
    """
    import rasterio
    from rasterio.enums import Resampling
    from rasterio.errors import RasterioIOError

    strips = iter(strips)
    first = next(strips)
    count = 1 if first.ndim == 2 else first.shape[2]
    kind = "RGB" if count == 3 else "PALETTE" if colours else "MINISBLACK"
    gcps, gcps_crs = like.gcps
    profile = {
        "driver": "GTiff",
        **{"height": like.height, "width": like.width, "count": count, "dtype": first.dtype, "nodata": nodata},
        **{"tiled": True, "blockxsize": TILE, "blockysize": TILE, "compress": "deflate", "bigtiff": "if_safer"},
        **{"photometric": kind, "interleave": "pixel"},
        **({} if gcps else {"crs": like.crs, "transform": like.transform}),
    }
    sums: list[tuple[int, int, int]] = []
    with _writing(path) as temporary:
        with rasterio.open(temporary, "w", **profile) as file:
            if gcps:
                file.gcps = gcps, gcps_crs
            if like.rpcs:
                file.rpcs = like.rpcs
            file.update_tags(**{"AREA_OR_POINT": like.tags().get("AREA_OR_POINT", "Area")})
            file.update_tags(1, **{f"CLASS_{value}": name for value, name in (classes or {}).items()})
            if kind == "PALETTE":
                file.write_colormap(1, colours)
            top = 0
            for strip in chain((first,), strips):
                bands = strip[None] if strip.ndim == 2 else np.moveaxis(strip, -1, 0)
                file.write(bands, window=((top, top + len(strip)), (0, like.width)))
                sums.append((top, top + len(strip), crc32(np.ascontiguousarray(bands).data)))
                top += len(strip)
            if levels := like.overviews(1):
                file.build_overviews(levels, Resampling.average if count == 3 else Resampling.nearest)
        with rasterio.open(temporary, driver="GTiff") as file:
            # A disk that was full for a moment leaves tiles out without a word.
            for top, bottom, checksum in sums:
                if crc32(file.read(window=((top, bottom), (0, like.width)))) != checksum:
                    raise RasterioIOError(f"rows {top} to {bottom} are not what was written")


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """See :func:`atomic_write`; a full disk is told as one."""
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import RasterioError

    with atomic_write(path) as temporary:
        failed: Exception | None = None
        try:
            yield temporary
        except (RasterioError, CPLE_BaseError) as error:
            failed = error
        # GDAL keeps the system's error to itself, at times that there was one; who appends to the file gets it too.
        with temporary.open("ab") as file:
            size = file.tell()
            file.write(bytes(2**20))
            file.truncate(size)
        if failed is not None:
            raise OSError(_reason(failed)) from failed
