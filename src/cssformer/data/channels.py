"""Pictures of any number of channels and any type of values, and what the network takes of them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cssformer.utils.console import counted
from cssformer.utils.errors import UserError

TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64")
"""Of values, as NumPy calls them."""
# What a view shows from black to white, in per cent of the pixels.
_STRETCH = (2, 98)


class Form(NamedTuple):
    """How many channels there are, and the type of their values as NumPy calls it."""

    number: int
    values: str

    def __str__(self) -> str:
        return f"{counted(self.number, 'channel')} of {self.values}"


@dataclass(frozen=True)
class Channels:
    """The channels of pictures that are taken as files store them, not as photographs (RGB of 8 bits).

    Attributes:
        values: their type, one of ``TYPES``.
        mean, std: of each channel, in the files' units.
        shown: which of them, from 0, people see as red, green and blue, or the one that they see in grey; if empty,
            the first three, or the first of fewer.
    """

    values: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shown: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.mean)

    def __str__(self) -> str:
        return str(self.form)

    @property
    def form(self) -> Form:
        return Form(len(self), self.values)

    @classmethod
    def read(cls, entries: Any) -> "Channels":
        """What :meth:`lines` wrote, parsed.

        Raises:
            ValueError, TypeError, KeyError: it is not of this form.
        """
        mean, std = (tuple(float(value) for value in entries[name]) for name in ("mean", "std"))
        if entries["values"] not in TYPES or len(mean) != len(std) or not np.isfinite(mean + std).all() or min(std) < 0:
            raise ValueError(f"channels need values (one of {', '.join(TYPES)}), and a mean and a std for each channel")
        shown = tuple(entries.get("shown", ()))
        if len(shown) not in (0, 1, 3) or any(type(index) is not int or not 0 <= index < len(mean) for index in shown):
            raise ValueError(f"the channels shown must be three, or one, of 0 to {len(mean) - 1}")
        return cls(entries["values"], mean, std, shown)

    def lines(self) -> list[str]:
        """Lines of YAML."""
        numbers = (("mean", self.mean), ("std", self.std), ("shown", self.shown))
        return ["channels:", f"  values: {self.values}", *(f"  {name}: {list(each)}" for name, each in numbers if each)]

    @property
    def unit(self) -> float:
        """What values are divided by for the network: 255 for uint8, as in photographs, 1 for others."""
        return 255.0 if self.values == "uint8" else 1.0

    @property
    def fill(self) -> NDArray[Any]:
        """The mean as pixels hold it, (N,) uint8 or float32."""
        return np.array(self.mean, np.float32) if self.unit == 1 else np.round(self.mean).astype(np.uint8)


class Pixels(NamedTuple):
    """A picture as the network takes it.

    Attributes:
        pixels: (H, W, N) uint8, or float32 for files of other types; a photograph is RGB uint8 (H, W, 3).
        missing: where there are no data in any channel, bool (H, W); None if it is so nowhere.
    """

    pixels: NDArray[Any]
    missing: NDArray[np.bool_] | None


class Moments(NamedTuple):
    """What is known of each of N channels: how many values, and their mean, sum of squared deviations, least and most.

    Each is float64 (N,).
    """

    number: NDArray[np.float64]
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @property
    def std(self) -> NDArray[np.float64]:
        return np.sqrt(self.squares / self.number.clip(1))


def from_bands(
    bands: NDArray[Any], channels: Channels | None, nodata: Sequence[float | None] = (), name: object = "The array"
) -> Pixels:
    """What the network takes of bands as a file stores them.

    Values without data, ``nodata`` or not finite, become the channel's mean, which the network sees as 0. Of a
    photograph they stay as they are.

    Args:
        bands: (N, H, W).
        channels: what the network, or the data set, has; None for photographs, for which grey and RGB, with or without
            alpha, of 8 or 16 bits are taken; 16 bits become 8.
        nodata: the value that stands for no data in each band; None, or nothing at all, for none.
        name: what the error calls the bands.

    Raises:
        UserError: the number or the type of the bands is another one.
    """
    form = Form(len(bands), bands.dtype.name)
    empty = without_data(bands, nodata)
    missing = in_all_bands(empty)
    if channels is None:
        if len(bands) > 4 or bands.dtype not in (np.uint8, np.uint16):
            raise UserError(f"{form} are no grey or RGB picture of 8 or 16 bits.")
        shown = bands[[0, 0, 0] if len(bands) < 3 else [0, 1, 2]]
        shown = shown if shown.dtype == np.uint8 else (shown >> 8).astype(np.uint8)
        return Pixels(np.ascontiguousarray(np.moveaxis(shown, 0, -1)), missing)
    if form != channels.form:
        raise UserError(f"{name} has {form}, but {channels} are wanted.")
    pixels = np.moveaxis(bands, 0, -1).astype(channels.fill.dtype, order="C")
    if empty is not None:
        for index, mean in enumerate(channels.fill):
            pixels[..., index][empty[index]] = mean
    return Pixels(pixels, missing)


def without_data(bands: NDArray[Any], nodata: Sequence[float | None] = ()) -> NDArray[np.bool_] | None:
    """Where bands (N, H, W) have no data, bool of the same shape; None if it is so nowhere."""
    # Beyond float32, in which the network computes, a value is as good as infinite.
    empty = np.zeros(bands.shape, bool) if bands.dtype.kind != "f" else ~(np.abs(bands) <= np.finfo(np.float32).max)
    for band, value, there in zip(bands, nodata, empty, strict=False):
        if value is not None:
            there |= band == value
    return empty if empty.any() else None


def in_all_bands(empty: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """Of :func:`without_data`, where no band has data, bool (H, W); None if there is no such place."""
    missing = None if empty is None else np.asarray(empty.all(axis=0))
    return None if missing is None or not missing.any() else missing


def moments(bands: Iterable[NDArray[Any]], empty: NDArray[np.bool_] | None = None) -> Moments:
    """Of bands, N times (H, W), without their ``empty`` values, bool (N, H, W)."""
    rows = []
    for index, band in enumerate(bands):
        values = np.ascontiguousarray(band, np.float64 if band.dtype in (np.uint32, np.float16) else band.dtype)
        mask = None if empty is None else (~empty[index]).astype(np.uint8)
        count = values.size if mask is None else int(np.count_nonzero(mask))
        (mean,), (std,) = (each.ravel() for each in cv2.meanStdDev(values, mask=mask))
        low, high = cv2.minMaxLoc(values, mask)[:2] if count else (np.inf, -np.inf)
        rows.append((count, mean, count * std**2, low, high))
    return Moments(*np.array(rows, np.float64).T)


def merged(parts: Sequence[Moments]) -> Moments:
    """The moments of all pictures together (Chan, Golub and LeVeque, 1983)."""
    count, mean, squares, low, high = (np.stack(each) for each in zip(*parts, strict=True))
    total = count.sum(axis=0)
    middle = (count * mean).sum(axis=0) / total.clip(1)
    between = (count * (mean - middle) ** 2).sum(axis=0)
    return Moments(total, middle, squares.sum(axis=0) + between, low.min(axis=0), high.max(axis=0))


def in_fours(function: Callable[[Any], Any], image: NDArray[Any]) -> NDArray[Any]:
    """A function of OpenCV on an image (H, W, N): four channels, which all of them take, at one time."""
    if image.shape[2] == 3:
        return np.asarray(function(image))
    parts = [function(np.ascontiguousarray(image[..., first : first + 4])) for first in range(0, image.shape[2], 4)]
    return np.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], axis=2)


def rgb_view(
    pixels: NDArray[Any],
    channels: Channels | None,
    missing: NDArray[np.bool_] | None = None,
    whole: Pixels | None = None,
) -> NDArray[np.uint8]:
    """RGB uint8 (H, W, 3) for people: a photograph as it is, of others the channels ``shown``.

    Each is stretched from its 2nd to its 98th percentile, unless there are three in all, of uint8.

    Args:
        pixels: (H, W, N).
        channels: of the data set or the model; None for photographs.
        missing: pixels that do not count, bool (H, W).
        whole: the picture, smaller, that these pixels are a part of: the percentiles are its.
    """
    if channels is None:
        return pixels
    shown = list(channels.shown or range(3 if len(channels) >= 3 else 1))
    if channels.form == (3, "uint8") and len(shown) == 3:
        return np.ascontiguousarray(pixels[..., shown])
    measured, missing = (pixels, missing) if whole is None else whole
    step = max(1, max(measured.shape[:2]) // 1024)
    measured = measured[::step, ::step]
    if missing is not None and not missing[::step, ::step].all():
        measured = measured[~missing[::step, ::step]]
    view = np.empty((*pixels.shape[:2], len(shown)), np.uint8)
    for place, index in enumerate(shown):
        low, high = np.percentile(measured[..., index], _STRETCH)
        stretched = (pixels[..., index] - np.float32(low)) * np.float32(255 / max(high - low, 1e-12))
        view[..., place] = stretched.clip(0, 255)
    return view if len(shown) == 3 else np.repeat(view, 3, axis=2)
